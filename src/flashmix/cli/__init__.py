"""The ``flashmix`` command."""

from flashmix.cli.main import main

__all__ = ["main"]

"""The parser of the command line: argparse's, which names the nearest choice or option."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from flashmix._text import visible
from flashmix.errors import unknown_choice


class Parser(argparse.ArgumentParser):
    """An argument parser, used for subcommands too, that helps with typing errors."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but an unknown option is refused by the subcommand that lacks it."""
        found, extra = super().parse_known_args(args, namespace)
        if options := [word for word in extra if word.startswith("--")]:
            self._refuse(options[0])
        return found, extra

    def error(self, message: str) -> NoReturn:
        """As argparse's; what was typed is shown as text."""
        super().error(visible(message))

    def _refuse(self, option: str) -> NoReturn:
        name = option.split("=")[0]
        near = difflib.get_close_matches(name, self._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        self.error(f"unknown option {name}; {hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "command" if isinstance(action.choices, dict) else "value"
            raise argparse.ArgumentError(action, str(unknown_choice(what, value, action.choices)))

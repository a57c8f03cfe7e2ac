"""Models built of mixers: a transformer block and an encoder with a pattern over layers."""

from flashmix.models.block import Block
from flashmix.models.encoder import Encoder

__all__ = ["Block", "Encoder"]

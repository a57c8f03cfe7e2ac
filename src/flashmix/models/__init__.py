"""Models built of mixers: a block, an encoder with a pattern over layers, classifiers."""

from flashmix.models.block import Block
from flashmix.models.classifier import SequenceClassifier, TextClassifier
from flashmix.models.encoder import Encoder

__all__ = ["Block", "Encoder", "SequenceClassifier", "TextClassifier"]

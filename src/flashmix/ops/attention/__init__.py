from flashmix.ops.attention.api import OPERATOR, attention

__all__ = ["OPERATOR", "attention"]

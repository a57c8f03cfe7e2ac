from flashmix.ops.local_attention.api import OPERATOR, local_attention

__all__ = ["OPERATOR", "local_attention"]

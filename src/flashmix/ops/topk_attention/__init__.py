from flashmix.ops.topk_attention.api import OPERATOR, topk_attention

__all__ = ["OPERATOR", "topk_attention"]

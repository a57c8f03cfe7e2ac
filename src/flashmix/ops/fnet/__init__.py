from flashmix.ops.fnet.api import OPERATOR, fnet

__all__ = ["OPERATOR", "fnet"]

from flashmix.ops.spectral.api import OPERATOR, spectral

__all__ = ["OPERATOR", "spectral"]

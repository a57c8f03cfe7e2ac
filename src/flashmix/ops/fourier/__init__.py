from flashmix.ops.fourier.api import OPERATOR, fourier, fourier_weights

__all__ = ["OPERATOR", "fourier", "fourier_weights"]

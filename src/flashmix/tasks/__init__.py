"""Training on real data: what a mixer is worth, beside what it costs."""

from flashmix.tasks.digits import load_digits, train_digits

__all__ = ["load_digits", "train_digits"]

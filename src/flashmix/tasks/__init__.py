"""Training on real data: what a mixer is worth, beside what it costs."""

from flashmix.tasks.digits import fit_digits, load_digits, train_digits

__all__ = ["fit_digits", "load_digits", "train_digits"]

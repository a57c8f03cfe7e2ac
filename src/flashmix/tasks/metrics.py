"""What predictions are worth: accuracy, F1 and the confusion matrix.

Shapes: n examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores of a set of predictions.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: share of right predictions, 0..1.
        f1: F1 averaged evenly over the classes (macro), 0..1.
        confusion: counts [C][C], row = true class, column = predicted.
    """

    loss: float
    accuracy: float
    f1: float
    confusion: list[list[int]]


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of ``logits`` [n, C] for classes ``labels`` int64 [n]."""
    classes = logits.shape[1]
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2)
    counts = confusion.reshape(classes, classes).double()
    right = counts.diagonal()
    # A class that neither occurs nor is predicted counts as zero.
    f1 = 2 * right / (counts.sum(0) + counts.sum(1)).clamp(min=1)
    return Scores(
        loss=F.cross_entropy(logits.float(), labels).item(),
        accuracy=(right.sum() / counts.sum()).item(),
        f1=f1.mean().item(),
        confusion=counts.long().tolist(),
    )

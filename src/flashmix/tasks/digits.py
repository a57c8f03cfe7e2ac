"""Handwritten digits as token sequences: a real task that needs no download.

scikit-learn ships 1,797 images of 8 x 8 pixels (Alpaydin and Kaynak 1998, the test part of the
UCI set of optical digits). Each pixel is a token, so N = 64.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmix._clock import running_seconds
from flashmix.errors import ArgumentError, missing_extra
from flashmix.models import SequenceClassifier

TOKENS = 64
CLASSES = 10
HELD_OUT = 360
SPLIT_SEED = 0
PEAK_LEARNING_RATE = 6e-3


class Digits(NamedTuple):
    """Images [images, 64, 1] in 0..1 and their digits [images], split once and for all."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_digits(device: str = "cpu") -> Digits:
    """The images, 360 of them (a fifth) held out by a fixed shuffle.

    Raises:
        MissingDependencyError: scikit-learn, which ships the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise missing_extra("scikit-learn", "tasks", "the digits task") from None
    bunch = load()
    x = torch.tensor(bunch.data, dtype=torch.float32, device=device)[..., None] / 16
    y = torch.tensor(bunch.target, dtype=torch.int64, device=device)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED)).to(device)
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(x[train], y[train], x[test], y[test])


def train_digits(
    mixers: str,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    dim: int = 64,
    depth: int = 2,
    num_heads: int = 4,
    batch_size: int = 32,
    device: str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """What :func:`fit_digits` reached, without the model; its arguments."""
    return fit_digits(
        mixers,
        seconds=seconds,
        steps=steps,
        seed=seed,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        batch_size=batch_size,
        device=device,
        on_step=on_step,
    )[1]


def fit_digits(
    mixers: str,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    dim: int = 64,
    depth: int = 2,
    num_heads: int | None = 4,
    batch_size: int = 32,
    device: str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> tuple[SequenceClassifier, dict[str, Any]]:
    """Train a small encoder for a fixed time, or number of steps, and test it on held-out digits.

    In a fixed time a cheaper mixer takes more steps. On the CPU the time is the processor's, over
    all threads, so that other programs on the machine take nothing from it. AdamW, with a learning
    rate that warms up over the first tenth of the budget and then follows a cosine.

    Args:
        mixers: a pattern over layers, see :class:`flashmix.models.Encoder`.
        seconds, steps: the budget, one of them; evaluation is not counted.
        seed: of initialisation and batch order.
        dim, depth, num_heads: of the encoder.
        batch_size: images in a step.
        device: "cpu" or "cuda".
        on_step: called after every step.

    Returns:
        The model, and accuracy (0..1, on the 360 held-out images), train_loss (mean of the last
        epoch's steps), steps, epochs, train_seconds, params.

    Raises:
        ArgumentError: not exactly one budget, or a budget of nothing.
        MissingDependencyError: scikit-learn is not installed.
    """
    if (seconds is None) == (steps is None) or (seconds or steps or 0) <= 0:
        raise ArgumentError(
            f"fit_digits: give either seconds or steps, above zero, got {seconds} and {steps}"
        )
    clock = time.process_time if device == "cpu" else running_seconds
    digits = load_digits(device)
    torch.manual_seed(seed)
    model = SequenceClassifier(
        1, TOKENS, CLASSES, dim=dim, depth=depth, mixers=mixers, num_heads=num_heads
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    order = torch.Generator().manual_seed(seed)
    per_epoch = len(digits.train_y) // batch_size
    losses: list[float] = []
    start = clock()

    def progress() -> float:
        return len(losses) / steps if steps else (clock() - start) / (seconds or 1)

    while (done := progress()) < 1:
        if len(losses) % per_epoch == 0:
            shuffled = torch.randperm(len(digits.train_y), generator=order).to(device)
        first = len(losses) % per_epoch * batch_size
        batch = shuffled[first : first + batch_size]
        optimizer.param_groups[0]["lr"] = PEAK_LEARNING_RATE * _schedule(done)
        loss = F.cross_entropy(model(digits.train_x[batch]), digits.train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        on_step()
    trained = clock() - start
    model.eval()
    with torch.no_grad():
        right = (model(digits.test_x).argmax(1) == digits.test_y).float().mean().item()
    reached = {
        "accuracy": right,
        "train_loss": sum(losses[-per_epoch:]) / len(losses[-per_epoch:]),
        "steps": len(losses),
        "epochs": len(losses) / per_epoch,
        "train_seconds": trained,
        "params": sum(p.numel() for p in model.parameters()),
    }
    return model, reached


def _schedule(progress: float) -> float:
    """Learning rate over its peak after ``progress`` (0..1) of the training time."""
    warm_up = 0.1
    if progress < warm_up:
        return progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))

"""What a case runs: a function to be timed, built of the case's own fields."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from flashmix import parallel
from flashmix.bench import encoders
from flashmix.bench.baselines import build_function
from flashmix.bench.case import COPY, BenchmarkCase, lengths_of, mask_of
from flashmix.bench.graphs import replayed
from flashmix.bench.profiling.parts import part_shares
from flashmix.mixers import Mixer, parse_mixer
from flashmix.models import Block, TextClassifier
from flashmix.ops.dispatch import Choice, implementations_by_op, recorded_choices

Action = Callable[[], object]

DIVISIBLE = ("eager", "int8")
"""Modes in which a model's modules run one by one, so that each can be timed."""
VOCABULARY, CLASSES = 30_522, 2
"""BERT's vocabulary, and a sentiment's classes, for the subject "encoder"."""


@dataclass(frozen=True)
class Prepared:
    """What to time, what to measure the memory of, and what there is to say of the subject.

    ``ran``: the row's fields of what flashmix ran, see :func:`ran_fields`. ``tokens``: the real
    tokens of a model's batch. ``parts``: measures where the time of a call goes, as shares.
    """

    action: Action
    memory_action: Action
    params: int
    output_shape: tuple[int, ...]
    ran: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    parts: Callable[[], dict[str, float] | None] | None = None


def prepare(case: BenchmarkCase, mesh: DeviceMesh | None = None) -> Prepared:
    """Build inputs and subject of ``case`` from its seed; over the ranks of ``mesh``, its slice.

    It is called once, which tells the implementations that run.
    """
    prepared = _called(case, mesh)
    with recorded_choices() as choices:
        prepared.memory_action()
    prepared = dataclasses.replace(prepared, ran=ran_fields(choices))
    if not case.graph:
        return prepared
    return dataclasses.replace(prepared, action=replayed(prepared.action, case.device))


def ran_fields(choices: Iterable[Choice]) -> dict[str, Any]:
    """A row's fields of the implementations that ran.

    ``impl_ran`` names them by op, and is None where no op of flashmix ran (a copy, a peer's
    kernel). ``choices`` holds, for each kind of call, op, impl, dtype, shape of the first argument
    and options: what :func:`flashmix.explain` is to be asked to get the same answer.
    """
    return {
        "impl_ran": implementations_by_op(choices) or None,
        "choices": [
            {
                **dataclasses.asdict(one),
                "dtype": str(one.dtype).removeprefix("torch."),
                "options": dict(one.options),
            }
            for one in choices
        ],
    }


def _called(case: BenchmarkCase, mesh: DeviceMesh | None) -> Prepared:
    torch.manual_seed(case.seed)
    if case.mixer == COPY:
        return _copy(case)
    if case.subject == "model":
        return _model(case)
    if case.subject == "op":
        inputs, function = build_function(case)
        return _differentiate(case, function, inputs, [])
    module = _module(case)
    module = module.to(device=case.device, dtype=getattr(torch, case.dtype))
    module.train(case.direction != "forward")
    if case.subject == "encoder":
        tokens = torch.randint(VOCABULARY, (case.batch, case.seq_len), device=case.device)
        return _encoder(case, module, tokens)
    x = random_input(case)
    if (mask := mask_of(case)) is not None:
        return _differentiate(case, lambda x: module(x, mask), [x], [*module.parameters()])
    if mesh is not None:
        parallel.shard_sequence(module, mesh)
        x = x[:, parallel.local_slice(case.seq_len, mesh)].clone()
    return _differentiate(case, module, [x], list(module.parameters()))


def random_input(case: BenchmarkCase) -> Tensor:
    """[B, N, D]."""
    shape = (case.batch, case.seq_len, case.dim)
    return torch.randn(shape, device=case.device, dtype=getattr(torch, case.dtype))


def _module(case: BenchmarkCase) -> nn.Module:
    if case.subject == "encoder":
        return TextClassifier(
            VOCABULARY,
            case.seq_len,
            CLASSES,
            dim=case.dim,
            depth=2,
            mixers=case.mixer,
            num_heads=case.num_heads,
            impl=case.impl,
        )
    mixer = mixer_of(case)
    return Block(case.dim, mixer) if case.subject == "block" else mixer


def mixer_of(case: BenchmarkCase) -> Mixer:
    """The case's mixer, its weights drawn from the current seed."""
    return parse_mixer(case.mixer).build(case.dim, num_heads=case.num_heads, impl=case.impl)


def _autocast(case: BenchmarkCase) -> contextlib.AbstractContextManager[object]:
    if case.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(case.device, dtype=getattr(torch, case.autocast))


def _copy(case: BenchmarkCase) -> Prepared:
    """Read and write [B, N, D] once; twice where a backward reads and writes the gradient too."""
    x = random_input(case)
    target = torch.empty_like(x)

    def copy() -> None:
        target.copy_(x)
        if case.direction == "forward_backward":
            target.copy_(x)

    return Prepared(copy, copy, 0, tuple(x.shape))


def _differentiate(
    case: BenchmarkCase,
    function: Callable[..., Tensor],
    inputs: list[Tensor],
    parameters: list[Tensor],
) -> Prepared:
    """``function(*inputs)``, its backward, or both."""
    with torch.no_grad(), _autocast(case):
        output = function(*inputs)
    params = sum(parameter.numel() for parameter in parameters)
    shape, upstream = tuple(output.shape), torch.randn_like(output)
    del output

    def forward() -> Tensor:
        with _autocast(case):
            if case.checkpoint:
                return checkpoint(function, *inputs, use_reentrant=False)
            return function(*inputs)

    def infer() -> None:
        with torch.no_grad():
            forward()

    def both() -> None:
        forward().backward(upstream)
        # Gradients left for the next call to free would count as memory that it started with.
        for leaf in (*inputs, *parameters):
            leaf.grad = None

    if case.direction == "forward":
        return Prepared(infer, infer, params, shape)
    for leaf in inputs:
        leaf.requires_grad_()
    if case.direction == "backward":
        alone = _BackwardAlone(forward, upstream, [*inputs, *parameters])
        return Prepared(alone, both, params, shape)
    return Prepared(both, both, params, shape)


class _BackwardAlone:
    """The backward of one forward, again and again; the forward runs at the first call."""

    def __init__(
        self, forward: Callable[[], Tensor], upstream: Tensor, leaves: list[Tensor]
    ) -> None:
        self._forward = forward
        self._upstream = upstream
        self._leaves = leaves
        self._output: Tensor | None = None

    def __call__(self) -> None:
        if self._output is None:
            self._output = self._forward()
        self._output.backward(self._upstream, retain_graph=True)
        for leaf in self._leaves:
            leaf.grad = None


def _model(case: BenchmarkCase) -> Prepared:
    """An encoder of transformers as it is called: inference, or a training step with AdamW."""
    model, inputs = encoders.build(case)
    params = sum(parameter.numel() for parameter in model.parameters())
    call = encoders.called(case, model, inputs)
    outputs = tuple(encoders.hidden(call, inputs, grad=False).shape)
    step: Action = partial(encoders.hidden, call, inputs, grad=False)
    if case.direction == "train_step":
        step = partial(encoders.train_step, call, inputs, encoders.optimizer(model))
    tokens = int(lengths_of(case).sum())
    parts = None
    if case.suite == "profile" and case.mode in DIVISIBLE and case.direction != "train_step":
        timed: Any = call
        parts = partial(part_shares, timed, step, case.device)
    return Prepared(step, step, params, outputs, tokens=tokens, parts=parts)


def _encoder(case: BenchmarkCase, model: nn.Module, tokens: Tensor) -> Prepared:
    """Inference, or a training step with AdamW."""
    params = sum(parameter.numel() for parameter in model.parameters())
    labels = torch.randint(CLASSES, (case.batch,), device=case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def infer() -> None:
        with torch.no_grad(), _autocast(case):
            model(tokens)

    def step() -> None:
        with _autocast(case):
            loss = nn.functional.cross_entropy(model(tokens).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    action = infer if case.direction == "forward" else step
    return Prepared(action, action, params, (case.batch, CLASSES))

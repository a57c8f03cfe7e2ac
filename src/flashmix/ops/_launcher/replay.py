"""Registers kernels with the launcher, and answers it where a case has no plan."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from flashmix.ops._launcher.library import loaded
from flashmix.ops._launcher.plan import Plan, written
from flashmix.ops._launcher.recording import Recording
from flashmix.ops._launcher.storages import UnplannableError

Run = Callable[..., Any]

log = logging.getLogger(__name__)

_OPS: dict[str, Any] = {}
"""Kernels' Python by the name of their op."""
_taking = threading.Lock()
_taken: set[tuple[str, str]] = set()


def take(name: str, device: str) -> bool:
    """Have the launcher run the op ``name`` on a type of device; whether it does."""
    if device not in ("cpu", "cuda") or loaded() is not None:
        return False
    with _taking:
        if (name, device) not in _taken:
            torch.ops.flashmix._launcher_take(name, device)
            _taken.add((name, device))
    return True


def forget() -> None:
    """Drop all plans; the next calls of each case run in Python again.

    Whoever changes what Python reads beside its arguments, as tests change block sizes, calls this.
    """
    if _taken:
        torch.ops.flashmix._launcher_forget()


def taken() -> list[tuple[str, str]]:
    """The ops that the launcher runs, each with a type of device."""
    return list(_taken)


def plans(name: str) -> tuple[int, int]:
    """How many cases of an op have a plan, forward and backward."""
    found: tuple[int, int] = torch.ops.flashmix._launcher_plans(name)
    return found


def run(name: str, kernel: Run, backward: Backward | None, arguments: Sequence[Any]) -> Any:
    """A kernel's Python, for a case that has no plan; its second run is recorded as one."""
    if not _wanted():
        return kernel(*arguments)
    recording = Recording(_tensors(arguments), _python_of)
    given = iter(recording.inputs)
    copies = [next(given) if x is None or isinstance(x, Tensor) else x for x in arguments]

    with recording.watching():
        made = kernel(*copies)
    outputs = [made] if isinstance(made, Tensor) else list(made)
    try:
        plan = recording.plan(outputs)
        context: tuple[int, list[int], list[int]] = (-1, [], [])
        if backward is not None:
            context = backward.context(copies, outputs)
    except UnplannableError as error:
        _refuse(name, error)
    else:
        _keep(plan, *context)
    return made


class _Context:
    """Takes the place of autograd's ``ctx`` while ``setup_context`` says what a backward needs."""

    def __init__(self) -> None:
        self._saved: tuple[Tensor | None, ...] = ()
        self._plain: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self._saved = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        self._plain = tensors


class Backward:
    """How autograd treats the cases of one op: its backward, and what it saves by case."""

    def __init__(self, name: str, setup_context: Run, backward: Run) -> None:
        self.name, self.setup_context, self.backward = name, setup_context, backward

    def context(
        self, arguments: Sequence[Any], outputs: Sequence[Tensor]
    ) -> tuple[int, list[int], list[int]]:
        """The number of a context, the sources of what it saves, which outputs have gradients.

        A source is an argument's number among the tensors, -2 - j for output j, or -1 for None.

        Raises:
            UnplannableError: something else is saved.
        """
        ctx = _Context()
        self.setup_context(ctx, tuple(arguments), outputs[0] if len(outputs) == 1 else outputs)
        places = [i for i, x in enumerate(arguments) if x is None or isinstance(x, Tensor)]
        sources = []
        for x in ctx._saved:
            sources.append(_source(x, [arguments[i] for i in places], outputs))
        differentiable = [not any(y is x for x in ctx._plain) for y in outputs]
        attributes = {k: v for k, v in vars(ctx).items() if k not in ("_saved", "_plain")}
        _contexts.append((self, attributes, places, len(arguments)))
        return len(_contexts) - 1, sources, [int(one) for one in differentiable]


_contexts: list[tuple[Backward, dict[str, Any], list[int], int]] = []


def _source(x: Tensor | None, arguments: Sequence[Any], outputs: Sequence[Tensor]) -> int:
    if x is None:
        return -1
    for i, argument in enumerate(arguments):
        if argument is x:
            return i
    for j, output in enumerate(outputs):
        if output is x:
            return -2 - j
    raise UnplannableError("what is saved is neither an argument nor a result")


def _wanted() -> bool:
    """Whether this run is to be recorded: the second of its case, and of no CUDA graph."""
    if torch.ops.flashmix._launcher_missed() < 1:
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _tensors(arguments: Sequence[Any]) -> list[Tensor | None]:
    """The arguments that are tensors, or None in the place of one."""
    return [x for x in arguments if x is None or isinstance(x, Tensor)]


def _python_of(op: Any) -> Run | None:
    """The Python of one of this package's kernels, which a recording looks into."""
    namespace, _, name = op._schema.name.partition("::")
    if namespace != "flashmix":
        return None
    return _OPS.get(name.removesuffix("_forward"))


def register(name: str, kernel: Run) -> None:
    """Make a kernel's Python known to recordings of others, which may call it."""
    _OPS[name] = kernel


def _keep(plan: Plan, context: int, saved: list[int], differentiable: list[int]) -> None:
    words, names = written(plan)
    keep = torch.ops.flashmix._launcher_keep
    keep(words, plan.constants(), names, context, saved, differentiable)


def _refuse(name: str, error: UnplannableError) -> None:
    log.debug("%s stays in Python: %s", name, error)
    torch.ops.flashmix._launcher_refuse()


SCHEMA = (
    "_launcher_backward(str name, int context, int[] needs, Tensor?[] grads, Tensor?[] saved)"
    " -> (Tensor[], int[])"
)


def run_backward(
    name: str,
    context: int,
    needs: Sequence[int],
    grads: Sequence[Tensor | None],
    saved: Sequence[Tensor | None],
) -> tuple[list[Tensor], list[int]]:
    """The gradients of an op's tensors, and which of them each belongs to; others have none."""
    backward, attributes, places, count = _contexts[context]
    wanted = [False] * count
    for place, need in zip(places, needs, strict=True):
        wanted[place] = bool(need)

    def gradients(grads: Sequence[Any], saved: Sequence[Any]) -> list[Tensor | None]:
        ctx = SimpleNamespace(
            **attributes, saved_tensors=tuple(saved), needs_input_grad=tuple(wanted)
        )
        made = backward.backward(ctx, *grads)
        made = made if isinstance(made, tuple) else (made,)
        return [made[place] for place in places]

    if torch.is_grad_enabled() or not _wanted():
        return _present(gradients(grads, saved))
    recording = Recording([*grads, *saved], _python_of)
    copies = recording.inputs
    with recording.watching():
        made = gradients(copies[: len(grads)], copies[len(grads) :])
    try:
        plan = recording.plan(made)
    except UnplannableError as error:
        _refuse(f"the backward of {name}", error)
    else:
        _keep(plan, -1, [], [])
    return _present(made)


def _present(made: Sequence[Tensor | None]) -> tuple[list[Tensor], list[int]]:
    places = [place for place, x in enumerate(made) if x is not None]
    return [x for x in made if x is not None], places

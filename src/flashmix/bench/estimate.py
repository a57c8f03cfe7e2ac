"""How long a suite may take, from counted operations; for ``flashmix bench --list``.

A rough guide: it knows neither the machine nor the implementation.
"""

from __future__ import annotations

from flashmix.bench.case import COPY, BenchmarkCase, Suite
from flashmix.bench.encoders import SIZES
from flashmix.bench.profiling.catalogue import sizes_of
from flashmix.mixers import MIXERS, MixerSpec, parse_layers

OVERHEAD_SECONDS = 1e-4
CASE_SECONDS = {"cpu": 0.3, "cuda": 0.6}
"""Building, warming up and measuring the memory of a case."""
RATE = {"cpu": 5e10, "cuda": 5e13}
"""Operations a second that typical implementations reach."""
DIRECTION_FACTOR = {
    "forward": 1,
    "backward": 2,
    "forward_backward": 3,
    "train_step": 4,
    "inference": 1,
    "inference_b1": 1,
}


def operations(case: BenchmarkCase) -> float:
    """Arithmetic of one forward on one rank, of the parts that grow with N."""
    tokens = case.batch * case.seq_len * case.dim / (case.ranks or 1)
    if case.mixer == COPY:
        return tokens
    projections = 0.0 if case.subject == "op" else 8.0 * tokens * case.dim
    if case.subject in ("block", "encoder", "model"):
        projections += 16.0 * tokens * case.dim
    mixing = max(spec.config(case.dim).operations(case.seq_len) for spec in _mixers(case))
    if case.config is not None:
        depth = sizes_of(case.config).depth
    else:
        depth = SIZES[case.model][1] if case.model else 1
    return depth * (projections + mixing * tokens / case.dim)


def _mixers(case: BenchmarkCase) -> list[MixerSpec]:
    """The mixers of a case, or the one whose op it is."""
    if case.op is None:
        return parse_layers(case.mixer)
    op = case.op.removeprefix("block_")
    options = {} if case.window is None else {"window": case.window}
    return [MixerSpec(name, options) for name, kind in MIXERS.items() if kind.op == op]


def case_seconds(case: BenchmarkCase, suite: Suite) -> float:
    """Seconds that measuring ``case`` may take."""
    if case.direction == "train":
        return (case.seconds or 0.0) + 1.0
    if case.direction == "properties":
        return 0.5
    rate = RATE[case.device]
    call = OVERHEAD_SECONDS + operations(case) * DIRECTION_FACTOR[case.direction] / rate
    timing = min(
        max(suite.min_samples * max(call, 2e-3), suite.seconds_per_case),
        max(suite.max_seconds_per_case, 3 * call),
    )
    return CASE_SECONDS[case.device] + 4 * call + timing


def suite_minutes(suite: Suite) -> float:
    """Minutes that ``suite`` may take."""
    return sum(case_seconds(case, suite) for case in suite.cases) / 60

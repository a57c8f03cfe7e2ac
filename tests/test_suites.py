"""Suites are data: what each must hold, and that every kind of case can be measured."""

import dataclasses

import pytest

from flashmix.bench import SUITES, Grid, build_suite
from flashmix.bench.actions import prepare
from flashmix.bench.case import COPY, lengths_of, mask_of
from flashmix.bench.dispatch import measured_ops
from flashmix.bench.estimate import suite_minutes
from flashmix.bench.properties import measure_properties
from flashmix.errors import ArgumentError

FUSED = "attention (fused)"
NAIVE = "attention (naive)"


def cases(name, **grid):
    return build_suite(name, Grid(**grid)).cases


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_case_is_listed_twice(name, device):
    listed = cases(name, device=device, remedies=True)
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("name", ["quick", "fourier", "spectral", "efficient", "swap"])
def test_fused_attention_stands_beside_every_sweep(name):
    """Wherever mixers are timed, the same shape and precision is timed with fused attention."""
    timed = [
        c for c in cases(name) if c.direction not in ("train", "properties") and c.mixer != COPY
    ]
    groups = {}
    for case in timed:
        groups.setdefault((case.group, case.autocast), set()).add(case.label.partition(",")[0])
    assert groups
    assert all(FUSED in labels for labels in groups.values())


@pytest.mark.parametrize("name", ["quick", "kernels"])
def test_a_padded_case_stands_beside_a_full_one_for_every_mixer_and_implementation(name):
    for device in ("cpu", "cuda"):
        timed = [
            c for c in cases(name, device=device) if c.direction not in ("train", "properties")
        ]
        padded = [c for c in timed if c.lengths == "uniform"]
        full = {dataclasses.replace(c, impl="") for c in timed if c.lengths == "full"}
        assert {dataclasses.replace(c, impl="", lengths="full") for c in padded} <= full
        subjects = {(c.op, c.mixer) for c in timed if c.seq_len >= 512}
        missed = {("block_topk_attention", m) for m in ("block_topk_attention", COPY)}
        assert subjects - {(c.op, c.mixer) for c in padded} <= (
            missed if device == "cpu" else set()
        )


def test_lengths_are_drawn_once_per_seed_from_a_quarter_of_n_to_n():
    case = next(c for c in cases("kernels") if c.lengths == "uniform" and c.batch == 32)
    lengths, mask = lengths_of(case), mask_of(case)
    assert lengths.equal(lengths_of(case)) and mask.sum(1).equal(lengths)
    assert case.seq_len // 4 <= lengths.min() < lengths.max() <= case.seq_len
    assert mask[:, :-1].ge(mask[:, 1:]).all()  # padded on the right
    assert not lengths.equal(lengths_of(dataclasses.replace(case, seed=1)))
    assert mask_of(dataclasses.replace(case, lengths="full")) is None


def test_choices_of_unmasked_calls_come_from_full_batches_alone():
    impls = ("torch", "cpu")
    rows = [
        {
            **dataclasses.replace(case, impl=impl, lengths=lengths).as_dict(),
            "status": "ok",
            "samples_ms": [1.0] * 3,
            "median_ms": 1.0,
        }
        for case in [next(c for c in cases("kernels") if c.op == "fnet" and c.mixer != COPY)]
        for impl in impls
        for lengths in ("full", "uniform")
    ]
    assert measured_ops(rows) == measured_ops([r for r in rows if r["lengths"] == "full"]) != {}
    assert measured_ops([r for r in rows if r["lengths"] == "uniform"]) == {}


def test_models_are_measured_against_both_vanilla_ones_padded_and_called_alike():
    groups = {}
    for case in cases("model", device="cuda", modes=("eager", "compile")):
        groups.setdefault(case.group, set()).add(case.label)
    assert groups and all({"vanilla eager", "vanilla SDPA"} < labels for labels in groups.values())


@pytest.mark.parametrize("name", ["quick", "fourier", "spectral", "efficient", "kernels"])
def test_a_copy_of_the_shape_is_the_floor_of_every_group(name):
    groups = {}
    for case in cases(name):
        if case.direction not in ("train", "properties") and case.subject in ("mixer", "op"):
            groups.setdefault(case.group, set()).add(case.mixer)
    assert groups
    assert all(COPY in mixers for mixers in groups.values())


@pytest.mark.parametrize("name", SUITES)
def test_groups_stand_together(name):
    """A group split in two would be compared across time."""
    order = [case.group for case in cases(name, remedies=True)]
    runs = [group for i, group in enumerate(order) if i == 0 or order[i - 1] != group]
    assert len(runs) == len(set(runs))


def test_the_published_grids():
    naive = {(c.dim, c.seq_len, c.batch, c.num_heads) for c in cases("naive")}
    assert naive == {(d, n, 4, 1) for d in (16, 32, 64) for n in (256, 1024, 4096)}
    spectral = {c.seq_len for c in cases("spectral") if c.label == "spectral"}
    assert spectral == {64, 128, 256, 512, 1024, 2048}
    fourier = {(c.batch, c.seq_len, c.dim, c.num_heads) for c in cases("fourier")}
    assert fourier == {(8, 512, 64, 8)}
    efficient = {c.seq_len for c in cases("efficient") if c.label == "topk(topk=32)"}
    assert efficient == {64 << i for i in range(11)}
    swap = {(c.batch, c.seq_len, c.dim, c.num_heads) for c in cases("swap")}
    assert swap == {(32, n, 128, 2) for n in (128, 256, 512)}


def test_what_the_cpu_shrinks_is_said():
    cpu, gpu = (build_suite("naive", Grid(device=device)) for device in ("cpu", "cuda"))
    assert len(gpu.cases) > len(cpu.cases)
    assert any("smaller" in note for note in cpu.notes)
    assert not gpu.notes


@pytest.mark.parametrize("name", SUITES)
def test_directions_left_out_are_left_out(name):
    kept = cases(name, directions=("forward",))
    forward = "inference" if name in ("model", "profile") else "forward"
    assert {c.direction for c in kept} - {"properties"} == {forward}


@pytest.mark.parametrize("name", SUITES)
def test_the_estimate_grows_with_the_suite(name):
    suite = build_suite(name, Grid())
    half = dataclasses.replace(suite, cases=suite.cases[: len(suite.cases) // 2])
    assert 0 < suite_minutes(half) < suite_minutes(suite) < 120


def test_an_unknown_op_of_kernels_lists_the_choices():
    with pytest.raises(ArgumentError, match=r"'fnt'; did you mean 'fnet'\?"):
        build_suite("kernels", Grid(mixers=("fnt",)))


def _kinds():
    """One small case of every kind that a suite lists: what would differ only in size is left."""
    kinds = {}
    for name in SUITES:
        for case in cases(name, remedies=True):
            if case.direction in ("train", "properties") or case.impl == "flex":
                continue
            if case.subject == "model" and case.model != "bert-tiny":
                continue
            kind = (case.subject, case.mixer, case.impl, case.direction, case.op, case.lengths)
            kinds.setdefault((*kind, case.autocast, case.checkpoint), case)
    return list(kinds.values())


@pytest.mark.parametrize(
    "case", _kinds(), ids=lambda c: f"{c.subject}-{c.label}-{c.direction}-{c.lengths}"
)
def test_every_kind_of_case_runs(case):
    modes = None if case.modes is None else 5
    heads = 2 if case.num_heads > 1 else 1
    small = dataclasses.replace(
        case,
        batch=2,
        seq_len=12,
        dim=16,
        num_heads=heads,
        modes=modes,
        topk=case.topk and 3,
        window=case.window and 8,
    )
    prepared = prepare(small)
    prepared.memory_action()
    prepared.action()
    prepared.action()
    assert prepared.output_shape[0] == 2
    if case.subject == "model":
        assert prepared.tokens == lengths_of(small).sum()
        return
    assert (prepared.params > 0) == (
        case.subject in ("block", "encoder")
        or (case.subject == "mixer" and case.mixer not in (COPY, "fnet"))
    )


def test_contenders_agree_on_the_result():
    """What a user would otherwise run computes the same, so that the comparison is fair."""
    import torch

    from flashmix.bench.baselines import BASELINES, build_function, implementations

    for case in _kinds():
        if case.subject != "op" or case.mixer == COPY or case.direction != "forward":
            continue
        modes = None if case.modes is None else 5
        small = dataclasses.replace(
            case,
            batch=2,
            seq_len=12,
            dim=16,
            num_heads=2,
            modes=modes,
            topk=case.topk and 3,
            window=case.window and 5,
        )
        if case.impl == "sdpa":
            continue  # dense attention: a baseline that computes something else
        torch.manual_seed(0)
        inputs, function = build_function(small)
        impls = implementations(case)
        assert impls and case.impl in (*impls, *BASELINES[case.op])
        _, reference = build_function(dataclasses.replace(small, impl="reference"))
        got, want = function(*inputs), reference(*inputs)
        if (mask := mask_of(small)) is not None:
            if case.impl in ("fftn", "rfft-filter-irfft", "rfft-weigh-irfft"):
                continue  # as users write it: the padding is mixed in
            real = mask if got.dim() == 3 else mask[:, None].expand(got.shape[:3])
            got, want = got[real], want[real]
        assert (got - want).norm() <= 1e-5 * want.norm(), case.label


def test_facts_are_numbers_that_a_reader_can_check():
    spectral = next(c for c in cases("spectral") if c.direction == "properties")
    found = measure_properties(dataclasses.replace(spectral, batch=2, seq_len=31, dim=8))
    assert abs(found["unitary_energy_ratio"] - 1) < 1e-5
    assert found["round_trip_relative_error"] < 1e-6
    assert found["same_bits_twice"] and found["gradients_finite"]
    assert found["input_gradient_norm"] > 0
    fourier = next(c for c in cases("fourier") if c.direction == "properties")
    found = measure_properties(fourier)
    shares = found["lowest_tenth_energy_share_by_head"]
    assert len(shares) == 8 and all(0 < share < 1 for share in shares)
    assert [len(head) for head in found["magnitude_by_head"]] == [512 // 2 + 1] * 8

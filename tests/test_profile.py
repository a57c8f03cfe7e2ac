"""Suite profile: its cases, how models are built and divided into parts, and what is refused."""

import dataclasses
import json
import logging

import pytest
import torch

import flashmix
from flashmix.bench import BenchmarkCase, Grid, build_suite, schema
from flashmix.bench.case import COMPILED, lengths_of, mask_of
from flashmix.bench.profiling import api, catalogue, engines, lengths
from flashmix.bench.profiling.free import swap_free
from flashmix.bench.profiling.parts import PARTS, parts_of
from flashmix.bench.repeat import to_repeat
from flashmix.bench.suites.profile import MODES_CPU
from flashmix.bench.worker import measure
from flashmix.cli.main import main
from flashmix.cli.profile import MODES, NAMES
from flashmix.errors import ArgumentError, MissingDependencyError
from flashmix.mixers import MIXERS, parse_mixer

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 60,
    "max_position_embeddings": 64,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 60}
ESM = {"pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"}
FAMILIES = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "MPNet": SIZES,
    "Albert": {**SIZES, "embedding_size": 8},
    "DistilBert": DISTIL,
    "ModernBert": {**SIZES, "pad_token_id": 0},
    "Esm": {**SIZES, **ESM},
    "ViT": {**SIZES, "image_size": 8, "patch_size": 4},
}


def tiny(family="Bert", **options):
    return getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **options})


def tiny_grid(**options):
    text = catalogue.config_text(tiny(), "tiny")
    usual = {"batch": 3, "seq_len": 8, "seq_lens": (4,), "mixers": ("fnet", "local(window=4)")}
    return Grid(models=("tiny",), config=text, **{**usual, **options})


def cases(**options):
    return build_suite("profile", tiny_grid(**options)).cases


def measured(listed):
    """Rows of cases, as a worker measures them, in their order."""
    settings = {
        "min_samples": 1,
        "max_samples": 3,
        "seconds_per_case": 0.0,
        "max_seconds_per_case": 1.0,
    }
    found = {}

    def emit(event, **fields):
        if event == "done":
            found[fields["index"]] = fields["result"]

    measure(list(listed), settings, emit)
    return [
        json.loads(
            json.dumps({**case.as_dict(), "label": case.label, "mixers": case.mixer, **found[i]})
        )
        for i, case in enumerate(listed)
    ]


@pytest.fixture(scope="module")
def rows():
    """Everything of a tiny model but what is compiled, which takes seconds."""
    groups = {}
    for case in cases(train=True):
        if case.mode not in COMPILED:
            groups.setdefault(case.group, []).append(case)
    return [row for group in groups.values() for row in measured(group)]


# What is measured


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("train", [False, True])
def test_every_pattern_and_alternative_is_timed_in_turn_with_the_vanilla_and_the_free_model(
    device, train
):
    listed = cases(device=device, train=train)
    groups = {}
    for case in listed:
        groups.setdefault(case.group, []).append(case)
    whole = [group for group in groups.values() if any(case.impl == "naive" for case in group)]
    directions = {group[0].direction for group in whole}
    assert directions == {"inference", "inference_b1"} | ({"train_step"} if train else set())
    for group in whole:
        labels = [case.label for case in group]
        assert len(set(labels)) == len(labels)
        assert {"vanilla eager", "vanilla SDPA", "mixing free", "torch.compile"} < set(labels)
        assert {"fnet", "local(window=4)"} < set(labels)
        if device == "cpu" and group[0].direction != "train_step":
            assert set(MODES_CPU) < {case.mode for case in group}
    for group in groups.values():  # the sweep over lengths
        assert {"vanilla SDPA", "mixing free"} <= {case.label for case in group}


def test_patterns_run_in_the_modes_that_are_asked_for():
    listed = cases(modes=("int8", "compile"))
    for text in ("fnet", "local(window=4)"):
        modes = {case.mode for case in listed if case.mixer == text}
        assert modes == {"eager", "int8", "compile"}
    assert {"fnet, PyTorch int8", "fnet, torch.compile"} < {case.label for case in listed}


def test_a_case_is_the_same_after_json():
    for case in cases(token_lengths=(2, 5, 8), lengths=None):
        assert BenchmarkCase.from_dict(json.loads(json.dumps(case.as_dict()))) == case


def test_the_lengths_of_data_are_those_of_the_batch():
    case = next(c for c in cases(token_lengths=(2, 5, 8)) if c.lengths == "data")
    assert (case.batch, case.seq_len) == (3, 8)
    assert lengths_of(case).tolist() == mask_of(case).sum(1).tolist() == [2, 5, 8]


def test_what_is_slow_to_prepare_is_not_measured_twice(rows):
    slow = [{**row, "mode": "compile"} for row in rows if row["status"] == "ok"]
    assert to_repeat(rows) and not to_repeat(slow)


# Rows


def test_rows_hold_what_their_schema_says_and_what_ran(rows):
    for row in rows:
        assert schema.case_fault(row) is None, row["label"]
        if row["mode"] in engines.OTHER_ENGINES and row["status"] != "ok":
            assert "MissingDependencyError" in row["error"]
            continue
        assert row["status"] == "ok", row["error"]
        assert json.loads(row["config"])["hidden_size"] == 16
        if row["mixer"] != "attention":  # whose dropout, in training, no op of flashmix has
            assert row["impl_ran"], row["label"]
        assert not (row["impl_ran"] and row["impl"] != "auto"), row["label"]
        assert row["tokens_per_s"] > 0
        assert (row.get("peak_mb") is None) == (row["mode"] in engines.OTHER_ENGINES)


def test_what_is_not_installed_is_a_row_with_its_reason(rows, monkeypatch):
    listed = [case for case in cases() if case.mode in engines.OTHER_ENGINES][:3]

    def absent(name):
        raise MissingDependencyError(f"no {name}: pip install 'flashmix[onnx]'")

    monkeypatch.setattr(engines, "_installed", absent)
    monkeypatch.setattr(engines, "_last", None)
    found = measured(listed)
    assert len(found) == 3
    for row in found:
        assert row["status"] == "error" and "pip install" in row["error"]


def test_the_parts_of_a_row_sum_to_its_whole(rows):
    eager = [r for r in rows if r["mode"] in ("eager", "int8") and r["direction"] != "train_step"]
    assert eager
    for row in eager:
        assert set(row["parts"]) == set(PARTS)
        assert sum(row["parts"].values()) == pytest.approx(1.0)
        assert all(0 <= share <= 1 for share in row["parts"].values())
    assert all("parts" not in row for row in rows if row["direction"] == "train_step")


# Parts


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_found_in_every_family(family):
    model = transformers.AutoModel.from_config(tiny(family))
    kinds = parts_of(model)
    layers = 1 if family == "Albert" else 2  # its layers share their weights
    for kind, least in (("attention", 1), ("projections", 2), ("mlp", 3 if family != "Esm" else 2)):
        found = [path for path, one in kinds.items() if one == kind]
        assert len(found) % layers == 0 and len(found) >= least * layers, (kind, found)
    linears = {p for p, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    outside = {p for p in linears - kinds.keys() if ".0." in p or ".1." in p}
    assert not outside


def test_quantised_linear_maps_belong_where_they_did():
    model = transformers.BertModel(tiny())
    assert parts_of(engines.quantised(model)) == parts_of(model)


@pytest.mark.parametrize("mixers", ["fnet", "spectral(modes=2)+local(window=4)", "free"])
def test_a_mixer_counts_as_mixing_whatever_is_in_it(mixers):
    model = transformers.BertModel(tiny())
    model = swap_free(model) if mixers == "free" else flashmix.swap(model, mixers)
    assert not any(".mixer" in path for path in parts_of(model))


# Models


@pytest.mark.parametrize("name", catalogue.NAMED)
def test_a_named_configuration_is_one_of_transformers(name):
    text = catalogue.named_config(name)
    sizes, config = catalogue.sizes_of(text), catalogue.build_config(text, 8)
    assert (sizes.dim, sizes.depth, sizes.heads) == (
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    )
    assert catalogue.config_text(config, name)  # what is read of a config gives the same sizes
    assert catalogue.sizes_of(catalogue.config_text(config, name)) == sizes


def test_a_model_that_transformers_runs_eagerly_alone_says_so():
    fused = {kind: catalogue.sizes_of(catalogue.config_text(tiny(kind), kind)) for kind in FAMILIES}
    assert [kind for kind, sizes in fused.items() if not sizes.fused] == ["MPNet"]
    text = catalogue.config_text(tiny("MPNet"), "it")
    first = dataclasses.replace(tiny_grid(mixers=("local(window=4)",)), config=text)
    kinds = ("vanilla eager", "PyTorch int8")
    listed = [case for case in build_suite("profile", first).cases if case.label in kinds][:2]
    assert [row["status"] for row in measured(listed)] == ["ok", "ok"]


def test_the_command_line_names_what_there_is():
    assert set(NAMES) == set(catalogue.NAMED)
    assert set(MODES) == {*MODES_CPU, *COMPILED}


@pytest.mark.parametrize(("kind", "own"), [("Bert", 64), ("Roberta", 62), ("DistilBert", 512)])
def test_positions_are_lengthened_to_what_is_measured(kind, own):
    text = catalogue.config_text(tiny(kind), kind)
    assert catalogue.sizes_of(text).positions == own
    model = transformers.AutoModel.from_config(catalogue.build_config(text, own + 6)).eval()
    with torch.no_grad():
        assert model(torch.full((1, own + 6), 5)).last_hidden_state.isfinite().all()


def test_free_mixing_drops_q_k_and_v_and_can_be_named_by_nobody():
    plain, free = (transformers.BertModel(tiny()).eval() for _ in range(2))
    swap_free(free)
    lost = 2 * 3 * (16 * 16 + 16)
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, free)]
    assert count[0] - count[1] == lost
    assert "free" not in MIXERS
    with pytest.raises(ArgumentError, match="unknown mixer 'free'"):
        parse_mixer("free").build(16)


@pytest.mark.parametrize("mode", engines.ENGINES)
def test_an_engine_gives_the_outputs_of_the_model(mode):
    if mode != "int8":
        for package in ("onnx", "onnxscript", "openvino" if mode == "openvino" else "onnxruntime"):
            pytest.importorskip(package)
    torch.manual_seed(0)
    model = transformers.BertModel(tiny(initializer_range=0.3)).eval()
    mask = torch.ones(2, 8).long()
    mask[1, 5:] = 0
    inputs = {"input_ids": torch.randint(60, (2, 8)), "attention_mask": mask}
    with torch.no_grad():
        want = model(**inputs).last_hidden_state[mask.bool()]
        call = engines.engine(mode, model, inputs, "cpu")
        got = call(**inputs).last_hidden_state[mask.bool()]
    assert (got - want).norm() <= (0.1 if "int8" in mode else 1e-4) * want.norm()
    assert not (got.equal(want) and "int8" in mode)


# What is asked for


def test_the_lengths_of_a_batch_are_the_quantiles_of_the_texts():
    found = [9, 1, 5, 3, 7]
    assert lengths.typical_batch(found, 5) == (1, 3, 5, 7, 9)
    assert lengths.typical_batch(found, 1) == (5,)
    many = lengths.typical_batch(range(1, 1001), 10)
    assert many == tuple(range(51, 1000, 100))


def test_inputs_decide_shape_and_lengths(monkeypatch):
    asked = []
    monkeypatch.setattr(api, "measure", _Recorder(asked))
    ids, mask = torch.ones(2, 5).long(), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    model = transformers.BertModel(tiny())
    flashmix.profile(model, {"input_ids": ids, "attention_mask": mask})
    flashmix.profile(model, {"input_ids": ids})
    assert asked[0].token_lengths == (5, 2)
    assert (asked[1].batch, asked[1].seq_len, asked[1].lengths) == (2, 5, ("full",))
    assert {grid.dtype for grid in asked} == {"float32"}
    first = next(c for c in build_suite("profile", asked[1]).cases)
    assert (first.batch, first.seq_len, first.lengths) == (2, 5, "full")


class _Recorder:
    def __init__(self, asked):
        self.asked = asked

    def __call__(self, name, grid, out, **options):
        self.asked.append(grid)
        return dataclasses.make_dataclass("Run", ["rows"])([])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input_ids"),
        ({"attention_mask": torch.zeros(2, 3)}, "no real token"),
        ({"pixel_values": torch.zeros(2, 3)}, "input_ids"),
    ],
)
def test_inputs_that_say_nothing_are_refused(inputs, words):
    with pytest.raises(ArgumentError, match=words):
        flashmix.profile(transformers.BertModel(tiny()), inputs)


def test_other_objects_are_refused():
    with pytest.raises(ArgumentError, match="model of transformers, got Linear"):
        flashmix.profile(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: transformers.T5Config(), "decoder"),
        (lambda: transformers.CLIPConfig(), "several models"),
        (lambda: transformers.SwinConfig(), "layers are alike"),
        (lambda: flashmix.swap(transformers.BertModel(tiny()), "fnet").config, "swapped already"),
    ],
)
def test_models_that_cannot_be_profiled_are_refused_in_one_sentence(config, words):
    with pytest.raises(ArgumentError, match=words):
        catalogue.config_text(config(), "it")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a MODEL"),
        (["/no/such/folder"], "there is no folder"),
        (["minilm-l6", "--mixers", "fnt"], "did you mean 'fnet'?"),
        (["minilm-l6", "--mixers", "fnet*4;fnet*5"], "does not divide depth 6"),
        (["minilm-l6", "--data", "x.csv"], "--tokenizer"),
        (["vit-b-16", "--seq-len", "3"], "197 tokens"),
        (["vit-b-16", "--data", "x.csv"], "pictures"),
        (["minilm-l6", "--data", "x.csv", "--tokenizer", "."], "there is no file x.csv"),
        (["minilm-l6", "--data", "x.xls", "--tokenizer", "."], ".parquet, .csv, .txt"),
        (["minilm-l6", "--price-per-hour", "free"], "a price such as 0.40"),
        (["minilm-l6", "--modes", "int4"], "unknown mode"),
        (["minilm-l6", "--resume", "x"], "--resume already names the folder"),
        (["--resume", "x"], "holds no run"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(
    arguments, words, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["profile", "--device", "cpu", *arguments])
    except SystemExit as stop:
        code = stop.code
    logging.disable(logging.NOTSET)
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.rglob("*.jsonl"))


def test_texts_are_read_from_their_column_and_cut(tmp_path):
    table = tmp_path / "reviews.csv"
    table.write_text("text,label\nplain good fun,1\n,0\nbad,0\n")
    assert lengths.read_texts(table, "text") == ["plain good fun", "bad"]
    with pytest.raises(ArgumentError, match="only text, label; name one with --column"):
        lengths.read_texts(table, "review")
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    assert lengths.read_texts(lines, "text") == ["one", "two"]
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ArgumentError, match="holds no text"):
        lengths.read_texts(tmp_path / "none.txt", "text")
    lines.write_bytes(b"\xff\xfe")
    with pytest.raises(ArgumentError, match="not UTF-8"):
        lengths.read_texts(lines, "text")

    def words(texts, truncation, max_length, verbose):
        return {"input_ids": [text.split()[:max_length] for text in texts]}

    assert lengths.count_tokens(words, ["a b c", "d"], 2) == [2, 1]
    many = [("w " * (i + 1)).strip() for i in range(5000)]
    assert len(lengths.count_tokens(words, many, 10**6)) == lengths.SAMPLE

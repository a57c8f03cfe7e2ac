"""``flashmix tune``: what it measures is what ``auto`` and ``explain`` go by afterwards."""

import json
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flashmix
from flashmix._core.machine import cpu_name
from flashmix.bench.dispatch import NAMES, choosable, measured_ops
from flashmix.cli.main import main
from flashmix.ops import OPERATORS
from flashmix.ops.dispatch import Signature, tables

forget = tables.forget
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def table(monkeypatch, tmp_path):
    """A table of this test alone."""
    path = tmp_path / "cache" / "dispatch.json"
    monkeypatch.setenv(tables.VARIABLE, str(path))
    forget()
    yield path
    forget()


def entry(seq_len, **ms):
    times = {name: [time, 0.99 * time, 1.01 * time] for name, time in ms.items()}
    return {"sizes": {"batch": 8, "seq_len": seq_len, "dim": 128}, "ms": times}


def forward(*entries, dtype="float32"):
    return {"fnet": {dtype: {"forward": list(entries)}}}


def write(*entries):
    tables.write(cpu_name(), None, forward(*entries))


def chosen(seq_len):
    return flashmix.explain("fnet", (8, seq_len, 128)).impl


def test_tune_measures_and_auto_goes_by_it(table, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["tune", "--device", "cpu", "--ops", "fnet", "--seq-lens", "128"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {table}" in said
    forget()
    times = json.loads(table.read_text())["machines"][cpu_name()]["ops"]["fnet"]["times"]
    assert times["float32"].keys() == {"forward", "training"}
    (measured,) = times["float32"]["forward"]
    assert measured["sizes"] == {"batch": 8, "seq_len": 128, "dim": 128}
    runnable = {
        one.name
        for one in OPERATORS["fnet"].implementations
        if one.name != "reference"
        and one.refusal(Signature((8, 128, 128), torch.float32, CPU)) is None
    }
    assert set(measured["ms"]) == runnable
    told = flashmix.explain("fnet", (8, 128, 128))
    assert measured["ms"][told.impl][1] <= min(time[2] for time in measured["ms"].values())
    assert f"measured on {cpu_name()}" in told.reason
    assert str(table) in told.reason
    before = table.read_text()
    assert main(["tune", "--run", str(out)]) == 0
    assert table.read_text() == before


def test_auto_takes_the_fastest_of_the_nearest_length_of_its_kind():
    write(entry(128, torch=2.0, dense=1.0), entry(509, torch=1.0, dense=2.0))
    assert chosen(128) == chosen(512) == "dense"
    assert chosen(499) == "torch", "a prime is looked up among primes, though 512 is as near"
    assert chosen(2048) == "dense"


def test_no_other_machine_and_no_other_dtype_is_touched():
    tables.write("another GPU", (9, 0), forward(entry(64, torch=1.0), dtype="bfloat16"))
    write(entry(128, torch=2.0, dense=1.0))
    other = tables.user()["machines"]["another GPU"]
    assert other["capability"] == "9.0"
    assert other["ops"]["fnet"]["times"]["bfloat16"]["forward"] == [entry(64, torch=1.0)]
    tables.write(cpu_name(), None, forward(entry(64, torch=1.0), dtype="bfloat16"))
    times = tables.user()["machines"][cpu_name()]["ops"]["fnet"]["times"]
    assert set(times) == {"float32", "bfloat16"}


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: "[]", "is damaged"),
        (lambda text: text.replace('"ms"', '"times"'), "is damaged"),
        (lambda text: text.replace("1.25", '"fast"'), "is damaged"),
        (lambda text: text.replace("1.25", "-1.25"), "is damaged"),
        (lambda text: text.replace(torch.__version__, "1.0"), r"was measured with torch 1\.0"),
        (lambda text: text.replace('"format": 2', '"format": 0'), "was measured with format 0"),
        (lambda text: text.replace('"forward"', '"sideways"'), "is damaged"),
        (lambda text: text.replace("null", '"nine"'), "is damaged"),
    ],
)
def test_a_stale_or_damaged_table_is_left_aside_with_one_warning(table, damage, wrong):
    default = chosen(128)
    write(entry(128, torch=2.0, dense=1.25))
    table.write_text(damage(table.read_text()))
    forget()
    with pytest.warns(UserWarning, match=rf"(?s){wrong}.*flashmix tune"):
        assert chosen(128) == default
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(130) == default
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(entry(128, torch=2.0, dense=1.25))
        assert chosen(128) == "dense"


HOSTILE = [
    *(None, True, False, 0, -1, 1.5, 10**400, float("inf"), float("nan"), "", "9", [], {}, [[]]),
    *([1], {"a": 1}, {"batch": {}}, {"sizes": {}, "ms": {}}, [None], {"float32": [None]}),
]


def places(value, at=()):
    """Every place of a table, from the outermost in."""
    yield at
    lists = enumerate(value) if isinstance(value, list) else ()
    for name, child in value.items() if isinstance(value, dict) else lists:
        yield from places(child, (*at, name))


def put(table, at, value):
    """``table`` with ``value`` at a place."""
    if not at:
        return value
    held = table
    for name in at[:-1]:
        held = held[name]
    held[at[-1]] = value
    return table


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=json_values)
def test_whatever_stands_in_a_table_no_call_raises(table, data, value):
    write(entry(128, torch=2.0, dense=1.25))
    whole = json.loads(table.read_text())
    at = data.draw(st.sampled_from(list(places(whole))))
    table.write_text(json.dumps(put(whole, at, value)))
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert chosen(128) in {one.name for one in OPERATORS["fnet"].implementations}
        flashmix.ops.fnet(torch.zeros(1, 128, 128))
        assert "fnet" in str(flashmix.explain("fnet", (8, 500, 128)))
        write(entry(128, torch=2.0, dense=1.25))


def test_a_table_nested_without_end_is_left_aside(table):
    table.parent.mkdir(parents=True)
    table.write_text("[" * 100_000)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert chosen(128)


def test_a_table_bends_no_compiled_graph():
    write(entry(128, torch=2.0, dense=1.0))
    torch._dynamo.reset()
    run = torch.compile(lambda x: flashmix.ops.fnet(x), fullgraph=True, backend="eager")
    for seq_len in (96, 100, 104):
        x = torch.randn(2, seq_len, 64)
        want = torch.fft.fft2(x.double()).real
        assert (run(x).double() - want).norm() <= 1e-6 * want.norm()


def row(impl, median_ms, seq_len=128, **fields):
    base = {"direction": "forward", "status": "ok", "op": "fnet", "mixer": "fnet", "modes": None}
    sizes = {"batch": 8, "seq_len": seq_len, "dim": 128, "dtype": "float32"}
    samples = {"samples_ms": [median_ms] * 3, "median_ms": median_ms}
    return {**base, **sizes, "impl": impl, **samples, **fields}


def test_costs_are_the_devices_time_by_direction_and_only_where_compared():
    rows = [
        row("torch", 1.0, mixer="copy"),
        row("torch", 1.0, host_ms=3.0),
        row("dense", 2.0),
        row("fftn", 0.1),
        row("cpu", 0.5, status="oom"),
        row("torch", 9.0, direction="forward_backward"),
        row("dense", 8.0, direction="forward_backward"),
        row("torch", 4.0, seq_len=256),
    ]
    sizes = {"batch": 8, "seq_len": 128, "dim": 128}

    def times(**ms):
        return [{"sizes": sizes, "ms": {name: [t, t, t] for name, t in ms.items()}}]

    forward, training = times(torch=1.0, dense=2.0), times(torch=9.0, dense=8.0)
    assert measured_ops(rows) == {"fnet": {"float32": {"forward": forward, "training": training}}}


def test_what_is_tuned_has_a_choice():
    assert {"fnet", "spectral"} <= set(NAMES)
    assert choosable("fnet") >= {"torch", "triton", "dense"}
    assert "reference" not in choosable("fnet")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ops", "fourier"], "unknown op to tune 'fourier'"),
        (["--out", "a", "--resume", "b"], "give one of them"),
        (["--run", "nowhere"], "holds no run"),
        (["--ops", "fnet", "--seq-lens", "77"], "no case is left"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, tmp_path, capsys, table):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("flashmix.bench.run_suite", interrupted)
    out = tmp_path / "a run"
    assert main(["tune", "--device", "cpu", "--out", str(out)]) == 130
    assert f"flashmix tune --resume '{out}'" in capsys.readouterr().out
    assert not table.exists()

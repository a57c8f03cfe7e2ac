"""``flashmix tune``: what it measures is what ``auto`` and ``explain`` go by afterwards."""

import json
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flashmix
from flashmix.bench.dispatch import choosable, measured_ops, tunable
from flashmix.cli.main import main
from flashmix.ops import OPERATORS, _measured, _user_table
from flashmix.ops._machine import cpu_name


def forget():
    for cached in (_user_table.read, _measured._measurements, _measured._nearest):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def table(monkeypatch, tmp_path):
    """A table of this test alone."""
    path = tmp_path / "cache" / "dispatch.json"
    monkeypatch.setenv(_user_table.VARIABLE, str(path))
    forget()
    yield path
    forget()


def entry(seq_len, **ms):
    return {"sizes": {"batch": 8, "seq_len": seq_len, "dim": 128}, "ms": ms}


def write(*entries):
    _user_table.write(cpu_name(), {"fnet": {"float32": list(entries)}})
    forget()


def chosen(seq_len):
    return flashmix.explain("fnet", (8, seq_len, 128)).impl


def test_tune_measures_and_auto_goes_by_it(table, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["tune", "--device", "cpu", "--ops", "fnet", "--seq-lens", "128"]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {table}" in said
    forget()
    (measured,) = json.loads(table.read_text())["machines"][cpu_name()]["fnet"]["float32"]
    assert measured["sizes"] == {"batch": 8, "seq_len": 128, "dim": 128}
    runnable = {
        one.name
        for one in OPERATORS["fnet"].implementations
        if one.name != "reference" and one.refusal(torch.float32, "cpu") is None
    }
    assert set(measured["ms"]) == runnable
    told = flashmix.explain("fnet", (8, 128, 128))
    assert told.impl == min(measured["ms"], key=measured["ms"].get)
    assert f"measured on {cpu_name()}" in told.reason
    assert str(table) in told.reason
    before = table.read_text()
    assert main(["tune", "--run", str(out)]) == 0
    assert table.read_text() == before


def test_auto_takes_the_fastest_within_reach_among_lengths_of_its_kind():
    default = chosen(128)
    write(entry(128, torch=2.0, dense=1.0), entry(509, torch=1.0, dense=2.0))
    assert chosen(128) == chosen(512) == "dense"
    assert chosen(499) == "torch", "a prime goes by the prime, though 512 is as near"
    assert chosen(2048) == default, "out of reach counts as unmeasured"


def test_no_other_machine_and_no_other_dtype_is_touched():
    _user_table.write("another GPU", {"fnet": {"bfloat16": [entry(64, torch=1.0)]}})
    write(entry(128, torch=2.0, dense=1.0))
    machines = _user_table.read()["machines"]
    assert machines["another GPU"]["fnet"]["bfloat16"] == [entry(64, torch=1.0)]
    _user_table.write(cpu_name(), {"fnet": {"bfloat16": [entry(64, torch=1.0)]}})
    assert set(_user_table.read()["machines"][cpu_name()]["fnet"]) == {"float32", "bfloat16"}


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read"),
        (lambda text: "[]", "is damaged"),
        (lambda text: text.replace('"ms"', '"times"'), "is damaged"),
        (lambda text: text.replace("1.25", '"fast"'), "is damaged"),
        (lambda text: text.replace("1.25", "-1.25"), "is damaged"),
        (lambda text: text.replace(torch.__version__, "1.0"), r"was measured with torch 1\.0"),
        (lambda text: text.replace('"format": 1', '"format": 0'), "was measured with format 0"),
    ],
)
def test_a_stale_or_damaged_table_is_left_aside_with_one_warning(table, damage, wrong):
    default = chosen(128)
    write(entry(128, torch=2.0, dense=1.25))
    table.write_text(damage(table.read_text()))
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
    return {**base, **sizes, "impl": impl, "median_ms": median_ms, **fields}


def test_rows_count_by_both_times_and_only_where_compared():
    rows = [
        row("torch", 1.0, mixer="copy"),
        row("torch", 1.0, host_ms=3.0),
        row("dense", 2.0),
        row("fftn", 0.1),
        row("cpu", 0.5, status="oom"),
        row("torch", 9.0, direction="forward_backward"),
        row("torch", 4.0, seq_len=256),
    ]
    assert measured_ops(rows) == {"fnet": {"float32": [entry(128, torch=4.0, dense=2.0)]}}


def test_only_ops_with_a_choice_are_tuned():
    assert {"fnet", "spectral"} <= set(tunable())
    assert choosable("fnet") >= {"torch", "triton", "dense"}
    assert choosable("fourier") == set()


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

"""The command: what it prints, how it fails, and what it does not import."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
import torch

from bench_helpers import make_row, make_run, make_training, run_cli
from flashmix import __version__
from flashmix.bench import SUITES, read_rows
from flashmix.bench.store import RESULTS_FILE, RUN_FILE
from flashmix.cli.main import build_parser, main
from flashmix.mixers import MIXERS

COMMANDS = sorted(build_parser()._subparsers._group_actions[0].choices)


@pytest.fixture
def cli(capsys):
    """Run a command line here: (exit code, standard output, standard error)."""

    def run(*arguments):
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def folder(tmp_path):
    """A run's folder, made by hand."""
    rows = [make_row(one, n, n * 1e-3) for one in ("attention (fused)", "fnet") for n in (64, 128)]
    rows += [make_training("attention", 0.9), make_training("fnet", 0.8)]
    (tmp_path / RUN_FILE).write_text(json.dumps(make_run()))
    (tmp_path / RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def one_line(text: str) -> str:
    """A message of one line, on standard error, without a traceback."""
    assert text.startswith("flashmix: ")
    assert text.count("\n") == 1
    return text


# Help and version


def test_version(cli):
    assert cli("--version") == (0, f"flashmix {__version__}\n", "")


def test_without_a_command_there_is_help(cli):
    code, out, _ = cli()
    assert code == 0
    assert all(command in out for command in COMMANDS)


def test_help_has_examples_and_exit_codes(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert "examples:" in out
    assert "exit codes:" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example_of_it(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert "example" in out
    assert f"\n  flashmix {command}" in out


def test_examples_of_bench_are_accepted(cli):
    _, out, _ = cli("bench", "--help")
    examples = [line.split() for line in out.splitlines() if line.startswith("  flashmix bench")]
    assert len(examples) >= 4
    for _, *words in examples:
        build_parser().parse_args([word.strip('"') for word in words])


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "flashmix", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"flashmix {__version__}\n"


# Bad usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "quik"], ["unknown suite 'quik'", "did you mean 'quick'", "Choices: "]),
        (["bench", "quick", "--mixers", "fnett"], ["did you mean 'fnet'", "Choices: attention"]),
        (["bench", "quick", "--mixers", "local(windw=4)"], ["did you mean 'window'"]),
        (["bench"], ["name a suite: quick"]),
        (["bench", "--resume", "nowhere"], ["nowhere holds no run"]),
        (["bench", "--resume", "a", "--out", "b"], ["leave --out away"]),
        (["bench", "quick", "--num-heads", "3", "--directions", "properties"], ["no case is left"]),
        (["report", "nowhere"], ["nowhere holds no run"]),
        (["list", "fourrier"], ["did you mean 'fourier'", "Choices: "]),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_the_way_out(
    cli, monkeypatch, tmp_path, arguments, words
):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*arguments)
    assert code == 2
    for word in words:
        assert word in one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bnch"], ["unknown command 'bnch'; did you mean 'bench'?", "Choices: advise, bench"]),
        (["finetune", "--task", "imbd"], ["argument --task: unknown value", "mean 'imdb'?"]),
        (["bench", "quick", "--device", "tpu"], ["Choices: auto, cpu, cuda"]),
        (["bench", "quick", "--dtype", "float8"], ["unknown value 'float8'", "bfloat16"]),
        (["bench", "quick", "--mixrs", "fnet"], ["unknown option --mixrs; did you mean --mixers?"]),
        (["bench", "quick", "--devise=cpu"], ["did you mean --device?"]),
        (["pretrain", "--zzz"], ["unknown option --zzz; see flashmix pretrain --help"]),
        (["bench", "quick", "--seq-lens", "0"], ["positive integers such as 512,2048, got '0'"]),
        (["bench", "quick", "--seq-lens", "1,a"], ["got '1,a'"]),
        (["bench", "quick", "--batch", "1,2"], ["one positive integer"]),
        (["bench", "quick", "--mixers", "local(window=4"], ["unbalanced parentheses"]),
        (["bench", "quick", "--time-limit", "0"], ["positive number of seconds"]),
        (["bench", "quick", "--time-limit", "inf"], ["positive number of seconds"]),
        (
            ["bench", "quick", "--directions", "forwrd"],
            ["did you mean 'forward'?"],
        ),
        (["report"], ["RUN"]),
    ],
)
def test_a_malformed_argument_is_wrong_usage(cli, arguments, words):
    code, _, err = cli(*arguments)
    assert code == 2
    for word in words:
        assert word in err


def test_a_gpu_that_is_not_there_is_wrong_usage(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = cli("bench", "quick", "--device", "cuda", "--out", tmp_path / "run")
    assert code == 2
    assert "PyTorch sees no GPU" in one_line(err)


def test_a_folder_that_cannot_be_written_is_a_failure(cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = cli("bench", "quick", "--device", "cpu", "--out", tmp_path / "file" / "run")
    assert code == 1
    assert "cannot write to" in one_line(err)


def test_a_corrupt_run_is_a_failure_that_names_the_line(cli, folder):
    with (folder / RESULTS_FILE).open("a") as results:
        results.write("not a row\n")
    code, _, err = cli("report", folder)
    assert code == 2
    assert f"{RESULTS_FILE}, line 7" in one_line(err)


# list, doctor, bench --list


def test_list_names_every_mixer_with_its_cost_and_options(cli):
    code, out, _ = cli("list")
    assert code == 0
    for name in MIXERS:
        assert f"{name}: " in out
    assert out.count("parameters at width 256") == len(MIXERS)
    assert "65,792 parameters" in out
    assert "window=" in out


def test_list_takes_a_pattern(cli):
    _, out, _ = cli("list", "f*")
    assert "fnet: " in out
    assert "fourier: " in out
    assert "topk: " not in out


def test_doctor_says_what_is_installed(cli):
    code, out, _ = cli("doctor", "--no-measure")
    assert code == 0
    assert f"flashmix  {__version__}" in out
    assert torch.__version__ in out
    assert "GB/s" not in out


def test_doctor_says_how_to_get_what_is_missing(cli, monkeypatch):
    def no_version(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", no_version)
    code, out, _ = cli("doctor", "--no-measure")
    assert code == 0
    assert "pip install 'flashmix[tasks]'" in out


def test_bench_lists_every_suite(cli):
    code, out, _ = cli("bench", "--list", "--device", "cpu")
    assert code == 0
    for name in SUITES:
        assert f"{name}: " in out
    assert out.count("cases on cpu") == len(SUITES)


# Reports and real runs


def test_report_writes_and_sums_up_a_run(cli, folder):
    code, out, _ = cli("report", folder)
    assert code == 0
    assert f"report: {folder / 'report.md'}" in out
    assert (folder / "report.md").read_text().startswith("# flashmix bench quick")
    assert "fnet" in out
    assert "90.0 %" in out


def test_report_of_a_run_without_rows_says_so(cli, folder):
    (folder / RESULTS_FILE).unlink()
    code, _, err = cli("report", folder)
    assert (code, err) == (0, "")
    assert "No case has finished yet" in (folder / "report.md").read_text()


def test_report_takes_several_runs_in_folders_of_any_name(cli, folder, tmp_path):
    hostile = tmp_path / "[bold]run with spaces"
    hostile.mkdir()
    for name in (RUN_FILE, RESULTS_FILE):
        (hostile / name).write_bytes((folder / name).read_bytes())
    code, out, _ = cli("report", folder, hostile)
    assert code == 0
    for one in (folder, hostile):
        assert f"report: {one / 'report.md'}" in out


def test_a_real_run_ends_with_a_table_and_a_report(tmp_path):
    out = tmp_path / "run"
    done = run_cli(
        *("bench", "quick", "--device", "cpu", "--threads", 1, "--seq-lens", "16,32"),
        *("--mixers", "fnet,local(window=8)", "--directions", "forward", "--seed", 3, "--out", out),
    )
    assert done.returncode == 0, done.stderr
    assert "[10/10] forward, N = 32, local(window=8): done" in done.stdout
    assert f"report: {out / 'report.md'}" in done.stdout
    assert "attention (fused)" in done.stdout
    rows = read_rows(out)
    assert [row["status"] for row in rows] == ["ok"] * 10
    assert {row["seed"] for row in rows} == {3}
    run = json.loads((out / RUN_FILE).read_text())
    assert "--seq-lens 16,32" in run["command"]
    text = (out / "report.md").read_text()
    for word in ("## Machine", "local(window=8)", "attention (naive)", run["command"]):
        assert word in text


# What is imported

HEAVY = {"transformers", "sklearn", "triton", "pandas", "matplotlib", "duckdb", "scipy"}


def imported_by(code: str) -> set[str]:
    """Names of the top modules that a fresh Python has after ``code``."""
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_flashmix_imports_no_torch():
    assert not imported_by("import flashmix") & {"torch", "numpy", "rich", *HEAVY}


def test_the_version_imports_no_torch():
    code = (
        "from flashmix.cli.main import main\n"
        "try: main(['--version'])\nexcept SystemExit as stop: assert stop.code == 0"
    )
    assert not imported_by(code) & {"torch", "numpy", "rich", *HEAVY}


def test_importing_operators_and_mixers_imports_nothing_heavy():
    code = "import flashmix.ops, flashmix.mixers, flashmix.models, flashmix.bench, flashmix.tasks"
    assert not imported_by(code) & HEAVY

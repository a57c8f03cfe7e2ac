"""The commands that show runs: what they write, say and refuse."""

from __future__ import annotations

import signal
import sys
import urllib.request

import pytest

from bench_helpers import start_cli
from flashmix.cli import main
from report_helpers import power_law, whole_run, write_run


@pytest.fixture
def cli(capsys):
    def call(*arguments):
        code = main([str(one) for one in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", whole_run())


def test_report_writes_a_page_and_pictures(cli, folder):
    code, out, _ = cli("report", folder)
    assert code == 0
    assert f"page: {folder / 'report.html'}" in out
    pictures = {one.suffix for one in (folder / "figures").iterdir()}
    assert pictures == {".svg", ".png"}
    assert f"figures: {len(list((folder / 'figures').iterdir()))} in" in out


def test_no_figures_leaves_the_pictures_away(cli, folder):
    assert cli("report", folder, "--no-figures")[0] == 0
    assert (folder / "report.html").exists()
    assert not (folder / "figures").exists()


def test_several_runs_also_give_a_page_of_all(cli, folder, tmp_path):
    other = write_run(tmp_path / "other", power_law("fnet", 1, 1))
    out = tmp_path / "both.html"
    code, said, _ = cli("report", folder, other, "--no-figures", "--out", out)
    assert code == 0
    assert f"side by side: {out}" in said
    assert "2 runs side by side" in out.read_text()


def test_out_is_refused_for_a_single_run(cli, folder, tmp_path):
    code, _, err = cli("report", folder, "--out", tmp_path / "x.html")
    assert code == 2
    assert "--out is for several runs" in err
    assert not (folder / "report.md").exists()


def test_a_missing_run_stops_the_others_from_being_written(cli, folder, tmp_path):
    code, _, err = cli("report", folder, tmp_path / "none")
    assert code == 2
    assert "holds no run" in err
    assert not (folder / "report.md").exists()


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_without_the_extra_there_is_markdown_and_one_sentence(cli, folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = cli("report", folder)
    assert (code, err) == (0, "")
    assert out.count("pip install 'flashmix[report]'") == 1
    assert {one.name for one in folder.iterdir()} == {"report.md", "results.jsonl", "run.json"}


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_serving_without_the_extra_says_what_to_install(cli, folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = cli("serve", folder.parent)
    assert code == 1
    assert "pip install 'flashmix[report]'" in err


def test_serving_no_folder_is_wrong_usage(cli, tmp_path):
    code, _, err = cli("serve", tmp_path / "none")
    assert code == 2
    assert "is not a folder" in err


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_wrong_usage(cli, port):
    with pytest.raises(SystemExit, match="2"):
        cli("serve", "--port", port)


def test_serve_says_where_and_ends_at_ctrl_c(folder):
    process = start_cli("serve", folder.parent, page=True)
    line = process.stdout.readline()
    assert line.startswith("1 run of ")
    (url,) = (word for word in line.split() if word.startswith("http://127.0.0.1:"))
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert "Runs in" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")

"""Reading a run: the same rows in every command, or one sentence that names the file and the line.

And what a run holds reaches a terminal, a page and a report as text alone.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import flashmix
from bench_helpers import make_run, make_training
from flashmix._files import write_whole
from flashmix._text import visible
from flashmix.bench.reading import read_bytes
from flashmix.cli import main
from flashmix.errors import ArgumentError, FlashmixError, ModelError
from flashmix.report import load, markdown
from flashmix.report.html.markup import tag
from flashmix.report.html.server import read_line
from report_helpers import EXPERIMENT, finetuned_run, power_law, whole_run, write_run

DROP = object()
BAD = [DROP, None, True, -1, 0, 10**30, 1e300, float("nan"), "x", [], {}, [[1]]]
ROWS = [
    *power_law("attention (fused)", 0.01, 2),
    *power_law("fnet", 4, 1),
    make_training("fnet", 0.8),
]
LINES = [json.dumps(row).encode() for row in ROWS]
MUST = ("direction", "batch", "seq_len", "dim", "label", "status", "samples_ms", "median_ms")
COMMANDS = {
    "report": ["report", "RUN"],
    "advise": ["advise", "--dim", "32", "--seq-len", "300", "--run", "RUN"],
    "compare": ["compare", "RUN", "RUN"],
    "query": ["query", "select count(*) from rows", "RUN"],
}


def text_of(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@pytest.fixture
def cli(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)  # a page takes seconds

    def call(*arguments):
        code = main([str(one) for one in arguments])
        return code, *capsys.readouterr()

    return call


def changed(row, name, value):
    rest = {key: old for key, old in row.items() if key != name}
    return rest if value is DROP else {**rest, name: value}


FILES = {
    "not UTF-8": (text_of(b'{"label": "\xff"}'), 1),
    "a byte order mark": (b"\xef\xbb\xbf" + text_of(*LINES), 1),
    "UTF-16": ("\n".join(line.decode() for line in LINES).encode("utf-16") + b"\n", 1),
    "NUL bytes": (text_of(LINES[0], b"\0" * 40), 2),
    "half a line in the middle": (text_of(LINES[0], LINES[1][:50], LINES[2]), 2),
    "half a line that ended": (text_of(LINES[0], LINES[1][:50]), 2),
    "a list for a row": (text_of(LINES[0], b"[1]"), 2),
    "a number of 400 digits": (text_of(b'{"seed": 1' + b"0" * 400 + b"}"), 1),
    "a number of 9000 digits": (text_of(b'{"seed": 1' + b"0" * 9000 + b"}"), 1),
    "deep lists": (text_of(b"[" * 100_000 + b"]" * 100_000), 1),
    "rather deep lists": (text_of(b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}"), 1),
    "a case twice": (text_of(*LINES[:3], LINES[1]), 4),
    "a field twice": (text_of(b'{"label": 1, "label": 2}'), 1),
    "half a surrogate pair": (text_of(b'{"label": "\\ud800"}'), 1),
    "two rows on a line": (text_of(LINES[0] + LINES[1]), 1),
    "HTML": (text_of(b"<html>"), 1),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", FILES)
def test_a_file_of_anything_else_is_one_sentence_with_file_and_line(cli, tmp_path, command, what):
    content, line = FILES[what]
    folder = write_run(tmp_path, ROWS)
    (folder / "results.jsonl").write_bytes(content)
    code, out, err = cli(*(folder if one == "RUN" else one for one in COMMANDS[command]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"results.jsonl, line {line}" in err


def test_a_field_of_another_kind_is_refused_with_file_and_line(tmp_path):
    """Whatever is not refused, a report shows."""
    refused = 0
    for name in ROWS[1]:
        for value in BAD:
            row = changed(ROWS[1], name, value)
            folder = write_run(tmp_path, [ROWS[0], row, *ROWS[2:]])
            try:
                run, rows = load(folder)
            except ArgumentError as error:
                assert "results.jsonl, line 2" in str(error)
                assert "\n" not in str(error)
                refused += 1
            else:
                assert name not in MUST or value == 0 or value is not DROP
                assert markdown(run, rows)
    assert refused > 200


@pytest.mark.parametrize("which", ["bench", "finetune"])
def test_a_run_file_of_another_kind_is_refused(tmp_path, which):
    experiment = {**EXPERIMENT, "seeds": [0, 1]}
    run = make_run() if which == "bench" else make_run(suite="finetune", experiment=experiment)
    rows = ROWS if which == "bench" else finetuned_run()
    folder = write_run(tmp_path, rows, **run)
    for name in run:
        for value in BAD:
            (folder / "run.json").write_text(json.dumps(changed(run, name, value)))
            try:
                assert markdown(*load(folder))
            except ArgumentError as error:
                assert str(tmp_path) in str(error)


def test_a_training_of_another_kind_is_refused_with_file_and_line(tmp_path):
    rows = finetuned_run()
    for name in rows[0]:
        for value in BAD:
            changed_rows = [changed(rows[0], name, value), *rows[1:]]
            folder = write_run(tmp_path, changed_rows, suite="finetune", experiment=EXPERIMENT)
            try:
                assert markdown(*load(folder))
            except ArgumentError as error:
                assert "results.jsonl, line 1" in str(error)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "1", '{"suite": 1}', "{}"])
def test_a_run_file_that_is_none_is_refused(cli, tmp_path, content):
    folder = write_run(tmp_path, ROWS)
    (folder / "run.json").write_text(content)
    code, _, err = cli("report", folder)
    assert (code, err.count("\n")) == (2, 1)
    assert str(folder / "run.json") in err


@pytest.mark.parametrize("version", ["0.99.0", "1.0", "99.0.0rc1"])
def test_a_run_of_a_newer_version_is_told_as_that(cli, tmp_path, version):
    run = make_run()
    folder = write_run(tmp_path, [{"new": 1}], machine={**run["machine"], "flashmix": version})
    code, _, err = cli("report", folder)
    assert code == 2
    assert f"was written by flashmix {version}, which is newer" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_kill_left_of_the_last_line_is_a_row_in_no_command(cli, tmp_path, command):
    outs = []
    for number, end in enumerate((b"", LINES[-1][:40], LINES[-1], b"\xff\0")):
        folder = write_run(tmp_path / f"{number}" / "run", ROWS)
        (folder / "results.jsonl").write_bytes(text_of(*LINES[:-1]) + end)
        code, out, err = cli(*(folder if one == "RUN" else one for one in COMMANDS[command]))
        assert (code, err) == (0, "")
        outs.append(out.replace(str(folder), "RUN"))
    assert len(set(outs)) == 1


def test_query_sees_the_rows_that_a_report_sees(cli, tmp_path):
    folder = write_run(tmp_path, whole_run())
    _, out, _ = cli("query", "select count(*) as n, count(distinct label) from rows", folder)
    rows = load(folder)[1]
    assert f" {len(rows)} " in out
    assert f" {len({row['label'] for row in rows})} " in out


def test_what_is_no_file_is_refused_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "pipe", "loop"):
        with pytest.raises(ArgumentError, match=f"cannot read .*{name}"):
            read_bytes(tmp_path / name)
    with pytest.raises(ArgumentError, match="cannot read /dev/zero"):
        read_bytes(Path("/dev/zero"))


def test_below_a_root_no_link_is_followed(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    (root / "run" / "file").symlink_to(tmp_path / "secret" / "file")
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ArgumentError, match="it is a link"):
        read_bytes(root / "run" / "file", root)
    with pytest.raises((ArgumentError, FileNotFoundError)):
        read_bytes(root / "link" / "file", root)


def test_a_broken_run_is_one_line_of_the_list(tmp_path):
    folder = write_run(tmp_path / "a", [{"label": "x"}])
    line = read_line("a", folder, tmp_path)
    assert line.cells[0].startswith("cannot be read: ")
    assert "results.jsonl, line 1" in line.cells[0]


# What a terminal would obey

EVIL = "a\x1b[31m\x9b2J\u202eb\x07[bold]c[/bold]:bug:[link=http://x]d[/link]"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_label_reaches_the_terminal_but_as_text(cli, tmp_path, command):
    rows = [{**row, "label": EVIL} if row["label"] == "fnet" else row for row in ROWS]
    slower = [{**row, "samples_ms": [99.0] * 5, "median_ms": 99.0} for row in rows[:-1]]
    one = write_run(tmp_path / "one", rows, machine={"cpu": EVIL})
    two = write_run(tmp_path / "two", slower)
    words = [one if word == "RUN" else word for word in COMMANDS[command]]
    if command == "compare":
        words[2] = two
    if command == "query":
        words[1] = "select distinct label from rows"
    code, out, err = cli(*words)
    assert (code, err) == (0, "")
    assert visible(out) == out
    assert "[bold]" in "".join(out.split())
    for file in tmp_path.rglob("*.md"):
        assert visible(file.read_text()) == file.read_text()


def test_no_error_of_the_library_holds_what_a_terminal_obeys(cli, tmp_path):
    for kind in (FlashmixError, ArgumentError, ModelError):
        assert str(kind(EVIL)) == visible(EVIL)
    code, _, err = cli("report", tmp_path / EVIL)
    assert (code, visible(err)) == (2, err)
    with pytest.raises(SystemExit):
        cli(EVIL)


@pytest.mark.parametrize("char", [chr(n) for n in (*range(9), *range(11, 32), *range(127, 160))])
def test_every_control_character_is_shown(char):
    assert visible(f"a{char}b") == f"a\\x{ord(char):02x}b".replace("\\x0d", "\\r")


def test_text_of_people_stays_as_it_is():
    for text in ("a\nb\tc", "naïve ± 1\xa0%", "日本語", "ёж"):
        assert visible(text) == text


def test_only_one_module_prints_to_the_terminal():
    """By construction: no command has another console, a bare print, or markup of rich's."""
    found = []
    for path in Path(flashmix.__file__).parent.rglob("*.py"):
        name = path.name
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "")
            if called == "print" and not (name == "main.py" and path.parent.name == "cli"):
                found.append((path, node.lineno))
            if isinstance(node, ast.ImportFrom) and name != "terminal.py":
                names = {one.name for one in node.names}
                if node.module == "rich.markup" or (
                    names & {"Console", "Progress"} and (node.module or "").startswith("rich")
                ):
                    found.append((path, node.lineno))
    assert found == []


def test_a_page_holds_no_label_but_as_text():
    assert tag("td", '<script>"') == '<td>&lt;script&gt;"</td>'
    assert tag("td", EVIL).count("\x1b") == 0
    assert tag("a", x='"><script>') == '<a x="&quot;&gt;&lt;script&gt;"></a>'


# Files are written whole


def test_a_killed_writer_leaves_nothing_that_the_next_does_not_remove(tmp_path):
    path = tmp_path / "report.md"
    write_whole(path, "old")
    code = (
        "import os, sys, time, pathlib, flashmix._files as f\n"
        "f.os.fsync = lambda handle: (print('here', flush=True), time.sleep(60))\n"
        "f.write_whole(pathlib.Path(sys.argv[1]), 'half')\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"here\n"
    write_whole(path, "beside it")
    assert len(list(tmp_path.iterdir())) == 2  # a living writer keeps its file
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "beside it"
    write_whole(path, "new")
    assert [one.name for one in tmp_path.iterdir()] == ["report.md"]
    assert path.read_text() == "new"

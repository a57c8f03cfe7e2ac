"""The results store loses nothing: what was finished stays, whatever happens to the writer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench_helpers import make_row
from flashmix.bench import store
from flashmix.bench.store import (
    RESULTS_FILE,
    RUN_FILE,
    RunFolder,
    read_rows,
    read_run,
    write_whole,
)
from flashmix.errors import ArgumentError, FlashmixError

ROWS = [make_row("fnet", n) for n in (16, 32, 64)]


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path):
    """A folder with three rows."""
    (tmp_path / RESULTS_FILE).write_text(lines(ROWS))
    return tmp_path


def test_rows_come_back_as_they_were_written(tmp_path):
    with RunFolder.hold(tmp_path / "new" / "run") as held:
        for row in ROWS:
            held.append(row)
    assert read_rows(tmp_path / "new" / "run") == ROWS


def test_an_appended_row_is_on_disk_at_once(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(store.os, "fsync", lambda file: (synced.append(os.fstat(file)), sync(file)))
    with RunFolder.hold(tmp_path) as held:
        for count, row in enumerate(ROWS, 1):
            held.append(row)
            assert read_rows(tmp_path) == ROWS[:count]
            assert len(synced) == count
            assert synced[-1].st_ino == (tmp_path / RESULTS_FILE).stat().st_ino


def test_a_folder_without_results_has_no_rows(tmp_path):
    assert read_rows(tmp_path) == []


@given(cut=st.integers(1, len(lines(ROWS[2:])) - 1))
def test_a_half_written_last_line_is_dropped_and_the_rest_kept(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    results = folder / RESULTS_FILE
    results.write_text(lines(ROWS)[:-cut])
    # A row that only lacks its line's end may count or not: it was never promised.
    assert read_rows(folder) in ([ROWS[:2], ROWS] if cut == 1 else [ROWS[:2]])
    with RunFolder.hold(folder) as held:
        assert read_rows(folder) == ROWS[:2]
        held.append(ROWS[2])
    assert results.read_text() == lines(ROWS)


def test_half_a_line_and_nothing_else_is_dropped(tmp_path):
    (tmp_path / RESULTS_FILE).write_text('{"suite": "qu')
    assert read_rows(tmp_path) == []
    with RunFolder.hold(tmp_path) as held:
        held.append(ROWS[0])
    assert read_rows(tmp_path) == ROWS[:1]


def test_finished_lines_are_not_touched_when_the_folder_is_opened_again(folder):
    before = (folder / RESULTS_FILE).read_bytes()
    with RunFolder.hold(folder):
        pass
    assert (folder / RESULTS_FILE).read_bytes() == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_corrupt_line_is_an_error_that_names_it(folder, number):
    text = (folder / RESULTS_FILE).read_text().splitlines(keepends=True)
    text[number - 1] = text[number - 1][:20] + "\n"
    (folder / RESULTS_FILE).write_text("".join(text))
    with pytest.raises(FlashmixError, match=rf"{RESULTS_FILE}, line {number} is not JSON"):
        read_rows(folder)


def test_a_folder_without_a_run_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ArgumentError, match=f"{tmp_path} holds no run"):
        read_run(tmp_path)


def test_a_corrupt_run_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(FlashmixError, match=f"{RUN_FILE} is not JSON"):
        read_run(tmp_path)


def test_the_run_file_comes_back_as_it_was_written(tmp_path):
    with RunFolder.hold(tmp_path) as held:
        held.write_run({"suite": "quick", "seed": 0})
        held.write_run({"suite": "quick", "seed": 1})
    assert read_run(tmp_path) == {"suite": "quick", "seed": 1}


@pytest.mark.parametrize("where", ["sync", "rename"])
def test_a_file_stays_whole_when_its_replacement_fails(tmp_path, monkeypatch, where):
    def fail(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "report.md"
    write_whole(path, "the old text")
    if where == "sync":
        monkeypatch.setattr(store.os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "the new text")
    assert path.read_text() == "the old text"
    assert [one.name for one in tmp_path.iterdir()] == ["report.md"]


def test_written_files_are_readable_for_all(tmp_path):
    write_whole(tmp_path / "report.md", "text")
    assert (tmp_path / "report.md").stat().st_mode & 0o777 == 0o644


def test_a_held_folder_is_refused_to_a_second_holder(tmp_path):
    with (
        RunFolder.hold(tmp_path) as first,
        pytest.raises(FlashmixError, match=f"another run is writing to {tmp_path}"),
        RunFolder.hold(tmp_path),
    ):
        pass
    with RunFolder.hold(tmp_path) as second:
        second.append(ROWS[0])
    assert first.path == second.path


def test_a_refused_holder_takes_nothing_from_the_first(tmp_path):
    with RunFolder.hold(tmp_path) as first:
        for _ in range(2):
            with pytest.raises(FlashmixError), RunFolder.hold(tmp_path):
                pass
        first.append(ROWS[0])
    assert read_rows(tmp_path) == ROWS[:1]


def test_a_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunFolder.hold(tmp_path):
        raise KeyboardInterrupt
    with RunFolder.hold(tmp_path) as held:
        held.append(ROWS[0])
    assert read_rows(tmp_path) == ROWS[:1]


def test_letting_go_just_before_another_takes_hold_leaves_one_holder(tmp_path, monkeypatch):
    """The second opens the folder while the first holds it, and takes it once the first let go."""
    take = store.fcntl.flock
    first = RunFolder.hold(tmp_path)
    first.__enter__()

    def take_late(*arguments):
        monkeypatch.setattr(store.fcntl, "flock", take)
        first.__exit__(None, None, None)
        return take(*arguments)

    monkeypatch.setattr(store.fcntl, "flock", take_late)
    with (
        RunFolder.hold(tmp_path),
        pytest.raises(FlashmixError, match="another run"),
        RunFolder.hold(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FlashmixError, match=f"cannot write to {tmp_path}/file/run"),
        RunFolder.hold(tmp_path / "file" / "run"),
    ):
        pass


def test_only_results_stay_behind(tmp_path):
    with RunFolder.hold(tmp_path) as held:
        held.write_run({})
        held.append(ROWS[0])
    assert {one.name for one in tmp_path.iterdir()} == {RUN_FILE, RESULTS_FILE}

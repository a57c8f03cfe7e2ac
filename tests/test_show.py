"""``flashmix show``: what it writes, and how it refuses."""

from __future__ import annotations

import json

import pytest

from flashmix.cli.main import main


@pytest.fixture
def show(capsys, monkeypatch, tmp_path):
    """Run ``flashmix show`` in an empty folder: (exit code, output, error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLASHMIX_DATA", raising=False)

    def run(*arguments):
        code = main(["show", *arguments])
        return code, *capsys.readouterr()

    return run


def test_it_draws_and_says_where_and_what(show, tmp_path):
    code, out, _ = show("local(window=4)", "--dim", "8", "--seq-len", "12", "--format", "svg")
    assert code == 0
    folder = tmp_path / "pictures" / "local-window-4"
    written = {path.name for path in folder.iterdir()}
    assert {"weights.svg", "influence.svg", "spectrum.svg", "pictures.md"} <= written
    assert not [name for name in written if name.endswith(".png")]
    assert "pictures/local-window-4/weights.svg" in out
    assert "handwritten digit" in out
    measured = json.loads((folder / "measured.json").read_text())
    assert measured["weights"]["share_within"] == pytest.approx(1)


def test_it_takes_text_a_theme_and_a_folder(show, tmp_path):
    code, out, _ = show(
        "topk(topk=2)", "--text", "the cat sat", "--dim", "8", "--out", "there", "--theme", "dark"
    )
    assert code == 0
    assert "a text (N = 11 bytes)" in out
    assert (tmp_path / "there" / "weights.png").stat().st_size > 1000


def test_it_trains_first(show):
    code, out, _ = show("spectral", "--train", "2", "--dim", "8", "--format", "svg")
    assert code == 0
    assert "Trained on the digits for 2 steps" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["name a mixer (attention, local", "--checkpoint"]),
        (["fnett"], ["did you mean 'fnet'"]),
        (["fnet", "--format", "gif"], ["unknown format 'gif'"]),
        (["fnet", "--checkpoint", "nowhere"], ["--checkpoint nowhere does not exist"]),
        (["fnet", "--input", "imdb"], ["FLASHMIX_DATA"]),
        (["fnet", "--text", "abc", "--seq-len", "9"], ["at least 9 bytes, got one of 3"]),
        (["fnet", "--train", "2", "--seq-len", "9"], ["N = 64 pixels"]),
        (["attention", "--dim", "8", "--heads", "3"], ["num_heads must divide dim = 8"]),
        (["--checkpoint", "."], ["--text TEXT, or --input imdb"]),
        (["--checkpoint", ".", "--dim", "8"], ["leave them away"]),
    ],
)
def test_a_wrong_argument_is_one_line_and_writes_nothing(show, tmp_path, arguments, words):
    code, _, err = show(*arguments)
    assert code == 2
    assert err.startswith("flashmix: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(show, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = show("fnet", "--dim", "8", "--out", "file/inside")
    assert code == 1
    assert "cannot write to file/inside" in err

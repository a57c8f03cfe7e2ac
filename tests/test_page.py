"""The page: text stays text, every number leads to its rows, nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from bench_helpers import make_row, make_run, make_training
from flashmix.report import write_page
from flashmix.report.analysis.timings import FUSED
from flashmix.report.html.markup import data, tag, words
from flashmix.report.html.page import PageRun, page
from report_helpers import (
    CASES,
    EXPERIMENT,
    HOSTILE,
    LENGTHS,
    finetuned_run,
    power_law,
    whole_run,
    whole_suite,
    write_run,
)

VOID = {"meta", "input", "link", "br"}


class Reader(HTMLParser):
    """Tags with their attributes, scripts and text; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if self._open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + text)
        elif self._open[-1:] != ["style"]:
            self.words.append(text)

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def made(*runs, **fields) -> str:
    return page([PageRun(f"run {i}", make_run(**fields), rows) for i, rows in enumerate(runs)])


@pytest.fixture(scope="module")
def text():
    return made(whole_run())


@pytest.fixture(scope="module")
def read(text):
    return Reader(text)


def test_the_page_is_whole_html(read):
    assert len(read.ids()) == len(set(read.ids()))
    assert [tag for tag, _ in read.tags].count("h1") == 1
    assert ("html", {"lang": "en"}) in read.tags


def test_the_parts_stand_in_reading_order(text):
    places = [text.index(f'id="{name}"') for name in
              ("findings", "tables", "charts", "method", "rows", "environment")]  # fmt: skip
    assert places == sorted(places)


def test_nothing_is_loaded(read):
    for name, attributes in read.tags:
        assert name not in ("link", "img", "iframe", "object", "embed")
        assert "src" not in attributes
        assert not attributes.get("href", "#").startswith(("http", "//"))


def test_only_the_page_s_own_scripts_may_run(read):
    (policy,) = (a["content"] for n, a in read.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    (allowed,) = re.findall(r"script-src ([^;]*);", policy)
    run = [text for attributes, text in read.scripts if "type" not in attributes]
    digests = (hashlib.sha256(script.encode()).digest() for script in run)
    assert {f"'sha256-{base64.b64encode(d).decode()}'" for d in digests} == set(allowed.split())


def test_every_number_leads_to_rows_that_are_there(read):
    ids = set(read.ids())
    pointing = [a for _, a in read.tags if "data-rows" in a]
    assert len(pointing) > 50
    for attributes in pointing:
        assert set(attributes["data-rows"].split()) <= ids


def test_every_cell_with_a_measured_number_names_its_rows(text):
    body = text[text.index('id="tables"') : text.index('id="charts"')]
    cells = re.findall(r"<td([^>]*)>(-?\d.*?)</td>", body)
    assert len(cells) > 100
    for attributes, shown in cells:
        assert "data-rows" in attributes or shown == "1x", shown


def test_every_row_stands_on_the_page(read):
    assert {f"r1-{line}" for line in range(1, len(whole_run()) + 1)} <= set(read.ids())


@pytest.mark.parametrize("name", HOSTILE)
def test_text_of_a_run_stays_text(name):
    rows = [make_row(name, n) for n in LENGTHS] + power_law(FUSED, 1, 1)
    rows += [make_row(name, 2048, status="error", error=name), make_training(name, 0.9)]
    rows += [make_training("attention", 0.5)]
    found = Reader(made(rows, command=name, suite=name, notes=[name]))
    assert "script" not in {n for n, a in found.tags if n == "script" and a.get("src")}
    assert len(found.scripts) == len(Reader(made(whole_run())).scripts)
    assert not {"b", "i"} & {tag for tag, _ in found.tags}
    assert any(name.split("\n")[0] in words for words in found.words)


def test_json_cannot_end_its_block():
    block = str(data("x", {"a": "</script><script>alert(1)</script>&\u2028"}))
    assert block.count("<") == 2
    inside = block[block.index(">") + 1 : block.rindex("<")]
    assert json.loads(inside) == {"a": "</script><script>alert(1)</script>&\u2028"}


def test_json_of_a_page_is_json_even_where_numbers_are_not_finite():
    block = data("rows", [{"history": ({"loss": float("nan")}, {"loss": float("inf")}), "n": 1.5}])
    content = block.partition(">")[2].removesuffix("</script>")
    found = json.loads(content, parse_constant=pytest.fail)
    assert found == [{"history": [{"loss": None}, {"loss": None}], "n": 1.5}]


def test_attributes_are_escaped_and_absent_ones_left_out():
    assert tag("a", "<", href='"><b>', hidden=False, id=None, open=True) == (
        '<a href="&quot;&gt;&lt;b&gt;" open>&lt;</a>'
    )


def test_backticks_are_code_unless_they_do_not_pair():
    assert words("`a<b` c") == "<code>a&lt;b</code> c"
    assert words("a ` b") == "a ` b"


@pytest.mark.parametrize("suite", CASES)
def test_a_whole_run_of_every_suite_gives_a_page(suite):
    Reader(made(whole_suite(suite), suite=suite))


def test_a_run_without_rows_gives_a_page():
    assert "No case has finished yet" in made([])


def test_a_fine_tuning_run_gives_a_page():
    run = make_run(suite="finetune", experiment=EXPERIMENT)
    found = Reader(page([PageRun("run", run, finetuned_run())]))
    assert any("spectral,attention" in one for one in found.words)


def test_several_runs_stand_side_by_side_each_with_its_own_rows():
    found = Reader(made(whole_run(), power_law("fnet", 2, 1) + power_law(FUSED, 1, 1)))
    assert {"r1-1", "r2-1"} <= set(found.ids())
    assert len(found.ids()) == len(set(found.ids()))
    beside = " ".join(found.words)
    assert "Side by side, forward" in beside
    assert "cases compared" in beside


def test_runs_of_one_title_are_told_apart():
    assert "run 0" in made(whole_run(), whole_run())


def test_the_page_stands_beside_the_rows(tmp_path):
    one, two = (write_run(tmp_path / name, whole_run()) for name in ("a", "b"))
    assert write_page([one]) == one / "report.html"
    assert write_page([one, two]) == tmp_path.resolve() / "side-by-side.html"
    assert write_page([one, two], tmp_path / "x.html") == tmp_path / "x.html"
    assert (one / "report.html").stat().st_size < 2_000_000

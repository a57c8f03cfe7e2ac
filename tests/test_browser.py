"""The page in a real browser: no network, no error, and usable by hand, by keys and by ear."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from bench_helpers import make_row
from flashmix.report import write_page
from flashmix.report.html.server import Server
from report_helpers import EXPERIMENT, HOSTILE, LENGTHS, finetuned_run, whole_run, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("FLASHMIX_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set FLASHMIX_CHROMIUM"
)

WIDTHS = (360, 1440)
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    suite = HOSTILE[0]
    hostile = [
        make_row(name, n, float(i + n), suite=suite)
        for i, name in enumerate(HOSTILE)
        for n in LENGTHS
    ]
    folders = {
        "bench": write_run(root / "bench", whole_run()),
        "finetune": write_run(
            root / "finetune", finetuned_run(), suite="finetune", experiment=EXPERIMENT
        ),
        "hostile": write_run(root / "hostile", hostile, suite=suite),
    }
    made = {name: write_page([folder]) for name, folder in folders.items()}
    both = [folders["bench"], folders["hostile"]]
    return {**made, "both": write_page(both, root / "both.html")}


class Tab:
    """An open page, with everything that went wrong on it."""

    def __init__(self, browser, path: Path, width: int = 1440, theme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            offline=True,
            reduced_motion="reduce",
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def draw_all(self) -> None:
        for plot in self.page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
        self.page.wait_for_function(
            "[...document.querySelectorAll('.plot')].every((one) => one.querySelector('svg'))"
        )


@pytest.fixture
def tab(browser, pages):
    opened = []

    def open_tab(name="bench", **settings) -> Tab:
        opened.append(Tab(browser, pages[name], **settings))
        return opened[-1]

    yield open_tab
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("name", ["bench", "finetune", "hostile", "both"])
def test_every_chart_is_drawn_without_network_or_error(tab, pages, name):
    one = tab(name)
    one.draw_all()
    assert one.page.locator(".plot svg").count() >= 4
    assert one.page.locator(".plot .role-legend").count() == 0
    assert one.asked == [pages[name].as_uri()]
    assert one.wrong == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["bench", "both"])
def test_nothing_is_wider_than_the_screen(tab, name, width):
    one = tab(name, width=width)
    one.draw_all()
    one.page.get_by_role("button", name="Open all").click()
    wide = one.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    for svg in one.page.locator(".plot svg").all():
        box = svg.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", ["bench", "finetune"])
def test_axe_finds_nothing(tab, name, theme):
    one = tab(name, theme=theme)
    one.draw_all()
    one.page.get_by_role("button", name="Open all").click()
    found = axe.Axe().run(one.page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found] == []


def test_a_column_sorts_by_its_numbers_both_ways(tab):
    one = tab()
    table = one.page.get_by_role("table", name="Time, forward (ms)")
    header = table.get_by_role("columnheader", name="N = 1,024")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == direction
        cells = table.locator("tbody tr td:last-child").all_text_contents()
        shown = [float(cell.split(" (")[0].replace(",", "")) for cell in cells]
        assert shown == sorted(shown, reverse=sign < 0)
        assert len(set(shown)) > 2


def test_a_filter_hides_the_other_lines_and_says_how_many(tab):
    one = tab()
    # By keyboard: charts that are drawn on the way down would move it from under a pointer.
    one.page.locator("#rows summary").press("Enter")
    one.page.get_by_role("searchbox", name="Filter Rows of").fill("fnet")
    rows = one.page.locator("#rows tbody tr:visible")
    expected = sum(row["mixer"] == "fnet" for row in whole_run())
    assert rows.count() == expected
    assert f"{expected} of {len(whole_run())} lines" in one.page.locator("#rows").inner_text()


def test_copied_csv_is_the_table_as_it_is_sorted_and_filtered(tab):
    one = tab()
    one.context.grant_permissions(["clipboard-read", "clipboard-write"])
    table = one.page.get_by_role("table", name="Time, forward (ms)")
    table.get_by_role("columnheader", name="mixer").get_by_role("button").click()
    block = one.page.locator("details", has=table)
    block.get_by_role("button", name="Sources").click()
    block.get_by_role("button", name="Copy CSV").click()
    block.get_by_text("Copied").wait_for()
    lines = one.page.evaluate("navigator.clipboard.readText()").split("\n")
    assert lines[0] == 'mixer,N = 128,N = 256,N = 512,"N = 1,024"'
    names = [line.split(",")[0] for line in lines[1:]]
    assert names == sorted(names)
    assert lines[names.index("fnet") + 1].startswith("fnet,512 (512 to 512),")


def test_sources_lead_from_a_number_to_its_row(tab):
    one = tab()
    table = one.page.get_by_role("table", name="Time, forward (ms)")
    block = one.page.locator("details", has=table)
    block.get_by_role("button", name="Sources").click()
    line = table.locator("tbody tr", has_text="fnet")
    link = line.locator("td a").first
    number = int(link.inner_text())
    link.click()
    pointed = one.page.locator("tr.pointed")
    pointed.wait_for()
    row = whole_run()[number - 1]
    assert (row["label"], row["seq_len"], row["direction"]) == ("fnet", 128, "forward")
    assert pointed.locator("th").inner_text() == str(number)
    assert pointed.is_visible()


def test_hovering_a_point_tells_its_number_and_row(tab):
    one = tab()
    plot = one.page.locator(".plot").first
    plot.locator("svg .mark-symbol path").first.wait_for()
    plot.locator("svg .mark-symbol path").last.hover(force=True)
    tip = one.page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    said = tip.inner_text()
    assert "mixer" in said and "row" in said


def test_a_series_hides_and_shows(tab):
    one = tab()
    figure = one.page.locator("figure").first
    marks = figure.locator("svg .mark-symbol path")
    marks.first.wait_for()
    before = marks.count()
    chip = figure.get_by_role("button", name="fnet", exact=True)
    chip.click()
    one.page.wait_for_function(
        "(n) => document.querySelectorAll('figure')[0].querySelectorAll('svg .mark-symbol path')"
        ".length < n",
        arg=before,
    )
    assert chip.get_attribute("aria-pressed") == "false"
    chip.click()
    one.page.wait_for_function(
        "(n) => document.querySelectorAll('figure')[0].querySelectorAll('svg .mark-symbol path')"
        ".length === n",
        arg=before,
    )


@pytest.mark.parametrize("system", THEMES)
def test_the_theme_follows_the_system_until_it_is_chosen(tab, system):
    one = tab(theme=system)
    shade = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}
    assert one.page.evaluate(shade) == colours[system]
    button = one.page.get_by_role("button", name="Theme:")
    for choice in THEMES:
        button.click()
        assert button.inner_text() == f"Theme: {choice}"
        assert one.page.evaluate(shade) == colours[choice]
    one.draw_all()
    assert "#5e95f1" in one.page.locator(".plot").first.inner_html()
    assert one.wrong == []


def test_a_chart_is_saved_as_svg(tab):
    one = tab()
    with one.page.expect_download() as waiting:
        one.page.get_by_role("button", name="Save SVG").first.press("Enter")
    assert waiting.value.suggested_filename == "speedup-fused-forward.svg"
    assert Path(waiting.value.path()).read_text().startswith("<svg")


def test_the_keyboard_reaches_content_tables_and_sorting(tab):
    one = tab()
    one.page.keyboard.press("Tab")
    assert one.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    one.page.keyboard.press("Enter")
    assert one.page.evaluate("location.hash") == "#content"
    table = one.page.get_by_role("table", name="Time, forward (ms)")
    header = table.get_by_role("columnheader", name="N = 128")
    header.get_by_role("button").focus()
    one.page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"


def test_a_reader_hears_parts_tables_and_charts(tab):
    one = tab()
    one.draw_all()
    heard = one.page.locator("body").aria_snapshot()
    for part in ('heading "Findings"', 'heading "Charts"', "navigation", "main", "banner"):
        assert part in heard
    assert 'table "Time, forward (ms)"' in heard
    assert 'figure "Time against N, forward"' in heard
    chart = one.page.locator('[role="graphics-document"]').first
    assert chart.get_attribute("aria-label").startswith("Speed against attention (fused), forward")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_seen_as_text(tab, name):
    one = tab("hostile")
    one.draw_all()
    assert name.split("\n")[0] in one.page.locator("main").inner_text()
    assert one.page.evaluate("document.querySelectorAll('main script, main b').length") == 0
    assert one.wrong == []


def test_two_runs_are_chosen_from_the_list_and_compared(browser, tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / name, whole_run())
    with Server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        found = axe.Axe().run(page).response["violations"]
        for name in ("one", "two"):
            page.get_by_role("checkbox", name=f"Compare {name}").check()
        page.get_by_role("button", name="side by side").click()
        page.get_by_role("heading", name="2 runs side by side").wait_for()
        context.close()
        server.shutdown()
        thread.join()
    assert [rule["id"] for rule in found] == []

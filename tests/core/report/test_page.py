"""The page in a real browser: no request, no error, and it sorts, filters, opens and answers.

Skipped where there is no playwright or no Chromium; what the HTML itself holds is tested anyway.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.contract.errors import SplitlabError
from splitlab.core.report.over_links import OverLinks
from splitlab.core.report.page import page, write_page
from splitlab.core.report.results import Point, Results, Row, RunResult
from splitlab.core.report.summary_table import summarise

EVIL = "<script>window.evil=1</script><!--DATA--><img src=x onerror=window.evil=1>\u2028 Ünï 测试"


# What the HTML holds.


@pytest.fixture(scope="module")
def small(make: Any) -> Results:
    found: Results = make.methods(seeds=3, points=6)
    return found


def test_figures_without_a_script_are_pictures(cut_by_ratio: Results) -> None:
    text = page(replace(cut_by_ratio, draw=("ratio", "setting:cut", "ridge")))
    assert text.count('src="data:image/svg+xml;base64,') == 3
    assert "<figcaption>setting:cut</figcaption>" in text
    assert "data:image/svg" not in page(replace(cut_by_ratio, draw=("heatmap", "bytes")))


@pytest.fixture(scope="module")
def odd(make: Any) -> Results:
    """Return rows of all that is unusual."""
    names = iter(range(100))

    def run(total: int, accuracy: float, points: int) -> RunResult:
        seed = next(names)
        curve = tuple(Point(i, accuracy, 1.0, total * i) for i in range(points))
        summary = make.summary(accuracy=accuracy, bytes_up=total, bytes_down=0, seed=seed)
        return RunResult(Path(f"runs/{seed}"), seed, "finished", "", summary, curve)

    lost = (Point(0, 0.1, 2.3, 0), Point(1, float("nan"), float("nan"), 100))
    rows = [
        make.row(EVIL, [], runs=(run(1000, 0.5, 5),), settings={"a": EVIL}),
        make.row("T" * 3000, [], runs=(run(0, 0.4, 1), run(0, 0.4, 1)), settings={"a": "x"}),
        make.row("below nothing", [], runs=(run(-500, 0.3, 3),), settings={"a": "x"}),
        make.row(
            "nan",
            [],
            runs=(RunResult(Path("\udcff"), 0, "diverged", EVIL, None, lost),),
            settings={"a": "x"},
        ),
        make.row("no run " * 40, [], runs=(), settings={"a": None}),
    ]
    texts = {name: EVIL for name in ("name", "summary", "paper", "command")}
    axes = [make.axis("a", (EVIL, "x", None))]
    found: Results = make.results(
        rows, axes, "below nothing", common=((EVIL, EVIL), ("long", "v" * 900)), **texts
    )
    return found


def test_the_html_alone_has_the_table_and_the_reasons(small: Results) -> None:
    text = page(small)
    assert "34 rows, 102 runs" in text
    assert '<span class="state failed">3 failed</span>' in text
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    assert body.count("<tr ") == 34
    for row in summarise(small):
        title = html.escape(row.row.title).replace(":", ":<wbr>")
        (line,) = re.findall(
            rf'<tr data-row="\d+"><th[^>]*><span class="title">{title}<.*?</tr>', body
        )
        assert (f"{row.accuracy.mean:.4f}" if row.accuracy else "—") in line
        assert html.escape(row.note) in line
        assert ("<strong>" in line) == row.leads
    assert "step 41: the loss is nan" in body
    assert "every row: epochs 1.50, steps 2,000." in text
    assert "splitlab study made-up" in text
    assert "crossed the link" in text


def test_only_of_a_row_that_lost_a_run_the_note_is_alarming(make: Any) -> None:
    told = replace(make.row("a", [0.5]), remark="takes no ratio")
    lost = Row("b", "b", {}, (make.finished(0, 0.5), make.lost(1, "failed", "no memory")))
    text = page(make.results([told, lost]))
    assert '<span class="note">takes no ratio' in text
    assert '<span class="note lost">' in text


def test_nothing_in_it_points_outside(small: Results) -> None:
    text = page(small)
    assert re.findall(r"<!--[A-Z]+-->", text) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1] == (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    )
    assert re.findall(r'(?:src|href|action)="(?!data:,)', text) == []
    assert set(re.findall(r"https?://[^\s\"'`]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text


def test_texts_of_users_stay_texts(odd: Results) -> None:
    text = page(odd)
    assert text.encode()  # a folder's name that is no text is in it
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert text.count("\u2028") == text.count(html.escape(EVIL))
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["rows"][0]["title"] == EVIL
    assert data["rows"][3]["runs"][0]["y"] == [0.1, None]


def test_a_large_study_is_a_small_file(make: Any) -> None:
    rows = [
        make.row(
            f"method:ratio={i}",
            [],
            method=f"method {i % 20}",
            settings={"stack": f"method {i % 20}", "ratio": i},
            runs=tuple(make.finished(seed, 0.5 + i / 300, joules=True) for seed in range(5)),
        )
        for i in range(100)
    ]
    axes = [make.axis("ratio", tuple(range(100)))]
    assert len(page(make.results(rows, axes)).encode()) < 2_000_000


def test_a_page_that_cannot_be_written_is_one_line(small: Results, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SplitlabError, match=r"^cannot write \S+page\.html: "):
        write_page(small, tmp_path / "file" / "page.html")
    write_page(small, tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == page(small)


# In a browser.

Look = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = next(filter(None, map(shutil.which, names)), own if Path(own).exists() else None)
        if found is None:
            pytest.skip("there is no Chromium here: install one, or run playwright install")
        try:
            engine = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"{found} does not start: {str(error).splitlines()[0]}")
        yield engine
        engine.close()


@pytest.fixture
def look(browser: Any, tmp_path: Path) -> Iterator[Look]:
    """Open results as a page. None may ask for anything, or complain, until the test's end."""
    problems: list[str] = []
    contexts = []

    def opened(
        results: Results,
        width: int = 1280,
        theme: str = "light",
        links: OverLinks | None = None,
        **options: Any,
    ) -> Any:
        file = tmp_path / f"{len(contexts)}.html"
        write_page(results, file, links)
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            reduced_motion="reduce",
            **options,
        )
        contexts.append(context)

        def only_itself(route: Any) -> None:
            if route.request.url == file.as_uri():
                route.continue_()
            else:
                problems.append(f"asks for {route.request.url}")
                route.abort()

        context.route("**/*", only_itself)
        view = context.new_page()
        view.on("console", lambda message: problems.append(f"console: {message.text}"))
        view.on("pageerror", lambda error: problems.append(f"error: {error}"))
        view.goto(file.as_uri())
        return view

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def titles(view: Any) -> list[str]:
    found: list[str] = view.locator(
        "#rows > tbody > tr:not(.inner):visible .title"
    ).all_inner_texts()
    return found


def drawn(view: Any, figure: str) -> set[int]:
    """Return the rows that a figure shows."""
    numbers = view.eval_on_selector_all(
        f"#{figure} g.of", "all => all.map(each => Number(each.dataset.row))"
    )
    return set(numbers)


@pytest.fixture(params=["methods", "grid", "odd", "single", "unfinished", "empty"])
def anything(request: Any, make: Any, small: Results, odd: Results) -> Results:
    unfinished = (make.lost(0, "running"), make.lost(1, "missing"))
    found: dict[str, Results] = {
        "methods": small,
        "grid": make.grid(),
        "odd": odd,
        "single": make.results([make.row("a", [0.5])]),
        "unfinished": make.results([make.row("a", [], runs=unfinished)]),
        "empty": make.results([]),
    }
    return found[request.param]


def test_no_page_is_wider_than_its_window(look: Look, anything: Results) -> None:
    view = look(anything, 400)
    wide = "document.documentElement.scrollWidth"
    assert view.evaluate(wide) <= 400
    view.eval_on_selector_all(
        "#curve-bar button, #row-bar button", "all => all.map(b => b.click())"
    )
    assert view.evaluate(wide) <= 400
    view.set_viewport_size({"width": 1280, "height": 900})
    assert view.evaluate(wide) <= 1280
    view.eval_on_selector_all("#curve-bar button", "all => all.map(button => button.click())")
    assert view.evaluate(wide) <= 1280


def test_time_over_links_is_a_table_of_its_own(look: Look, make: Any) -> None:
    view = look(make.results([make.row("a", [0.5])]), 400, links=make.over_links())
    section = view.locator("section[aria-labelledby=links-title]")
    cells = section.locator("tbody tr").all_inner_texts()
    assert [cell.split("\t") for cell in cells] == [
        ["a", "3 s", "40 s"],
        ["b", "5 s", "30 s"],
        ["c <d>", "never", "never"],
    ]
    assert section.locator("img").evaluate("image => image.naturalWidth") > 100
    assert view.evaluate("document.documentElement.scrollWidth") <= 400


def test_what_a_table_means_is_read_without_scrolling(look: Look, small: Results) -> None:
    box = look(small, width=400).locator("#rows caption span").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 400


def test_an_interval_ends_where_accuracies_do(look: Look, make: Any) -> None:
    rows = [make.row("a", [0.02, 0.1, 0.5]), make.row("b", [0.5, 0.9, 0.98])]  # -0.4 to 1.4
    view = look(make.results(rows))
    assert view.locator("th.interval").inner_text() == "0.00 – 1.00"
    texts = view.locator("#scatter svg text").all_text_contents()
    ticks = [float(text) for text in texts if re.fullmatch(r"-?[\d.]+", text)]
    assert ticks
    assert 0 <= min(ticks) <= max(ticks) <= 1


def test_the_numbers_beside_a_panel_are_whole(look: Look, make: Any) -> None:
    run = make.finished(0, 0.115)
    points = tuple(replace(point, accuracy=0.1 + point.step / 1e5) for point in run.points)
    row = Row("a", "a", {}, (replace(run, points=points),))
    view = look(make.results([row]), width=400)
    texts = view.locator("#panels svg text[text-anchor='end']").all()
    assert texts
    for text in texts:
        inside = text.evaluate("each => each.getBBox().x >= 0")
        assert inside, text.text_content()


def test_a_page_without_a_result_says_so(look: Look, make: Any) -> None:
    view = look(make.results([make.row("a", [], runs=(make.lost(0, "failed", "no memory"),))]))
    assert "1 row, 1 run: 1 failed" in view.locator("#states").inner_text()
    assert "no memory" in view.locator("#rows").inner_text()
    assert view.locator("main svg:visible").count() == 0


def test_hostile_texts_run_nothing(look: Look, odd: Results) -> None:
    view = look(odd)
    assert view.evaluate("window.evil") is None
    assert view.locator("img").count() == 0
    assert EVIL.replace("\u2028", "") in view.title().replace("\u2028", "")
    view.get_by_role("button", name="all open").click()
    view.get_by_role("button", name="linear").click()
    view.locator("#scatter svg").focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        view.keyboard.press(key)
        assert view.locator("#tip b").inner_text()
    assert "<script>window.evil=1</script>" in view.locator("#rows").inner_text()
    assert view.evaluate("window.evil") is None


def test_a_click_on_a_header_sorts(look: Look, small: Results) -> None:
    view = look(small)
    in_order = titles(view)
    assert in_order == [row.title for row in small.rows]
    header = view.get_by_role("columnheader", name="accuracy")
    header.get_by_role("button").click()
    known = [row for row in summarise(small) if row.accuracy]
    best = sorted(known, key=lambda row: -(row.accuracy.mean if row.accuracy else 0))
    assert header.get_attribute("aria-sort") == "descending"
    assert titles(view) == [*(row.row.title for row in best), "svd:ratio=0.05"]
    view.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert titles(view) == [*(row.row.title for row in reversed(best)), "svd:ratio=0.05"]
    view.keyboard.press("Space")
    assert header.get_attribute("aria-sort") is None
    assert titles(view) == in_order
    view.get_by_role("columnheader", name="row").get_by_role("button").click()
    assert titles(view)[:2] == ["adc:ratio=0.05", "adc:ratio=0.1"]


def test_filters_reach_the_table_and_the_figures(look: Look, small: Results) -> None:
    view = look(small)
    every = set(range(34)) - {next(i for i, r in enumerate(small.rows) if not r.finished)}
    assert drawn(view, "scatter") == drawn(view, "panels") == every
    view.get_by_label("Filter").fill("QUANT ratio=0.1")
    wanted = ["quantize:ratio=0.1", "powerquant:ratio=0.1"]
    assert titles(view) == wanted
    assert view.locator("#count").inner_text() == "2 of 34 rows"
    numbers = {i for i, row in enumerate(small.rows) if row.title in wanted}
    assert drawn(view, "scatter") == drawn(view, "panels") == numbers
    view.get_by_label("Filter").fill("diverged")
    assert titles(view) == ["quantize:ratio=0.05"]
    view.get_by_role("button", name="Clear").click()
    view.locator("select[data-axis=stack]").select_option(label="adc")
    view.locator("select[data-axis=ratio]").select_option(label="0.2")
    assert titles(view) == ["adc:ratio=0.2"]
    view.locator("select[data-axis=stack]").select_option(label="none")
    assert titles(view) == []
    assert view.locator("#none").is_visible()
    view.get_by_role("button", name="Clear").click()
    assert len(titles(view)) == 34
    assert drawn(view, "scatter") == every


def centre(view: Any, figure: str, row: int) -> tuple[float, float]:
    """Return where the mark at the end of a row's line is, in pixels of the window."""
    mark = view.locator(f"#{figure} g.of[data-row='{row}'] > :last-child").last
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_a_point_tells_its_row(look: Look, small: Results) -> None:
    view = look(small)
    row = summarise(small)[5]
    assert row.accuracy
    for figure in ("scatter", "panels"):
        view.mouse.move(*centre(view, figure, 5))
        told = view.locator("#tip").inner_text().split("\n")
        assert told[0] == row.row.title
        assert told[1] == f"accuracy {row.accuracy.mean:.4f} ± {row.accuracy.half:.4f}"
        assert any(re.fullmatch(r"[\d.]+ MB", line) for line in told)
        assert "n = 3, seeds 0, 1, 2" in told
        assert ("step 600" in told) == (figure == "panels")
        assert view.locator("tr.lit .title").inner_text() == row.row.title
        view.mouse.move(1, 1)
        assert view.locator("#tip").is_hidden()
        assert view.locator(".lit").count() == 0


def test_a_point_of_a_run_tells_the_run(look: Look, small: Results) -> None:
    view = look(small)
    view.locator("#curve-bar").get_by_role("button", name="every run").click()
    view.locator("#panels svg").first.focus()
    view.keyboard.press("ArrowDown")
    told = view.locator("#tip").inner_text().split("\n")
    run = small.rows[0].runs[0]
    assert told[0] == "none"
    assert told[1] == f"accuracy {run.points[-1].accuracy:.4f}"
    assert "seed 0, finished" in told
    assert str(run.folder) in told
    view.keyboard.press("ArrowDown")
    assert "seed 1, finished" in view.locator("#said").inner_text()
    view.keyboard.press("ArrowLeft")
    assert f"step {run.points[-2].step}" in view.locator("#tip").inner_text().split("\n")
    view.keyboard.press("Escape")
    assert view.locator("#tip").is_hidden()


def test_an_interval_wider_than_everything_is_cut_off_and_told(look: Look, make: Any) -> None:
    rows = [make.row("a", [0.1, 0.2]), make.row("b", [0.15, 0.16, 0.17])]
    view = look(make.results(rows))
    assert view.locator("#cut").is_visible()
    told = view.locator("#scatter svg").text_content()
    assert "0.2" in told
    assert "0.5" not in told
    view.locator("#pareto-bar").get_by_role("button", name="every run").click()
    assert view.locator("#cut").is_hidden()


def test_a_row_opens_to_its_runs(look: Look, small: Results) -> None:
    view = look(small)
    button = view.get_by_role("button", name="Runs of quantize:ratio=0.05")
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    lines = view.locator("tr.inner tbody tr").all_inner_texts()
    assert len(lines) == 3
    assert all(f"runs/seed-{seed}" in line for seed, line in enumerate(lines))
    assert "diverged: step 41: the loss is nan" in lines[1]
    view.get_by_role("columnheader", name="accuracy").get_by_role("button").click()
    below = view.locator("tr[data-row='10'] + tr.inner")  # it moves with its row
    assert below.count() == 1
    button.click()
    assert view.locator("tr.inner").count() == 0
    view.mouse.click(*centre(view, "scatter", 5))
    assert view.locator("tr[data-row='5'] + tr.inner").count() == 1
    assert view.locator("tr[data-row='5']").evaluate(
        "line => { const box = line.getBoundingClientRect();"
        " return box.top >= 0 && box.bottom <= innerHeight }"
    )


def test_axes_can_be_chosen(look: Look, small: Results) -> None:
    view = look(small)
    axes, svg = view.locator("#curve-axes"), view.locator("#panels svg").first
    assert "training bytes over the link, both directions, logarithmic" in axes.inner_text()
    logarithmic = svg.text_content()
    view.get_by_role("button", name="linear").click()
    assert "logarithmic" not in axes.inner_text()
    assert "dotted line" in axes.inner_text()  # none goes much further than all others
    assert svg.text_content() != logarithmic
    view.get_by_role("button", name="seconds").click()
    assert "seconds of training" in axes.inner_text()
    assert re.search(r"\d s\b", svg.text_content())
    view.get_by_role("button", name="steps").click()
    assert "200" in svg.text_content()
    assert view.get_by_role("button", name="steps").get_attribute("aria-pressed") == "true"
    assert view.get_by_role("button", name="joules").count() == 0


def test_a_heat_map_has_its_numbers(look: Look, cut_by_ratio: Results) -> None:
    view = look(cut_by_ratio)
    cells = view.locator("#maps g.of")
    assert cells.count() == 9
    for row in summarise(cut_by_ratio)[:9]:
        text = view.locator(
            f"#maps g.of[data-row='{cut_by_ratio.rows.index(row.row)}']"
        ).text_content()
        if row.accuracy is None:
            assert text == "diverged"
        else:
            assert text == f"{row.accuracy.mean:.3f}± {row.accuracy.half:.3f}"
    beside = view.locator("#maps + .caption").inner_text()
    for row in summarise(cut_by_ratio)[9:]:
        assert row.accuracy
        assert f"{row.row.title} {row.accuracy.mean:.3f} ± {row.accuracy.half:.3f}" in beside
    view.locator("#maps svg").focus()
    view.keyboard.press("ArrowDown")
    assert "cut" in view.locator("#tip b").inner_text()
    view.locator("#heat-bar").get_by_role("button", name="training bytes").click()
    assert "MB" in cells.first.text_content()


def test_the_command_can_be_copied(look: Look, small: Results) -> None:
    view = look(small)
    view.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: "
        "{writeText: async text => { window.copied = text }}})"
    )
    view.get_by_role("button", name="Copy").click()
    view.get_by_role("button", name="Copied").wait_for()
    assert view.evaluate("window.copied") == small.command
    view.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: "
        "{writeText: async () => { throw new Error('not allowed') }}})"
    )
    view.locator("#copy").click()
    view.get_by_role("button", name="Marked").wait_for()
    assert view.evaluate("getSelection().toString()") == small.command


def test_without_scripts_there_is_the_table(look: Look, small: Results) -> None:
    view = look(small, java_script_enabled=False)
    assert view.locator("#rows tbody tr:visible").count() == 34
    assert view.locator("#rows").get_by_text("step 41: the loss is nan").is_visible()
    assert view.get_by_text("where JavaScript is allowed").is_visible()
    assert view.locator("button:visible, select:visible, input:visible, section:empty").count() == 0


# Looks.

CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.closest(".unseen, script, option")) continue;
    const style = getComputedStyle(element), cell = element.parentElement.querySelector("rect");
    const isSvg = element instanceof SVGElement;
    const under = isSvg && element.closest("#maps g.of") && cell.getAttribute("fill") !== "none"
      ? parse(getComputedStyle(cell).fill) : ground(element);
    const both = [parse(isSvg ? style.fill : style.color), under].map(light);
    const [a, b] = both.sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), text]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_contrast(look: Look, cut_by_ratio: Results, theme: str) -> None:
    view = look(cut_by_ratio, theme=theme)
    view.get_by_role("button", name="all open").click()
    view.locator("#scatter svg").focus()
    view.keyboard.press("ArrowRight")
    found: Sequence[tuple[float, str]] = view.evaluate(CONTRAST)
    assert len(found) > 200
    assert [(text, ratio) for ratio, text in found if ratio < 4.5] == []


def test_the_theme_can_be_chosen(look: Look, small: Results) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    grounds = {}
    for theme in ("light", "dark"):
        view = look(small, theme=theme)
        grounds[theme] = view.evaluate(ground)
        view.locator("#theme").click()
        grounds[f"not {theme}"] = view.evaluate(ground)
        view.locator("#theme").click()
        assert view.evaluate(ground) == grounds[theme]
    assert grounds["light"] == grounds["not dark"] != grounds["dark"] == grounds["not light"]


def test_it_prints_dark_on_white(look: Look, small: Results) -> None:
    view = look(small, theme="dark")
    view.locator("#theme").click()
    view.locator("#theme").click()
    view.emulate_media(media="print")
    assert view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert view.locator("button:not(th *):visible, select:visible, input:visible").count() == 0
    assert view.locator("#rows tbody tr:visible").count() == 34
    assert view.locator("#panels svg:visible").count() == 11


def test_everything_has_a_name_for_those_who_hear_it(look: Look, cut_by_ratio: Results) -> None:
    view = look(cut_by_ratio)
    assert view.evaluate("document.documentElement.lang") == "en"
    assert view.locator("h1").count() == 1
    assert view.locator("h3, h4").count() == 0
    assert view.locator("#rows > caption").inner_text()
    assert view.locator("main figure svg.plot").count() == 1 + 1 + 3  # map, frontier, panels
    nameless = view.eval_on_selector_all(
        "svg:not([aria-hidden])",
        "all => all.filter(e => e.getAttribute('role') !== 'img' || !e.getAttribute('aria-label'))",
    )
    assert nameless == []
    nameless = view.eval_on_selector_all(
        "button, input, select",
        "all => all.filter(e => !(e.labels?.[0]?.innerText || e.ariaLabel"
        " || e.tagName === 'BUTTON' && e.textContent))",
    )
    assert nameless == []
    view.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert view.evaluate(outline) == "solid"
    for element in ("#filter", "#scatter svg", "#rows thead button"):
        view.locator(element).first.focus()
        view.keyboard.press("Shift")  # or it is not the keyboard that has the focus
        assert view.evaluate(outline) == "solid", element

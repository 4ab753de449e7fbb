"""The report of a run, and the comparison of two, in headless Chromium: phone and desk, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import test as test_command
from scripts import compare

SIZES = {"phone": (390, 844), "desk": (1280, 900)}
THEMES = ("light", "dark")
_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="there is no Chromium; on Debian: apt-get install chromium")


class Visit(NamedTuple):
    """A page as it lies open, and what was heard while it was opened."""

    page: Any
    messages: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def report(trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run, with its curves."""
    out = tmp_path_factory.mktemp("report")
    assert test_command.main(["--checkpoint", str(trained[1]), "--output", str(out)]) == 0
    return out / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def in_every_way(browser: Any, path: Path) -> dict[tuple[str, str], Visit]:
    """A page opened at each size in each theme."""
    return {(name, theme): _opened(browser, path, size, theme) for name, size in SIZES.items() for theme in THEMES}


@pytest.fixture(scope="module")
def visits(browser: Any, report: Path) -> dict[tuple[str, str], Visit]:
    return in_every_way(browser, report)


def _opened(browser: Any, path: Path, size: tuple[int, int], theme: str) -> Visit:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
    visit = Visit(page, [], [])
    page.on("console", lambda message: visit.messages.append(message.text))
    page.on("pageerror", lambda error: visit.messages.append(str(error)))
    page.on("request", lambda request: visit.requests.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    return visit


@pytest.fixture(params=[(name, theme) for name in SIZES for theme in THEMES], ids="-".join)
def visit(visits: dict[tuple[str, str], Visit], request: pytest.FixtureRequest) -> Visit:
    return visits[request.param]


def test_nothing_is_complained_of_and_nothing_fetched(visit: Visit, report: Path) -> None:
    assert visit.messages == []
    assert [url for url in visit.requests if not url.startswith("data:")] == [report.as_uri()]


def test_the_page_is_no_wider_than_the_screen(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_picture_is_there(visit: Visit) -> None:
    widths = visit.page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.clientWidth])")
    assert len(widths) == 4  # two cases, two halves each
    assert all(natural == 800 and shown > 100 for natural, shown in widths)


def test_charts_are_seen_and_their_letters_can_be_read(visit: Visit) -> None:
    charts = visit.page.eval_on_selector_all(
        "svg.chart", "all => all.map(one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height])"
    )
    assert len(charts) == 2 + 6  # both conventions; five terms of the loss and the validation
    assert all(250 < width < 500 and height > 100 for width, height in charts)
    letters = visit.page.eval_on_selector_all(
        "svg.chart text", "all => all.map(one => parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a)"
    )
    assert min(letters) > 10


def test_no_letters_of_a_chart_are_cut_off(visit: Visit) -> None:
    outside = visit.page.eval_on_selector_all(
        "svg.chart text",
        """all => all.filter(one => {
            const [inner, outer] = [one, one.ownerSVGElement].map(each => each.getBoundingClientRect());
            return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
        }).map(one => one.textContent)""",
    )
    assert outside == []


@pytest.mark.parametrize("size", SIZES)
def test_light_and_dark_differ(visits: dict[tuple[str, str], Visit], size: str) -> None:
    def colour(theme: str, selector: str, kind: str) -> str:
        return visits[size, theme].page.eval_on_selector(selector, f"one => getComputedStyle(one).{kind}")

    for selector, kind in (("body", "backgroundColor"), ("svg.chart text", "fill"), ("figure", "backgroundColor")):
        assert colour("light", selector, kind) != colour("dark", selector, kind), selector


def test_pictures_stand_beside_each_other_only_where_there_is_room(visits: dict[tuple[str, str], Visit]) -> None:
    for size, beside in (("phone", False), ("desk", True)):
        tops = visits[size, "light"].page.eval_on_selector_all(
            ".halves:first-of-type img", "all => all.slice(0, 2).map(one => one.getBoundingClientRect().top)"
        )
        assert (tops[0] == tops[1]) == beside


def test_the_configuration_unfolds(visits: dict[tuple[str, str], Visit]) -> None:
    page = visits["phone", "light"].page
    assert not page.is_visible("details pre")
    page.click("summary")
    assert page.is_visible("details pre") and "NUM_CLASSES" in page.inner_text("details pre")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_comparison_of_two_runs(
    browser: Any, report: Path, trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert test_command.main(["--checkpoint", str(trained[1] / "last.pth"), "--output", str(tmp_path / "b")]) == 0
    assert compare.main([str(report.parent), str(tmp_path / "b"), "--output", str(tmp_path)]) == 0
    for visit in in_every_way(browser, tmp_path / "comparison.html").values():
        assert visit.messages == []
        assert [url for url in visit.requests if not url.startswith("data:")] == [
            (tmp_path / "comparison.html").as_uri()
        ]
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert visit.page.locator("svg.chart").count() == 2 and visit.page.locator("img").count() == 8
        assert all(visit.page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth > 0)"))

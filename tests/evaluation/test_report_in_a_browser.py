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
    """A page that was opened, with its console messages and requests."""

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
        yield browser
        browser.close()


def visits_of(browser: Any, path: Path) -> dict[tuple[str, str], Visit]:
    """A page opened at each size in each theme: nothing is logged, nothing fetched, nothing wider than the screen."""
    found = {}
    for name, (width, height) in SIZES.items():
        for theme in THEMES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            visit = found[name, theme] = Visit(page, [], [])
            page.on("console", lambda message, visit=visit: visit.messages.append(message.text))
            page.on("pageerror", lambda error, visit=visit: visit.messages.append(str(error)))
            page.on("request", lambda request, visit=visit: visit.requests.append(request.url))
            page.goto(path.as_uri(), wait_until="load")
            assert visit.messages == []
            assert [url for url in visit.requests if not url.startswith("data:")] == [path.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return found


@pytest.fixture(scope="module")
def visits(browser: Any, report: Path) -> dict[tuple[str, str], Visit]:
    return visits_of(browser, report)


@pytest.fixture(params=[(name, theme) for name in SIZES for theme in THEMES], ids="-".join)
def page(visits: dict[tuple[str, str], Visit], request: pytest.FixtureRequest) -> Any:
    return visits[request.param].page


def test_every_image_is_loaded(page: Any) -> None:
    widths = page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.clientWidth])")
    assert len(widths) == 4  # two cases, two halves each
    assert all(natural == 800 and shown > 100 for natural, shown in widths)


def test_charts_are_visible_and_their_text_is_legible(page: Any) -> None:
    charts = page.eval_on_selector_all(
        "svg.chart", "all => all.map(one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height])"
    )
    assert len(charts) == 2 + 6  # both conventions; five terms of the loss and the validation
    assert all(250 < width < 500 and height > 100 for width, height in charts)
    sizes = page.eval_on_selector_all(
        "svg.chart text", "all => all.map(one => parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a)"
    )
    assert min(sizes) > 10


def test_no_text_of_a_chart_is_cut_off(page: Any) -> None:
    outside = page.eval_on_selector_all(
        "svg.chart text",
        """all => all.filter(one => {
            const [inner, outer] = [one, one.ownerSVGElement].map(each => each.getBoundingClientRect());
            return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
        }).map(one => one.textContent)""",
    )
    assert outside == []


def test_light_and_dark_differ(visits: dict[tuple[str, str], Visit]) -> None:
    for selector, kind in (("body", "backgroundColor"), ("svg.chart text", "fill"), ("figure", "backgroundColor")):
        script = f"one => getComputedStyle(one).{kind}"
        assert len({visits["desk", theme].page.eval_on_selector(selector, script) for theme in THEMES}) == 2, selector


def test_halves_are_in_one_row_only_on_a_wide_screen(visits: dict[tuple[str, str], Visit]) -> None:
    for size, in_one_row in (("phone", False), ("desk", True)):
        tops = visits[size, "light"].page.eval_on_selector_all(
            ".halves:first-of-type img", "all => all.slice(0, 2).map(one => one.getBoundingClientRect().top)"
        )
        assert (tops[0] == tops[1]) == in_one_row


def test_the_configuration_unfolds(visits: dict[tuple[str, str], Visit]) -> None:
    page = visits["phone", "light"].page
    assert not page.is_visible("details pre")
    page.click("summary")
    assert page.is_visible("details pre") and "NUM_CLASSES" in page.inner_text("details pre")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_comparison_of_two_runs(browser: Any, report: Path, trained: tuple[Path, Path], tmp_path: Path) -> None:
    assert test_command.main(["--checkpoint", str(trained[1] / "last.pth"), "--output", str(tmp_path / "b")]) == 0
    assert compare.main([str(report.parent), str(tmp_path / "b"), "--output", str(tmp_path)]) == 0
    for visit in visits_of(browser, tmp_path / "comparison.html").values():
        assert visit.page.locator("svg.chart").count() == 2 and visit.page.locator("img").count() == 8
        assert all(visit.page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth > 0)"))

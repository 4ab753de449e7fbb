"""Charts inside a page: in its colors and font, with every value in its place."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from evaluation import charts


def drawn(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert (root.tag, root.get("class"), root.get("role")) == ("svg", "chart", "img") and root.get("aria-label")
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text for element in root.iter("text")]


def boxes(values: dict, label: str = 'liver < "spleen"') -> str:
    return charts.dice_boxes(values, 0.0, label)


def test_a_chart_takes_its_colors_and_font_from_the_page() -> None:
    for svg in (boxes({"liver": [0.5, 0.6]}), charts.curve([1, 2], [3.0, 4.0], "x", mark=1)):
        root = drawn(svg)
        assert not re.search(r"#[0-9a-f]{6}\b|rgb\(|font-family|url\(|https?:", svg)
        assert {"currentColor", "var(--line)", "var(--soft)", "var(--accent)"} <= set(
            re.findall(r"currentColor|var\(--\w+\)", svg)
        )
        assert root.get("viewBox").startswith("0 0 340 ") and root.get("width") is None
        assert {element.get("style").split(";")[0] for element in root.iter("text")} == {"font-size: 12px"}
    assert drawn(boxes({"liver": []})).get("aria-label") == 'liver < "spleen"'


def test_ids_are_the_charts_own_and_all_references_resolve() -> None:
    found = []
    for svg in (boxes({"liver": [0.5, 0.6]}, label="a"), boxes({"liver": [0.5, 0.6]}, label="b")):
        ids = re.findall(r'id="([^"]*)"', svg)
        references = set(re.findall(r'href="#([^"]*)"', svg))
        assert references and references <= set(ids)
        found += ids
    assert len(found) == len(set(found))


@pytest.mark.parametrize("classes", [1, 14])
def test_boxes_have_a_point_for_each_case_and_a_row_for_each_class(classes: int) -> None:
    rng = np.random.default_rng(0)
    values = {f"organ ${index}_": list(rng.random(5)) for index in range(classes)}
    root = drawn(boxes(values))
    assert [text for text in texts(root) if text.startswith("organ")] == list(values)
    assert len([use for use in root.iter("use") if "var(--accent)" in use.get("style")]) == 5 * classes


def test_boxes_lie_at_their_values() -> None:
    root = drawn(boxes({"liver": [0.2, 0.4, 0.6], "spleen": [1.0], "absent": [], "aorta": [0.8, 0.8]}))
    ticks = {element.text: float(element.get("x")) for element in root.iter("text")}

    def place(value: float) -> float:
        return ticks["0.0"] + value * (ticks["1.0"] - ticks["0.0"])

    points = sorted(float(use.get("x")) for use in root.iter("use") if "var(--accent)" in use.get("style"))
    assert points == pytest.approx([place(value) for value in (0.2, 0.4, 0.6, 0.8, 0.8, 1.0)], abs=0.01)
    bars = [path for path in root.iter("path") if "stroke-width: 2" in path.get("style", "") and path.get("d")]
    medians = [float(bar.get("d").split()[1]) for bar in bars]
    assert medians == pytest.approx([place(0.4), place(0.8)], abs=0.01)


def line(svg: str) -> list[tuple[str, float, float]]:
    """The commands of the one line in the accent color."""
    (path,) = [p for p in drawn(svg).iter("path") if "stroke: var(--accent)" in (p.get("style") or "")]
    words = path.get("d").split()
    return [(words[i], float(words[i + 1]), float(words[i + 2])) for i in range(0, len(words), 3)]


def test_a_curve_has_gaps_where_it_is_not_finite() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.inf, -math.inf, 2.0, 1.0]
    commands = line(charts.curve(range(8), values, "x"))
    assert [command for command, _, _ in commands] == ["M", "L", "M", "M", "L"]
    assert np.isfinite([(x, y) for _, x, y in commands]).all()


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    svg = charts.curve(range(100_000), list(rng.random(100_000)), "x")
    assert len(svg) < 40_000
    root = drawn(svg)
    ticks = {float(t.text): float(t.get("x")) for t in root.iter("text") if t.text.isdigit()}
    scale = (ticks[50_000] - ticks[0]) / 50_000
    assert [line(svg)[0][1], line(svg)[-1][1]] == pytest.approx([ticks[0], ticks[0] + 99_999 * scale], abs=0.1)


def test_a_curve_over_many_orders_is_logarithmic_and_one_point_is_seen() -> None:
    steep = line(charts.curve([1, 2, 3], [1.0, 100.0, 10_000.0], "x"))
    assert steep[0][2] - steep[1][2] == pytest.approx(steep[1][2] - steep[2][2], abs=0.1)
    flat = line(charts.curve([1, 2, 3], [1.0, 50.0, 99.0], "x"))
    assert flat[0][2] - flat[1][2] == pytest.approx(flat[1][2] - flat[2][2], abs=0.1)
    for values in ([2.0], [math.nan]):
        root = drawn(charts.curve([7], values, "x"))
        points = [use for use in root.iter("use") if "var(--accent)" in use.get("style")]
        assert len(points) == math.isfinite(values[0])

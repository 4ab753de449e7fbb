"""The report: well-formed, self-contained, escaped, with every value where it belongs."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.overlay import write_overlay
from evaluation.report import Provenance, write_html
from evaluation.summary import CaseResult, summarize
from tests.evaluation.test_overlay import NAMES, volume
from tests.evaluation.test_summary import ABSENT, FALSE_NEGATIVE, ORGANS, in_mm, measured, results


class Page(HTMLParser):
    """Collects text, tags and attributes, and keeps what was opened and not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data)

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [attributes.get(attribute) for name, attributes in self.tags if name == tag]


def write_page(
    folder: Path,
    names: Sequence[str] = ORGANS,
    cases: Sequence[CaseResult] = (),
    provenance: Provenance = Provenance(),  # noqa: B008  frozen
) -> Page:
    cases = cases or results()
    (folder / "overlays").mkdir(exist_ok=True)
    write_overlay(folder / "overlays/any.png", *volume(), NAMES)
    for case in cases:
        shutil.copy(folder / "overlays/any.png", folder / f"overlays/{case.name}.png")
    path = folder / "report.html"
    write_html(path, summarize(cases, names), folder / "overlays", provenance)
    return Page(path.read_text(encoding="utf-8"))


def pixels(url: str) -> np.ndarray:
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_page_is_well_formed_and_needs_no_other_file(tmp_path: Path) -> None:
    page = write_page(tmp_path, provenance=Provenance({"dataset": "Synapse", "checkpoint": None}))
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(src|href)=.?(http|/)|url\(|@import", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert {"Published convention", "Strict convention", "Synapse", "None"} <= set(page.texts)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) == 1


def test_it_has_the_values_and_the_worst_case_first(tmp_path: Path) -> None:
    texts = write_page(tmp_path).texts
    assert texts.count("0.4667") == 4  # the headline, both last rows, and the spleen's Jaccard
    start = texts.index("Cases, worst strict Dice first")
    deviation = f"{np.std([0.7, 0.7, 0], ddof=1):.4f}"
    assert texts[texts.index("0.4667") + 1] == f" \N{PLUS-MINUS SIGN} {deviation}", "the headline"
    assert texts[texts.index("std", start) + 1] == deviation, "the last row of the cases"
    # Strict Dice: b 0.2, a 0.7; c has none.
    assert [text for text in texts[start:] if text in ("a", "b", "c")] == ["b", "a", "c"]
    assert any(text.startswith("Undefined here: 2 of 6 Dice and 3 of 6 HD95") for text in texts)


def test_a_distance_of_0_that_there_is_not_is_marked(tmp_path: Path) -> None:
    """Nothing is found in a and b: published, both have HD95 0.00; c is found, and exact."""
    missed = [CaseResult(name, (FALSE_NEGATIVE, FALSE_NEGATIVE)) for name in "ab"]
    page = write_page(tmp_path, cases=[*missed, CaseResult("c", (measured(1, 0, 1, 0),) * 2)])
    rows = {name: page.texts[page.texts.index(name) + 1 :][:8] for name in ("a", "c", "liver")}
    assert rows["a"] == ["0.0000", "0.00*", "0.0000", "0.00*", "0.0000", "\N{EN DASH}", "0.0000", "\N{EN DASH}"]
    assert rows["c"] == ["1.0000", "0.00", "1.0000", "0.00"] * 2
    assert rows["liver"] == ["0.3333", "0.00*", "0.3333", "0.00*", "0.3333", "0.00", "0.3333", "0.00"]
    assert page.texts.count("0.00*") == 2 * (1 + 3 + 4)  # the headlines, classes and mean, cases and mean and std
    assert any("A star marks" in text for text in page.texts)


def test_the_column_that_sorts_is_marked(tmp_path: Path) -> None:
    """One of the two columns of Dice, in the table of the cases alone."""
    page = write_page(tmp_path)
    marked = [place for place, value in enumerate(page.values("th", "aria-sort")) if value]
    heads = [place for place, value in enumerate(page.values("th", "scope")) if value == "col"]
    assert [heads[len(heads) // 2 :].index(place) for place in marked] == [5]  # the name, and four of the published


def test_distances_in_mm(tmp_path: Path) -> None:
    page = write_page(tmp_path, cases=in_mm())
    assert page.open == [] and page.texts.count("HD95 mm") == page.texts.count("ASSD mm") == 2 + 2 * 2  # cards, tables
    assert set(page.values("table", "class")) == {"of6"}
    # Strictly 18 and 4 mm on average in a and b; the last row of the cases has the mean and its deviation.
    assert {"11.00", f"{np.std([18, 4], ddof=1):.2f}"} <= set(page.texts)
    assert not any("HD95 mm" in text for text in write_page(tmp_path).texts)


def test_an_overlay_is_embedded_in_two_halves(tmp_path: Path) -> None:
    page = write_page(tmp_path, cases=results()[:1])
    whole = np.asarray(Image.open(tmp_path / "overlays/a.png").convert("RGB"))
    np.testing.assert_array_equal(np.concatenate([*map(pixels, page.values("img", "src"))], axis=1), whole)
    assert not any(text.startswith(" \N{PLUS-MINUS SIGN}") for text in page.texts), "one case has no deviation"
    first, second = page.values("img", "alt")
    assert first.startswith("The only case: a, Dice 0.7000 published, 0.7000 strict") and second == ""


def case(name: str, dice: float) -> CaseResult:
    return CaseResult(name, (measured(dice, 1, dice, 1),))


MANY = [case("good", 0.9), case("bad", 0.1), case("fair", 0.5), case("low", 0.3), case("high", 0.7)]


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        (MANY, ["Worst: bad", "Median: fair", "Best: good"]),
        (MANY[:4], ["Worst: bad", "Median: low", "Best: good"]),
        (MANY[:2], ["Worst: bad", "Best: good"]),
        ([*MANY[:2], CaseResult("absent", (ABSENT,))], ["Worst: bad", "Best: good"]),
        ([MANY[0], CaseResult("absent", (ABSENT,))], ["The only case with a Dice: good"]),
        ([CaseResult("absent", (ABSENT,))], ["The only case: absent"]),
    ],
)
def test_images_of_the_worst_the_median_and_the_best_case(
    cases: list[CaseResult], expected: list[str], tmp_path: Path
) -> None:
    described = [alt for alt in write_page(tmp_path, ["liver"], cases).values("img", "alt") if alt]
    assert [text.split(",")[0] for text in described] == expected


def test_a_missing_overlay_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such image"):
        write_html(tmp_path / "report.html", summarize(results(), ORGANS), tmp_path, Provenance())
    assert not (tmp_path / "report.html").exists()


def test_a_box_plot_for_each_convention(tmp_path: Path) -> None:
    # Published Dice: liver 0.8, 0.4, 0; spleen 0.6, 1, 0. Strict: liver 0.8, 0.4; spleen 0.6, 0.
    assert write_page(tmp_path).values("svg", "aria-label") == [
        "Box plot of the Dice of the cases by class, published convention. Medians: liver 0.4000, spleen 0.6000.",
        "Box plot of the Dice of the cases by class, strict convention. Medians: liver 0.6000, spleen 0.3000.",
    ]


def test_curves_of_the_training_that_have_values(tmp_path: Path) -> None:
    curves = {
        "epoch": ([1, 2], [0.0, 1.0]),
        "loss": ([1, 20, 40], [1.5, 0.25, math.nan]),
        "ce": ([1], [math.inf]),
        "val_dice": ([20, 40], [0.75, 0.5]),
    }
    page = write_page(tmp_path, provenance=Provenance(curves=curves))
    assert page.values("svg", "aria-label")[2:] == [
        "Loss over the steps of the training, last 0.25 at step 20.",
        "Validation Dice over the steps of the training, best 0.75 at step 20.",
    ]
    assert "Training" in page.texts and "Training" not in write_page(tmp_path).texts


def test_the_configuration_is_folded_and_the_environment_shown(tmp_path: Path) -> None:
    provenance = Provenance({"network": "unet"}, "DATA:\n  ROOT_PATH: <data>\n", {"torch": "2.11.0"})
    page = write_page(tmp_path, provenance=provenance)
    assert "DATA:\n  ROOT_PATH: <data>\n" in page.texts
    assert page.values("details", "open") == [None]
    order = [page.texts.index(text) for text in ("Settings", "The whole configuration", "Environment", "2.11.0")]
    assert order == sorted(order)


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('1')<i>&\""  # without a slash, as the names of files are
    provenance = Provenance({f"key {evil}": evil}, evil, {evil: evil})
    page = write_page(tmp_path, [f"organ {evil}"], [case(evil, 0.5)], provenance)
    assert not {"script", "i"} & {tag for tag, _ in page.tags}
    assert {evil, f"organ {evil}", f"key {evil}"} <= set(page.texts)

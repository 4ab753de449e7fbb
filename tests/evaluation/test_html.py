"""The page: whole, alone, escaped, and with the figures where they belong."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from datasets.base import Volume
from evaluation import report
from evaluation.overlay import write_overlay
from evaluation.report import Provenance
from evaluation.summary import CaseResult, summarize
from tests.evaluation.test_overlay import NAMES, volume
from tests.evaluation.test_report import ABSENT, ORGANS, in_mm, measured, results


class Page(HTMLParser):
    """Collects text, tags and attributes, and holds on to what was opened and not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def write_page(folder, names=ORGANS, cases=None, origin=None, overlays=True):
    cases = cases or results()
    if not (folder / "overlays/any.png").exists():
        (folder / "overlays").mkdir(exist_ok=True)
        write_overlay(folder / "overlays/any.png", *volume(), NAMES)
    for measured_case in cases if overlays else []:
        shutil.copy(folder / "overlays/any.png", folder / f"overlays/{measured_case.name}.png")
    report.write_html(
        folder / "report.html",
        summarize(cases, names),
        folder / "overlays" if overlays else None,
        origin or Provenance(),
    )
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def pictures(page):
    return [attributes for tag, attributes in page.tags if tag == "img"]


def pixels(image):
    content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    return np.asarray(Image.open(io.BytesIO(content)))


def test_html_is_whole_and_needs_no_other_file(tmp_path):
    page = write_page(tmp_path, origin=Provenance({"dataset": "Synapse", "checkpoint": None}))
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(src|href)=.?(http|/)|url\(|@import", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert {"Published convention", "Strict convention", "Synapse", "None"} <= set(page.texts)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) == 1


def test_a_picture_is_embedded_in_two_halves(tmp_path):
    first, second = pictures(write_page(tmp_path, cases=results()[:1]))
    whole = np.asarray(Image.open(tmp_path / "overlays/a.png").convert("RGB"))
    np.testing.assert_array_equal(np.concatenate([pixels(first), pixels(second)], axis=1), whole)
    assert first["alt"].startswith("The only case: a, Dice 0.7000 published, 0.7000 strict") and second["alt"] == ""


def test_pictures_are_of_the_worst_the_median_and_the_best_case_none_twice(tmp_path):
    def case(name, dice):
        return CaseResult(name, (measured(dice, 1, dice, 1),))

    many = [case("good", 0.9), case("bad", 0.1), case("fair", 0.5), case("low", 0.3), case("high", 0.7)]
    for cases, expected in (
        (many, ["Worst: bad", "Median: fair", "Best: good"]),
        (many[:4], ["Worst: bad", "Median: low", "Best: good"]),
        (many[:3], ["Worst: bad", "Median: fair", "Best: good"]),
        (many[:2], ["Worst: bad", "Best: good"]),
        (many[:1], ["The only case: good"]),
        ([*many[:2], CaseResult("absent", (ABSENT,))], ["Worst: bad", "Best: good"]),
        ([many[0], CaseResult("absent", (ABSENT,))], ["The only case with a Dice: good"]),
        ([CaseResult("absent", (ABSENT,))], ["The only case: absent"]),
    ):
        described = [image["alt"] for image in pictures(write_page(tmp_path, ["liver"], cases)) if image["alt"]]
        assert [text.split(",")[0] for text in described] == expected


def test_html_has_a_box_plot_for_each_convention(tmp_path):
    page = write_page(tmp_path)
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    # Published Dice: liver 0.8, 0.4, 0; spleen 0.6, 1, 0. Strict: liver 0.8, 0.4; spleen 0.6, 0.
    assert labels == [
        "Box plot of the Dice of the cases by class, published convention. Medians: liver 0.4000, spleen 0.6000.",
        "Box plot of the Dice of the cases by class, strict convention. Medians: liver 0.6000, spleen 0.3000.",
    ]


def test_html_has_the_curves_of_the_training_that_have_values(tmp_path):
    curves = {
        "epoch": ([1, 2], [0.0, 1.0]),
        "loss": ([1, 20, 40], [1.5, 0.25, math.nan]),
        "ce": ([1], [math.inf]),
        "val_dice": ([20, 40], [0.75, 0.5]),
    }
    page = write_page(tmp_path, origin=Provenance(curves=curves))
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"][2:]
    assert labels == [
        "Loss over the steps of the training, last 0.25 at step 20.",
        "Validation Dice over the steps of the training, best 0.75 at step 20.",
    ]
    assert "Training" in page.texts and "Training" not in write_page(tmp_path).texts


def test_html_folds_the_configuration_and_shows_the_environment(tmp_path):
    origin = Provenance({"network": "unet"}, "DATA:\n  ROOT_PATH: <data>\n", {"torch": "2.11.0"})
    page = write_page(tmp_path, origin=origin)
    assert "DATA:\n  ROOT_PATH: <data>\n" in page.texts
    assert [dict(attributes) for tag, attributes in page.tags if tag == "details"] == [{}]
    order = [page.texts.index(text) for text in ("Settings", "The whole configuration", "Environment", "2.11.0")]
    assert order == sorted(order)


def test_html_stays_small_with_pictures_that_do_not_compress(tmp_path):
    rng = np.random.default_rng(0)
    noise = Volume("any", rng.random((1, 3, 1000, 1000), np.float32), rng.integers(0, 4, (1, 1000, 1000), np.uint8))
    (tmp_path / "overlays").mkdir()
    write_overlay(tmp_path / "overlays/any.png", noise, rng.integers(0, 4, (1, 1000, 1000), np.uint8), NAMES)
    cases = [CaseResult(f"case {index}", (measured(index / 14, 1, index / 14, 1),)) for index in range(14)]
    for index in range(14):
        shutil.copy(tmp_path / "overlays/any.png", tmp_path / f"overlays/case {index}.png")
    report.write_html(tmp_path / "report.html", summarize(cases, ["nucleus"]), tmp_path / "overlays", Provenance())
    assert (tmp_path / "report.html").stat().st_size < 15_000_000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_letters_stand_out_from_what_is_behind_them(theme):
    parts = (report.TEMPLATES / "page.css").read_text(encoding="utf-8").split("@media", 1)
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", part)) for part in parts)
    colours = {"light": light, "dark": dark}[theme]

    def luminance(code):
        code = "".join(digit * 2 for digit in code[1:]) if len(code) == 4 else code[1:]
        parts = [int(code[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for front in ("text", "soft", "accent"):
        for behind in ("page", "card"):
            low, high = sorted(luminance(colours[name]) for name in (front, behind))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{front} on {behind}"  # WCAG 2, AA


def test_html_has_the_figures_and_the_worst_case_first(tmp_path):
    page = write_page(tmp_path)
    texts = [text for text in page.texts if text.strip()]
    assert texts.count("0.4667") == 4  # the headline, both last rows, and the spleen's Jaccard
    start = texts.index("Cases, worst first")
    deviation = f"{np.std([0.7, 0.7, 0], ddof=1):.4f}"
    assert texts[texts.index("0.4667") + 1] == f" \N{PLUS-MINUS SIGN} {deviation}", "the headline"
    assert texts[texts.index("std", start) + 1] == deviation, "the last row of the cases"
    # Strict Dice: b 0.2, a 0.7; c has none.
    assert [text for text in texts[start:] if text in ("a", "b", "c")] == ["b", "a", "c"]
    assert any(text.startswith("Undefined here: 2 of 6 Dice and 3 of 6 HD95") for text in texts)


def test_html_escapes_everything(tmp_path):
    evil = "<script>alert('1')</script>&\""
    case = CaseResult(evil, (measured(0.5, 1, 0.3, 1),))
    origin = Provenance({f"key {evil}": evil}, evil, {evil: evil})
    page = write_page(tmp_path, [f"organ {evil}"], [case], origin, overlays=False)  # a file has no such name
    assert "script" not in {tag for tag, _ in page.tags}
    assert {evil, f"organ {evil}", f"key {evil}"} <= set(page.texts)


def test_html_without_pictures_and_with_a_missing_one(tmp_path):
    summary = summarize(results(), ORGANS)
    report.write_html(tmp_path / "plain.html", summary, None, Provenance())
    assert "<img" not in (tmp_path / "plain.html").read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        report.write_html(tmp_path / "missing.html", summary, tmp_path, Provenance())
    assert not (tmp_path / "missing.html").exists()


def test_html_with_distances_in_mm(tmp_path):
    page = write_page(tmp_path, cases=in_mm())
    texts = [text for text in page.texts if text.strip()]
    assert page.open == [] and texts.count("HD95 mm") == texts.count("ASSD mm") == 2 + 2 * 2  # cards, and two tables
    assert {attributes.get("class") for tag, attributes in page.tags if tag == "table"} == {"of6"}
    assert [attributes["colspan"] for _, attributes in page.tags if "colspan" in attributes] == ["6"] * 4
    plain = write_page(tmp_path)
    assert not any("mm" in text for text in plain.texts if "style" not in text and "{" not in text)

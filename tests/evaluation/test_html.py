"""The page: whole, alone, escaped, and with the figures where they belong."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation import report
from evaluation.report import CaseResult, summarise
from tests.evaluation.test_overlay import NAMES, volume
from tests.evaluation.test_report import ORGANS, in_mm, measured, results


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


def write_page(folder, names=ORGANS, cases=None, settings=None):
    case, prediction = volume()
    overlay = folder / "case7.png"
    report.write_overlay(overlay, case, prediction, NAMES)
    report.write_html(folder / "report.html", summarise(cases or results(), names), [overlay], settings or {})
    return Page((folder / "report.html").read_text(encoding="utf-8")), overlay


def test_html_is_whole_and_needs_no_other_file(tmp_path):
    page, overlay = write_page(tmp_path, settings={"dataset": "Synapse", "checkpoint": None})
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    data = image["src"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(data, validate=True) == overlay.read_bytes()
    assert not re.search(r"(src|href)=.?(http|/)|url\(|@import", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert {"Published convention", "Strict convention", "Synapse", "None"} <= set(page.texts)


def test_html_has_the_figures_and_the_worst_case_first(tmp_path):
    page, _ = write_page(tmp_path)
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
    page, _ = write_page(tmp_path, [f"organ {evil}"], [case], {f"key {evil}": evil})
    assert "script" not in {tag for tag, _ in page.tags}
    assert {evil, f"organ {evil}", f"key {evil}"} <= set(page.texts)


def test_html_without_pictures_and_with_a_missing_one(tmp_path):
    summary = summarise(results(), ORGANS)
    report.write_html(tmp_path / "plain.html", summary, [], {})
    assert "<img" not in (tmp_path / "plain.html").read_text(encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        report.write_html(tmp_path / "missing.html", summary, [tmp_path / "none.png"], {})
    assert not (tmp_path / "missing.html").exists()


def test_html_with_distances_in_mm(tmp_path):
    page, _ = write_page(tmp_path, cases=in_mm())
    texts = [text for text in page.texts if text.strip()]
    assert page.open == [] and texts.count("HD95 mm") == texts.count("ASSD mm") == 2 + 2 * 2  # cards, and two tables
    assert {attributes.get("class") for tag, attributes in page.tags if tag == "table"} == {"of6"}
    assert [attributes["colspan"] for _, attributes in page.tags if "colspan" in attributes] == ["6"] * 4
    plain, _ = write_page(tmp_path)
    assert not any("mm" in text for text in plain.texts if "style" not in text and "{" not in text)

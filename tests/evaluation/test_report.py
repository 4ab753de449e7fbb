from __future__ import annotations

import base64
import csv
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import utils
from datasets.base import Geometry, Volume
from evaluation import report
from evaluation.metrics import METRICS, ClassScores, compare_classes
from evaluation.report import CaseResult, summarise

ORGANS = ("liver", "spleen")
NAN = math.nan


def scores(*figures: float) -> dict[str, float]:
    return dict(zip(METRICS, figures, strict=True))


def measured(*figures: float) -> ClassScores:
    """Both masks hold something: the conventions agree."""
    return ClassScores(scores(*figures), scores(*figures))


MISSED = ClassScores(scores(0, 0, 0, 0), scores(0, NAN, 0, NAN))
INVENTED = ClassScores(scores(1, 0, 1, 0), scores(0, NAN, 0, NAN))
ABSENT = ClassScores(scores(0, 0, 0, 0), scores(NAN, NAN, NAN, NAN))


def results() -> list[CaseResult]:
    return [
        CaseResult("a", (measured(0.8, 4, 0.6, 2), measured(0.6, 8, 0.4, 4))),
        CaseResult("b", (measured(0.4, 2, 0.2, 1), INVENTED)),
        CaseResult("c", (ABSENT, ABSENT)),
    ]


def test_published_means_by_pencil():
    published = summarise(results(), ORGANS)["published"]
    # Case means of Dice: (0.8 + 0.6) / 2 = 0.7, (0.4 + 1) / 2 = 0.7, 0. HD95: 6, 1, 0.
    assert published["dice"] == pytest.approx(1.4 / 3)
    assert published["hd95"] == pytest.approx(7 / 3)
    assert published["jaccard"] == pytest.approx((0.5 + 0.6 + 0) / 3)
    assert published["assd"] == pytest.approx((3 + 0.5 + 0) / 3)
    assert published["per_class"]["liver"] == pytest.approx(scores(0.4, 2, 0.8 / 3, 1))
    assert published["per_class"]["spleen"] == pytest.approx(scores(1.6 / 3, 8 / 3, 1.4 / 3, 4 / 3))


def test_strict_means_leave_out_what_is_undefined():
    strict = summarise(results(), ORGANS)["strict"]
    # Case means of Dice: 0.7, (0.4 + 0) / 2 = 0.2, none. HD95: 6, 2 (the liver alone), none.
    assert strict["dice"] == pytest.approx(0.45)
    assert strict["hd95"] == pytest.approx(4)
    assert strict["per_class"]["liver"] == pytest.approx(scores(0.6, 3, 0.4, 1.5))
    assert strict["per_class"]["spleen"] == pytest.approx(scores(0.3, 8, 0.2, 4))
    undefined = strict["undefined"]
    assert {name: undefined[name] for name in METRICS} == scores(2, 3, 2, 3)
    assert undefined["per_class"] == {"liver": scores(1, 1, 1, 1), "spleen": scores(1, 2, 1, 2)}


def test_each_case_has_its_own_means():
    cases = summarise(results(), ORGANS)["cases"]
    assert [case["name"] for case in cases] == ["a", "b", "c"]
    assert cases[1]["published"]["dice"] == pytest.approx(0.7)
    assert cases[1]["strict"]["dice"] == pytest.approx(0.2)
    assert cases[1]["strict"]["per_class"]["spleen"] == scores(0, None, 0, None)
    assert {name: cases[2]["strict"][name] for name in METRICS} == scores(None, None, None, None)
    assert cases[2]["published"]["dice"] == 0.0


def test_a_summary_is_plain_data_and_the_file_is_json(tmp_path):
    scalar = np.float64(0.5)
    mixed = CaseResult("d", (ClassScores(dict.fromkeys(METRICS, scalar), dict.fromkeys(METRICS, scalar)), MISSED))
    summary = summarise([*results(), mixed], ORGANS)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    report.write_summary(tmp_path / "new" / "summary.json", summary)
    text = (tmp_path / "new" / "summary.json").read_text()
    assert json.loads(text) == summary
    assert text.startswith('{\n  "published": {\n    "dice": ')

    def leaves(node):
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
        return [node] if children is None else [leaf for child in children for leaf in leaves(child)]

    assert {type(leaf) for leaf in leaves(summary)} <= {float, int, str, type(None)}


def test_nothing_defined_at_all():
    summary = summarise([CaseResult("c", (ABSENT, ABSENT))], ORGANS)
    assert summary["strict"]["dice"] is None
    assert summary["strict"]["per_class"]["liver"]["dice"] is None
    assert "-" in report.format_table(summary).splitlines()[-2]


@pytest.mark.parametrize(
    ("cases", "names", "message"),
    [
        ([], ORGANS, "no results"),
        (results(), ("liver",), "a: 2 classes were scored but 1 are named"),
        (results(), ("background", *ORGANS), "without the background"),
        (results(), ("liver", "liver"), "each name once"),
        ([CaseResult("a", ())], (), "0 classes"),
    ],
)
def test_results_and_names_that_do_not_fit_are_refused(cases, names, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        summarise(cases, names)
    with pytest.raises(ValueError, match=message):
        report.write_csv(tmp_path / "per_case.csv", cases, names)
    assert not list(tmp_path.iterdir())


def test_the_table_is_aligned_and_says_what_it_shows():
    lines = report.format_table(summarise(results(), ORGANS)).splitlines()
    assert "HD95 and ASSD in voxels" in lines[0]
    assert "published convention" in lines[1] and "strict convention" in lines[1]
    rows = {line.split()[0]: line for line in lines[2:]}
    assert rows["b"].split() == "b 0.7000 1.00 0.6000 0.50 0.2000 2.00 0.1000 1.00".split()
    assert rows["c"].split()[5:] == ["-"] * 4
    assert rows["spleen"].split()[1:3] == ["0.5333", "2.67"]
    assert rows["mean"].split()[1:] == "0.4667 2.33 0.3667 1.17 0.4500 4.00 0.3000 2.00".split()
    assert len({len(rows[name]) for name in ("a", "b", "c", "liver", "spleen", "mean", "case", "organ")}) == 1
    assert lines[-1].startswith("strict: of 6 figures each, 2 of Dice and 3 of HD95 are undefined")
    assert "in mm" in report.format_table(summarise(results(), ORGANS, unit="mm"))


def test_csv_read_back(tmp_path):
    path = tmp_path / "per_case.csv"
    report.write_csv(path, results(), ORGANS)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [f"{name}_{convention}" for convention in ("published", "strict") for name in METRICS]
    assert list(rows[0]) == ["case", "class", "organ", *columns]
    assert [(row["case"], row["class"], row["organ"]) for row in rows[:3]] == [
        ("a", "1", "liver"),
        ("a", "2", "spleen"),
        ("b", "1", "liver"),
    ]
    assert float(rows[0]["dice_strict"]) == 0.8
    assert (rows[3]["dice_published"], rows[3]["dice_strict"], rows[3]["hd95_strict"]) == ("1.0", "0.0", "")
    assert all(rows[4][f"{name}_strict"] == "" for name in METRICS)


def test_csv_keeps_every_digit_and_quotes_names(tmp_path):
    report.write_csv(tmp_path / "f.csv", [CaseResult('x,"y"', (measured(1 / 3, 2 / 3, 0.1, 0.2),))], ["left, kidney"])
    with (tmp_path / "f.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["case"], row["organ"], float(row["dice_published"])) == ('x,"y"', "left, kidney", 1 / 3)


@pytest.mark.parametrize("existing", [True, False])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch, existing):
    path = tmp_path / "summary.json"
    if existing:
        path.write_text("before")

    def full_disk(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(utils.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        report.write_summary(path, summarise(results(), ORGANS))
    assert [file.read_text() for file in tmp_path.iterdir()] == (["before"] if existing else [])


def volume(depth: int = 5, low: float = -800.0, high: float = 300.0) -> tuple[Volume, np.ndarray]:
    """A case whose slice with most classes is the last but one (of one slice, the only one), and its prediction."""
    rng = np.random.default_rng(0)
    label = np.zeros((depth, 60, 80), np.uint8)
    label[:, 5:50, 5:20] = 1
    rich = max(depth - 2, 0)
    label[rich, 5:20, 30:45], label[rich, 30:50, 50:70] = 2, 3
    image = (low + (high - low) * rng.random(label.shape)).astype(np.float32)
    return Volume("case7", image, label), np.roll(label, 2, axis=2)


NAMES = ("liver", "spleen", "left kidney")


@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-800.0, 300.0), (7.0, 7.0)])
def test_overlay_with_truth_has_three_panels(tmp_path, depth, low, high):
    case, prediction = volume(depth, low, high)
    report.write_overlay(tmp_path / "o.png", case, prediction, NAMES)
    with Image.open(tmp_path / "o.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (1200, 450))
    assert len(list(tmp_path.iterdir())) == 1


def test_overlay_without_truth_has_two_panels(tmp_path):
    case, prediction = volume()
    report.write_overlay(tmp_path / "o.png", Volume("new", case.image), prediction, NAMES)
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.size == (800, 450)


def test_overlay_shows_the_colours_of_the_classes_in_the_slice_and_no_others(tmp_path):
    case, prediction = volume()
    label = np.where(case.label == 2, 0, case.label)
    case = Volume("case7", case.image, label)
    report.write_overlay(tmp_path / "o.png", case, np.where(prediction == 2, 0, prediction), NAMES)
    pixels = np.asarray(Image.open(tmp_path / "o.png").convert("RGB")).reshape(-1, 3)
    legend = {tuple(round(255 * part) for part in report._colour(index)) for index in (1, 2, 3)}
    found = {colour for colour in legend if (pixels == colour).all(axis=1).sum() > 50}
    assert found == legend - {tuple(round(255 * part) for part in report._colour(2))}


@pytest.mark.parametrize("channels", ["first", "last"])
def test_overlay_in_colour_and_with_more_classes_than_named_colours(tmp_path, channels):
    case, prediction = volume()
    image = np.stack([case.image] * 3, axis=1 if channels == "first" else -1)
    names = [f"organ ${index}_" for index in range(1, 31)]
    report.write_overlay(tmp_path / "o.png", Volume("$x^$ 7", image, case.label), prediction * 10, names)
    assert (tmp_path / "o.png").stat().st_size > 10_000


def test_overlay_of_nothing_labelled(tmp_path):
    case, prediction = volume()
    empty = Volume("case7", case.image, np.zeros_like(prediction))
    for predicted in (prediction, np.zeros_like(prediction)):
        report.write_overlay(tmp_path / "o.png", empty, predicted, NAMES)
        with Image.open(tmp_path / "o.png") as picture:
            assert picture.size == (1200, 450)


def test_the_slice_with_most_classes_then_most_voxels():
    labels = np.zeros((5, 4, 4), np.uint8)
    assert report._richest_slice(labels) == 2
    labels[0] = 1
    assert report._richest_slice(labels) == 0
    labels[1, 0, :2], labels[3, 0], labels[3, 1], labels[4, 0, :2] = (1, 2), 1, 2, (1, 2)
    assert report._richest_slice(labels) == 3


def test_colours_differ():
    colours = [report._colour(label) for label in range(1, 41)]
    assert len({tuple(round(255 * part) for part in colour) for colour in colours}) == 40
    assert all(0 <= part <= 1 for colour in colours for part in colour)


def test_overlays_that_do_not_fit_are_refused(tmp_path):
    case, prediction = volume()
    with pytest.raises(ValueError, match=r"case7: the prediction has shape \(4, 60, 80\)"):
        report.write_overlay(tmp_path / "o.png", case, prediction[1:], NAMES)
    with pytest.raises(ValueError, match="case7: the truth has shape"):
        report.write_overlay(tmp_path / "o.png", Volume("case7", case.image, case.label[1:]), prediction, NAMES)
    with pytest.raises(ValueError, match="case7: class 3 occurs but 2 classes are named"):
        report.write_overlay(tmp_path / "o.png", case, prediction, NAMES[:2])
    assert not list(tmp_path.iterdir())


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
    assert not re.search(r"(src|href)=.?(http|/)|url\(|@import", (tmp_path / "report.html").read_text())
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert {"Published convention", "Strict convention", "Synapse", "None"} <= set(page.texts)


def test_html_has_the_figures_and_the_worst_case_first(tmp_path):
    page, _ = write_page(tmp_path)
    texts = [text for text in page.texts if text.strip()]
    assert texts.count("0.4667") == 4  # the headline, both last rows, and the spleen's Jaccard
    start = texts.index("Cases, worst first")
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
    assert "<img" not in (tmp_path / "plain.html").read_text()
    with pytest.raises(FileNotFoundError):
        report.write_html(tmp_path / "missing.html", summary, [tmp_path / "none.png"], {})
    assert not (tmp_path / "missing.html").exists()


def test_from_label_arrays_to_the_summary():
    case, prediction = volume()
    summary = summarise([CaseResult(case.name, compare_classes(prediction, case.label, 4))], NAMES)
    # Class 2 is 15 columns wide and predicted two columns off: 13 of 15 in common.
    assert summary["published"]["per_class"]["spleen"]["dice"] == pytest.approx(13 / 15)
    assert summary["strict"]["undefined"]["hd95"] == 0


@pytest.mark.parametrize("axis_order", ["zxy", "zyx"])
@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (-1, 1)])
def test_an_axial_slice_is_shown_upright(axis_order: str, signs: tuple[int, int]) -> None:
    # The brightest corner is the patient's right anterior: top left to a radiologist. LPS: right is -x, anterior -y.
    x, y = (0 if sign > 0 else -1 for sign in signs)
    plane = np.zeros((4, 6, 3))  # rows y, columns x
    plane[y, x] = 1.0
    direction = (signs[0], 0, 0, 0, signs[1], 0, 0, 0, 1)
    stored = plane if axis_order == "zyx" else plane.swapaxes(0, 1)
    shown = report._upright(stored, Geometry(direction=direction, axis_order=axis_order))
    assert shown.shape == (4, 6, 3) and shown[0, 0, 0] == 1.0


def test_other_slices_are_shown_as_stored() -> None:
    plane = np.random.default_rng(0).random((4, 6, 3))
    assert report._upright(plane, None) is plane
    sagittal = Geometry(direction=(0, 0, 1, 1, 0, 0, 0, 1, 0))
    assert report._upright(plane, sagittal) is plane

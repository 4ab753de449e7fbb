from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

import utils
from evaluation import summary as report
from evaluation.metrics import METRICS, ClassScores, compare_classes
from evaluation.summary import CaseResult, mean_and_spread, summarize
from tests.evaluation.test_overlay import NAMES, volume

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
    published = summarize(results(), ORGANS)["published"]
    # Case means of Dice: (0.8 + 0.6) / 2 = 0.7, (0.4 + 1) / 2 = 0.7, 0. HD95: 6, 1, 0.
    assert published["dice"] == pytest.approx(1.4 / 3)
    assert published["hd95"] == pytest.approx(7 / 3)
    assert published["jaccard"] == pytest.approx((0.5 + 0.6 + 0) / 3)
    assert published["assd"] == pytest.approx((3 + 0.5 + 0) / 3)
    assert published["per_class"]["liver"] == pytest.approx(scores(0.4, 2, 0.8 / 3, 1))
    assert published["per_class"]["spleen"] == pytest.approx(scores(1.6 / 3, 8 / 3, 1.4 / 3, 4 / 3))


def test_strict_means_leave_out_what_is_undefined():
    strict = summarize(results(), ORGANS)["strict"]
    # Case means of Dice: 0.7, (0.4 + 0) / 2 = 0.2, none. HD95: 6, 2 (the liver alone), none.
    assert strict["dice"] == pytest.approx(0.45)
    assert strict["hd95"] == pytest.approx(4)
    assert strict["per_class"]["liver"] == pytest.approx(scores(0.6, 3, 0.4, 1.5))
    assert strict["per_class"]["spleen"] == pytest.approx(scores(0.3, 8, 0.2, 4))
    undefined = strict["undefined"]
    assert {name: undefined[name] for name in METRICS} == scores(2, 3, 2, 3)
    assert undefined["per_class"] == {"liver": scores(1, 1, 1, 1), "spleen": scores(1, 2, 1, 2)}


def test_the_spread_is_that_of_the_cases_means():
    summary = summarize(results(), ORGANS)
    # As above; strictly c has no mean. NumPy's ddof=1 is the sample standard deviation.
    published = {"dice": [0.7, 0.7, 0], "hd95": [6, 1, 0], "jaccard": [0.5, 0.6, 0], "assd": [3, 0.5, 0]}
    strict = {"dice": [0.7, 0.2], "hd95": [6, 2], "jaccard": [0.5, 0.1], "assd": [3, 1]}
    for convention, means in (("published", published), ("strict", strict)):
        expected = {name: np.std(values, ddof=1) for name, values in means.items()}
        assert summary[convention]["std"] == pytest.approx(expected)
    for few in (results()[:1], results()[1:]):  # of b and c, c has no strict mean
        assert summarize(few, ORGANS)["strict"]["std"] == dict.fromkeys(METRICS)
    assert summarize(results()[:1], ORGANS)["published"]["std"] == dict.fromkeys(METRICS)


def test_mean_and_spread_of_rows():
    rows = [{"dice": 0.5, "hd95": None, "jaccard": 0.2, "assd": NAN, "other": "x"}, {**scores(0.7, 3, 0.4, 2)}]
    spread = mean_and_spread(rows)
    assert list(spread) == list(METRICS)
    assert spread["dice"] == {"mean": pytest.approx(0.6), "std": pytest.approx(np.std([0.5, 0.7], ddof=1))}
    assert spread["hd95"] == {"mean": 3.0, "std": None} and spread["assd"] == {"mean": 2.0, "std": None}
    assert mean_and_spread([]) == {name: {"mean": None, "std": None} for name in METRICS}


MM = ("hd95_mm", "assd_mm")


def in_mm() -> list[CaseResult]:
    """The same with distances in mm too: three times those of a, twice that of b's liver."""
    a, b, c = results()
    return [
        CaseResult("a", a.scores, (measured(0.8, 12, 0.6, 6), measured(0.6, 24, 0.4, 12))),
        CaseResult("b", b.scores, (measured(0.4, 4, 0.2, 2), INVENTED)),
        CaseResult("c", c.scores, c.scores),
    ]


def test_distances_in_mm_stand_beside_those_in_voxels():
    plain, summary = summarize(results(), ORGANS), summarize(in_mm(), ORGANS)
    # Case means in mm, published: (12 + 24) / 2 = 18, (4 + 0) / 2 = 2, 0; strict: 18, 4, none.
    assert summary["published"]["hd95_mm"] == pytest.approx(20 / 3)
    assert summary["strict"]["hd95_mm"] == pytest.approx(11)
    assert summary["strict"]["std"]["hd95_mm"] == pytest.approx(np.std([18, 4], ddof=1))
    assert summary["published"]["assd_mm"] == pytest.approx((9 + 1 + 0) / 3)
    assert summary["published"]["per_class"]["liver"]["assd_mm"] == pytest.approx((6 + 2 + 0) / 3)
    assert summary["strict"]["per_class"]["spleen"]["hd95_mm"] == pytest.approx(24)
    assert summary["cases"][1]["published"]["hd95_mm"] == pytest.approx(2)
    assert summary["cases"][1]["strict"]["per_class"]["spleen"]["hd95_mm"] is None

    def without_mm(node):
        if isinstance(node, dict):
            return {key: without_mm(value) for key, value in node.items() if key not in MM}
        return [without_mm(value) for value in node] if isinstance(node, list) else node

    assert without_mm(summary) == plain, "what is in voxels stays as it is"
    assert "hd95_mm" not in json.dumps(plain)


def test_distances_in_mm_only_where_every_case_has_them(tmp_path):
    mixed = [*in_mm()[:2], results()[2]]
    assert summarize(mixed, ORGANS) == summarize(results(), ORGANS)
    report.write_csv(tmp_path / "mixed.csv", mixed, ORGANS)
    report.write_csv(tmp_path / "plain.csv", results(), ORGANS)
    assert (tmp_path / "mixed.csv").read_text() == (tmp_path / "plain.csv").read_text()


def test_distances_in_mm_in_table_and_csv(tmp_path):
    summary = summarize(in_mm(), ORGANS)
    lines = report.format_table(summary).splitlines()
    assert "HD95 and ASSD in voxels, and in mm" in lines[0]
    assert [line.count("HD95 mm") for line in lines[2:]] == [
        2 * line.startswith(("case", "organ")) for line in lines[2:]
    ]
    rows = {line.split()[0]: line for line in lines[2:]}
    assert rows["a"].split()[1:7] == "0.7000 6.00 0.5000 3.00 18.00 9.00".split()
    assert rows["mean"].split()[7:] == "0.4500 4.00 0.3000 2.00 11.00 5.50".split()
    assert rows["std"].split()[11:] == [f"{np.std([18, 4], ddof=1):.2f}", f"{np.std([9, 2], ddof=1):.2f}"]
    assert len({len(rows[name]) for name in ("a", "b", "c", "liver", "spleen", "mean", "std", "case", "organ")}) == 1

    report.write_csv(tmp_path / "per_case.csv", in_mm(), ORGANS)
    with (tmp_path / "per_case.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    columns = [f"{name}_{convention}" for convention in ("published", "strict") for name in (*METRICS, *MM)]
    assert list(cells[0]) == ["case", "class", "organ", *columns]
    assert [float(cells[1][name]) for name in ("hd95_published", "hd95_mm_published", "assd_mm_strict")] == [8, 24, 12]
    assert cells[3]["hd95_mm_strict"] == ""


def test_real_distances_in_mm_are_those_of_the_spacing():
    """One voxel apart along z, of 10 mm: 1 in voxels and 10 in mm."""
    truth, pred = np.zeros((2, 6, 12, 12), np.uint8)
    truth[2:4, 4:8, 4:8], pred[3:5, 4:8, 4:8] = 1, 1
    both = [compare_classes(pred, truth, 2, spacing) for spacing in (None, (10.0, 1.5, 1.5))]
    summary = summarize([CaseResult("a", *both)], ["heart"])
    assert (summary["strict"]["hd95"], summary["strict"]["hd95_mm"]) == (1.0, 10.0)


def test_each_case_has_its_own_means():
    cases = summarize(results(), ORGANS)["cases"]
    assert [case["name"] for case in cases] == ["a", "b", "c"]
    assert cases[1]["published"]["dice"] == pytest.approx(0.7)
    assert cases[1]["strict"]["dice"] == pytest.approx(0.2)
    assert cases[1]["strict"]["per_class"]["spleen"] == scores(0, None, 0, None)
    assert {name: cases[2]["strict"][name] for name in METRICS} == scores(None, None, None, None)
    assert cases[2]["published"]["dice"] == 0.0


def test_a_summary_is_plain_data_and_the_file_is_json(tmp_path):
    scalar = np.float64(0.5)
    mixed = CaseResult("d", (ClassScores(dict.fromkeys(METRICS, scalar), dict.fromkeys(METRICS, scalar)), MISSED))
    summary = summarize([*results(), mixed], ORGANS)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    report.write_json(tmp_path / "summary.json", summary)
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == summary
    assert text.startswith('{\n  "published": {\n    "dice": ')

    def leaves(node):
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
        return [node] if children is None else [leaf for child in children for leaf in leaves(child)]

    assert {type(leaf) for leaf in leaves(summary)} <= {float, int, str, type(None)}


def test_nothing_defined_at_all():
    summary = summarize([CaseResult("c", (ABSENT, ABSENT))], ORGANS)
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
        summarize(cases, names)
    with pytest.raises(ValueError, match=message):
        report.write_csv(tmp_path / "per_case.csv", cases, names)
    assert not list(tmp_path.iterdir())


def test_the_table_is_aligned_and_says_what_it_shows():
    lines = report.format_table(summarize(results(), ORGANS)).splitlines()
    assert "HD95 and ASSD in voxels" in lines[0]
    assert "published convention" in lines[1] and "strict convention" in lines[1]
    rows = {line.split()[0]: line for line in lines[2:]}
    assert rows["b"].split() == "b 0.7000 1.00 0.6000 0.50 0.2000 2.00 0.1000 1.00".split()
    assert rows["c"].split()[5:] == ["-"] * 4
    assert rows["spleen"].split()[1:3] == ["0.5333", "2.67"]
    assert rows["mean"].split()[1:] == "0.4667 2.33 0.3667 1.17 0.4500 4.00 0.3000 2.00".split()
    expected = [f"{np.std(values, ddof=1):.4f}" for values in ([0.7, 0.7, 0], [0.7, 0.2])]
    assert [rows["std"].split()[column] for column in (1, 5)] == expected
    assert len({len(rows[name]) for name in ("a", "b", "c", "liver", "spleen", "mean", "std", "case", "organ")}) == 1
    assert lines[-1].startswith("strict: of 6 values each, 2 of Dice and 3 of HD95 are undefined")
    assert "in mm" in report.format_table(summarize(results(), ORGANS, unit="mm"))


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
        report.write_json(path, summarize(results(), ORGANS))
    assert [file.read_text() for file in tmp_path.iterdir()] == (["before"] if existing else [])


def test_from_label_arrays_to_the_summary():
    case, prediction = volume()
    summary = summarize([CaseResult(case.name, compare_classes(prediction, case.label, 4))], NAMES)
    # Class 2 is 15 columns wide and predicted two columns off: 13 of 15 in common.
    assert summary["published"]["per_class"]["spleen"]["dice"] == pytest.approx(13 / 15)
    assert summary["strict"]["undefined"]["hd95"] == 0

"""Metrics per case, and whole volumes through a network, equal to the published ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.metrics import METHODS, METRICS, compare, compare_classes
from evaluation.predict import predict_volume
from networks import build_network
from tests.reference import golden

ROWS = golden.figures("metrics/percase")["rows"] if golden.available("metrics/percase") else []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_per_case(row: dict, method: str) -> None:
    found = golden.arrays("metrics/percase")
    pred, truth = found[f"{row['name']}__pred"], found[f"{row['name']}__gt"]
    before = pred.copy(), truth.copy()
    assert compare(pred, truth, method=method) == pytest.approx(row["calculate_metric_percase"], rel=1e-9, abs=1e-9)
    older = row.get("assd_mean_of_the_two_asd (medpy <= 0.4 definition)")
    if older is not None:
        assert compare(pred, truth, method=method, assd="directed")["assd"] == pytest.approx(older, rel=1e-9, abs=1e-9)
    for key, recorded in row.items():
        if key.startswith("medpy_voxelspacing_"):
            spacing = [float(number) for number in key.removeprefix("medpy_voxelspacing_").strip("[]").split(",")]
            measured = compare(pred, truth, spacing=spacing, method=method)
            assert {k: measured[k] for k in recorded} == pytest.approx(recorded, rel=1e-9, abs=1e-9), key
    assert (pred == before[0]).all() and (truth == before[1]).all(), "the published code changes its inputs"
    strict = compare(pred, truth, strict=True, method=method)
    if pred.any() and truth.any():
        assert strict == compare(pred, truth, method=method)
    else:
        assert math.isnan(strict["hd95"])


VOLUMES = golden.available(
    *(f"metrics/test_single_volume_{n}" for n in ("swin_nc9_blocks", "swin_nc9_shifted", "unet_hd_nc9_shifted"))
)


@pytest.mark.parametrize("name", VOLUMES)
def test_whole_volume(name: str) -> None:
    figures, found = golden.figures(name), golden.arrays(name)
    network = build_network("swin_unet" if "swin" in name else "unet", num_classes=figures["classes"])
    volume = found["image_u8"].astype(np.float32) / np.float32(255)
    golden.fill_network(network)
    predicted = predict_volume(network, volume, img_size=tuple(figures["patch_size"]), batch_size=4)
    assert (predicted != found["prediction"]).sum() <= 5, "a handful of voxels"
    pair = found["prediction"], found["label"], figures["classes"]
    older = figures["assd_mean_of_the_two_asd (medpy <= 0.4 definition) rows are classes 1.."]
    scores = compare_classes(*pair)
    for ours, published in zip(scores, figures["metric_list_rows_are_classes_1.."], strict=True):
        assert [ours.published[metric] for metric in METRICS] == pytest.approx(published, rel=1e-9, abs=1e-9)
    directed = compare_classes(*pair, assd="directed")
    assert [score.published["assd"] for score in directed] == pytest.approx(older, rel=1e-9, abs=1e-9)
    means = np.mean([[s.published[metric] for metric in METRICS] for s in scores], axis=0)
    assert means.tolist() == pytest.approx(figures["mean_over_classes"], rel=1e-9)

"""KDloss, its terms, Dice and cross-entropy equal to the published ones, draws and gradients included."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from losses import Criterion, DiceLoss, KDloss
from selfreg import inter_fd, intra_fd, kdloss
from tests.reference import golden

DTYPES = {"f64": torch.float64, "f32": torch.float32}


def feature(kind: str, seed: int, shape: list[int]) -> np.ndarray:
    """The recorded kinds of feature maps, float32."""
    a = golden.normal(seed, tuple(shape))
    c = np.arange(shape[1], dtype=np.float32).reshape(1, -1, 1, 1)
    channels = np.float32(shape[1])
    if kind == "mixed":
        return a * (np.float32(0.5) + c / channels) + ((7 * c) % channels / channels - np.float32(0.5))
    if kind in ("relu", "dead"):
        a = np.maximum(a, 0)
    if kind == "dead":
        a[:, ::4] = 0
    return a


def features(case: dict, dtype: torch.dtype) -> dict[str, Tensor]:
    kind, seed = case["feature_kind"], case["feature_seed"] * 1000
    made = {name: feature(kind, seed + i, shape) for i, (name, shape) in enumerate(case["shapes"].items())}
    return {name: torch.from_numpy(f).to(dtype).requires_grad_() for name, f in made.items()}


def stages(found: dict[str, Tensor], part: str) -> list[list[Tensor]]:
    by_stage: dict[str, list[Tensor]] = {}
    for name, value in found.items():
        if name.startswith(f"kd_{part}_"):
            by_stage.setdefault(name.split("_")[2], []).append(value)
    return list(by_stage.values())


def tolerance(dtype: str, value: float, exact: float) -> float:
    return 1e-9 * abs(exact) if dtype == "f64" else max(1e-5 * abs(exact), 10 * abs(value - exact))


def record_terms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Keep the value of every term of semantic consistency, in the order of the random draws."""
    values: list[float] = []
    function = kdloss._inter_fd

    def spy(*args: object) -> list[Tensor]:
        result = function(*args)
        values.extend(term.item() for term in result)
        return result

    monkeypatch.setattr(kdloss, "_inter_fd", spy)
    return values


KD_CASES = list(golden.figures("losses/kdloss")["cases"]) if golden.available("losses/kdloss") else []


@pytest.mark.parametrize("name", KD_CASES)
def test_kdloss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden.figures("losses/kdloss")["cases"][name]
    exact = {run["random_seed"]: run for run in case["runs"] if run["dtype"] == "f64"}
    inter = record_terms(monkeypatch)
    for run in case["runs"]:
        found = features(case, DTYPES[run["dtype"]])
        reference = exact.get(run["random_seed"], run)
        inter.clear()
        random.seed(run["random_seed"])
        loss = KDloss(case["lambda_x"])(stages(found, "encoder"), stages(found, "decoder"), found["final_up"])
        assert random.random() == run["random_random_after"]
        assert loss.item() == pytest.approx(run["loss"], abs=tolerance(run["dtype"], run["loss"], reference["loss"]))
        loss.backward()
        for recorded, ours, theirs in zip(
            reference["inter_terms_in_call_order"], inter, run["inter_terms_in_call_order"], strict=True
        ):
            assert ours == pytest.approx(theirs, abs=tolerance(run["dtype"], theirs, recorded))
        assert found["final_up"].grad is None
        for key, norm in run["grad_norm"].items():
            if norm is not None:
                # Dead channels tie in the sort, and how ties pair is up to the CPU's sort: 6e-4 of a gradient norm.
                dead = case["feature_kind"] == "dead"
                least = (1e-3 if dead else {"f64": 1e-9, "f32": 1e-4}[run["dtype"]]) * norm
                allowed = max(least, tolerance(run["dtype"], norm, reference["grad_norm"][key]))
                assert found[key].grad.norm().item() == pytest.approx(norm, abs=allowed), key


@pytest.mark.parametrize("name", KD_CASES)
def test_intra_terms(name: str) -> None:
    """Each term by itself, on the map that the recorded name stands for: `_d` decoder, `_0` first block."""
    case = golden.figures("losses/kdloss")["cases"][name]
    run = next(run for run in case["runs"] if run["dtype"] == "f64")
    found = features(case, torch.float64)
    encoder, decoder = stages(found, "encoder"), stages(found, "decoder")
    compared = 0
    for term, recorded in zip(case["intra_names"], run["intra_terms_in_call_order"], strict=True):
        part = decoder if "_d" in term else encoder
        block = 0 if term.endswith("_0") else -1
        assert intra_fd(part[int(term[1]) - 1][block]).item() == pytest.approx(recorded, rel=1e-9), term
        compared += 1
    assert compared == len(case["intra_names"])


TERMS = golden.figures("losses/kd_terms")["rows"] if golden.available("losses/kd_terms") else []


@pytest.mark.parametrize("row", TERMS, ids=lambda row: f"{row['op']}_{row['name']}_{row.get('random_seed', '')}")
def test_single_terms(row: dict) -> None:
    for dtype, kind in DTYPES.items():
        made = feature(row.get("feature_kind", "normal"), row["s_input_seed"], row["s_shape"])
        s = torch.from_numpy(made).to(kind).requires_grad_()
        if row["op"] == "intra_fd":
            if row["s_shape"][1] % 2:
                # Published: an obscure error, NaN for one channel, a silent broadcast for three (table of deviations).
                with pytest.raises(ValueError, match=f"C = {row['s_shape'][1]}"):
                    intra_fd(s)
                continue
            value = intra_fd(s)
        else:
            t = golden.image(row["t_input_seed"], tuple(row["t_shape"]), kind).requires_grad_()
            random.seed(row["random_seed"])
            value = inter_fd(s, t)
            random.seed(row["random_seed"])
            channels = s.shape[1], t.shape[1]
            drawn = [random.sample(range(c), min(channels)) for c in channels]
            assert drawn == [row["idx_s"], row["idx_t"]]
        value.backward()
        if row["op"] == "inter_fd":
            assert t.grad is None
        if row[dtype] is None:
            assert "size of tensor" in row["error"], "where the published code fails on non-square maps, ours works"
            continue
        assert value.item() == pytest.approx(row[dtype], abs=tolerance(dtype, row[dtype], row["f64"]))
        norm, exact = row[f"grad_norm_s_{dtype}"], row["grad_norm_s_f64"]
        assert s.grad.norm().item() == pytest.approx(norm, abs=tolerance(dtype, norm, exact))


MIXES = golden.figures("losses/dice_ce")["rows"] if golden.available("losses/dice_ce") else []


def labels_of(row: dict) -> Tensor:
    batch, classes, size, _ = row["shape"]
    rng = golden.generator(row["input_seed"] + 5000)
    y = rng.integers(0, classes, (batch, size, size))
    if row["label_kind"] == "missing_last":
        y[y == classes - 1] = 0
    elif row["label_kind"] == "all_background":
        y[:] = 0
    elif row["label_kind"] == "block":
        y = rng.integers(0, classes, (batch, size // 8, size // 8)).repeat(8, axis=1).repeat(8, axis=2)
    label = torch.from_numpy(y)
    assert int(label.sum()) == row["label_sum"]
    return label.float() if row["label_kind"] == "float" else label


@pytest.mark.parametrize("row", MIXES, ids=lambda row: f"{row['input_seed']}_{row['label_kind']}")
@pytest.mark.parametrize("dtype", DTYPES)
def test_dice_and_cross_entropy(row: dict, dtype: str) -> None:
    label, classes = labels_of(row), row["shape"][1]
    dice = DiceLoss(classes)

    def check(name: str, loss: Callable[[Tensor], Tensor], of: Callable[[Tensor], Tensor] = torch.clone) -> None:
        x = of(golden.image(row["input_seed"], tuple(row["shape"]), DTYPES[dtype])).requires_grad_()
        value = loss(x)
        value.backward()
        rel = 1e-9 if dtype == "f64" else 1e-5
        assert value.item() == pytest.approx(row[f"{name}_{dtype}"], rel=rel), name
        if f"{name}_gradnorm_{dtype}" in row:
            assert x.grad.norm().item() == pytest.approx(row[f"{name}_gradnorm_{dtype}"], rel=10 * rel), name

    check("dice_softmaxTrue", lambda x: dice(x, label, weight=row["weight"], softmax=True))
    check("dice_softmaxFalse", lambda x: dice(x, label, weight=row["weight"]), of=torch.sigmoid)
    check("ce", lambda x: Criterion(classes)(x, label)["ce"])
    if row["weight"] is None:
        for ce in (0.4, 0.3, 0.5):
            mix = Criterion(classes, ce_weight=ce, dice_weight=1 - ce)
            check(f"combo_{ce}_{round(1 - ce, 1)}", lambda x, mix=mix: mix(x, label)["loss"])

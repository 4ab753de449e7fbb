"""Swin-UNet and U-Net equal to the published ones: names, logits, features, the ImageNet start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from networks import build_network, load_weights
from selfreg import FeatureTap
from tests.reference import golden

NETWORKS = {
    "swin_unet_nc9": ("swin_unet", {"drop_path_rate": 0.0}),
    "unet_bilinear_nc9": ("unet", {}),
    "unet_hd_bilinear_nc9": ("unet", {}),
    "unet_hd_convtranspose_nc9": ("unet", {"bilinear": False}),
}
HERE = [name.removeprefix("forward/") for name in golden.available(*(f"forward/{name}" for name in NETWORKS))]


def build(name: str) -> nn.Module:
    network, options = NETWORKS[name]
    return golden.fill_network(build_network(network, num_classes=9, **options))


@pytest.mark.parametrize("name", [n.removeprefix("keys/") for n in golden.available(*(f"keys/{n}" for n in NETWORKS))])
def test_names_shapes_and_order(name: str) -> None:
    state = build(name).state_dict()
    published = golden.published_keys(name)
    assert [(k, list(v.shape)) for k, v in state.items()] == [(e["key"], e["shape"]) for e in published]
    for entry in published:
        if "fill_sum" in entry:
            ours = state[entry["key"]].double()
            assert ours.sum().item() == pytest.approx(entry["fill_sum"], rel=1e-9, abs=1e-9 * entry["fill_abssum"])


def outputs(network: nn.Module, mode: str, shape: list[int], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Logits and features of one pass under the names of the figures."""
    network.train(mode == "train")
    with torch.no_grad():
        logits, features = FeatureTap(network)(golden.image(seed, tuple(shape), dtype))
    found = {"logits": logits, "final_up": features.final}
    for part, stages in (("encoder", features.encoder), ("decoder", features.decoder)):
        for i, stage in enumerate(stages):
            found |= {f"kd_{part}_{i}" + (f"_{j}" if len(stage) > 1 else ""): f for j, f in enumerate(stage)}
    return found


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("name", HERE)
def test_forward(name: str, dtype: str) -> None:
    kind = {"f64": torch.float64, "f32": torch.float32}[dtype]
    recorded, arrays = golden.figures(f"forward/{name}")["outputs"], golden.arrays(f"forward/{name}")
    by_pass: dict[tuple[str, int], list[str]] = {}
    for key, entry in recorded.items():
        by_pass.setdefault((entry["mode"], entry["input_seed"]), []).append(key)
    compared = 0
    for (mode, seed), keys in by_pass.items():
        network = build(name).to(kind)
        found = outputs(network, mode, recorded[keys[0]]["input_shape"], seed, kind)
        for key in keys:
            value = found[key.split("__")[1]]
            assert list(value.shape) == recorded[key]["shape"]
            ours, theirs = golden.sampled(value, arrays, key, dtype)
            if dtype == "f64":
                assert golden.relative(ours, theirs) < 1e-9, key
            else:
                # Batch norm in train mode: float32 itself is off by up to 3.4e-5 there, on another CPU otherwise.
                assert abs(ours - theirs).max() < max(2e-5, recorded[key]["max_abs_f32_minus_f64"]), key
            total, rel = recorded[key][dtype]["abssum"], {"f64": 1e-9, "f32": 1e-4}[dtype]
            assert value.double().abs().sum().item() == pytest.approx(total, rel=rel)
            compared += 1
    assert compared == len(recorded)


def test_imagenet_start(tmp_path: Path) -> None:
    layout = golden.figures("keys/swin_tiny_imagenet_checkpoint_layout")["keys"]
    state = {
        entry["key"]: torch.from_numpy(golden.fill(entry["key"], tuple(entry["shape"]), draw=f"ckpt:{entry['key']}"))
        if entry["dtype"] == "float32"
        else torch.zeros(entry["shape"], dtype=torch.int64)
        for entry in layout
    }
    torch.save({"model": state}, tmp_path / "swin.pth")
    network = build("swin_unet_nc9")
    report = load_weights(network, tmp_path / "swin.pth")
    recorded = golden.figures("keys/swin_unet_nc9_load_from")
    assert len(report.loaded) == recorded["n_loaded"] == 197
    assert set(report.loaded) == set(recorded["loaded"])
    assert list(report.missing) == recorded["model_keys_not_loaded"]
    assert set(report.skipped) == set(recorded["checkpoint_keys_never_used"])
    after = network.state_dict()
    for key, source in recorded["loaded"].items():
        assert torch.equal(after[key], state[source]), key
    for key, (total, absolute) in recorded["after_sum_abssum"].items():
        if key in after:
            assert after[key].double().sum().item() == pytest.approx(total, rel=1e-9, abs=1e-9 * absolute)
            assert after[key].double().abs().sum().item() == pytest.approx(absolute, rel=1e-9)

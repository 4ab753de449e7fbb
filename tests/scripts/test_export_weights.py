"""Exported weights: every published key, loadable strictly there and by name here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs import arguments
from engine.checkpoint import read_checkpoint
from evaluation.inference import find_trained, load_network
from networks import build_network
from scripts import export_weights
from tests.conftest import NETWORK
from tests.reference import golden

KEYS = [name.removeprefix("keys/") for name in golden.available("keys/swin_unet_nc9", "keys/unet_hd_bilinear_nc9")]


@pytest.mark.parametrize("name", KEYS)
def test_every_published_key_shape_and_type(name: str) -> None:
    network = build_network("swin_unet" if name.startswith("swin") else "unet", num_classes=9)
    state = export_weights.published_state(network)
    published = golden.figures(f"keys/{name}")["keys"]
    ours = [(k, list(v.shape), str(v.dtype)) for k, v in state.items()]
    assert sorted(ours) == sorted((e["key"], e["shape"], f"torch.{e['dtype']}") for e in published)
    assert not any(k.endswith("attn_mask") for k in network.state_dict()), "the network itself is left as it was"


def test_masks_and_indices_are_the_published_ones() -> None:
    """In plain loops, for 2 x 2 windows on a 4 x 4 grid, shifted by one."""
    network = build_network("swin_unet", num_classes=2, img_size=32, embed_dim=8, num_heads=(1, 1, 1, 1), window_size=2)
    state = export_weights.published_state(network)
    index = state["swin_unet.layers.0.blocks.0.attn.relative_position_index"]
    cells = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert index.tolist() == [[(a - c + 1) * 3 + (b - d + 1) for c, d in cells] for a, b in cells]
    mask = state["swin_unet.layers.1.blocks.1.attn_mask"]
    region = [0, 0, 1, 2]  # of a row or column: untouched, before the seam of the shift, behind it
    expected = []
    for top in (0, 2):
        for left in (0, 2):
            inside = [(region[top + a], region[left + b]) for a, b in cells]
            expected.append([[0.0 if p == q else -100.0 for q in inside] for p in inside])
    assert mask.tolist() == expected


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", ["own", "published"])
def test_a_run_is_exported(
    trained: tuple, tmp_path: Path, capsys: pytest.CaptureFixture, suffix: str, layout: str
) -> None:
    out = tmp_path / f"out{suffix}"
    assert export_weights.main([str(trained[1]), str(out), "--layout", layout]) == 0
    assert "largest output difference after reloading: 0" in capsys.readouterr().out
    if suffix == ".pth":
        state = torch.load(out, weights_only=True)
        assert any(k.endswith("attn_mask") for k in state) == (layout == "published")


def test_a_folder_predicts_by_itself_and_an_altered_file_is_refused(
    trained: tuple, tmp_path: Path, refused: Callable
) -> None:
    out = tmp_path / "model"
    assert export_weights.main([str(trained[1]), str(out), "--half"]) == 0
    original = read_checkpoint(trained[1] / "best.pth")
    halved = read_checkpoint(out / "weights.safetensors")
    assert all(torch.equal(v, original[k].half() if v.is_floating_point() else original[k]) for k, v in halved.items())
    assert "trained" not in (out / "config.yaml").read_text() and not find_trained(options(out)).config.data.root_path
    load_network(find_trained(options(out)), torch.device("cpu"))
    content = bytearray((out / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "weights.safetensors").write_bytes(content)
    assert "does not match its checksum" in refused(export_weights.main, [out, tmp_path / "out.pth"])


def options(folder: Path) -> argparse.Namespace:
    return arguments.test_parser().parse_args(["--checkpoint", str(folder), "--input", "x"])


def test_bad_input(trained: tuple, tmp_path: Path, refused: Callable) -> None:
    assert "OUT is" in refused(export_weights.main, [trained[1], tmp_path / "out.txt"])
    assert "holds no weights" in refused(export_weights.main, [tmp_path, tmp_path / "out.pth"])
    assert "no such checkpoint" in refused(export_weights.main, [tmp_path / "absent.pth", tmp_path / "out.pth"])
    (tmp_path / "alone").mkdir()
    weights = tmp_path / "alone/w.pth"
    weights.write_bytes((trained[1] / "best.pth").read_bytes())
    assert "is of another network" in refused(export_weights.main, [weights, tmp_path / "out.pth"])
    network = [*NETWORK[2:], "DATA.IMG_SIZE", "32"]
    assert export_weights.main([str(weights), str(tmp_path / "out.pth"), *network]) == 0

"""Every network by its shipped yaml: trained, evaluated, exported and resumed by the commands alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml

import test as test_command
import train as train_command
from configs.config import get_config
from evaluation.inference import network_of
from networks import list_networks
from scripts import export_weights
from tests.networks.small import CONFIGS, small_config


def test_every_network_has_a_yaml() -> None:
    assert set(CONFIGS) == set(list_networks())


@pytest.mark.parametrize("name", list_networks())
def test_by_its_yaml_alone(name: str, synapse: Path, tmp_path: Path) -> None:
    cfg, run = small_config(name, tmp_path), tmp_path / "run"
    where = ["--dataset", "Synapse", "--root_path", str(synapse), "--cfg", str(cfg)]
    assert train_command.main([*where, "--output_dir", str(run), "--val_cases", "1", "--use-checkpoint"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(rows[0][term] > 0 for term in ("loss", "ce", "dice_loss", "scr", "ifd"))
    resumed = [*where, "--output_dir", str(run), "--val_cases", "1", "--resume", "--max_epochs", "2"]
    assert train_command.main(resumed) == 0
    assert test_command.main(["--output_dir", str(run), "--root_path", str(synapse)]) == 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert [case["name"] for case in summary["cases"]] == ["case0100"]
    for out in ("out.pth", "out.safetensors"):
        assert export_weights.main([str(run), str(tmp_path / out)]) == 0


@pytest.mark.parametrize("name", ["swin_unet", "pvt_cascade"])
def test_at_a_size_of_its_own_and_by_sliding_windows(name: str, synapse: Path, tmp_path: Path) -> None:
    cfg, run = small_config(name, tmp_path), tmp_path / "run"
    where = ["--dataset", "Synapse", "--root_path", str(synapse), "--cfg", str(cfg), "--output_dir", str(run)]
    size = ["--img_size", "36", "33"]
    assert train_command.main([*where, *size]) == 0
    found = {}
    for inference in ("zoom", "slide"):
        out = tmp_path / inference
        words = ["--checkpoint", str(run), "--output", str(out), "--inference", inference, "--overlap", "0.25"]
        assert test_command.main(words) == 0
        found[inference] = (out / "predictions/case0100.nii.gz").read_bytes()
        assert f"<td>{inference}</td>" in (out / "report.html").read_text(encoding="utf-8")
    assert found["zoom"] != found["slide"]


def test_a_network_may_start_from_several_files(
    synapse: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As HiFormer does, from a ResNet and a Swin; where only one is there, from that."""
    cfg = small_config("hiformer_s", tmp_path)
    assert [Path(name).name for name in get_config(cfg).model.pretrain_ckpt] == [
        "resnet34.pth",
        "swin_tiny_patch4_window7_224.pth",
    ]
    content = yaml.safe_load(cfg.read_text(encoding="utf-8"))
    content["MODEL"]["PRETRAIN_CKPT"] = [str(tmp_path / name) for name in ("absent.pth", "a.pth", "b.pth")]
    cfg.write_text(yaml.safe_dump(content))
    for name in ("a.pth", "b.pth"):
        torch.save(network_of(get_config(cfg)).state_dict(), tmp_path / name)
    caplog.set_level(logging.INFO)
    words = ["--dataset", "Synapse", "--root_path", str(synapse), "--cfg", str(cfg)]
    assert train_command.main([*words, "--output_dir", str(tmp_path / "run"), "--max_iterations", "1"]) == 0
    said = [message for message in caplog.messages if "ImageNet weights" in message or "tensors loaded" in message]
    log = (tmp_path / "run/log.txt").read_text(encoding="utf-8")
    assert all(message in log for message in said), "the log begins with what was said before its folder was made"
    assert ["absent.pth" in said[0], "a.pth" in said[1], "b.pth" in said[2]] == [True] * 3 and len(said) == 3

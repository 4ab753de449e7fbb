"""The plug-in of nnU-Net: plan, train in 2-D and 3-D by its commands, predict with and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import selfreg.integrations
from tests.own_data import volume

pytest.importorskip("nnunetv2", reason="make test-nnunet")

SHORT = """
from selfreg.integrations.nnunet.nnUNetTrainerSelfReg import nnUNetTrainerSelfReg

class nnUNetTrainerShort(nnUNetTrainerSelfReg):
    lambda_2 = 0.1

    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a data set of six small volumes, planned, and the environment in which nnU-Net finds it."""
    folder = tmp_path_factory.mktemp("nnunet")
    raw, trainers = folder / "raw/Dataset001_Small", folder / "trainers"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    trainers.mkdir()
    (trainers / "short.py").write_text(SHORT)
    for case in range(6):
        image, label = volume(case, (20, 24, 28))
        nib.save(nib.Nifti1Image(image, np.eye(4)), raw / f"imagesTr/case{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), raw / f"labelsTr/case{case}.nii.gz")
    labels = {"background": 0, "one": 1, "two": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    environment = {
        **os.environ,
        **{f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": f"{Path(selfreg.integrations.__file__).parent / 'nnunet'}{os.pathsep}{trainers}",
        "nnUNet_compile": "f",
        "nnUNet_n_proc_DA": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(selfreg.__file__).parent.parent),
        "MPLBACKEND": "agg",
    }
    command(environment, "plan_and_preprocess", "-d", 1, "-c", "2d", "3d_fullres", "-np", 1, 1, "-npfp", 1)
    return folder, environment


def command(environment: dict[str, str], name: str, *words: object) -> str:
    program = Path(sys.executable).parent / f"nnUNetv2_{name}"
    done = subprocess.run([program, *map(str, words)], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_trains_and_predicts(planned: tuple[Path, dict[str, str]], configuration: str) -> None:
    folder, environment = planned
    environment = environment | {"SELFREG_LAMBDA_1": "0.03", "nnUNet_n_proc_DA": "0"}
    out = command(environment, "train", 1, configuration, 0, "-tr", "nnUNetTrainerShort", "-device", "cpu")
    assert "SelfReg, lambda_1 0.03, lambda_2 0.1" in out and "encoder[1][0]" in out
    run = folder / f"results/Dataset001_Small/nnUNetTrainerShort__nnUNetPlans__{configuration}"
    saved = torch.load(run / "fold_0/checkpoint_final.pth", map_location="cpu", weights_only=False)
    assert saved["trainer_name"] == "nnUNetTrainer" and not any("network." in key for key in saved["network_weights"])
    plain = {key: value for key, value in environment.items() if key not in ("nnUNet_extTrainer", "PYTHONPATH")}
    where = ["-i", folder / "raw/Dataset001_Small/imagesTr", "-o", folder / configuration, "-m", run, "-f", 0]
    command(plain, "predict_from_modelfolder", *where, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta")
    masks = sorted((folder / configuration).glob("*.nii.gz"))
    assert [mask.name for mask in masks] == [f"case{case}.nii.gz" for case in range(6)]
    assert nib.load(masks[0]).shape == (20, 24, 28)


def test_a_step_adds_the_regularizer(planned: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, environment = planned
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from selfreg.integrations.nnunet.nnUNetTrainerSelfReg import nnUNetTrainerSelfReg

    plans, dataset = (
        json.loads((folder / f"preprocessed/Dataset001_Small/{name}.json").read_text()) | extra
        for name, extra in (("nnUNetPlans", {"continue_training": False}), ("dataset", {}))
    )
    losses, gradients = {}, {}
    for kind, weights in ((nnUNetTrainer, None), (nnUNetTrainerSelfReg, 0.0), (nnUNetTrainerSelfReg, 0.5)):
        torch.manual_seed(0)
        trainer = kind(dict(plans), "2d", 0, dataset, device=torch.device("cpu"))
        trainer.lambda_1 = trainer.lambda_2 = weights
        trainer.initialize()
        torch.manual_seed(0)
        sides = trainer.configuration_manager.patch_size
        scales = trainer._get_deep_supervision_scales()
        target = [
            torch.randint(3, (2, 1, *(round(s * f) for s, f in zip(sides, scale, strict=True)))) for scale in scales
        ]
        network, loss = trainer.network, trainer.loss
        losses[weights] = float(trainer.train_step({"data": torch.randn(2, 1, *sides), "target": target})["loss"])
        gradients[weights] = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        assert trainer.network is network and trainer.loss is loss and not network._forward_hooks
    assert losses[None] == losses[0.0] < losses[0.5]
    assert all(map(torch.equal, gradients[None], gradients[0.0]))
    assert not all(map(torch.equal, gradients[None], gradients[0.5]))

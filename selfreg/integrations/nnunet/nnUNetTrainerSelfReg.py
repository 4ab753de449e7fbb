"""The trainer of nnU-Net v2 with the regularizer added to its loss; everything else is nnU-Net's.

    export nnUNet_extTrainer=$(python -m selfreg.integrations)
    nnUNetv2_train DATASET 2d 0 -tr nnUNetTrainerSelfReg

`SELFREG_LAMBDA_1` (SCR) and `SELFREG_LAMBDA_2` (IFD) change the weights, as a subclass with other numbers does. What is
left at the end predicts without this package: its checkpoints name nnU-Net's own trainer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from selfreg import KDloss, Tapped, suggest_spec


class nnUNetTrainerSelfReg(nnUNetTrainer):  # noqa: N801 (nnU-Net finds trainers by their names)
    """nnU-Net's trainer, whose network is tapped for the length of each training step."""

    lambda_1 = float(os.environ.get("SELFREG_LAMBDA_1", 0.015))
    lambda_2 = float(os.environ.get("SELFREG_LAMBDA_2", 0.015))

    def initialize(self) -> None:
        """Propose what is regularized, and write it to the log."""
        super().initialize()
        size = self.configuration_manager.patch_size
        spec = suggest_spec(self.network, torch.zeros(1, self.num_input_channels, *size, device=self.device))
        self.print_to_log_file(f"SelfReg, lambda_1 {self.lambda_1}, lambda_2 {self.lambda_2}:\n{spec}")
        self.tapped, self.kd = Tapped(self.network, spec), KDloss(lambda_1=self.lambda_1, lambda_2=self.lambda_2)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step, with the regularizer in its loss."""
        network, loss, tapped = self.network, self.loss, self.tapped

        def regularized(output: Any, target: Any) -> Tensor:
            return loss(output, target) + self.kd(*tapped.features)

        self.network, self.loss = tapped, regularized
        try:
            return super().train_step(batch)
        finally:
            self.network, self.loss, tapped.features = network, loss, None

    def on_train_end(self) -> None:
        """Name nnU-Net's own trainer in the checkpoints: they hold the network alone."""
        super().on_train_end()
        for path in Path(self.output_folder).glob("checkpoint_*.pth") if self.local_rank == 0 else ():
            content = torch.load(path, map_location="cpu", weights_only=False)
            torch.save(content | {"trainer_name": nnUNetTrainer.__name__}, path)

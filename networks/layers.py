"""Layers that several of the published networks have under the same parameter names."""

from __future__ import annotations

from timm.layers import Mlp as TimmMlp
from torch import nn


class Mlp(TimmMlp):
    """Two linear layers `fc1` and `fc2` with GELU between and dropout after both, initialised as by TransUNet."""

    def __init__(self, width: int, hidden: int, drop_rate: float) -> None:
        super().__init__(width, hidden, drop=drop_rate)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

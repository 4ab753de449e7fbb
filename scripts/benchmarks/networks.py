"""The row on every network: its size, its arithmetic, and a training step with the regulariser against one without."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from networks import list_networks
from scripts.benchmarks.inputs import Settings, our_network, resident_batch
from scripts.benchmarks.measure import Apart, Figure, in_turn
from scripts.benchmarks.training import ours


def networks(settings: Settings) -> list[Figure]:
    """A figure a network; its times are those of a step with the regulariser and without."""
    figures = []
    for name in list_networks():
        parameters, operations = size_of(settings, name)
        with (
            Apart(ours, settings, True, "float32", False, name, device=settings.device) as regularised,
            Apart(ours, settings, False, "float32", False, name, device=settings.device) as plain,
        ):
            times = in_turn(regularised, plain, settings.rounds)
        what = f"{name} {settings.img_size}, step of batch {settings.batch}, with the regulariser to without"
        note = f"{parameters / 1e6:.1f} M parameters, {operations / 1e9:.1f} GFLOP forward a slice"
        figures.append(Figure(what, 1 / times.ratio, "x", ours=times.ours, other=times.other, note=note))
    return figures


def size_of(settings: Settings, name: str) -> tuple[int, int]:
    """Parameters, and floating-point operations of one slice's forward pass (a product and a sum count two)."""
    one_slice = replace(settings, device="cpu", batch=1)
    network, image = our_network(one_slice, name).eval(), resident_batch(one_slice).image
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()

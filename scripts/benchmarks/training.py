"""Rows on training steps: ours against the naive ones, what the regulariser and the loader add, arithmetic reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from datasets.loading import TrainingLoader, build_loader
from scripts.benchmarks.inputs import Settings, on_one_batch, our_step, reference_step, resident_batch, slice_files
from scripts.benchmarks.measure import Apart, Figure, Pair, here, in_turn, repeat

_BATCHES_AN_EPOCH = 4
_WORKERS = (0, 1, 2)
# On a GPU a product of 2048 takes as long as its start.
_GEMM_SIDES = {"cpu": 2048, "cuda": 8192}


def ours(
    settings: Settings,
    kd: bool = True,
    precision: str = "float32",
    compiled: bool = False,
    name: str = "swin_unet",
) -> Callable[[], None]:
    """Our steps on one batch, ready to be called."""
    step = our_step(settings, name=name, kd=kd, precision=precision, compiled=compiled)
    return on_one_batch(settings, step, settings.steps)


def naive(settings: Settings) -> Callable[[], None]:
    """The naive steps on the same batch."""
    return on_one_batch(settings, reference_step(settings), settings.steps)


def _against_naive(settings: Settings, precision: str) -> Pair:
    device = settings.device
    with Apart(ours, settings, True, precision, device=device) as one, Apart(naive, settings, device=device) as other:
        return in_turn(one, other, settings.rounds)


def described(settings: Settings) -> str:
    """For the table."""
    return f"step of SelfReg Swin-UNet {settings.img_size}, batch {settings.batch}"


def step(settings: Settings) -> list[Figure]:
    """A training step in float32 against the naive one."""
    times = _against_naive(settings, "float32")
    return [times.speed_up(f"{described(settings)}, float32, against the naive one", at_least=1.25)]


def step_bf16(settings: Settings) -> list[Figure]:
    """A training step under bfloat16 autocast against the naive one in float32."""
    times = _against_naive(settings, "bfloat16")
    return [times.speed_up(f"{described(settings)}, bfloat16, against the naive one in float32", at_least=2.5)]


def regulariser(settings: Settings, at_most: float = 1.04) -> list[Figure]:
    """What the regulariser adds to our own step, in time and in memory."""
    device = settings.device
    with Apart(ours, settings, True, device=device) as with_kd, Apart(ours, settings, False, device=device) as without:
        times = in_turn(with_kd, without, settings.rounds)
        peaks = with_kd.peak(), without.peak()
    note = f"{peaks[0].gb:.3f} GB with, {peaks[1].gb:.3f} GB without"
    return [
        times.overhead(f"{described(settings)}, with the regulariser to without", at_most=at_most),
        Figure("peak memory, with to without", peaks[0].most / peaks[1].most, "x", at_most=1.05, note=note),
    ]


def loader(settings: Settings) -> list[Figure]:
    """An epoch of steps fed by the loader, against as many steps on one batch that is there."""
    dataset, step = slice_files(settings, _BATCHES_AN_EPOCH * settings.batch), our_step(settings)
    resident = on_one_batch(settings, step, _BATCHES_AN_EPOCH)
    figures = []
    for workers in _WORKERS:
        fed = epochs(our_loader(settings, dataset, workers), step)
        times = in_turn(here(fed, settings.device), here(resident, settings.device), settings.rounds)
        what = f"{_BATCHES_AN_EPOCH} x {described(settings)}, {workers} workers, to a batch that is there"
        figures.append(times.overhead(what, at_most=1.05, note=f"slices of {settings.side} x {settings.side}"))
    return figures


def our_loader(settings: Settings, dataset: torch.utils.data.Dataset, workers: int) -> TrainingLoader:
    """The training loader as train.py builds it."""
    return build_loader(
        dataset,
        size=settings.size,
        batch_size=settings.batch,
        seed=0,
        device=settings.device,
        workers=workers,
    )


def epochs(loader: TrainingLoader, step: Callable[..., torch.Tensor]) -> Callable[[], None]:
    """Each call is the next epoch."""

    def run() -> None:
        for batch in loader:
            step(batch.image, batch.label)
        loader.sampler.epoch += 1

    return run


def gemm_peak(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a large matrix product, the fastest of several."""
    side = _GEMM_SIDES[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / repeat(here(lambda: a @ b, device), 10).low


def operations(settings: Settings) -> int:
    """Floating-point operations of a training step, counted on the naive network, which writes every product out."""
    one_slice = replace(settings, device="cpu", batch=1)
    batch, step = resident_batch(one_slice), reference_step(one_slice)
    with FlopCounterMode(display=False) as counter:
        step(*batch)
    return counter.get_total_flops() * settings.batch


def flops(settings: Settings) -> list[Figure]:
    """How much of the arithmetic of a large matrix product a training step reaches."""
    needed, figures = operations(settings), []
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        peak = gemm_peak(dtype, settings.device)
        time = repeat(here(ours(settings, precision=precision), settings.device), settings.rounds)
        reached = needed * settings.steps / time.median
        note = f"{needed / 1e9:.1f} GFLOP a step; {reached / 1e9:.1f} of {peak / 1e9:.1f} GFLOP/s"
        what = f"{described(settings)}, share of the speed of a {precision} product"
        figures.append(Figure(what, reached / peak, ours=time, note=note))
    return figures

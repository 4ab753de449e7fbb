"""The learning rate against the published one, its warm-up, and how long a run is."""

from __future__ import annotations

import pytest

from trainer import Schedule


def test_rate_as_published() -> None:
    schedule = Schedule(epochs=4, steps_per_epoch=5, base_lr=0.05)
    rates = [schedule.lr_after(-1)] + [schedule.lr_after(n) for n in range(4)]
    # The schedule, and the recorded rates of the published code.
    assert rates == pytest.approx(
        [0.05, 0.05, 0.047744269081074986, 0.045476628804148114, 0.05 * (1 - 3 / 20) ** 0.9], rel=1e-15
    )
    assert Schedule(4, 5, 0.05, power=0).lr_after(20) == 0.05
    assert Schedule(4, 5, 0.05, max_steps=7).total_steps == 7


def test_warm_up() -> None:
    schedule = Schedule(epochs=1, steps_per_epoch=100, base_lr=0.4, warmup_steps=3)
    rates = [schedule.lr_after(n) for n in range(-1, 4)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[3] == pytest.approx(0.4 * 0.98**0.9)

"""Options of a network that are impossible whatever the others are; each is refused by a ValueError that names it."""

from __future__ import annotations

from collections.abc import Sequence

_WORDS = {2: "two", 3: "three", 4: "four"}


def check_counts(network: str, **options: int) -> None:
    """Whole numbers above 0."""
    for option, count in options.items():
        if count < 1:
            raise ValueError(f"{network}: {option} is {count}; expected a whole number above 0")


def check_even(network: str, **options: int) -> None:
    """Widths of maps whose halves the regulariser compares: even numbers above 0."""
    for option, width in options.items():
        if width < 2 or width % 2:
            raise ValueError(f"{network}: {option} is {width}; expected an even number above 0")


def check_rates(network: str, **options: float) -> None:
    """Dropout and stochastic depth: from 0 to below 1."""
    for option, rate in options.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{network}: {option} is {rate}; expected a number from 0 to below 1")


def check_stages(network: str, stages: int, **options: Sequence[float]) -> None:
    """Numbers above 0, one a stage."""
    for option, values in options.items():
        if len(values) != stages or min(values) <= 0:
            count = _WORDS[stages]
            raise ValueError(f"{network}: {option} is {tuple(values)}; expected {count} numbers above 0, one a stage")

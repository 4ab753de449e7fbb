"""Checks of a network's options: an impossible value is refused by a ValueError that names network and option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_range(network: str, option: str, value: Any) -> None:
    """What every network wants: rates from 0 to below 1, and other numbers, alone or one a stage, above 0."""
    numbers = value if isinstance(value, Sequence) else [value]
    if option.endswith("_rate"):
        fits, expected = 0 <= value < 1, "a number from 0 to below 1"
    else:
        fits, expected = all(number > 0 for number in numbers), "more than 0"
    if not fits:
        raise ValueError(f"{network}: {option} is {value}; expected {expected}")


def check_multiple(network: str, divisor: int, **options: int | Sequence[int]) -> None:
    """Multiples of a divisor. Widths that are tapped must be even: IFD compares their halves."""
    for option, value in options.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if any(number % divisor for number in numbers):
            raise ValueError(f"{network}: {option} is {value}; expected multiples of {divisor}")


def check_stages(network: str, stages: int, **options: Sequence[float]) -> None:
    """One number for each of the stages."""
    for option, values in options.items():
        if len(values) != stages:
            raise ValueError(f"{network}: {option} is {tuple(values)}; expected {stages} numbers, one a stage")


def check_divides(network: str, option: str, divisors: Sequence[int], of: str, widths: Sequence[int]) -> None:
    """Attention heads or groups, `option`, that divide the widths that the option `of` gives, stage by stage."""
    if len(divisors) != len(widths) or any(width % n for n, width in zip(divisors, widths, strict=True)):
        raise ValueError(f"{network}: {option} is {tuple(divisors)}; expected divisors of {tuple(widths)}, set by {of}")

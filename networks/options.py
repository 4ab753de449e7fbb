"""Checks of a network's options: an impossible value is refused by a ValueError that names network and option."""

from __future__ import annotations

from collections.abc import Sequence


def check_multiple(network: str, divisor: int = 1, **options: int | Sequence[int]) -> None:
    """Whole numbers above 0 that `divisor` divides. Widths that are tapped must be even: IFD compares their halves."""
    expected = "whole numbers above 0" if divisor == 1 else f"multiples of {divisor} above 0"
    for option, value in options.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if any(number < 1 or number % divisor for number in numbers):
            raise ValueError(f"{network}: {option} is {value}; expected {expected}")


def check_positive(network: str, **options: float) -> None:
    """Numbers above 0."""
    for option, value in options.items():
        if not value > 0:
            raise ValueError(f"{network}: {option} is {value}; expected a number above 0")


def check_stages(network: str, stages: int, **options: Sequence[float]) -> None:
    """Numbers above 0, one for each of the stages."""
    for option, values in options.items():
        if len(values) != stages or min(values) <= 0:
            raise ValueError(f"{network}: {option} is {tuple(values)}; expected {stages} numbers above 0, one a stage")


def check_rates(network: str, **options: float) -> None:
    """Dropout and stochastic depth: from 0 to below 1."""
    for option, rate in options.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{network}: {option} is {rate}; expected a number from 0 to below 1")


def check_divides(network: str, option: str, divisors: Sequence[int], of: str, widths: Sequence[int]) -> None:
    """Attention heads or groups, `option`, that divide the widths that the option `of` gives, stage by stage."""
    if any(width % divisor for divisor, width in zip(divisors, widths, strict=True)):
        raise ValueError(
            f"{network}: {option} is {tuple(divisors)}; expected divisors of the widths {tuple(widths)}: "
            f"change {option} or {of}"
        )

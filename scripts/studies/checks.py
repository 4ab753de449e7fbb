"""What a study's results have to hold for the tables to be computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.metrics import OVERLAPS
from evaluation.plain_json import is_number
from scripts.studies.plan import Cell, Run, Study

_LOWEST = -1.0  # of a correlation or cosine


def check_runs(runs: Sequence[Mapping[str, Any]], study: Study, numbers: Sequence[str]) -> None:
    """Make sure that every run is of the grid, once, and holds what is reported of it, `numbers` of each layer too.

    Raises:
        ValueError: something is amiss; the run is named by its place.
        KeyError, TypeError, AttributeError: something is missing or of another type altogether.
    """
    left = set(study.runs())
    layers: dict[str, list[tuple[Any, ...]]] = {}
    for place, run in enumerate(runs):
        fault = next(_faults(run, numbers), None)
        if fault:
            raise ValueError(f"runs, number {place}: {fault}; expected what study.py writes")
        which = Run(Cell(run["network"], run["lambda_1"], run["lambda_2"]), run["seed"], run["fold"])
        if which not in left:
            raise ValueError(f"runs, number {place}: {which.folder} is not of the grid, or twice; expected each once")
        left.remove(which)
        own = [(layer["layer"], layer["module"], layer["channels"]) for layer in run["layers"]]
        if own != layers.setdefault(run["network"], own):
            raise ValueError(
                f"runs, number {place}: its layers are not those of the other runs of {run['network']}; expected the "
                "same network in all"
            )


def _faults(run: Mapping[str, Any], numbers: Sequence[str]) -> Iterator[str]:
    if not isinstance(run["network"], str):
        yield f"network is {run['network']!r}"
    for key in ("lambda_1", "lambda_2"):
        if not is_number(run[key]):
            yield f"{key} is {run[key]!r}"
    if type(run["seed"]) is not int or type(run["fold"]) not in (int, type(None)):
        yield f"seed is {run['seed']!r} and fold {run['fold']!r}"
    if run["validation"] is not None and not is_number(run["validation"]["dice"], highest=1.0):
        yield f"validation is {run['validation']!r}"
    for step, seconds in run["seconds"].items():
        if not is_number(seconds):
            yield f"the seconds of {step} are {seconds!r}"
    if not run["cases"] or not run["layers"]:
        yield "it has no cases, or no layers"
    for name, case in run["cases"].items():
        for metric in OVERLAPS:
            if not is_number(case["published"][metric], highest=1.0):
                yield f"{name}: {metric} is {case['published'][metric]!r}"
    for layer in run["layers"]:
        yield from _faults_of_layer(layer, numbers)


def _faults_of_layer(layer: Mapping[str, Any], numbers: Sequence[str]) -> Iterator[str]:
    if type(layer["channels"]) is not int or not all(isinstance(layer[key], str) for key in ("layer", "module")):
        yield f"a layer is {layer['layer']!r}, {layer['module']!r} of {layer['channels']!r} channels"
    for key in numbers:
        value = layer[key]["all"] if isinstance(layer[key], Mapping) else layer[key]
        if value is not None and not is_number(value, lowest=_LOWEST):
            yield f"layer {layer['layer']}: {key} is {value!r}"

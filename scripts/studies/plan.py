"""The plan of a study: a yaml, read and checked, and its grid of runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.config import get_config, to_dict
from configs.plain_yaml import read_yaml
from configs.schema import Config
from evaluation.summary import is_number

_NAME = re.compile(r"\w[\w.-]*")
_KEYS = {
    "title": "",
    "networks": {},
    "lambda_1": [],
    "lambda_2": [],
    "lambda_x": [],
    "seeds": [],
    "folds": 0,
    "min_seeds": 0,
    "opts": {},
}
_GRID = {
    **{"SEED": "seeds", "LOSS.LAMBDA_1": "lambda_1", "LOSS.LAMBDA_2": "lambda_2"},
    **{"DATA.FOLDS": "folds", "DATA.FOLD": "folds"},
}
_NETWORK_KEYS = {"cfg": "", "opts": {}, "published": []}
_KINDS = {str: "text", dict: "section of keys", list: "list", int: "whole number"}
_MOST_RUNS = 10_000  # checking them all takes a minute


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: its runs differ in their seeds and folds only."""

    network: str
    lambda_1: float
    lambda_2: float

    def __str__(self) -> str:
        return f"{self.network}, lambda_1 {self.lambda_1:g}, lambda_2 {self.lambda_2:g}"

    @property
    def baseline(self) -> Cell:
        """The same network without the regularizer."""
        return Cell(self.network, 0.0, 0.0)


@dataclass(frozen=True)
class Run:
    """One training of the grid and its test."""

    cell: Cell
    seed: int
    fold: int | None = None

    @property
    def folder(self) -> Path:
        """Its path in the folder of the study."""
        weights = f"lambda_{self.cell.lambda_1:g}_{self.cell.lambda_2:g}"
        path = Path(self.cell.network) / weights / f"seed_{self.seed}"
        return path if self.fold is None else path / f"fold_{self.fold}"


@dataclass(frozen=True)
class Study:
    """A grid of runs: `networks` by pairs of weights by `seeds` by `folds`.

    A network has its `cfg`, `opts` and, as rows lambda_1, lambda_2, Dice in per cent, `published`. `min_seeds` is how
    many seeds a cell must have to be reported, all of them where the yaml does not say.
    """

    title: str
    networks: Mapping[str, Mapping[str, Any]]
    weights: tuple[tuple[float, float], ...]
    seeds: tuple[int, ...]
    folds: int
    min_seeds: int
    opts: Mapping[str, Any]

    def cells(self) -> list[Cell]:
        """All cells, those of a network together."""
        return [Cell(network, *pair) for network in self.networks for pair in self.weights]

    def runs(self) -> Iterator[Run]:
        """All runs; every cell has its first seed before any has its second."""
        for seed in self.seeds:
            for fold in range(self.folds) if self.folds else (None,):
                for cell in self.cells():
                    yield Run(cell, seed, fold)

    def settings(self, run: Run) -> dict[str, Any]:
        """The settings of a run on top of its network's yaml, by configuration key."""
        weights = {"LOSS.LAMBDA_1": run.cell.lambda_1, "LOSS.LAMBDA_2": run.cell.lambda_2}
        folds = {} if run.fold is None else {"DATA.FOLDS": self.folds, "DATA.FOLD": run.fold}
        return {**self.opts, **self.networks[run.cell.network]["opts"], **weights, "SEED": run.seed, **folds}

    def config(self, run: Run) -> Config:
        """The configuration of a run.

        Raises:
            ValueError, FileNotFoundError: as `configs.config.get_config`.
        """
        return get_config(self.networks[run.cell.network]["cfg"], overrides=self.settings(run))

    def published(self, cell: Cell) -> float | None:
        """The published Dice of a cell, in per cent, where there is one."""
        for lambda_1, lambda_2, dice in self.networks[cell.network]["published"]:
            if (lambda_1, lambda_2) == (cell.lambda_1, cell.lambda_2):
                return dice
        return None


def read_study(path: Path, opts: Sequence[str] = ()) -> tuple[Study, dict[str, Any]]:
    """The study in a yaml, every configuration of its grid checked, and the yaml as plain data.

    `opts`, KEY VALUE ..., are added to those of the yaml for all networks.

    Raises:
        FileNotFoundError: the yaml, or one that it names, is not there.
        ValueError: an unknown key, a value that cannot be used, or a grid without runs; the key is named.
    """
    content = read_yaml(path)
    if opts:
        _checked(content, _KEYS, str(path))
        values = to_dict(get_config(opts=opts))
        own = {}
        for key in opts[::2]:
            value: Any = values
            for part in key.split("."):
                value = value[part]
            own[key] = value
        content = content | {"opts": content.get("opts", {}) | own}
    return as_study(content, str(path)), content


def as_study(content: object, source: str) -> Study:
    """The study of a yaml's content; messages begin with `source`.

    Raises:
        ValueError, FileNotFoundError: as `read_study`.
    """
    given = _checked(content, _KEYS, source)
    networks = {
        name: _checked(network, _NETWORK_KEYS, f"{source}: networks: {name}")
        for name, network in given["networks"].items()
    }
    study = Study(
        given["title"],
        networks,
        _weights(given, source),
        tuple(given["seeds"]),
        given["folds"],
        given["min_seeds"] if "min_seeds" in content else len(given["seeds"]),
        given["opts"],
    )
    _check(study, source)
    return study


def _checked(content: object, keys: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A mapping with the keys that there are, each of the type of its default; those left out have that."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{source}: holds {content!r}; expected the keys {', '.join(keys)}")
    for key, value in content.items():
        if key not in keys:
            close = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected some of {', '.join(keys)}"
            raise ValueError(f"{source}: unknown key {key!r}; {hint}")
        if type(value) is not type(keys[key]):
            raise ValueError(f"{source}: {key} is {value!r}; expected a {_KINDS[type(keys[key])]}")
    return {**keys, **content}


def _weights(given: Mapping[str, Any], source: str) -> tuple[tuple[float, float], ...]:
    """Every lambda_1 with every lambda_2, and each lambda_x as both."""
    for key in ("lambda_1", "lambda_2", "lambda_x"):
        if not all(map(is_number, given[key])):
            raise ValueError(f"{source}: {key} is {given[key]}; expected a list of finite numbers of at least 0")
    if bool(given["lambda_1"]) != bool(given["lambda_2"]):
        raise ValueError(f"{source}: lambda_1 is {given['lambda_1']} and lambda_2 {given['lambda_2']}; expected both")
    crossed = [(first, second) for first in given["lambda_1"] for second in given["lambda_2"]]
    pairs = [*crossed, *((both, both) for both in given["lambda_x"])]
    return tuple(dict.fromkeys((float(first), float(second)) for first, second in pairs))


def _check_opts(opts: Mapping[str, Any], source: str) -> None:
    for key, value in opts.items():
        if key in _GRID:
            raise ValueError(f"{source}: opts: {key} is what the grid sets; expected it in {_GRID[key]}")
        if not isinstance(key, str) or value is None or isinstance(value, Mapping):
            raise ValueError(f"{source}: opts: {key!r} is {value!r}; expected values by dotted keys: TRAIN.EPOCHS: 60")


def _check(study: Study, source: str) -> None:
    _check_opts(study.opts, source)
    if not study.networks or not study.weights or not study.seeds:
        raise ValueError(
            f"{source}: there are no runs; expected networks, seeds, and lambda_1 with lambda_2 or lambda_x, none empty"
        )
    if not all(type(seed) is int for seed in study.seeds) or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f"{source}: seeds is {list(study.seeds)}; expected whole numbers, each once")
    if not 1 <= study.min_seeds <= len(study.seeds):
        raise ValueError(
            f"{source}: min_seeds is {study.min_seeds} but there are {len(study.seeds)} seeds; expected 1 to that many"
        )
    for name, network in study.networks.items():
        _check_network(name, network, f"{source}: networks: {name}")
    _check_runs(study, source)


def _check_network(name: object, network: Mapping[str, Any], source: str) -> None:
    _check_opts(network["opts"], source)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{source}: its name is that of a folder; expected letters, digits, _, - and . as text")
    if not network["cfg"]:
        raise ValueError(f"{source}: cfg is missing; expected a yaml such as configs/unet_224.yaml")
    for row in network["published"]:
        if not isinstance(row, list) or len(row) != 3 or not all(map(is_number, row)):
            raise ValueError(f"{source}: published has {row!r}; expected [lambda_1, lambda_2, Dice in %]")


def _check_runs(study: Study, source: str) -> None:
    if study.folds < 0 or study.folds == 1:
        raise ValueError(f"{source}: folds is {study.folds}; expected 2 or more, or 0 for the data set's own split")
    count = len(study.cells()) * len(study.seeds) * max(1, study.folds)
    if count > _MOST_RUNS:
        raise ValueError(f"{source}: there are {count} runs; expected {_MOST_RUNS} at most")
    folders: dict[Path, Run] = {}
    for run in study.runs():
        if folders.setdefault(run.folder, run) != run:
            raise ValueError(
                f"{source}: {run.folder} is the folder of two runs; expected weights of six digits at most"
            )
        try:
            study.config(run)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{source}: {run.cell}: {error}") from None

"""The plan of a study: a yaml, read and checked, and its grid of runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TypeVar

from configs.config import get_config, leaves, to_dict
from configs.plain_yaml import read_yaml
from configs.schema import Config
from evaluation.summary import is_number

Keys = TypeVar("Keys", "Study", "Network")

_NAME = re.compile(r"\w[\w.-]*")
_GRID = {  # configuration keys that the grid sets, and by which of its own
    **{"SEED": "seeds", "LOSS.LAMBDA_1": "lambda_1", "LOSS.LAMBDA_2": "lambda_2"},
    **{"DATA.FOLDS": "folds", "DATA.FOLD": "folds"},
}


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
class Network:
    """A network of the grid: its yaml, settings on top of it, and published rows of lambda_1, lambda_2, Dice in %."""

    cfg: str = ""
    opts: dict[str, object] = field(default_factory=dict)
    published: list[list[float]] = field(default_factory=list)

    def faults(self) -> Iterator[str]:
        """What is wrong with it."""
        yield from _faults_of_opts(self.opts)
        if not self.cfg:
            yield "cfg is missing; expected a yaml such as configs/unet_224.yaml"
        for row in self.published:
            if not isinstance(row, list) or len(row) != 3 or not all(map(is_number, row)):
                yield f"published has {row!r}; expected [lambda_1, lambda_2, Dice in %]"


@dataclass(frozen=True)
class Study:
    """A grid of runs: networks by pairs of weights by seeds by folds; the fields are the keys of its yaml."""

    title: str = ""
    networks: dict[str, Network] = field(default_factory=dict)
    lambda_1: list[float] = field(default_factory=list)  # each with every lambda_2
    lambda_2: list[float] = field(default_factory=list)
    lambda_x: list[float] = field(default_factory=list)  # each as both
    seeds: list[int] = field(default_factory=list)
    folds: int = 0
    min_seeds: int = 0  # that a cell must have to be reported; 0: all
    opts: dict[str, object] = field(default_factory=dict)

    @property
    def weights(self) -> list[tuple[float, float]]:
        """The pairs of lambda_1 and lambda_2, each once."""
        pairs = [*product(self.lambda_1, self.lambda_2), *((both, both) for both in self.lambda_x)]
        return list(dict.fromkeys((float(first), float(second)) for first, second in pairs))

    def cells(self) -> list[Cell]:
        """All cells, those of a network together."""
        return [Cell(network, *pair) for network in self.networks for pair in self.weights]

    def runs(self) -> list[Run]:
        """All runs; every cell has its first seed before any has its second."""
        folds = range(self.folds) if self.folds else (None,)
        return [Run(cell, seed, fold) for seed in self.seeds for fold in folds for cell in self.cells()]

    def settings(self, run: Run) -> dict[str, object]:
        """The settings of a run on top of its network's yaml, by configuration key."""
        weights = {"LOSS.LAMBDA_1": run.cell.lambda_1, "LOSS.LAMBDA_2": run.cell.lambda_2}
        folds = {} if run.fold is None else {"DATA.FOLDS": self.folds, "DATA.FOLD": run.fold}
        return {**self.opts, **self.networks[run.cell.network].opts, **weights, "SEED": run.seed, **folds}

    def config(self, run: Run) -> Config:
        """The configuration of a run; raises as `configs.config.get_config`."""
        return get_config(self.networks[run.cell.network].cfg, overrides=self.settings(run))

    def published(self, cell: Cell) -> float | None:
        """The published Dice of a cell, in per cent, where there is one."""
        rows = self.networks[cell.network].published
        return next((dice for *weights, dice in rows if weights == [cell.lambda_1, cell.lambda_2]), None)

    def published_gain(self, cell: Cell) -> float | None:
        """The published difference of a cell to its baseline, in points."""
        own, plain = self.published(cell), self.published(cell.baseline)
        return None if own is None or plain is None or cell == cell.baseline else own - plain

    def faults(self) -> Iterator[str]:
        """What is wrong with it; what comes later takes for granted that nothing came before."""
        for key in ("lambda_1", "lambda_2", "lambda_x"):
            if not all(map(is_number, getattr(self, key))):
                yield f"{key} is {getattr(self, key)}; expected a list of finite numbers of at least 0"
        if bool(self.lambda_1) != bool(self.lambda_2):
            yield f"lambda_1 is {self.lambda_1} and lambda_2 {self.lambda_2}; expected both"
        if not self.networks or not self.weights or not self.seeds:
            yield "there are no runs; expected networks, seeds, and lambda_1 with lambda_2 or lambda_x, none empty"
        if not all(type(seed) is int for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            yield f"seeds is {self.seeds}; expected whole numbers, each once"
        if not 1 <= self.min_seeds <= len(self.seeds):
            yield f"min_seeds is {self.min_seeds} but there are {len(self.seeds)} seeds; expected 1 to that many"
        if self.folds < 0 or self.folds == 1:
            yield f"folds is {self.folds}; expected 2 or more, or 0 for the data set's own split"
        yield from _faults_of_opts(self.opts)
        for name, network in self.networks.items():
            yield from (f"networks: {name}: {fault}" for fault in network.faults())
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                yield f"networks: {name}: its name is that of a folder; expected letters, digits, _, - and . as text"
        folders: dict[Path, Run] = {}
        for run in self.runs():
            if folders.setdefault(run.folder, run) != run:
                yield f"{run.folder} is the folder of two runs; expected weights of six digits at most"
            try:
                self.config(run)
            except (ValueError, FileNotFoundError) as error:
                yield f"{run.cell}: {error}"


def read_study(path: Path, opts: Sequence[str] = ()) -> tuple[Study, dict[str, object]]:
    """The study in a yaml, every configuration of its grid checked, and the yaml as plain data.

    `opts`, KEY VALUE ..., are added to those of the yaml for all networks.

    Raises:
        FileNotFoundError: the yaml is not there.
        ValueError: an unknown key, a value that cannot be used, or a grid without runs; the key is named.
    """
    content = read_yaml(path)
    if opts:
        values = dict(leaves(to_dict(get_config(opts=opts))))
        own = _from_keys(Study, content, str(path)).opts | {key: values.get(key) for key in opts[::2]}
        content = content | {"opts": own}
    return as_study(content, str(path)), content


def as_study(content: object, source: str) -> Study:
    """The study of a yaml's content; messages begin with `source`.

    Raises:
        ValueError: as `read_study`.
    """
    study = _from_keys(Study, content, source)
    networks = {name: _from_keys(Network, one, f"{source}: networks: {name}") for name, one in study.networks.items()}
    study = replace(study, networks=networks, min_seeds=study.min_seeds or len(study.seeds))
    for fault in study.faults():
        raise ValueError(f"{source}: {fault}")
    return study


def _from_keys(kind: type[Keys], content: object, source: str) -> Keys:
    """A dataclass of the keys that there are, each of the type of its default."""
    defaults = {each.name: getattr(kind(), each.name) for each in fields(kind)}
    if not isinstance(content, Mapping):
        raise ValueError(f"{source}: holds {content!r}; expected the keys {', '.join(defaults)}")
    for key, value in content.items():
        if key not in defaults:
            close = difflib.get_close_matches(str(key), defaults, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected some of {', '.join(defaults)}"
            raise ValueError(f"{source}: unknown key {key!r}; {hint}")
        if type(value) is not type(defaults[key]):
            raise ValueError(f"{source}: {key} is {value!r}; expected type {type(defaults[key]).__name__}")
    return kind(**content)


def _faults_of_opts(opts: Mapping[str, object]) -> Iterator[str]:
    for key, value in opts.items():
        if key in _GRID:
            yield f"opts: {key} is what the grid sets; expected it in {_GRID[key]}"
        if not isinstance(key, str) or value is None or isinstance(value, Mapping):
            yield f"opts: {key!r} is {value!r}; expected values by dotted keys: TRAIN.EPOCHS: 60"

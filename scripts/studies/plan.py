"""The plan of a study: a yaml, read and checked, and its grid of runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from configs.config import get_config
from configs.plain_yaml import parse_word, read_yaml
from configs.schema import Config
from evaluation.summary import Json, is_number

Plain = Mapping[str, Any]  # the content of a yaml or a JSON file
Section = TypeVar("Section")

_NAME = re.compile(r"\w[\w.-]*")
_WEIGHTS = {"LOSS.LAMBDA_1", "LOSS.LAMBDA_2"}
_GRID = {*_WEIGHTS, "SEED", "DATA.FOLDS", "DATA.FOLD"}


class Run(NamedTuple):
    """One training of the grid and its test; network, weights and variant are its cell."""

    network: str
    lambda_1: float
    lambda_2: float
    seed: int
    fold: int | None = None
    variant: str = ""

    @property
    def folder(self) -> Path:
        """Its path in the folder of the study."""
        cell = self.variant or f"lambda_{self.lambda_1:.12g}_{self.lambda_2:.12g}"
        path = Path(self.network, cell, f"seed_{self.seed}")
        return path if self.fold is None else path / f"fold_{self.fold}"


@dataclass(frozen=True)
class Network:
    """A network's yaml, what differs from it, its own seeds, and rows of lambda_1, lambda_2 and Dice in per cent."""

    cfg: str = ""
    opts: Plain = field(default_factory=dict)
    seeds: Sequence[int] = field(default_factory=list)  # in place of the study's
    published: Sequence[tuple[float, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """The keys of a study's yaml.

    The grid is `networks` by cells by `seeds` by `folds`; 0 folds are the data set's own split. The cells are every
    lambda_1 with every lambda_2, each lambda_x as both, and the `variants`: settings by name, LOSS.LAMBDA_1 and
    LOSS.LAMBDA_2 among them. A cell of fewer seeds than `min_seeds` is not reported.
    """

    title: str = ""
    commit: str = ""  # of the copy that the runs are made by
    development: bool = False  # train and validate only
    networks: Mapping[str, Network] = field(default_factory=dict)
    lambda_1: Sequence[float] = field(default_factory=list)
    lambda_2: Sequence[float] = field(default_factory=list)
    lambda_x: Sequence[float] = field(default_factory=list)
    variants: Mapping[str, Plain] = field(default_factory=dict)
    seeds: Sequence[int] = field(default_factory=list)
    folds: int = 0
    min_seeds: int = 0  # 0 for all
    opts: Plain = field(default_factory=dict)

    def cells(self) -> list[tuple[float, float, str]]:
        """The weights and the variant of each cell, alike for all networks."""
        grid = [*product(self.lambda_1, self.lambda_2), *((both, both) for both in self.lambda_x)]
        named = [(opts["LOSS.LAMBDA_1"], opts["LOSS.LAMBDA_2"], name) for name, opts in self.variants.items()]
        return [*((one, two, "") for one, two in dict.fromkeys(grid)), *named]

    def seeds_of(self, network: str) -> Sequence[int]:
        return self.networks[network].seeds or self.seeds

    def runs(self) -> list[Run]:
        """All runs; every cell has its first seed before any has its second."""
        folds = range(self.folds) if self.folds else [None]
        most = max((len(self.seeds_of(network)) for network in self.networks), default=0)
        grid = product(range(most), folds, self.networks, self.cells())
        return [
            Run(network, one, two, seeds[place], fold, variant)
            for place, fold, network, (one, two, variant) in grid
            if place < len(seeds := self.seeds_of(network))
        ]

    def settings(self, run: Run) -> Json:
        """The settings of a run on top of its network's yaml, by configuration key."""
        own = {"LOSS.LAMBDA_1": run.lambda_1, "LOSS.LAMBDA_2": run.lambda_2, "SEED": run.seed}
        folds = {} if run.fold is None else {"DATA.FOLDS": self.folds, "DATA.FOLD": run.fold}
        variant = self.variants.get(run.variant, {})
        return {**self.opts, **self.networks[run.network].opts, **variant, **own, **folds}

    def config(self, run: Run) -> Config:
        """The configuration of a run; raises as `get_config`."""
        return get_config(self.networks[run.network].cfg, overrides=self.settings(run))


def read_study(path: Path, opts: Sequence[str] = ()) -> tuple[Study, Json]:
    """The study in a yaml and its content; `opts`, KEY VALUE ..., are added to those for all networks.

    Raises:
        ValueError, FileNotFoundError: as `as_study`, or there is no such yaml.
    """
    content: Json = read_yaml(path)
    if opts:
        get_config(opts=opts)  # refuses an unknown key
        own = dict(zip(opts[::2], map(parse_word, opts[1::2]), strict=True))
        content["opts"] = dict(content.get("opts") or {}) | own
    return as_study(content, path), content


def as_study(content: Plain, source: object) -> Study:
    """The study of a yaml's content, every configuration of its grid checked; messages begin with `source`.

    Raises:
        ValueError: an unknown key, a value that cannot be used, a yaml that is not there, or a grid without runs.
    """
    try:
        study = _build(Study, content)
        networks = {name: _build(Network, one, f"networks: {name}: ") for name, one in study.networks.items()}
        seeds = [network.seeds or study.seeds for network in networks.values()] or [study.seeds]
        study = replace(study, networks=networks, min_seeds=study.min_seeds or min(map(len, seeds)))
        _check(study)
        return study
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{source}: {error}") from None


def _build(kind: type[Section], content: object, where: str = "") -> Section:
    """A dataclass of the keys that are given, each of the type of its default."""
    defaults = vars(kind())
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}holds {content!r}; expected the keys {', '.join(defaults)}")
    for key, value in content.items():
        if key not in defaults:
            (close,) = difflib.get_close_matches(str(key), defaults, n=1, cutoff=0)
            raise ValueError(f"{where}unknown key {key!r}; did you mean {close!r}? The keys are {', '.join(defaults)}")
        if type(value) is not type(defaults[key]):
            raise ValueError(f"{where}{key} is {value!r}; expected {type(defaults[key]).__name__}")
    return kind(**content)


def _check(study: Study) -> None:
    for name, opts in study.variants.items():
        if not _NAME.fullmatch(str(name)) or not isinstance(opts, Mapping) or not opts.keys() >= _WEIGHTS:
            raise ValueError(f"variants: {name!r} is {opts!r}; expected a name for a folder, and keys, {_WEIGHTS}")
    runs, least = study.runs(), study.min_seeds
    if not runs or bool(study.lambda_1) != bool(study.lambda_2):
        raise ValueError("no runs; expected networks, seeds, lambda_1 with lambda_2 or lambda_x, folds from 2, or 0")
    for name, network in study.networks.items():
        seeds = study.seeds_of(name)
        if not 1 <= least <= len(set(seeds)) == len(seeds):
            raise ValueError(f"seeds is {seeds}, min_seeds {least}; expected each seed once, and 1 to that many")
        if not _NAME.fullmatch(str(name)) or not network.cfg:
            raise ValueError(f"network {name!r} has cfg {network.cfg!r}; expected a name for a folder, and a yaml")
        if not all(len(row) == 3 and all(map(is_number, row)) for row in network.published):
            raise ValueError(f"{name}: published is {network.published}; expected rows lambda_1, lambda_2, Dice in %")
        for key in _GRID & {*study.opts, *network.opts}:
            raise ValueError(f"opts: {key} is what the grid sets; expected it in seeds, lambda_1, lambda_2 or folds")
    for run in runs:
        study.config(run)

"""The configuration that a run saved: where it is, and whether another one trains the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from configs.config import fill, get_config, leaves, to_dict
from configs.plain_yaml import read_yaml
from configs.schema import Config

# What may differ between a run and its continuation: paths, length, and when it logs, validates and saves.
_MAY_DIFFER = (
    *("OUTPUT_DIR", "GPU_ID", "N_GPU", "TEST", "DATA.ROOT_PATH", "DATA.VOLUME_PATH", "DATA.LIST_DIR"),
    *("DATA.NUM_WORKERS", "DATA.CACHE", "DATA.CACHE_MEMORY", "MODEL.NAME", "MODEL.PRETRAIN_CKPT"),
    *("TRAIN.EPOCHS", "TRAIN.MAX_ITERATIONS", "TRAIN.SAVE_FREQ", "TRAIN.SAVE_SECONDS", "TRAIN.LOG_FREQ"),
    *("TRAIN.IMAGE_FREQ", "TRAIN.VAL_FREQ", "TRAIN.USE_CHECKPOINT", "LOSS.GRADIENT_FACTOR", "LOSS.GRADIENT_FREQ"),
)
# Of these, what changes the weights that a finished run has selected.
_SELECTS = ("MODEL.PRETRAIN_CKPT", "TRAIN.VAL_FREQ")
# What the data fill in where a configuration leaves it empty.
_OF_THE_DATA = (
    *("MODEL.NUM_CLASSES", "MODEL.IN_CHANNELS", "DATA.INTENSITY", "DATA.WINDOW", "DATA.AXIS_ORDER"),
    *("DATA.ORIENTATION", "DATA.AXIS", "DATA.LABEL_VALUES"),
)


def config_beside(path: str | Path) -> str:
    """The config.yaml of the run that `path` is, or is in; empty where there is none."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return str(folder / "config.yaml") if (folder / "config.yaml").is_file() else ""


def config_text(config: Config, environment: Mapping[str, str]) -> str:
    """The config.yaml of a run: every key resolved, and the versions it ran with."""
    return yaml.safe_dump(to_dict(config) | {"ENVIRONMENT": dict(environment)}, sort_keys=False)


def differing(*runs: Path) -> list[list[str]]:
    """The rows (key, values as text, "-" for none) in which the config.yaml of two runs differ, versions included."""
    both = [dict(leaves(read_yaml(Path(path)))) for path in map(config_beside, runs) if path]
    if len(both) < len(runs):
        return [["not known: config.yaml is not in both folders", "", ""]]
    texts = {key: [str(one.get(key, "-")) for one in both] for key in {**both[0], **both[1]} if key != "OUTPUT_DIR"}
    return [[key, *values] for key, values in texts.items() if values[0] != values[1]] or [["none", "", ""]]


def is_of(config: Config, run: Path) -> bool:
    """Whether the folder of a run holds one that was trained, as long, and tested as the configuration says.

    Raises:
        ValueError: it was begun with settings that give other weights, the first of which is named.
    """
    path = run / "config.yaml"
    if not path.is_file():
        return False
    saved = get_config(path)
    values = dict(leaves(to_dict(saved)))
    ours = fill(config, {key: values[key] for key in _OF_THE_DATA})
    _check_same(ours, saved, path, tuple(key for key in _MAY_DIFFER if key not in _SELECTS))
    length = [(one.train.epochs, one.train.max_iterations) for one in (saved, config)]
    return length[0] == length[1] and saved.test == config.test


def check_continues(config: Config, saved: object, where: str | Path) -> None:
    """Make sure that the configuration `saved` in the checkpoint `where`, and the config.yaml beside it, are understood
    and that the former and this one train the same."""
    try:
        if not isinstance(saved, Mapping):
            raise ValueError(f"it is a {type(saved).__name__}")
        theirs = get_config(config_beside(where), saved)
    except ValueError as error:
        raise ValueError(
            f"{where}: its configuration is not understood ({error}); expected a last.pth that train.py wrote"
        ) from None
    _check_same(config, theirs, where, _MAY_DIFFER)


def _check_same(config: Config, saved: Config, where: object, may_differ: tuple[str, ...]) -> None:
    ours = dict(leaves(to_dict(config)))
    for key, value in leaves(to_dict(saved)):
        if ours.get(key) != value and not key.startswith(may_differ):
            raise ValueError(
                f"{where}: {key} is {ours.get(key)!r} but the run was begun with {value!r}; "
                "give the same, or another --output_dir"
            )

"""The configuration of a run that was saved: where it lies, and whether another one trains alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from configs.checks import value_at
from configs.config import filled, get_config, to_plain

# What may differ between a run and its continuation: where things are, how long it goes on, what is written when.
_MAY_DIFFER = (
    *("OUTPUT_DIR", "GPU_ID", "N_GPU", "ENVIRONMENT", "TEST", "DATA.ROOT_PATH", "DATA.VOLUME_PATH", "DATA.LIST_DIR"),
    *("DATA.NUM_WORKERS", "DATA.START_METHOD", "DATA.CACHE"),
    *("MODEL.NAME", "MODEL.PRETRAIN_CKPT"),
    *("TRAIN.EPOCHS", "TRAIN.MAX_ITERATIONS", "TRAIN.SAVE_FREQ", "TRAIN.SAVE_SECONDS", "TRAIN.LOG_FREQ"),
    *("TRAIN.IMAGE_FREQ", "TRAIN.VAL_FREQ", "TRAIN.USE_CHECKPOINT", "LOSS.GRADIENT_FACTOR", "LOSS.GRADIENT_FREQ"),
)
# Of these, what changes the weights that a finished run has chosen.
_CHOOSES = ("MODEL.PRETRAIN_CKPT", "TRAIN.VAL_FREQ")
# What a configuration leaves empty the data fill in.
_OF_THE_DATA = (
    *("MODEL.NUM_CLASSES", "MODEL.IN_CHANNELS", "DATA.INTENSITY", "DATA.WINDOW", "DATA.AXIS_ORDER"),
    *("DATA.ORIENTATION", "DATA.AXIS", "DATA.LABEL_VALUES"),
)
_PLAIN = (bool, int, float, str, type(None))


def config_beside(path: str | Path) -> str:
    """The config.yaml of the run that `path` is, or lies in; empty where there is none."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return str(folder / "config.yaml") if (folder / "config.yaml").is_file() else ""


def config_within(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration in what train.py saved to go on from; empty where there is none."""
    config = checkpoint.get("config", {})
    return config if _is_plain(config) else {}


def is_of(cfg: CfgNode, run: Path) -> bool:
    """Whether the folder of a run holds one that was to be trained as the configuration says, as long, and so tested.

    Raises:
        ValueError: it was begun with settings that give other weights, the first of which is named.
    """
    path = run / "config.yaml"
    if not path.is_file():
        return False
    saved = get_config(path)
    ours = filled(cfg, {key: value_at(saved, key) for key in _OF_THE_DATA})
    _check_same(ours, to_plain(saved), path, tuple(key for key in _MAY_DIFFER if key not in _CHOOSES))
    length = [(one.TRAIN.EPOCHS, one.TRAIN.MAX_ITERATIONS) for one in (saved, cfg)]
    return length[0] == length[1] and saved.TEST == cfg.TEST


def check_continues(cfg: CfgNode, saved: Mapping[str, Any], where: object = "--resume") -> None:
    """Make sure that a saved run's configuration and this one train alike; messages name `where` it was saved.

    Raises:
        ValueError: they differ in a key that changes a number, which is named, or what is saved is no configuration.
    """
    if not _is_plain(saved):
        raise ValueError(f"{where}: its configuration is not understood; expected a last.pth that train.py wrote")
    _check_same(cfg, saved, where, _MAY_DIFFER)


def _check_same(cfg: CfgNode, saved: Mapping[str, Any], where: object, may_differ: tuple[str, ...]) -> None:
    ours = dict(_leaves(to_plain(cfg)))
    for key, value in _leaves(saved):
        if ours.get(key, value) != value and not key.startswith(may_differ):
            raise ValueError(
                f"{where}: {key} is {ours[key]!r} but the run was begun with {value!r}; "
                "give the same, or another --output_dir"
            )


def _is_plain(node: object, depth: int = 4) -> bool:
    """Whether this is what `to_plain` makes: sections by name, no deeper than `depth`, of numbers, texts and lists."""
    if not isinstance(node, Mapping) or not depth:
        return False
    values = (item for value in node.values() for item in (value if isinstance(value, (list, tuple)) else [value]))
    return all(isinstance(key, str) for key in node) and all(
        _is_plain(value, depth - 1) if isinstance(value, Mapping) else isinstance(value, _PLAIN) for value in values
    )


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def config_text(config: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """The yaml of a run, from its plain configuration: every key resolved, and the versions it ran with."""
    return yaml.safe_dump({**config} | {"ENVIRONMENT": dict(environment)}, sort_keys=False)

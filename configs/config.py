"""The configuration: defaults, then an experiment's yaml, then `--opts`, then flags; frozen at the end."""

from __future__ import annotations

import copy
import difflib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from configs.checks import AS_STORED, check_values, value_at
from configs.defaults import OF_DATASET, default_config
from configs.plain_yaml import parse_word, read_yaml

# Keys that take a list too, with an example of what is in it.
_ONE_OR_MORE = {"DATA.IMG_SIZE": 224, "MODEL.PRETRAIN_CKPT": "weights.pth"}
# The section of MODEL with a network's options, by their names.
SECTIONS = {
    "hiformer_b": "HIFORMER",
    "hiformer_l": "HIFORMER",
    "hiformer_s": "HIFORMER",
    "pvt_cascade": "PVT_CASCADE",
    "swin_unet": "SWIN",
    "trans_cascade": "TRANS_CASCADE",
    "transunet": "TRANSUNET",
    "uctransnet": "UCTRANSNET",
    "unet": "UNET",
}
_IN_EMPTY = {"DATA.WINDOW": 0.0, "DATA.LABEL_VALUES": 0}  # of what type what is in a list is whose default is empty
_READ_BY_NOTHING = ("IN_CHANS", "DECODER_DEPTHS", "FINAL_UPSAMPLE")  # published keys of Swin-UNet's section
_TYPE_ALIASES = {"swin": "swin_unet"}  # the name that the published yaml gives


def get_config(
    *cfg_files: str | Path | Mapping[str, Any], opts: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> CfgNode:
    """Defaults, then the yamls, then `opts` (KEY VALUE ...), then `overrides` (dotted key to value); frozen.

    In the place of a yaml may stand what `config_within` gives.

    Raises:
        FileNotFoundError: there is no such yaml.
        ValueError: an unknown key (the closest is named), a wrong type, or a value out of range.
    """
    cfg = default_config()
    for cfg_file in filter(None, cfg_files):
        within = isinstance(cfg_file, Mapping)
        source = "the checkpoint's configuration" if within else str(cfg_file)
        _merge(cfg, cfg_file if within else read_yaml(Path(cfg_file)), source)
        _settle(cfg, f"{source}: ")
    if len(opts) % 2:
        raise ValueError(f"--opts: got {len(opts)} words; expected pairs, KEY VALUE ...")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, key, _parse(cfg, key, text), "--opts")
    for key, value in (overrides or {}).items():
        _set(cfg, key, value, "command line")
    _settle(cfg)
    own = OF_DATASET.get(cfg.DATA.DATASET, {})
    return filled(cfg, {key: value for key, value in own.items() if key.startswith("MODEL.")})


def completed(cfg: CfgNode, facts: Mapping[str, Any]) -> CfgNode:
    """The configuration, frozen, with what is known of its data (dotted key to value) where a key is empty.

    What the files themselves say comes before what is known of every data set of that name.

    Raises:
        ValueError: the images have other channels, or the labels another number of values than there are classes, or
            --axis is of no use.
    """
    cfg = filled(filled(cfg, facts), OF_DATASET.get(cfg.DATA.DATASET, {}))
    found = facts.get("MODEL.IN_CHANNELS", cfg.MODEL.IN_CHANNELS)
    if found != cfg.MODEL.IN_CHANNELS:
        raise ValueError(
            f"MODEL.IN_CHANNELS is {cfg.MODEL.IN_CHANNELS}, but the images have {found}; expected the same, or 0"
        )
    values, classes = cfg.DATA.LABEL_VALUES, cfg.MODEL.NUM_CLASSES
    if values and len(values) != classes:
        raise ValueError(
            f"MODEL.NUM_CLASSES is {classes}, but the labels of {cfg.DATA.DATASET} have {len(values)} values, "
            f"{values}; expected one a class (--num_classes, DATA.LABEL_VALUES)"
        )
    if cfg.DATA.AXIS and "DATA.AXIS" not in facts:
        raise ValueError(f"--axis is {cfg.DATA.AXIS}; expected none: it is for volumes of your own (--dataset Folder)")
    return cfg


def filled(cfg: CfgNode, facts: Mapping[str, Any]) -> CfgNode:
    """The configuration, frozen, with the facts (dotted key to value) where a key is empty."""
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in facts.items():
        if value_at(cfg, key) in (0, "", []):
            _set(cfg, key, value, "data")
    cfg.freeze()
    return cfg


def _settle(cfg: CfgNode, source: str = "") -> None:
    """Check the values as they stand; a message begins with `source`, the last that set any."""
    cfg.MODEL.TYPE = _TYPE_ALIASES.get(cfg.MODEL.TYPE, cfg.MODEL.TYPE)
    try:
        check_values(cfg)
        network_keywords(cfg)
    except ValueError as error:
        raise ValueError(f"{source}{error}") from None


@contextmanager
def naming(*cfg_files: str | Path | Mapping[str, Any]) -> Iterator[None]:
    """Let a ValueError about what the configuration asks for begin with the yamls that it was read from."""
    try:
        yield
    except ValueError as error:
        files = [str(file) for file in cfg_files if file and not isinstance(file, Mapping)]
        raise ValueError(": ".join([*files, str(error)])) from error


def network_keywords(cfg: CfgNode) -> dict[str, Any]:
    """The keywords of `networks.build_network` that a configuration stands for, beside the name.

    Raises:
        ValueError: MODEL.TYPE is a network that has no keys in the configuration.
    """
    name = cfg.MODEL.TYPE
    if name not in SECTIONS:
        raise ValueError(f"MODEL.TYPE: unknown network {name!r}; expected one of {', '.join(SECTIONS)}")
    options = {
        key.lower(): tuple(value) if isinstance(value, list) else value
        for key, value in cfg.MODEL[SECTIONS[name]].items()
        if key not in _READ_BY_NOTHING
    }
    if name == "swin_unet":
        options |= {"drop_rate": cfg.MODEL.DROP_RATE, "drop_path_rate": cfg.MODEL.DROP_PATH_RATE}
    return {
        "num_classes": cfg.MODEL.NUM_CLASSES,
        "in_channels": cfg.MODEL.IN_CHANNELS,
        "img_size": size_of(cfg),
        "use_checkpoint": cfg.TRAIN.USE_CHECKPOINT,
        **options,
    }


def size_of(cfg: CfgNode) -> tuple[int, int]:
    """(H, W) of the network's input in pixels."""
    size = cfg.DATA.IMG_SIZE
    return (size, size) if isinstance(size, int) else tuple(size)


def overlap_of(cfg: CfgNode) -> float | None:
    """The overlap of the windows that slide over an image at its own resolution; None where it is resized instead."""
    return cfg.TEST.OVERLAP if cfg.TEST.INFERENCE == "slide" else None


def data_keywords(cfg: CfgNode, test: bool = False) -> dict[str, Any]:
    """The keywords of `datasets.build_dataset` that a configuration stands for, beside the name and the split."""
    return {
        "num_classes": cfg.MODEL.NUM_CLASSES,
        # A fold is tested on cases that other folds train on.
        "root_path": (test and not cfg.DATA.FOLDS and cfg.DATA.VOLUME_PATH) or cfg.DATA.ROOT_PATH,
        "list_dir": cfg.DATA.LIST_DIR,
        "val_cases": cfg.DATA.VAL_CASES,
        "folds": cfg.DATA.FOLDS,
        "fold": cfg.DATA.FOLD,
        "cache": cfg.DATA.CACHE,
        "reading": reading_keywords(cfg),
        "phantom_options": _phantom_options(cfg),
    }


def reading_keywords(cfg: CfgNode) -> dict[str, Any]:
    """The keywords of `datasets.reading` that a configuration stands for."""
    return {
        "channels": cfg.MODEL.IN_CHANNELS,
        "label_values": tuple(cfg.DATA.LABEL_VALUES) or tuple(range(cfg.MODEL.NUM_CLASSES)),
        "intensity": cfg.DATA.INTENSITY,
        "window": tuple(cfg.DATA.WINDOW),
        "axis_order": cfg.DATA.AXIS_ORDER,
        "orientation": cfg.DATA.ORIENTATION.replace(AS_STORED, ""),
    }


def look_keywords(cfg: CfgNode) -> dict[str, Any]:
    """The keywords of `datasets.look_through` that a configuration stands for, beside the name."""
    data = cfg.DATA
    where = {"root_path": data.ROOT_PATH, "list_dir": data.LIST_DIR}
    where |= {"axis": data.AXIS, "orientation": data.ORIENTATION.replace(AS_STORED, "") if data.ORIENTATION else None}
    where |= {"folds": data.FOLDS, "channels": cfg.MODEL.IN_CHANNELS}
    return where | {"num_classes": cfg.MODEL.NUM_CLASSES, "phantom_options": _phantom_options(cfg)}


def _phantom_options(cfg: CfgNode) -> dict[str, Any]:
    return {key.lower(): value for key, value in cfg.DATA.PHANTOM.items()}


def to_plain(cfg: CfgNode) -> dict[str, Any]:
    """A configuration as nested dictionaries of plain values."""
    return {key: to_plain(value) if isinstance(value, CfgNode) else copy.copy(value) for key, value in cfg.items()}


def _parse(cfg: CfgNode, dotted: str, text: str) -> Any:
    """The value that a word of the command line stands for; where text is expected, the word itself."""
    try:
        is_list = dotted in _ONE_OR_MORE and text.startswith("[")
        if isinstance(value_at(cfg, dotted), str) and not is_list:
            return text
    except (KeyError, TypeError):
        pass  # an unknown key is refused by name later on
    return parse_word(text)


def _all_keys(cfg: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _all_keys(value, f"{prefix}{key}.")


def _merge(cfg: CfgNode, content: Mapping[str, Any], source: str, prefix: str = "") -> None:
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted != "ENVIRONMENT":
            _merge(cfg, value, source, f"{dotted}.")
        else:
            _set(cfg, dotted, value, source)


def _set(cfg: CfgNode, dotted: str, value: Any, source: str) -> None:
    node = cfg
    *parents, last = dotted.split(".")
    for part in parents:
        node = node[part] if isinstance(node, CfgNode) and part in node else None
    if not isinstance(node, CfgNode) or last not in node:
        close = difflib.get_close_matches(dotted.upper(), list(_all_keys(cfg)), n=1)
        hint = f"did you mean {close[0]}?" if close else "see configs/defaults.py for the keys there are"
        raise ValueError(f"{source}: unknown key {dotted}; {hint}")
    if isinstance(node[last], CfgNode) and isinstance(value, Mapping) and dotted != "ENVIRONMENT":
        _merge(cfg, value, source, f"{dotted}.")
        return
    node[last] = _as_type(value, _ONE_OR_MORE.get(dotted, node[last]), dotted, source)


def _as_type(value: Any, default: Any, dotted: str, source: str) -> Any:
    """The value in the type of the key's default, where that loses nothing."""
    if dotted in _ONE_OR_MORE and isinstance(value, (list, tuple)) and value:
        items = [_as_type(item, default, dotted, source) for item in value]
        return items if len(items) > 1 else items[0]
    if isinstance(default, CfgNode):
        if isinstance(value, Mapping):  # versions, which nothing reads
            return CfgNode({str(name): str(version) for name, version in value.items()})
        raise ValueError(f"{source}: {dotted} is {value!r}; expected a section with keys {', '.join(default)}")
    if isinstance(default, float) and isinstance(value, str):  # yaml reads 1e-4, without a dot, as text
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if isinstance(default, str) and value is None:
        return ""
    if isinstance(default, bool) and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(default, list) and isinstance(value, (list, tuple)):
        example = default[0] if default else _IN_EMPTY[dotted]
        return [_as_type(item, example, dotted, source) for item in value]
    if type(value) is not type(default):
        raise ValueError(
            f"{source}: {dotted} is {value!r} ({type(value).__name__}); "
            f"expected {type(default).__name__}, such as {default!r}"
        )
    return value

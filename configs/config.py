"""The configuration of a run: defaults, then yaml files, then `--opts`, then flags; checked, typed and frozen."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from yacs.config import CfgNode

from configs.arguments import flag_hint
from configs.defaults import DATASET_DEFAULTS, NETWORK_OPTIONS, SECTION_OF, UNUSED_OPTIONS
from configs.plain_yaml import parse_word, read_yaml
from configs.schema import AS_STORED, Config, Option

Source = str | Path | Mapping[str, object]
Section = TypeVar("Section")

# An item of a list that is empty.
_ITEMS = {"DATA.WINDOW": 0.0, "DATA.LABEL_VALUES": 0, "DATA.CLASS_NAMES": "", "MODEL.PRETRAIN_CKPT": ""}
_ALIASES = {"MODEL.TYPE": {"swin": "swin_unet"}, "TRAIN.VAL_DICE": {"lumped": "foreground"}}  # published and old values
_IGNORED = ("ENVIRONMENT", "DATA.START_METHOD")  # the versions of a run, and a key that runs of old have
_AXES = {"x": "LR", "y": "PA", "z": "IS"}
_MAX_OPTION = 4096  # of a network's sizes, which it checks itself; a slip would take all memory


def get_config(*sources: Source, opts: Sequence[str] = (), overrides: Mapping[str, object] | None = None) -> Config:
    """Defaults, then yaml files, then `opts` (KEY VALUE ...), then `overrides` (dotted key to value).

    A source may be a mapping instead: the configuration that a checkpoint holds.

    Raises:
        FileNotFoundError: there is no such yaml.
        ValueError: an unknown key (the closest is named), a wrong type, or a value out of range.
    """
    tree = default_tree()
    for source in sources:
        if not source:
            continue
        name = str(source) if isinstance(source, str | Path) else "the configuration of the checkpoint"
        for key, value in (read_yaml(Path(source)) if isinstance(source, str | Path) else source).items():
            _set(tree, str(key), value, name)
        try:
            _freeze(tree)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if len(opts) % 2:
        raise ValueError(f"--opts: got {len(opts)} words; expected pairs, KEY VALUE ...")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        _set(tree, key, text if isinstance(_value(tree, key), str) else parse_word(text), "--opts")
    for key, value in (overrides or {}).items():
        _set(tree, key, value, "command line")
    config = _freeze(tree)
    own = DATASET_DEFAULTS.get(config.data.dataset, {})
    return fill(config, {key: value for key, value in own.items() if key.startswith("MODEL.")})


def complete(config: Config, facts: Mapping[str, object] | None = None) -> Config:
    """The configuration with its empty keys filled in: from the `facts` that the files of its data set gave (dotted key
    to value; None where they were not inspected), then from what is known of every data set of that name.
    """
    config = fill(fill(config, facts or {}), DATASET_DEFAULTS.get(config.data.dataset, {}))
    channels = (facts or {}).get("MODEL.IN_CHANNELS", config.model.in_channels)
    if channels != config.model.in_channels:
        raise ValueError(
            f"MODEL.IN_CHANNELS is {config.model.in_channels}, but the images have {channels}; expected the same, or 0"
        )
    values, classes = config.data.label_values, config.model.num_classes
    if values and len(values) != classes:
        raise ValueError(
            f"MODEL.NUM_CLASSES is {classes}, but the labels of {config.data.dataset} have {len(values)} values, "
            f"{list(values)}; expected one a class (--num_classes, DATA.LABEL_VALUES)"
        )
    names = config.data.class_names
    if names and len(names) != classes - 1:
        raise ValueError(
            f"DATA.CLASS_NAMES has {len(names)} names for {classes} classes; expected one for each but the background "
            "(--class_names)"
        )
    if config.data.axis and facts is not None and "DATA.AXIS" not in facts:
        raise ValueError(f"--axis is {config.data.axis}; expected none: it applies to --dataset Folder only")
    return config


def fill(config: Config, facts: Mapping[str, object]) -> Config:
    """The configuration with the facts (dotted key to value) where a key is empty."""
    tree = default_tree()
    for key, value in to_dict(config).items():
        _set(tree, key, value, "configuration")
    for key, value in facts.items():
        if _value(tree, key) in (0, "", [], -1):
            _set(tree, key, value, "data")
    return _freeze(tree)


def to_dict(config: Config) -> dict[str, object]:
    """The configuration as nested dictionaries of plain values under the keys of a yaml file."""
    tree = _tree(config)
    section = SECTION_OF[config.model.type]
    options = {key.upper(): _plain(value) for key, value in config.model.options.items()}
    tree["MODEL"][section] = {key: options[key] for key in NETWORK_OPTIONS[section] if key in options}
    return tree


def default_tree() -> CfgNode:
    """A fresh yacs node with every key at its default."""
    tree = _tree(Config())
    tree["MODEL"].update(NETWORK_OPTIONS)
    return CfgNode(tree)


def leaves(node: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values of nested sections, each with its dotted key."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tree(config: Config) -> dict[str, Any]:
    """As `to_dict`, but for the options of the network."""
    return asdict(config, dict_factory=lambda pairs: {k.upper(): _plain(v) for k, v in pairs if k != "options"})


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _freeze(tree: CfgNode) -> Config:
    """The typed configuration of a node, every value checked."""
    config = _unpack(tree, Config(), "")
    kind = config.model.type
    if kind not in SECTION_OF:
        raise ValueError(f"MODEL.TYPE: unknown network {kind!r}; expected one of {', '.join(SECTION_OF)}")
    if tree.MODEL.SWIN.FINAL_UPSAMPLE != "expand_first":
        raise ValueError(f"MODEL.SWIN.FINAL_UPSAMPLE is {tree.MODEL.SWIN.FINAL_UPSAMPLE!r}; expected 'expand_first'")
    options: dict[str, Option] = {}
    for key, value in tree.MODEL[SECTION_OF[kind]].items():
        if not isinstance(value, bool | str):
            _check_range(value, 0, 1 if key.endswith("RATE") else _MAX_OPTION, f"MODEL.{SECTION_OF[kind]}.{key}")
        if key not in UNUSED_OPTIONS:
            options[key.lower()] = tuple(value) if isinstance(value, list) else value
    if kind == "swin_unet":
        options |= {"drop_rate": config.model.drop_rate, "drop_path_rate": config.model.drop_path_rate}
    _check(config)
    return replace(config, model=replace(config.model, options=options))


def _unpack(node: CfgNode, default: Section, prefix: str) -> Section:
    """A dataclass like `default`, each field from the key of its name, within its range or choices."""
    assert is_dataclass(default) and not isinstance(default, type)
    values: dict[str, object] = {}
    for field in fields(default):
        if field.name == "options":
            continue
        key, like = f"{prefix}{field.name.upper()}", getattr(default, field.name)
        value = node[field.name.upper()]
        if "range" in field.metadata:
            low, high = field.metadata["range"]
            _check_range(value, low, high, key)
        if value not in field.metadata.get("choices", (value,)):
            expected = ", ".join(filter(None, field.metadata["choices"]))
            raise ValueError(f"{key} is {value!r}; expected one of {expected}{flag_hint(key)}")
        if is_dataclass(like):
            value = _unpack(value, like, f"{key}.")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return replace(default, **values)


def _check_range(value: float | Sequence[float], low: float, high: float, key: str) -> None:
    numbers = value if isinstance(value, Sequence) else [value]
    if not numbers or not all(low <= number < math.inf for number in numbers):
        raise ValueError(f"{key} is {value}; expected a finite number of at least {low}{flag_hint(key)}")
    if max(numbers) > high:
        raise ValueError(f"{key} is {value}; expected {high} at most{flag_hint(key)}")


def _check(config: Config) -> None:
    """What one value alone does not tell."""
    data, classes = config.data, config.model.num_classes
    if classes == 1:
        raise ValueError("MODEL.NUM_CLASSES is 1; expected at least 2, the background and a class (--num_classes)")
    if config.test.overlap == 1:
        raise ValueError("TEST.OVERLAP is 1.0; expected a number from 0 to below 1 (--overlap)")
    if data.window and not (len(data.window) == 2 and -math.inf < data.window[0] < data.window[1] < math.inf):
        raise ValueError(f"DATA.WINDOW is {list(data.window)}; expected [low, high], finite, with low below high")
    if data.folds == 1 or data.fold >= max(1, data.folds):
        raise ValueError(f"DATA.FOLD is {data.fold} of {data.folds}; expected 0, 1, ... of 2 or more (--folds)")
    axes = [next((axis for axis, letters in _AXES.items() if letter in letters), "") for letter in data.orientation]
    if data.orientation not in ("", AS_STORED) and sorted(axes) != sorted(_AXES):
        raise ValueError(
            f"DATA.ORIENTATION is {data.orientation!r}; expected three letters such as RAS, LPS or PIR, or {AS_STORED}"
        )
    if data.mask_threshold and len(data.label_values or (0, 255)) != 2:
        raise ValueError("DATA.MASK_THRESHOLD gives two classes; expected no more DATA.LABEL_VALUES (--mask_threshold)")
    if len(set(data.label_values)) < len(data.label_values):
        raise ValueError(f"DATA.LABEL_VALUES is {list(data.label_values)}; expected each value once")


def _value(tree: CfgNode, dotted: str) -> object:
    """The value of a dotted key; None where there is no such key, which `_set` refuses."""
    return reduce(lambda node, part: node.get(part) if isinstance(node, CfgNode) else None, dotted.split("."), tree)


def _set(tree: CfgNode, dotted: str, value: object, source: str) -> None:
    if dotted in _IGNORED:
        return
    node, _, last = dotted.rpartition(".")
    parent, before = _value(tree, node) if node else tree, _value(tree, dotted)
    if not isinstance(parent, CfgNode) or before is None:
        close = difflib.get_close_matches(dotted.upper(), [*tree, *dict(leaves(tree))], n=1)
        hint = f"did you mean {close[0]}?" if close else "see configs/schema.py for the keys there are"
        raise ValueError(f"{source}: unknown key {dotted}; {hint}")
    if isinstance(before, CfgNode):
        if not isinstance(value, Mapping):
            raise ValueError(f"{source}: {dotted} is {value!r}; expected a section with keys {', '.join(before)}")
        for key, one in value.items():
            _set(tree, f"{dotted}.{key}", one, source)
        return
    value = _ALIASES.get(dotted, {}).get(value, value) if isinstance(value, str) else value
    parent[last] = _as_type(value, before, dotted, source)


def _as_type(value: object, default: object, dotted: str, source: str) -> object:
    """The value in the type of the key's default, where that loses nothing."""
    if isinstance(default, list):
        if dotted == "MODEL.PRETRAIN_CKPT" and isinstance(value, str | None):
            value = [value] if value else []
        elif dotted == "DATA.IMG_SIZE":
            sides = list(value) if isinstance(value, list | tuple) else [value]
            value = sides * 2 if len(sides) == 1 else sides
            if len(value) != 2:
                raise ValueError(f"{source}: {dotted} is {value}; expected a side, or [H, W] (--img_size)")
        if isinstance(value, list | tuple):
            item = default[0] if default else _ITEMS[dotted]
            return [_as_type(one, item, dotted, source) for one in value]
    if isinstance(default, float) and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):  # yaml reads 1e-4, without a dot, as text
            return float(str(value))
    if isinstance(default, str) and value is None:
        return ""
    if isinstance(default, bool) and isinstance(value, int) and value in (0, 1):
        return bool(value)
    if type(value) is not type(default):
        raise ValueError(
            f"{source}: {dotted} is {value!r:.80} ({type(value).__name__}); "
            f"expected {type(default).__name__}, such as {default!r}"
        )
    return value

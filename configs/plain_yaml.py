"""Short yaml files and words of the command line, read as plain data."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import yaml

_MAX_BYTES, _MAX_NODES = 2**16, 5000  # reading takes seconds beyond
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of surrogate pairs
_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError, OverflowError, AttributeError)


def read_yaml(path: Path) -> dict[str, object]:
    """The plain data of a short yaml, without aliases and control characters; empty where it holds nothing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration; give a yaml file, such as those in configs/ (--cfg)")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: has more than {_MAX_BYTES >> 10} KiB; expected an experiment's few lines of yaml")
    # Only ever data: yacs itself would execute a .py file given here.
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except _UNREADABLE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: is not a yaml file ({why}); correct it, or give another --cfg") from None
    if not isinstance(content, dict | None):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected keys such as MODEL, DATA, TRAIN")
    return content or {}


def parse_word(text: str) -> object:
    """The value of a word of the command line, read as yaml; the word itself where it is none."""
    try:
        return yaml.load(text, _PlainLoader)
    except _UNREADABLE:
        return text


class _PlainLoader(yaml.SafeLoader):
    """Plain data only, no key twice; without aliases a small file cannot grow into a huge one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for twice in (key for key, count in counts.items() if count > 1):
            raise yaml.YAMLError(f"the key {twice[:80]!r} is there twice")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        value = super().construct_scalar(node)
        if isinstance(value, str) and _CONTROLS.search(value):
            raise yaml.YAMLError(f"{value[:80]!r} holds control characters")
        return value

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not used here")
        self.nodes = getattr(self, "nodes", 0) + 1
        if self.nodes > _MAX_NODES:
            raise yaml.YAMLError(f"it holds more than {_MAX_NODES} keys and values")
        return super().compose_node(parent, index)

"""Short yaml files, and words of the command line, as plain data and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_LONGEST_YAML = 2**16  # bytes; reading takes seconds from there on
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # controls, and halves of letters
_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError, OverflowError, AttributeError)


def read_yaml(path: Path) -> dict[str, Any]:
    """What a short yaml of plain data holds, without aliases and control characters; an empty one holds nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too long, is no yaml, or holds no keys.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration; give a yaml file, such as those in configs/ (--cfg)")
    if path.stat().st_size > _LONGEST_YAML:
        raise ValueError(f"{path}: has more than {_LONGEST_YAML >> 10} KiB; expected an experiment's few lines of yaml")
    # Only ever data: yacs itself would execute a .py file given here.
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except _UNREADABLE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: is not a yaml file ({why}); mend it, or give another --cfg") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected keys such as MODEL, DATA, TRAIN")
    return content


def parse_word(text: str) -> Any:
    """The value that a word of the command line stands for in yaml, or the word itself."""
    try:
        return yaml.load(text, _PlainLoader)
    except _UNREADABLE:
        return text


class _PlainLoader(yaml.SafeLoader):
    """Plain data only, no key twice; without aliases a small file cannot grow into a huge one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice[:80]!r} is there twice")
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.Node) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise yaml.YAMLError(f"{value[:80]!r} holds control characters")
        return value

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not used here")
        return super().compose_node(parent, index)

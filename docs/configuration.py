"""Write docs/configuration.md from the configuration itself: `python docs/configuration.py > docs/configuration.md`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from configs import arguments, defaults, schema  # noqa: E402

HEAD = """# Configuration

All keys, with their defaults. `--opts KEY VALUE ...` sets any of them, and a flag does where there is one. A yaml holds
only what differs; a run saves all of them in its `config.yaml`.

(This page is made by `python docs/configuration.py > docs/configuration.md`.)
"""


def page() -> str:
    """The whole page as Markdown."""
    source = (ROOT / "configs/schema.py").read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    names = ["Config", "DataConfig", "PhantomConfig", "AugConfig", "ModelConfig", "LossConfig", "TrainConfig"]
    parts = [HEAD, *(section(classes[name], source.splitlines()) for name in [*names, "TestConfig"])]
    parts += [
        f"## MODEL.{name}\n\nOptions of {', '.join(f'`{n}`' for n, s in defaults.SECTION_OF.items() if s == name)}.\n\n"
        + table([(f"`{key}`", f"`{value}`") for key, value in options.items()], "key", "default")
        for name, options in defaults.NETWORK_OPTIONS.items()
    ]
    return "\n".join(parts)


def section(node: ast.ClassDef, lines: list[str]) -> str:
    """The table of a dataclass."""
    prefix = {"Config": "", "PhantomConfig": "DATA.PHANTOM."}.get(node.name, f"{node.name[:-6].upper()}.")
    rows = []
    for field in fields(getattr(schema, node.name)):
        if isinstance(field.default, tuple | bool | int | float | str):
            key = f"{prefix}{field.name.upper()}"
            flag, text = next(
                ((f", `--{f}`", t) for f, (own, t, *_) in arguments.FLAGS.items() if own == key), ("", "")
            )
            meaning = comment_of(field.name, node, lines) or text.partition(" (default")[0]
            values = ", ".join(f"`{value}`" for value in field.metadata.get("choices", ()) if value)
            rows.append((f"`{key}`{flag}", f"`{field.default!r}`", ": ".join(filter(None, (values, meaning)))))
    title = f"## {prefix.rstrip('.') or 'Of the run'}\n\n{ast.get_docstring(node)}\n\n"
    return title + table(rows, "key, flag", "default", "values, meaning")


def comment_of(name: str, node: ast.ClassDef, lines: list[str]) -> str:
    """The comment behind a field, or the lines of comment above it."""
    (field,) = [f for f in node.body if isinstance(f, ast.AnnAssign) and getattr(f.target, "id", "") == name]
    behind = lines[(field.end_lineno or field.lineno) - 1].partition("  # ")[2]
    first = field.lineno - 1
    while lines[first - 1].strip().startswith("#"):
        first -= 1
    above = " ".join(line.strip(" #") for line in lines[first : field.lineno - 1])
    return behind or above


def table(rows: Sequence[tuple[str, ...]], *head: str) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ("---",) * len(head), *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())

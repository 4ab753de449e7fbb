"""Configurations and lists."""

from __future__ import annotations

import re
from pathlib import Path

from tests.reliability.fuzzing import Scene, Write, writes


def _append(text: str) -> Write:
    """The good configuration with more, in place of its own sections of the same names: a key twice is refused."""
    names = set(re.findall(r"^(\w+):", text, re.MULTILINE))

    def write(path: Path, scene: Scene) -> None:
        sections = re.split(r"(?m)^(?=\w+:)", scene.good.decode())
        kept = "".join(section for section in sections if section.partition(":")[0] not in names)
        path.write_bytes(f"{kept}\n{text}".encode())

    return write


def _python(path: Path, scene: Scene) -> None:
    path.write_text(f"open({str(scene.marker)!r}, 'w')\ncfg = dict(SEED=1)\n")


def _tag(text: str) -> Write:
    """`{0}` is the marker's path."""
    return lambda path, scene: path.write_text(text.format(scene.marker))


def _lolz() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


_BAD_YAML = {
    "an object": "SEED: !!python/object:argparse.Namespace {a: 1}",
    "a module": "SEED: !!python/module:os",
    "a name": "SEED: !!python/name:os.system",
    "an own tag": "SEED: !mine 3",
    "merge bomb": "a: &a {x: 1}\nb: {<<: [*a, *a, *a]}",
    "deep lists": "SEED: " + "[" * 20000,
    "deep maps": "".join(" " * n + "a:\n" for n in range(300)),
    "deep flow maps": "{a: " * 5000,
    "NaN": "TRAIN.MOMENTUM: .nan",
    "infinite": "TRAIN.WEIGHT_DECAY: .inf",
    "rate NaN": "TRAIN.LR_POWER: .nan",
    "window infinite": "DATA.WINDOW: [-.inf, .inf]",
    "window of three": "DATA.WINDOW: [1, 2, 3]",
    "window of one": "DATA.WINDOW: [3.0]",
    "window of lists": "DATA.WINDOW: [[1], [2]]",
    "10^400 as a float": "TRAIN.MOMENTUM: 1" + "0" * 400,
    "10^5000": "SEED: 1" + "0" * 5000,
    "10^30 steps": "TRAIN.EPOCHS: 1" + "0" * 30,
    "size 10^9": "DATA.IMG_SIZE: 1000000000",
    "size 10^30": "DATA.IMG_SIZE: 1" + "0" * 30,
    "batch 10^18": "TEST.BATCH_SIZE: 1" + "0" * 18,
    "width 10^9": "MODEL.SWIN.EMBED_DIM: 1000000000",
    "width 10^18": "MODEL.SWIN.EMBED_DIM: 1" + "0" * 18,
    "width 10^30": "MODEL.SWIN.EMBED_DIM: 1" + "0" * 30,
    "depth 10^9": "MODEL.SWIN.DEPTHS: [1000000000, 2, 2, 2]",
    "depth -1": "MODEL.SWIN.DEPTHS: [-1, 2, 2, 2]",
    "999 stages": "MODEL.SWIN: {DEPTHS: [" + "2, " * 998 + "2], NUM_HEADS: [" + "1, " * 998 + "1]}",
    "no stages": "MODEL.SWIN: {DEPTHS: [], NUM_HEADS: []}",
    "no heads": "MODEL.SWIN.NUM_HEADS: [0, 1, 2, 4]",
    "window 10^9": "MODEL.SWIN.WINDOW_SIZE: 1000000000",
    "patch 0": "MODEL.SWIN.PATCH_SIZE: 0",
    "mlp ratio 10^300": "MODEL.SWIN.MLP_RATIO: 1.0e+300",
    "mlp ratio NaN": "MODEL.SWIN.MLP_RATIO: .nan",
    "10^9 workers": "DATA.NUM_WORKERS: 1000000000",
    "no such network": "MODEL.TYPE: resnet",
    "seed 2^64": "SEED: 18446744073709551616",
    "seed of truth": "SEED: yes",
    "seed of a date": "SEED: 2024-01-01",
    "seed in 60s": "SEED: 190:20:30.15",
    "seed of bytes": "SEED: !!binary aGVsbG8=",
    "seed of a set": "SEED: !!set {a, b}",
    "seed of pairs": "SEED: !!pairs [a: 1]",
    "a path with a zero": 'DATA.ROOT_PATH: "a\\0b"',
    "a path with lines": 'DATA.ROOT_PATH: "a\\nb"',
    "a path of half a letter": 'DATA.ROOT_PATH: "a\\uD800b"',
    "a name that moves the cursor": 'MODEL.NAME: "\\e[2J\\e[H"',
    "a key that moves the cursor": '"\\e[2J": 1',
    "a key of two lines": '"SEED\\nSEED": 1',
    "a key of numbers": "1: 2",
    "a key of none": "~: 2",
    "a key of a list": "? [1, 2]\n: 3",
    "a key of 50000 letters": "A" * 50000 + ": 1",
    "a key in the middle": "MODEL.SWIN.FOO: 1",
    "an inner key": "__dict__: {a: 1}",
    "another file": "BASE: ['/etc/passwd']",
    "a key twice": "SEED: 1\nSEED: 2",
    "a section of a number": "MODEL: 3",
    "a section of none": "TRAIN: ~",
    "a number of a section": "SEED: {a: 1}",
    "two documents": "---\nSEED: 1\n---\nSEED: 2",
    "a directive": "%YAML 9.9\n---\nSEED: 1",
    "tabs": "TRAIN:\n\tEPOCHS: 3",
    "open quotes": 'SEED: "3',
}

YAML: dict[str, Write] = {
    "code: a .py": _python,
    "code: a call": _tag("SEED: !!python/object/apply:builtins.open ['{0}', w]\n"),
    "code: a command": _tag("SEED: !!python/object/apply:os.system ['touch {0}']\n"),
    "alias bomb": writes(_lolz()),
    "5 MB": _append("# " + "x" * (5 * 2**20)),
    "code: a new object": _tag("SEED: !!python/object/new:builtins.open ['{0}', w]\n"),
    "code: a constructor": _tag("!!python/object/apply:subprocess.Popen [[touch, '{0}']]\n"),
    "code: a list's items": _tag(
        "SEED: !!python/object/new:type\n  args: [z, !!python/tuple [], {{'extend': !!python/name:exec }}]\n"
        "  listitems: \"open('{0}', 'w')\"\n"
    ),
    "zeros in text": lambda path, scene: path.write_bytes(scene.good[:50] + b"\0" + scene.good[50:]),
    "Latin-1": lambda path, scene: path.write_bytes(scene.good + b"\nMODEL.NAME: \xe9\n"),
    "a list": writes("- 1\n- 2\n"),
    "a word": writes("hello\n"),
    "a number": writes("3\n"),
    **{name: _append(text) for name, text in _BAD_YAML.items()},
}

YAML_SOUND: dict[str, Write] = {
    "comments alone": _append("# nothing more"),
    "byte order mark": lambda path, scene: path.write_bytes(b"\xef\xbb\xbf" + scene.good),
    "versions of a date": _append("ENVIRONMENT: {when: 2024-01-01, 1: 2, deep: {a: [1, {b: ~}]}}"),
    "versions of bytes": _append("ENVIRONMENT: {a: !!binary aGVsbG8=, b: !!set {c}}"),
}


def _lines(*lines: str) -> Write:
    return _append_line("\n".join(lines))


def _append_line(text: str) -> Write:
    return lambda path, scene: path.write_bytes(scene.good.rstrip(b"\n") + b"\n" + text.encode() + b"\n")


LISTS: dict[str, Write] = {
    "up and down again": _lines("../train_npz/case0000_slice000"),
    "absolute": lambda path, scene: path.write_text(f"{scene.elsewhere.with_suffix('')}\n"),
    "elsewhere": lambda path, scene: path.write_text(f"../../{scene.elsewhere.name}\n"),
    "a zero byte": _lines("case0000\0_slice000"),
    "10^6 letters": _lines("a" * 10**6),
    "300 letters": _lines("a" * 300),
    "parent": _lines(".."),
    "here": _lines("."),
    "home": _lines("~"),
    "home's file": _lines("~/x"),
    "backslashes": _lines("..\\..\\x"),
    "a command": lambda path, scene: path.write_text(f"$(touch {scene.marker})\n"),
    "an option": _lines("--output_dir"),
    "hidden": _lines(".hidden"),
    "other digits": _lines("case１"),
    "upside down": _lines("case\u202e0000"),
    "moves the cursor": _lines("\x1b[2J"),
    "a comment": _lines("# case0000"),
    "two columns": _lines("case0000_slice000\tcase0000_slice001"),
    "a blank inside": _lines("case 0000"),
    "with a colon": _lines("C:case0000"),
    "UTF-16": lambda path, scene: path.write_bytes(scene.good.decode().encode("utf-16")),
    "Latin-1": lambda path, scene: path.write_bytes(scene.good + b"case\xe9\n"),
    "blanks": writes(" \n\t\n \n"),
    "every line twice": lambda path, scene: path.write_bytes(scene.good * 2),
    "no such file": _lines("case9999_slice999"),
    "another drive": _lines("//host/share"),
    "a device": _lines("/dev/zero"),
    "a web address": _lines("file:///etc/passwd"),
}

LISTS_SOUND: dict[str, Write] = {
    "byte order mark": lambda path, scene: path.write_bytes(b"\xef\xbb\xbf" + scene.good),
    "Windows lines": lambda path, scene: path.write_bytes(scene.good.replace(b"\n", b"\r\n")),
    "blank lines": lambda path, scene: path.write_bytes(b"\n\n" + scene.good.replace(b"\n", b"\n \n")),
    "no last line end": lambda path, scene: path.write_bytes(scene.good.rstrip(b"\n")),
}

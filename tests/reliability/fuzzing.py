"""Files as a stranger might send them: bytes damaged at random, and `attacks`; all by name and seed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# What a command must make of a file: refuse it, take it, or - a bit that may lie in padding - either.
BAD, GOOD, EITHER = "bad", "good", "either"


@dataclass(frozen=True)
class Scene:
    """What a file may reach for while it is read.

    `good` are the sound file's bytes; `marker` is a file that code in another would make; `elsewhere` is a sound file
    of the same kind outside the data folder; `pipe` is a named pipe that nobody writes to: opening it waits for ever.
    """

    good: bytes
    marker: Path
    elsewhere: Path
    pipe: Path


Write = Callable[[Path, Scene], object]


@dataclass(frozen=True)
class Mutation:
    """One way to spoil a file: `write(path, scene)` puts it at `path`, the `verdict` is what a command must do."""

    name: str
    write: Write
    verdict: str = BAD


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return open, (str(self.marker), "w")


def writes(content: bytes | str) -> Write:
    """These bytes, or this text, in the place of the file."""
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path, scene: path.write_bytes(raw)


def damaged(kind: str, count: int, cut_is_bad: bool) -> Iterator[Mutation]:
    """`count` random damages, by turns of each sort; the seed is the name, so that a name is all that repeats one.

    Args:
        cut_is_bad: whether a file of this kind that ends early can never be sound.
    """
    if count:
        yield Mutation("empty", lambda path, scene: path.write_bytes(b""), BAD if cut_is_bad else EITHER)
    for number in range(count):
        sort = list(_DAMAGES)[number % len(_DAMAGES)]
        yield Mutation(f"{sort}-{number}", _spoil(kind, sort, number), BAD if sort == "cut" and cut_is_bad else EITHER)


def _spoil(kind: str, sort: str, number: int) -> Write:
    def write(path: Path, scene: Scene) -> None:
        rng = np.random.default_rng(zlib.crc32(f"{kind}/{sort}-{number}".encode()))
        path.write_bytes(_DAMAGES[sort](scene.good, rng))

    return write


def _flip(good: bytes, rng: np.random.Generator, count: int = 1, within: float = 1.0) -> bytes:
    content = bytearray(good)
    for place in rng.integers(max(1, int(len(good) * within)), size=count):
        content[place] ^= 1 << int(rng.integers(8))
    return bytes(content)


def _flips(good: bytes, rng: np.random.Generator) -> bytes:
    return _flip(good, rng, int(rng.integers(2, 65)))


def _flip_early(good: bytes, rng: np.random.Generator) -> bytes:
    """Headers come first in most formats, and matter most."""
    return _flip(good, rng, int(rng.integers(1, 5)), 0.1)


def _cut(good: bytes, rng: np.random.Generator) -> bytes:
    return good[: int(rng.integers(1, len(good) - 1))]


def _insert(good: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(good)))
    return good[:place] + rng.bytes(int(rng.integers(1, 300))) + good[place:]


def _repeat(good: bytes, rng: np.random.Generator) -> bytes:
    """A block again: bytes that were right once, in the wrong place."""
    first, length = int(rng.integers(len(good))), int(rng.integers(1, 300))
    place = int(rng.integers(len(good)))
    return good[:place] + good[first : first + length] + good[place:]


def _blank(good: bytes, rng: np.random.Generator) -> bytes:
    place, length = int(rng.integers(len(good))), int(rng.integers(1, 300))
    filler = bytes([int(rng.choice([0, 0x20, 0xFF]))])
    return good[:place] + filler * len(good[place : place + length]) + good[place + length :]


_DAMAGES = {
    "flip": _flip,
    "cut": _cut,
    "flip_early": _flip_early,
    "insert": _insert,
    "flips": _flips,
    "repeat": _repeat,
    "blank": _blank,
}


def no_file_at_all() -> dict[str, Write]:
    """What can stand where a file was expected."""
    return {
        "a folder": lambda path, scene: path.mkdir(),
        "a pipe": lambda path, scene: os.mkfifo(path),
        "a link to itself": lambda path, scene: path.symlink_to(path.name),
        "a link to a device": lambda path, scene: path.symlink_to("/dev/zero"),
        "a link to nowhere": lambda path, scene: path.symlink_to("../absent"),
        "zeros": lambda path, scene: path.write_bytes(bytes(5000)),
        "noise": lambda path, scene: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    }

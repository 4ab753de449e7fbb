"""What lies beside the images of a data set: JSON of splits and of looks, outlines in XML, Info.cfg; label volumes."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.fuzzing import Scene, Write, writes

_HEADER = 352  # bytes of a NIfTI file before its voxels


def _json(change: Callable[[Any], Any]) -> Write:
    """The sound file after a change, which may hand back something else altogether."""

    def write(path: Path, scene: Scene) -> None:
        content = json.loads(scene.good)
        made = change(content)
        path.write_text(json.dumps(content if made is None else made))

    return write


def _deep(letters: str, count: int = 10**5) -> Write:
    return writes(letters * count)


_BROKEN = {
    "deep lists": _deep("["),
    "deep maps": _deep('{"a":'),
    "10^7 lists": lambda path, scene: path.write_text("[" + "[]," * 10**7 + "[]]"),
    "a number of 10^5 digits": writes("1" * 10**5),
    "a list": writes("[1, 2]"),
    "a number": writes("3"),
    "none": writes("null"),
    "no text": writes(b"\xff\xfe\xfd"),
    "UTF-16": lambda path, scene: path.write_bytes(scene.good.decode().encode("utf-16")),
    "half": lambda path, scene: path.write_bytes(scene.good[: len(scene.good) // 2]),
}

# --- folds_K.json ----------------------------------------------------------------------------------------------------


def _folds(*parts: Any) -> Write:
    return writes(json.dumps({"folds": parts}))


FOLDS: dict[str, Write] = {
    **_BROKEN,
    "a case twice": _folds(["case0000"], ["case0000", "case0001"]),
    "another case": _folds(["case0000"], ["../../../etc/passwd"]),
    "a case lost": _folds(["case0000"], []),
    "three parts": _folds(["case0000"], ["case0001"], []),
    "parts of numbers": _folds([1], [2]),
    "parts of lists": _folds([["case0000"]], [["case0001"]]),
    "parts of letters": _folds("case0000", "case0001"),
    "parts of maps": _folds({"a": 1}, {"b": 2}),
    "parts of none": _folds(None, None),
    "no parts": writes("{}"),
    "a case of 10^6 letters": _folds(["case0000"], ["a" * 10**6]),
    "a case that moves the cursor": _folds(["case0000"], ["\x1b[2J\n"]),
}

FOLDS_SOUND: dict[str, Write] = {
    "the other way round": _folds(["case0001"], ["case0000"]),
    "more beside": writes(json.dumps({"folds": [["case0000"], ["case0001"]], "note": "hello"})),
}

# --- looked.json -----------------------------------------------------------------------------------------------------


def _look(**change: Any) -> Write:
    """What is said of the first pair, changed within its stamp, such that it is believed if it can be."""
    order = ("channels", "values", "axis", "shape")

    def edit(content: dict[str, Any]) -> None:
        look = next(iter(content.values()))["look"]
        for key, value in change.items():
            look[order.index(key)] = value

    return _json(edit)


def _stamps(value: Any) -> Write:
    def edit(content: dict[str, Any]) -> None:
        for seen in content.values():
            seen["stamp"], seen["look"] = value, [7, [0, 1, 2, 3], "x", [9, 9, 9]]

    return _json(edit)


# A memory is no input: where it cannot be believed, everything is looked at again.
LOOKED_SOUND: dict[str, Write] = {
    "lies with no stamp": _stamps([]),
    "lies with another stamp": _stamps([1, 2, 3, 4]),
    "channels of texts": _look(channels="many"),
    **_BROKEN,
    "lies with a stamp of truth": _stamps(True),
    "lies with a stamp of texts": _stamps(["a"] * 4),
    "lies with a stamp of lists": _stamps([[1], [2], [3], [4]]),
    "channels 10^30": _look(channels=10**30),
    "channels none": _look(channels=None),
    "channels a list": _look(channels=[1]),
    "channels a map": _look(channels={"a": 1}),
    "channels a half": _look(channels=1.5),
    "values of texts": _look(values=["a"]),
    "values none": _look(values=None),
    "values a number": _look(values=3),
    "values of lists": _look(values=[[1], [2]]),
    "values of halves": _look(values=[0, 0.5]),
    "values NaN": _look(values=[float("nan")]),
    "values -1": _look(values=[-1, 255]),
    "values 10^30": _look(values=[0, 10**30]),
    "values twice": _look(values=[0, 255] * 10**3),
    "axis a list": _look(axis=["z"]),
    "axis of no kind": _look(axis="w"),
    "shape of texts": _look(shape=["a", "b", "c"]),
    "shape of one": _look(shape=[4]),
    "a look of nothing": _json(lambda content: {name: {**seen, "look": []} for name, seen in content.items()}),
    "a look of ten": _json(lambda content: {name: {**seen, "look": [1] * 10} for name, seen in content.items()}),
    "looks of none": _json(lambda content: dict.fromkeys(content)),
    "looks of lists": _json(lambda content: {name: [1, 2] for name in content}),
    "no looks": writes("{}"),
    "other names": _json(lambda content: {f"../{name}": seen for name, seen in content.items()}),
}

# Lies that are believed, as the stamps are right: then the files contradict, in one line.
LOOKED_ODD: dict[str, Write] = {
    "channels 3": _look(channels=3),
    "values 0 and 1": _look(values=[0, 1]),
    "value 0 alone": _look(values=[0]),
    "256 values": _look(values=list(range(256))),
    "an axis": _look(axis="x"),
}

# --- outlines --------------------------------------------------------------------------------------------------------


def _xml(vertices: str, head: str = "", regions: int = 1) -> str:
    region = f"<Region><Vertices>{vertices}</Vertices></Region>" * regions
    return f"{head}<Annotations><Annotation><Regions>{region}</Regions></Annotation></Annotations>"


def _points(*points: tuple[object, object]) -> str:
    return "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)


_TRIANGLE = _points((4, 4), (20, 5), (9, 22))


def _zigzag(count: int) -> str:
    """From the top of the picture to its bottom, and back, and again."""
    return _xml('<Vertex X="3.5" Y="0.5"/><Vertex X="9.5" Y="39.5"/>' * (count // 2))


def _entities(value: str) -> str:
    return f"<!DOCTYPE a [{value}]>"


_TEN = "&a{0};" * 10


def _laughs(depth: int) -> str:
    """Entities of ten entities of ten entities .."""
    lines = ['<!ENTITY a0 "ha">'] + [f'<!ENTITY a{n} "{_TEN.format(n - 1)}">' for n in range(1, depth)]
    return _entities("".join(lines))


XML: dict[str, Write] = {
    "a billion laughs": writes(_xml(_TRIANGLE + "&a9;", _laughs(10))),
    "NaN": writes(_xml(_points((1, 1), ("nan", 5), (9, 9)))),
    "far away": writes(_xml(_points((1, 1), (1e308, 5), (9, 9)))),
    "10^6 elements in elements": lambda path, scene: path.write_text("<Annotations>" + "<a>" * 10**6),
    "another file": writes(_xml(_TRIANGLE + "&a;", _entities('<!ENTITY a SYSTEM "file:///etc/passwd">'))),
    "a pipe": lambda path, scene: path.write_text(
        _xml(_TRIANGLE + "&a;", f'<!DOCTYPE a SYSTEM "file://{scene.pipe}" [<!ENTITY a SYSTEM "file://{scene.pipe}">]>')
    ),
    "one entity of 10^6 letters": writes(_xml("&a;" * 10**5, _entities(f'<!ENTITY a "{"x" * 10**6}">'))),
    "infinite": writes(_xml(_points((1, 1), ("-inf", 5), (9, 9)))),
    "10^400": writes(_xml(_points((1, 1), ("1e400", 5), (9, 9)))),
    "10^6 digits": writes(_xml(_points((1, 1), ("1" * 10**6, 5), (9, 9)))),
    "a text": writes(_xml(_points((1, 1), ("here", 5), (9, 9)))),
    "moves the cursor": writes(_xml(_points((1, 1), ("&#x9b;2J&#10;", 5), (9, 9)))),
    "no X": writes(_xml('<Vertex Y="1"/>')),
    "no places": writes(_xml("<Vertex/>" * 3)),
    "10^5 attributes": writes(_xml("<Vertex " + " ".join(f'a{n}=""' for n in range(10**5)) + "/>")),
    "outside": writes(_xml(_points((100, 100), (120, 100), (100, 120)))),
    "far below": writes(_xml(_points((1, 1), (1, 1e9), (9, 9)))),
    "no region": writes(_xml("", regions=0)),
    "no annotations": writes("<a/>"),
    "two roots": writes(_xml(_TRIANGLE) * 2),
    "open": writes(_xml(_TRIANGLE)[:-9]),
    "a zero byte": writes(_xml(_TRIANGLE + "\0")),
    "letters of no kind": writes(_xml(_TRIANGLE, '<?xml version="1.0" encoding="ISO-9999"?>')),
    "no letters": writes(_xml(_TRIANGLE).encode() + b"\xff\xfe"),
    "HTML": writes("<!DOCTYPE html><html><body>404</body></html>"),
    "JSON": writes("{}"),
}

XML_ODD: dict[str, Write] = {
    "an attribute by default": writes(_xml("<Vertex/>" * 3, _entities('<!ATTLIST Vertex X CDATA "1" Y CDATA "1">'))),
    "parameters": writes(_xml(_TRIANGLE, _entities('<!ENTITY % a SYSTEM "http://localhost:9/a">%a;'))),
    "10^6 vertices": lambda path, scene: path.write_text(_zigzag(10**6)),
    "10^6 regions": lambda path, scene: path.write_text(_xml("", regions=10**6)),
    "64 MB of regions": lambda path, scene: path.write_text(
        "<Annotations>" + "<Region/>" * 7 * 10**6 + "</Annotations>"
    ),
    "30 MB of vertices": lambda path, scene: path.write_text(_xml('<Vertex X="1" Y="1"/>' * 14 * 10**5)),
    "an attribute of 30 MB": lambda path, scene: path.write_text(_xml(f'<Vertex X="1" Y="1" Z="{"x" * 30 * 2**20}"/>')),
    "a comment of 30 MB": lambda path, scene: path.write_text(_xml(f"<!--{'x' * 30 * 2**20}-->" + _TRIANGLE)),
    "a name of 30 MB": lambda path, scene: path.write_text(_xml(f"<{'x' * 30 * 2**20}/>" + _TRIANGLE)),
    "10^5 names": writes(_xml(_TRIANGLE + "".join(f"<a{n}/>" for n in range(10**5)))),
    "a vertex in a vertex": writes(_xml(f'<Vertex X="1" Y="1">{_TRIANGLE}</Vertex>')),
    "a region in a region": writes(_xml(f"<Region>{_TRIANGLE}</Region>{_TRIANGLE}")),
    "digits of elsewhere": writes(_xml(_points((1, 1), ("\u0663", 5), (9, 9)))),
}

XML_SOUND: dict[str, Write] = {
    "a triangle": writes(_xml(_TRIANGLE)),
    "UTF-16": lambda path, scene: path.write_bytes(_xml(_TRIANGLE).encode("utf-16")),
    "byte order mark": lambda path, scene: path.write_bytes(b"\xef\xbb\xbf" + scene.good),
    "all in one place": writes(_xml(_points(*[(5, 5)] * 9) + _TRIANGLE)),
    "too short": writes(_xml(_points((1, 1), (2, 2)) + f"</Vertices></Region><Region><Vertices>{_TRIANGLE}")),
}

# --- Info.cfg --------------------------------------------------------------------------------------------------------


def _says(**change: str) -> Write:
    """Lines of an Info.cfg that come last, and so count."""
    lines = "".join(f"{key}: {value}\n" for key, value in change.items())
    return lambda path, scene: path.write_bytes(scene.good + lines.encode())


INFO: dict[str, Write] = {
    "up and down again": _says(ED="../patient001/01"),
    "10^30": _says(ED="1" + "0" * 30),
    "no text": writes(b"\xff\xfe\xfd"),
    "10^6 digits": _says(ED="1" * 10**6),
    "-1": _says(ES="-1"),
    "NaN": _says(ES="nan"),
    "a half": _says(ES="1.5"),
    "frame 0": _says(ES="0"),
    "a frame that is not there": _says(ES="7"),
    "one frame for both": _says(ES="1"),
    "digits of elsewhere": _says(ED="\u0661"),
    "nothing": _says(ED=""),
    "moves the cursor": _says(ED="\x1b[2J"),
    "a zero byte": _says(ED="1\0"),
    "no ES": lambda path, scene: path.write_bytes(scene.good.replace(b"ES", b"EX")),
    "UTF-16": lambda path, scene: path.write_bytes(scene.good.decode().encode("utf-16")),
}

INFO_SOUND: dict[str, Write] = {
    "more": _says(Group="\x1b[2J" * 9, Height="NaN"),
    "byte order mark": lambda path, scene: path.write_bytes(b"\xef\xbb\xbf" + scene.good),
    "Windows lines": lambda path, scene: path.write_bytes(scene.good.replace(b"\n", b"\r\n")),
    "zeros before": _says(ED="01"),
}

# --- label volumes ---------------------------------------------------------------------------------------------------


def _label(change: Callable[[np.ndarray], np.ndarray], datatype: tuple[int, int] | None = None) -> Write:
    """The sound label, of bytes, after a change to its voxels, which are then of another NIfTI type and its bits."""

    def write(path: Path, scene: Scene) -> None:
        content = bytearray(gzip.decompress(scene.good))
        voxels = change(np.frombuffer(bytes(content[_HEADER:]), np.uint8))
        if datatype:
            struct.pack_into("<2h", content, 70, *datatype)
        path.write_bytes(gzip.compress(bytes(content[:_HEADER]) + voxels.tobytes(), 1))

    return write


def _first(value: float, dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(dtype)
        voxels[0] = value
        return voxels

    return change


LABEL: dict[str, Write] = {
    "a half": _label(_first(0.5, "<f4"), (16, 32)),
    "-1": _label(_first(-1, "<i2"), (4, 16)),
    "200": _label(lambda voxels: voxels + np.uint8(200)),
    "256": _label(_first(256, "<i2"), (4, 16)),
    "NaN": _label(_first(float("nan"), "<f4"), (16, 32)),
    "infinite": _label(_first(float("inf"), "<f8"), (64, 64)),
    "2^63": _label(_first(2**63, "<u8"), (1280, 64)),
}

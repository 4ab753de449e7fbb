"""Files made to do harm, a few of each kind: code, claims of more than there is, ways to other files, bad numbers."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from tests.reliability.fuzzing import Code, Scene, Write, writes

State = dict[str, Any]
Change = Callable[[Any], Any]


def _npz(**change: Change | None) -> Write:
    """The sound file with some arrays changed; None leaves one out."""

    def write(path: Path, scene: Scene) -> None:
        arrays = dict(np.load(io.BytesIO(scene.good)))
        for key, how in change.items():
            arrays[key] = how(arrays[key]) if how else None
        with path.open("wb") as file:
            np.savez(file, **{key: value for key, value in arrays.items() if value is not None})

    return write


def _filled(value: float) -> Change:
    return lambda array: np.full(array.shape, value)


def npz(key: str) -> dict[str, Write]:
    """Slices or volumes whose image is the array `key`."""

    def claims(path: Path, scene: Scene) -> None:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}\n"
        with zipfile.ZipFile(path, "w") as file:
            for name in (key, "label"):
                file.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)

    return {
        "code": lambda path, scene: np.savez(
            path, **{key: np.array([[Code(scene.marker)]]), "label": np.zeros((1, 1))}
        ),
        "claims 10^12 pixels": claims,
        "label NaN": _npz(label=_filled(np.nan)),
        "image infinite": _npz(**{key: _filled(np.inf)}),
        "label of halves": _npz(label=_filled(0.5)),
        "label 200": _npz(label=_filled(200)),
        "no label": _npz(label=None),
        "another shape": _npz(label=lambda array: array[:, :7]),
        "no pixels": _npz(**{key: lambda array: array[:0], "label": lambda array: array[:0]}),
        "texts": _npz(**{key: lambda array: array.astype("U9")}),
    }


def _h5(change: Callable[[h5py.File, Scene], object], key: str = "image") -> Write:
    """The sound volume without `key`, after a change."""

    def write(path: Path, scene: Scene) -> None:
        path.write_bytes(scene.good)
        with h5py.File(path, "r+") as file:
            del file[key]
            change(file, scene)

    return write


def _outside(file: h5py.File, scene: Scene) -> None:
    file.create_dataset("image", (3, 40, 40), "f4", external=[(str(scene.elsewhere), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, scene: Scene) -> None:
    layout = h5py.VirtualLayout((3, 40, 40), "f4")
    layout[...] = h5py.VirtualSource(str(scene.elsewhere), "image", (3, 40, 40))
    file.create_virtual_dataset("image", layout, fillvalue=0)


H5 = {
    "a link to a pipe": _h5(lambda file, scene: file.update(image=h5py.ExternalLink(str(scene.pipe), "image"))),
    "a link to a file": _h5(lambda file, scene: file.update(image=h5py.ExternalLink(str(scene.elsewhere), "image"))),
    "stored elsewhere": _h5(_outside),
    "virtual": _h5(_virtual),
    "claims 10^12 voxels": _h5(
        lambda file, scene: file.create_dataset("image", (10**4,) * 3, "f4", chunks=(1, 64, 64))
    ),
    "NaN": _h5(lambda file, scene: file.update(image=np.full((3, 40, 40), np.nan))),
    "no label": _h5(lambda file, scene: None, "label"),
}


def _nifti(*fields: tuple[int, str, tuple[float, ...]]) -> Write:
    """The sound volume with fields of its header overwritten: (offset, layout, values)."""

    def write(path: Path, scene: Scene) -> None:
        content = bytearray(gzip.decompress(scene.good))
        for offset, layout, values in fields:
            struct.pack_into(f"<{layout}", content, offset, *values)
        path.write_bytes(gzip.compress(content, 1))

    return write


NIFTI = {
    "claims 10^12 voxels": _nifti((40, "8h", (3, 10**4, 10**4, 10**4, 1, 1, 1, 1))),
    "claims more": _nifti((40, "8h", (3, 400, 400, 3, 1, 1, 1, 1))),
    "four dimensions": _nifti((40, "8h", (4, 40, 20, 3, 2, 1, 1, 1))),
    "no voxels": _nifti((40, "8h", (3, 0, 40, 3, 1, 1, 1, 1))),
    "colors": _nifti((70, "2h", (128, 24))),
    "a place of NaN": _nifti((280, "4f", (np.nan,) * 4), (254, "h", (1,))),
}
LABEL = {**NIFTI, "a half": _nifti((112, "2f", (1.0, 0.5))), "-1": _nifti((112, "2f", (1.0, -1.0)))}


def _lines(*lines: str) -> Write:
    return lambda path, scene: path.write_bytes(scene.good.rstrip(b"\n") + "\n".join(["", *lines, ""]).encode())


LISTS = {
    "up and down again": _lines("../train_npz/case0000_slice000"),
    "absolute": lambda path, scene: path.write_text(f"{scene.elsewhere.with_suffix('')}\n"),
    "a zero byte": _lines("case0000\0_slice000"),
    "10^6 letters": _lines("a" * 10**6),
    "moves the cursor": _lines("\x1b[2J"),
    "UTF-16": lambda path, scene: path.write_bytes(scene.good.decode().encode("utf-16")),
    "twice": lambda path, scene: path.write_bytes(scene.good * 2),
    "no such file": _lines("case9999_slice999"),
}
_LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])
YAML = {
    "code": lambda path, scene: path.write_text(f"SEED: !!python/object/apply:builtins.open ['{scene.marker}', w]\n"),
    "a command": lambda path, scene: path.write_text(f"SEED: !!python/object/apply:os.system ['touch {scene.marker}']"),
    "a billion laughs": writes(_LAUGHS),
    "5 MB": _lines("# " + "x" * (5 * 2**20)),
    "deep lists": _lines("SEED: " + "[" * 20000),
    "a key twice": _lines("SEED: 1", "SEED: 2"),
    "no such key": _lines("MODEL.SWIN.FOO: 1"),
    "a number of 5000 digits": _lines("SEED: 1" + "0" * 5000),
    "a width of 10^9": _lines("MODEL.SWIN.EMBED_DIM: 1000000000"),
    "NaN": _lines("TRAIN.MOMENTUM: .nan"),
    "a path with a zero": _lines('DATA.ROOT_PATH: "a\\0b"'),
    "a name that moves the cursor": _lines('MODEL.NAME: "\\e[2J"'),
    "a list": writes("- 1\n"),
}
FOLDS = {
    "deep lists": writes("[" * 10**5),
    "a case twice": writes(json.dumps({"folds": [["case0000"], ["case0000", "case0001"]]})),
    "another case": writes(json.dumps({"folds": [["case0000"], ["../../../etc/passwd"]]})),
    "parts of none": writes(json.dumps({"folds": [None, None]})),
}
_XML = "<Annotations><Annotation><Regions><Region><Vertices>{}</Vertices></Region></Regions></Annotation></Annotations>"
_POINTS = '<Vertex X="4" Y="4"/><Vertex X="20" Y="5"/><Vertex X="{}" Y="22"/>'
XML = {
    "a file": writes('<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + _XML.format("&a;")),
    "NaN": writes(_XML.format(_POINTS.format("nan"))),
    "far away": writes(_XML.format(_POINTS.format("1e308"))),
    "open": writes(_XML.format(_POINTS.format(9))[:-9]),
}
INFO = {
    "up and down again": _lines("ED: ../patient001/01"),
    "10^6 digits": _lines("ED: " + "1" * 10**6),
    "a frame that is not there": _lines("ES: 7"),
    "no text": writes(b"\xff\xfe\xfd"),
}


def _weights(change: Callable[[State], object]) -> Write:
    """The sound weights after `change(state)`, which may hand back something else altogether."""

    def write(path: Path, scene: Scene) -> None:
        state = torch.load(io.BytesIO(scene.good), weights_only=True)
        returned = change(state)
        torch.save(state if returned is None else returned, path)

    return write


def _tensor(make: Callable[[torch.Tensor], torch.Tensor]) -> Write:
    """The first matrix, remade."""

    def change(state: State) -> None:
        key = next(key for key, value in state.items() if value.ndim == 2 and value.is_floating_point())
        state[key] = make(state[key])

    return _weights(change)


PTH = {
    "code": lambda path, scene: torch.save({"model": Code(scene.marker)}, path),
    "code as a bare pickle": lambda path, scene: path.write_bytes(pickle.dumps(Code(scene.marker), protocol=2)),
    "code in a legacy file": lambda path, scene: torch.save(
        {"model": Code(scene.marker)}, path, _use_new_zipfile_serialization=False
    ),
    "a command": lambda path, scene: path.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % bytes(scene.marker)),
    "a view of 10^12 numbers": _tensor(lambda t: t.flatten()[0].expand(10**6, 10**6)),
    "NaN": _tensor(lambda t: torch.full_like(t, float("nan"))),
    "sparse": _tensor(lambda t: t.to_sparse()),
    "another shape": _tensor(lambda t: t[:1]),
    "nothing": _weights(lambda state: {}),
    "texts": _weights(lambda state: dict.fromkeys(state, "hello")),
    "keys of two lines": _weights(lambda state: {f"\n{key}\n\x1b[2J": value for key, value in state.items()}),
}


def _set(**values: object) -> Write:
    return _weights(lambda state: state.update(values))


def _moment(make: Callable[[torch.Tensor], object]) -> Write:
    def change(state: State) -> None:
        entry = next(iter(state["optimizer"]["state"].values()))
        entry["momentum_buffer"] = make(entry["momentum_buffer"])

    return _weights(change)


RESUME = {
    "code": PTH["code"],
    "a moment of 10^12 numbers": _moment(lambda m: torch.zeros(1).expand(10**6, 10**6)),
    "a moment of another shape": _moment(lambda m: torch.zeros(3)),
    "gradients of another shape": _weights(lambda s: s.update(gradients=[torch.zeros(2)] * len(s["gradients"]))),
    "epoch -5": _set(epoch=-5),
    "epoch infinite": _set(epoch=float("inf")),
    "other slices": _set(slices="slice a of 3 bytes"),
    "a seed of 3000^4 values": _set(
        config={"SEED": reduce(lambda one, _: dict.fromkeys(range(3000), one), range(4), 0)}
    ),
    "a configuration of tensors": _set(config={"SEED": torch.zeros(3)}),
    "generators beyond": _set(generators=[{"python": (3, (2**70,) * 625, None), "torch": torch.zeros(9)}]),
    "weights of texts": _set(model={"a": "b"}),
}


def _safetensors(header: object, length: int | None = None) -> Write:
    raw = json.dumps(header).encode()
    return writes(struct.pack("<Q", len(raw) if length is None else length) + raw)


SAFETENSORS = {
    "claims 10^12 numbers": _safetensors(
        {"a": {"dtype": "F32", "shape": [10**6] * 2, "data_offsets": [0, 4 * 10**12]}}
    ),
    "a header of 2^60 bytes": _safetensors({}, length=2**60),
    "code": PTH["code"],
    "no tensors": _safetensors({}),
}

"""Checkpoints, .pth and .safetensors: code, claims, and states that are none."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from tests.reliability.fuzzing import Code, Scene, Write, writes

_HUGE = 10**12

State = dict[str, Any]


def _weights(change: Callable[[State], object]) -> Write:
    """The good weights after `change(state)`, which may hand back something else altogether."""

    def write(path: Path, scene: Scene) -> None:
        state = torch.load(io.BytesIO(scene.good), weights_only=True)
        returned = change(state)
        torch.save(state if returned is None else returned, path)

    return write


def _tensor(make: Callable[[torch.Tensor], torch.Tensor]) -> Write:
    """The first weight of two dimensions or more, remade."""

    def change(state: State) -> None:
        key = next(key for key, value in state.items() if value.ndim == 2 and value.is_floating_point())
        state[key] = make(state[key])

    return _weights(change)


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


def _itself(state: State) -> dict:
    state["model"] = state
    return state


def _pickled(build: Callable[[Scene], object]) -> Write:
    return lambda path, scene: path.write_bytes(pickle.dumps(build(scene), protocol=2))


def _tar(path: Path, scene: Scene) -> None:
    """torch's oldest format is a tar, unpacked into a folder: a member's name may lead out of it."""
    with tarfile.open(path, "w") as file:
        for name in ("storages", "tensors", "pickle", f"../../../../../../../..{scene.marker}"):
            member = tarfile.TarInfo(name)
            member.size = 4
            file.addfile(member, io.BytesIO(b"\x80\x02N."))


def _packed_records(path: Path, scene: Scene) -> None:
    """A .pth is a zip; one whose largest record becomes 640 MB when it is unpacked."""
    with zipfile.ZipFile(io.BytesIO(scene.good)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        largest = max(old.infolist(), key=lambda info: info.file_size).filename
        for info in old.infolist():
            if info.filename != largest:
                new.writestr(info.filename, old.read(info))
        with new.open(largest, "w", force_zip64=True) as stream:
            for _ in range(40):
                stream.write(bytes(2**24))


class _Call:
    """Pickles as a call of a global that torch lets through."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def _legacy(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _legacy_claims(path: Path, scene: Scene) -> None:
    """The format before zip, its storage said to hold 10^9 numbers where it holds 999983."""
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(999983)}, stream, _use_new_zipfile_serialization=False)
    path.write_bytes(stream.getvalue().replace(struct.pack("<i", 999983), struct.pack("<i", 10**9)))


PTH: dict[str, Write] = {
    "code": lambda path, scene: torch.save({"model": Code(scene.marker)}, path),
    "code as a bare pickle": _pickled(lambda scene: Code(scene.marker)),
    "a view of 10^12 numbers": _tensor(lambda t: t.flatten()[0].expand(10**6, 10**6)),
    "packed records": _packed_records,
    "NaN": _tensor(_filled(float("nan"))),
    "complex": _tensor(lambda t: t.to(torch.complex64)),
    "code beside the weights": lambda path, scene: torch.save(
        {**torch.load(io.BytesIO(scene.good)), "more": Code(scene.marker)}, path
    ),
    "code in a legacy file": lambda path, scene: torch.save(
        {"model": Code(scene.marker)}, path, _use_new_zipfile_serialization=False
    ),
    "a command": lambda path, scene: path.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % bytes(scene.marker)),
    "a tar that leads out": _tar,
    "10^12 bytes by a call": lambda path, scene: torch.save({"a": _Call(bytearray, _HUGE)}, path),
    "legacy that claims 10^9 numbers": _legacy_claims,
    "infinite": _tensor(_filled(float("inf"))),
    "sparse": _tensor(lambda t: t.to_sparse()),
    "sparse rows": _tensor(lambda t: t.to_sparse_csr()),
    "quantised": _tensor(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "nowhere": _tensor(lambda t: t.to("meta")),
    "other shape": _tensor(lambda t: t[:1]),
    "one dimension less": _tensor(lambda t: t[0]),
    "no numbers": _tensor(lambda t: t[:0]),
    "nothing": _weights(lambda state: {}),
    "a list": _weights(lambda state: list(state.values())),
    "a tensor": _weights(lambda state: torch.zeros(3)),
    "a number": _weights(lambda state: 3),
    "none": _pickled(lambda scene: None),
    "texts": _weights(lambda state: {key: "hello" for key in state}),
    "keys of numbers": _weights(lambda state: dict(enumerate(state.values()))),
    "keys of 10^6 letters": _weights(lambda state: {"a" * 10**6 + key: value for key, value in state.items()}),
    "keys of two lines": _weights(lambda state: {f"\n{key}\n\x1b[2J": value for key, value in state.items()}),
    "half of it": _weights(lambda state: dict(list(state.items())[: len(state) // 2])),
    "a pickle of 10^6 lists": writes(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."),
    "a pickle of memory": writes(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"."),
}

PTH_SOUND: dict[str, Write] = {
    "itself": _weights(_itself),
    "wrapped": _weights(lambda state: {"model": {f"module.{key}": value for key, value in state.items()}}),
    "legacy": lambda path, scene: _legacy(torch.load(io.BytesIO(scene.good), weights_only=True), path),
    "half precision": _weights(lambda state: {key: value.half() for key, value in state.items()}),
    "a view": _tensor(lambda t: t.flatten()[0].expand(t.shape)),
}


def _optimizer(change: Callable[[State], object]) -> Write:
    return _weights(lambda state: change(state["optimizer"]) and None)


def _momentum(make: Callable[[torch.Tensor], object]) -> Write:
    def change(optimizer: State) -> None:
        entry = next(iter(optimizer["state"].values()))
        entry["momentum_buffer"] = make(entry["momentum_buffer"])

    return _optimizer(change)


def _set(**values: object) -> Write:
    return _weights(lambda state: state.update(values))


def _gradients(value: object) -> Write:
    return _weights(lambda state: state.update(gradients=[value] * len(state["gradients"])))


def _ring() -> dict:
    ring: dict[str, Any] = {}
    ring["MODEL"] = ring
    return ring


RESUME: dict[str, Write] = {
    "code": PTH["code"],
    "momentum of other shape": _momentum(lambda m: torch.zeros(3)),
    "momentum of 10^12 numbers": _momentum(lambda m: torch.zeros(1).expand(10**6, 10**6)),
    "epoch infinite": _set(epoch=float("inf")),
    "weights alone": _weights(lambda state: state["model"]),
    "configuration of no kind": _set(config=[1, 2]),
    "momentum a text": _momentum(lambda m: "hello"),
    "momentum complex": _momentum(lambda m: m.to(torch.complex64)),
    "other moments": _optimizer(lambda optimizer: optimizer["state"].update({0: {"exp_avg": torch.zeros(3)}})),
    "optimizer a list": _set(optimizer=[1]),
    "gradients too few": _weights(lambda state: state.update(gradients=state["gradients"][:-1])),
    "gradients of other shape": _gradients(torch.zeros(2)),
    "gradients of texts": _gradients("a"),
    "gradients none": _set(gradients=None),
    "epoch NaN": _set(epoch=float("nan")),
    "epoch -5": _set(epoch=-5),
    "epoch a text": _set(epoch="two"),
    "epoch a tensor": _set(epoch=torch.zeros(3)),
    "step -5": _set(step=-5),
    "batch -5": _set(batch_in_epoch=-5),
    "sums a text": _set(sums="much"),
    "summed -1": _set(summed=-1),
    "record of -5 bytes": _set(metrics_size=-5),
    "best a text": _set(best="much"),
    "slices a tensor": _set(slices=torch.zeros(3)),
    "slices 5": _set(slices=5),
    "configuration of itself": _set(config=_ring()),
    "a seed of 3000^4 values": _set(
        config={"SEED": reduce(lambda value, _: dict.fromkeys(range(3000), value), range(4), 0)}
    ),
    "configuration of tensors": _set(config={"SEED": torch.zeros(3)}),
    "configuration of number keys": _set(config={1: 2}),
    "another configuration": _set(config={"SEED": 99}),
    "generators none": _set(generators=None),
    "generators of texts": _set(generators=[{"python": ("a", "b", "c"), "torch": "d"}]),
    "generators too short": _set(generators=[{"python": (3, (1, 2), None), "torch": torch.zeros(3)}]),
    "generators beyond": _set(generators=[{"python": (3, (2**70,) * 625, None), "torch": torch.zeros(9)}]),
    "weights a list": _set(model=[1]),
    "weights of texts": _set(model={"a": "b"}),
}


def safetensors(header: Mapping[str, Any] | bytes, body: bytes = b"", length: int | None = None) -> Write:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return writes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)


def _entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


SAFETENSORS: dict[str, Write] = {
    "claims 10^12 numbers": safetensors(_entry([10**6, 10**6], [0, 4 * 10**12])),
    "header of 2^60 bytes": safetensors(b"{}", length=2**60),
    "code": lambda path, scene: torch.save({"model": Code(scene.marker)}, path),
    "shape and offsets differ": safetensors(_entry([4], [0, 8]), bytes(8)),
    "offsets backwards": safetensors(_entry([4], [16, 0]), bytes(16)),
    "shape overflows": safetensors(_entry([2**32, 2**32, 4], [0, 0])),
    "a negative side": safetensors(_entry([-4], [0, 16]), bytes(16)),
    "no such type": safetensors(_entry([4], [0, 16], "F99"), bytes(16)),
    "deep header": safetensors(b'{"a":' * 50000),
    "not text": safetensors(b"\xff" * 64),
    "no header": safetensors(b"", length=0),
    "no tensors": safetensors({}),
    "other tensors": safetensors(_entry([4], [0, 16]), bytes(16)),
    "metadata of numbers": safetensors({"__metadata__": {"a": 3}}),
    "a list": safetensors(b"[1, 2]"),
}

"""Checkpoint files, written atomically with a checksum and read as plain data, and what a run may resume from."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from utils import atomic_write

_log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.pth", "previous.pth"  # all that resuming needs, and the save before it

# torch.save writes a zip file, whose last record of 22 bytes ends with the length of a comment, and the comment:
# it holds the checksum of all bytes before, and other readers skip it.
_ZIP_MARK, _END_MARK, _END_BYTES = b"PK\3\4", b"PK\5\6", 22
_MAX_VALUES = 250_000  # tensors, numbers and what holds them
_LENGTH_BYTES, _CHECKSUM_BYTES = 2, len("sha256=") + 64


class Damaged(ValueError):
    """A file is not what was written."""


class Saved(NamedTuple):
    """A run's save that was read: the file, its content, and the newer one that it stands in for, if any."""

    path: Path
    state: dict[str, object]
    instead_of: Path | None = None


def save_checkpoint(content: Mapping[str, object], path: Path, *, keep: Path | None = None) -> None:
    """Write a checkpoint with a checksum at its end, atomically; `keep` is the path that the former file gets.

    Raises:
        OSError: it cannot be written; the former file is still there.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "w+b") as file:
            torch.save(content, file)  # not by its path, whose name would be in the file
            end = file.seek(-_LENGTH_BYTES, os.SEEK_END)
            comment = _comment(file, end)
            file.seek(end)
            file.write(comment)

    atomic_write(path, write, keep=keep)


def save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name as .safetensors, atomically, with a checksum among its metadata."""
    # Copies: safetensors takes no tensor twice, and a network may have one under two names.
    state = {name: value.contiguous().clone() for name, value in state.items()}
    content = save(state, {"sha256": _tensor_digest(state)})
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def read_last(folder: Path, *, trust: bool = False) -> Saved | None:
    """The newest undamaged save of a run, with a warning where it is not the newest; None where nothing was saved.

    Raises:
        ValueError: there are saves and none of them can be read.
    """
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    for path in paths:
        try:
            state = read_checkpoint(path, trust=trust)
        except (Damaged, OSError) as error:  # a disk may refuse to read what it has lost
            _log.warning("%s", error)
            continue
        if path.name == LAST:
            return Saved(path, state)
        _log.warning("%s is damaged or missing: resuming from the save before it, %s", folder / LAST, path)
        return Saved(path, state, instead_of=folder / LAST)
    if paths:
        raise ValueError(
            f"{paths[0]}: is damaged, and so is any save before it; put back a copy of {LAST}, "
            "or begin anew in another --output_dir"
        )
    return None


def read_checkpoint(path: str | Path, *, trust: bool = False) -> dict[str, object]:
    """Read a .pth, .safetensors or .npz file as plain data; nothing in it is executed, unless `trust` says so.

    The checksum is verified where the file has one; released files have none.

    Args:
        trust: unpickle whatever the file holds, code included; only for your own files.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: the file is not a checkpoint, or not what was written.
        ValueError: the file is a pickle of more than plain tensors, or of more of them than any checkpoint has.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; give the path of a .pth, .safetensors or .npz file")
    _verify_checksum(path)
    content = _load(path, trust)
    if trust and isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise Damaged(f"{path}: holds a {type(content).__name__}; expected named tensors")
    _check_count(content, path)
    return dict(content)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is a strided one of real numbers, from which a weight can be copied."""
    elsewhere = tensor.is_meta or tensor.is_nested or tensor.is_quantized
    return tensor.layout is torch.strided and not (elsewhere or tensor.is_complex())


def _load(path: Path, trust: bool) -> object:
    unreadable = f"{path}: is not a readable checkpoint; copy or download it again"
    try:
        if path.suffix == ".safetensors":
            return _load_tensors(path)
        _check_stored(path)
        if path.suffix == ".npz":  # as Google releases its vision transformers
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return {n: torch.from_numpy(np.asarray(a, a.dtype.newbyteorder("="))) for n, a in arrays.items()}
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; what cannot be read is an error
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except Damaged:
        raise
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or "Unsupported operand" not in str(error):  # which no pickle has
            raise ValueError(
                f"{path}: holds more than plain tensors, and code in a file is not run; save it again as "
                "torch.save(network.state_dict(), FILE), or, if you made it yourself, give --trust_checkpoint"
            ) from error
        raise Damaged(unreadable) from error
    except Exception as error:  # torch and safetensors report damage by a dozen types, none of them ours
        raise Damaged(unreadable) from error


def _load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, which has a checksum where `save_tensors` wrote it."""
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        checksum = (file.metadata() or {}).get("sha256")
    if checksum and checksum != _tensor_digest(state):
        raise Damaged(f"{path}: is damaged or altered: it does not match its checksum; copy it again")
    return state


def _tensor_digest(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_count(content: Mapping[str, object], path: Path) -> None:
    """Refuse what is there many times over: of a few values that are shared, all paths to them would take for ever."""
    left, count = list[object]([content]), 0
    while left:
        value, count = left.pop(), count + 1
        if count > _MAX_VALUES:
            raise ValueError(f"{path}: holds more than {_MAX_VALUES} values; expected a checkpoint, give another file")
        left += value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple | set) else ()


def _check_stored(path: Path) -> None:
    """Refuse a zip file with compressed records: a small one may expand beyond the memory, and torch writes none."""
    with open(path, "rb") as file:
        if file.read(len(_ZIP_MARK)) != _ZIP_MARK:
            return
    with zipfile.ZipFile(path) as archive:
        compressed = any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist())
    if compressed:
        raise Damaged(
            f"{path}: its records are compressed, expected them as torch.save writes them; "
            "save it again with torch.save (an .npz with numpy.savez)"
        )


def _verify_checksum(path: Path) -> None:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES - _CHECKSUM_BYTES))
        _, mark, last_record = file.read().rpartition(_END_MARK)
        comment = last_record[_END_BYTES - _LENGTH_BYTES - len(_END_MARK) :]
        if mark and comment != b"\0\0" and comment != _comment(file, size - len(comment)):
            raise Damaged(f"{path}: is damaged: it does not match its checksum; copy it again, or use another save")


def _comment(file: BinaryIO, left: int) -> bytes:
    """The SHA-256 of so many bytes, as it is written into the file after them: its length and itself."""
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    return _CHECKSUM_BYTES.to_bytes(_LENGTH_BYTES, "little") + b"sha256=" + digest.hexdigest().encode()

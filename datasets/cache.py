"""Slices kept in one flat file that is mapped into memory, so that no epoch decodes a source file (`--cache`)."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.base import Sample, Slices, check_label, read_through

_log = logging.getLogger(__name__)

_VERSION = 1
_IMAGE, _LABEL = np.dtype("<f4"), np.dtype("u1")
# A partial file that nobody has written to for so long was left by a build that was killed.
_ABANDONED_SECONDS = 3600

Shape = tuple[int, ...]  # (H, W), or (C, H, W) in colour


class CachedSlices(Dataset):
    """The samples of `source`, read from a cache that is built on first use and again once a source file has changed.

    A data file holds, slice after slice, the image as float32 and the label as uint8; an index in JSON tells their
    shapes. The names of both are digests of what is in them: the files, the list, num_classes and `settings`, and the
    size and time stamp of every source file. So nothing else is ever taken for it, and several data sets share a
    folder. The index comes last and each file is first written under another name: a build that is killed, or one
    beside another, leaves nothing that would be believed.

    Args:
        source: the slices to keep; each is read, and so checked, when the cache is built.
        folder: where to keep them; it is made where it is missing, and may be deleted between runs.
        settings: what else the samples follow from, such as how intensities are scaled.
    """

    def __init__(self, source: Slices, folder: str | Path, settings: str = "") -> None:
        self.source, self.folder, self.settings = source, Path(folder), settings
        self._stem = ""
        self._places: list[tuple[int, Shape]] | None = None  # where each record begins, and its shape
        self._data: np.ndarray | None = None

    @property
    def names(self) -> list[str]:
        """The names of the slices, in order."""
        return self.source.names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """The sample as views of the mapped file, which cannot be written to."""
        name = self.names[index]
        if self._data is None:
            self.prepare()
            self._data = np.asarray(np.memmap(self._path("bin"), np.uint8, "r"))
        start, shape = self._places[index]
        middle = start + _image_bytes(shape)
        image, label = self._data[start:middle].view(_IMAGE), self._data[middle : middle + shape[-2] * shape[-1]]
        check_label(label, self.source.num_classes, f"{self._path('bin')} (remove it to have it made anew): {name}")
        return Sample(image.reshape(shape), label.view(_LABEL).reshape(shape[-2:]), name)

    def __getstate__(self) -> dict[str, Any]:
        """Without the data: each process maps the file for itself."""
        return {**self.__dict__, "_data": None}

    def prepare(self, progress: Callable[[Any], Any] = iter) -> None:
        """Make sure that the cache is there and is that of the source files as they are now; build it where it is not.

        Args:
            progress: wraps the iterator over the slices while it is built, such as tqdm.

        Raises:
            ValueError: a source file is bad, by name, or the folder cannot be written.
        """
        if self._places is not None:
            return
        # A volume is the file of many slices; a label may have a file of its own.
        every = [*self.source.files, *getattr(self.source, "label_files", ())]
        found = {path: path.stat() for path in dict.fromkeys(every)}
        files = [found[path] for path in self.source.files]
        content = [_VERSION, self._where(), self.source.num_classes, self.names, self.settings]
        own = f"slices-{_digest(content)}-"
        self._stem = own + _digest([(found[path].st_size, found[path].st_mtime_ns) for path in every])
        shapes = self._read_index()
        if shapes is None:
            why = "is out of date or damaged" if any(self.folder.glob(f"{own}*.json")) else "holds none of these slices"
            _log.info("cache %s %s: reading %d source files", self.folder, why, len(self))
            shapes = self._build(progress, files)
            self._remove_older(own)
        starts = accumulate((_record_bytes(shape) for shape in shapes[:-1]), initial=0)
        self._places = list(zip(starts, shapes, strict=True))

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self._stem}.{suffix}"

    def _read_index(self) -> list[Shape] | None:
        """The shapes of the cached slices; None where there is no whole cache of the source files as they are."""
        try:
            rows = json.loads(self._path("json").read_text(encoding="utf-8"))["slices"]
            shapes = [tuple(int(side) for side in row["shape"]) for row in rows]
            size = self._path("bin").stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = len(shapes) == len(self) and size == sum(_record_bytes(shape) for shape in shapes)
        return shapes if whole else None

    def _build(self, progress: Callable[[Any], Any], files: list[os.stat_result]) -> list[Shape]:
        shapes = []
        partial = self.folder / f".{self._stem}.{secrets.token_hex(8)}.partial"
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            data = open(partial, "wb")  # noqa: SIM115 (only errors of writing are explained, not those of reading)
        try:
            for sample in progress(read_through(self.source)):
                with _explained(self.folder):
                    data.write(_record(sample))
                shapes.append(sample.image.shape)
            with _explained(self.folder):
                data.flush()
                os.fsync(data.fileno())
                data.close()
                os.replace(partial, self._path("bin"))
                partial.write_text(self._index(shapes, files), encoding="utf-8")
                os.replace(partial, self._path("json"))
        finally:
            with suppress(OSError):  # a full disk refuses what the buffer still holds, too
                data.close()
            partial.unlink(missing_ok=True)
        return shapes

    def _index(self, shapes: list[Shape], files: list[os.stat_result]) -> str:
        rows = [
            {"name": name, "shape": shape, "source_size": file.st_size, "source_mtime_ns": file.st_mtime_ns}
            for name, shape, file in zip(self.names, shapes, files, strict=True)
        ]
        where = {"source": self._where(), "num_classes": self.source.num_classes}
        return json.dumps({"version": _VERSION, **where, "slices": rows}, indent=1)

    def _where(self) -> str:
        """The folder of the source files."""
        return str(Path(os.path.commonpath([path.parent.resolve() for path in set(self.source.files)])))

    def _remove_older(self, own: str) -> None:
        """Delete what is left of earlier states of the same source files."""
        for path in self.folder.glob(f"*{own}*"):
            with suppress(OSError):  # another process may have been faster
                if path.suffix == ".partial":
                    remove = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
                else:
                    remove = path.stem != self._stem
                if remove:
                    path.unlink()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _image_bytes(shape: Shape) -> int:
    return math.prod(shape) * _IMAGE.itemsize


def _record_bytes(shape: Shape) -> int:
    """Bytes of an image, its label and the filling that lets the next image begin at a whole number."""
    size = _image_bytes(shape) + shape[-2] * shape[-1]
    return size + -size % _IMAGE.itemsize


def _record(sample: Sample) -> bytes:
    record = sample.image.astype(_IMAGE).tobytes() + sample.label.astype(_LABEL).tobytes()
    return record.ljust(_record_bytes(sample.image.shape), b"\0")


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say of an error of writing that it is the cache's."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"--cache: {folder} cannot be written ({error.strerror or error}); "
            "free space or mend its permissions, give another folder, or train without"
        ) from error

"""Slices kept in memory, or in files that are mapped into it (`--cache`), so that no epoch decodes a source file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import mmap
import multiprocessing
import os
import secrets
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from datasets.case import IGNORE, Case, DataSet, Sample, Slices
from datasets.label_values import check_label
from datasets.slices import CaseSlices

_log = logging.getLogger(__name__)

_VERSION = 2
_IMAGE, _LABEL = np.dtype("<f4"), np.dtype("u1")
# A partial file that nobody has written to for so long was left by a build that was killed.
_ABANDONED_SECONDS = 3600

Shape = tuple[int, ...]  # (H, W), or (C, H, W) of several channels


def keep_in_memory(slices: Slices, limit: int) -> Slices:
    """The slices, kept in up to `limit` bytes of memory once they are read, where no cache has them there already."""
    if isinstance(slices, CachedSlices) or not limit:
        return slices
    try:
        return KeptSlices(slices, limit)
    except OSError:  # the system promises no memory beforehand
        return slices


class KeptSlices(Dataset):
    """Slices that stay in memory once they are read, as views that cannot be written to, until it is full.

    Workers that are forked share it; one that is started afresh (spawn) reads the files.

    Args:
        slices: what is read.
        limit: bytes to fill; they are taken from the system as they are needed.
    """

    def __init__(self, slices: Slices, limit: int) -> None:
        self.slices, self.names, self.num_classes = slices, slices.names, slices.num_classes
        self._lock = multiprocessing.Lock()
        # Of each slice its first byte and its shape, (H, W) of 0 until it is there; at the end, the bytes used.
        self._places = _shared_bytes((len(slices) + 1) * 4 * 8).view(np.int64).reshape(-1, 4)
        self._memory: np.ndarray | None = _shared_bytes(limit)

    @property
    def files(self) -> list[Path]:
        """The first image file of each slice."""
        return self.slices.files

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if self._memory is None:
            return self.slices[index]
        start, *shape = self._places[index].tolist()
        if not shape[-1]:
            sample = self.slices[index]
            self._keep(index, sample)
            return sample
        shape = tuple(shape if shape[0] else shape[1:])
        return _sample(self._memory[start : start + _record_bytes(shape)], shape, self.names[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None, "_places": None, "_lock": None}

    def _keep(self, index: int, sample: Sample) -> None:
        assert self._memory is not None
        shape = sample.image.shape
        with self._lock:
            start = int(self._places[-1, 0])
            end = start + _record_bytes(shape)
            if end > len(self._memory):
                return
            self._places[-1, 0] = end
        self._memory[start:end] = np.frombuffer(_record(sample), np.uint8)
        self._places[index] = (start, *(0,) * (3 - len(shape)), *shape)


class CachedSlices(Dataset):
    """The slices of cases, read from a cache that is built on first use and again once a source file has changed.

    Volumes have a file each, so that all folds of a cross-validation share them; slices have one together.

    Args:
        dataset, cases: as of `CaseSlices`.
        folder: where the cache lies; it is made where it is missing, and may be deleted between runs.
    """

    def __init__(self, dataset: DataSet, cases: Sequence[Case], folder: str | Path) -> None:
        self.folder, self.num_classes = Path(folder), dataset.num_classes
        groups = [[case] for case in cases] if dataset.has_volumes else [list(cases)] * bool(cases)
        self.parts = [_Part(CaseSlices(dataset, group), self.folder) for group in groups]
        self._ends = list(accumulate(len(part.source) for part in self.parts))
        self.names = [name for part in self.parts for name in part.source.names]

    @property
    def files(self) -> list[Path]:
        """The first image file of each slice."""
        return [path for part in self.parts for path in part.source.files]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """The sample as views of the mapped file, which cannot be written to."""
        number = bisect_right(self._ends, index)
        return self.parts[number][index - (self._ends[number - 1] if number else 0)]

    def prepare(self, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> None:
        """Build what is missing, or was built from other files than those there are now.

        Args:
            progress: wraps the iterator over slices or, of volumes, over these.

        Raises:
            ValueError: a source file is bad, by name, or the folder cannot be written.
        """
        stale = [part for part in self.parts if not part.is_current()]
        if stale:
            count = sum(len(part.source) for part in stale)
            _log.info("cache %s: writing %d of %d slices", self.folder, count, len(self))
        for part in stale if len(stale) < 2 else progress(stale):
            part.build(progress if len(stale) < 2 else iter)


class _Part:
    """One file of a cache: slice after slice, the image as float32 and the label as uint8; an index has their shapes.

    The names of both are digests of what is in them: files with sizes and time stamps, names, classes, preprocessing.
    So nothing else is ever taken for it. The index comes last, and each file is first written under another name: a
    build that is killed, or one beside another, leaves nothing that would be believed.
    """

    def __init__(self, source: CaseSlices, folder: Path) -> None:
        self.source, self.folder = source, folder
        self._stem = self._own = ""
        self._places: list[tuple[int, Shape]] = []  # where each record begins, and its shape
        self._data: np.ndarray | None = None

    def __getitem__(self, index: int) -> Sample:
        if self._data is None:
            if not self.is_current():
                self.build(iter)
            self._data = np.asarray(np.memmap(self._path("bin"), np.uint8, "r"))
        name, (start, shape) = self.source.names[index], self._places[index]
        sample = _sample(self._data[start : start + _record_bytes(shape)], shape, name)
        where = f"{self._path('bin')} (remove it to have it made anew): {name}"
        ignore = None if self.source.dataset.how.ignore is None else IGNORE
        check_label(sample.label, self.source.num_classes, where, ignore)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        """Without the data: each process maps the file for itself."""
        return {**self.__dict__, "_data": None}

    def is_current(self) -> bool:
        """Whether the cache is there, and is that of the source files as they are."""
        if self._places:
            return True
        stats = [path.stat() for path in self.source.all_files]
        content = [_VERSION, *map(str, (path.resolve().parent for path in self.source.all_files)), self.source.names]
        self._own = f"slices-{_digest([*content, self.source.num_classes, str(self.source.dataset.how)])}-"
        self._stem = self._own + _digest([(stat.st_size, stat.st_mtime_ns) for stat in stats])
        try:
            shapes = [tuple(map(int, shape)) for shape in json.loads(self._path("json").read_text(encoding="utf-8"))]
            size = self._path("bin").stat().st_size
        except (OSError, ValueError, TypeError):
            return False
        if len(shapes) == len(self.source) and size == sum(map(_record_bytes, shapes)):
            self._set(shapes)
        return bool(self._places)

    def build(self, progress: Callable[[Iterable[Any]], Iterable[Any]]) -> None:
        """Read the source files, and write the cache."""
        shapes = []
        partial = self.folder / f".{self._stem}.{secrets.token_hex(8)}.partial"
        with _explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            data = open(partial, "wb")  # noqa: SIM115 (only errors of writing are explained, not those of reading)
        try:
            for sample in progress(_read_through(self.source)):
                with _explained(self.folder):
                    data.write(_record(sample))
                shapes.append(sample.image.shape)
            with _explained(self.folder):
                data.flush()
                os.fsync(data.fileno())
                data.close()
                os.replace(partial, self._path("bin"))
                partial.write_text(json.dumps(shapes), encoding="utf-8")
                os.replace(partial, self._path("json"))
        finally:
            with suppress(OSError):  # a full disk refuses what the buffer still holds, too
                data.close()
            partial.unlink(missing_ok=True)
        self._set(shapes)
        for path in self.folder.glob(f"*{self._own}*"):  # of earlier states of the same files
            with suppress(OSError):  # another process may have been faster
                abandoned = path.suffix == ".partial" and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
                if abandoned or (path.suffix != ".partial" and path.stem != self._stem):
                    path.unlink()

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self._stem}.{suffix}"

    def _set(self, shapes: list[Shape]) -> None:
        starts = accumulate((_record_bytes(shape) for shape in shapes[:-1]), initial=0)
        self._places = list(zip(starts, shapes, strict=True))


def _read_through(dataset: CaseSlices, threads: int = 8) -> Iterator[Sample]:
    """Read every item, in order, some ahead of the one that is handed out; the first error ends it."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque = deque()
        try:
            for index in range(len(dataset)):
                ahead.append(pool.submit(dataset.__getitem__, index))
                if len(ahead) == threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


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


def _sample(record: np.ndarray, shape: Shape, name: str) -> Sample:
    """The sample as views of its record, which cannot be written to."""
    record = record.view()
    record.flags.writeable = False
    middle = _image_bytes(shape)
    label = record[middle : middle + shape[-2] * shape[-1]]
    return Sample(record[:middle].view(_IMAGE).reshape(shape), label.view(_LABEL).reshape(shape[-2:]), name)


def _shared_bytes(count: int) -> np.ndarray:
    """Zeros that forked processes share; not in /dev/shm, which may be small."""
    return np.frombuffer(mmap.mmap(-1, max(1, count)), np.uint8)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say of an error of writing that it is the cache's."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"--cache: {folder} cannot be written ({error.strerror or error}); "
            "free space or fix its permissions, give another folder, or train without"
        ) from error

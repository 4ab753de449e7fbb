"""A GPU to test on where there is none: tensors that say they are on cuda:0 and compute on the CPU.

Devices that are mixed raise, `device.type == "cuda"` takes its branches, kernel launches and the points where the host
waits for the device are counted. Streams, memory and the numbers of CUDA's own kernels are not seen. On a real GPU the
same fixture counts.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from utils import seed_everything

# Views, and what only reserves memory or asks for a shape.
_WITHOUT_KERNEL = frozenset(
    "_local_scalar_dense _reshape_alias _unsafe_view alias as_strided detach empty empty_like empty_strided expand "
    "is_same_size lift_fresh narrow new_empty new_empty_strided permute select slice split split_with_sizes squeeze t "
    "transpose unbind unfold unsqueeze view view_as_real".split()
)
# The size or the value of the result is needed before the host can go on.
_WAITING = frozenset(
    "_local_scalar_dense nonzero masked_select bincount equal _unique2 unique_dim unique_consecutive".split()
)
_COPIES = ("_to_copy", "copy_")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


@dataclass
class Seen:
    """Launches of kernels and waits of the host, by the operation."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def during(self) -> Iterator[Seen]:
        """What is added in a context."""
        added, before = Seen(), (self.launches.copy(), self.waits.copy())
        yield added
        added.launches, added.waits = self.launches - before[0], self.waits - before[1]

    @property
    def launched(self) -> int:
        return self.launches.total()

    @property
    def waited(self) -> int:
        return self.waits.total()


class Pretended(Tensor):
    """A tensor on cuda:0, by all that it can be asked; `values` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> Pretended:
        return Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="cuda:0",
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return func(*tree_map_only(cls, lambda one: one.values, args), **(kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.__reduce_ex__(protocol)  # read on the CPU, as commands do

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.cpu().numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()


def is_there(value: object) -> bool:
    """Whether a tensor is on the GPU, pretended or not."""
    return isinstance(value, Tensor) and value.is_cuda


class Device(TorchDispatchMode):
    """Runs on the CPU what is asked of cuda:0, or counts on a real one."""

    def __init__(self, seen: Seen, *, real: bool) -> None:
        super().__init__()
        self.seen, self.real = seen, real

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if self.real or key != "pin_memory"}
        name = func._schema.name.rpartition("::")[2]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        asked = kwargs.get("device")
        to_gpu = asked is not None and torch.device(asked).type == "cuda"
        if not to_gpu and not any(map(is_there, tensors)):
            return func(*args, **kwargs)
        self._count(name, args, kwargs)
        if self.real:
            return func(*args, **kwargs)
        _check_devices(func, name, args, tensors)
        here_args, here = tree_map_only(Pretended, lambda one: one.values, (args, kwargs))
        if asked is not None:
            here = {**here, "device": torch.device("cpu")}
        result = _by_cudnn(name, here_args) if name.startswith("cudnn_batch_norm") else func(*here_args, **here)
        if (written := _written(func, args, kwargs)) is not None:
            return written
        leaves = name in _COPIES and asked is not None and not to_gpu
        return result if leaves else tree_map_only(Tensor, Pretended, result)

    def _count(self, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        self.seen.launches[name] += name not in _WITHOUT_KERNEL
        if name in _COPIES:
            target, source = (args[0], args[1]) if name == "copy_" else (kwargs.get("device"), args[0])
            if isinstance(target, Tensor):
                goes, quiet = is_there(target), len(args) > 2 and args[2]
            else:
                goes = is_there(source) if target is None else torch.device(target).type == "cuda"
                quiet = False
            # To the device, from pinned memory, the host need not wait; from it, it does.
            self.seen.waits[name] += goes != is_there(source) and not (goes and (quiet or kwargs.get("non_blocking")))
        elif name in _INDEXING:
            places = [one for one in args[1] if isinstance(one, Tensor)]
            self.seen.waits[name] += any(one.dtype == torch.bool or not is_there(one) for one in places)
        else:
            self.seen.waits[name] += name in _WAITING


def _check_devices(func: Any, name: str, args: tuple, tensors: list[Tensor]) -> None:
    """Raise what torch raises where devices are mixed: only single numbers, and indices, may be on the CPU."""
    if name in _COPIES:
        return
    strange = [one for one in tensors if not is_there(one)]
    if name in _INDEXING:
        wrong = not is_there(args[0])
    else:
        wrong = any(one.ndim or torch.Tag.pointwise not in func.tags for one in strange)
    if wrong and any(map(is_there, tensors)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
        )


def _written(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The tensor that an operation writes to, which it also returns; None where it makes a new one."""
    for place, said in enumerate(func._schema.arguments):
        if said.alias_info is not None and said.alias_info.is_write:
            given = args[place] if place < len(args) else kwargs.get(said.name)
            if isinstance(given, Tensor) and func._schema.returns:
                return given
    return None


def _by_cudnn(name: str, args: tuple) -> tuple[Tensor, ...]:
    """cuDNN's batch norm, by the CPU's."""
    if name == "cudnn_batch_norm":
        return (*torch.ops.aten.native_batch_norm(*args), torch.empty(0, dtype=torch.uint8))
    image, gradient, *statistics, eps, _ = args
    return torch.ops.aten.native_batch_norm_backward(gradient, image, *statistics, True, eps, [True] * 3)


class _Hooks:
    """CUDA's hooks for autograd, with one answer changed: no device has a context, and so no stream to come back to.

    They are a C++ object. It gets a copy of its table of methods; after both destructors come isBuilt, isAvailable and
    hasPrimaryContext (ATen/detail/AcceleratorHooksInterface.h of torch 2.11).
    """

    _WORDS, _BEFORE, _HAS_CONTEXT = 64, 2, 4

    def __init__(self) -> None:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
        get = library["_ZN2at6detail12getCUDAHooksEv"]
        get.restype = ctypes.POINTER(ctypes.c_void_p)
        self._object = get()
        self._methods = self._object[0]
        self._no = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, device: False)
        size = ctypes.sizeof(ctypes.c_void_p)
        content = ctypes.string_at(self._methods - self._BEFORE * size, (self._WORDS + self._BEFORE) * size)
        self._table = (ctypes.c_void_p * (self._WORDS + self._BEFORE)).from_buffer_copy(content)
        self._table[self._BEFORE + self._HAS_CONTEXT] = ctypes.cast(self._no, ctypes.c_void_p).value
        self._object[0] = ctypes.addressof(self._table) + self._BEFORE * size

    def restore(self) -> None:
        self._object[0] = self._methods


@contextmanager
def _pretended(monkeypatch: pytest.MonkeyPatch, seen: Seen) -> Iterator[None]:
    state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "is_bf16_supported": True,
        "get_device_name": "a pretended GPU",
        "is_current_stream_capturing": False,
        "manual_seed_all": None,
        "get_rng_state": state,
        "set_rng_state": None,
        "mem_get_info": (2**34, 2**35),
        "memory_allocated": 2**20,
        "max_memory_allocated": 2**30,
        "memory_reserved": 2**20,
        "reset_peak_memory_stats": None,
        "_lazy_init": None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: MagicMock())
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, device=None: self)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    # Views of such tensors cannot be made in inference mode.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
    torch._C._ensureCUDADeviceGuardSet()
    lift, overwrite = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    hooks = _Hooks()
    try:
        with torch.autograd.set_multithreading_enabled(False), Device(seen, real=False):
            yield
    finally:
        hooks.restore()
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """A GPU, `cuda:0`, and what is seen of it; a command that runs on it may leave determinism behind."""
    seen = Seen()
    try:
        if torch.cuda.is_available():
            with Device(seen, real=True):
                yield seen
        elif torch.version.cuda is None or not torch.__version__.startswith("2.11."):
            pytest.skip("a GPU, or torch 2.11 with CUDA, is needed")
        else:
            with _pretended(monkeypatch, seen):
                yield seen
    finally:
        torch.use_deterministic_algorithms(False)
        seed_everything(1, deterministic=False)


def on_cpu(value: Any) -> Any:
    """The same with its tensors on the CPU."""
    return tree_map_only(Tensor, lambda one: one.values if isinstance(one, Pretended) else one.cpu(), value)

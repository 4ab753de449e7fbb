"""Which modules ran in one forward pass of a network, in which order, and on what; the network is left as it was."""

from __future__ import annotations

import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """A module that gave a tensor; `output` is dead once the network has let go of it."""

    name: str
    module: nn.Module
    shape: torch.Size
    output: weakref.ref[Tensor]
    reads: torch.Size  # shape of its first input, empty where that is no tensor
    givers: tuple[str, ...]  # the modules that gave this very input, inner before outer
    same: tuple[str, ...]  # the modules that gave this very output before: its own last part, if it adds nothing


class Trace:
    """One forward pass: `calls` in the order in which modules end, so the parts of a module stand before it.

    It keeps shapes, not tensors, so it takes no more memory than the pass itself.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.calls: list[Call] = []
        self.times: Counter[str] = Counter()
        self._givers: dict[int, tuple[weakref.ref[Tensor], tuple[str, ...]]] = {}
        with _left_as_it_was(model), torch.no_grad(), ExitStack() as hooks:
            for name, module in model.named_modules():
                if name:
                    hooks.enter_context(module.register_forward_hook(self._hook(name), with_kwargs=True))
            self.output = model(*inputs)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            self.times[name] += 1
            if not isinstance(output, Tensor):
                return
            read = next(iter((*inputs, *named.values())), None)
            shape, givers = (read.shape, self._names_of(read)) if isinstance(read, Tensor) else (torch.Size(), ())
            same = self._names_of(output)
            self.calls.append(Call(name, module, output.shape, weakref.ref(output), shape, givers, same))
            self._givers[id(output)] = weakref.ref(output), (*same, name)

        return hook

    def _names_of(self, tensor: Tensor) -> tuple[str, ...]:
        """The modules that gave this very tensor, not an equal one."""
        reference, names = self._givers.get(id(tensor), (None, ()))
        return names if reference is not None and reference() is tensor else ()


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; afterwards every module's own mode, the buffers and the random state are back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    devices = {tensor.device.index for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    python_random = random.getstate()
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            for module, _ in modes:
                module.training = False
            yield
    finally:
        random.setstate(python_random)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer.copy_(before))

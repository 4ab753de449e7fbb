"""The processes of a run, as `torchrun` starts them; a process alone is a single rank."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

# Its functions take the group that is the default when it is first imported as their own, and DDP imports it: imported
# here, before there is a group, it keeps none alive, nor the threads of one.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_SECONDS_TO_FINISH = 0.5  # of the threads of a group that ends
_TIMEOUT = timedelta(minutes=30)  # longer than the first process may check data while the others wait for it


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` of `world`, and `local_rank` among those of its machine.

    Every method but `shard` is called by all processes at the same place, and waits for all.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module, *, find_unused: bool = False, static: bool = False) -> nn.Module:
        """The module as DistributedDataParallel: weights of the first process, gradients averaged over all.

        `find_unused`: it has parameters that no output depends on. `static`: every step uses the same ones, by one
        backward pass; their order is then known after the first.
        """
        if self.world == 1:
            return module
        return DistributedDataParallel(
            module,
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,
            static_graph=static and not find_unused,
        )

    def any(self, wish: bool) -> bool:
        """Whether it is true in one of the processes."""
        return any(self.gather(wish))

    def mean_and_any(self, terms: Mapping[str, Tensor], *wishes: bool) -> tuple[dict[str, float], list[bool]]:
        """The mean of scalar terms over all processes, and whether each wish is one process's, in one reduction.

        Call it after the backward pass: reading the values waits for a GPU.
        """
        values = torch.stack([value.detach() for value in terms.values()])
        if self.world == 1:
            return dict(zip(terms, values.tolist(), strict=True)), list(wishes)
        sums = torch.cat([values.to(self.device), torch.tensor(wishes, dtype=values.dtype).to(self.device)])
        dist.all_reduce(sums)
        sums[: len(terms)] /= self.world
        numbers = sums.tolist()  # one wait for all
        return dict(zip(terms, numbers[: len(terms)], strict=True)), [votes > 0 for votes in numbers[len(terms) :]]

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order of rank."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def shard(self, length: int) -> range:
        """The indices, of so many items, that this process takes."""
        return range(self.rank, length, self.world)

    def in_order(self, results: Mapping[int, T]) -> list[T]:
        """The results of all processes, by index, in the order of their indices."""
        gathered = {index: result for part in self.gather(dict(results)) for index, result in part.items()}
        return [gathered[index] for index in sorted(gathered)]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


def local_rank() -> int | None:
    """The rank of this process among those of its machine; None where torchrun did not start several."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return int(os.environ["LOCAL_RANK"]) if several and "LOCAL_RANK" in os.environ else None


def is_restart() -> bool:
    """Whether torchrun restarted this process, after one of the run was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the processes of the run, by NCCL on GPUs and Gloo on CPUs, for the length of a context."""
    local = local_rank()
    if local is None:
        yield Ranks(device=device)
        return
    store, rank, world = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    # torchrun keeps one store over its restarts, in which a process that is started again may find the address of one
    # that is gone. On several machines restarts are not counted alike: there a new store for each start has to be asked
    # for, by TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (docs/distributed.md).
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world,
        timeout=_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield Ranks(rank, world, local, device)
    except SystemExit:  # all processes stop at one step; after an error some would wait for others, which have ended
        _leave()
        raise
    _leave()


def _leave() -> None:
    if dist.get_backend() == "gloo":
        # One of its threads may still free the tensors of the last reduction, which takes the GIL; to destroy the group
        # holds the GIL and waits for that thread: a deadlock, seen on a busy machine.
        time.sleep(_SECONDS_TO_FINISH)
    dist.destroy_process_group()
    # Gloo's threads end with the last reference to the group, and DDP holds one in a cycle; a thread that frees a
    # tensor while Python exits would crash the process after its work is done.
    gc.collect()

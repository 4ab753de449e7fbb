"""Several processes that work as one, as `torchrun` starts them; one process alone is the same with a single rank."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Its functions take the group that is the default when it is first imported as their own, and DDP imports it: imported
# here, before there is a group, it keeps none alive, nor the threads of one.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Longer than the first process may check data while the others wait for it.
_PATIENCE = timedelta(minutes=30)
_GIVEN_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among all: `rank` of `world`, and `local_rank` among those of its machine.

    Every method is called by all processes at the same place, and waits for all.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def together(self, module: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """The module with the first process's weights everywhere; its gradients are the mean over all processes.

        `some_unused`: it has parameters that no output depends on, which have to be looked for in every pass.
        """
        if self.world == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=some_unused)

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def any(self, wish: bool) -> bool:
        """Whether one of the processes says so."""
        return bool(self.all_reduce(torch.tensor(float(wish))) > 0)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def shard(self, length: int) -> range:
        """The places, of so many items, that fall to this process."""
        return range(self.rank, length, self.world)

    def in_order(self, results: Mapping[int, Any]) -> list[Any]:
        """The results of all processes in the order of their places, each from the one whose `share` it was."""
        everywhere = {place: result for part in self.gather(dict(results)) for place, result in part.items()}
        return [everywhere[place] for place in sorted(everywhere)]

    def barrier(self) -> None:
        """Go on once all processes are here."""
        if self.world > 1:
            dist.barrier()


def local_rank() -> int | None:
    """The place of this process among those that torchrun started on this machine; None where it runs alone."""
    return int(os.environ["LOCAL_RANK"]) if _started_by_torchrun() else None


def is_restart() -> bool:
    """Whether torchrun starts this process again, after one of the run was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def with_synchronised_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch statistics of the whole batch of all processes, under the same parameter names.

    Raises:
        ValueError: the device is a CPU, for which torch has no such layer.
    """
    if device.type != "cuda":
        raise ValueError("--sync_bn needs GPUs, and the device is the CPU; leave it out, or give larger batches")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes of the run, by NCCL on GPUs and Gloo on CPUs, and leave them at the end."""
    if not _started_by_torchrun():
        yield Ranks(device=device)
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend, meeting = "nccl" if device.type == "cuda" else "gloo", _meeting_place()
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=world, timeout=_PATIENCE)
    yield Ranks(rank, world, local_rank(), device)
    dist.destroy_process_group()  # not after an error: some wait for the others, which wait for this one
    # Gloo's threads end with the last that holds the group, DDP in a cycle among them. One that still lets go of a
    # tensor while Python ends would bring the process down, with its work done.
    gc.collect()


def _meeting_place() -> dist.Store:
    """Where the processes tell each other their addresses, apart for each time that torchrun starts them.

    torchrun keeps one store over its restarts, in which a process that is started again may find the address of one
    that is gone. On several machines restarts are not counted alike: there a store of its own for each start has to be
    asked for, by TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 (docs/distributed.md).
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    leads = not shared and os.environ["RANK"] == "0"
    store = dist.TCPStore(address, port, is_master=leads, timeout=_PATIENCE, multi_tenant=not shared)
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0) if alone else 0}", store)


def _started_by_torchrun() -> bool:
    return all(name in os.environ for name in _GIVEN_BY_TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1

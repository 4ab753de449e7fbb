"""Several processes are one run: the step, the record, a lost process, an interruption, the evaluation."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import utils
from datasets import build_dataset
from datasets.loader import build_loader
from engine.distributed import Ranks
from engine.resume import generator_states, restore_generators
from losses import Criterion, KDloss
from networks import build_network
from selfreg import FeatureTap
from tests.conftest import make_synapse
from tests.networks.small import small_config
from tests.reliability import runs
from trainer import Schedule

pytestmark = [pytest.mark.reliability, pytest.mark.xdist_group("processes")]

CPU = torch.device("cpu")
STEPS = ["--max_epochs", 2, "--workers", 0, "--batch_size", 4, "--seed", 7]


def test_the_step_is_that_of_one_process_that_averages_the_half_batches(tmp_path: Path) -> None:
    """Each rank with its own generators, under drop path and the regulariser; 2 epochs of 3 steps, the last a half."""
    root = make_synapse(tmp_path / "data", train=3, shape=(5, 40, 40))
    runs.finish([*runs.TORCHRUN, *runs.words(root, tmp_path / "run", *STEPS)])
    found = runs.last(tmp_path / "run")
    expected, losses = averaged(root, epochs=2)
    assert found["step"] == len(losses) == 6
    for key, value in expected.items():
        assert (found["model"][key] - value).abs().max() < 1e-6, key
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(losses, abs=1e-6)


@pytest.mark.long
def test_parameters_without_a_gradient_keep_nobody_waiting(synapse: Path, tmp_path: Path) -> None:
    """HiFormer's discarded fusion has some."""
    words = ["--dataset", "Synapse", "--root_path", synapse, "--cfg", small_config("hiformer_s", tmp_path)]
    run = ["--output_dir", tmp_path / "run", "--max_iterations", "2"]
    _, error = runs.finish([*runs.TORCHRUN, "train.py", *map(str, [*words, *run])])
    assert "Traceback" not in error and runs.last(tmp_path / "run")["step"] == 2


def averaged(root: Path, epochs: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after, and losses of, a plain loop over both halves of each batch in one process."""
    networks, generators, loaders = [], [], []
    slices = build_dataset("Synapse", "train", num_classes=9, root_path=str(root), val_cases=1)
    for rank in range(2):
        utils.seed_everything(7, True, rank)
        options = {"embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4, "drop_path_rate": 0.3}
        networks.append(build_network("swin_unet", num_classes=9, img_size=32, **options).train())
        generators.append(generator_states(CPU))
        loaders.append(build_loader(slices, size=(32, 32), batch_size=4, seed=7, rank=rank, world=2))
    network, criterion = networks[0], Criterion(9, kd=KDloss(0.015))
    tap = FeatureTap(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule, step, losses = Schedule(epochs, len(loaders[0]), base_lr=0.01), 0, []
    for epoch in range(epochs):
        for loader in loaders:
            loader.sampler.epoch = epoch
        for halves in zip(*loaders, strict=True):
            optimizer.param_groups[0]["lr"] = schedule.lr_after(step - 1)
            optimizer.zero_grad()
            total = 0.0
            for rank, half in enumerate(halves):
                restore_generators(generators[rank], CPU)
                logits, features = tap(half.image)
                loss = criterion(logits, half.label, features)["loss"] / 2
                loss.backward()
                total += loss.item()
                generators[rank] = generator_states(CPU)
            optimizer.step()
            losses.append(total)
            step += 1
    return network.state_dict(), losses


@pytest.mark.long
def test_only_the_first_writes(synapse: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    out, error = runs.finish([*runs.TORCHRUN, *runs.words(synapse, run, *STEPS)])
    assert out.count("first rate") == 1 and "in 2 processes" in out and "Traceback" not in error
    assert runs.starts_of(run) == 1 and len(list((run / "log").iterdir())) == 1
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [1, 2, 2], "one row a step, one of the validation"
    assert {p.name for p in run.iterdir()} == {
        *("config.yaml", "log.txt", "metrics.jsonl", "log", "last.pth", "best.pth")
    }


LEAVES = """
import pathlib
import torch
from engine.distributed import process_group

def train():
    with process_group(torch.device("cpu")) as ranks:
        network = ranks.wrap(torch.nn.Linear(2, 2))
        network(torch.ones(1, 2)).sum().backward()
        return ranks.gather(1)

threads = lambda: len(list(pathlib.Path("/proc/self/task").iterdir()))
before = threads()
train()
print(f"{threads() - before} more")
"""


@pytest.mark.long
def test_no_thread_outlives_the_group(tmp_path: Path) -> None:
    """One that does may abort a process whose run is done."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT), "OMP_NUM_THREADS": "1"}
    out, _ = runs.finish([*runs.TORCHRUN, str(script)], env=environment)
    assert re.findall(r"-?\d+ more", out) == ["0 more", "0 more"]


def ranks_of(torchrun: int) -> dict[int, int]:
    """Rank to process number, of the living processes that a torchrun has started."""
    found = {}
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text(encoding="utf-8").split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update({int(pair.split(b"=")[1]): int(child) for pair in environment if pair.startswith(b"RANK=")})
    return found


@pytest.mark.long
def test_a_killed_process_costs_the_run_nothing(tmp_path: Path, long: bool, record_property: Callable) -> None:
    """Each rank in its turn is killed in mid-training; torchrun starts both again, and they go on by themselves."""
    root = make_synapse(tmp_path / "data", train=3, shape=(5, 40, 40))
    words = ["--max_epochs", 12, "--workers", 1, "--batch_size", 2]
    opts = ("TRAIN.SAVE_SECONDS", "0.2")
    run, whole = tmp_path / "run", tmp_path / "whole"
    runs.finish([*runs.TORCHRUN, *runs.words(root, whole, *words, opts=opts)])
    process = runs.start([*runs.TORCHRUN, "--max_restarts=3", *runs.words(root, run, *words, opts=opts)])
    victims, rng = ([1, 0, 1] if long else [1]), random.Random(0)
    for number, victim in enumerate(victims):
        runs.wait_for(lambda number=number: runs.starts_of(run) > number, process)
        runs.wait_for((run / "last.pth").exists, process)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(ranks_of(process.pid)[victim], signal.SIGKILL)
    out, _ = runs.end(process)
    assert runs.starts_of(run) == len(victims) + 1 and out.count("resumed at epoch") == len(victims)
    runs.assert_same_run(run, whole)
    record_property("counted", f"ranks killed under torchrun: {len(victims)}; final state bit for bit")


def exit_codes(error: str) -> set[int]:
    """Those that torchrun reports; -15 is of a process that had saved and was at its end when torchrun ended it."""
    return {int(code) for code in re.findall(r"exitcode +: (-?\d+)", error)}


@pytest.mark.long
def test_an_interruption_stops_all_at_one_step(synapse: Path, tmp_path: Path) -> None:
    """SIGTERM to one rank alone: both save and leave, and the run goes on from that step."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ["--max_epochs", 40, "--workers", 0]
    command = [*runs.TORCHRUN, *runs.words(synapse, run, *words, "--resume", "auto")]
    process = runs.start(command)
    runs.wait_for(lambda: runs.steps_of(run) > 3, process)
    os.kill(ranks_of(process.pid)[1], signal.SIGTERM)
    out, error = process.communicate(timeout=runs.PATIENCE)
    assert process.returncode != 0 and exit_codes(error) <= {143, -15} and 143 in exit_codes(error), error
    assert "stopped by signal 15" in out and 'train.py", line' not in error, "the tracebacks are torchrun's own"
    assert runs.last(run)["step"] == runs.steps_of(run)
    runs.finish(command)
    runs.finish([*runs.TORCHRUN, *runs.words(synapse, whole, *words)])
    runs.assert_same_run(run, whole)


@pytest.mark.long
def test_another_number_of_processes_does_not_resume(synapse: Path, tmp_path: Path) -> None:
    words = runs.words(synapse, tmp_path / "run", *STEPS)
    runs.finish([*runs.TORCHRUN, *words])
    _, error = runs.finish([*runs.PYTHON, *words[:-1], words[-1], "MODEL.NAME", "x"], code=2)
    assert "holds a run already" in error
    at = words.index("--opts")
    _, error = runs.finish([*runs.PYTHON, *words[:at], "--resume", *words[at:]], code=2)
    assert "2 processes trained it, here are 1" in error


@pytest.mark.long
def test_what_diverges_ends_in_all(synapse: Path, tmp_path: Path) -> None:
    words = runs.words(synapse, tmp_path / "run", *STEPS, "--base_lr", "9e5", "--max_epochs", 30)
    process = runs.start([*runs.TORCHRUN, *words])
    out, error = process.communicate(timeout=runs.PATIENCE)
    assert exit_codes(error) <= {3, -15} and 3 in exit_codes(error) and "3 times in a row" in error, error
    log = (tmp_path / "run/log.txt").read_text(encoding="utf-8")
    skipped = [line for line in log.splitlines() if "skipped" in line]
    assert skipped and all(line.count("_slice") >= 2 for line in skipped), "the slices of both are named"


@pytest.mark.long
def test_an_evaluation_shares_the_cases(tmp_path: Path) -> None:
    root = make_synapse(tmp_path / "data", train=2, test=3)
    run = tmp_path / "run"
    runs.finish([*runs.PYTHON, *runs.words(root, run, *STEPS)])
    for start, out in ((runs.PYTHON, "one"), (runs.TORCHRUN, "two")):
        runs.finish([*start, "test.py", "--checkpoint", str(run), "--output", str(tmp_path / out)])
    for name in ("summary.json", "per_case.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    masks = sorted(path.name for path in (tmp_path / "one/predictions").iterdir())
    assert masks == sorted(path.name for path in (tmp_path / "two/predictions").iterdir()) and len(masks) == 3
    for name in masks:
        one, two = ((tmp_path / out / "predictions" / name).read_bytes() for out in ("one", "two"))
        assert one == two


@pytest.mark.parametrize("length, world", [(0, 2), (1, 2), (7, 3)])
def test_shares_are_a_partition(length: int, world: int) -> None:
    shares = [list(Ranks(rank, world).shard(length)) for rank in range(world)]
    assert sorted(place for share in shares for place in share) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.long
def test_batch_norm_over_all_needs_gpus(synapse: Path, tmp_path: Path) -> None:
    words = runs.words(synapse, tmp_path / "run", "--sync_bn", "--n_gpu", 0)
    _, error = runs.finish([*runs.PYTHON, *words], code=2)
    assert "--sync_bn needs GPUs, and the device is the CPU" in error

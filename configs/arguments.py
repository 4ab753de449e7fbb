"""The command lines of train.py, test.py and the analysis commands, and the exit codes of every command."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from configs.schema import DISTANCES, PRECISIONS

# Flag to configuration key; a flag that is not given leaves the key as the yaml has it.
FLAGS = {
    "dataset": "DATA.DATASET",
    "root_path": "DATA.ROOT_PATH",
    "volume_path": "DATA.VOLUME_PATH",
    "list_dir": "DATA.LIST_DIR",
    "num_classes": "MODEL.NUM_CLASSES",
    "output_dir": "OUTPUT_DIR",
    "max_epochs": "TRAIN.EPOCHS",
    "max_iterations": "TRAIN.MAX_ITERATIONS",
    "batch_size": "DATA.BATCH_SIZE",
    "base_lr": "TRAIN.BASE_LR",
    "img_size": "DATA.IMG_SIZE",
    "n_gpu": "N_GPU",
    "gpu_id": "GPU_ID",
    "deterministic": "DETERMINISTIC",
    "seed": "SEED",
    "lambda_1": "LOSS.LAMBDA_1",
    "lambda_2": "LOSS.LAMBDA_2",
    "distance": "LOSS.DISTANCE",
    "warmup_epochs": "LOSS.WARMUP_EPOCHS",
    "use_checkpoint": "TRAIN.USE_CHECKPOINT",
    "accumulation_steps": "TRAIN.ACCUMULATION_STEPS",
    "precision": "PRECISION",
    "compile": "COMPILE",
    "sync_bn": "TRAIN.SYNC_BN",
    "workers": "DATA.NUM_WORKERS",
    "cache": "DATA.CACHE",
    "val_cases": "DATA.VAL_CASES",
    "axis": "DATA.AXIS",
    "folds": "DATA.FOLDS",
    "fold": "DATA.FOLD",
    "metrics": "TEST.METRICS",
    "inference": "TEST.INFERENCE",
    "overlap": "TEST.OVERLAP",
}

_FINE = -1
_MAX_MESSAGE = 1500  # characters; longer than any path and what is reported of it


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that leaves its errors to `run_guarded`: one line on standard error, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def train_parser() -> argparse.ArgumentParser:
    """The parser of train.py."""
    parser = _shared_parser("train.py", "Train a network with the SelfReg loss; everything is written to --output_dir.")
    add = parser.add_argument
    add(
        "--resume",
        nargs="?",
        const="auto",
        default="",
        metavar="auto|FILE",
        help="resume from FILE, or (auto) from output_dir/last.pth where there is one",
    )
    add("--ignore_head", action="store_true", help="load PRETRAIN_CKPT without its last layer: other classes")
    add("--axis", choices=("x", "y", "z"), help="slice volumes of --dataset Folder along it (default: the coarsest)")
    add("--folds", type=int, metavar="K", help="cross-validation: train and test K times, each fold held out once")
    add("--fold", type=int, metavar="I", help="of --folds K, only fold I, counted from 0")
    add("--val_cases", type=int, help="training cases held out to select best.pth by (0: none, as published)")
    add(
        "--distance",
        metavar="|".join(DISTANCES),
        help="between channels in the regularizer (default: mse, as published)",
    )
    add("--warmup_epochs", type=float, help="epochs over which the weights of the regularizer rise from 0")
    add("--workers", type=int, help="processes that load data")
    add("--cache", metavar="DIR", help="folder of a memory-mapped copy of the training slices, read instead of them")
    add("--amp", dest="precision", action="store_const", const="bfloat16", help="the same as --precision bfloat16")
    add("--sync_bn", action="store_const", const=True, help="batch norm over all processes of torchrun (GPUs only)")
    add("--compile", action="store_const", const=True, help="torch.compile: minutes at the start, faster steps after")
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The parser of test.py."""
    parser = _shared_parser("test.py", "Evaluate a run or a checkpoint, or predict volumes and images.")
    add = parser.add_argument
    add(
        "--checkpoint",
        default="",
        metavar="FILE_OR_RUN",
        help="weights, or the folder of a run (default: --output_dir)",
    )
    add("--input", default="", metavar="FILE_OR_FOLDER", help="NIfTI, DICOM or images to predict, without labels")
    add("--output", default="", metavar="DIR", help="folder of the results (default: --output_dir)")
    add("--metrics", choices=("fast", "medpy"), help="how distances are computed; both give the same numbers")
    add("--inference", choices=("zoom", "slide"), help="resize slices (the default), or use a sliding window")
    add("--overlap", type=float, help="of neighboring windows, a fraction from 0 to below 1 (default: 0.5)")
    add("--is_savenii", action="store_true", help="accepted for the published command; predictions are always written")
    return parser


def analysis_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command in analysis/, which adds its own flags; a network is named as in test.py."""
    parser = _base_parser(prog, description)
    parser.set_defaults(output_dir=None)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE_OR_RUN", help="weights, or the folder of a run")
    add("--input", default="", metavar="FILE_OR_FOLDER", help="NIfTI, DICOM or images in place of the test set")
    add("--output", required=True, metavar="DIR", help="folder of the figure and its numbers")
    add(
        "--layers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="modules by name, or by place: encoder[1][0], final (default: the regularized ones)",
    )
    return parser


def _base_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """What every command takes: configuration, data, device."""
    parser = OneLineParser(prog=prog, description=description)
    add = parser.add_argument
    add("--cfg", default="", metavar="FILE", help="experiment file (yaml), such as those in configs/")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="set any key of the configuration")
    add("--dataset", help="Synapse, ACDC, GlaS, MoNuSeg, Phantom, or Folder: images/ and labels/ of your own")
    add("--root_path", metavar="DIR", help="data folder (default: data/<dataset>)")
    add("--volume_path", metavar="DIR", help="folder of the test volumes (default: as --root_path)")
    add(
        "--list_dir",
        metavar="DIR",
        help="folder of the lists (default: lists/lists_<dataset>, else the data's own, else the shipped split)",
    )
    add("--num_classes", type=int, help="classes, with the background (default: those of the data set)")
    add("--batch_size", type=int, help="slices a step")
    add("--img_size", type=int, nargs="+", metavar="SIDE", help="side of the network's input in pixels, or H W")
    add("--n_gpu", type=int, help="1, or 0 for the CPU")
    add("--gpu_id", type=int, help="which GPU, where there are several")
    add("--deterministic", type=int, choices=(0, 1), help="the same numbers again on the same machine (default: 1)")
    add("--seed", type=int, help="seed of weights, order, augmentation and channel draws")
    add("--trust_checkpoint", action="store_true", help="unpickle checkpoints, code included: only for your own files")
    return parser


def _shared_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """What train.py and test.py take, as the published commands do."""
    parser = _base_parser(prog, description)
    add = parser.add_argument
    add("--output_dir", metavar="DIR", help="folder of the run")
    add("--max_epochs", type=int, help="epochs to train")
    add("--max_iterations", type=int, help="steps to train at most")
    add("--base_lr", type=float, help="learning rate before the schedule")
    add("--precision", metavar="|".join(PRECISIONS), help="of the network's arithmetic (default: float32)")
    add("--lambda_x", type=float, help="weight of both terms of the regularizer; 0 is the plain baseline")
    add("--lambda_1", type=float, help="weight of semantic consistency (SCR) alone")
    add("--lambda_2", type=float, help="weight of internal feature distillation (IFD) alone")
    add("--accumulation-steps", type=int, help="batches whose gradients make one step")
    add("--use-checkpoint", action="store_const", const=True, help="gradient checkpointing: less memory, more time")
    return parser


def overrides_of(args: argparse.Namespace) -> dict[str, object]:
    """The configuration keys that the given flags set."""
    overrides = {key: getattr(args, flag) for flag, key in FLAGS.items() if getattr(args, flag, None) is not None}
    if getattr(args, "lambda_x", None) is not None:
        overrides = {"LOSS.LAMBDA_1": args.lambda_x, "LOSS.LAMBDA_2": args.lambda_x} | overrides
    return overrides


def flag_hint(key: str) -> str:
    """The flag that sets a key of the configuration, for the end of a message."""
    return next((f" (--{flag})" for flag, own in FLAGS.items() if own == key), "")


def check_command_line(prog: str, parser: argparse.ArgumentParser) -> None:
    """Answer --help and refuse a wrong flag before a command imports torch; Ctrl-C ends the import at once."""
    code = run_guarded(prog, lambda: _FINE if parser.parse_args() else _FINE)
    if code != _FINE:
        sys.exit(code)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run_guarded`


def run_guarded(prog: str, command: Callable[[], int]) -> int:
    """Run a command; returns its exit code.

    Bad input ends in one line on standard error and exit code 2, Ctrl-C in 130 and SIGTERM in 143, after whatever is to
    be cleaned up; 1 says that another process of the same run is gone.
    """
    try:
        with _sigterm_as_exit():
            return command()
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except (ValueError, OSError, MemoryError) as error:
        for defect in getattr(error, "defects", ()):  # each by itself; standard error has one line for all
            sys.stdout.write(f"{_printable(str(defect))}\n")
        code, message = 2, _one_line(error)
    except RuntimeError as error:
        if _is_of_a_lost_process(error):
            code, message = 1, "another process of this run has ended; torchrun --max_restarts N starts all again"
        elif _is_out_of_memory(error):
            code, message = 2, _one_line(MemoryError())
        else:
            raise
    sys.stderr.write(f"{prog}: error: {_printable(message)}\n")
    return code


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the command as Ctrl-C does, so that what it has open is closed and what is partial removed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Torch's own errors are known by their names: importing torch would cost every --help two seconds.
def _is_out_of_memory(error: RuntimeError) -> bool:
    own = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return own or "DataLoader worker" in str(error)


def _is_of_a_lost_process(error: RuntimeError) -> bool:
    return type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError") or "gloo" in str(error)


def _printable(message: str) -> str:
    """The message without what would move the cursor, and cut where it would fill the page: parts come from files."""
    message = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    if len(message) <= _MAX_MESSAGE:
        return message
    return f"{message[: _MAX_MESSAGE // 2]} [...] {message[-_MAX_MESSAGE // 2 :]}"


def _one_line(error: Exception) -> str:
    """An error in one line; one that a loading process passed on ends with the message itself."""
    if isinstance(error, MemoryError):
        return (
            "out of memory; give a smaller --batch_size (--accumulation-steps makes up for it), --use-checkpoint or "
            "--amp, or fewer --workers or --jobs"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; give another path, or change its permissions"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1].split(": ", 1)[-1] if lines[0].startswith("Caught ") else " ".join(lines)

"""The command lines of train.py, test.py and the analysis commands, and the exit codes of every command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from configs.schema import DISTANCES, PRECISIONS, Config

# Flag: configuration key, help, metavar. A flag that is not given leaves the key as the yaml has it.
Flags = Mapping[str, tuple[str, str] | tuple[str, str, str]]
_BASE: Flags = {
    "dataset": ("DATA.DATASET", "Synapse, ACDC, GlaS, MoNuSeg, Phantom, or Folder: images/ and labels/ of your own"),
    "root_path": ("DATA.ROOT_PATH", "data folder (default: data/<dataset>)", "DIR"),
    "volume_path": ("DATA.VOLUME_PATH", "folder of the test volumes (default: as --root_path)", "DIR"),
    "list_dir": (
        "DATA.LIST_DIR",
        "folder of the lists (default: lists/lists_<dataset>, the data's own, the shipped split)",
        "DIR",
    ),
    "class_names": ("DATA.CLASS_NAMES", "names of the classes 1, 2, ... (default: those of the data set)", "NAME"),
    "label_suffix": ("DATA.LABEL_SUFFIX", "of label files of --dataset Folder (default: _mask and the like)", "TEXT"),
    "mask_threshold": ("DATA.MASK_THRESHOLD", "values from N on are class 1, for smooth or JPEG masks: 128", "N"),
    "num_classes": ("MODEL.NUM_CLASSES", "classes, with the background (default: those of the data set)"),
    "batch_size": ("DATA.BATCH_SIZE", "slices a step"),
    "img_size": ("DATA.IMG_SIZE", "side of the network's input in pixels, or H W", "SIDE"),
    "n_gpu": ("N_GPU", "1, or 0 for the CPU"),
    "gpu_id": ("GPU_ID", "which GPU, where there are several"),
    "deterministic": ("DETERMINISTIC", "the same numbers again on the same machine (default: 1)", "0|1"),
    "seed": ("SEED", "seed of weights, order, augmentation and channel draws"),
}
_RUN: Flags = {  # of train.py and test.py, as the published commands have them
    "output_dir": ("OUTPUT_DIR", "folder of the run", "DIR"),
    "max_epochs": ("TRAIN.EPOCHS", "epochs to train"),
    "max_iterations": ("TRAIN.MAX_ITERATIONS", "steps to train at most"),
    "base_lr": ("TRAIN.BASE_LR", "learning rate before the schedule"),
    "precision": ("PRECISION", "of the network's arithmetic (default: float32)", "|".join(PRECISIONS)),
    "lambda_1": ("LOSS.LAMBDA_1", "weight of semantic consistency (SCR) alone"),
    "lambda_2": ("LOSS.LAMBDA_2", "weight of internal feature distillation (IFD) alone"),
    "accumulation-steps": ("TRAIN.ACCUMULATION_STEPS", "batches whose gradients make one step"),
    "use-checkpoint": ("TRAIN.USE_CHECKPOINT", "gradient checkpointing: less memory, more time"),
}
_TRAIN: Flags = {
    "axis": ("DATA.AXIS", "slice volumes of --dataset Folder along it (default: the coarsest)", "x|y|z"),
    "folds": ("DATA.FOLDS", "cross-validation: train and test K times, each fold held out once", "K"),
    "fold": ("DATA.FOLD", "of --folds K, only fold I, counted from 0", "I"),
    "val_cases": ("DATA.VAL_CASES", "training cases held out to select best.pth by (0: none, as published)"),
    "distance": ("LOSS.DISTANCE", "between channels in the regularizer (default: as published)", "|".join(DISTANCES)),
    "warmup_epochs": ("LOSS.WARMUP_EPOCHS", "epochs over which the weights of the regularizer rise from 0"),
    "workers": ("DATA.NUM_WORKERS", "processes that read slices (default: by the cores, 8 at most)"),
    "cache": ("DATA.CACHE", "folder of a memory-mapped copy of the training slices, read instead of them", "DIR"),
    "sync_bn": ("TRAIN.SYNC_BN", "batch norm over all processes of torchrun (GPUs only)"),
    "compile": ("COMPILE", "torch.compile: minutes at the start, faster steps after"),
}
_TEST: Flags = {
    "metrics": ("TEST.METRICS", "how distances are computed; both give the same numbers", "fast|medpy"),
    "inference": ("TEST.INFERENCE", "resize slices (the default), or use a sliding window", "zoom|slide"),
    "overlap": ("TEST.OVERLAP", "of neighboring windows, a fraction from 0 to below 1 (default: 0.5)"),
}
FLAGS = {**_BASE, **_RUN, **_TRAIN, **_TEST}

_VERSION_IN = Path(__file__).resolve().parent.parent / "selfreg/__init__.py"  # importing it takes seconds
_FINE = -1
_OPTIONAL = {"SimpleITK": "SimpleITK", "medpy": "MedPy"}  # packages by module, 260 MB
_FIRST = ("yacs", "numpy")  # of the requirements, quick to import
_MAX_MESSAGE = 1500  # characters; longer than any path and what is reported of it


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        version = _VERSION_IN.read_text(encoding="utf-8").partition('__version__ = "')[2].partition('"')[0]
        sys.stdout.write(f"selfreg {version}\n")
        parser.exit()


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that leaves its errors to `run_guarded`: one line on standard error, exit code 2."""

    def __init__(self, **options: Any) -> None:  # whatever argparse takes
        super().__init__(**options)
        self.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version")

    def error(self, message: str) -> NoReturn:
        from configs.config import default_tree, leaves  # which imports this module

        options = self._option_string_actions
        keys = {f"--{key.lower().rpartition('.')[2]}": key for key, _ in leaves(default_tree()) if not flag_hint(key)}
        words = [word.partition("=")[0].strip(":,") for word in message.split() if word[:1] == "-"]
        wrong = [f"--{word.lstrip('-')}" for word in words if not any(one.startswith(word) for one in options)]
        by_key = [f"--opts {keys[flag]}" for flag in wrong[:1] if flag in keys and "--opts" in options]
        near = by_key or get_close_matches("".join(wrong[:1]), options, n=1)
        raise ValueError(f"{message}{f' (did you mean {near[0]}?)' if near else ''}; see {self.prog} --help")


def train_parser() -> argparse.ArgumentParser:
    """The parser of train.py."""
    parser = _parser("train.py", "Train a network with the SelfReg loss; everything is written to --output_dir.", _RUN)
    add = parser.add_argument
    text = "resume from FILE, or (auto) from output_dir/last.pth where there is one"
    add("--resume", nargs="?", const="auto", default="", metavar="auto|FILE", help=text)
    add("--ignore_head", action="store_true", help="load PRETRAIN_CKPT without its last layer: other classes")
    add("--amp", dest="precision", action="store_const", const="bfloat16", help="the same as --precision bfloat16")
    _add_flags(parser, _TRAIN)
    return parser


def test_parser() -> argparse.ArgumentParser:
    """The parser of test.py."""
    parser = _parser("test.py", "Evaluate a run or a checkpoint, or predict volumes and images.", _RUN)
    add = parser.add_argument
    text = "weights, or the folder of a run (default: --output_dir)"
    add("--checkpoint", default="", metavar="FILE_OR_RUN", help=text)
    add("--input", default="", metavar="FILE_OR_FOLDER", help="NIfTI, DICOM or images to predict, without labels")
    add("--output", default="", metavar="DIR", help="folder of the results (default: --output_dir)")
    add("--is_savenii", action="store_true", help="accepted for the published command; predictions are always written")
    _add_flags(parser, _TEST)
    return parser


def gradcam_parser() -> argparse.ArgumentParser:
    """The parser of analysis/gradcam.py."""
    parser = _analysis_parser("gradcam.py", "Draw where each layer of a trained network holds evidence for a class.")
    add = parser.add_argument
    add("--case", default="", metavar="NAME", help="which case (default: the first)")
    add("--slice", type=int, metavar="N", help="which slice of it, from 1 on (default: that with most classes)")
    add("--class", dest="target", metavar="NAME_OR_NUMBER", help="default: the one with most pixels in the prediction")
    return parser


def similarity_parser() -> argparse.ArgumentParser:
    """The parser of analysis/similarity.py."""
    parser = _analysis_parser(
        "similarity.py", "Compare the channels of a trained network, in the halves that IFD pairs."
    )
    text = "slices at most, evenly spread over the cases (default: 64); those without a label are left out"
    parser.add_argument("--images", type=int, default=64, metavar="N", help=text)
    return parser


def _analysis_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """What the commands of analysis/ take; a network is named as in test.py."""
    parser = _parser(prog, description, {})
    parser.set_defaults(output_dir=None)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE_OR_RUN", help="weights, or the folder of a run")
    add("--input", default="", metavar="FILE_OR_FOLDER", help="NIfTI, DICOM or images in place of the test set")
    add("--output", required=True, metavar="DIR", help="folder of the figure and its numbers")
    text = "modules by name, or by place: encoder[1][0], final (default: the regularized ones)"
    add("--layers", nargs="+", default=[], metavar="NAME", help=text)
    return parser


def _parser(prog: str, description: str, flags: Flags) -> argparse.ArgumentParser:
    """A parser of what every command takes (configuration, data, device), and of more flags."""
    parser = OneLineParser(prog=prog, description=description)
    add = parser.add_argument
    add("--cfg", default="", metavar="FILE", help="experiment file (yaml), such as those in configs/")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="set any key of the configuration")
    add("--trust_checkpoint", action="store_true", help="unpickle checkpoints, code included: only for your own files")
    _add_flags(parser, _BASE)
    if flags:
        add("--lambda_x", type=float, help="weight of both terms of the regularizer; 0 is the plain baseline")
        _add_flags(parser, flags)
    return parser


def _add_flags(parser: argparse.ArgumentParser, flags: Flags) -> None:
    """Add flags of configuration keys, each of its key's type; `get_config` checks ranges and choices."""
    for flag, (key, text, *metavar) in flags.items():
        default = reduce(getattr, key.lower().split("."), Config())
        if default is False:
            parser.add_argument(f"--{flag}", action="store_const", const=True, help=text)
        else:
            several = isinstance(default, tuple)
            kind = str if key == "DATA.CLASS_NAMES" else int if several or default is True else type(default)
            nargs = "+" if several else None
            parser.add_argument(f"--{flag}", type=kind, nargs=nargs, metavar=metavar[0] if metavar else None, help=text)


def overrides_of(args: argparse.Namespace) -> dict[str, object]:
    """The configuration keys that the given flags set."""
    given = {key: getattr(args, flag.replace("-", "_"), None) for flag, (key, *_) in FLAGS.items()}
    both = dict.fromkeys(("LOSS.LAMBDA_1", "LOSS.LAMBDA_2"), getattr(args, "lambda_x", None))
    return {key: value for key, value in (*both.items(), *given.items()) if value is not None}


def flag_hint(key: str) -> str:
    """The flag that sets a key of the configuration, for the end of a message."""
    return next((f" (--{flag})" for flag, (own, *_) in FLAGS.items() if own == key), "")


def check_command_line(prog: str, parser: argparse.ArgumentParser) -> None:
    """Answer --help and refuse a wrong flag, or a Python without the requirements, before a command imports torch;
    Ctrl-C ends the import at once."""
    code = run_guarded(prog, lambda: _FINE if parser.parse_args() and all(map(import_module, _FIRST)) else _FINE)
    if code != _FINE:
        sys.exit(code)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run_guarded`


def run_guarded(prog: str, command: Callable[[], int]) -> int:
    """Run a command; returns its exit code.

    Bad input ends in one line on standard error and exit code 2, Ctrl-C in 130 and SIGTERM in 143, after whatever is to
    be cleaned up; 1 says that another process of the same run is gone.
    """
    for name in ("stdout", "stderr"):  # None where it was closed
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
        setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what a locale such as POSIX cannot print
    try:
        with _sigterm_as_exit(), redirect_stdout(cast(TextIO, _Visible(sys.stdout))):
            return command()
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except (ValueError, OSError, MemoryError) as error:
        for defect in getattr(error, "defects", ()):  # each by itself; standard error has one line for all
            sys.stdout.write(f"{_printable(str(defect))}\n")
        code, message = 2, _one_line(error)
    except ModuleNotFoundError as error:
        code, message = 2, f"{error}: this Python lacks the requirements; make install, then source .venv/bin/activate"
        if package := _OPTIONAL.get((error.name or "").partition(".")[0]):
            message = f"{error}: it is optional, and needed here; pip install {package}"
    except RuntimeError as error:
        text = f"{type(error).__name__}: {error}"
        known = next((failure for failure in _FAILURES if any(part in text for part in failure[0])), None)
        if known is None:
            raise
        _, code, message = known
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


_OUT_OF_MEMORY = (
    "out of memory; give a smaller --batch_size (--accumulation-steps makes up for it), --use-checkpoint or --amp, or "
    "fewer --workers or --jobs"
)
# What RuntimeErrors of torch, CUDA and NCCL say, the exit code, and what to do. Importing torch, to know their types,
# would cost every --help two seconds.
_FAILURES: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (
        # A library that finds no room for its own workspace says NOT_INITIALIZED.
        ("OutOfMemoryError", "out of memory", "ALLOC_FAILED", "STATUS_NOT_INITIALIZED", "DefaultCPUAllocator"),
        2,
        _OUT_OF_MEMORY,
    ),
    (("DataLoader worker", "Pin memory thread"), 2, _OUT_OF_MEMORY),
    (
        ("DistBackendError", "DistNetworkError", "DistStoreError", "gloo", "NCCL"),
        1,
        "another process of this run has ended; torchrun --max_restarts N starts all again",
    ),
    (("busy or unavailable",), 2, "another process has the GPU for itself; wait, or name another by --gpu_id"),
    (
        ("NVIDIA driver", "driver version is insufficient"),
        2,
        "the NVIDIA driver is missing or too old for this torch; update it, install a torch for it (pytorch.org), or "
        "use the CPU (--n_gpu 0)",
    ),
    (
        ("no kernel image",),
        2,
        "this torch has no code for this GPU; install one that has (pytorch.org), or use the CPU (--n_gpu 0)",
    ),
)


class _Visible:
    """A stream that every control character but the end of a line is written to as text: names come from files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(visible(text, "\n\t"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def visible(text: str, kept: str = "") -> str:
    """The text with its control characters, but for the `kept`, as Python writes them: they would move the cursor."""
    return "".join(letter if letter.isprintable() or letter in kept else repr(letter)[1:-1] for letter in text)


def _printable(message: str) -> str:
    """The message as visible text, and cut where it would fill the page."""
    message = visible(message)
    if len(message) <= _MAX_MESSAGE:
        return message
    return f"{message[: _MAX_MESSAGE // 2]} [...] {message[-_MAX_MESSAGE // 2 :]}"


def _one_line(error: Exception) -> str:
    """An error in one line; one that a loading process passed on ends with the message itself."""
    if isinstance(error, MemoryError):
        return _OUT_OF_MEMORY
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; give another path, or change its permissions"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1].split(": ", 1)[-1] if lines[0].startswith("Caught ") else " ".join(lines)

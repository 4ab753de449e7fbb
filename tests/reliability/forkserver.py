"""A process that has train.py and test.py imported and runs each command line in a fork of itself.

A start of Python costs seconds, a fork milliseconds; and what a bad file does to a fork - a crash in a C library, a
hang, memory that is not given back - ends with it. Requests and answers are lines of JSON on standard input and output.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Whatever the commands import on their way, so that no fork has to.
_MODULES = (
    "train test trainer losses networks datasets.loader datasets.sets.phantom evaluation.masks evaluation.predict "
    "evaluation.report evaluation.metrics datasets.sets.prediction scripts.prepare_histology scripts.prepare_acdc "
    "scripts.preparation.acdc scripts.preparation.histology PIL.PngImagePlugin PIL.JpegImagePlugin "
    "PIL.BmpImagePlugin PIL.TiffImagePlugin scipy.ndimage tensorboardX tqdm SimpleITK safetensors.torch torch.optim "
    "PIL.Image concurrent.futures.thread torch._dynamo torchvision"
).split()
_POLL_SECONDS = 0.002
_MIB = 2**20


@dataclass(frozen=True)
class Outcome:
    """How a command line ended.

    `code` is the exit code, negative for a signal; `late` says that it was killed at the time limit; `peak` is the
    most memory it held, in bytes; `wrote` lists the files outside its output folder that it opened to write.
    """

    code: int
    late: bool
    seconds: float
    peak: int
    output: str
    error: str
    wrote: tuple[str, ...]


class ForkServer:
    """The client's side: starts the process on first use, and again should it be lost.

    Args:
        scratch: a folder of its own, for what the commands print.
        limit: seconds that one command line may take.
        spare: bytes of address space that one may take beyond what the process itself has.
    """

    def __init__(self, scratch: Path, limit: float = 20.0, spare: int = 3 * 2**30) -> None:
        self.scratch, self.limit, self.spare = scratch, limit, spare
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.wait(self.limit)

    def run(self, prog: str, words: Sequence[object], *, cwd: Path, output: Path) -> Outcome:
        """Run `python PROG.py WORDS...` in `cwd`; what it opens to write outside `output` is noted.

        `prog` is the name of its module: "train", "test" or "scripts.prepare_acdc".
        """
        request = {
            "prog": prog,
            "words": [os.fsencode(str(word)).decode("latin-1") for word in words],
            "cwd": str(cwd),
            "output": str(output),
            "scratch": str(self.scratch),
            "limit": self.limit,
            "spare": self.spare,
        }
        answer = self._ask(request)
        printed = {name: _read(self.scratch / name) for name in ("output", "error")}
        wrote = tuple(_read(self.scratch / "wrote").splitlines())
        return Outcome(**answer, **printed, wrote=wrote)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.reliability.forkserver"],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self.scratch)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._process.wait()} at {request}")
        return json.loads(line)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def serve() -> None:
    """The process's side: answer requests until standard input ends."""
    for name in _MODULES:
        importlib.import_module(name)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_watch(json.loads(line))) + "\n")
        sys.stdout.flush()


def _watch(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request in a fork; kill it, and all that it started, at the limit."""
    begun = time.monotonic()
    child = os.fork()
    if not child:
        _run(request)
    late = False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        seconds = time.monotonic() - begun
        if ended:
            break
        if seconds > request["limit"] and not late:
            late = True
            os.killpg(child, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "late": late, "seconds": seconds, "peak": usage.ru_maxrss * 1024}


def _run(request: dict[str, Any]) -> None:
    """The fork: run the command line and leave, without the server's own ending."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(request["cwd"])
        scratch = Path(request["scratch"])
        for name, number in (("output", 1), ("error", 2)):
            os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        _note_writes(scratch / "wrote", (request["output"], request["scratch"], "/dev/"))
        limit = _address_space() + request["spare"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        words = [os.fsdecode(word.encode("latin-1")) for word in request["words"]]
        code = sys.modules[request["prog"]].main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()


def _note_writes(note: Path, allowed: tuple[str, ...]) -> None:
    """Write down every file outside `allowed` that is opened to be written to."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    file = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & writing:
            path = os.path.abspath(os.fsdecode(args[0]))
            if not path.startswith(allowed):
                os.write(file, os.fsencode(path) + b"\n")

    sys.addaudithook(hook)


if __name__ == "__main__":
    serve()

"""Row on the commands: how soon they answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.benchmarks.inputs import Settings
from scripts.benchmarks.measure import Figure, here, repeat

_ROOT = Path(__file__).resolve().parents[2]


def help_text(settings: Settings) -> list[Figure]:
    """Wall time of `--help`, a fresh Python included."""
    figures = []
    for command in ("train.py", "test.py"):
        words = [sys.executable, str(_ROOT / command), "--help"]
        time = repeat(here(lambda words=words: subprocess.run(words, check=True, capture_output=True)), settings.rounds)
        figures.append(Figure(f"{command} --help", time.median, "s", at_most=1.0, ours=time))
    return figures

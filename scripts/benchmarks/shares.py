"""Where the time of a training step goes, by kind of operation."""

from __future__ import annotations

from torch.profiler import ProfilerActivity, profile

from scripts.benchmarks.inputs import Settings
from scripts.benchmarks.measure import Figure
from scripts.benchmarks.training import described, ours

_STEPS = 3
# The first kind whose words are found in an operation's name.
_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "convolutions": ("conv",),
    "normalisation": ("norm",),
    "GELU and softmax": ("gelu", "softmax"),
    "copies and changes of type": ("copy_", "cat", "fill_", "clone", "contiguous"),
    "sums, products, differences": ("aten::add", "aten::mul", "aten::sub", "aten::sum", "aten::div", "aten::pow"),
    "look-ups and pooling": ("gather", "index", "pool", "sort"),
}


def shares(settings: Settings) -> list[Figure]:
    """Shares of a step in float32 and under bfloat16; the rest is the start of operations and small ones."""
    figures = []
    for precision in ("float32", "bfloat16"):
        step = ours(settings, precision=precision)
        step()
        activity = ProfilerActivity.CPU if settings.device == "cpu" else ProfilerActivity.CUDA
        with profile(activities=[activity]) as profiler:
            for _ in range(_STEPS):
                step()
        taken: dict[str, float] = {}
        for event in profiler.key_averages():
            own = event.self_cpu_time_total if settings.device == "cpu" else event.self_device_time_total
            kind = next((kind for kind, words in _KINDS.items() if any(w in event.key for w in words)), "the rest")
            taken[kind] = taken.get(kind, 0.0) + own
        total = sum(taken.values())
        for kind, own in sorted(taken.items(), key=lambda item: -item[1]):
            figures.append(Figure(f"{described(settings)}, {precision}: {kind}", 100 * own / total, "%"))
    return figures

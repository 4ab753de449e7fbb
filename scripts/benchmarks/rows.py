"""The rows of the benchmark by name."""

from __future__ import annotations

ROWS = {
    "metrics": "eight organs of a volume, against MedPy",
    "evaluation": "a volume predicted and measured, against slice by slice and MedPy",
    "transforms": "the training transform on one core, against SciPy",
    "step": "a training step in float32, against the naive one",
    "step_bf16": "a training step under bfloat16, against the naive one in float32",
    "curve_bf16": "how far the loss curve under bfloat16 is from that of float32",
    "regulariser": "what the regulariser adds to a training step",
    "loader": "what the loader adds to a training step",
    "help": "how soon train.py and test.py answer --help",
    "flops": "share of the speed of a matrix product that a training step reaches",
    "shares": "where the time of a training step goes",
    "gpu_metrics": "as metrics, on the GPU",
    "gpu_evaluation": "as evaluation, on the GPU",
    "gpu_train": "training from files in every precision, against the published way",
    "gpu_inference": "slices a second",
    "gpu_regulariser": "as regulariser, on the GPU",
    "gpu_flops": "as flops, on the GPU",
    "gpu_shares": "as shares, on the GPU",
    "networks": "every network: parameters, arithmetic, training step; runs only when it is named",
    "scaling": "time and memory over image size, batch and depth; runs only when it is named",
}
BY_DEFAULT = tuple(name for name in ROWS if name not in ("networks", "scaling"))

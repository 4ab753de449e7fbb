"""Which values a configuration may hold."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

from yacs.config import CfgNode

from configs.arguments import DISTANCES, FLAGS, PRECISIONS

_FROM_0 = (
    *("MODEL.NUM_CLASSES", "DATA.FOLDS", "DATA.FOLD", "DATA.NUM_WORKERS", "DATA.VAL_CASES"),
    *("GPU_ID", "SEED", "TRAIN.MAX_ITERATIONS", "TRAIN.SAVE_FREQ"),
    *("TRAIN.WARMUP_STEPS", "TRAIN.CLIP_GRAD", "TRAIN.WEIGHT_DECAY", "TRAIN.MOMENTUM", "TRAIN.SAVE_SECONDS"),
    *("LOSS.LAMBDA_1", "LOSS.LAMBDA_2", "LOSS.CE_WEIGHT", "LOSS.DICE_WEIGHT", "LOSS.WARMUP_EPOCHS"),
    *("LOSS.GRADIENT_FACTOR", "TRAIN.LR_POWER", "AUG.ROT_FLIP", "AUG.ROTATE"),
)
_FROM_1 = (
    *("DATA.IMG_SIZE", "DATA.BATCH_SIZE", "TRAIN.EPOCHS", "TRAIN.ACCUMULATION_STEPS", "TRAIN.LOG_FREQ"),
    *("TRAIN.IMAGE_FREQ", "TRAIN.VAL_FREQ", "TEST.BATCH_SIZE", "LOSS.GRADIENT_FREQ"),
)
_LOWEST = dict.fromkeys(_FROM_0, 0) | dict.fromkeys(_FROM_1, 1)

# Far above anything in use; a slip beyond them would take all memory, processes or time before anything is said of it.
_HIGHEST = {
    "DATA.NUM_WORKERS": 256,
    "DATA.IMG_SIZE": 4096,
    "DATA.BATCH_SIZE": 65536,
    "TEST.BATCH_SIZE": 65536,
    "MODEL.NUM_CLASSES": 256,
    "SEED": 2**32 - 1,
}
_HIGHEST_ELSE = 2**31 - 1

# Lowest and highest numbers of a network by what their keys end with; the network itself knows more of them.
_OF_A_NETWORK = (
    (("RATE",), 0, 1),
    (("RATIO", "RATIOS"), 0, 64),
    (("DEPTHS", "LAYERS", "UNITS"), 1, 128),
    (("WINDOW_SIZE", "PATCH_SIZE"), 1, 256),
    (("",), 1, 4096),
)


AS_STORED = "stored"  # in the place of an orientation: a file's axes are taken as they are
_AXES = {"x": "LR", "y": "PA", "z": "IS"}


def _check_network(cfg: CfgNode) -> None:
    for section, options in cfg.MODEL.items():
        for key, value in options.items() if isinstance(options, CfgNode) else ():
            if not isinstance(value, (bool, str)):
                lowest, highest = next((low, high) for ends, low, high in _OF_A_NETWORK if key.endswith(ends))
                _check_range(cfg, f"MODEL.{section}.{key}", lowest, highest)


def _check_range(cfg: CfgNode, dotted: str, lowest: float, highest: float) -> None:
    value = value_at(cfg, dotted)
    values = value if isinstance(value, list) else [value]
    if not values or not all(lowest <= number < math.inf for number in values):
        raise ValueError(f"{dotted} is {value}; expected a finite number of at least {lowest}{_flag_hint(dotted)}")
    if max(values) > highest:
        raise ValueError(f"{dotted} is {value}; expected {highest} at most{_flag_hint(dotted)}")


def check_values(cfg: CfgNode) -> None:
    """Refuse what no run can mean, by key and flag.

    Raises:
        ValueError: a value out of range, not finite or not one of those there are.
    """
    for dotted, lowest in _LOWEST.items():
        _check_range(cfg, dotted, lowest, _HIGHEST.get(dotted, _HIGHEST_ELSE))
    _check_network(cfg)
    if not 0 < cfg.TRAIN.BASE_LR < 1e6:
        raise ValueError(f"TRAIN.BASE_LR is {cfg.TRAIN.BASE_LR}; expected a number above 0 and below 1e6 (--base_lr)")
    for dotted, choices in (
        ("TRAIN.OPTIMIZER", ("sgd", "adamw")),
        ("TRAIN.LR_SCHEDULE", ("poly", "constant")),
        ("PRECISION", PRECISIONS),
        ("TEST.PRECISION", PRECISIONS),
        ("LOSS.DISTANCE", DISTANCES),
        ("TEST.INFERENCE", ("zoom", "slide")),
        ("TEST.METRICS", ("fast", "medpy")),
        ("TEST.SCORE_AT", ("image", "network")),
        ("TEST.ASSD", ("pooled", "directed")),
        ("DATA.AXIS_ORDER", ("", *map("".join, permutations("xyz")))),
        ("DATA.AXIS", ("", "x", "y", "z")),
        ("DATA.INTENSITY", ("", "window", "percentile", "range")),
        ("TRAIN.VAL_DICE", ("per_class", "lumped")),
        ("DATA.START_METHOD", ("", "fork", "spawn", "forkserver")),
    ):
        if value_at(cfg, dotted) not in choices:
            raise ValueError(
                f"{dotted} is {value_at(cfg, dotted)!r}; expected one of {', '.join(choices)}{_flag_hint(dotted)}"
            )
    if cfg.MODEL.NUM_CLASSES == 1:
        raise ValueError("MODEL.NUM_CLASSES is 1; expected at least 2, the background and a class (--num_classes)")
    if cfg.MODEL.IN_CHANNELS not in (0, 1, 3):
        raise ValueError(f"MODEL.IN_CHANNELS is {cfg.MODEL.IN_CHANNELS}; expected 1, 3, or 0 for the data set's own")
    _check_data(cfg.DATA)
    for dotted in ("AUG.ROT_FLIP", "AUG.ROTATE", "MODEL.DROP_RATE", "MODEL.DROP_PATH_RATE"):
        if not 0 <= value_at(cfg, dotted) <= 1:
            raise ValueError(f"{dotted} is {value_at(cfg, dotted)}; expected a number from 0 to 1")
    if not 0 <= cfg.TEST.OVERLAP < 1:
        raise ValueError(f"TEST.OVERLAP is {cfg.TEST.OVERLAP}; expected a number from 0 to below 1 (--overlap)")
    if isinstance(cfg.DATA.IMG_SIZE, list) and len(cfg.DATA.IMG_SIZE) != 2:
        raise ValueError(f"DATA.IMG_SIZE is {cfg.DATA.IMG_SIZE}; expected a side, or [H, W] (--img_size)")
    if cfg.MODEL.SWIN.FINAL_UPSAMPLE != "expand_first":
        raise ValueError(f"MODEL.SWIN.FINAL_UPSAMPLE is {cfg.MODEL.SWIN.FINAL_UPSAMPLE!r}; expected 'expand_first'")
    if cfg.N_GPU not in (0, 1):
        raise ValueError(
            f"N_GPU is {cfg.N_GPU}; expected 0 or 1: a process drives one device, torchrun starts several (--n_gpu)"
        )


def _check_data(data: CfgNode) -> None:
    low, high = (data.WINDOW + [None, None])[:2]
    if data.WINDOW and (len(data.WINDOW) != 2 or not -math.inf < low < high < math.inf):
        raise ValueError(f"DATA.WINDOW is {data.WINDOW}; expected [low, high], finite, with low below high")
    folds = range(data.FOLDS or 1)
    if data.FOLDS == 1 or data.FOLD not in folds:
        raise ValueError(f"DATA.FOLD is {data.FOLD} of {data.FOLDS}; expected 0, 1, ... of 2 or more (--folds)")
    axes = [next((axis for axis, letters in _AXES.items() if letter in letters), "") for letter in data.ORIENTATION]
    if data.ORIENTATION not in ("", AS_STORED) and sorted(axes) != sorted(_AXES):
        raise ValueError(
            f"DATA.ORIENTATION is {data.ORIENTATION!r}; expected three letters such as RAS, LPS or PIR, or {AS_STORED}"
        )
    if len(set(data.LABEL_VALUES)) < len(data.LABEL_VALUES):
        raise ValueError(f"DATA.LABEL_VALUES is {data.LABEL_VALUES}; expected each value once")


def value_at(cfg: CfgNode, dotted: str) -> Any:
    """What stands under a dotted key."""
    node = cfg
    for part in dotted.split("."):
        node = node[part]
    return node


def _flag_hint(dotted: str) -> str:
    flags = [flag for flag, key in FLAGS.items() if key == dotted]
    return f" (--{flags[0]})" if flags else ""

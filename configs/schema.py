"""The configuration as frozen dataclasses: every key with its type, its default and the values it may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

Option = bool | int | float | str | tuple[int, ...] | tuple[float, ...]
T = TypeVar("T", int, float)

DISTANCES = ("mse", "cosine", "normalized_mse")
PRECISIONS = ("float32", "tf32", "bfloat16")
AS_STORED = "stored"  # in place of an orientation: the axes of a file are taken as they are
_MOST = 2**31 - 1


def _number(default: T, low: float = 0, high: float = _MOST) -> T:
    """A number from `low` to `high`; the limits keep a slip from taking all memory, processes or time."""
    return field(default=default, metadata={"range": (low, high)})


def _choice(default: str, *others: str) -> str:
    return field(default=default, metadata={"choices": (default, *others)})


@dataclass(frozen=True)
class PhantomConfig:
    """Synthetic CT volumes, made on first use."""

    size: int = 96  # side of a slice, in pixels
    depth: int = 32  # slices of a volume
    train_cases: int = 24
    test_cases: int = 8
    seed: int = 2021


@dataclass(frozen=True)
class DataConfig:
    """The data set, its folders and its preprocessing. Empty values are those of the data set itself."""

    dataset: str = "Synapse"
    root_path: str = ""  # data folder; default: data/DATASET
    volume_path: str = ""  # folder of the test volumes; default: root_path
    list_dir: str = ""  # default: lists/lists_DATASET, the lists in root_path, the shipped split
    img_size: tuple[int, int] = field(default=(224, 224), metadata={"range": (1, 4096)})  # a side, or [H, W]
    batch_size: int = _number(24, 1, 65536)  # slices in a step, of all processes together
    num_workers: int = _number(-1, -1, 256)  # loader processes for each training process; -1: by the number of cores
    cache: str = ""  # folder of a memory-mapped copy of the training slices; empty: none
    cache_memory: float = _number(0.25, 0, 1)  # fraction of the memory that keeps slices already read; 0: none
    val_cases: int = _number(0)  # training cases held out for validation; 0 as published
    folds: int = _number(0)  # number of folds of a cross-validation; 0: none
    fold: int = _number(0)  # the test fold, counted from 0
    # Scaling to [0, 1]: by `window`, by the 0.5th and 99.5th percentiles of a volume, or by the range of the data type.
    intensity: str = _choice("", "window", "percentile", "range")
    window: tuple[float, ...] = ()  # lower and upper limit, in HU
    axis_order: str = _choice("", "xyz", "xzy", "yxz", "yzx", "zxy", "zyx")  # NIfTI axes of the array axes (D, H, W)
    orientation: str = ""  # orientation that volumes are brought to first, such as LPS; "stored": as stored
    spacing: str = _choice("affine", "pixdim")  # source of a NIfTI file's spacing
    axis: str = _choice("", "x", "y", "z")  # slicing axis of volumes of --dataset Folder; empty: the coarsest
    label_values: tuple[int, ...] = ()  # mask values of the classes 0, 1, ...; empty: 0, 1, ...
    class_names: tuple[str, ...] = ()  # names of the classes 1, 2, ...; empty: those of the data set
    ignore_label: int = _number(-1, -1, 255)  # mask value that is neither trained nor scored; -1: none
    mask_threshold: int = _number(0, 0, 255)  # mask values from here on are class 1; 0: off
    label_suffix: str = ""  # suffix of label files of --dataset Folder; empty: the usual ones, such as _mask
    phantom: PhantomConfig = PhantomConfig()


@dataclass(frozen=True)
class AugConfig:
    """Augmentation, as published: a quarter turn and flip, else a rotation by up to 20 degrees."""

    rot_flip: float = _number(0.5, 0, 1)  # probability of a quarter turn and flip
    rotate: float = _number(0.5, 0, 1)  # probability of a small rotation, where there was no quarter turn
    repeat_choices: bool = False  # published fault: the same choices in every epoch
    # Beside the published, each 0 for off (datasets/augment.py).
    scale: float = _number(0.0, 0, 10)  # zoom by 1 / (1 + scale) to 1 + scale
    elastic: float = _number(0.0, 0, 1)  # standard deviation of the displacement of 6 x 6 points, fraction of the side
    brightness: float = _number(0.0, 0, 1)  # factor of intensities, 1 - brightness to 1 + brightness
    contrast: float = _number(0.0, 0, 1)  # factor of differences from the mean, 1 - contrast to 1 + contrast
    gamma: float = _number(0.0, 0, 10)  # exponent of intensities, 1 / (1 + gamma) to 1 + gamma
    noise: float = _number(0.0, 0, 10)  # largest standard deviation of Gaussian noise
    probability: float = _number(0.3, 0, 1)  # probability of each of the six above, for each slice


@dataclass(frozen=True)
class ModelConfig:
    """The network; its own options stand in a section of their own, such as MODEL.SWIN (configs/defaults.py)."""

    type: str = "swin_unet"
    name: str = ""  # a label in published yamls, without effect
    num_classes: int = _number(0, 0, 255)  # with the background; 0: that of the data set
    in_channels: int = _number(0, 0, 64)  # 0: that of the data set
    pretrain_ckpt: tuple[str, ...] = ()  # weights to start from; yaml: a file, or a list of files
    drop_rate: float = _number(0.0, 0, 1)  # dropout of Swin-UNet
    drop_path_rate: float = _number(0.2, 0, 1)  # stochastic depth of Swin-UNet
    options: Mapping[str, Option] = field(default_factory=dict)  # keywords of `networks.build_network`


@dataclass(frozen=True)
class LossConfig:
    """`ce_weight * CE + dice_weight * Dice + lambda_1 * SCR + lambda_2 * IFD`."""

    ce_weight: float = _number(0.4)
    dice_weight: float = _number(0.6)
    lambda_1: float = _number(0.015)  # semantic consistency regularization (SCR)
    lambda_2: float = _number(0.015)  # internal feature distillation (IFD)
    distance: str = _choice(*DISTANCES)  # between channels; mse as published
    scr: str = _choice("random", "mean", "attention")  # pairing of channels: as published, or a variant
    ifd: str = _choice("halves", "decorrelation")  # as published, or the opposite
    teacher: str = _choice("final", "average")  # of SCR: the network's own final map, or that of its averaged weights
    teacher_decay: float = _number(0.99, 0, 1)  # decay of that average
    deep_supervision: bool = False  # an output head at every decoder stage, in training only
    warmup_epochs: float = _number(0.0)  # epochs of linear increase of lambda_1 and lambda_2; 0 as published
    gradient_factor: float = _number(
        0.0
    )  # warn of a term whose gradient norm exceeds this many times that of CE and Dice; 0: off
    gradient_freq: int = _number(200, 1)  # steps between these checks (three backward passes each)


@dataclass(frozen=True)
class TrainConfig:
    """Length, optimizer and learning rate of a training, and when it is logged, validated and saved."""

    epochs: int = _number(150, 1)
    max_iterations: int = _number(0)  # maximum number of steps, also for the schedule; 0: by `epochs` alone
    base_lr: float = _number(0.01, 1e-12, 1e6)
    scale_lr: bool = True  # published rule: base_lr * batch/24 where the batch is not 24 and divisible by 6
    optimizer: str = _choice("sgd", "adamw")
    momentum: float = _number(0.9)
    weight_decay: float = _number(1e-4)
    lr_schedule: str = _choice("poly", "constant")
    lr_power: float = _number(0.9)
    warmup_steps: int = _number(0)  # linear rise to base_lr; 0 as published
    clip_grad: float = _number(0.0)  # maximum gradient norm; 0: no clipping, as published
    accumulation_steps: int = _number(1, 1)
    use_checkpoint: bool = False  # gradient checkpointing: less memory, more time
    sync_bn: bool = False  # synchronized batch norm (GPUs only)
    save_freq: int = _number(0)  # epochs between epoch_N.pth checkpoints; 0: none
    save_seconds: float = _number(60.0)  # seconds between saves of last.pth; 0: after every batch
    log_freq: int = _number(20, 1)  # steps between rows of metrics.jsonl
    image_freq: int = _number(200, 1)  # steps between TensorBoard images
    val_freq: int = _number(10, 1)  # epochs between validations
    val_dice: str = _choice(
        "per_class", "foreground"
    )  # selection of best.pth: mean Dice of the classes, or all classes as one


@dataclass(frozen=True)
class TestConfig:
    """Inference and metrics."""

    batch_size: int = _number(0, 0, 65536)  # slices in a batch; 0: by the free memory of a GPU, 4 on a CPU
    precision: str = _choice(*PRECISIONS)
    inference: str = _choice("zoom", "slide")  # resize slices to img_size (as published), or sliding window
    overlap: float = _number(0.5, 0, 1)  # of neighboring windows, from 0 to below 1
    metrics: str = _choice("fast", "medpy")
    score_at: str = _choice("image", "network")  # resolution of the metrics; at that of the network, none in mm
    assd: str = _choice("pooled", "directed")  # mean of the pooled distances (MedPy 0.5), or of the two directed means

    @property
    def window_overlap(self) -> float | None:
        """The overlap of sliding windows; None where slices are resized instead."""
        return self.overlap if self.inference == "slide" else None


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    data: DataConfig = DataConfig()
    aug: AugConfig = AugConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    test: TestConfig = TestConfig()
    output_dir: str = ""
    seed: int = _number(1234, 0, 2**32 - 1)
    deterministic: bool = True
    gpu_id: int = _number(0)
    n_gpu: int = _number(1, 0, 1)  # 0: the CPU; for several GPUs start torchrun
    precision: str = _choice(*PRECISIONS)  # of training; tf32 on a GPU only, bfloat16 by autocast
    slow_bfloat16: bool = False  # allow bfloat16 on a CPU without bfloat16 instructions
    compile: bool = False  # torch.compile: minutes at the start, faster steps after

    @property
    def validation_batch(self) -> int:
        """Slices at once beside a training: what trains fits, and unlike free memory it is the same when resumed."""
        return self.test.batch_size or self.data.batch_size

"""A trained network and its cases, as a command line or a configuration names them."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from configs.arguments import overrides_of
from configs.config import complete, get_config, to_dict
from configs.saved import config_beside
from configs.schema import AS_STORED, Config
from datasets import build_dataset, class_names, inspect
from datasets.case import Slices, Volumes
from datasets.intensity import Intensity, Preprocessing
from datasets.sets.prediction import InputVolumes
from engine.checkpoint import LAST, file_digest, read_checkpoint
from engine.distributed import Ranks
from engine.logger import progress_bar
from engine.resume import has_ended
from evaluation.summary import read_json
from networks import build_network, load_weights
from networks.pretrained import find_weights

_OF_A_MACHINE = ("OUTPUT_DIR", "GPU_ID", "N_GPU")


@dataclass(frozen=True)
class Trained:
    """A file of weights, and the configuration of its network and data; `trust` as in `read_checkpoint`."""

    config: Config
    weights: Path
    trust: bool = False
    training: Config | None = None  # by which it was trained, without what a command line changes; None: not known


def find_trained(args: argparse.Namespace) -> Trained:
    """The weights and the configuration that --checkpoint, else --output_dir, names, with what other flags change."""
    named = args.checkpoint or args.output_dir
    if not named:
        raise ValueError("neither --output_dir nor --checkpoint is given; expected a run's folder or a file of weights")
    source: str | Mapping[str, object] = config_beside(named)
    if not source and Path(named).suffix == ".pth" and Path(named).is_file():
        found = read_checkpoint(named, trust=args.trust_checkpoint).get("config")  # in what train.py resumes from
        source = found if isinstance(found, Mapping) else ""
    training = get_config(source) if source else None
    try:
        given = get_config(source, args.cfg, opts=args.opts, overrides=_overrides(args))
        config = complete(given)
    except ValueError as error:
        hint = f"; leave out --cfg: {named} brings its own" if args.cfg and source else ""
        raise ValueError(f"{error}{hint}") from None
    is_known = config.model.num_classes and config.model.in_channels and config.data.intensity
    # Inspecting writes to the data folder: not to one that only the configuration of a run names.
    may_inspect = not args.input and (not source or args.root_path)
    if not (is_known or may_inspect):  # with --input, the data that would tell are those of the training
        raise ValueError(
            f"{named}: what was trained there is not known; give the run's folder, --root_path, or by --opts KEY VALUE "
            "all of MODEL.NUM_CLASSES, MODEL.IN_CHANNELS and DATA.INTENSITY"
        )
    if not is_known or (may_inspect and config.data.dataset == "Phantom"):
        config = inspect_data(given)
    is_file = args.checkpoint and not Path(named).is_dir()
    weights = Path(named) if is_file else find_weights(named, config.train.epochs)
    return Trained(config, weights, args.trust_checkpoint, training)


def identity(trained: Trained) -> dict[str, str]:
    """What a result is of: the digests of the weights, and of all settings but those of folder and device."""
    settings = {key: value for key, value in to_dict(trained.config).items() if key not in _OF_A_MACHINE}
    text = json.dumps(settings, sort_keys=True)
    return {"weights": file_digest(trained.weights), "settings": hashlib.sha256(text.encode()).hexdigest()}


def is_done(run: Path, result: str = "summary.json") -> bool:
    """Whether the training in a folder has ended, and a JSON file in it has the results of its weights and settings."""
    try:
        config = complete(get_config(run / "config.yaml"))
        ended = has_ended(read_checkpoint(run / LAST), config.train.epochs, config.train.max_iterations)
        trained = Trained(config, find_weights(run, config.train.epochs))
        return ended and read_json(run / result, "test.py")["of"] == identity(trained)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def load_network(trained: Trained, device: torch.device) -> nn.Module:
    """The network with all of its weights, on `device` and in eval mode."""
    config = trained.config
    network = network_of(replace(config, train=replace(config.train, use_checkpoint=False)))
    load_weights(network, trained.weights, complete=True, trust=trained.trust)
    return network.to(device).eval()


def network_of(config: Config) -> nn.Module:
    """The network of a configuration, with fresh weights."""
    model = config.model
    return build_network(
        model.type,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        img_size=config.data.img_size,
        use_checkpoint=config.train.use_checkpoint,
        **model.options,
    )


def preprocessing(config: Config) -> Preprocessing:
    """How files become arrays for the network of a configuration."""
    data = config.data
    return Preprocessing(
        label_values(config),
        config.model.in_channels,
        Intensity(data.intensity, cast(tuple[float, float], data.window)),
        data.axis_order,
        data.orientation.replace(AS_STORED, ""),
        data.spacing,
        data.mask_threshold,
        ignore_label(config),
    )


def ignore_label(config: Config) -> int | None:
    """The value of a label file that is neither trained nor scored, if any."""
    return None if config.data.ignore_label < 0 else config.data.ignore_label


def names_of(config: Config) -> list[str]:
    """The names of the classes 1, 2, ..."""
    return class_names(config.data.dataset, config.model.num_classes, config.data.class_names)


def label_values(config: Config) -> tuple[int, ...]:
    """The values of the classes in label files and in predictions."""
    return config.data.label_values or tuple(range(config.model.num_classes))


def open_slices(config: Config) -> Slices:
    """The training slices of the data set of a configuration."""
    return open_volumes(config, "train")


def open_volumes(config: Config, split: str) -> Any:
    """The volumes of the data set of a configuration: those of "val", which may be none, or of "test"."""
    data = config.data
    # The test fold of a cross-validation is one of cases that other folds train on.
    own_root = split == "test" and not data.folds and data.volume_path
    return build_dataset(
        data.dataset,
        split,
        num_classes=config.model.num_classes,
        root_path=own_root or data.root_path,
        list_dir=data.list_dir,
        val_cases=data.val_cases,
        folds=data.folds,
        fold=data.fold,
        cache=data.cache,
        preprocessing=preprocessing(config),
        suffix=data.label_suffix,
    )


def inspect_data(config: Config, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> Config:
    """The configuration with its empty keys filled in from its data: folders and, for a Folder, all that files tell."""
    data = config.data
    facts = inspect(
        data.dataset,
        root_path=data.root_path,
        list_dir=data.list_dir,
        num_classes=config.model.num_classes,
        how=Preprocessing(spacing=data.spacing, threshold=data.mask_threshold, ignore=ignore_label(config)),
        phantom_options=asdict(data.phantom),
        progress=progress,
        suffix=data.label_suffix,
        label_values=data.label_values,
        class_names=data.class_names,
        intensity=data.intensity,
        channels=config.model.in_channels,
        axis=data.axis,
        orientation=data.orientation.replace(AS_STORED, "") if data.orientation else None,
        folds=data.folds,
    )
    return complete(config, facts)


def find_volumes(config: Config, given: str, ranks: Ranks) -> Volumes:
    """The volumes of the test set, or those in the `given` file or folder, every one of them read and checked."""
    volumes = InputVolumes(Path(given), preprocessing(config)) if given else open_volumes(config, "test")
    if not len(volumes):
        raise ValueError(f"{config.data.dataset}: there is no case to test on; name some in test.txt (--list_dir)")
    if ranks.first:
        volumes.check(progress_bar("checking the data"))
    ranks.barrier()
    return volumes


def _overrides(args: argparse.Namespace) -> dict[str, object]:
    """The keys that the flags set, and those of a run's configuration that another machine or data folder resets."""
    overrides: dict[str, object] = {"GPU_ID": 0, "N_GPU": 1} | overrides_of(args)
    for theirs, ours in (("DATA.BATCH_SIZE", "TEST.BATCH_SIZE"), ("PRECISION", "TEST.PRECISION")):
        if theirs in overrides:
            overrides[ours] = overrides.pop(theirs)
    if {"DATA.ROOT_PATH", "DATA.VOLUME_PATH"} & set(overrides):
        overrides = {"DATA.LIST_DIR": "", "DATA.VOLUME_PATH": ""} | overrides
    return overrides

"""A trained network and its cases, as a command line names them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.arguments import overrides_of
from configs.checks import value_at
from configs.config import (
    completed,
    data_keywords,
    get_config,
    look_keywords,
    naming,
    network_keywords,
    reading_keywords,
)
from configs.saved import config_beside, config_within


@dataclass(frozen=True)
class Trained:
    """A file of weights, the configuration of its network and data, and the yamls that this was read from."""

    cfg: Any
    weights: Path
    cfg_files: tuple[str | Mapping[str, Any], ...] = ()
    trust: bool = False  # see `checkpoint.read_checkpoint`


# Torch and all that needs it are imported inside the functions, so that --help and a wrong flag answer at once.
def find_trained(args: argparse.Namespace) -> Trained:
    """The weights and the configuration that --checkpoint, else --output_dir, names, with what other flags change.

    Raises:
        ValueError: neither is given, or the configuration has a fault or is not known.
        FileNotFoundError: the folder holds no weights, or the data are not there.
    """
    from networks.pretrained import find_weights

    named = args.checkpoint or args.output_dir
    if not named:
        raise ValueError("neither --output_dir nor --checkpoint is given; expected a run's folder or a file of weights")
    cfg_files = (config_beside(named) or _config_within(Path(named), args.trust_checkpoint), args.cfg)
    cfg = _with_its_data(get_config(*cfg_files, opts=args.opts, overrides=_overrides(args)), args.input)
    is_file = args.checkpoint and not Path(named).is_dir()
    weights = Path(named) if is_file else find_weights(named, cfg.TRAIN.EPOCHS)
    return Trained(cfg, weights, cfg_files, args.trust_checkpoint)


def load_network(trained: Trained, device: Any) -> Any:
    """The network with its weights, on `device` and in eval mode; it recomputes nothing in a backward pass.

    Raises:
        ValueError: the network cannot be built so, or the file does not hold the whole of its weights.
    """
    from networks import build_network, load_weights

    with naming(*trained.cfg_files):
        keywords = network_keywords(trained.cfg) | {"use_checkpoint": False}
        network = build_network(trained.cfg.MODEL.TYPE, **keywords)
    load_weights(network, trained.weights, complete=True, trust=trained.trust)
    return network.to(device).eval()


def find_volumes(cfg: Any, given: str, ranks: Any) -> Any:
    """The volumes of the test set, or those in the `given` file or folder, every one of them read and checked.

    Raises:
        ValueError, OSError: there are none, or some cannot be used.
    """
    from tqdm import tqdm

    from datasets import build_dataset, check_all, reading
    from datasets.inputs import InputVolumes

    if given:
        volumes = InputVolumes(Path(given), reading(**reading_keywords(cfg)))
    else:
        volumes = build_dataset(cfg.DATA.DATASET, "test", **data_keywords(cfg, test=True))
        if not len(volumes):
            raise ValueError(f"{cfg.DATA.DATASET}: there is no case to test on; name some in test.txt (--list_dir)")
    if ranks.first:
        bar = partial(tqdm, total=len(volumes), desc="checking the data", leave=False, disable=not sys.stderr.isatty())
        if given:
            volumes.check(bar)
        else:
            check_all(volumes, bar, threads=2)
    ranks.barrier()
    return volumes


def _config_within(weights: Path, trust: bool) -> Mapping[str, Any]:
    """The configuration in a file that train.py saved to go on from, which may lie anywhere; of other files, none."""
    from engine.checkpoint import read_checkpoint

    return (
        config_within(read_checkpoint(weights, trust=trust)) if weights.suffix == ".pth" and weights.is_file() else {}
    )


def _with_its_data(cfg: Any, given: str) -> Any:
    """The configuration, completed by the data where it is not that of a run, which has been."""
    from datasets import look_through

    whole = completed(cfg, {"DATA.AXIS": ""})
    unknown = [key for key in ("MODEL.NUM_CLASSES", "MODEL.IN_CHANNELS", "DATA.INTENSITY") if not value_at(whole, key)]
    if unknown and given:
        raise ValueError(
            f"{', '.join(unknown)}: not known of these weights; give the run's folder, or them by --opts KEY VALUE"
        )
    return completed(cfg, look_through(cfg.DATA.DATASET, **look_keywords(cfg))) if unknown else whole


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The keys that the flags set, and those of a run's configuration that another machine or data folder forgets."""
    overrides = {"GPU_ID": 0, "N_GPU": 1} | overrides_of(args)
    for theirs, ours in (("DATA.BATCH_SIZE", "TEST.BATCH_SIZE"), ("PRECISION", "TEST.PRECISION")):
        if theirs in overrides:
            overrides[ours] = overrides.pop(theirs)
    if {"DATA.ROOT_PATH", "DATA.VOLUME_PATH"} & set(overrides):
        overrides = {"DATA.LIST_DIR": "", "DATA.VOLUME_PATH": ""} | overrides
    return overrides

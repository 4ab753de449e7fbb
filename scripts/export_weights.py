"""Write a run's or a file's weights for other programs: under all published names, or as safetensors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def published_state(network: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of the published network: ours, with the buffers that it saves and timm's blocks rebuild."""
    import copy

    network = copy.deepcopy(network)
    for module in network.modules():
        # torch keeps the names of unsaved buffers here; with none, they are saved in their published places.
        module._non_persistent_buffers_set.clear()
    return network.state_dict()


def largest_difference(one: nn.Module, other: nn.Module, size: tuple[int, int], channels: int = 1) -> float:
    """The largest difference between the outputs of two networks on one random batch, in eval mode."""
    import torch

    from utils import sum_heads

    image = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return (sum_heads(one.eval()(image)) - sum_heads(other.eval()(image))).abs().max().item()


def export(args: argparse.Namespace) -> int:
    """Load, write, load again, compare."""
    import torch
    from safetensors.torch import save_file

    from configs.config import get_config, network_keywords, size_of
    from configs.saved import config_beside
    from networks import build_network, load_weights
    from networks.pretrained import find_weights
    from utils import atomic_write, check_writable

    if args.out.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"OUT is {args.out}; expected a name that ends in .pth or .safetensors")
    check_writable(args.out.parent, "OUT")
    cfg = get_config(config_beside(args.weights), args.cfg, opts=args.opts)
    weights = find_weights(args.weights, cfg.TRAIN.EPOCHS) if args.weights.is_dir() else args.weights
    network, again = (build_network(cfg.MODEL.TYPE, **network_keywords(cfg)) for _ in range(2))
    load_weights(network, weights, complete=True)
    state = published_state(network) if args.layout == "published" else network.state_dict()
    # Copies: safetensors takes no tensor twice, and a network may have one under two names.
    state = {key: value.contiguous().clone() for key, value in state.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out, lambda path: (save_file if args.out.suffix == ".safetensors" else torch.save)(state, path))
    load_weights(again, args.out)
    difference = largest_difference(network, again, size_of(cfg))
    print(f"{args.out}: {len(state)} tensors of {weights}; largest output difference after reloading: {difference:g}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns 0, or 2 after one line on standard error that says what is wrong."""
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:  # the project is run from a clone, not installed
        sys.path.insert(0, root)
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="export_weights.py", description=__doc__)
    add = parser.add_argument
    add("weights", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a checkpoint")
    add("out", type=Path, metavar="OUT", help="the file to write, .pth or .safetensors")
    add("--layout", choices=("own", "published"), default="own", help="published: with the buffers, for strict loading")
    add("--cfg", default="", metavar="FILE", help="experiment file, where the run holds no config.yaml")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="change any key of the configuration")
    return run_guarded("export_weights.py", lambda: export(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

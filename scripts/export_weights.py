"""Export the weights of a run or a file: under all published names, as safetensors, or as a folder to predict with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def published_state(network: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of the published network: ours, with the buffers that it saves and timm's blocks rebuild."""
    return {**network.state_dict(), **dict(network.named_buffers(remove_duplicate=False))}


def export(args: argparse.Namespace) -> int:
    """Load, write, load again, compare."""
    import torch

    from configs.config import get_config
    from configs.saved import config_beside, config_text
    from engine.checkpoint import save_tensors
    from evaluation.inference import network_of
    from networks import load_weights
    from networks.pretrained import find_weights
    from utils import atomic_write, sum_heads, write_text

    if args.out.suffix not in ("", ".pth", ".safetensors"):
        raise ValueError(f"OUT is {args.out}; expected a name that ends in .pth or .safetensors, or a folder")
    config = get_config(config_beside(args.weights), args.cfg, opts=args.opts)
    weights = find_weights(args.weights, config.train.epochs) if args.weights.is_dir() else args.weights
    network, again = network_of(config).eval(), network_of(config).eval()
    load_weights(network, weights, complete=True)
    state = published_state(network) if args.layout == "published" else network.state_dict()
    if args.half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    out = args.out if args.out.suffix else args.out / "weights.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        save_tensors(state, out)
    else:
        atomic_write(out, lambda path: torch.save(state, path))
    if not args.out.suffix:
        data = replace(config.data, root_path="", volume_path="", list_dir="", cache="")
        write_text(args.out / "config.yaml", config_text(replace(config, data=data, output_dir=""), {}))
    load_weights(again, out)
    image = torch.rand(2, config.model.in_channels, *config.data.img_size)
    with torch.inference_mode():
        difference = (sum_heads(network(image)) - sum_heads(again(image))).abs().max().item()
    print(f"{out}: {len(state)} tensors of {weights}; largest output difference after reloading: {difference:g}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns 0, or 2 after one line on standard error."""
    from configs.arguments import OneLineParser, run_guarded

    parser = OneLineParser(prog="export_weights.py", description=__doc__)
    add = parser.add_argument
    add("weights", type=Path, metavar="RUN_OR_FILE", help="the folder of a run, or a checkpoint")
    add(
        "out",
        type=Path,
        metavar="OUT",
        help="the file to write, .pth or .safetensors, or a folder for weights and config.yaml",
    )
    add("--layout", choices=("own", "published"), default="own", help="published: with the buffers, for strict loading")
    add("--half", action="store_true", help="as float16: half the size, loaded as float32")
    add("--cfg", default="", metavar="FILE", help="experiment file, where the run has no config.yaml")
    add("--opts", nargs="+", default=[], metavar="KEY VALUE", help="set any key of the configuration")
    return run_guarded("export_weights.py", lambda: export(parser.parse_args(argv)))


if __name__ == "__main__":
    import _path  # noqa: F401  puts the repository on sys.path

    sys.exit(main())

"""Impossible options of every network, and impossible sizes: one line that names network and option."""

from __future__ import annotations

import pytest

from networks import build_network, list_networks
from networks.base import as_size
from tests.networks.small import build_small

VIT = {"hidden_size": [15, 0], "num_heads": [3, 0], "num_layers": [0], "mlp_dim": [0], "cnn_width": [6, 0]}
VIT |= {"cnn_units": [(3, 4), (3, 0, 9)], "norm_groups": [3], "dropout_rate": [1.0], "attention_dropout_rate": [-0.1]}
REFUSED: dict[str, dict[str, list]] = {
    "hiformer_s": {
        "embed_dim": [3, 0],
        "window_size": [0],
        "cnn_width": [5],
        "decoder_width": [48, 0],
        "drop_rate": [1.0, float("nan")],
        "drop_path_rate": [-0.1],
        "swin_depths": [(1, 1), (1, 0, 1)],
        "num_heads": [(1, 1, 0), (1, 3, 2)],
        "cnn_depths": [(1, 1, 1, 1)],
        "fusion_heads": [(1, 1, 1), (0, 1), (1, 3)],
    },
    "pvt_cascade": {
        "embed_dims": [(8, 8, 16), (7, 8, 16, 16)],
        "depths": [(1, 0, 1, 1)],
        "num_heads": [(1, 3, 2, 2)],
        "mlp_ratios": [(1, 1, 1, -1)],
        "drop_rate": [-0.1],
        "attn_drop_rate": [1.5],
        "drop_path_rate": [1.0],
    },
    "swin_unet": {
        "embed_dim": [0, 9],
        "window_size": [0, -4],
        "patch_size": [0],
        "num_heads": [(1, 0, 2, 4), (1, 3, 2, 4), (1, 2)],
        "depths": [(), (2,)],
        "mlp_ratio": [-1.0],
        "drop_rate": [1.0],
    },
    "trans_cascade": VIT,
    "transunet": {**VIT, "head_channels": [0], "decoder_channels": [(16, 8, 8), (16, 8, 8, 3)]},
    "uctransnet": {
        "base_channel": [3, 0],
        "num_layers": [0],
        "num_heads": [0],
        "expand_ratio": [-1],
        "embeddings_dropout_rate": [1.0],
        "attention_dropout_rate": [-0.1],
        "dropout_rate": [float("nan")],
    },
    "unet": {"width": [3, 0]},
}
CASES = [(name, option, value) for name, of in REFUSED.items() for option, values in of.items() for value in values]


@pytest.mark.parametrize("name, option, value", CASES)
def test_impossible_options_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^\w+: (?=.*\b{option}\b).* is .*; expected [^\n]*$"):
        build_small(name, **{option: value})


@pytest.mark.parametrize("name", list_networks())
def test_a_size_too_small_for_the_depth_names_the_nearest(name: str) -> None:
    smallest = {"pvt_cascade": 33, "swin_unet": 32, "unet": 32}.get(name, 17)
    for size, found, nearest in ((smallest - 1, smallest - 1, smallest), ((99, 8), "99 8", f"99 {smallest}")):
        message = (
            rf"^{name}: img_size {found} does not fit .*; the nearest that does is {nearest} \(--img_size {nearest}\)$"
        )
        with pytest.raises(ValueError, match=message):
            build_small(name, img_size=size)


@pytest.mark.parametrize("size, expected", [(5, (5, 5)), ((3, 4), (3, 4)), ([3, 4], (3, 4))])
def test_as_size(size: object, expected: tuple[int, int]) -> None:
    assert as_size(size) == expected


@pytest.mark.parametrize("size", [0, (3, 0), (3,), (3, 4, 5), (3.0, 4)])
def test_impossible_sizes(size: object) -> None:
    with pytest.raises(ValueError, match="expected a side or \\(H, W\\)"):
        as_size(size)


def test_unknown_names_options_and_class_counts() -> None:
    with pytest.raises(ValueError, match="unknown network 'resnet'; .*swin_unet, trans_cascade, transunet, uctransnet"):
        build_network("resnet", num_classes=2)
    with pytest.raises(ValueError, match="unet: unknown option 'wdith'; did you mean 'width'?"):
        build_network("unet", num_classes=5, wdith=3)
    with pytest.raises(ValueError, match="unet: unknown option 'x'; it takes bilinear, width"):
        build_network("unet", num_classes=5, x=3)
    for count in (1, 257):
        with pytest.raises(ValueError, match=f"num_classes is {count}"):
            build_network("unet", num_classes=count)

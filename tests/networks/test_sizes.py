"""Any image size in every network: padding, position embeddings of other sizes, windows that do not tile a map."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from networks import list_networks, load_weights
from networks.base import as_size
from networks.pretrained import resize_bias_table, resize_positions
from networks.swin_unet import SwinUnet, swin_blocks
from selfreg import FeatureTap
from tests.networks.small import build_small, settled
from tests.reference.swin import PartialWindowBlock
from utils import sum_heads

STRIDES = {**dict.fromkeys(list_networks(), 16), "pvt_cascade": 32, "swin_unet": 32}
SMALLEST = {**dict.fromkeys(list_networks(), 17), "pvt_cascade": 33, "swin_unet": 32, "unet": 32}
POSITIONS = {
    "hiformer_b": "All2Cross.pos_embed.0",
    "trans_cascade": "transformer.embeddings.position_embeddings",
    "transunet": "transformer.embeddings.position_embeddings",
    "uctransnet": "mtc.embeddings_2.position_embeddings",
}
PADDED = [(name, {}) for name in list_networks() if name != "unet"] + [("hiformer_b", {"use_fusion": True})]


@pytest.mark.parametrize("name, options", [*PADDED, ("unet", {})])
def test_a_batch_of_one_trains_at_the_smallest_size(name: str, options: dict) -> None:
    least = SMALLEST[name]
    network = build_small(name, img_size=least, **options).train()
    sum_heads(network(torch.randn(1, 1, least, least))).square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name, options", PADDED)
@pytest.mark.parametrize("size", [(33, 47), (97, 64)])
def test_padded_is_the_larger_network_on_a_padded_image(name: str, options: dict, size: tuple[int, int]) -> None:
    stride = STRIDES[name]
    whole = tuple(math.ceil(side / stride) * stride for side in size)
    network, larger = settled(build_small(name, img_size=size, **options)), build_small(name, img_size=whole, **options)
    larger.load_state_dict(network.state_dict())
    x, canvas = torch.randn(2, 1, *size), torch.zeros(2, 1, *whole)
    canvas[:, :, : size[0], : size[1]] = x
    logits = sum_heads(network(x))
    assert logits.shape == (2, 5, *size)
    assert torch.equal(logits, sum_heads(larger.eval()(canvas))[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("name", [name for name, options in PADDED if name != "pvt_cascade" and not options])
@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 32, 48), (1, 32, 32)])
def test_another_input_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: got an input of shape .*; expected \(B, 1 or 3, 32, 32\): resize"):
        build_small(name)(torch.randn(shape))


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("size", [(64, 64), (96, 48), (17, 130)])
def test_positions_of_another_size_are_interpolated(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Bicubically, from a square grid; a class token in front of the patches keeps its own."""
    source, network = settled(build_small(name, img_size=80)), build_small(name, seed=1, img_size=size)
    state = source.state_dict()
    assert all(tensor is state[key] for key, tensor in source.fit_positions(state).items())
    fitted = network.fit_positions(state)
    assert list(fitted) == list(state)
    differing = {key for key, own in network.state_dict().items() if own.shape != state[key].shape}
    assert POSITIONS[name] in differing and all(fitted[key] is state[key] for key in state if key not in differing)
    for key in differing:
        side = math.isqrt(state[key].shape[1])  # 5 at a stride of 16
        token, patches = state[key][:, : -(side**2)], state[key][:, -(side**2) :]
        grid = [math.ceil(pixels / 16) * side // 5 for pixels in size]
        maps = F.interpolate(patches.transpose(1, 2).unflatten(2, (side, side)), size=grid, mode="bicubic")
        torch.testing.assert_close(fitted[key], torch.cat([token, maps.flatten(2).transpose(1, 2)], dim=1))
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(network, tmp_path / "w.pth", complete=True)
    assert not report.missing and not report.skipped
    assert all(torch.equal(own, fitted[key]) for key, own in network.state_dict().items())
    assert sum_heads(network.eval()(torch.randn(1, 1, *size))).isfinite().all()


@pytest.mark.parametrize("name, key", POSITIONS.items())
def test_positions_that_cannot_be_fitted_are_refused(name: str, key: str, tmp_path: Path) -> None:
    state = build_small(name).state_dict()
    _, count, width = state[key].shape
    for shape in ((1, 7, width), (1, 0, width), (1, count, width + 1), (count, width)):
        torch.save({**state, key: torch.zeros(shape)}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=rf"{key} has shape"):
            load_weights(build_small(name), tmp_path / "w.pth")


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("grid", [(5, 5), (2, 2), (3, 7)])
def test_positions_are_resized_as_timm_does(grid: tuple[int, int], extra: int) -> None:
    table = torch.randn(1, extra + 16, 6)
    expected = resample_abs_pos_embed(table, list(grid), [4, 4], num_prefix_tokens=extra, antialias=False)
    torch.testing.assert_close(resize_positions(table, grid, class_tokens=extra), expected, rtol=0, atol=5e-6)


TABLE = "relative_position_bias_table"
# Windows that are cut on one side or both, that are larger than the map of a stage, and that tile a part of the stages.
SIZES = [((40, 52), 3), ((64, 96), 7), ((33, 130), 5), ((32, 225), 6)]


def swin(img_size: int | tuple[int, int], window_size: int = 7, **options: object) -> SwinUnet:
    """A narrow network whose every parameter counts: fresh ones are small, biases zero."""
    network = build_small("swin_unet", img_size=img_size, window_size=window_size, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def with_naive_blocks(network: SwinUnet, window: int) -> SwinUnet:
    """The same network, its blocks replaced by those of the reference."""
    network = copy.deepcopy(network)
    for stage in [*network.swin_unet.layers, *network.swin_unet.layers_up[1:]]:
        for j, block in enumerate(stage.blocks):
            heads, shift = block.attn.num_heads, window // 2 if j % 2 else 0
            naive = PartialWindowBlock(block.dim, heads, window, shift, block.mlp_ratio).double()
            naive.load_state_dict(block.state_dict())
            stage.blocks[j] = naive
    return network


@pytest.mark.parametrize("size, window", SIZES)
def test_swin_windows_end_at_the_border(size: tuple[int, int], window: int) -> None:
    network = swin(size, window).double()
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    logits, features = FeatureTap(network)(x)
    expected, naive = FeatureTap(with_naive_blocks(network, window))(x)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tuple(features), tuple(naive), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("side", [3, 4, 6, 8, 9])
def test_swin_block_kept_whole_on_small_maps(side: int, shifted: bool) -> None:
    """On a map within one window the kept window sees what the shrunk one does, by the middle of its table."""
    window = 6
    block, shrunk = (
        swin_blocks(8, (side, side), 1, 2, torch.zeros(2), window_size=window, always_partition=kept)[shifted]
        for kept in (True, False)
    )
    block, shrunk = block.double().eval(), shrunk.double().eval()
    x = torch.randn(2, side, side, 8, dtype=torch.float64)
    if side > window:
        naive = PartialWindowBlock(8, 2, window, window // 2 if shifted else 0, 4.0).double()
        naive.load_state_dict(block.state_dict())
        torch.testing.assert_close(block(x), naive(x))
        return
    state = block.state_dict()
    middle = slice(window - side, window + side - 1)
    table = state[f"attn.{TABLE}"].view(2 * window - 1, 2 * window - 1, 2)[middle, middle]
    shrunk.load_state_dict({**state, f"attn.{TABLE}": table.reshape(-1, 2)})
    torch.testing.assert_close(block(x), shrunk(x))


def test_swin_gradients_at_a_padded_size() -> None:
    """Those of the naive windows, and the same when blocks are run again."""
    size, window, x = (40, 52), 3, torch.randn(2, 1, 40, 52, dtype=torch.float64)
    network = swin(size, window, drop_path_rate=0.0).double()
    again = swin(size, window, drop_path_rate=0.0, use_checkpoint=True).double()
    gradients = []
    for one in (network, with_naive_blocks(network, window), again):
        one(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in one.named_parameters()})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("size", [448, 112, (100, 130)])
def test_swin_weights_of_224_load_at_any_size(size: int | tuple[int, int], tmp_path: Path) -> None:
    released, network = swin(224), swin(size)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    torch.save(released.state_dict(), tmp_path / "w.pth")
    report = load_weights(network, tmp_path / "w.pth", complete=True)
    assert not report.missing and not report.skipped
    for (name, ours), theirs in zip(network.state_dict().items(), released.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    logits = network(torch.randn(1, 1, *as_size(size)))
    assert logits.shape == (1, 5, *as_size(size)) and torch.isfinite(logits).all()


@pytest.mark.parametrize("shape", [(49, 2), (21, 2), (16, 2), (1, 2), (169,), (0, 2)])
def test_what_fits_or_is_no_relative_position_bias_stays(shape: tuple[int, ...]) -> None:
    table = torch.randn(shape)
    assert torch.equal(resize_bias_table(table, (4, 4)), table)


@pytest.mark.parametrize("target", [{"img_size": 256, "window_size": 8}, {"img_size": 96, "window_size": 6}])
def test_swin_loads_the_biases_of_another_window(target: dict, tmp_path: Path) -> None:
    """Into larger windows and smaller ones, that of the last stage at 96 shrunk to its map of 3 tokens."""
    released, network = swin(224), swin(**target)
    state = released.state_dict()
    fitted = network.fit_positions(state)
    assert list(fitted) == list(state)
    for name, own in network.state_dict().items():
        if name.endswith(TABLE):
            old, new = (math.isqrt(len(table)) for table in (state[name], own))
            grid = state[name].T.reshape(1, -1, old, old)
            grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
            torch.testing.assert_close(fitted[name], grid[0].flatten(1).T, rtol=1e-5, atol=1e-6)
        else:
            assert fitted[name] is state[name]
    torch.save(state, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", complete=True)
    assert all(torch.equal(ours, fitted[name]) for name, ours in network.state_dict().items())


def test_swin_starts_from_a_classifier_of_another_window(tmp_path: Path) -> None:
    encoder = {
        k.removeprefix("swin_unet."): v
        for k, v in swin(224).state_dict().items()
        if k.startswith(("swin_unet.patch_embed.", "swin_unet.layers.", "swin_unet.norm."))
    }
    torch.save({"model": encoder}, tmp_path / "swin.pth")
    network = swin(256, 8)
    load_weights(network, tmp_path / "swin.pth")
    expected = resize_bias_table(encoder[f"layers.0.blocks.1.attn.{TABLE}"], (8, 8))
    for stage in (network.swin_unet.layers[0], network.swin_unet.layers_up[3]):
        assert torch.equal(stage.blocks[1].attn.relative_position_bias_table, expected)


# Tokens 6 x 8, then 3 x 4: windows of 3 tile the rows alone.
SHALLOW = {"img_size": (20, 27), "window_size": 3, "depths": (2, 2), "num_heads": (1, 2)}


def test_swin_is_one_graph_at_a_padded_size() -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    network, x = swin(**SHALLOW), torch.randn(2, 1, 20, 27)
    tap = FeatureTap(network)
    expected = tap(x)
    network.compile(backend=backend)
    logits, features = tap(x)
    torch.testing.assert_close((logits, tuple(features)), (expected[0], tuple(expected[1])))
    assert len(graphs) == 1


def test_swin_is_exported_at_a_padded_size() -> None:
    network, x = swin(**SHALLOW), torch.randn(2, 1, 20, 27)
    exported = torch.export.export(network, (x,)).module()
    y = torch.randn(2, 1, 20, 27)
    torch.testing.assert_close(exported(y), network(y))

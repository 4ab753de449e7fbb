"""Any image size in every network: padding, positions of other sizes, Swin's windows that do not tile a map."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from networks import list_networks, load_weights
from networks.common import as_size, checked_size, pad_to, round_up
from networks.positions import resize_bias_table, resize_positions
from networks.swin_unet import Block, SwinUnet
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
    for size, nearest in ((least - 1, f"{least}"), (1, f"{least}"), ((100, least - 1), f"100 {least}")):
        with pytest.raises(ValueError, match=rf"^{name}: img_size .* nearest that does is {nearest} \("):
            build_small(name, img_size=size, **options)


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
@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 32, 48), (1, 1, 16, 16), (1, 32, 32)])
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
    torch.testing.assert_close(resize_positions(table, grid, extra=extra), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("shape", [(1, 12, 6), (16,), (1, 0, 6), (1, 10**12, 6)])
def test_positions_of_no_square_are_left_to_be_refused(shape: tuple[int, ...]) -> None:
    table = torch.zeros(1).expand(shape)  # which may claim any number of rows
    assert resize_positions(table, (4, 2)) is table


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
    window, options = 6, {"dim": 8, "num_heads": 2, "shifted": shifted}
    block = Block(resolution=(side, side), window_size=window, always_partition=True, **options).double().eval()
    x = torch.randn(2, side, side, 8, dtype=torch.float64)
    if side > window:
        naive = PartialWindowBlock(8, 2, window, window // 2 if shifted else 0, 4.0).double()
        naive.load_state_dict(block.state_dict())
        torch.testing.assert_close(block(x), naive(x))
        return
    shrunk = Block(resolution=(side, side), window_size=window, **options).double().eval()
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


@pytest.mark.parametrize("size", [256, (320, 256), 448, 112, (100, 130)])
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


def test_swin_of_finer_patches_is_smaller() -> None:
    with pytest.raises(ValueError, match=r"img_size 15 does not fit patches .* nearest that does is 16 \("):
        swin(15, patch_size=2)
    assert swin(16, patch_size=2)(torch.randn(1, 1, 16, 16)).shape == (1, 5, 16, 16)


class TestTablesOfOtherWindows:
    """Relative position biases ((2w-1)^2, heads) brought to another window."""

    @staticmethod
    def cubic(old: int, new: int) -> np.ndarray:
        """The matrix of cubic convolution (a = -0.75) between cells that cover the same length, ends repeated."""

        def weight(t: float, a: float = -0.75) -> float:
            t = abs(t)
            if t <= 1:
                return (a + 2) * t**3 - (a + 3) * t**2 + 1
            return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

        matrix = np.zeros((new, old))
        for i in range(new):
            place = (i + 0.5) * old / new - 0.5
            for j in range(math.floor(place) - 1, math.floor(place) + 3):
                matrix[i, min(max(j, 0), old - 1)] += weight(place - j)
        return matrix

    @pytest.mark.parametrize("old, new", [(7, (8, 8)), (7, (4, 4)), (7, (3, 7)), (4, (7, 7)), (2, (1, 1))])
    def test_equals_the_formula(self, old: int, new: tuple[int, int]) -> None:
        table = torch.randn((2 * old - 1) ** 2, 3, dtype=torch.float64)
        got = resize_bias_table(table, new)
        rows, columns = (self.cubic(2 * old - 1, 2 * side - 1) for side in new)
        grid = table.view(2 * old - 1, 2 * old - 1, 3).numpy()
        expected = np.einsum("ia,jb,abh->ijh", rows, columns, grid).reshape(-1, 3)
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
        single = resize_bias_table(table.float(), new)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, got.float(), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "table", [torch.zeros(49, 2), torch.zeros(21, 2), torch.zeros(16, 2), torch.zeros(169), torch.zeros(0, 2)]
    )
    def test_leaves_what_fits_and_what_is_no_table(self, table: Tensor) -> None:
        assert resize_bias_table(table, (4, 4)) is table

    def test_leaves_a_view_of_more_numbers_than_memory_holds(self) -> None:
        table = torch.zeros(1).expand((10**6 + 1) ** 2, 2)
        left = resize_bias_table(table, (4, 4))
        assert left.shape == table.shape and left.data_ptr() == table.data_ptr()

    @pytest.mark.parametrize("target", [{"img_size": 256, "window_size": 8}, {"img_size": 96, "window_size": 6}])
    def test_swin_loads_them(self, target: dict, tmp_path: Path) -> None:
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
        load_weights(network, tmp_path / "w.pth")
        assert all(torch.equal(ours, fitted[name]) for name, ours in network.state_dict().items())
        back = swin(224)
        assert all(v.shape == state[k].shape for k, v in back.fit_positions(network.state_dict()).items())

    def test_swin_starts_from_a_classifier_of_another_window(self, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("size, expected", [(5, (5, 5)), ((3, 4), (3, 4)), ([3, 4], (3, 4))])
def test_as_size(size: object, expected: tuple[int, int]) -> None:
    assert as_size(size) == expected


@pytest.mark.parametrize("size", [0, -3, (3, 0), (3,), (3, 4, 5), (3.0, 4)])
def test_impossible_sizes(size: object) -> None:
    with pytest.raises(ValueError, match="expected a side or \\(H, W\\)"):
        as_size(size)


def test_round_up_is_the_smallest_that_holds() -> None:
    for side in range(1, 40):
        for multiple in (1, 4, 7, 32):
            smallest = next(n for n in range(side, side + multiple) if n % multiple == 0)
            assert round_up((side, 1), multiple) == (smallest, multiple)


def test_a_size_too_small_names_the_nearest() -> None:
    assert checked_size("net", 17, 17, "tokens") == (17, 17) and checked_size("net", (17, 40), 17, "") == (17, 40)
    for size, text, nearest in ((16, "16", "17"), ((3, 40), "3 40", "17 40"), ((3, 4), "3 4", "17")):
        with pytest.raises(ValueError) as error:
            checked_size("net", size, 17, "tokens")
        assert str(error.value) == (
            f"net: img_size {text} does not fit tokens; the nearest that does is {nearest} (--img_size {nearest})"
        )


def test_pad_to() -> None:
    x = torch.randn(2, 1, 3, 4)
    assert pad_to(x, (3, 4)) is x
    padded = pad_to(x, (5, 4))
    assert torch.equal(padded[:, :, :3], x) and padded.shape == (2, 1, 5, 4) and not padded[:, :, 3:].any()

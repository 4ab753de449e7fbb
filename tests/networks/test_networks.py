"""Every registered network: shapes, modes, taps, round trips. A new network brings these tests by being registered."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from losses import Criterion, KDloss
from networks import build_network, list_networks
from selfreg import FeatureTap

# Small enough to run in a moment; the default sizes are checked against the published figures elsewhere.
SMALL = {
    "swin_unet": {"img_size": 32, "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4},
    "unet": {"img_size": 32, "width": 4},
}
CASES = [(name, SMALL[name]) for name in list_networks()] + [("unet", {**SMALL["unet"], "bilinear": False})]


def build(name: str, options: dict, classes: int = 5) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(name, num_classes=classes, **options)


@pytest.mark.parametrize("name, options", CASES)
class TestEveryNetwork:
    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("training", [False, True])
    def test_logits_are_one_tensor_in_both_modes(self, name: str, options: dict, batch: int, training: bool) -> None:
        network = build(name, options).train(training)
        logits = network(torch.randn(batch, 1, 32, 32))
        assert isinstance(logits, torch.Tensor) and logits.shape == (batch, 5, 32, 32)

    def test_tap_changes_no_bit_and_equals_the_declaration(self, name: str, options: dict) -> None:
        network = build(name, options).eval()
        x = torch.randn(2, 1, 32, 32)
        logits, features = FeatureTap(network)(x)
        assert torch.equal(logits, network(x))
        spec = network.tap_spec
        assert [len(stage) for stage in features.encoder] == [len(stage) for stage in spec.encoder]
        assert [len(stage) for stage in features.decoder] == [len(stage) for stage in spec.decoder]
        for stage in [*features.encoder, *features.decoder]:
            assert all(f.ndim == 4 and f.shape[0] == 2 and f.shape[1] % 2 == 0 for f in stage)
        sides = [stage[0].shape[-1] for stage in features.encoder]
        assert sides == sorted(sides, reverse=True), "encoder is fine to coarse"
        sides = [stage[0].shape[-1] for stage in features.decoder]
        assert sides == sorted(sides), "decoder is coarse to fine"
        assert features.final.shape[2:] == (32, 32)

    def test_state_dict_copies_and_pickles(self, name: str, options: dict) -> None:
        network = build(name, options).eval()
        x = torch.randn(1, 1, 32, 32)
        expected = network(x)
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        buffer.seek(0)
        other = build_network(name, num_classes=5, **options).eval()
        other.load_state_dict(torch.load(buffer, weights_only=True))
        for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(twin(x), expected)

    def test_gradient_reaches_every_student_block_and_no_teacher(self, name: str, options: dict) -> None:
        network = build(name, {**options, **({"drop_path_rate": 0.0} if name == "swin_unet" else {})}).train()
        _, features = FeatureTap(network)(torch.randn(2, 1, 32, 32))
        students = [f for stage in [*features.encoder, *features.decoder] for f in stage]
        for f in [*students, features.final]:
            f.retain_grad()
        KDloss(lambda_1=1.0, lambda_2=0.0)(*features).backward()
        assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in students)
        assert features.final.grad is None

    def test_steps_lower_the_loss(self, name: str, options: dict) -> None:
        network = build(name, options).train()
        tap, criterion = FeatureTap(network), Criterion(5, kd=KDloss())
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        x = torch.randn(2, 1, 32, 32)
        label = (x[:, 0] > 0).long()
        losses = []
        for _ in range(12):
            terms = criterion(*_logits_label_features(tap, x, label))
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            losses.append(terms["loss"].item())
        assert losses[-1] < 0.9 * losses[0]

    def test_unknown_options_are_refused(self, name: str, options: dict) -> None:
        with pytest.raises(ValueError, match=f"{name}: unknown option 'wdith'"):
            build_network(name, num_classes=5, wdith=3, **options)


def _logits_label_features(tap: FeatureTap, x: torch.Tensor, label: torch.Tensor) -> tuple:
    logits, features = tap(x)
    return logits, label, features


def test_published_sizes() -> None:
    def parameters(name: str, **options: object) -> int:
        return sum(p.numel() for p in build_network(name, num_classes=9, **options).parameters())

    assert parameters("swin_unet") == 27_168_900
    assert parameters("unet") == 17_262_345
    assert parameters("unet", bilinear=False) == 31_037_001


def test_unknown_names_and_class_counts() -> None:
    with pytest.raises(ValueError, match="swin_unet, unet"):
        build_network("resnet", num_classes=2)
    with pytest.raises(ValueError, match="num_classes is 257"):
        build_network("unet", num_classes=257)
    with pytest.raises(ValueError, match="num_classes is 1"):
        build_network("unet", num_classes=1)


def test_swin_takes_one_channel_or_three() -> None:
    network = build("swin_unet", SMALL["swin_unet"]).eval()
    x = torch.randn(1, 1, 32, 32)
    assert torch.equal(network(x), network(x.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="1 or 3"):
        network(x.expand(-1, 2, -1, -1))
    with pytest.raises(ValueError, match="in_channels"):
        build("swin_unet", {**SMALL["swin_unet"], "in_channels": 4})


@pytest.mark.parametrize("size, nearest", [(225, 224), (200, 224), (256, 224), (400, 448), (1, 224), (340, 448)])
def test_swin_names_the_nearest_size(size: int, nearest: int) -> None:
    with pytest.raises(ValueError, match=f"img_size {size} does not fit .* nearest that does is {nearest} "):
        build_network("swin_unet", num_classes=2, img_size=size)


def test_swin_takes_other_sizes_that_fit() -> None:
    small = {"embed_dim": 8, "num_heads": (1, 2, 2, 4)}
    for size, window in ((64, 4), (96, 3), ((64, 128), 4), (448, 7)):
        network = build_network("swin_unet", num_classes=2, img_size=size, window_size=window, **small).eval()
        height, width = (size, size) if isinstance(size, int) else size
        assert network(torch.randn(1, 1, height, width)).shape == (1, 2, height, width)


def test_swin_refuses_another_input_size() -> None:
    with pytest.raises(ValueError, match="expected \\(B, 1 or 3, 32, 32\\)"):
        build("swin_unet", SMALL["swin_unet"])(torch.randn(1, 1, 64, 64))


def test_swin_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        build_network("swin_unet", num_classes=2, embed_dim=10)
    with pytest.raises(ValueError, match="one entry a stage"):
        build_network("swin_unet", num_classes=2, depths=(2, 2))


@pytest.mark.parametrize("name", list_networks())
def test_gradient_checkpointing_changes_no_gradient_and_no_statistics(name: str) -> None:
    x = torch.randn(2, 1, 32, 32)
    runs = []
    for use_checkpoint in (False, True):
        network = build(name, {**SMALL[name], "use_checkpoint": use_checkpoint}).train()
        torch.manual_seed(1)  # of the drop path
        logits, features = FeatureTap(network)(x)
        (logits.square().mean() + features.encoder[1][0].square().mean()).backward()
        runs.append(([p.grad for p in network.parameters()], list(network.buffers())))
    for plain, recomputed in zip(*(gradients for gradients, _ in runs), strict=True):
        assert (plain is None) == (recomputed is None)
        assert plain is None or torch.allclose(plain, recomputed, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(*(buffers for _, buffers in runs), strict=True))


@pytest.mark.parametrize("name", list_networks())
def test_gradient_checkpointing_saves_memory(name: str) -> None:
    kept = []
    for use_checkpoint in (False, True):
        network = build(name, {**SMALL[name], "use_checkpoint": use_checkpoint}).train()
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
            network(torch.randn(2, 1, 32, 32))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        kept.append(sum(storages.values()) - sum(p.nbytes for p in network.parameters()))
    assert kept[1] < 0.75 * kept[0]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (50, 32)])
@pytest.mark.parametrize("bilinear", [True, False])
def test_unet_takes_odd_and_non_square_sizes(size: tuple[int, int], bilinear: bool) -> None:
    network = build("unet", {"img_size": size, "width": 4, "bilinear": bilinear}).train()
    assert network(torch.randn(1, 1, *size)).shape == (1, 5, *size)


def test_unet_refuses_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match="img_size 20 does not fit .* nearest that does is 32"):
        build("unet", {"img_size": 20})
    with pytest.raises(ValueError, match="expected \\(B, 1, H, W\\)"):
        build("unet", SMALL["unet"])(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="width is 3"):
        build("unet", {"width": 3})


@pytest.mark.parametrize(
    "option, value",
    [
        ("embed_dim", 0),
        ("window_size", 0),
        ("window_size", -4),
        ("patch_size", 0),
        ("num_heads", (1, 0, 2, 4)),
        ("depths", ()),
        ("mlp_ratio", -1.0),
    ],
)
def test_swin_refuses_impossible_options(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        build("swin_unet", {**SMALL["swin_unet"], option: value})

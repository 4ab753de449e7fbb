"""Every registered network: shapes, modes, taps, round trips, export. A new network brings these tests by being
registered."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from losses import Criterion, KDloss
from networks import build_network, list_networks
from selfreg import FeatureTap
from tests.networks.small import CALM, SMALL
from utils import sum_heads

CASES = [(name, SMALL[name]) for name in list_networks()] + [
    ("unet", {**SMALL["unet"], "bilinear": False}),
    ("hiformer_b", {**SMALL["hiformer_b"], "use_fusion": True}),
    ("trans_cascade", {**SMALL["trans_cascade"], "recreate_embeddings": True}),
]
EXPORTED = [
    pytest.param(name, options, marks=() if name == "unet" else pytest.mark.long)
    for name, options in CASES
    if "recreate_embeddings" not in options
]


def build(name: str, options: dict, classes: int = 5) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(name, num_classes=classes, **options)


def images(options: dict, batch: int = 2, channels: int = 1) -> Tensor:
    return torch.randn(batch, channels, options["img_size"], options["img_size"])


def heads_of(logits: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [logits] if isinstance(logits, Tensor) else list(logits)


def equal(one: Tensor | Sequence[Tensor], other: Tensor | Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(heads_of(one), heads_of(other), strict=True))


@pytest.mark.parametrize("name, options", CASES)
class TestEveryNetwork:
    @pytest.mark.parametrize("batch", [1, 2])
    def test_logits_are_of_one_type_in_both_modes(self, name: str, options: dict, batch: int) -> None:
        network, x = build(name, options), images(options, batch)
        for training in (False, True):
            logits = network.train(training)(x)
            assert type(logits) is (tuple if name.endswith("cascade") else Tensor)
            assert all(head.shape == (batch, 5, *x.shape[2:]) for head in heads_of(logits))
        assert len(heads_of(logits)) == (4 if name.endswith("cascade") else 1)

    def test_tap_changes_no_bit_and_equals_the_declaration(self, name: str, options: dict) -> None:
        network, x = build(name, options).eval(), images(options)
        torch.manual_seed(1)  # of embeddings that are made anew
        logits, features = FeatureTap(network)(x)
        torch.manual_seed(1)
        assert equal(logits, network(x))
        spec = network.tap_spec
        assert [len(stage) for stage in features.encoder] == [len(stage) for stage in spec.encoder]
        assert [len(stage) for stage in features.decoder] == [len(stage) for stage in spec.decoder]
        for stage in [*features.encoder, *features.decoder]:
            assert all(f.ndim == 4 and f.shape[0] == 2 and f.shape[1] % 2 == 0 for f in stage)
        sides = [stage[0].shape[-1] for stage in features.encoder]
        assert sides == sorted(sides, reverse=True), "encoder is fine to coarse"
        sides = [stage[0].shape[-1] for stage in features.decoder]
        assert sides == sorted(sides), "decoder is coarse to fine"
        assert features.final.shape[-1] >= sides[-1]

    def test_state_dict_copies_and_pickles(self, name: str, options: dict) -> None:
        network, x = build(name, options).eval(), images(options, 1)
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        buffer.seek(0)
        other = build_network(name, num_classes=5, **options).eval()
        other.load_state_dict(torch.load(buffer, weights_only=True))
        torch.manual_seed(1)
        expected = network(x)
        for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            torch.manual_seed(1)
            assert equal(twin(x), expected)

    def test_gradient_reaches_every_student_block_and_no_teacher(self, name: str, options: dict) -> None:
        network = build(name, {**options, **CALM[name]}).train()
        _, features = FeatureTap(network)(images(options))
        students = [f for stage in [*features.encoder, *features.decoder] for f in stage]
        for f in [*students, features.final]:
            f.retain_grad()
        KDloss(lambda_1=1.0, lambda_2=0.0)(*features).backward()
        assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in students)
        assert features.final.grad is None

    def test_the_logits_depend_on_every_tapped_map(self, name: str, options: dict) -> None:
        """One that no logit depends on would be regularized for nothing."""
        network, x = build(name, options).eval(), images(options)
        torch.manual_seed(1)
        expected = network(x)
        for part in (network.tap_spec.encoder, network.tap_spec.decoder):
            for module in [network.get_submodule(block) for stage in part for block in stage]:
                with module.register_forward_hook(lambda module, inputs, output: output + torch.randn_like(output)):
                    torch.manual_seed(1)
                    assert not equal(network(x), expected)

    def test_steps_lower_the_loss(self, name: str, options: dict) -> None:
        network = build(name, options).train()
        tap, criterion = FeatureTap(network), Criterion(5, kd=KDloss())
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        x = images(options)
        label = (x[:, 0] > 0).long()
        losses = []
        for _ in range(12):
            logits, features = tap(x)
            loss = criterion(logits, label, features)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]

    def test_parameters_without_a_gradient_are_declared(self, name: str, options: dict) -> None:
        """DistributedDataParallel has to know, or waits for them for ever."""
        unused = []
        for channels in (1, 3) if name.endswith("cascade") else (1,):
            network = build(name, options).train()
            sum_heads(network(images(options, channels=channels))).square().sum().backward()
            unused += [key for key, p in network.named_parameters() if p.grad is None]
        assert bool(unused) == network.has_unused_parameters

    def test_another_number_of_classes_differs_in_the_head_alone(self, name: str, options: dict) -> None:
        five, seven = (build(name, options, classes).state_dict() for classes in (5, 7))
        prefix = build(name, options).head_prefix
        differing = {key for key in five if five[key].shape != seven[key].shape}
        assert five.keys() == seven.keys() and differing == {key for key in five if key.startswith(prefix)}

    def test_gradient_checkpointing_changes_no_gradient_and_no_statistics(self, name: str, options: dict) -> None:
        x, runs = images(options), []
        for use_checkpoint in (False, True):
            network = build(name, {**options, "use_checkpoint": use_checkpoint}).train()
            torch.manual_seed(1)  # of the drop path
            logits, features = FeatureTap(network)(x)
            (sum_heads(logits).square().mean() + features.encoder[1][0].square().mean()).backward()
            runs.append(([p.grad for p in network.parameters()], list(network.buffers())))
        for plain, recomputed in zip(*(gradients for gradients, _ in runs), strict=True):
            assert (plain is None) == (recomputed is None)
            assert plain is None or torch.allclose(plain, recomputed, atol=1e-7)
        assert all(torch.equal(a, b) for a, b in zip(*(buffers for _, buffers in runs), strict=True))

    def test_gradient_checkpointing_saves_memory(self, name: str, options: dict) -> None:
        kept = []
        for use_checkpoint in (False, True):
            network = build(name, {**options, "use_checkpoint": use_checkpoint}).train()
            saved: list[Tensor] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: (saved.append(t), t)[1], lambda t: t):
                network(images(options))
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
            kept.append(sum(storages.values()) - sum(p.nbytes for p in network.parameters()))
        assert kept[1] < 0.75 * kept[0]


@pytest.mark.parametrize("name, options", EXPORTED)
def test_export_and_onnx(name: str, options: dict, record_property: Callable) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements-dev.txt)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (requirements-dev.txt)")
    network, x = build(name, options).eval(), images(options, 1)
    with torch.no_grad():
        expected = heads_of(network(x))
        exported = torch.export.export(network, (x,))
        for ours, theirs in zip(expected, heads_of(exported.module()(x)), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
        program = torch.onnx.export(exported, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = [torch.from_numpy(head) for head in session.run(None, {session.get_inputs()[0].name: x.numpy()})]
    difference = max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True))
    fused = " (use_fusion)" if options.get("use_fusion") else ""
    record_property("counted", f"ONNX {name}{fused}: largest difference of a logit {difference:.1e}")
    assert difference < 1e-4 * max(1.0, max(head.abs().max().item() for head in expected))


@pytest.mark.parametrize("name", [name for name in list_networks() if name != "unet"])
def test_a_three_channel_stem_takes_one_channel_or_three(name: str) -> None:
    options = SMALL[name]
    network, x = build(name, options).eval(), images(options, 1)
    if not name.endswith("cascade"):  # which have a convolution of their own from one to three
        assert equal(network(x), network(x.expand(-1, 3, -1, -1)))
    assert len(heads_of(network(images(options, 1, channels=3)))) == len(heads_of(network(x)))
    with pytest.raises(ValueError, match="1 or 3"):
        network(images(options, 1, channels=2))


@pytest.mark.parametrize("name, options", CASES)
@pytest.mark.parametrize("size", [(70, 45), (97, 128)])
def test_any_size_is_taken_and_comes_back(name: str, options: dict, size: tuple[int, int]) -> None:
    network = build(name, {**options, "img_size": size}).eval()
    for head in heads_of(network(torch.randn(1, 1, *size))):
        assert head.shape == (1, 5, *size)


def test_published_sizes() -> None:
    def parameters(name: str, **options: object) -> int:
        return sum(p.numel() for p in build_network(name, num_classes=9, **options).parameters())

    assert parameters("swin_unet") == 27_168_900
    assert parameters("unet") == 17_262_345
    assert parameters("unet", bilinear=False) == 31_037_001


def test_unet_takes_its_own_channels_and_any_size() -> None:
    network = build("unet", {**SMALL["unet"], "in_channels": 2}).eval()
    assert network(torch.randn(1, 2, 16, 47)).shape == (1, 5, 16, 47)
    for shape in ((1, 1, 32, 32), (1, 2, 15, 32)):
        with pytest.raises(ValueError, match="expected \\(B, 2, H, W\\) with sides of at least 16"):
            network(torch.randn(shape))

"""The regulariser on networks of MONAI and segmentation_models_pytorch, and what selfreg/README.md prints."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from selfreg import FeatureTap, KDloss, TapSpec, suggest_spec
from tests.conftest import ROOT

README = (ROOT / "selfreg" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def monai(name: str, *args, **options) -> nn.Module:
    return getattr(pytest.importorskip("monai.networks.nets"), name)(*args, **options)


def smp(name: str, encoder: str = "resnet18", channels: int = 1, depth: int = 5) -> nn.Module:
    library = pytest.importorskip("segmentation_models_pytorch")
    options = {} if depth == 5 else {"encoder_depth": depth, "decoder_channels": (64, 32, 16, 8)[-depth:]}
    return getattr(library, name)(encoder, encoder_weights=None, in_channels=channels, classes=3, **options)


def basic_unet(dims: int) -> nn.Module:
    return monai("BasicUNet", spatial_dims=dims, in_channels=1, out_channels=3, features=(4, 4, 8, 16, 32, 4))


def swin_unetr(dims: int) -> nn.Module:
    return monai("SwinUNETR", in_channels=1, out_channels=3, feature_size=12, spatial_dims=dims)


BASIC = TapSpec(
    encoder=["down_1", "down_2", "down_3", "down_4"],
    decoder=["upcat_4", "upcat_3", "upcat_2"],
    final="upcat_1",
)
SWIN = TapSpec(
    encoder=["swinViT.patch_embed", *(f"swinViT.layers{i}.0" for i in range(1, 5))],
    decoder=["decoder5", "decoder4", "decoder3", "decoder2"],
    final="decoder1",
)
RESNET = ["encoder.relu", *(f"encoder.layer{i}" for i in range(1, 5))]
UNET = TapSpec(encoder=RESNET, decoder=[f"decoder.blocks.{i}" for i in range(4)], final="decoder")
# Of the nest, the branch that ends in the output.
NEST = TapSpec(encoder=RESNET, decoder=[f"decoder.blocks.x_0_{i}" for i in range(4)], final="decoder")
SEGFORMER = TapSpec(
    encoder=[f"encoder.block{i}" for i in range(1, 5)],
    decoder=["decoder.mlp_stage.1", "decoder.mlp_stage.2"],
    final="decoder",
)

FOREIGN = {
    "BasicUNet-2d": (lambda: basic_unet(2), (2, 1, 32, 32), BASIC),
    "BasicUNet-3d": (lambda: basic_unet(3), (1, 1, 32, 32, 32), BASIC),
    "SwinUNETR-2d": (lambda: swin_unetr(2), (1, 1, 64, 64), SWIN),
    "SwinUNETR-3d": (lambda: swin_unetr(3), (1, 1, 64, 32, 32), SWIN),
    "Unet": (lambda: smp("Unet"), (2, 1, 64, 64), UNET),
    "UnetPlusPlus": (lambda: smp("UnetPlusPlus"), (2, 1, 64, 64), NEST),
    "Segformer": (lambda: smp("Segformer", "mit_b0", 3), (2, 3, 64, 64), SEGFORMER),
}


@pytest.mark.parametrize("build, shape, by_hand", FOREIGN.values(), ids=FOREIGN)
def test_plugs_on(build: Callable[[], nn.Module], shape: tuple[int, ...], by_hand: TapSpec) -> None:
    torch.manual_seed(0)
    network, image = build(), torch.randn(shape)
    spec = suggest_spec(network, image)
    assert spec == by_hand
    tap, kd = FeatureTap(network.train(), by_hand), KDloss(1.0)
    torch.manual_seed(1)
    plain = network(image)
    torch.manual_seed(1)
    logits, features = tap(image)
    assert torch.equal(logits, plain)
    seen = {name: tuple(f.shape) for name, f in zip(by_hand.students(), _flat(features), strict=True)}
    assert seen == {name: spec.shapes[name] for name in by_hand.students()}
    kd(*features).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith(by_hand.encoder[0][0].partition(".")[0]) for name in reached)
    assert any(name.startswith(by_hand.decoder[-1][0]) for name in reached)
    head = [p for name, p in network.named_parameters() if name.startswith(("final_conv", "out.", "segmentation_head"))]
    assert head and all(p.grad is None for p in head)


FRAMEWORKS = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `((?:nets|smp)\..*?)` \| (.*) \| (.*) \| (.*) \|$", FRAMEWORKS, re.MULTILINE)


@pytest.mark.parametrize("call, encoder, decoder, final", TABLE, ids=[call for call, *_ in TABLE])
def test_the_table_of_networks(call: str, encoder: str, decoder: str, final: str) -> None:
    libraries = {"nets": pytest.importorskip("monai.networks.nets")}
    libraries["smp"] = pytest.importorskip("segmentation_models_pytorch")
    call = call.replace("classes=", "encoder_weights=None, classes=") if call.startswith("smp") else call
    network = eval(call, libraries)
    channels = 3 if call.startswith("smp") and "in_channels" not in call else 1
    image = torch.randn(2, channels, 64, 64)
    inputs = (image, torch.tensor([1, 2])) if "Diffusion" in call else (image,)
    spec = suggest_spec(network, inputs)
    assert spec == TapSpec(*(re.findall("`(.*?)`", names) for names in (encoder, decoder)), final.strip("`"))
    _, features = FeatureTap(network.train(), spec)(*inputs)
    assert tuple(features.final.shape) == spec.shapes[spec.final]
    kd = KDloss()(*features)
    kd.backward()
    assert kd > 0


def test_of_deep_supervision_s_heads_it_follows_the_one_that_depends_on_most() -> None:
    network = monai("BasicUNetPlusPlus", 2, 1, 3, features=(8, 8, 17, 32, 64, 8), deep_supervision=True)
    spec = suggest_spec(network, torch.randn(1, 1, 64, 64))
    assert spec == TapSpec(["conv_1_0", "conv_3_0", "conv_4_0"], ["upcat_3_1", "upcat_1_3"], "upcat_0_4")
    assert spec.left_out == dict.fromkeys(("conv_2_0", "upcat_2_2"), "17 channels, an odd number")


def test_what_the_output_does_not_depend_on_is_named() -> None:
    network = smp("Unet", "efficientnet-b0", depth=4)
    left_out = suggest_spec(network, torch.randn(1, 1, 64, 64)).left_out
    assert left_out == dict.fromkeys(("encoder._blocks.10", "encoder._blocks.15"), "the output does not depend on it")


def test_a_decoder_that_training_runs_twice_is_refused_there() -> None:
    network = monai("SegResNetVAE", (64, 64), spatial_dims=2, init_filters=8, in_channels=1, out_channels=3)
    image = torch.randn(2, 1, 64, 64)
    tap = FeatureTap(network.eval(), suggest_spec(network, image))
    tap(image)  # in eval mode it runs once
    with pytest.raises(ValueError, match=r"'up_layers.0' ran 2 times"):
        FeatureTap(network.train(), tap.spec)(image)


def _flat(features: tuple) -> list[torch.Tensor]:
    return [f for part in features[:2] for stage in part for f in stage]


@pytest.mark.parametrize(
    "build, size, reason",
    [
        (lambda: smp("DeepLabV3"), (128, 128), "no decoder"),
        (lambda: smp("PSPNet"), (128, 128), "no decoder"),
        (lambda: smp("Unet", "tu-swin_tiny_patch4_window7_224"), (224, 224), "maps have two layouts"),
        (lambda: monai("UNETR", 1, 3, (32, 32, 32), 8, 48, 96, 4), (32, 32, 32), "no resolution of the encoder"),
    ],
    ids=["DeepLabV3", "PSPNet", "Swin in smp", "UNETR"],
)
def test_refuses_what_is_no_u(build: Callable[[], nn.Module], size: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=f"suggest_spec: .*{reason}"):
        suggest_spec(build(), torch.randn(1, 1, *size))


def test_a_list_of_all_stages_is_refused_by_name() -> None:
    for network, name in ((smp("Unet"), "encoder"), (swin_unetr(2), "swinViT")):
        spec = TapSpec(encoder=[name], decoder=UNET.decoder if name == "encoder" else SWIN.decoder, final=name)
        with pytest.raises(ValueError, match=f"'{name}' gave a list of [56]; expected one tensor"):
            FeatureTap(network, spec)(torch.randn(1, 1, 64, 64))


def test_monai_images_that_carry_their_geometry() -> None:
    meta = pytest.importorskip("monai.data.meta_tensor").MetaTensor
    network, image = basic_unet(2), torch.randn(2, 1, 32, 32)
    assert suggest_spec(network, meta(image)) == BASIC
    gradients = []
    for x in (image, meta(image)):
        random.seed(0)
        network.zero_grad()
        KDloss()(*FeatureTap(network.eval(), BASIC)(x)[1]).backward()
        gradients.append(network.down_1.convs.conv_0.conv.weight.grad.clone())
    assert torch.equal(*gradients) and gradients[0].any()


def test_an_odd_number_of_channels_is_found_in_the_spec() -> None:
    network = monai("BasicUNet", spatial_dims=2, in_channels=1, out_channels=3, features=(4, 1, 8, 16, 32, 4))
    _, features = FeatureTap(network, BASIC)(torch.randn(1, 1, 32, 32))
    with pytest.raises(ValueError, match="has C = 1 channels.*tap another layer") as refused:
        KDloss()(*features)
    part, stage, block = re.search(r"(\w+)\[(\d)\]\[(\d)\]", str(refused.value)).groups()
    assert getattr(BASIC, part)[int(stage)][int(block)] == "upcat_2"
    KDloss(lambda_2=0)(*features)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_what_the_readme_prints_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("monai", "segmentation_models_pytorch"):
        if f"{library}" in block:
            pytest.importorskip(library)
    names: dict = {}
    exec(block, names)
    assert any(p.grad is not None for p in names["network"].parameters())
    printed = capsys.readouterr().out
    assert ("print(" in block) == bool(printed) and printed in README


def test_the_readme_names_the_options_there_are() -> None:
    options = re.findall(r"^\| `(\w+)` \| (\S+) \|", README, re.MULTILINE)
    defaults = {name: default.strip("`") for name, default in options}
    assert {"lambda_x", "lambda_1", "lambda_2", "distance", "warmup_epochs"} == set(defaults)
    loss = KDloss()
    assert loss.lambda_1 == loss.lambda_2 == float(defaults["lambda_x"])
    assert (loss.distance, loss.warmup_epochs) == (defaults["distance"].strip('"'), int(defaults["warmup_epochs"]))
    for distance in re.findall(r"`\"(\w+)\"`", README):
        KDloss(distance=distance)


FIRST, *REST = re.findall(r"^```python\n(.*?)^```", FRAMEWORKS, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", REST, ids=re.findall(r"^## (.*)$", FRAMEWORKS, re.MULTILINE)[: len(REST)])
def test_trains_in_other_frameworks(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page: the encoder learns from the regularizer alone, too, and the state is the network's."""
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(KDloss, "forward", lambda kd, *args, f=KDloss.forward: seen.append(f(kd, *args)) or seen[-1])
    names: dict = {}
    exec(FIRST, names)
    before = [p.detach().clone() for p in names["network"].parameters()]
    exec(block, names)
    assert len(seen) == 2 and all(loss > 0 and loss.requires_grad for loss in seen)
    assert not all(map(torch.equal, before, names["network"].parameters()))
    assert list(names["tapped"].state_dict()) == list(names["network"].state_dict())

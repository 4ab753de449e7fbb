"""suggest_spec on small networks of known shape: what it names, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import build_network
from selfreg import Features, FeatureTap, TapSpec, suggest_spec


def double(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(True), nn.Conv2d(outputs, outputs, 1)
    )


class Gate(nn.Module):
    """Squeeze-and-excitation: its maps of one point are no level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x).sigmoid()


class SmallU(nn.Module):
    """Three levels; `mid` is the number of channels of the second, `side` a head that only `Deep` runs."""

    def __init__(self, classes: int = 3, mid: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = double(1, 4)
        self.down1, self.down2 = nn.Sequential(double(4, mid, 2), Gate(mid)), double(mid, 16, 2)
        self.up1, self.up2 = double(16 + mid, 8), double(8 + 4, 4)
        self.drop = nn.Dropout(dropout)
        self.side, self.head = nn.Conv2d(8, classes, 1), nn.Conv2d(4, classes, 1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.stem(x)
        b = self.down1(a)
        c = F.interpolate(self.down2(b), scale_factor=2)
        d = self.up1(torch.cat([c, b], 1))
        return d, self.drop(self.up2(torch.cat([F.interpolate(d, scale_factor=2), a], 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[1])


class Deep(SmallU):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coarse, fine = self.features(x)
        return self.head(fine), self.side(coarse)


def names(spec: TapSpec) -> tuple[list[str], list[str], str, str]:
    return [s for (s,) in spec.encoder], [s for (s,) in spec.decoder], spec.final, spec.final_side


@pytest.mark.parametrize("network", [SmallU(), Deep(), Deep(classes=8)], ids=["one", "deep", "side-as-wide"])
def test_names_the_stages(network: SmallU) -> None:
    spec = suggest_spec(network, torch.randn(2, 1, 16, 24))
    assert names(spec)[:2] == (["down1", "down2"], ["up1"])
    _, features = FeatureTap(network.eval(), spec)(torch.randn(1, 1, 16, 24))
    reads = []
    network.head.register_forward_pre_hook(lambda module, inputs: reads.append(inputs[0]))
    network(torch.zeros(1, 1, 16, 24))
    assert features.final.shape == reads[0].shape == (1, 4, 16, 24)


def test_prints_what_is_regularised() -> None:
    lines = str(suggest_spec(SmallU(), torch.randn(2, 1, 16, 24))).splitlines()
    assert [line.split(maxsplit=2) for line in lines] == [
        ["encoder[0][0]", "down1", "(2, 8, 8, 12)"],
        ["encoder[1][0]", "down2", "(2, 16, 4, 6)"],
        ["decoder[0][0]", "up1", "(2, 8, 8, 12)"],
        ["final", "drop", "(2, 4, 16, 24)"],
    ]


def test_odd_channels_are_passed_over() -> None:
    spec = suggest_spec(SmallU(mid=5), torch.randn(1, 1, 16, 16))
    assert names(spec)[:2] == (["down2"], ["up1"])
    assert str(spec).splitlines()[-1].split(maxsplit=3) == ["left", "out", "down1", "5 channels, an odd number"]


def test_a_map_that_no_module_gives_is_the_input_of_the_head() -> None:
    class Added(SmallU):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features(x)[1] + 1)

    assert names(suggest_spec(Added(), torch.randn(1, 1, 16, 16)))[2:] == ("head", "input")


def test_unet_as_it_declares_itself() -> None:
    for bilinear in (True, False):
        network = build_network("unet", num_classes=5, img_size=32, width=4, bilinear=bilinear)
        assert suggest_spec(network, torch.randn(1, 1, 32, 48)) == network.tap_spec


def test_swin_unet_is_the_last_block_of_each_declared_stage() -> None:
    options = {"img_size": 64, "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 2}
    network = build_network("swin_unet", num_classes=3, **options).eval()
    x = torch.randn(1, 1, 64, 64)
    spec = suggest_spec(network, x)
    assert spec.channels_last and spec.final == network.tap_spec.final
    ours, declared = FeatureTap(network, spec)(x)[1], FeatureTap(network)(x)[1]
    for part in ("encoder", "decoder"):
        pairs = zip(getattr(ours, part), getattr(declared, part), strict=True)
        assert all(torch.equal(one[0], blocks[-1]) for one, blocks in pairs)
    assert torch.equal(ours.final, declared.final)


def test_leaves_the_network_as_it_was() -> None:
    class Counting(SmallU):
        def __init__(self) -> None:
            super().__init__(dropout=0.5)
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            random.random()
            return super().forward(x + torch.rand_like(x))

    network = Counting()
    network.down1.eval()
    modes = [m.training for m in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    suggest_spec(network, torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert modes == [m.training for m in network.modules()]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert not any(m._forward_hooks for m in network.modules())
    assert all(p.grad is None for p in network.parameters())


def test_leaves_it_so_after_an_error_too() -> None:
    network = SmallU().train()
    with pytest.raises(RuntimeError):
        suggest_spec(network, torch.randn(1, 7, 16, 16))
    assert all(m.training and not m._forward_hooks for m in network.modules())


def test_several_inputs() -> None:
    class Two(SmallU):
        def forward(self, x: Tensor, add: float) -> Tensor:
            return super().forward(x + add)

    x = torch.randn(1, 1, 16, 16)
    assert suggest_spec(Two(), (x, 0.5)) == suggest_spec(SmallU(), x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")])
def test_a_wrapped_network(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network, x = SmallU(), torch.randn(1, 1, 16, 16)
    assert suggest_spec(wrap(network), x) == suggest_spec(network, x)


def test_inputs_by_keyword_and_an_output_by_name() -> None:
    class Named(SmallU):
        def forward(self, *, add: float, pixels: Tensor) -> dict[str, object]:
            return {"loss": None, "logits": super().forward(pixels + add)}

    x = torch.randn(1, 1, 16, 16)
    assert suggest_spec(Named(), {"add": 0.5, "pixels": x}) == suggest_spec(SmallU(), x)


def test_a_bottleneck_outside_the_encoder_s_container_that_pools_itself() -> None:
    class Home(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList([double(1, 4), double(4, 8)])
            self.pools = nn.ModuleList([nn.MaxPool2d(2), nn.MaxPool2d(2)])
            self.bottom = nn.Sequential(double(8, 16), nn.ConvTranspose2d(16, 8, 2, 2))
            self.up = nn.Sequential(double(16, 8), nn.ConvTranspose2d(8, 4, 2, 2))
            self.last, self.head = double(8, 4), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.encoder[0](x)
            b = self.encoder[1](self.pools[0](a))
            x = self.up(torch.cat([self.bottom(self.pools[1](b)), b], 1))
            return self.head(self.last(torch.cat([x, a], 1)))

    spec = suggest_spec(Home(), torch.randn(1, 1, 16, 16))
    assert names(spec) == (["encoder.1", "bottom.0"], ["up.0"], "last", "output")


def test_a_skip_connection_s_concatenation_is_no_stage() -> None:
    class Skip(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.inner(x)], 1)

    lower = Skip(double(8, 16))
    middle = nn.Sequential(double(4, 8, 2), lower, nn.ConvTranspose2d(24, 4, 2, 2))
    network = nn.Sequential(double(1, 4, 2), Skip(middle), nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 3, 1))
    spec = suggest_spec(network, torch.randn(1, 1, 32, 32))
    assert names(spec) == (["0", "1.inner.1.inner"], ["1.inner.2"], "2", "output")


class Straight(nn.Module):
    """A fully convolutional classifier of pixels: down, a score convolution, up to the image; no decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.score = double(1, 4, 2), double(4, 8, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.score(self.down2(self.down1(x))), size=x.shape[2:])


class Wrapped(SmallU):
    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        return {"out": [super().forward(x)]}


class Pointwise(SmallU):
    """Its classes come of a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kc->bkhw", self.features(x)[1], torch.ones(7, 4))


class Twice(SmallU):
    def forward(self, x: Tensor) -> Tensor:
        fine = self.features(x)[1]
        self.head(fine)
        return self.head(fine)


class Shared(SmallU):
    """Its levels are one and the same block."""

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.stem(x)
        for _ in range(2):
            a = self.up2(torch.cat([F.max_pool2d(a, 2)] * 3, 1))
        return a, F.interpolate(a, size=x.shape[2:])


@pytest.mark.parametrize(
    "network, reason",
    [
        (Shared(), "'up2' runs 2 times in a pass"),
        (Straight(), "no decoder"),
        (Wrapped(), "returns a dict"),
        (Pointwise(), "no convolution gives the 7 channels"),
        (Twice(), "'head' runs more than once"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_refusals(network: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=f"suggest_spec: {type(network).__name__}: .*{reason}.*TapSpec"):
        suggest_spec(network, torch.randn(1, 1, 16, 16))


def test_an_example_that_is_no_image() -> None:
    with pytest.raises(ValueError, match="the example holds no tensor"):
        suggest_spec(SmallU(), torch.randn(16, 16))


def test_the_shapes_are_no_part_of_the_spec() -> None:
    spec = suggest_spec(SmallU(), torch.randn(1, 1, 16, 16))
    bare = TapSpec(spec.encoder, spec.decoder, spec.final, spec.final_side, spec.channels_last)
    assert bare == spec and hash(bare) == hash(spec) and eval(repr(spec)) == spec
    assert isinstance(FeatureTap(SmallU(), bare)(torch.randn(1, 1, 16, 16))[1], Features)


def test_an_example_too_small_for_the_depth_is_refused() -> None:
    network = build_network("unet", num_classes=3, img_size=32, width=4)
    with pytest.raises(ValueError, match=r"of size \(16, 16\) is too small for its depth: 'down4\..*give a larger one"):
        suggest_spec(network, torch.randn(1, 1, 16, 16))
    assert suggest_spec(network, torch.randn(1, 1, 32, 32)) == network.tap_spec

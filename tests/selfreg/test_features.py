"""FeatureTap on networks that are not ours: names, order, errors, and that it changes nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfreg import Features, FeatureTap, KDloss, Tapped, TapSpec


class Foreign(nn.Module):
    """Two levels, nothing of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(4, 2, 1)
        self.unused = nn.Conv2d(1, 1, 1)
        self.pair = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.down(x))
        self.pair(x)
        return self.head(x)


TAPS = TapSpec(encoder=["down.0", ["down.1"]], decoder=["up"], final="head", final_side="input")


def test_reads_what_the_spec_names() -> None:
    network = Foreign()
    x = torch.randn(2, 1, 8, 8)
    logits, features = FeatureTap(network, TAPS)(x)
    assert torch.equal(logits, network(x))
    assert [[tuple(f.shape) for f in stage] for stage in features.encoder] == [[(2, 4, 8, 8)], [(2, 8, 4, 4)]]
    assert torch.equal(features.encoder[1][0], network.down(x))
    assert torch.equal(features.decoder[0][0], features.final)


def test_leaves_no_hook_behind() -> None:
    network = Foreign()
    tap = FeatureTap(network, TAPS)
    tap(torch.randn(1, 1, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    with pytest.raises(RuntimeError):
        tap(torch.randn(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    pickle.loads(pickle.dumps(network))
    copied = copy.deepcopy(tap)
    assert copied.network is not network
    copied(torch.randn(1, 1, 8, 8))


def test_channels_last_blocks_come_channels_first() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(6, 4), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.b(self.a(x)).movedim(-1, 1))

    spec = TapSpec(encoder=["a"], decoder=["b"], final="out", final_side="input", channels_last=True)
    _, features = FeatureTap(Last(), spec)(torch.randn(2, 5, 7, 4))
    assert features.encoder[0][0].shape == (2, 6, 5, 7)
    assert features.final.shape == (2, 4, 5, 7)


def test_gradient_flows_through_tapped_features() -> None:
    network = Foreign()
    _, features = FeatureTap(network, TAPS)(torch.randn(1, 1, 8, 8))
    features.encoder[0][0].sum().backward()
    assert network.down[0].weight.grad is not None


def test_a_wrong_name_offers_close_ones() -> None:
    with pytest.raises(ValueError, match=r"'down\.3'.*down\.0"):
        FeatureTap(Foreign(), TapSpec(encoder=["down.3"], decoder=["up"], final="head"))


def test_a_module_that_does_not_run() -> None:
    with pytest.raises(ValueError, match="'unused' did not run"):
        FeatureTap(Foreign(), TapSpec(encoder=["unused"], decoder=["up"], final="head"))(torch.randn(1, 1, 8, 8))


def test_a_module_that_gives_no_tensor() -> None:
    with pytest.raises(ValueError, match="'pair' gave a tuple"):
        FeatureTap(Foreign(), TapSpec(encoder=["pair"], decoder=["up"], final="head"))(torch.randn(1, 1, 8, 8))


def test_a_network_without_a_spec() -> None:
    with pytest.raises(ValueError, match="declares no tap_spec"):
        FeatureTap(Foreign())


class Yields(nn.Module):
    """Gives what it is told to, whatever it reads."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


class Around(Foreign):
    """Foreign, with one more module whose output goes nowhere."""

    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        self.extra(x)
        return super().forward(x)


@pytest.mark.parametrize(
    "output, message",
    [
        ([torch.zeros(1), torch.zeros(1)], "a list of 2;"),
        ({"out": torch.zeros(1), "aux": 0}, "a dict with keys 'out', 'aux';"),
        (None, "a NoneType;"),
        (torch.zeros(2, 49, 8), r"a tensor of shape \(2, 49, 8\); expected a map"),
        (torch.zeros(2, 8), r"a tensor of shape \(2, 8\); expected a map"),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("part", ["encoder", "decoder", "final"])
def test_what_is_no_map(output: object, message: str, channels_last: bool, part: str) -> None:
    names = {"encoder": ["down.0"], "decoder": ["up"], "final": "up"}
    spec = TapSpec(**{**names, part: "extra" if part == "final" else ["extra"]}, channels_last=channels_last)
    with pytest.raises(ValueError, match=f"module 'extra' gave {message}"):
        FeatureTap(Around(Yields(output)), spec)(torch.randn(1, 1, 8, 8))


def test_a_head_that_reads_no_map() -> None:
    class Flat(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return self.last(x.flatten(1))

    network = Flat()
    network.last = nn.Linear(64, 2)
    spec = TapSpec(encoder=["down.1"], decoder=["up"], final="last", final_side="input")
    with pytest.raises(ValueError, match=r"'last' read a tensor of shape \(1, 64\)"):
        FeatureTap(network, spec)(torch.randn(1, 1, 8, 8))


def test_a_teacher_that_did_not_run() -> None:
    for side in ("input", "output"):
        spec = TapSpec(encoder=["down.1"], decoder=["up"], final="unused", final_side=side)
        with pytest.raises(ValueError, match="'unused' did not run"):
            FeatureTap(Foreign(), spec)(torch.randn(1, 1, 8, 8))


def test_a_head_that_is_called_by_keyword() -> None:
    class Keyword(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=self.up(self.down(x)))

    _, features = FeatureTap(Keyword(), TAPS)(torch.randn(1, 1, 8, 8))
    assert torch.equal(features.final, features.decoder[0][0])


def test_the_head_may_be_a_student_as_well() -> None:
    spec = TapSpec(encoder=["down.1"], decoder=["head"], final="head", final_side="input")
    logits, features = FeatureTap(Foreign(), spec)(torch.randn(1, 1, 8, 8))
    assert torch.equal(features.decoder[0][0], logits) and features.final.shape[1] == 4


def test_a_module_that_runs_more_than_once() -> None:
    class Shared(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(-x)

    with pytest.raises(ValueError, match=r"'down\.0' ran 2 times.*around it"):
        FeatureTap(Shared(), TAPS)(torch.randn(1, 1, 8, 8))


class Checkpointed(Foreign):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.down.insert(1, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.down, x.requires_grad_(), use_reentrant=self.use_reentrant)
        return self.head(self.up(x))


@pytest.mark.parametrize("name", ["down.0", "down.1"])  # the second has no parameters: those around it count
def test_reentrant_checkpointing_is_refused_where_it_would_train_nothing(name: str) -> None:
    spec = TapSpec(encoder=[name], decoder=["up"], final="head", final_side="input")
    network, x = Checkpointed(use_reentrant=True), torch.randn(1, 1, 8, 8)
    tap = FeatureTap(network, spec)
    with pytest.raises(ValueError, match=rf"'{name}' ran where autograd does not record.*use_reentrant=False"):
        tap(x)
    with torch.no_grad():
        tap(x.clone())
    network.eval()
    tap(x.clone())
    network.train().down.requires_grad_(False)
    tap(x.clone())


@pytest.mark.parametrize(
    "use_reentrant, names",
    [(False, ["down.0", "down.2"]), (True, ["down"])],  # what a re-entrant checkpoint returns carries its gradient
)
def test_other_checkpointing_gives_the_same_gradients(use_reentrant: bool, names: list[str]) -> None:
    x, gradients = torch.randn(1, 1, 8, 8), []
    network = Checkpointed(use_reentrant)
    tap = FeatureTap(network, TapSpec(encoder=names, decoder=["up"], final="head", final_side="input"))
    for call in (network.forward, super(Checkpointed, network).forward):
        network.forward = call
        network.zero_grad()
        sum(stage[0].square().sum() for stage in tap(x.clone())[1].encoder).backward()
        gradients.append(network.down[0].weight.grad.clone())
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize("wrap", [lambda network: network, nn.DataParallel], ids=["plain", "wrapped"])
@pytest.mark.parametrize("no_grad", [False, True])
def test_a_frozen_encoder_is_accepted(no_grad: bool, wrap: Callable[[nn.Module], nn.Module]) -> None:
    class Frozen(Foreign):
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(not no_grad):
                x = self.down(x)
            return self.head(self.up(x))

    network = Frozen()
    network.down.requires_grad_(False)
    _, features = FeatureTap(wrap(network), TAPS)(torch.randn(1, 1, 8, 8))
    assert not features.encoder[0][0].requires_grad and features.decoder[0][0].requires_grad


def test_impossible_specs() -> None:
    with pytest.raises(ValueError, match="final_side"):
        TapSpec(encoder=["a"], decoder=["b"], final="c", final_side="middle")
    with pytest.raises(ValueError, match="final is None; expected a module name"):
        TapSpec(encoder=["a"], decoder=["b"], final=None)


@pytest.mark.parametrize("stages", [[], "layer1", [[]], [["a"], []], None, [None], [["a", 3]]])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_impossible_stages(part: str, stages: object) -> None:
    with pytest.raises(ValueError, match=f"TapSpec: {part} is .*expected a list of stages"):
        TapSpec(**{"encoder": ["a"], "decoder": ["b"], "final": "c", part: stages})


def test_a_spec_prints_as_the_table_of_its_stages() -> None:
    lines = str(TAPS).splitlines()
    assert [line.split() for line in lines] == [
        ["encoder[0][0]", "down.0"],
        ["encoder[1][0]", "down.1"],
        ["decoder[0][0]", "up"],
        ["final", "input", "of", "head"],
    ]


def features_of(features: Features) -> list[Tensor]:
    return [f for stages in features[:2] for stage in stages for f in stage] + [features.final]


def test_a_tapped_network_in_a_training_of_someone_else_s() -> None:
    """Called as a module in a module: it returns the logits, and its features teach."""
    network, x = Foreign(), torch.randn(2, 1, 8, 8)
    tapped = Tapped(network, TAPS)
    assert tapped.features is None
    parent = nn.ModuleDict({"model": tapped})
    assert torch.equal(parent["model"](x), network(x))
    assert all(map(torch.equal, features_of(tapped.features), features_of(FeatureTap(network, TAPS)(x)[1])))
    KDloss()(*tapped.features).backward()
    assert network.down[0].weight.grad.abs().sum() > 0 and network.head.weight.grad is None
    before = tapped.features
    tapped.eval()
    assert torch.equal(tapped(x), network(x)) and tapped.features is before, "nothing is read in eval mode"


@pytest.mark.parametrize("child", ["", "network"])
def test_the_state_of_a_tapped_network_is_that_of_the_network(child: str) -> None:
    """Also within other modules, and of a network that itself has a part of the name `network`."""
    network, spec = Foreign(), TAPS
    if child:
        network, spec = nn.Sequential(), TapSpec(["network.down.0"], ["network.up"], "network.head", "input")
        network.add_module(child, Foreign())
    parent = nn.ModuleDict({"model": Tapped(network, spec)})
    assert list(parent["model"].state_dict()) == list(network.state_dict())
    assert list(parent.state_dict()) == [f"model.{key}" for key in network.state_dict()]
    other = nn.ModuleDict({"model": Tapped(copy.deepcopy(network), spec)})
    nn.init.ones_(next(network.parameters()))
    other.load_state_dict(parent.state_dict())
    assert all(map(torch.equal, other.parameters(), network.parameters()))
    other["model"].load_state_dict(network.state_dict())
    copied = copy.deepcopy(other["model"])
    copied(torch.ones(1, 1, 8, 8)).sum().backward()
    assert next(other.parameters()).grad is None, "a copy runs its own network"


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda n: torch.compile(n, backend="eager"), lambda n: n])
def test_names_are_those_without_wrappers(wrap: object) -> None:
    network, x = Foreign(), torch.randn(2, 1, 8, 8)
    expected = FeatureTap(network, TAPS)(x)
    wrapped = wrap(network)
    prefix = next(name for name, m in wrapped.named_modules() if m is network)
    at = f"{prefix}." if prefix else ""
    with_prefix = TapSpec([f"{at}down.0", f"{at}down.1"], [f"{at}up"], f"{at}head", "input")
    for spec in (TAPS, with_prefix):
        logits, features = FeatureTap(wrapped, spec)(x)
        torch.testing.assert_close((logits, tuple(features)), (expected[0], tuple(expected[1])))
    network.down = torch.compile(network.down, backend="eager")  # a part of it
    torch.testing.assert_close(tuple(FeatureTap(wrapped, TAPS)(x)[1]), tuple(expected[1]))

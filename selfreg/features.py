"""Read the block features of a U-shaped network from outside; the network never knows who reads them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

RANKS = (4, 5)  # of a feature map: (B, C, H, W) or (B, C, D, H, W)
_FINAL = ""  # no module of a network has this name


class Features(NamedTuple):
    """Features of one forward pass, each (B, C, *space).

    `encoder[stage][block]` runs fine to coarse, `decoder[stage][block]` coarse to fine; `final` is the map that
    the output convolution reads.
    """

    encoder: list[list[Tensor]]
    decoder: list[list[Tensor]]
    final: Tensor


@dataclass(frozen=True)
class TapSpec:
    """Which modules of a network carry its features, by the names of `named_modules()`.

    `encoder` (fine to coarse) and `decoder` (coarse to fine, without the bottleneck) list their stages; a stage is
    one module name or several, its blocks in order, and a block's feature is its output. `final` names the module
    whose output is the final feature map, or whose first input is, with `final_side="input"`. With `channels_last`
    the blocks hand out (B, *space, C); the final map is channels-first all the same.

    Printed, it is a table of what is regularized: a row `encoder[1][0]` is `spec.encoder[1][0]`, and what the errors
    of `KDloss` call by that name. `shapes`, and in `left_out` the blocks that are no stage with the reason, are what
    `suggest_spec` saw; `FeatureTap` does not read them.

    Raises:
        ValueError: a stage without a name, a name that is no text, or another `final_side`.
    """

    encoder: Sequence[str | Sequence[str]]
    decoder: Sequence[str | Sequence[str]]
    final: str
    final_side: Literal["input", "output"] = "output"
    channels_last: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.final_side not in ("input", "output"):
            raise ValueError(f"TapSpec: final_side is {self.final_side!r}; expected 'input' or 'output'")
        if not isinstance(self.final, str) or not self.final:
            raise ValueError(
                f"TapSpec: final is {self.final!r}; expected a module name: the teacher is what that module gives, or "
                "reads with final_side='input'"
            )
        for part in ("encoder", "decoder"):
            object.__setattr__(self, part, _as_stages(part, getattr(self, part)))

    def students(self) -> list[str]:
        """Names of the modules whose outputs are regularized, encoder before decoder."""
        return [name for part in (self.encoder, self.decoder) for stage in part for name in stage]

    def __str__(self) -> str:
        rows: list[tuple[str, str, object]] = [
            (f"{part}[{k}][{b}]", name, self.shapes.get(name))
            for part in ("encoder", "decoder")
            for k, stage in enumerate(getattr(self, part))
            for b, name in enumerate(stage)
        ]
        teacher = self.final if self.final_side == "output" else f"input of {self.final}"
        rows.append(("final", teacher, self.shapes.get(teacher)))
        rows += [("left out", name, reason) for name, reason in self.left_out.items()]
        width = max(len(name) for _, name, _ in rows)
        return "\n".join(f"{at:<15}{name:<{width}}  {shape or ''}".rstrip() for at, name, shape in rows)


def _as_stages(part: str, stages: Any) -> tuple[tuple[str, ...], ...]:
    """Every stage as the tuple of its blocks' names."""
    listed = isinstance(stages, Sequence) and not isinstance(stages, str)
    named = [(stage,) if isinstance(stage, str) else stage for stage in stages] if listed else []
    if not named or not all(
        isinstance(stage, Sequence) and stage and all(isinstance(name, str) for name in stage) for stage in named
    ):
        raise ValueError(
            f"TapSpec: {part} is {stages!r}; expected a list of stages with at least one module name a stage"
        )
    return tuple(tuple(stage) for stage in named)


def unwrapped(network: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and `torch.compile`."""
    while [name for name, _ in network.named_children()] in (["module"], ["_orig_mod"]):
        (network,) = network.children()
    return network


def _by_name(network: nn.Module) -> dict[str, nn.Module]:
    """The modules by name, also by that which they have without wrappers around the network or parts of it."""
    named = dict(network.named_modules())
    plain = {
        ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod")): module
        for name, module in named.items()
    }
    return plain | named


class _Seen(NamedTuple):
    value: Any
    with_grad: bool  # whether autograd was recording while the module ran


class FeatureTap:
    """Call a network and get its features beside its logits: `FeatureTap(network)(x) -> (logits, Features)`.

    The hooks live only for the length of one call, so the network copies, pickles and runs as if there were no
    tap, and its logits are the same bit for bit. A compiled network is tapped too, as one graph, and may be called
    plainly between. To compile tap, network and loss as one graph, without a break, give `permanent=True`: the hooks
    stay, and note something in calls of the tap alone.

    A layer that works in place on a tapped output changes the feature with it; name that layer instead.

    Args:
        network: any module, also inside DistributedDataParallel or `torch.compile`; ours bring their own `tap_spec`.
        spec: where the features are, needed for a network that is not ours; `suggest_spec` proposes one. Names are
            those of the network without such wrappers, or with them.
        permanent: leave the hooks on the network.

    Raises:
        ValueError: the spec is missing or names a module that the network does not have; or, when called, a module
            that did not run, ran more than once, did not return one map (B, C, H, W) or (B, C, D, H, W), or, in
            training, ran where autograd does not record although its parameters are trained.
    """

    def __init__(self, network: nn.Module, spec: TapSpec | None = None, *, permanent: bool = False) -> None:
        inner = unwrapped(network)
        spec = getattr(inner, "tap_spec", None) if spec is None else spec
        if not isinstance(spec, TapSpec):
            raise ValueError(
                f"FeatureTap: {type(inner).__name__} declares no tap_spec; "
                "give one: FeatureTap(network, TapSpec(...)), or let suggest_spec(network, image) propose it"
            )
        self.network, self.spec = network, spec
        modules = _by_name(network)
        for name in [*spec.students(), spec.final]:
            if name not in modules:
                close = difflib.get_close_matches(name, modules, n=3)
                raise ValueError(
                    f"FeatureTap: {type(inner).__name__} has no module {name!r}; "
                    f"close names: {', '.join(close) or 'none, see network.named_modules()'}"
                )
        self._students = {name: modules[name] for name in spec.students()}
        self._final = modules[spec.final]
        self._calls: dict[str, list[_Seen]] = {}  # of each module, while the tap is called; of the final one by _FINAL
        self._inner = inner
        self._wrapped = next(name for name, module in network.named_modules() if module is inner)
        self._hooks = self._hooked() if permanent else None

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Features]:
        """Run the network once; returns what it returns, and the features of this pass."""
        self._calls = {name: [] for name in (*self._students, _FINAL)}
        try:
            if self._hooks:
                logits = self.network(*args, **kwargs)
            else:
                with self._hooked():
                    logits = self.network(*args, **kwargs)
        finally:
            seen, self._calls = self._calls, {}
        final = seen.pop(_FINAL)
        students = {name: self._student(name, calls) for name, calls in seen.items()}
        return logits, Features(
            [[students[name] for name in stage] for stage in self.spec.encoder],
            [[students[name] for name in stage] for stage in self.spec.decoder],
            _one_map(self.spec.final, final, "gave" if self.spec.final_side == "output" else "read"),
        )

    def _hooked(self) -> ExitStack:
        """Register the hooks; the context removes them."""
        hooks = ExitStack()
        is_compiled = "_orig_mod" in self._wrapped or getattr(self._inner, "_compiled_call_impl", None)
        if is_compiled and "forward" not in vars(self._inner):
            # As it chooses a graph, torch does not look at hooks, but at whether a module has a `forward` of its own.
            self._inner.forward = _forward_of(self._inner)
            hooks.callback(delattr, self._inner, "forward")
        for name, module in self._students.items():
            hooks.enter_context(module.register_forward_hook(self._keep(name, "output")))
        keep = self._keep(_FINAL, self.spec.final_side)
        if self.spec.final_side == "input":
            hooks.enter_context(self._final.register_forward_pre_hook(keep, with_kwargs=True))
        else:
            hooks.enter_context(self._final.register_forward_hook(keep))
        return hooks

    def _keep(self, name: str, side: str) -> Callable[..., None]:
        """A hook that notes what a module gives, or before it runs its first input, positional or by keyword."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], rest: Any) -> None:
            if name in self._calls:
                value = rest if side == "output" else next(iter((*inputs, *rest.values())), None)
                self._calls[name].append(_Seen(value, torch.is_grad_enabled()))

        return hook

    def _student(self, name: str, calls: list[_Seen]) -> Tensor:
        feature = _one_map(name, calls, "gave")
        recorded = feature.requires_grad or calls[0].with_grad
        if self.network.training and torch.is_grad_enabled() and not recorded and self._is_trained(name):
            raise ValueError(
                f"FeatureTap: module {name!r} ran where autograd does not record, although its parameters are trained, "
                "so the regularizer would teach it nothing; if it is checkpointed, say use_reentrant=False to "
                "torch.utils.checkpoint.checkpoint; if it is frozen, set its parameters' requires_grad to False"
            )
        return feature.movedim(-1, 1) if self.spec.channels_last else feature

    def _is_trained(self, name: str) -> bool:
        """Whether a module, or where it has no parameters the nearest one around it that has, holds a trained one."""
        modules = _by_name(self.network)
        while name and next(modules[name].parameters(), None) is None:
            name = name.rpartition(".")[0]
        return any(p.requires_grad for p in modules[name].parameters()) if name else False


class Tapped(nn.Module):
    """A network for a framework that calls it: it returns what the network returns, and keeps the features.

    `state_dict` and `load_state_dict` are the network's, without a prefix, also inside other modules.

    Args:
        network: as of `FeatureTap`.
        spec: as of `FeatureTap`.

    Attributes:
        features: of the last call in train mode, before that None; in eval mode nothing is read.
    """

    def __init__(self, network: nn.Module, spec: TapSpec | None = None) -> None:
        super().__init__()
        self.network, self.tap = network, FeatureTap(network, spec)
        self.features: Features | None = None
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network once; returns what it returns."""
        if not self.training:
            return self.network(*args, **kwargs)
        output, self.features = self.tap(*args, **kwargs)
        return output


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}network.")]:
        state[prefix + key.removeprefix(f"{prefix}network.")] = state.pop(key)


def _with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}network.{key.removeprefix(prefix)}"] = state.pop(key)


def _forward_of(network: nn.Module) -> Callable[..., Any]:
    """A function that does the same; of a `functools.partial`, torch would take the graph of a plain call."""
    forward = network.forward

    def tapped(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return tapped


def _one_map(name: str, calls: list[_Seen], verb: str) -> Tensor:
    """The one map that a module gave or read in this pass; anything else is refused by name."""
    if not calls:
        raise ValueError(f"FeatureTap: module {name!r} did not run in this forward pass; name one that does")
    if len(calls) > 1:
        raise ValueError(
            f"FeatureTap: module {name!r} ran {len(calls)} times in this forward pass, and its feature would be any of "
            "them; name the modules around it, each of which runs once"
        )
    value = calls[0].value
    if not isinstance(value, Tensor):
        what = f"a {type(value).__name__}"
        if isinstance(value, Mapping):
            what += f" with keys {', '.join(map(repr, value))}"
        elif isinstance(value, list | tuple):
            what += f" of {len(value)}"
        raise ValueError(
            f"FeatureTap: module {name!r} {verb} {what}; "
            "expected one tensor, name another module (those inside it that give its parts)"
        )
    if value.ndim not in RANKS:
        raise ValueError(
            f"FeatureTap: module {name!r} {verb} a tensor of shape {tuple(value.shape)}; expected a map (B, C, H, W) "
            "or (B, C, D, H, W), with channels_last=True (B, *space, C): name a module whose tokens are a map already"
        )
    return value

"""Read the block features of a U-shaped network from outside; the network never knows who reads them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn


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
    """

    encoder: Sequence[str | Sequence[str]]
    decoder: Sequence[str | Sequence[str]]
    final: str
    final_side: Literal["input", "output"] = "output"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.final_side not in ("input", "output"):
            raise ValueError(f"TapSpec: final_side is {self.final_side!r}; expected 'input' or 'output'")
        for part in ("encoder", "decoder"):
            stages = tuple((stage,) if isinstance(stage, str) else tuple(stage) for stage in getattr(self, part))
            if not stages or not all(stages):
                raise ValueError(
                    f"TapSpec: {part} is {getattr(self, part)!r}; expected at least one module name a stage"
                )
            object.__setattr__(self, part, stages)


class FeatureTap:
    """Call a network and get its features beside its logits: `FeatureTap(network)(x) -> (logits, Features)`.

    The hooks live only for the length of one call, so the network copies, pickles and runs as if there were no
    tap, and its logits are the same bit for bit. A network that was compiled in place (`network.compile()`) is tapped
    too, as one graph; since torch does not look at hooks when it chooses a graph, tap it in train mode and call it
    plainly in eval mode, or the other way round, but not both ways in one mode.

    Args:
        network: any module; ours bring their own `tap_spec`.
        spec: where the features are, needed for a network that is not ours.

    Raises:
        ValueError: the spec is missing, names a module that the network does not have, or (when called) a module
            that did not run or did not return a tensor.
    """

    def __init__(self, network: nn.Module, spec: TapSpec | None = None) -> None:
        spec = getattr(network, "tap_spec", None) if spec is None else spec
        if not isinstance(spec, TapSpec):
            raise ValueError(
                f"FeatureTap: {type(network).__name__} declares no tap_spec; "
                "give one: FeatureTap(network, TapSpec(...))"
            )
        self.network, self.spec = network, spec
        modules = dict(network.named_modules())
        for name in self._names():
            if name not in modules:
                close = difflib.get_close_matches(name, modules, n=3)
                raise ValueError(
                    f"FeatureTap: {type(network).__name__} has no module {name!r}; "
                    f"close names: {', '.join(close) or 'none, see network.named_modules()'}"
                )
        self._modules = {name: modules[name] for name in self._names()}

    def _names(self) -> list[str]:
        return [name for part in (self.spec.encoder, self.spec.decoder) for stage in part for name in stage] + [
            self.spec.final
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Features]:
        """Run the network once; returns what it returns, and the features of this pass."""
        seen: dict[str, Any] = {}

        def keep(name: str):
            def hook(module: nn.Module, inputs: tuple, output: Any = None) -> None:
                seen[name] = inputs[0] if output is None else output

            return hook

        with ExitStack() as hooks:
            for name, module in self._modules.items():
                if name == self.spec.final and self.spec.final_side == "input":
                    hooks.enter_context(module.register_forward_pre_hook(keep(name)))
                else:
                    hooks.enter_context(module.register_forward_hook(keep(name)))
            logits = self.network(*args, **kwargs)
        for name in self._names():
            self._check(name, seen)
        return logits, Features(
            [[self._channels_first(seen[name]) for name in stage] for stage in self.spec.encoder],
            [[self._channels_first(seen[name]) for name in stage] for stage in self.spec.decoder],
            seen[self.spec.final],
        )

    def _check(self, name: str, seen: dict[str, Any]) -> None:
        if name not in seen:
            raise ValueError(
                f"FeatureTap: module {name!r} did not run in this forward pass; name one that does (or, of a compiled "
                "network, tap it in a mode in which it is not called plainly)"
            )
        if not isinstance(seen[name], Tensor):
            raise ValueError(
                f"FeatureTap: module {name!r} gave a {type(seen[name]).__name__}; "
                "expected one tensor, name another module"
            )

    def _channels_first(self, feature: Tensor) -> Tensor:
        return feature.movedim(-1, 1) if self.spec.channels_last else feature

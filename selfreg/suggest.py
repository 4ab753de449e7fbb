"""A proposal of where a U-shaped network can be tapped, from one traced forward pass."""

from __future__ import annotations

import math
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.conv import _ConvNd

from selfreg.features import RANKS, TapSpec, unwrapped

Space = tuple[int, ...]

# What these give is part of the convolution after them, and no resolution.
_PADDING = (
    *(nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    *(nn.ConstantPad3d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d),
)


def suggest_spec(model: nn.Module, example: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> TapSpec:
    """Propose a `TapSpec` for a U-shaped network; `print` it to see what it would regularize.

    The network runs once, in eval mode, and is left as it was: modes, buffers and random state.
    Its output convolution is the last one that makes the classes; the teacher is the map that this one reads. The
    encoder's stages are the resolutions below the image's down to the bottleneck, which counts among them; the
    decoder's are those that come again between the bottleneck and the teacher. Of each stage the last module stands
    for it, whole blocks before single layers. Left out are modules that run twice or give a list, what the output does
    not depend on, odd numbers of channels, and maps of a single point, such as squeeze-and-excitation makes.

    It is a proposal: one map a stage, while a list of blocks is written by hand. Ask before `network.compile()`.

    Args:
        model: the network, also inside DistributedDataParallel or `torch.compile`; its output is a tensor
            (B, K, *space), or a tuple, list or dict with such a tensor.
        example: its input (B, C, H, W) or (B, C, D, H, W), the tuple of all its inputs, or a dict of these by keyword;
            of any size at which the bottleneck has more than a single point.

    Returns:
        The spec, with the `shapes` (B, C, *space) that were seen, and what was `left_out` of which stage and why.

    Raises:
        ValueError: no fall and rise of resolutions, no output convolution, an output of another kind, or an example
            too small for the depth.
    """
    named = dict(example) if isinstance(example, Mapping) else {}
    inputs = () if named else example if isinstance(example, tuple) else (example,)
    images = [x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.ndim in RANKS]
    model = unwrapped(model)
    try:
        if not images:
            raise _NotUnderstood("the example holds no tensor (B, C, H, W) or (B, C, D, H, W)")
        return _spec(Trace(model, inputs, named), images[0])
    except _NotUnderstood as reason:
        raise ValueError(
            f"suggest_spec: {type(model).__name__}: {reason}; name the modules yourself, TapSpec(encoder=[...], "
            "decoder=[...], final=...)"
        ) from None


class _NotUnderstood(Exception):
    """Why a network is not taken for a U."""


class _Map(NamedTuple):
    name: str
    module: nn.Module
    channels: int
    space: Space
    same: tuple[str, ...]  # see Call
    nodes: frozenset[Node]  # see Call
    ahead: int  # the modules around it whose layers work at another size, which they go on to: it is a part of these


def _spec(trace: Trace, image: Tensor) -> TapSpec:
    given = trace.output
    outputs = given if isinstance(given, tuple | list) else [*given.values()] if isinstance(given, Mapping) else [given]
    given_maps = [x for x in outputs if isinstance(x, Tensor) and x.ndim == image.ndim]
    if not given_maps:
        raise _NotUnderstood(
            f"it returns a {type(trace.output).__name__}; expected the logits (B, K, *space), alone or in a tuple"
        )
    classes = given_maps[0].shape[1]
    heads = [x for x in given_maps if x.shape[1] == classes]  # of several, the finest that depends on most
    trace.keep_what_makes(max(heads, key=lambda x: (math.prod(x.shape[2:]), len(_before([x.grad_fn])))))
    at = _output_convolution(trace, outputs, classes, image)
    head = trace.calls[at]
    _check_depth(trace.calls[:at], image)
    found, reasons = [], []
    for channels_last in (False, True):
        maps = _maps(trace, at, image, channels_last)
        try:
            found.append((*_stages(maps, tuple(image.shape[2:]), tuple(head.reads[2:]), classes), channels_last))
        except _NotUnderstood as reason:
            reasons.append(reason)
    if not found:
        blocks = [c.name for c in trace.calls[:at] if len(c.shape) == image.ndim and _is_block(c.module)]
        again = next((name for name in blocks if trace.times[name] > 1), None)
        if again:
            raise _NotUnderstood(f"{again!r} runs {trace.times[again]} times in a pass, and has no one feature")
        raise reasons[0]
    # Where both layouts can be read into the shapes, the true one makes the longer chain of resolutions.
    encoder, decoder, odd, channels_last = max(found, key=lambda u: len(u[0]) + len(u[1]))
    _check_layout(trace.calls[:at], image, encoder[-1], channels_last)
    called = {call.name: call for call in trace.calls}
    beside = next((called[name].beside for name in head.givers if called[name].beside), ())
    givers = [name for name in beside or head.givers if trace.times[name] == 1]
    # The outermost comes last, before it what stands in several places, and first what holds the whole network.
    givers.sort(key=lambda name: (not _holds(called[name].module, encoder[-1].module), name not in trace.shared))
    final = givers[-1] if givers else head.name
    teacher = called[final].shape if givers else head.reads
    shapes = {m.name: (len(image), m.channels, *m.space) for m in (*encoder, *decoder)}
    return TapSpec(
        encoder=[m.name for m in encoder],
        decoder=[m.name for m in decoder],
        final=final,
        final_side="output" if givers else "input",
        channels_last=channels_last,
        shapes={**shapes, final if givers else f"input of {final}": tuple(teacher)},
        left_out={**{m.name: f"{m.channels} channels, an odd number" for m in odd}, **trace.without_effect()},
    )


def _check_depth(calls: list[Call], image: Tensor) -> None:
    """A stage of a single point is taken for no stage, so an example must be large enough to have none."""
    for call in calls:
        point = len(call.shape) == image.ndim and math.prod(call.shape[2:]) == 1
        if point and isinstance(call.module, _ConvNd) and max(call.module.kernel_size) > 1:  # a gate's has one weight
            raise _NotUnderstood(
                f"an example of size {tuple(image.shape[2:])} is too small for its depth: {call.name!r} gives a single "
                "point; give a larger one, for the spec does not depend on its size"
            )


def _check_layout(calls: list[Call], image: Tensor, coarsest: _Map, channels_last: bool) -> None:
    """A map that is coarser than the bottleneck, but only in the other layout, shows that there are two."""
    for call in calls:
        is_map = len(call.shape) == image.ndim and call.shape[0] == image.shape[0] and _is_compound(call.module)
        is_coarser = is_map and 1 < math.prod(_space(call.shape, not channels_last)) < math.prod(coarsest.space)
        if (
            is_coarser
            and _is_layout(call.shape, image, not channels_last)
            and not _is_layout(call.shape, image, channels_last)
        ):
            raise _NotUnderstood(
                f"its maps have two layouts: {call.name!r} gives {tuple(call.shape)}, and {coarsest.name!r} has its "
                f"channels {'last' if channels_last else 'first'}; a spec holds one"
            )


def _output_convolution(trace: Trace, outputs: Sequence[Any], classes: int, image: Tensor) -> int:
    """The index of its call: the one whose output is returned (the finest of several), or the last with K channels."""
    calls = trace.calls
    convolutions = [i for i, c in enumerate(calls) if isinstance(c.module, _ConvNd) and len(c.reads) == image.ndim]
    made = [i for i in convolutions if calls[i].shape[1] == classes]
    if not made:
        raise _NotUnderstood(f"no convolution gives the {classes} channels of its output")
    returned = [i for i in made if any(calls[i].output() is x for x in outputs)]
    at = max(returned, key=lambda i: (math.prod(calls[i].shape[2:]), i)) if returned else made[-1]
    if calls[at].reads[1] == classes:
        at = _start_of_head(calls, made, at, image)
    if trace.times[calls[at].name] > 1:
        raise _NotUnderstood(f"its output convolution {calls[at].name!r} runs more than once")
    return at


def _start_of_head(calls: list[Call], made: list[int], at: int, image: Tensor) -> int:
    """Of a head that goes on refining the classes, the convolution that makes them of something else."""
    classes, around = calls[at].shape[1], _around(calls[at].name)
    heads = [
        c.name
        for c in calls
        if c.name in around and c.reads and c.shape[1] == classes != c.reads[1] and c.reads != image.shape
    ]
    inside = [i for i in made if heads and heads[0] in _around(calls[i].name)]
    return next((i for i in inside if calls[i].reads[1] != classes), at)


def _maps(trace: Trace, end: int, image: Tensor, channels_last: bool) -> list[_Map]:
    """What could be a stage's map: read in this layout, of this batch, with more than a point."""
    calls = [call for call in trace.calls[:end] if len(call.shape) == image.ndim]
    space = {call.name: _space(call.shape, channels_last) for call in calls}
    flat = _flat(trace.calls[:end], channels_last)
    # Modules whose output has the size at which two of their layers of weights or more work, and this size.
    layers = Counter((name, space[c.name]) for c in calls if _is_weighted(c.module) for name in _around(c.name))
    homes = {call.name: space[call.name] for call in calls if layers[call.name, space[call.name]] > 1}
    maps = []
    for call in calls:
        at, channels = space[call.name], call.shape[-1 if channels_last else 1]
        fits = call.shape[0] == image.shape[0] and _is_layout(call.shape, image, channels_last)
        alone = trace.times[call.name] == 1 and all(flat.get(name, at) == at for name in _around(call.name))
        if fits and alone and math.prod(at) > 1 and not call.beside:
            ahead = sum(homes.get(name, at) != at for name in _around(call.name))
            maps.append(_Map(call.name, call.module, channels, at, call.same, call.nodes, ahead))
    # An attention matrix has the rank of a map; what only layers without weights give is no resolution.
    real = {m.space for m in maps if isinstance(m.module, _ConvNd) or _is_compound(m.module)}
    return [m for m in maps if m.space in real]


def _flat(calls: list[Call], channels_last: bool) -> dict[str, Space]:
    """Modules that give the size they read with no rise in between, and this size: what is coarser in them is a detail
    (keys pooled for attention, a pyramid, a gate), no level of the network."""
    rises: set[str] = set()
    flat: dict[str, Space] = {}
    for call in calls:
        if len(call.reads) != len(call.shape):
            continue
        if len(call.shape) == 3:  # tokens
            if call.reads[1] == call.shape[1]:
                flat[call.name] = ()
            continue
        before, after = _space(call.reads, channels_last), _space(call.shape, channels_last)
        if math.prod(after) > math.prod(before):
            rises.update(_around(call.name))
        if before == after and call.name not in rises:
            flat[call.name] = after
    return flat


def _is_layout(shape: torch.Size, image: Tensor, channels_last: bool) -> bool:
    """Whether a shape can have this layout: the image scaled alike along all axes has, and only an anisotropic map that
    is so in neither layout is taken for a convolution's."""

    def scales(space: Space) -> bool:
        """Whether a size is the image's by one factor, but for rounding."""
        ratio = space[0] / image.shape[2]
        return all(abs(s - ratio * i) <= 1 + i / image.shape[2] for s, i in zip(space, image.shape[2:], strict=True))

    last = scales(_space(shape, channels_last=True))
    return last if channels_last else not last or scales(_space(shape, channels_last=False))


def _stages(maps: list[_Map], image: Space, final: Space, classes: int) -> tuple[list[_Map], list[_Map], list[_Map]]:
    """The map that stands for each stage: of the encoder fine to coarse, of the decoder coarse to fine, and those that
    would, had they an even number of channels."""
    bottleneck = min((m.space for m in maps), key=math.prod, default=final)
    if math.prod(bottleneck) >= math.prod(final):
        raise _NotUnderstood(
            f"the map that its output convolution reads, of size {final}, is not finer than the coarsest one, "
            f"{bottleneck}: nothing rises, there is no decoder"
        )
    visits = [i for i, m in enumerate(maps) if m.space == bottleneck]
    down = next((i for i in range(visits[0], len(maps)) if maps[i].space != bottleneck), len(maps))
    falling, rising = maps[:down], maps[visits[-1] + 1 :]
    sizes_below = {m.space for m in falling if math.prod(m.space) < math.prod(image)}
    levels = sorted(sizes_below, key=math.prod, reverse=True)
    between = [space for space in levels if math.prod(bottleneck) < math.prod(space) < math.prod(final)]
    paired = [m for space in between for m in _even([m for m in rising if m.space == space])]
    ups = [space for space in reversed(between) if any(m.space == space for m in paired)]
    if not ups:
        raise _NotUnderstood(
            f"after its bottleneck of size {bottleneck} no resolution of the encoder comes again below the last map's "
            f"{final} with an even number of channels: there is no decoder"
        )
    encoder: list[_Map] = []
    odd = [_last_block([m for m in rising if m.space == s], classes) for s in between if s not in ups]
    on_the_way = _before(maps[visits[-1]].nodes)
    for space in levels:
        every = [m for m in falling if m.space == space]
        # Of nested decoders some come before the bottleneck, which depends on none of them.
        every = [m for m in every if m.nodes & on_the_way] or every
        at_level = _even(every)
        if space == bottleneck and encoder:  # the decoder may begin at this resolution
            at_level = _beside(encoder, at_level)
        encoder += [_last_block(at_level, classes)] if at_level else []
        odd += [] if at_level else [_last_block(every, classes)]
    if not encoder:
        raise _NotUnderstood("no map of its encoder is smaller than the image and has an even number of channels")
    decoder = [_last_block([m for m in paired if m.space == s], classes, encoder[-1].module) for s in ups]
    return encoder, decoder, odd


def _even(maps: list[_Map]) -> list[_Map]:
    """Those with an even number of channels; beside a block of an odd number no layer stands for the stage."""
    odd_block = any(m.channels % 2 and _is_block(m.module) for m in maps)
    return [m for m in maps if m.channels % 2 == 0 and (not odd_block or _is_block(m.module))]


def _beside(stages: list[_Map], maps: list[_Map]) -> list[_Map]:
    """Those inside the smallest module that holds all these stages and one of them that is a block; else all."""
    shared = [name for name in _around(stages[-1].name) if all(name in _around(m.name) for m in stages)]
    inside = ([m for m in maps if name in _around(m.name)] for name in shared)
    return next((found for found in inside if any(_is_block(m.module) for m in found)), maps)


def _last_block(maps: list[_Map], classes: int, bottleneck: nn.Module | None = None) -> _Map:
    """The last of the blocks with two layers of weights or more, else of compound modules, else of layers.

    It outranks a module that holds the stages below it, a part of the next stage, and a side output, which has the
    classes' channels.
    """
    by_name = {m.name: m for m in maps}

    def holds_lower(m: _Map) -> bool:
        return bottleneck is not None and _holds(m.module, bottleneck)

    def tightest(m: _Map) -> _Map:
        """In place of a module that holds the stages below, the one in it that gives the same tensor."""
        inner = (by_name[name] for name in reversed(m.same) if name in by_name)
        return next((part for part in inner if not holds_lower(part)), m) if holds_lower(m) else m

    def rank(i: int) -> tuple[bool, int, int, bool, int]:
        block = 2 if _is_block(maps[i].module) else int(_is_compound(maps[i].module))
        return not holds_lower(tightest(maps[i])), block, -maps[i].ahead, maps[i].channels != classes, i

    return tightest(maps[max(range(len(maps)), key=rank)])


def _space(shape: torch.Size, channels_last: bool) -> Space:
    return tuple(shape[1:-1] if channels_last else shape[2:])


def _around(name: str) -> list[str]:
    """Names of the modules around this one, the nearest first."""
    return [name[:i] for i in range(len(name) - 1, 0, -1) if name[i] == "."]


def _holds(module: nn.Module, other: nn.Module) -> bool:
    return any(m is other for m in module.modules())


def _is_block(module: nn.Module) -> bool:
    """Whether a module has two layers of weights or more."""
    return sum(map(_is_weighted, module.modules())) > 1


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd | nn.Linear)


def _is_compound(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _before(nodes: Iterable[Node | None]) -> set[Node]:
    """These nodes of autograd and all that they depend on."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    return found


class Call(NamedTuple):
    """A module that gave a tensor; `output` is dead once the network has let go of it."""

    name: str
    module: nn.Module
    shape: torch.Size
    output: weakref.ref[Tensor]
    reads: torch.Size  # shape of its first input, empty where that is no tensor
    givers: tuple[str, ...]  # the modules that gave this very input, inner before outer
    same: tuple[str, ...]  # the modules that gave this very output before: its own last part, if it adds nothing
    node: Node | None  # of autograd, which made the output
    beside: tuple[str, ...]  # of an output that is the input and another map, concatenated: what gave the latter

    @property
    def nodes(self) -> frozenset[Node]:
        """With that which a layer that works in place has put behind it."""
        now = self.output()
        return frozenset(node for node in (self.node, None if now is None else now.grad_fn) if node is not None)


class Trace:
    """One forward pass: `calls` in the order in which modules end, so the parts of a module stand before it.

    The network runs in eval mode and is then as it was: modes, buffers, random state. Shapes are kept, not tensors.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any] | None = None) -> None:
        self.calls: list[Call] = []
        self._dropped: list[Call] = []
        self.times: Counter[str] = Counter()
        places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        # In several places of the network, of which training may run more than eval mode does.
        self.shared = {name for name, module in model.named_modules() if places[id(module)] > 1}
        self._givers: dict[int, tuple[weakref.ref[Tensor], tuple[str, ...]]] = {}
        devices = {tensor.device.index for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        modes, python_random = [(module, module.training) for module in model.modules()], random.getstate()
        with torch.random.fork_rng(devices=sorted(devices)), torch.enable_grad(), ExitStack() as stack:
            stack.callback(random.setstate, python_random)
            for module, training in modes:
                stack.callback(setattr, module, "training", training)
            for name, module in model.named_modules():
                if name:
                    stack.enter_context(module.register_forward_hook(self._hook(name), with_kwargs=True))
            self.output = torch.func.functional_call(model.eval(), buffers, inputs, named)

    def keep_what_makes(self, logits: Tensor) -> None:
        """Drop the calls whose outputs the logits do not depend on, as autograd knows it; what it did not see stays."""
        reached = _before([logits.grad_fn])
        kept: list[Call] = []
        same: set[str] = set()  # that a layer which works in place gave again: autograd has a new node for them
        for call in reversed(self.calls if reached else []):
            if call.node is None or call.name in same or call.nodes & reached:
                kept.append(call)
                same.update(call.same)
        names = {call.name for call in kept}
        self._dropped = [call for call in self.calls if call.name not in names] if kept else []
        self.calls = kept[::-1] or self.calls

    def without_effect(self) -> dict[str, str]:
        """The last block of each resolution among those that the logits do not depend on, and that as the reason."""
        blocks = {call.shape[2:]: call.name for call in self._dropped if len(call.shape) > 3 and _is_block(call.module)}
        return dict.fromkeys(blocks.values(), "the output does not depend on it")

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            self.times[name] += 1
            if not isinstance(output, Tensor) or isinstance(module, _PADDING):
                return
            read = next(iter((*inputs, *named.values())), None)
            shape, givers = (read.shape, self._names_of(read)) if isinstance(read, Tensor) else (torch.Size(), ())
            same = self._names_of(output)
            node, beside = output.grad_fn, self._beside(output, read)
            self.calls.append(Call(name, module, output.shape, weakref.ref(output), shape, givers, same, node, beside))
            self._givers[id(output)] = weakref.ref(output), (*same, name)

        return hook

    def _beside(self, output: Tensor, read: Any) -> tuple[str, ...]:
        """The modules that gave what a skip connection concatenates with its input, inner before outer."""
        node = output.grad_fn
        parts = [part for part, _ in node.next_functions] if node and node.name() == "CatBackward0" else []
        own = read.grad_fn if isinstance(read, Tensor) else None
        if own is None or len(parts) != 2 or own not in parts:
            return ()
        other = parts[1 - parts.index(own)]
        return tuple(call.name for call in self.calls if call.node is other)

    def _names_of(self, tensor: Tensor) -> tuple[str, ...]:
        """The modules that gave this very tensor, not an equal one."""
        reference, names = self._givers.get(id(tensor), (None, ()))
        return names if reference is not None and reference() is tensor else ()

"""What a plugin declares of itself, and which stacks can work.

A stack is checked before anything is trained: every plugin says with `Traits` which aspects of the
cut it needs and which it changes. An aspect is true at the client's output, unless the model lacks
it, and stays true until a plugin changes it; a plugin whose need is gone is refused, with the
reason and a stack that works.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal, get_args

from splitlab.core.contract.errors import ConfigError, PluginError, unknown_name
from splitlab.core.contract.measure import MEASUREMENTS, Measurement
from splitlab.core.contract.part import Layout

__all__ = ["ASPECTS", "Declared", "Ground", "Traits", "check_order"]

Gradient = Literal["natural", "straight-through", "corrected"]

ASPECTS = {
    "batch": "row b is sample b of the batch",
    "sample ids": "every row has the id of its sample",
    "targets": "every row has a class id, or class probabilities if it is mixed",
    "tokens": "the tokens are those that the model made",
    "grid": "the patch tokens are the whole patch grid, row by row, behind the special tokens",
    **{kind.aspect: kind.known for kind in MEASUREMENTS if kind.aspect},
    "places": "token j is the same place of the image in every row and at every step",
    "features": "a token has the model's width",
    "layout": "the payload is one tensor (rows, tokens, features)",
    "numbers": "the payload is floating point",
    "analog": "all of the payload is floating point, without codes",
    "any bits": "the payload can be decoded whatever bits it has",
    "plain": "the payload is tensors, not a compressed string of bytes",
}
"""What is true of a cut until a plugin changes it, in words for an error message."""


def _measured(aspect: str) -> tuple[str, ...]:
    """Return what was measured and is lost together with this aspect."""
    return tuple(kind.aspect for kind in MEASUREMENTS if aspect in kind.gone_with)


_GOES_WITH = {
    "batch": ("sample ids", "targets", *_measured("batch")),
    "tokens": ("grid", *_measured("tokens")),
    "places": ("grid", *_measured("places")),
    "layout": ("grid", "places", "features", *_measured("layout")),
    "numbers": ("grid", "places", "features", "layout", "analog", *_measured("numbers")),
    "plain": tuple(name for name in ASPECTS if name != "plain"),
}
"""What is lost together with an aspect that is changed."""

_MOST_TRIED = 6
"""Plugins of which every order is tried to find a stack that works: 6! = 720 orders."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a plugin needs, what it changes and how it treats gradients and evaluation.

    Attributes:
        needs: aspects (see `ASPECTS`) that must still be true where the plugin stands.
        changes: aspects that are no longer true behind it. What goes with one of them is implied:
            a plugin that merges samples changes ``"batch"``, and with it ids and targets are gone.
        evaluation: whether it acts on evaluation batches, too. If a plugin of the stack does, a run
            reports both evaluations: with the stack, without.
        stateful: whether what it does at a step depends on earlier steps (residuals, histories,
            learned modules). It then implements ``state_dict`` and ``load_state_dict``, unless all
            its state is in modules that it registered.
        once: whether a stack may hold it only once.
        last: whether nothing may stand behind it: it is a channel, and does to a message what
            happens on its way.
        gradient: ``"natural"``: the client gets the exact gradient of the composed map, and of
            losses that are added with `Cut.add_loss`; ``"straight-through"``: the error of the
            decoder is ignored; ``"corrected"``: the plugin adds a term of its own in
            ``gradient_return``.
        waits: why a step of it cannot do without numbers that a GPU has to tell first, such as
            how many bytes there are; empty if it asks for none, which the conformance kit checks.
    """

    needs: AbstractSet[str] = frozenset()
    changes: AbstractSet[str] = frozenset()
    evaluation: bool = False
    stateful: bool = False
    once: bool = False
    last: bool = False
    gradient: Gradient = "natural"
    waits: str = ""

    def __post_init__(self) -> None:
        for name in ("needs", "changes"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise PluginError(f"traits: {name}={value!r} must be a set, as in {{{value!r}}}")
            object.__setattr__(self, name, frozenset(value))
            for aspect in getattr(self, name):
                if aspect not in ASPECTS:
                    raise PluginError(f"traits: {unknown_name('aspect', aspect, ASPECTS)}")
        if not isinstance(self.waits, str):
            raise PluginError(f"traits: waits={self.waits!r} must say why, as in waits='…'")
        if self.gradient not in get_args(Gradient):
            raise PluginError(
                f"traits: gradient={self.gradient!r} is unknown; one of "
                f"{', '.join(get_args(Gradient))}"
            )

    @property
    def takes_away(self) -> AbstractSet[str]:
        """What is no longer true behind the plugin: `changes` and what goes with them."""
        return frozenset(self.changes).union(*(_GOES_WITH.get(a, ()) for a in self.changes))


@dataclass(frozen=True)
class Declared:
    """A plugin of a stack as `check_order` sees it.

    Attributes:
        label: what messages call it.
        traits: what it declares.
        on_graph: whether it encodes in ``after_client_forward``.
        on_message: whether it encodes in ``before_send``.
    """

    label: str
    traits: Traits
    on_graph: bool
    on_message: bool

    @property
    def acts(self) -> bool:
        """Whether it declares to do anything; a plugin that watches fits anywhere."""
        return bool(self.traits.needs or self.traits.changes)


@dataclass(frozen=True)
class Ground:
    """What a model, cut where it is, gives a stack to stand on.

    Attributes:
        lacks: aspects that are not true even at the client's output, each with what is lacking,
            as it follows "needs".
        fixed_tokens: what the server's part takes, in words, if it takes nothing else; empty if it
            takes any number of tokens.
    """

    lacks: Mapping[str, str] = field(default_factory=dict)
    fixed_tokens: str = ""

    @classmethod
    def of(cls, layout: Layout, unable: Callable[[Measurement], str | None]) -> Ground:
        """Return that of a layout, and of the measurements that the client's part can take."""
        measured = {kind.aspect: unable(kind()) for kind in MEASUREMENTS if kind.aspect}
        lacks = {aspect: reason for aspect, reason in measured.items() if reason}
        if layout.grid is None:
            lacks["grid"] = "a grid of patches, which this model does not have"
        if layout.any_tokens:
            return cls(lacks)
        places = f" in a grid of {layout.grid[0]} x {layout.grid[1]}" if layout.grid else ""
        return cls(lacks, f"its {layout.tokens} tokens{places}, all of them")


def check_order(stack: Sequence[Declared], ground: Ground | None = None) -> None:
    """Refuse a stack that cannot work, on any model or on this ground.

    Raises:
        ConfigError: names the plugin, what it lacks, who took that away, and a stack that works.
    """
    ground = ground or Ground()
    problem = _problem(stack, ground)
    if problem:
        remedy = _remedy(stack, ground)
        raise ConfigError(f"the stack {_written(stack)} cannot work: {problem}{remedy}")


def _problem(stack: Iterable[Declared], ground: Ground) -> str | None:
    gone: dict[str, str] = {}
    off_graph = ""
    seen: set[str] = set()
    end = ""
    for plugin in stack:
        if end:
            return f"{end!r} is a channel, which stands last, and {plugin.label!r} is behind it"
        name = plugin.label.partition("#")[0]
        if plugin.traits.once and name in seen:
            return f"{name!r} may stand in a stack only once"
        seen.add(name)
        if plugin.on_graph and plugin.acts and off_graph:
            return (
                f"{plugin.label!r} works on the autograd graph, before a message is made, and "
                f"{off_graph!r} in front of it on the message: they would act in the other order"
            )
        for aspect in ASPECTS:  # in their order, so that an error is the same every time
            if aspect in plugin.traits.needs and aspect in ground.lacks:
                return f"{plugin.label!r} needs {ground.lacks[aspect]}"
            if aspect in plugin.traits.needs and aspect in gone:
                return (
                    f"{plugin.label!r} needs {aspect} ({ASPECTS[aspect]}), which {gone[aspect]!r} "
                    "in front of it takes away"
                )
        if "tokens" in plugin.traits.changes and ground.fixed_tokens:
            return (
                f"{plugin.label!r} leaves other tokens than the model made, and the server's part "
                f"of this model takes {ground.fixed_tokens}; choose a model whose server part "
                "takes any number of tokens, as a transformer does, or another method"
            )
        if plugin.traits.last:
            end = plugin.label
        if plugin.on_message and plugin.acts:
            off_graph = plugin.label
        for aspect in plugin.traits.takes_away:
            gone.setdefault(aspect, plugin.label)
    return None


def _remedy(stack: Sequence[Declared], ground: Ground) -> str:
    works = next((order for order in _others(stack, ground) if _problem(order, ground) is None), ())
    if not works:
        return ""  # the problem is the model's, and says so
    left_out = [plugin.label for plugin in stack if plugin not in works]
    without = f" (without {', '.join(left_out)})" if left_out else ""
    return f"; a stack that works: {_written(works)}{without}"


def _others(stack: Sequence[Declared], ground: Ground) -> Iterator[Sequence[Declared]]:
    """Yield the same plugins in other orders, then fewer of them in the order given.

    Those with a channel come before those without: who asks for one wants it there. A long stack
    yields one only: every plugin that works with those in front of it.
    """
    if len(stack) <= _MOST_TRIED:
        yield from itertools.permutations(stack)
        for count in range(len(stack) - 1, 0, -1):
            fewer = itertools.combinations(sorted(stack, key=_stands_last), count)
            yield from sorted(fewer, key=lambda chosen: not any(map(_stands_last, chosen)))
        return
    kept: list[Declared] = []
    for plugin in sorted(stack, key=_stands_last):  # too many to try them all
        if _problem([*kept, plugin], ground) is None:
            kept.append(plugin)
    yield kept


def _stands_last(plugin: Declared) -> bool:
    return plugin.traits.last


def _written(stack: Iterable[Declared]) -> str:
    return " + ".join(plugin.label for plugin in stack)

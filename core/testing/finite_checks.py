"""The check that what is not finite stays visible: said in an error, or decoded as not finite."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Iterator

import torch

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import Diverged, PluginError, SplitlabError
from splitlab.core.contract.hooks import hookimpl
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.edge_checks import bounded, with_one
from splitlab.core.testing.report import Skipped
from splitlab.core.testing.seen import same
from splitlab.core.testing.subject import Subject, with_activations

__all__ = ["shows_what_is_not_finite"]

_SAID = re.compile(
    r"\b(not|no)\b.{0,20}\bfinite|\b(non-?|in)finite|\bnot a number|\b(nan|inf|infinity)\b",
    re.IGNORECASE,
)
_HUGE = 1e4
"""A finite number that nothing but leaving it out hides."""

Change = Callable[[torch.Tensor], torch.Tensor]
Decoded = Callable[[Subject, Change], torch.Tensor]


def shows_what_is_not_finite(s: Subject) -> str | None:
    """One value that is not finite, in activations or gradients, never comes out as a number."""
    s.working()
    if s.breaks_at_edges:
        raise Skipped("needs inputs at the edge that it survives, see survives-edge-inputs")
    left_out: list[str] = []
    bounded(s, _cases(s, left_out))
    kinds = " and ".join(dict.fromkeys(left_out))
    return f"the value is left out of the {kinds}, whatever it is" if kinds else None


def _cases(s: Subject, left_out: list[str]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what to say of a value, and the steps to do with it."""
    for what, decoded in (("activations", _activations), ("gradient", _gradient)):
        for value in (math.nan, math.inf, -math.inf):

            def case(what: str = what, decoded: Decoded = decoded, value: float = value) -> None:
                try:
                    shown = decoded(s, lambda X: with_one(X, value)).isfinite().logical_not().any()
                except SplitlabError as error:
                    if _SAID.search(str(error)):
                        return
                    raise PluginError(f"{error}; say that a value is not finite") from error
                if shown:
                    return
                if not same(decoded(s, lambda X: X), decoded(s, lambda X: with_one(X, _HUGE))):
                    raise PluginError(
                        "what is decoded is finite, as if nothing were wrong; raise an error that "
                        "says that a value is not finite, or decode to NaN what it went into"
                    )
                left_out.append(what)  # whatever it is, as where a token is dropped

            yield f"a value of {value} in the {what}", case


def _activations(s: Subject, change: Change) -> torch.Tensor:
    """Return what the server decodes where the activations are changed."""

    def enter(cut: Cut) -> None:
        with_activations(cut, change(cut.activations.detach()))

    return _decoded(s, s.couple(enter=enter), ("server", "before_server_forward", "activations"))


def _gradient(s: Subject, change: Change) -> torch.Tensor:
    """Return what reaches the client's part where the server's gradient is changed."""
    couple = s.couple(watching={"server": [_Changes(change)]})
    return _decoded(s, couple, ("client", "backward", "gradient"))


def _decoded(s: Subject, couple: Couple, where: tuple[str, str, str]) -> torch.Tensor:
    role, hook, name = where
    try:
        couple.train(s.tiny.batch(), 0)
    except SplitlabError as error:
        events = couple.seen(role, hook)  # what was decoded, before something else went wrong
        if not events:
            raise
        decoded = events[0].after.tensors[name]
        # That the engine finds it in the end is no merit of the plugin's.
        if bool(decoded.isfinite().all()) and not isinstance(error, Diverged):
            raise
    return couple.seen(role, hook)[0].after.tensors[name]


class _Changes:
    """Changes the gradient before the stack encodes it."""

    def __init__(self, change: Change) -> None:
        self._change = change

    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Generator[None, object, object]:
        if message.kind is Kind.GRADIENT:
            message.put("gradient", self._change(message["gradient"]), Role.PAYLOAD)
        return (yield)

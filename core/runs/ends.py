"""The ends of a run's link: in the user's wrappers, and each failure with the name of its owner.

A transport and a wrapper may be the user's code. What it raises, other than the errors that the
contract of a link knows, and what it returns in place of a link or a message becomes a
`PluginError`, as with plugins and probes. Other errors are splitlab's own and pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from splitlab.core.contract.errors import FAULTS, PluginError, SplitlabError, reason, where
from splitlab.core.contract.link import Link, PeerRole, WrappedLink
from splitlab.core.contract.message import Message
from splitlab.core.contract.settings import Bound

__all__ = ["called", "end"]

P = ParamSpec("P")
R = TypeVar("R")

_MEMBERS = ("limits", "remote", "send", "receive", "close")


def called(owner: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call what is the owner's, and name the owner if it fails.

    Args:
        owner: such as ``link 'slow'``.
        call: a method of it.
        args, kwargs: of the method.
    """
    try:
        return call(*args, **kwargs)
    except SplitlabError:
        raise
    except FAULTS as error:
        at_the_call = error.__traceback__ is not None and error.__traceback__.tb_next is None
        if not where(error) and not at_the_call:
            raise
        name, code = getattr(call, "__name__", "a call"), getattr(call, "__self__", call)
        raise PluginError(f"{owner} failed in {name}: {reason(error, code)}") from error


def end(link: Link, transport: str, wrappers: Iterable[Bound], role: PeerRole) -> Link:
    """Return this end of a link in new wrappers, the first one innermost.

    Args:
        link: as the transport made it.
        transport: its name, as the user typed it.
        wrappers: of `splitlab.core.catalogue.links.bind_wrappers`.
        role: of the peer at this end.

    Raises:
        PluginError: a wrapper fails, or makes no link.
    """
    link = _Named(f"transport {transport!r}", link)
    for bound in wrappers:
        owner = f"link {bound.label!r}"
        wrapper = bound.build()
        if not callable(getattr(wrapper, "wrap", None)):
            raise PluginError(f"{owner} has no method wrap(link, role) that returns a link")
        link = _Named(owner, called(owner, wrapper.wrap, link, role))
    return link


class _Named(WrappedLink):
    """Names whose code fails while a message moves."""

    def __init__(self, owner: str, inside: Link) -> None:
        lacks = [name for name in _MEMBERS if not hasattr(inside, name)]
        if lacks:
            raise PluginError(
                f"{owner} made {inside!r}, which is no link: it lacks {', '.join(lacks)}"
            )
        super().__init__(inside)
        self._owner = owner

    def send(self, message: Message, timeout: float) -> int:
        sent = called(self._owner, self.inside.send, message, timeout)
        if not isinstance(sent, int):
            raise PluginError(
                f"{self._owner} returned {sent!r} from send, not the bytes of the frame"
            )
        return sent

    def receive(self, timeout: float) -> Message:
        message = called(self._owner, self.inside.receive, timeout)
        if not isinstance(message, Message):
            raise PluginError(f"{self._owner} returned {message!r} from receive, not a message")
        return message

    def close(self) -> None:
        called(self._owner, self.inside.close)

"""Links in the user's wrappers: whatever fails there is named, what is splitlab's own is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlab.core import run
from splitlab.core.catalogue.links import bind_wrappers
from splitlab.core.contract.errors import NetworkError, PluginError
from splitlab.core.contract.link import WrappedLink
from splitlab.core.contract.message import Kind, Message
from splitlab.core.runs.ends import called, end

WRAPPERS = """
import sys
from splitlab.core import NetworkError, WrappedLink

class Link(WrappedLink):
    pass

class Passes:
    def wrap(self, link, role):
        return Link(link)

class NoMethod:
    pass

class TooFew:
    def wrap(self, link):
        return link

class Nothing:
    def wrap(self, link, role):
        return None

class WrapFails(Passes):
    def wrap(self, link, role):
        return {}[role]

def wraps(made):
    return type(made.__name__, (), {"wrap": lambda self, link, role: made(link)})

@wraps
class SendFails(Link):
    def send(self, message, timeout):
        raise ValueError("two\\nlines")

@wraps
class SendExits(Link):
    def send(self, message, timeout):
        sys.exit(3)

@wraps
class SendNothing(Link):
    def send(self, message, timeout):
        super().send(message, timeout)

@wraps
class SendTooFew(Link):
    def send(self, message):
        return 0

@wraps
class ReceiveFails(Link):
    def receive(self, timeout):
        raise ValueError("empty")

@wraps
class ReceiveNothing(Link):
    def receive(self, timeout):
        pass

@wraps
class Loses(Link):
    def receive(self, timeout):
        raise NetworkError("lost on purpose")
"""


@pytest.fixture
def wrappers(tmp_path: Path) -> Path:
    file = tmp_path / "w.py"
    file.write_text(WRAPPERS)
    return file


class Inside:
    """A link that takes everything and gives back what it was given."""

    limits = None
    remote = "nobody"
    last: Any = None

    def send(self, message: Message, timeout: float) -> int:
        self.last = message
        return 1

    def receive(self, timeout: float) -> Any:
        return self.last

    def close(self) -> None:
        self.last = None


def test_wrappers_stand_around_the_link_in_order(wrappers: Path) -> None:
    bare: Any = Inside()
    bound = bind_wrappers([f"{wrappers}:Passes"] * 2)
    link: Any = end(bare, "tcp", bound, "client")
    depth, inner = 0, link
    while inner is not bare:
        depth, inner = depth + (type(inner).__name__ == "Link"), inner.inside
    assert depth == 2
    message = Message(Kind.CONTROL)
    assert link.send(message, 1.0) == 1
    assert link.receive(1.0) is message
    assert link.remote == "nobody"
    link.close()
    assert bare.last is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("NoMethod", r"link 'NoMethod' has no method wrap\(link, role\)"),
        ("TooFew", r"link 'TooFew' failed in wrap: TypeError: .*positional"),
        ("Nothing", "link 'Nothing' made None, which is no link: it lacks limits, remote, send"),
        ("WrapFails", r"link 'WrapFails' failed in wrap: KeyError: 'client' \(w.py:25\)$"),
    ],
)
def test_a_wrapper_that_makes_no_link_is_named(wrappers: Path, name: str, told: str) -> None:
    bare: Any = Inside()
    with pytest.raises(PluginError, match=told):
        end(bare, "tcp", bind_wrappers([f"{wrappers}:{name}"]), "client")


def test_a_transport_that_makes_no_link_is_named() -> None:
    nothing: Any = None
    with pytest.raises(PluginError, match=r"transport 'own.py:Pigeon' made None, which is no link"):
        end(nothing, "own.py:Pigeon", [], "client")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SendFails", r"link 'SendFails' failed in send: ValueError: two lines \(w.py:33\)$"),
        ("SendExits", r"link 'SendExits' failed in send: SystemExit: 3 \(w.py:38\)$"),
        ("SendNothing", "link 'SendNothing' returned None from send, not the bytes of the frame"),
        ("SendTooFew", r"link 'SendTooFew' failed in send: TypeError: .* positional"),
        ("ReceiveFails", r"link 'ReceiveFails' failed in receive: ValueError: empty"),
        ("ReceiveNothing", "link 'ReceiveNothing' returned None from receive, not a message"),
    ],
)
def test_a_link_that_fails_ends_the_run_in_one_line(
    real: Any, wrappers: Path, name: str, told: str, easy_data: str, tmp_path: Path
) -> None:
    with pytest.raises(PluginError, match=told):
        run(
            data_dir=easy_data,
            output=str(tmp_path / "r"),
            links=[f"{wrappers}:{name}"],
            budget="steps=2",
            **real.SMALL,
        )
    assert not (tmp_path / "r").exists()


def test_errors_of_the_contract_pass_as_they_are(wrappers: Path) -> None:
    bare: Any = Inside()
    link = end(bare, "tcp", bind_wrappers([f"{wrappers}:Loses"]), "client")
    with pytest.raises(NetworkError, match=r"^lost on purpose$"):
        link.receive(1.0)


def test_a_fault_of_splitlabs_own_keeps_its_traceback() -> None:
    inside: Any = object()
    with pytest.raises(AttributeError):
        called("link 'x'", WrappedLink(inside).close)

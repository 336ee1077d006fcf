"""Wrapped links hold what links hold; whatever a wrapper breaks is found, over each transport."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Message, NetworkError, ProtocolError
from splitlab.core.catalogue.tables import catalogue
from splitlab.core.contract.link import Link
from splitlab.core.testing import LINK_CHECKS, check_link, check_listed, links, listed, wrapper


class Passes:
    """A wrapper that passes everything on, and the link that it makes."""

    def __init__(self, inside: Any = None) -> None:
        self.inside = inside

    def wrap(self, link: Link, role: str) -> Link:
        return type(self)(link)

    @property
    def limits(self) -> Any:
        return self.inside.limits

    @limits.setter
    def limits(self, limits: Any) -> None:
        self.inside.limits = limits

    @property
    def remote(self) -> str:
        return self.inside.remote

    def send(self, message: Message, timeout: float) -> int:
        return self.inside.send(message, timeout)

    def receive(self, timeout: float) -> Message:
        return self.inside.receive(timeout)

    def close(self) -> None:
        self.inside.close()


class Delays(Passes):
    """Right, and slow: what it closes is closed later than a bare link would be."""

    def receive(self, timeout: float) -> Message:
        message = super().receive(timeout)
        time.sleep(0.01)
        return message

    def close(self) -> None:
        time.sleep(0.01)
        super().close()


class OneEnd:
    """Right, and an object: each end gets a copy of its own."""

    def __init__(self) -> None:
        self.roles: list[str] = []

    def wrap(self, link: Link, role: str) -> Link:
        self.roles.append(role)
        assert len(self.roles) == 1
        return Passes(link)


@pytest.mark.parametrize("right", [Passes, Delays, OneEnd()])
def test_a_wrapper_that_is_right_passes(right: Any) -> None:
    report = check_link(right)
    report.raise_if_failed()
    assert [row.check for row in report.rows] == [check.name for check in LINK_CHECKS]
    inside, outside = links.one_of_each_kind()
    for row in report.rows:
        assert row.outcome == "passed"
        assert row.reason == f"over {inside} and {outside}"
    assert report.subject == (right if isinstance(right, type) else type(right)).__name__


class Counts(Passes):
    def send(self, message: Message, timeout: float) -> int:
        return super().send(message, timeout) + 1


class Breaks(Passes):
    def send(self, message: Message, timeout: float) -> int:
        raise ValueError("broken")


class Swaps(Passes):
    def __init__(self, inside: Any = None) -> None:
        super().__init__(inside)
        self._held: list[Message] = []

    def receive(self, timeout: float) -> Message:
        if not self._held:
            self._held = [self.inside.receive(timeout) for _ in range(2)]
        return self._held.pop()


class RemembersTensors(Passes):
    sent: dict[str, torch.Tensor] = {}  # noqa: RUF012 (that is what is wrong)

    def send(self, message: Message, timeout: float) -> int:
        self.sent.update({name: message[name] for name in message})
        return super().send(message, timeout)

    def receive(self, timeout: float) -> Message:
        message = super().receive(timeout)
        for name in message:
            message.put(name, self.sent[name], message.role(name))
        return message


class Retries(Passes):
    def receive(self, timeout: float) -> Message:
        for attempt in itertools.count():
            try:
                return super().receive(timeout)
            except NetworkError:
                if attempt == 9:
                    raise
        raise AssertionError


class Shapes(Passes):
    def send(self, message: Message, timeout: float) -> int:
        time.sleep(min(4.0, sum(message[name].nbytes for name in message) / 1e6))
        return super().send(message, timeout)


class KeepsOpen(Passes):
    def close(self) -> None:
        pass


class SwallowsErrors(Passes):
    def receive(self, timeout: float) -> Message:
        try:
            return super().receive(timeout)
        except NetworkError:
            return Message(0)  # type: ignore[arg-type]


class OwnLimits(Passes):
    limits: Any = None  # type: ignore[assignment]


class Blames(Passes):
    def receive(self, timeout: float) -> Message:
        try:
            return super().receive(timeout)
        except ProtocolError as error:
            raise NetworkError(str(error)) from None


class Nameless(Passes):
    remote = ""  # type: ignore[assignment]


WRONG = [
    (Counts, "every-kind-arrives", "send returns"),
    (Swaps, "arrives-in-order", "arrive in the order [1, 0, 3, 2"),
    (RemembersTensors, "arrives-in-own-memory", "the sender's own memory"),
    (Retries, "silence-ends-in-time", "a receive of 0.3 s takes"),
    (Shapes, "unread-send-ends-in-time", "a send of 0.5 s to an end that does not read takes"),
    (KeepsOpen, "closing-is-noticed", "noticing that the other end closed takes"),
    (SwallowsErrors, "closed-link-says-so", "receiving on a closed link"),
    (Breaks, "every-kind-arrives", "send raises ValueError: broken (test_wrapper.py:"),
    (OwnLimits, "limits-hold", "are allowed raises nothing"),
    (Blames, "garbage-is-refused", "raises NetworkError"),
    (Nameless, "names-the-other-end", "the client's end calls the other ''"),
]


@pytest.mark.parametrize(
    ("wrong", "check", "reason"), WRONG, ids=[f"{c}-{w.__name__}" for w, c, _ in WRONG]
)
def test_what_a_wrapper_breaks_is_found(
    wrong: Any, check: str, reason: str, hurry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrapper, "_SLACK", 0.7)
    [row] = check_link(wrong, only=[check]).rows
    assert row.outcome == "failed"
    assert reason in row.reason, row.reason
    assert row.reason.startswith(f"over {links.one_of_each_kind()[0]}: ")


def test_every_check_finds_something() -> None:
    assert {check for _, check, _ in WRONG} == {check.name for check in LINK_CHECKS}


class BreaksSockets(Passes):
    def receive(self, timeout: float) -> Message:
        if "://" in self.remote:
            raise ZeroDivisionError("no shaping here")
        return super().receive(timeout)


class TakesASecond(Passes):
    def receive(self, timeout: float) -> Message:
        time.sleep(1.0)
        return super().receive(timeout)


def test_a_wrapper_may_take_longer_than_a_bare_link(hurry: None) -> None:
    only = ["silence-ends-in-time", "closing-is-noticed"]
    check_link(TakesASecond, only=only).raise_if_failed()


def test_a_wrapper_is_tried_over_a_network_too() -> None:
    outside = links.one_of_each_kind()[1]
    [row] = check_link(BreaksSockets, only=["arrives-in-order"]).rows
    assert row.outcome == "failed"
    line = BreaksSockets.receive.__code__.co_firstlineno + 2
    told = f"ZeroDivisionError: no shaping here (test_wrapper.py:{line})"
    assert row.reason == f"over {outside}: {told}"


def test_what_cannot_be_tried_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = links.one_of_each_kind()[0]
    monkeypatch.setattr(wrapper, "one_of_each_kind", lambda: [inside])
    [row] = check_link(Passes, only=["limits-hold"]).rows
    assert (row.outcome, row.reason) == ("passed", f"over {inside}")
    monkeypatch.setattr(wrapper, "one_of_each_kind", list)
    [row] = check_link(Passes, only=["limits-hold"]).rows
    assert (row.outcome, row.reason) == ("skipped", "no transport works here")


WRAPPERS = """
from splitlab.core import Message, WrappedLink


class Passes:
    def __init__(self, *, every: int = 3) -> None:
        self.every = every

    def wrap(self, link, role):
        return WrappedLink(link)


class Swallows(Passes):
    def wrap(self, link, role):
        made = Swallowing(link)
        made.every = self.every
        return made


class Swallowing(WrappedLink):
    sent = 0

    def send(self, message, timeout):
        self.sent += 1
        if self.sent % self.every:
            return super().send(message, timeout)
        return message.frame_bytes


class Shares(Passes):
    def wrap(self, link, role):
        return Sharing(link)


class Sharing(WrappedLink):
    tensors = {}

    def send(self, message, timeout):
        self.tensors.update({name: message[name] for name in message})
        return super().send(message, timeout)

    def receive(self, timeout):
        message = super().receive(timeout)
        for name in message:
            message.put(name, self.tensors[name], message.role(name))
        return message


class StaysOpen(Passes):
    def wrap(self, link, role):
        return Staying(link)


class Staying(WrappedLink):
    def close(self):
        pass
"""


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Return what gives the text for a wrapper of the file: by its name, or by the file."""
    file = tmp_path / "wrappers.py"
    file.write_text(WRAPPERS)
    classes = ("Passes", "Swallows", "Shares", "StaysOpen")
    tables = [f'[links.{name.lower()}]\ntarget = "wrappers.py:{name}"\n' for name in classes]
    registry = tmp_path / "own.toml"
    registry.write_text("\n".join(tables))
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(registry))
    return lambda name, way: name.lower() if way == "name" else f"{file}:{name}"


@pytest.mark.parametrize("way", ["name", "file"])
@pytest.mark.parametrize("settings", ["", ":every=5"])
def test_a_right_wrapper_passes_by_name(
    named: Callable[[str, str], str], way: str, settings: str
) -> None:
    text = named("Passes", way) + settings
    report = check_link(text)
    report.raise_if_failed()
    assert report.subject == text
    assert {row.outcome for row in report.rows} == {"passed"}


@pytest.mark.parametrize("way", ["name", "file"])
@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ("Swallows:every=2", "every-kind-arrives"),
        ("Swallows:every=10", "arrives-in-order"),
        ("Shares", "arrives-in-own-memory"),
        ("StaysOpen", "closing-is-noticed"),
        ("StaysOpen", "closed-link-says-so"),
    ],
)
def test_a_wrong_wrapper_fails_by_name(
    named: Callable[[str, str], str],
    way: str,
    wrong: str,
    check: str,
    hurry: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wrapper, "_SLACK", 0.7)
    name, _, settings = wrong.partition(":")
    text = f"{named(name, way)}:{settings}".rstrip(":")
    report = check_link(text, only=[check])
    assert report.failed() == [check], str(report)
    assert report.subject == text


def test_an_unknown_name_or_setting_is_the_users_fault(named: Callable[[str, str], str]) -> None:
    with pytest.raises(ConfigError, match="unknown link 'pass'"):
        check_link("pass")
    with pytest.raises(ConfigError, match=r"every=x is not allowed; every takes int"):
        check_link(f"{named('Passes', 'file')}:every=x")


def test_wrappers_of_the_catalogue_are_listed_and_checked(
    named: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = [name for name, table in catalogue()["links"].items() if "target" in table]
    assert [name for kind, name in listed() if kind == "link"] == [
        *targets,
        *("passes", "swallows", "shares", "staysopen"),
    ]
    monkeypatch.setattr("splitlab.core.testing.listed", lambda: [("link", "passes")])
    [(report, _)] = check_listed()
    report.raise_if_failed()
    assert [row.check for row in report.rows] == [check.name for check in LINK_CHECKS]


def test_a_link_that_is_too_slow_to_check_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^link '3g' takes \S+ s for 33,554,432 bytes, which"):
        check_link("3g")
    report = check_link("3g:rate=10gbit,up=10gbit,delay=1ms", only=["names-the-other-end"])
    report.raise_if_failed()


def test_a_check_of_no_link_is_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown check 'default-is-loopback'"):
        check_link(Passes, only=["default-is-loopback"])

"""What the tests of both peers share: asking a server in frames, comparing states, and plugins
that note which hook ran where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from splitlab.core import hookimpl


class Recorder:
    """Notes which hook ran where."""

    def __init__(self, *, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log
        self.role = "?"

    def note(self, hook: str) -> None:
        self.log.append(f"{self.role} {hook} {self.name}")

    @hookimpl
    def setup(self, peer: Any) -> None:
        self.role = peer.role
        self.note("setup")

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        self.note("after_client_forward")

    @hookimpl
    def before_send(self, message: Any) -> None:
        self.note(f"before_send:{message.kind.name}")

    @hookimpl
    def after_receive(self, message: Any) -> None:
        self.note(f"after_receive:{message.kind.name}")

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        self.note("before_server_forward")

    @hookimpl
    def gradient_return(self, cut: Any) -> None:
        self.note("gradient_return")

    @hookimpl
    def step_end(self, step: int) -> None:
        self.note("step_end")

    @hookimpl
    def run_end(self) -> None:
        self.note("run_end")


class Nesting(Recorder):
    """A plugin that is a wrapper itself."""

    @hookimpl(wrapper=True)
    def before_send(self, message: Any) -> Any:
        self.log.append(f"({self.name}")
        yield
        self.log.append(f"{self.name})")

    @hookimpl(wrapper=True)
    def after_receive(self, message: Any) -> Any:
        self.log.append(f"({self.name}")
        yield
        self.log.append(f"{self.name})")


class Peers:
    """Helpers around the peers that `tiny` makes."""

    kinds = {"Recorder": Recorder, "Nesting": Nesting}  # noqa: RUF012

    def __init__(self, tiny: Any) -> None:
        self._tiny = tiny

    def ask(self, server: Any) -> Any:
        """Return what takes a message to this server and back, in frames."""
        travel = self._tiny.travel
        return lambda message: travel(server.handle(travel(message)))

    def trained(self, pair: tuple[Any, Any], steps: Iterable[int]) -> tuple[Any, Any]:
        """Train a pair, and return it."""
        self._tiny.train(*pair, steps)
        return pair

    def recorder(self, kind: str = "Recorder", **params: Any) -> Any:
        """Bind a plugin that notes which hook ran where."""
        return self._tiny.bound(self.kinds[kind], **params)

    def recorders(self, log: list[str], names: str = "abc") -> list[Any]:
        """Bind one of them for every name."""
        return [self.recorder(name=name, log=log) for name in names]

    @staticmethod
    def both(client: Any, server: Any) -> dict[str, torch.Tensor]:
        """Return the tensors of both peers' state."""
        ours, theirs = client.state()[0], server.state()[0]
        return {f"client {k}": v for k, v in ours.items()} | {
            f"server {k}": v for k, v in theirs.items()
        }

    @staticmethod
    def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
        """Compare every bit."""
        assert one.keys() == two.keys()
        assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.fixture(scope="session")
def peers(tiny: Any) -> Peers:
    """Return the helpers."""
    return Peers(tiny)

"""Plugins that make numbers of what is no number: each fails one check."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from right import SMALL, Cast

from splitlab.core import Cut, Kind, Message, Role, Traits, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, check_plugin, finite_checks

CHECK = "shows-what-is-not-finite"


class Cleans(Cast):
    """Before it sends a message of this kind, makes 0 of NaN and large numbers of infinite ones."""

    kind = Kind.ACTIVATION

    @hookimpl
    def before_send(self, message: Message) -> None:
        if message.training and message.kind is self.kind:
            for name in message.names(Role.PAYLOAD):
                message.put(name, message[name].nan_to_num(), Role.PAYLOAD)


class CleansGradients(Cleans):
    kind = Kind.GRADIENT


class ClampsOnTheGraph:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = cut.activations.clamp(-6e4, 6e4)


class Complains(Cast):
    """Refuses with this text what is not finite."""

    text = "a value is not finite"

    @hookimpl
    def before_send(self, message: Message) -> None:
        if not all(message[name].isfinite().all() for name in message.names(Role.PAYLOAD)):
            raise ValueError(self.text)
        Cast.before_send(self, message)


class ComplainsOfSomethingElse(Complains):
    text = "look elsewhere"


class Drops(Cast):
    """Leaves the second token out, whatever it is."""

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = torch.cat([cut.activations[:, :1], cut.activations[:, 2:]], 1)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None: ...

    @hookimpl
    def traits(self) -> Traits:
        return Traits(changes={"tokens"}, gradient="straight-through")


WRONG = [
    (Cleans, CHECK, "with a value of nan in the activations: what is decoded is finite"),
    (CleansGradients, CHECK, "with a value of nan in the gradient: what is decoded is finite"),
    (ClampsOnTheGraph, CHECK, "with a value of inf in the activations: what is decoded is finite"),
]


@pytest.mark.parametrize(
    ("plugin", "check", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG]
)
def test_what_is_wrong_fails_one_check_with_its_reason(
    plugin: type, check: str, reason: str, fails_alone: Callable[[type, str, str], None]
) -> None:
    fails_alone(plugin, check, reason)


def test_an_error_must_say_what_is_wrong() -> None:
    [row] = check_plugin(Complains, only=[CHECK], tiny=SMALL).rows
    assert row.outcome == "passed"
    [row] = check_plugin(ComplainsOfSomethingElse, only=[CHECK], tiny=SMALL).rows
    assert row.outcome == "failed"
    assert "look elsewhere" in row.reason


def test_what_leaves_the_value_out_has_nothing_to_show() -> None:
    [row] = check_plugin(Drops, only=[CHECK], tiny=SMALL).rows
    assert (row.outcome, row.reason) == (
        "passed",
        "the value is left out of the activations, whatever it is",
    )


@pytest.mark.parametrize(
    "text",
    [
        "a value is not finite",
        "NaN in row 3",
        "non-finite scale",
        "they are not all finite",
        "infinite",
    ],
)
def test_words_that_say_it(text: str) -> None:
    assert finite_checks._SAID.search(text)
    assert not finite_checks._SAID.search("information of finance, a nanosecond")


def test_every_check_finds_something() -> None:
    here = {c.name for c in PLUGIN_CHECKS if c.run.__module__ == finite_checks.__name__}
    assert {check for _, check, _ in WRONG} == here

"""One plugin: what is refused of it, and how it is named when it fails."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import (
    Attention,
    PluginError,
    hookimpl,
)


class Faulty:
    """Raises in one hook."""

    fails_in_line = 0

    def __init__(self, *, hook: str) -> None:
        self.hook = hook


def _raising(hook: str, argument: str | None) -> Any:
    def fail(self: Any) -> None:
        if self.hook == hook:
            raise RuntimeError(f"no luck in {hook}")

    Faulty.fails_in_line = fail.__code__.co_firstlineno + 2
    parameters = f"self, {argument}" if argument else "self"
    namespace: dict[str, Any] = {"fail": fail}
    exec(f"def {hook}({parameters}):\n    return fail(self)", namespace)
    return hookimpl(namespace[hook])


HOOKS = {
    "setup": "peer",
    "after_client_forward": "cut",
    "before_send": "message",
    "after_receive": "message",
    "before_server_forward": "cut",
    "gradient_return": "cut",
    "step_end": "step",
    "run_end": None,
    "state_dict": None,
    "load_state_dict": "state",
    "nominal_ratio": None,
}


for _hook, _argument in HOOKS.items():
    setattr(Faulty, _hook, _raising(_hook, _argument))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_plugin_that_raises_is_named_with_its_hook(tiny: Any, peers: Any, hook: str) -> None:
    log: list[str] = []
    good = peers.recorder(name="good", log=log)
    # Two of one class: the second is to blame, and the first must not be.
    stack = [good, tiny.bound(Faulty, hook="none"), tiny.bound(Faulty, hook=hook)]

    def live() -> None:
        client, server = tiny.pair(stack)
        tiny.train(client, server, [0])
        client.stack.nominal_ratio()
        client.stack.state_dict()
        client.stack.load_state_dict({"faulty#2": {"x": 1}})
        client.stack.run_end()

    with pytest.raises(PluginError) as caught:
        live()
    line = Faulty.fails_in_line
    assert str(caught.value) == (
        f"plugin 'faulty#2' failed in {hook}: RuntimeError: no luck in {hook} "
        f"(test_member.py:{line})"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_misspelt_hook_is_refused(tiny: Any) -> None:
    class Misspelt:
        @hookimpl
        def before_sent(self, message: Any) -> None: ...

    with pytest.raises(
        PluginError,
        match=r"'misspelt': unknown hook 'before_sent' \(did you mean 'before_send'\?\); known: ",
    ):
        tiny.client([tiny.bound(Misspelt)])


class DropsMeasured:
    """Replaces what was measured by a plain dictionary."""

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        cut.measured = {}


class ReadsMeasured:
    """Reads what is no longer there."""

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        cut.measured[Attention()]


def test_what_is_not_measured_is_said_whoever_replaced_the_mapping(tiny: Any) -> None:
    client = tiny.client([tiny.bound(DropsMeasured), tiny.bound(ReadsMeasured)])
    with pytest.raises(PluginError, match=r"'readsmeasured' .*is not measured here; ask for it"):
        next(client.train(tiny.batch(), 0))

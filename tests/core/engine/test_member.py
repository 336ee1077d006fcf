"""One plugin: what is refused of it, and how it is named when it fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import (
    Attention,
    PluginError,
    hookimpl,
)
from splitlab.core.catalogue.binding import bind_stack


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
    "step_begin": "step",
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


@pytest.mark.parametrize("method", ["before_sent", "afterReceive", "gradient_returned", "encode"])
def test_a_class_whose_methods_nobody_would_call_is_refused(tiny: Any, method: str) -> None:
    plugin = type("Mine", (), {method: lambda self: None})
    with pytest.raises(PluginError, match="plugin 'mine': it"):
        tiny.client([tiny.bound(plugin)])


HELPER = "import torch\n\n\ndef fails(what):\n    raise what\n"


@pytest.mark.parametrize("hook", ["setup", "traits", "before_send", "state_dict", "metrics"])
def test_the_line_is_the_plugins_own_even_if_a_helper_raised(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    (tmp_path / "helper_of_mine.py").write_text(HELPER)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "mine.py"
    file.write_text(
        "from helper_of_mine import fails\nfrom splitlab.core import hookimpl\n\n\nclass Mine:\n"
        f"    @hookimpl\n    def {hook}(self):\n        fails(SystemExit(3))\n"
    )

    def live() -> None:
        client, server = tiny.pair(bind_stack([f"{file}:Mine"]))
        tiny.train(client, server, [0])
        client.state()

    with pytest.raises(
        PluginError, match=rf"'Mine' failed in {hook}: SystemExit: 3 \(mine.py:8\)$"
    ):
        live()
    monkeypatch.delitem(sys.modules, "helper_of_mine")


def test_what_the_engine_refuses_of_a_plugin_names_it_and_its_line(tiny: Any) -> None:
    class Takes:
        @hookimpl
        def before_send(self, message: Any) -> None:
            message.take("nothing")

    line = Takes.before_send.__code__.co_firstlineno + 2
    with pytest.raises(
        PluginError,
        match=r"plugin 'takes' failed in before_send: .*no tensor 'nothing'"
        rf".* \(test_member.py:{line}\)",
    ):
        tiny.train(*tiny.pair([tiny.bound(Takes)]), [0])

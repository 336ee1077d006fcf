"""What is meant to be a hook and is none is told; what is called otherwise is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import hookimpl
from splitlab.core.contract.marks import HOOKS, forgotten, marked


def made(*names: str, hooks: tuple[str, ...] = ("run_end",)) -> Any:
    """Return a class with these methods, of which those in ``hooks`` are marked."""
    namespace: dict[str, Any] = {name: lambda self: None for name in names}
    return type("Mine", (), namespace | {name: hookimpl(lambda self: None) for name in hooks})


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("before_sent", "before_send"),
        ("beforeSend", "before_send"),
        ("after_send", "before_send"),
        ("afterReceive", "after_receive"),
        ("before_receive", "after_receive"),
        ("after_recieve", "after_receive"),
        ("after_server_forward", "before_server_forward"),
        ("gradient_returned", "gradient_return"),
        ("set_up", "setup"),
        ("end_step", "step_end"),
        ("nominal_ratios", "nominal_ratio"),
        ("load_state", "load_state_dict"),
        ("trait", "traits"),
    ],
)
@pytest.mark.parametrize("hooks", [(), ("run_end",)])
def test_a_method_that_nearly_has_a_hooks_name_is_told_the_hook(
    name: str, hook: str, hooks: tuple[str, ...]
) -> None:
    cls = made(name, hooks=hooks)
    for plugin in (cls, cls()):
        assert f"{name!r} is called almost like the hook {hook!r}" in forgotten(plugin)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_is_not_marked_is_told(hook: str) -> None:
    assert f"its method {hook!r} is called like a hook and not marked" in forgotten(
        made(hook, hooks=())
    )


def test_a_class_without_a_hook_is_told() -> None:
    assert "it has no hook" in forgotten(made("encode", "decode", hooks=()))


def test_other_names_are_left_alone_and_so_is_one_near_a_hook_that_is_there() -> None:
    names = ("encode", "decode", "export", "reset", "forward", "ratio", "step", "_before_sent")
    assert forgotten(made(*names)) == ""
    assert forgotten(made("metric", hooks=("metrics",))) == ""


def test_marks_are_found_under_the_name_of_the_hook() -> None:
    class Mine:
        near = property(lambda self: 1 / 0)

        @hookimpl(specname="setup")
        def prepare(self) -> None: ...

        @staticmethod
        @hookimpl
        def step_end(step: int) -> None: ...

    assert marked(Mine) == marked(Mine()) == {"setup", "step_end"}
    assert forgotten(Mine()) == ""

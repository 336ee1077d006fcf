"""Which methods of a class are hooks, and which look as if they were meant to be."""

from __future__ import annotations

import difflib
import inspect
import re

from splitlab.core.contract.hooks import HookSpecs, hookimpl

__all__ = ["HOOKS", "forgotten", "marked"]

HOOKS = tuple(name for name in vars(HookSpecs) if not name.startswith("_"))
"""The names of all hooks, in the order of the menu."""


def marked(plugin: object) -> set[str]:
    """Return the names of the hooks that a class or an instance implements."""
    marks = {name: _marks(member) for name, member in inspect.getmembers_static(plugin)}
    return {options.get("specname") or name for name, options in marks.items() if options}


def forgotten(plugin: object) -> str:
    """Return what is wrong with a method that was meant to be a hook and is none; empty if none is.

    That is one that is called like a hook and not marked, or nearly like one that is missing. A
    class or instance without any hook is told so.
    """
    has = marked(plugin)
    methods = [
        name
        for name, member in inspect.getmembers_static(plugin)
        if not name.startswith("_") and inspect.isroutine(member) and not _marks(member)
    ]
    for name in methods:
        if name in HOOKS:
            return (
                f"its method {name!r} is called like a hook and not marked as one, so that it "
                "would never be called; put @hookimpl above it"
            )
    missing = {_plain(hook): hook for hook in HOOKS if hook not in has}
    for name in methods:
        if near := _nearest(name, missing):
            return (
                f"its method {name!r} is called almost like the hook {near!r} and is none, so that "
                f"it would never be called; call it {near!r} and put @hookimpl above it, or give "
                "it another name"
            )
    if has:
        return ""
    return (
        "it has no hook, so that it would do nothing; call its methods as docs/hooks.md does, "
        "before_send and so on, and put @hookimpl above each"
    )


def _marks(member: object) -> dict[str, str]:
    function = getattr(member, "__func__", member)  # of a static method or a class method
    marks = getattr(function, f"{hookimpl.project_name}_impl", None)
    return marks if isinstance(marks, dict) else {}


def _nearest(name: str, missing: dict[str, str]) -> str | None:
    """Return the hook whose name this one almost is."""
    for hook in missing.values():
        if sorted(hook.split("_")) == sorted(name.split("_")):  # end_step
            return hook
    # Short names are soon alike by chance, as export and report are; before_x and after_x are not.
    least = 0.6 if re.match("before|after", name) else 0.85 if len(name) < 10 else 0.8
    near = difflib.get_close_matches(_plain(name), missing, n=1, cutoff=least)
    return missing[near[0]] if near else None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()

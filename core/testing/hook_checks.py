"""Checks of what a plugin's hooks do to a cut or message, and of what its source must not do."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import torch

from splitlab.core.contract.errors import PluginError
from splitlab.core.testing.couple import Event
from splitlab.core.testing.decoding import decoding_problem
from splitlab.core.testing.subject import DECODED, RUNS, Subject

__all__ = [
    "builds_and_runs",
    "changes_are_declared",
    "decoded_fits_the_model",
    "unpickles_nothing",
]

_UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
_CALLS = {"torch.load", "torch.save", "numpy.load", "np.load"}


def builds_and_runs(s: Subject) -> str | None:
    """The peers are built, and a short run comes to its end."""
    s.charged(RUNS)
    return None


def decoded_fits_the_model(s: Subject) -> str | None:
    """Behind the decoding hooks all is as the model's parts take it."""
    couple, ours = s.base.couple, isinstance(s.base.error, PluginError)
    if couple is not None and s.base.check == DECODED and not ours:
        raise s.failed(decoding_problem(couple) or "")
    s.charged(DECODED)
    if problem := decoding_problem(s.working()):
        raise s.failed(problem)
    if s.tiny.device != "cpu" or not torch.cuda.is_available():
        return None
    couple = s.couple(device=torch.device("cuda"))
    couple.train(s.tiny.batch(), 0)
    if problem := decoding_problem(couple):
        raise s.failed(f"on a GPU, {problem}")
    return "on CPU and GPU"


def changes_are_declared(s: Subject) -> str | None:
    """What the client's hooks visibly change, the traits say."""
    couple = s.working()
    gone = s.traits.takes_away
    seen = [
        (aspect, hook, what)
        for output, sending in zip(
            couple.seen("client", "after_client_forward"),
            couple.seen("client", "before_send"),
            strict=True,
        )
        for aspect, hook, what in _changed(output, sending)
    ]
    for aspect, hook, what in seen:
        # Without the layout, shapes say nothing of samples, tokens and features.
        if aspect not in gone and not {"layout", "plain"} & gone:
            raise s.failed(
                f"{hook} {what}, and traits() does not say so; add {aspect!r} to changes"
            )
    return None


def _changed(output: Event, sending: Event) -> Iterator[tuple[str, str, str]]:
    """Yield (aspect, hook, what happened) for what the client's hooks visibly changed."""
    X, Z = (event.tensors["activations"] for event in (output.before, output.after))
    hook = "after_client_forward"
    yield from _reshaped(X, Z, hook)
    if len(Z) == len(X) and not torch.equal(
        output.before.tensors["targets"], output.after.tensors["targets"]
    ):
        yield "targets", hook, "changes the targets"
    hook = "before_send"
    payload = sending.after.payload()
    if any(not tensor.is_floating_point() for tensor in payload.values()):
        yield "numbers", hook, "sends codes that are no floating-point numbers"
    elif [*payload] != ["activations"]:
        yield "layout", hook, f"sends {', '.join(payload) or 'nothing'} instead of 'activations'"
    else:
        yield from _reshaped(Z, payload["activations"], hook)


def _reshaped(a: torch.Tensor, b: torch.Tensor, hook: str) -> Iterator[tuple[str, str, str]]:
    aspects = ("batch", "tokens", "features") if a.ndim == b.ndim == 3 else ("layout",)
    for aspect, old, new in zip(aspects, a.shape, b.shape, strict=False):
        if old != new or a.ndim != b.ndim:
            yield aspect, hook, f"makes {[*b.shape]} of {[*a.shape]}"


def unpickles_nothing(s: Subject) -> str | None:
    """No module of the plugin's reads or writes what can run code."""
    for cls in {cls for bound in s.stack for cls in inspect.getmro(bound.factory)[:-1]}:
        if found := _pickling(sys.modules.get(cls.__module__)):
            raise s.failed(
                f"its module uses {found}, which runs code from bytes; send tensors and JSON "
                "values, and keep state in state_dict"
            )
    return None


def _pickling(module: Any) -> str | None:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (TypeError, OSError):
        return None  # no source: a notebook's cell, or compiled
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in _CALLS:
            return ast.unparse(node)
        for name in names:
            if name.partition(".")[0] in _UNPICKLES:
                return name
    return None

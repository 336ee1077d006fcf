"""Checks of what a plugin's hooks do to a cut or message, and of what its source must not do."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import Any

import torch

from splitlab.core.contract.errors import PluginError
from splitlab.core.testing.decoding import decoding_problem, undeclared
from splitlab.core.testing.subject import CHANGES, DECODED, RUNS, Subject

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
    theirs = s.base.check == DECODED and not isinstance(s.base.error, PluginError)
    if (couple := s.base.couple) and theirs and (problem := decoding_problem(couple)):
        raise s.failed(problem)
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
    couple = s.base.couple if s.base.check == CHANGES else s.working()
    if couple is not None and (problem := undeclared(couple)):
        raise s.failed(problem)
    return None


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

"""Checks of inputs that a training seldom sees: at the edge, and in half precision."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError, Diverged, PluginError, SplitlabError
from splitlab.core.testing.couple import Couple
from splitlab.core.testing.decoding import decoding_problem
from splitlab.core.testing.report import Failed, Skipped
from splitlab.core.testing.subject import (
    DECODED,
    TURNS,
    Subject,
    with_activations,
    with_ratio,
)

__all__ = ["bounded", "survives_edge_inputs", "takes_half_precision", "with_one"]

_PATIENCE = 20.0
"""Seconds that an edge input may take."""


def survives_edge_inputs(s: Subject) -> str | None:
    """Nothing crashes, hangs or turns infinite on inputs at the edge."""
    s.working()
    try:
        bounded(s, _cases(s))
    except Failed:
        s.breaks_at_edges = True
        raise
    return f"smallest ratio taken: {s.smallest_ratio:g}" if s.smallest_ratio else None


def bounded(s: Subject, cases: Iterable[tuple[str, Callable[[], None]]]) -> None:
    """Do what the cases say, each within a time; fail with the name of the one that fails."""
    now = ("", time.monotonic())
    failure: list[Exception] = []

    def work() -> None:
        nonlocal now
        try:
            for name, case in cases:
                now = (name, time.monotonic())
                case()
        except Exception as error:  # noqa: BLE001 (raised again where the check runs)
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.1)
        name, since = now
        if worker.is_alive() and time.monotonic() - since > _PATIENCE:
            raise s.failed(f"with {name} it does not end in {_PATIENCE:g} s; bound its loops")
    if failure:
        raise s.failed(f"with {now[0]}: {failure[0]}")


def _cases(s: Subject) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what to say of an edge input, and the run to do with it."""
    tiny, one = s.tiny, s.tiny.batch(0, 1)

    def injected(change: Callable[[torch.Tensor], torch.Tensor], **settings: Any) -> Couple:
        return s.couple(
            enter=lambda cut: with_activations(cut, change(cut.activations.detach())), **settings
        )

    def outlier(X: torch.Tensor) -> torch.Tensor:
        return with_one(X, 1e4)  # within float16, which some methods send

    def not_a_number(X: torch.Tensor) -> torch.Tensor:
        return with_one(X, math.nan)

    def finite(couple: Couple, *batches: Batch) -> None:
        guard = "guard divisions, logarithms and roots"
        try:
            for step, batch in enumerate(batches):
                couple.train(batch, step)
            couple.evaluate(batches[-1], 0)
        except Diverged as error:
            raise PluginError(f"{_infinite(couple) or error}; {guard}") from error
        if found := _infinite(couple):
            raise PluginError(f"{found}; {guard}")

    def explained(couple: Couple) -> None:
        try:
            couple.train(tiny.batch(), 0)
        except SplitlabError as error:
            if not isinstance(error.__cause__, SplitlabError | None):
                raise  # a crash that the stack reported, not an error of the plugin's own

    alike = dataclasses.replace(
        tiny.batch(),
        images=one.images.expand(tiny.samples, -1, -1, -1).clone(),
        targets=one.targets.expand(tiny.samples).clone(),
    )
    fewest = _fewest(s)
    few = tiny.batch(1, max(1, tiny.samples // 2 - 1))
    yield "zeros everywhere", lambda: finite(injected(torch.zeros_like), tiny.batch())
    yield (
        "one constant everywhere",
        lambda: finite(injected(lambda X: torch.full_like(X, 0.5)), tiny.batch()),
    )
    yield "one huge value (1e4)", lambda: finite(injected(outlier), tiny.batch())
    yield "equal samples", lambda: finite(s.couple(), alike)
    yield (
        "a single sample" if fewest == 1 else f"a batch of {fewest}",
        lambda: finite(s.couple(), tiny.batch(0, fewest)),
    )
    yield "a smaller last batch", lambda: finite(s.couple(), tiny.batch(), few)
    if smallest := s.smallest_ratio:
        yield (
            f"ratio={smallest:g}",
            lambda: finite(s.couple(with_ratio(s, smallest)), tiny.batch()),
        )
    yield "a value that is not a number", lambda: explained(injected(not_a_number))


def _fewest(s: Subject) -> int:
    """Return how few samples the model itself trains on; batch norm may want two."""
    try:
        Couple(s.tiny, []).train(s.tiny.batch(0, 1), 0)
    except ConfigError:
        return 2
    return 1


def with_one(X: torch.Tensor, value: float) -> torch.Tensor:
    """Return a copy with this value at one place, which is not the first one."""
    X = X.clone()
    X[tuple(min(place, size - 1) for place, size in enumerate(X.shape))] = value
    return X


def takes_half_precision(s: Subject) -> str | None:
    """Activations of bfloat16 and float16 come back as they were, and so do their gradients."""
    if decoding_problem(s.working()):
        raise Skipped(f"needs float32 to be decoded, see {DECODED}")
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        couple = s.couple(autocast=dtype)
        try:
            s.run(couple, TURNS[:3])
        except (SplitlabError, RuntimeError) as error:
            raise s.failed(
                f"with {name} activations: {decoding_problem(couple) or error}; take statistics "
                "in float32 and restore the dtype"
            ) from error
        if problem := decoding_problem(couple) or _infinite(couple):
            raise s.failed(f"with {name} activations: {problem}")
    return None


def _infinite(couple: Couple) -> str | None:
    for event in couple.events:
        for name, tensor in event.after.tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return f"{event.hook} at the {event.role} leaves {name!r} that is not finite"
    return None

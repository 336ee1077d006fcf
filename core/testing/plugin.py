"""The checks of a plugin: what every compression method must hold, on a model that is tiny.

Or on any other model, where the method can work on it.

Each check looks at what passed the hooks in a few steps through real frames, of the run that all
share or of one of its own. A reason says which plugin, which hook where that is known, and the way
out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from contextlib import ExitStack

from splitlab.core.catalogue.binding import bind_stack
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.settings import Bound, parameters
from splitlab.core.runs.config import Config
from splitlab.core.runs.device import choose_device
from splitlab.core.runs.repeating import repeating
from splitlab.core.runs.workers import limited_threads
from splitlab.core.testing.edge_checks import survives_edge_inputs, takes_half_precision
from splitlab.core.testing.finite_checks import shows_what_is_not_finite
from splitlab.core.testing.fresh import FreshPeers
from splitlab.core.testing.gradient_checks import gradient_as_declared
from splitlab.core.testing.hook_checks import (
    builds_and_runs,
    changes_are_declared,
    decoded_fits_the_model,
    unpickles_nothing,
)
from splitlab.core.testing.report import Check, Report, Row, chosen, run_checks
from splitlab.core.testing.resume_checks import state_survives_resume
from splitlab.core.testing.state_checks import evaluation_as_declared, repeats_itself
from splitlab.core.testing.subject import (
    CHANGES,
    DECODED,
    GRADIENT,
    REPEATS,
    RUNS,
    TINY,
    Subject,
)
from splitlab.core.testing.tiny import Tiny
from splitlab.core.testing.waiting_checks import steps_do_not_wait
from splitlab.core.testing.wire_checks import (
    bytes_are_real,
    frames_are_enough,
    same_over_every_link,
)

__all__ = ["PLUGIN_CHECKS", "check_plugin"]

_FRAMES, _RESUME = "frames-are-enough", "state-survives-resume"

PLUGIN_CHECKS: list[Check[Subject]] = [
    Check(RUNS, "keeping the contract of its hooks", builds_and_runs),
    Check("bytes-are-real", "a plain reader finds what the ledger counts", bytes_are_real),
    Check(DECODED, "in shape, dtype and device", decoded_fits_the_model),
    Check(REPEATS, "whatever the global random state", repeats_itself),
    Check("evaluation-as-declared", "acts there or leaves it alone", evaluation_as_declared),
    Check(GRADIENT, "natural, straight-through or corrected", gradient_as_declared),
    Check("survives-edge-inputs", "constants, outliers, few samples", survives_edge_inputs),
    Check("shows-what-is-not-finite", "NaN and infinite values", shows_what_is_not_finite),
    Check("takes-half-precision", "bfloat16 and float16 activations", takes_half_precision),
    Check(_FRAMES, "nothing else joins the peers", frames_are_enough),
    Check("same-over-every-link", "bit for bit", same_over_every_link),
    Check(_RESUME, "bit for bit, again and again", state_survives_resume),
    Check(CHANGES, "of shapes, targets and numbers", changes_are_declared),
    Check("steps-do-not-wait", "for a GPU, unless it says why", steps_do_not_wait),
    Check("unpickles-nothing", "no bytes become code", unpickles_nothing),
]


def check_plugin(
    plugin: str | type | Bound,
    *,
    only: Collection[str] | None = None,
    fresh: FreshPeers | None = None,
    tiny: Tiny = TINY,
    model: str | None = None,
    device: str = "cpu",
) -> Report:
    """Check that a plugin holds what every compression method must hold.

    Args:
        plugin: as users type it (``"NAME:key=value"``, ``"FILE.py:Class"``, a stack's name), or a
            class, which is built with its defaults, or a class bound to parameters.
        only: names of checks; all by default.
        fresh: fresh peers of an earlier check, to save the seconds that starting them takes.
        tiny: the model, for a plugin that refuses the small one.
        model: another model, as users type it, with new numbers and small images; see `Tiny`. A
            plugin that cannot work on it fails ``"fits-the-model"``, and nothing else is checked.
        device: where the peers compute, such as ``"cuda"``: there as ``--deterministic`` has it.

    Raises:
        ConfigError: an unknown name of a plugin, parameter, model or check, a device that cannot
            be used.
        PluginError: the plugin or the model cannot be imported.
    """
    text = plugin if isinstance(plugin, str) else None
    if isinstance(plugin, str):
        stack = bind_stack([plugin])
    elif isinstance(plugin, Bound):
        stack = [plugin]
    else:
        given = {name: p.default for name, p in parameters(plugin).items() if not p.required}
        stack = [Bound(plugin.__name__, plugin.__name__, plugin, given, {})]
    for each in stack:
        each.check_whole()
    with ExitStack() as cleanup:
        cleanup.enter_context(limited_threads(1))
        cleanup.enter_context(repeating(Config(device=device, deterministic=True)))
        name = text or str(stack[0])
        if device != "cpu":
            choose_device(device, "client", peers_here=1)
            tiny, name = dataclasses.replace(tiny, device=device), f"{name} on {device}"
        checks = chosen(PLUGIN_CHECKS, only)
        if model is not None:
            tiny = dataclasses.replace(tiny, model=model)
            name = f"{name} on {model}"
            if refusal := _refusal(stack, tiny):
                row = Row("fits-the-model", "it has what the plugin needs", "failed", refusal)
                return Report(name, (row,))
        if fresh is None and (only is None or {_FRAMES, _RESUME} & set(only)):
            fresh = cleanup.enter_context(FreshPeers())  # they start while the first checks run
        return run_checks(name, Subject(stack, text, tiny, fresh), checks)


def _refusal(stack: Sequence[Bound], tiny: Tiny) -> str | None:
    """Return why the stack cannot work on the model, or None."""
    tiny.client()  # a model that cannot be built is no fault of the stack's
    try:
        tiny.pair(stack)
    except ConfigError as error:
        return f"{error}; without a model it is checked on a small one that all methods fit"
    except Exception:  # noqa: BLE001 (what breaks is for the checks to say)
        pass
    return None

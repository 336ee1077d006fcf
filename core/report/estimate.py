"""How long a recorded run would take over another link, on a slower client: from its log alone.

A step takes what the client and the server computed, on average, what its frames take on the link,
by their bytes in the log, and the rest of the recorded link's seconds: encoding and decoding, and a
real network if there was one. Evaluations are no part of it: they are the laboratory's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.link import PeerRole, TimedWrapper
from splitlab.core.contract.message import Kind
from splitlab.core.runs.listing import Run
from splitlab.core.runs.records import EvaluationRecord, StepRecord, read_records

__all__ = ["Estimate", "check", "estimate", "profiles"]

_SLOWEST, _FASTEST = 1e-6, 1e6


@dataclass(frozen=True)
class Estimate:
    """What a recorded run would have taken over one link.

    Attributes:
        run: its folder.
        link: as the user named it.
        client_speed: how fast the client computes, over how fast it did.
        steps: training steps.
        seconds: of all of them, evaluations left out.
        link_seconds: of these, frames on their way.
        accuracy: which is looked for: the one that was asked for, or the best of the run.
        reached_step: of the first evaluation with it; None if there is none.
        reached_seconds: until then, evaluations left out; None if there is none.
    """

    run: Path
    link: str
    client_speed: float
    steps: int
    seconds: float
    link_seconds: float
    accuracy: float
    reached_step: int | None
    reached_seconds: float | None


def profiles() -> list[str]:
    """Return the links of the catalogue that stand for a network by themselves."""
    return [name for name, entry in entries("links").items() if "preset" in entry.facts]


def check(accuracy: float | None, client_speed: float | None) -> None:
    """Raise `ConfigError` if one of these makes no sense; None is nothing to judge."""
    if client_speed is not None and not _SLOWEST <= client_speed <= _FASTEST:
        raise ConfigError(
            f"--client-speed {client_speed:g} is not allowed; a share of the recorded speed above "
            "0, such as 0.1"
        )
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ConfigError(f"--accuracy {accuracy:g} is not allowed; 0 to 1")


def estimate(
    run: Run,
    links: Sequence[str],
    *,
    accuracy: float | None = None,
    client_speed: float = 1.0,
) -> list[Estimate]:
    """Return what the run would have taken over each of these links.

    Args:
        run: a finished one.
        links: wrappers as users name them, each alone around the link.
        accuracy: to look for; the best one of the run by default.
        client_speed: how fast the client computes, over how fast it did.

    Raises:
        ConfigError: an unknown link, or one that cannot tell how long a frame takes; a run that is
            not finished, or was over such a link.
    """
    check(accuracy, client_speed)
    roads = {text: _timed(text) for text in links}
    if run.summary is None or run.config is None:
        raise ConfigError(
            f"{run.folder} is {run.state}, and only a finished run knows what client and server "
            "took; finish it with `splitlab run --resume`, or name another"
        )
    records = read_records(run.folder)
    steps = [record for record in records if isinstance(record, StepRecord)]
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    if not steps:
        raise ConfigError(f"{run.folder} has trained no step, so there is nothing to estimate")
    summary = run.summary
    recorded = [_timed(text, run.folder) for text in run.config.links]
    spent = sum(sum(_frames(each, steps)) for each in recorded)
    rest = summary.server_seconds + max(0.0, summary.link_seconds - spent)
    own = (summary.client_seconds / client_speed + rest) / len(steps)
    wanted = max(e.compared for e in evaluations) if accuracy is None else accuracy
    reached = next((e.step for e in evaluations if e.compared >= wanted), None)
    found = []
    for text, road in roads.items():
        frames = _frames(road, steps)
        until = None
        if reached is not None:
            until = reached * own + sum(
                seconds
                for record, seconds in zip(steps, frames, strict=True)
                if record.step <= reached
            )
        found.append(
            Estimate(
                run=run.folder,
                link=text,
                client_speed=client_speed,
                steps=len(steps),
                seconds=len(steps) * own + sum(frames),
                link_seconds=sum(frames),
                accuracy=wanted,
                reached_step=reached,
                reached_seconds=until,
            )
        )
    return found


def _timed(text: str, folder: Path | None = None) -> TimedWrapper:
    """Return a wrapper that can tell how long a frame takes."""
    wrapper: TimedWrapper = bind("links", text).build()
    if not callable(getattr(wrapper, "seconds", None)):
        known = ", ".join(profiles())
        raise ConfigError(
            f"--link {text} cannot tell how long a frame takes, it has no method seconds; take "
            f"key=value,… or one of: {known}"
            if folder is None
            else f"{folder} was over --link {text}, which cannot tell what part of its seconds was "
            "the link's; take a run without it"
        )
    return wrapper


def _frames(road: TimedWrapper, steps: Sequence[StepRecord]) -> list[float]:
    """Return what the frames of each step take, up and down."""
    return [
        _frame(road, "client", record.bytes_up, Kind.ACTIVATION, record.step)
        + _frame(road, "server", record.bytes_down, Kind.GRADIENT, record.step)
        for record in steps
    ]


def _frame(road: TimedWrapper, role: PeerRole, size: int | None, kind: Kind, logged: int) -> float:
    # The purpose is the one that the link itself has, where steps are from 0.
    return road.seconds(role, size, kind.name, logged - 1) if size else 0.0

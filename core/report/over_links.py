"""Time to accuracy over links: what the runs of every row would take, as means over their seeds.

Reports show it beside what was measured. Nothing of it was run: see `splitlab.core.report.estimate`
for what it is estimated from.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from splitlab.core.report.estimate import Estimate, estimate, profiles
from splitlab.core.report.results import Row
from splitlab.core.runs.disk import write_whole, writing
from splitlab.core.runs.listing import read_run

__all__ = ["Means", "OverLinks", "human_seconds", "means", "over_links", "write_links_csv"]


@dataclass(frozen=True)
class Means:
    """What the runs of a row, which differ by their seed, would take over one link: means of them.

    Attributes:
        title: of the row.
        link: as the user named it.
        runs: how many there are.
        step_seconds: of a step.
        seconds: of all steps.
        link_share: of these, frames on their way: 0 to 1.
        accuracy: which is looked for.
        reached: how many runs have it.
        reached_seconds: until then, of those; None if there are none.
    """

    title: str
    link: str
    runs: int
    step_seconds: float
    seconds: float
    link_share: float
    accuracy: float
    reached: int
    reached_seconds: float | None

    @property
    def until(self) -> str:
        """How long it is until the accuracy, for people."""
        if self.reached_seconds is None:
            return "never"
        told = human_seconds(self.reached_seconds)
        return told if self.reached == self.runs else f"{told} ({self.reached} of {self.runs})"


@dataclass(frozen=True)
class OverLinks:
    """What the runs of all rows would take over some links.

    Attributes:
        links: as the user named them.
        accuracy: which is looked for in every run.
        is_asked: whether the user named it; otherwise it is the highest that every run reached.
        client_speed: how fast the client computes, over how fast it did.
        estimates: of every run over every link.
        means: of every row with a finished run, over every link.
    """

    links: tuple[str, ...]
    accuracy: float
    is_asked: bool
    client_speed: float
    estimates: tuple[Estimate, ...]
    means: tuple[Means, ...]

    @property
    def told(self) -> str:
        """What the numbers are, in a sentence."""
        whose = "" if self.is_asked else ", the highest that every run reached"
        client = ""
        if self.client_speed != 1:
            client = f"; the client is assumed to compute {self.client_speed:g} times as fast"
        return (
            f"until an accuracy of {self.accuracy:.4f}{whose}; estimated from the logs: mean "
            f"compute of a step, its own bytes, no evaluations; means over n runs{client}"
        )

    def first(self, link: str) -> Means | None:
        """Return the row all of whose runs have the accuracy, soonest; None if there is none."""
        whole = [m for m in self.means if m.link == link and m.reached == m.runs]
        return min(whole, key=lambda m: m.reached_seconds or 0.0, default=None)


def over_links(
    rows: Sequence[Row],
    links: Sequence[str] = (),
    *,
    accuracy: float | None = None,
    client_speed: float = 1.0,
) -> OverLinks:
    """Estimate what the finished runs of all rows would have taken over each of these links.

    Args:
        rows: of which one run at least is finished.
        links: wrappers as users name them; all profiles by default.
        accuracy: to look for; by default the highest that every run reached.
        client_speed: how fast the client computes, over how fast it did.

    Raises:
        ConfigError: as `estimate`.
    """
    links = tuple(dict.fromkeys(links or profiles()))
    runs = [read_run(run.folder) for row in rows for run in row.finished]
    wanted = accuracy
    if wanted is None:
        wanted = min(max(each.compared for each in run.evaluations()) for run in runs)
    found = [
        each
        for run in runs
        for each in estimate(run, links, accuracy=wanted, client_speed=client_speed)
    ]
    folders = {row.title: [run.folder.absolute() for run in row.finished] for row in rows}
    told = means(folders, found)
    return OverLinks(links, wanted, accuracy is not None, client_speed, tuple(found), tuple(told))


def means(rows: Mapping[str, Sequence[Path]], found: Sequence[Estimate]) -> list[Means]:
    """Return the means of every row over every link.

    Args:
        rows: the folders of each row's runs, by its title.
        found: of these runs; a row without any is left out.
    """
    made = []
    for title, folders in rows.items():
        for link in dict.fromkeys(each.link for each in found):
            own = [e for e in found if e.link == link and e.run in folders]
            if not own:
                continue
            until = [e.reached_seconds for e in own if e.reached_seconds is not None]
            made.append(
                Means(
                    title=title,
                    link=link,
                    runs=len(own),
                    step_seconds=fmean(e.seconds / e.steps for e in own),
                    seconds=fmean(e.seconds for e in own),
                    link_share=fmean(e.link_seconds / e.seconds for e in own),
                    accuracy=fmean(e.accuracy for e in own),
                    reached=len(until),
                    reached_seconds=fmean(until) if until else None,
                )
            )
    return made


def write_links_csv(found: OverLinks, folder: Path) -> Path:
    """Write ``links.csv``, a row a row and link, into a folder, which is made.

    Raises:
        ConfigError: it cannot be written.
    """
    text = io.StringIO()
    names = ["client_speed", *(spec.name for spec in dataclasses.fields(Means))]
    rows = csv.DictWriter(text, names, lineterminator="\n")
    rows.writeheader()
    speed = {"client_speed": found.client_speed}
    rows.writerows(speed | dataclasses.asdict(each) for each in found.means)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "links.csv", text.getvalue())
    return folder / "links.csv"


def human_seconds(seconds: float) -> str:
    """Return a time in the unit that suits it: ``0.0123`` → ``"12.3 ms"``."""
    units = (("ms", 1e-3, 0.9995), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 2e5))
    for unit, size, most in units:  # 0.9995 s are 1 s, in three digits
        if seconds < most:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"

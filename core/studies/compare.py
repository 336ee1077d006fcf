"""A comparison: several stacks run alike, and what came of them in one table and one figure.

Every run is an ordinary run folder. A comparison that was interrupted goes on with what is missing
when it is started again with the same folder, and grows when it is given more stacks or seeds. What
it leaves behind is described in `splitlab.core.studies.comparison`.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.binding import bind_stack, split_stack
from splitlab.core.catalogue.links import load_transport
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import ConfigError, Diverged, Interrupted, SplitlabError
from splitlab.core.contract.traits import Ground
from splitlab.core.engine.stack import Stack
from splitlab.core.runs.config import Config
from splitlab.core.runs.disk import hold
from splitlab.core.runs.plan import Decided, make
from splitlab.core.runs.reporter import Reporter
from splitlab.core.runs.run import run
from splitlab.core.studies.comparison import Comparison, Contender, Outcome, XScale, differs

__all__ = ["ComparisonReporter", "compare", "redraw"]

_MOST_SEEDS = 1000


class ComparisonReporter:
    """Is told how a comparison goes. This one stays silent; the command line's show."""

    def begin(self, folder: Path, runs: int, finished: int) -> None:
        """It begins: so many runs there are to be, of which so many are finished already."""

    def run(self, number: int, contender: Contender, seed: int) -> Reporter:
        """The run of this number begins; returns who is told how it goes."""
        return Reporter()

    def ended(self, contender: Contender, outcome: Outcome) -> None:
        """A run has ended."""

    def end(self) -> None:
        """The comparison is over, however it went."""


def compare(
    stacks: Sequence[str],
    *,
    ratio: float | None = None,
    seeds: int | str | Sequence[int] = 3,
    output: str | Path | None = None,
    x_scale: XScale = "linear",
    config: Config | None = None,
    reporter: ComparisonReporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Comparison:
    """Run several stacks alike, write tables and figures, and return what came of it.

    Args:
        stacks: each a whole stack, its members joined by ``+``.
        ratio: given to the first plugin of every stack that takes a parameter ``ratio``, unless the
            user set anything of that plugin.
        seeds: how many, from the configuration's seed on, or which ones: ``[0, 1, 5]``,
            ``"0,1,5"``.
        output: the folder; a comparison that is there goes on. ``comparisons/TIME`` by default.
        x_scale: of the figure.
        config: what all runs have in common; ``plugins`` and ``output`` of it are not used.
        reporter: is told how it goes.
        should_stop: asked before the first step of a run and after every one; True ends it with a
            checkpoint and `Interrupted`.
        options: fields of `Config`, on top of ``config``.

    Returns:
        The comparison. Runs that failed are in it, with their reasons.

    Raises:
        ConfigError: what can be known before the first run: a stack that cannot work, data that
            are not there, a folder that holds something else or is in use.
        Interrupted: stopped by ``should_stop`` or Ctrl-C; all that is done is kept.
    """
    reporter = reporter or ComparisonReporter()
    try:
        common = _common(config, options)
        contenders = _contenders(stacks, ratio, common.model.ground)
        first = options.get("seed", config.seed if config else 0)
        chosen = _seeds(seeds, first, given="seed" in options)
        folder = Path(output).absolute() if output is not None else _new_folder()
        with hold(folder, "comparison"):
            comparison, asked = _prepare(folder, common.config, contenders, chosen)
            finished = sum(comparison.outcomes[c.folder, s].state == "finished" for c, s in asked)
            if finished < len(asked):
                _check_what_all_share(common)
            comparison.write_record()
            reporter.begin(folder, len(asked), finished)
            try:
                _run_all(comparison, asked, reporter, should_stop)
            except (Interrupted, KeyboardInterrupt):
                raise _interrupted(comparison, asked) from None
            comparison.write(x_scale)
            return comparison
    finally:
        reporter.end()


def redraw(folder: str | Path, x_scale: XScale = "linear") -> Comparison:
    """Write tables and figures of a comparison anew, from the run folders that are there.

    It may be one that runs: its record is left alone.

    Raises:
        ConfigError: there is no comparison, or one of its runs is not.
    """
    comparison = Comparison.read(Path(folder).absolute())
    if comparison is None:
        raise ConfigError(f"--output {folder} is empty; say what to compare with --plugin")
    comparison.draw(x_scale)
    return comparison


# What is to be run.


def _seeds(seeds: int | str | Sequence[int], first: int, *, given: bool) -> tuple[int, ...]:
    refused = ConfigError(
        f"--seeds {seeds} is not allowed; write how many, 1 or more, or which ones, as in 0,1,5"
    )
    if isinstance(seeds, str):
        items = [item.strip() for item in seeds.split(",")]
        if not all(re.fullmatch(r"[0-9]{1,19}", item) for item in items):
            raise refused
        seeds = [int(item) for item in items] if len(items) > 1 else int(items[0])
    if isinstance(seeds, int):
        if seeds > _MOST_SEEDS:
            raise refused
        chosen = tuple(range(first, first + seeds))
    elif given:
        raise ConfigError("--seed and a list of --seeds exclude each other; keep one of them")
    else:
        chosen = tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise refused
    for seed in (min(chosen), max(chosen)):
        Config(seed=seed)  # refuses what no run could take
    return chosen


def _contenders(stacks: Sequence[str], ratio: float | None, ground: Ground) -> list[Contender]:
    if not stacks:
        raise ConfigError("nothing to compare; name every stack with --plugin, as in NAME+NAME")
    if ratio is not None and not 0 < ratio <= 1:
        raise ConfigError(f"--ratio {ratio} is not allowed; more than 0, at most 1")
    found = [_contender(split_stack(text), ratio, ground) for text in stacks]
    if ratio is not None and all(contender.remark for contender in found):
        raise ConfigError(
            f"--ratio {ratio:g} is not allowed here: in no stack the first plugin that takes a "
            "ratio is written without settings; drop --ratio"
        )
    return found


def _contender(members: tuple[str, ...], ratio: float | None, ground: Ground) -> Contender:
    bound = bind_stack(members)
    title = " + ".join(map(_title, members))
    plugins, remark = members, ""
    if ratio is not None:
        plugins = _with_ratio(members, ratio)
        if plugins == members:
            remark = f"without --ratio {ratio:g}"
        else:
            bound = bind_stack(plugins)
    Stack(bound).check(ground)  # refuses plugins that cannot work together, or on this model
    agreement = " + ".join(plugin.agreement() for plugin in bound)
    plugins = Config(plugins=plugins).placed().plugins
    return Contender("+".join(members), title, "", plugins, agreement, remark)


def _title(member: str) -> str:
    """Return what tables call a member; a named stack keeps its name, which is shorter."""
    bound = bind_stack([member])
    name, colon, settings = member.partition(":")
    stack = entries("stacks").get(name)
    if stack is None:
        return " + ".join(map(str, bound))
    rebuilt = stack.facts.get("reconstruction") or any(plugin.reconstruction for plugin in bound)
    return f"{name}{'-recon' if rebuilt else ''}{colon}{settings}"


def _with_ratio(members: tuple[str, ...], ratio: float) -> tuple[str, ...]:
    """Give the ratio to the first plugin that takes one, unless the user set anything of it."""
    for i, member in enumerate(members):
        takes = next((p for p in bind_stack([member]) if "ratio" in p.params), None)
        if takes is not None:
            rest = member.rpartition(".py:")[2]
            joint = "," if ":" in rest else ":"
            given = member if takes.given else f"{member.rstrip(':')}{joint}ratio={ratio!r}"
            return (*members[:i], given, *members[i + 1 :])
    return members


def _common(config: Config | None, options: dict[str, Any]) -> Decided:
    """Return what all runs have in common."""
    per_run = sorted({"plugins", "output"} & options.keys())
    if per_run:
        raise ConfigError(
            f"{per_run[0]} is no option of a comparison; it takes stacks and a folder"
        )
    Config.from_mapping(options)
    known = dataclasses.asdict(config) if config else {}
    mine = {"plugins": (), "seed": 0, "output": None}
    return Decided.of(Config.from_mapping(known | options | mine).placed())


def _new_folder() -> Path:
    path = Path("comparisons").absolute() / time.strftime("%Y%m%d-%H%M%S")
    others = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(free for free in itertools.chain([path], others) if not free.exists())


def _prepare(
    folder: Path, common: Config, contenders: Sequence[Contender], seeds: Sequence[int]
) -> tuple[Comparison, list[tuple[Contender, int]]]:
    """Return the comparison, old or new, and the runs that were asked for now, in their order."""
    comparison = Comparison.read(folder) or Comparison(folder, common, (), ())
    difference = differs(common, comparison.config)
    if difference:
        raise ConfigError(
            f"--output {folder} holds a comparison with other options: {difference}; "
            "give the same, or name another folder"
        )
    mine: list[Contender] = []
    for contender in contenders:
        was = next((c for c in comparison.contenders if c.name == contender.name), None)
        if was is None:
            taken = [c.folder for c in (*comparison.contenders, *mine)]
            mine.append(replace(contender, folder=_folder_name(contender.name, taken)))
        elif was.agreement == contender.agreement:
            mine.append(was)
        else:
            raise ConfigError(
                f"--output {folder}: the stack {was.name} {_change(was, contender)}; give the "
                "same, or name another folder"
            )
    _check_different(mine)
    comparison.grow(mine, seeds)
    _check_different(comparison.contenders)
    return comparison, [(contender, seed) for seed in seeds for contender in mine]


def _folder_name(stack: str, taken: Iterable[str]) -> str:
    """Return a folder name that reads like the stack and that nobody has yet."""
    short = re.sub(r"[^+]*/(?=[^+/]*\.py:)", "", stack)
    name = re.sub(r"[^\w.+=,]+", "-", short)[:100].strip("-.") or "stack"
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _change(was: Contender, now: Contender) -> str:
    """Say where identities or parameters of a stack differ."""
    old, new = (re.split(r",| \+ ", contender.agreement) for contender in (was, now))
    if len(old) == len(new):
        pairs = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
        old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return f"was {', '.join(old)} and is now {', '.join(new)}"


def _check_different(contenders: Sequence[Contender]) -> None:
    first: dict[str, str] = {}
    for contender in contenders:
        name = first.setdefault(contender.agreement, contender.name)
        if name != contender.name:
            raise ConfigError(f"the stacks {name} and {contender.name} are the same; drop one")
    names = [contender.name for contender in contenders]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ConfigError(f"the stack {twice} is given twice; drop one")


def _check_what_all_share(common: Decided) -> None:
    """Say once, before the first run, what every run would stumble over."""
    transport = load_transport(common.config.transport)
    if transport.place == "beside" and transport.launched():
        raise ConfigError(
            "a comparison starts a server for every run itself; start it without a launcher"
        )
    make(common)


# Running.


def _run_all(
    comparison: Comparison,
    asked: Sequence[tuple[Contender, int]],
    reporter: ComparisonReporter,
    should_stop: Callable[[], bool],
) -> None:
    for number, (contender, seed) in enumerate(asked, start=1):
        key = contender.folder, seed
        if comparison.outcomes[key].state == "finished":
            continue
        inner = reporter.run(number, contender, seed)
        outcome = _run_one(comparison, contender, seed, inner, should_stop)
        comparison.outcomes[key] = outcome
        comparison.write_record()
        reporter.ended(contender, outcome)
        gc.collect()  # what a run leaves in cycles may hold memory of a GPU
        if should_stop() and number < len(asked):
            raise Interrupted("between two runs")


def _run_one(
    comparison: Comparison,
    contender: Contender,
    seed: int,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> Outcome:
    folder = comparison.run_folder(contender, seed)
    summary, error, diverged = None, "", False
    try:
        if (folder / "config.toml").is_file():
            result = run(resume=folder, reporter=reporter, should_stop=should_stop)
        else:
            config = replace(comparison.run_config(contender, seed), output=str(folder))
            result = run(config, reporter=reporter, should_stop=should_stop)
        summary = result.summary
    except Interrupted:
        raise
    except SplitlabError as reason:
        diverged = isinstance(reason, Diverged)
        error = str(reason).partition("; go on from")[0]
    except (RuntimeError, MemoryError, OSError) as reason:  # no memory, a full disk
        error = " ".join(f"{type(reason).__name__}: {reason}".split())
    return Outcome(contender.folder, seed, summary, error, diverged)


def _interrupted(comparison: Comparison, asked: Sequence[tuple[Contender, int]]) -> Interrupted:
    finished = sum(comparison.outcomes[c.folder, s].state == "finished" for c, s in asked)
    return Interrupted(
        f"interrupted: {finished} of {len(asked)} runs are finished; go on with the same options "
        f"and --output {comparison.folder}"
    )

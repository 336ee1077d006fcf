"""What a paper claims of rows, and whether runs bear it out: each comparison is tested.

A TOML file holds the claims by the name of the study whose rows they are about, and the options
that the paper's own runs had:

    [regime]
    model = ["deit_tiny_patch16_224", "deit_small_patch16_224"]

    [["mine/ablation"]]
    claim = "Both halves together are above merging alone."
    where = "arXiv 2509.15058, its two halves"
    compare = [["both", "half"]]  # the first is said to be above the second; [] for none
    margin = 0.01                           # by which it may be below; 0 by default
    note = "what a reader should know"

A side of a comparison is a method, or a table of settings with ``method`` among them or without.
Rows of both sides meet where they have the same settings besides those that the sides name; a
setting that a row does not have is no hindrance.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.report.axes import OF_THE_METHOD
from splitlab.core.report.naming import option
from splitlab.core.report.results import Results
from splitlab.core.report.statistics import LEVEL, compare, holm
from splitlab.core.runs.config import Config, read_toml

__all__ = [
    "CANNOT",
    "HELD",
    "NOT",
    "Claim",
    "Claims",
    "Comparison",
    "Sample",
    "Verdict",
    "apart",
    "judge",
    "numbers",
    "read_claims",
    "samples_of",
    "samples_of_csv",
    "told",
]

HELD = "held"
NOT = "did not hold"
CANNOT = "cannot be told"

_REGIME = "regime"
_METHOD = "method"


@dataclass(frozen=True)
class Sample:
    """A row as a test sees it.

    Attributes:
        title: of the row; so are the next two.
        method: see `Row`.
        settings: as texts; without those that the row does not have.
        accuracies: of the finished runs, by seed.
    """

    title: str
    method: str
    settings: Mapping[str, str]
    accuracies: Mapping[int, float]


@dataclass(frozen=True)
class Claim:
    """A sentence that is right or wrong.

    Attributes:
        text: the sentence.
        where: who says it, and where.
        pairs: what is said to be above what, each side as settings by their axis.
        margin: of accuracy, by which it may be below.
        note: what a reader should know; may be empty.
    """

    text: str
    where: str
    pairs: tuple[tuple[Mapping[str, str], Mapping[str, str]], ...]
    margin: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Claims:
    """What a file says of a study.

    Attributes:
        claims: in their order.
        regime: by option, the values that the paper's runs had.
    """

    claims: tuple[Claim, ...] = ()
    regime: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two rows, and whether the first is above the second.

    Attributes:
        first: title of the row.
        second: title of the other.
        difference: of their mean accuracies over the seeds that both have; None without any.
        p: two-sided p-value, paired by seed, after Holm's correction over the comparisons of the
            claim; None where no test can tell.
        n: how many seeds both have.
        verdict: `HELD`, `NOT` or `CANNOT`.
    """

    first: str
    second: str
    difference: float | None
    p: float | None
    n: int
    verdict: str


@dataclass(frozen=True)
class Verdict:
    """A claim and what came of its comparisons.

    Attributes:
        claim: that was tested.
        comparisons: of it; none if there are no such rows.
        average: of several comparisons: the differences of each seed averaged over them, and
            tested over the seeds that all of them have; its p-value is corrected over the averages
            of all claims.
    """

    claim: Claim
    comparisons: tuple[Comparison, ...]
    average: Comparison | None = None

    @property
    def verdict(self) -> str:
        """`HELD` if every comparison did, `NOT` if any did not, else `CANNOT`."""
        found = {each.verdict for each in self.comparisons}
        if NOT in found:
            return NOT
        return HELD if found == {HELD} else CANNOT

    @property
    def told(self) -> str:
        """The verdict in words, with its numbers if there is one comparison."""
        every = self.comparisons
        if not every:
            return "not tested: there are no such rows" if self.claim.pairs else "not tested here"
        if self.average is None:
            return f"{told(every[0])} ({numbers(every[0])})"
        return f"{self._singly}; on average {told(self.average)} ({numbers(self.average)})"

    @property
    def _singly(self) -> str:
        every = self.comparisons
        counts = {name: sum(each.verdict == name for each in every) for name in (HELD, NOT)}
        parts = [f"{name} in {count}" for name, count in counts.items() if count]
        rest = len(every) - sum(counts.values())
        seeds = _seeds(every)
        if rest == len(every):
            return f"{CANNOT} from {seeds} in any of {len(every)} comparisons"
        parts += [f"{CANNOT} from {seeds} in {rest}"] if rest else []
        return f"{', '.join(parts)} of {len(every)} comparisons"


def told(one: Comparison) -> str:
    """Return the verdict of one comparison in words."""
    return f"{CANNOT} from {_seeds([one])}" if one.verdict == CANNOT else one.verdict


def numbers(one: Comparison) -> str:
    """Return what a verdict stands on: ``Δ = +0.0123, p = 0.004, n = 3``."""
    if one.difference is None:
        return "n = 0"
    p = "—" if one.p is None else "< 0.001" if one.p < 0.001 else f"= {one.p:.3f}"
    return f"Δ = {one.difference:+.4f}, p {p}, n = {one.n}"


def _seeds(every: Sequence[Comparison]) -> str:
    counts = sorted({each.n for each in every})
    if counts == [1]:
        return "this 1 seed"
    return f"these {'–'.join(dict.fromkeys((str(counts[0]), str(counts[-1]))))} seeds"


# What is claimed.

_KEYS = ("claim", "where", "compare", "margin", "note")


def read_claims(path: Path, study: str) -> Claims:
    """Return what a file claims of a study; nothing if it does not know it.

    Raises:
        ConfigError: it cannot be read, or is not as it should be.
    """
    table = read_toml(path)
    regime = table.get(_REGIME, {})
    if not isinstance(regime, dict) or not all(map(_is_texts, regime.values())):
        raise ConfigError(f"{path}: {_REGIME} is a table of lists of texts")
    for name, listed in table.items():
        if name != _REGIME and not (
            isinstance(listed, list) and all(isinstance(each, dict) for each in listed)
        ):
            raise ConfigError(f'{path}: the claims of {name} are written as [["{name}"]]')
    claims = tuple(_claim(path, study, each) for each in table.get(study, []))
    return Claims(claims, {name: tuple(values) for name, values in regime.items()})


def _claim(path: Path, study: str, table: Mapping[str, Any]) -> Claim:
    where = f"{path}, {study}"
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"{where}: {unknown_name('key', key, _KEYS)}")
    texts = [table.get(key, "") for key in ("claim", "where", "note")]
    margin, pairs = table.get("margin", 0.0), table.get("compare")
    if not all(isinstance(text, str) for text in texts) or not texts[0] or not texts[1]:
        raise ConfigError(f"{where}: a claim has the texts claim and where, and may have a note")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 1:
        raise ConfigError(
            f"{where}: margin = {margin!r} is not allowed; a share of accuracy, 0 to 1"
        )
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_side, pair)) for pair in pairs
    ):
        raise ConfigError(
            f"{where}: compare = {pairs!r} is not allowed; it takes pairs of methods or of tables "
            'of settings, as in [["this", "that"], [{ cut = 5 }, { cut = 1 }]]'
        )
    sides = tuple((_side(first), _side(second)) for first, second in pairs)
    return Claim(texts[0], texts[1], sides, float(margin), texts[2])


def _is_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_side(side: Any) -> bool:
    return isinstance(side, str | dict) and bool(side)


def _side(side: str | Mapping[str, Any]) -> dict[str, str]:
    table = {_METHOD: side} if isinstance(side, str) else side
    return {name: str(v) if name == _METHOD else _plain(v) for name, v in table.items()}


def _plain(value: Any) -> str:
    """Return a setting as a text that is the same wherever it was read: ``0.10`` is ``0.1``."""
    text = "" if value is None else str(value)
    try:
        return repr(float(text))
    except ValueError:
        return text


def apart(
    claims: Claims, common: Iterable[tuple[str, str]], varied: Collection[str] = ()
) -> list[str]:
    """Return in what runs differ from the paper's, an option each.

    Args:
        claims: with its regime.
        common: what all runs have in common, see `Results`.
        varied: options in which they differ, which are not looked at.
    """
    usual = {option(spec.name): spec.default for spec in dataclasses.fields(Config)}
    ours = {"dataset": "of a folder", **{k: v for k, v in usual.items() if v is not None}}
    ours |= dict(common)
    return [
        f"{name} {ours.get(name, 'unknown')} (there {' or '.join(values)})"
        for name, values in claims.regime.items()
        if name not in varied and str(ours.get(name)) not in values
    ]


# Whether it held.


def samples_of(results: Results) -> tuple[Sample, ...]:
    """Return the rows of some results as tests see them."""
    return tuple(
        Sample(
            row.title,
            row.method,
            {name: _plain(value) for name, value in row.settings.items() if value is not None},
            {run.seed: run.summary.accuracy for run in row.finished if run.summary is not None},
        )
        for row in results.rows
    )


def samples_of_csv(text: str, axes: Sequence[str]) -> tuple[Sample, ...]:
    """Return the same from the text of ``runs.csv``, see `splitlab.core.report.long`.

    Args:
        text: of the file.
        axes: names of its columns that are settings.
    """
    rows: dict[str, list[dict[str, str]]] = {}
    for record in csv.DictReader(io.StringIO(text)):
        rows.setdefault(record["row"], []).append(record)
    return tuple(
        Sample(
            title,
            runs[0]["method"],
            {name: _plain(runs[0][name]) for name in axes if runs[0][name]},
            {
                int(run["seed"]): float(run["accuracy"])
                for run in runs
                if run["state"] == "finished"
            },
        )
        for title, runs in rows.items()
    )


def judge(samples: Sequence[Sample], claims: Sequence[Claim]) -> tuple[Verdict, ...]:
    """Return what rows say of every claim, in their order."""
    met = [[*_met(samples, claim)] for claim in claims]
    averages = [
        _tested("", "", [_differences(*pair) for pair in pairs], claim.margin)
        if len(pairs) > 1
        else None
        for pairs, claim in zip(met, claims, strict=True)
    ]
    ps = holm([each.p if each else None for each in averages])
    return tuple(
        Verdict(claim, _compared(pairs, claim), average and _judged(average, p, claim.margin))
        for claim, pairs, average, p in zip(claims, met, averages, ps, strict=True)
    )


def _compared(pairs: Sequence[tuple[Sample, Sample]], claim: Claim) -> tuple[Comparison, ...]:
    tests = [
        _tested(one.title, other.title, [_differences(one, other)], claim.margin)
        for one, other in pairs
    ]
    ps = holm([test.p for test in tests])
    return tuple(_judged(test, p, claim.margin) for test, p in zip(tests, ps, strict=True))


def _judged(test: Comparison, p: float | None, margin: float) -> Comparison:
    """Return a comparison with its corrected p-value, and what that says."""
    if test.difference is None or p is None or p >= LEVEL:
        return replace(test, p=p, verdict=CANNOT)
    return replace(test, p=p, verdict=HELD if test.difference + margin > 0 else NOT)


def _differences(first: Sample, second: Sample) -> dict[int, float]:
    """Return by how much one is above the other, by seed."""
    seeds = first.accuracies.keys() & second.accuracies.keys()
    return {seed: first.accuracies[seed] - second.accuracies[seed] for seed in sorted(seeds)}


def _tested(
    first: str, second: str, differences: Sequence[Mapping[int, float]], margin: float
) -> Comparison:
    """Return a comparison as if it were the only one, without a verdict yet."""
    seeds = set[int].intersection(*({*each} for each in differences))
    if not seeds:
        return Comparison(first, second, None, None, 0, CANNOT)
    means = {  # rounded: what is no difference but for rounding is none
        seed: round(statistics.fmean(each[seed] for each in differences), 12)
        for seed in sorted(seeds)
    }
    found = compare(means, dict.fromkeys(means, -margin))
    return Comparison(first, second, found.mean - margin, found.p, len(seeds), CANNOT)


def _met(samples: Sequence[Sample], claim: Claim) -> Iterator[tuple[Sample, Sample]]:
    """Yield the rows that are compared, each pair once."""
    for one, other in claim.pairs:
        named = {*one, *other, OF_THE_METHOD}
        for first in _are(samples, one):
            for second in _are(samples, other):
                shared = first.settings.keys() & second.settings.keys() - named
                if all(first.settings[name] == second.settings[name] for name in shared):
                    yield first, second


def _are(samples: Sequence[Sample], side: Mapping[str, str]) -> list[Sample]:
    """Return the rows of a side.

    What all rows have in common is part of their methods' names, as the ratio of a study with one
    ratio: where no method is called exactly so, settings may follow.
    """
    method = side.get(_METHOD, "")
    exact = any(sample.method == method for sample in samples)
    return [
        sample
        for sample in samples
        if not method
        or sample.method == method
        or (not exact and sample.method.startswith(f"{method}:"))
        if all(sample.settings.get(k) == value for k, value in side.items() if k != _METHOD)
    ]

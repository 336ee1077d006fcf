"""What a study is, as data: base options, stacks, axes, seeds, and what to draw.

A table of a registry, or a TOML file of its own, says it so:

    [studies.my-study]
    summary = "one sentence"
    paper = "arXiv 2509.15058, figure 5"                  # what it reproduces
    base = { budget = "nominal=0.5", lr = 1e-3 }          # options of `splitlab run`
    stacks = ["none", "adc", "topk+quantize:bits=8"]      # each a whole stack
    over = { ratio = [0.05, 0.1], cut = [2, 3] }          # every combination
    zip = [{ batch-size = [64, 128], lr = [1e-3, 2e-3] }] # these go together
    seeds = 3                                             # or [0, 1, 5]
    draw = ["heatmap", "bytes"]
    reference = "none"                                    # the row that others are tested against
    published = "curves.csv"                              # to be drawn beside, where it is alike

An axis is an option of `splitlab run`, ``plugin.NAME.SETTING`` of the plugins of that name, or
``ratio``, which is given to the first plugin of every stack that takes one, unless the stack says
anything of that plugin.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from splitlab.core.catalogue.binding import split_stack
from splitlab.core.catalogue.loading import split
from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.contract.settings import Parameter, shown
from splitlab.core.report.figures import check_name
from splitlab.core.runs.config import Config, flag

__all__ = [
    "RATIO",
    "Choice",
    "Definition",
    "axis_of_columns",
    "axis_of_text",
    "axis_of_texts",
    "called",
    "seeds_of",
    "shown_key",
]

RATIO = "ratio"
Choice = Mapping[str, Any]
"""What one place on an axis sets, by key: several of an axis whose keys go together."""

_PER_RUN = ("plugins", "seed", "output", "name", "tags")
"""Fields of `Config` that are no base options and no axes."""
_MOST_SEEDS = 1000
_MOST_RUNS = 100_000
_KEYS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "summary": (str, "a text"),
    "paper": (str, "a text"),
    "base": (dict, "a table of options"),
    "stacks": (list, "a list of stacks"),
    "over": (dict, "a table of lists"),
    "zip": (list, "a list of tables of lists"),
    "seeds": ((int, list), "how many, or a list of them"),
    "draw": (list, "a list of figures"),
    "reference": (str, "a stack"),
    "published": (str, "a CSV file"),
}


@dataclass(frozen=True)
class Definition:
    """A study as it was asked for.

    Attributes:
        name: of the study.
        summary: one sentence; may be empty.
        paper: what it reproduces; may be empty.
        base: options that all runs have in common, by field of `Config`.
        stacks: each as the user writes it.
        axes: each a row of choices; runs are made of every combination.
        seeds: of the runs of every combination.
        draw: figures; empty for those that suit.
        reference: the stack, or the title of the row, that others are tested against; may be empty.
        published: a file of `splitlab.core.report.published`, absolute or in the package; may be
            empty.
    """

    name: str
    summary: str = ""
    paper: str = ""
    base: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stacks: tuple[str, ...] = ("none",)
    axes: tuple[tuple[Choice, ...], ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    draw: tuple[str, ...] = ()
    reference: str = ""
    published: str = ""

    def __post_init__(self) -> None:
        if not self.stacks:
            raise ConfigError("nothing to run; name every stack with --plugin, as in NAME+NAME")
        for name, members in (("stack", self.stacks), ("seed", self.seeds)):
            twice = next((each for each in members if members.count(each) > 1), None)
            if twice is not None:
                raise ConfigError(f"the {name} {twice} is given twice; drop one")
        keys = [key for axis in self.axes for key in axis[0]]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ConfigError(f"{shown_key(twice)} is on two axes; keep one of them")
        _check_keys_meet(keys, self.stacks)
        runs = len(self.stacks) * len(self.seeds)
        for axis in self.axes:
            runs *= len(axis)
        if runs > _MOST_RUNS:
            raise ConfigError(f"the study has {runs:,} runs; at most {_MOST_RUNS:,} are allowed")

    @classmethod
    def of_table(cls, name: str, table: Mapping[str, Any], where: str) -> Definition:
        """Read a table.

        Args:
            name: of the study.
            table: as TOML has it.
            where: the table is, for messages.

        Raises:
            ConfigError: a key or a value that cannot be used.
        """
        for key, value in table.items():
            if key not in _KEYS:
                raise ConfigError(f"{where}: {unknown_name('key', key, _KEYS)}")
            kind, words = _KEYS[key]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ConfigError(f"{where}: {key} = {value!r} is not allowed; it takes {words}")
        try:
            base = {_field(key): value for key, value in table.get("base", {}).items()}
            first = Config.from_mapping(base).seed if "seed" in base else 0
            Config.from_mapping(base)
            if base_stack := base.pop("plugins", None):
                base_stack = ["+".join(base_stack)]
            axes = [_axis({key: values}) for key, values in table.get("over", {}).items()]
            axes += [_axis(together) for together in table.get("zip", [])]
            draw = _texts(table.get("draw", []), "draw")
            for figure in draw:
                check_name(figure)
            return cls(
                name=name,
                summary=table.get("summary", ""),
                paper=table.get("paper", ""),
                base={key: value for key, value in base.items() if key not in _PER_RUN},
                stacks=tuple(_texts(table.get("stacks", base_stack or ["none"]), "stacks")),
                axes=tuple(axes),
                seeds=seeds_of(table.get("seeds", 3), first),
                draw=tuple(draw),
                reference=table.get("reference", ""),
                published=table.get("published", ""),
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def as_table(self) -> dict[str, Any]:
        """Return what `of_record` reads back."""
        return dataclasses.asdict(self)

    def command(self, output: str) -> str:
        """Return what makes the same study in another folder, as typed in a shell.

        Empty if it cannot be typed: a value of an axis that is a list of several, as TOML has it.
        """
        if any(
            isinstance(value, list) and len(value) > 1
            for axis in self.axes
            for choice in axis
            for value in choice.values()
        ):
            return ""
        words = ["splitlab", "study"]
        for stack in self.stacks:
            words += ["--plugin", stack]
        for axis in self.axes:
            for i, key in enumerate(axis[0]):
                values = [_said(choice[key]) for choice in axis]
                told = ",".join(values)
                if "," in "".join(values):
                    told = ";".join(values) if len(values) > 1 else f"{told};"
                words += ["--zip" if i else "--over", f"{shown_key(key)}={told}"]
        for field, value in self.base.items():
            if isinstance(value, list):
                words += [word for each in value for word in (flag(field), each)]
            elif value is True:
                words.append(flag(field))
            elif value is not None and value is not False:  # 0 is a value
                words += [flag(field), str(value)]
        many = len(self.seeds) > 1
        words += ["--seeds", ",".join(map(str, self.seeds))] if many else ["--seeds", "1"]
        words += [] if many or not self.seeds[0] else ["--seed", str(self.seeds[0])]
        return shlex.join([*words, "--output", output])

    @classmethod
    def of_record(cls, values: Mapping[str, Any]) -> Definition:
        """Read what `as_table` wrote.

        Raises:
            ConfigError, TypeError, ValueError, LookupError, AttributeError: it is damaged.
        """
        words = {key: values[key] for key in ("name", "summary", "paper", "reference")}
        words["published"] = values.get("published", "")  # which older ones lack
        _texts(words.values(), "the definition")
        Config.from_mapping(values["base"])
        return cls(
            **words,
            base=dict(values["base"]),
            stacks=tuple(_texts(values["stacks"], "stacks")),
            axes=tuple(
                _axis({key: [choice[key] for choice in axis] for key in axis[0]})
                for axis in values["axes"]
            ),
            seeds=seeds_of([*values["seeds"]]),
            draw=tuple(_texts(values["draw"], "draw")),
        )

    def grown(
        self,
        stacks: Sequence[str],
        axes: Sequence[tuple[Choice, ...]],
        seeds: Sequence[int],
        base: Mapping[str, Any],
    ) -> Definition:
        """Return it with more stacks, values, axes and seeds, and these options set anew."""
        found = [*self.axes]
        for axis in axes:
            same = next((i for i, own in enumerate(found) if own[0].keys() == axis[0].keys()), None)
            if same is None:
                found.append(axis)
            else:
                found[same] += tuple(choice for choice in axis if choice not in found[same])
        return replace(
            self,
            stacks=self.stacks + tuple(each for each in stacks if each not in self.stacks),
            axes=tuple(found),
            seeds=self.seeds + tuple(each for each in seeds if each not in self.seeds),
            base={**self.base, **base},
        )


def seeds_of(seeds: int | str | Sequence[int], first: int = 0) -> tuple[int, ...]:
    """Return seeds: so many from the first on, or the ones that are listed.

    >>> seeds_of(2), seeds_of("2", first=5), seeds_of("0,1,5")
    ((0, 1), (5, 6), (0, 1, 5))
    """
    refused = ConfigError(
        f"--seeds {seeds} is not allowed; write how many, 1 to {_MOST_SEEDS}, or which ones, as in "
        "0,1,5"
    )
    if isinstance(seeds, str):
        items = [item.strip() for item in seeds.split(",")]
        if not all(re.fullmatch(r"[0-9]{1,19}", item) for item in items):
            raise refused
        seeds = [int(item) for item in items] if len(items) > 1 else int(items[0])
    if isinstance(seeds, int):
        chosen = tuple(range(first, first + seeds)) if 0 < seeds <= _MOST_SEEDS else ()
    else:
        chosen = tuple(seeds) if isinstance(seeds, Iterable) else ()
    if any(type(seed) is not int for seed in chosen) or not chosen or len({*chosen}) < len(chosen):
        raise refused
    for seed in (min(chosen), max(chosen)):
        Config(seed=seed)  # refuses what no run could take
    return chosen


def axis_of_text(text: str) -> tuple[str, list[Any]]:
    """Read ``KEY=VALUE,VALUE,…``, or ``KEY=VALUE;VALUE`` where values have commas of their own.

    A single value with commas ends in ``;``.

    Returns:
        The key and its values, typed.
    """
    typed, equals, rest = text.partition("=")
    separator = ";" if ";" in rest else ","
    values = [value.strip() for value in rest.removesuffix(";").split(separator)]
    if not equals or not all(values):
        raise ConfigError(
            f"--over {text} is not allowed; write KEY=VALUE,VALUE, as in cut=1,2,3 or "
            "plugin.adc.ratio=0.05,0.1"
        )
    key = _key(typed.strip())
    return key, [_typed(key, value) for value in values]


def shown_key(key: str) -> str:
    """Return a key as users write it: ``batch_size`` → ``batch-size``."""
    return key if key.startswith("plugin.") else key.replace("_", "-")


def _said(value: Any) -> str:
    """Return a value of an axis as it is typed."""
    return (value[0] if value else "none") if isinstance(value, list) else shown(value)


def _axis(together: Any) -> tuple[Choice, ...]:
    """Return the axis of keys that go together, each with its list of values."""
    if not isinstance(together, Mapping) or not together:
        raise ConfigError(f"zip has {together!r}; write tables of lists, as {{ cut = [1, 2] }}")
    columns: dict[str, list[Any]] = {}
    for typed, values in together.items():
        key = _key(typed)
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{typed} = {values!r} is not allowed; an axis is a list of values")
        columns[key] = [_checked(key, value) for value in values]
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        told = ", ".join(f"{shown_key(key)} {len(values)}" for key, values in columns.items())
        raise ConfigError(f"values that go together must be as many ({told})")
    places = zip(*columns.values(), strict=True)
    choices = [dict(zip(columns, values, strict=True)) for values in places]
    if any(choices.count(choice) > 1 for choice in choices):
        raise ConfigError(f"{', '.join(map(shown_key, columns))}: a value is given twice; drop one")
    return tuple(choices)


def axis_of_texts(texts: Sequence[str]) -> tuple[Choice, ...]:
    """Return the axis of keys that go together, each as `axis_of_text` reads it."""
    columns: dict[str, list[Any]] = {}
    for key, values in map(axis_of_text, texts):
        if key in columns:
            raise ConfigError(f"{shown_key(key)} is twice on one axis; keep one of them")
        columns[key] = values
    return _axis(columns)


def axis_of_columns(columns: Mapping[str, list[Any]]) -> tuple[Choice, ...]:
    """Return the axis of keys that go together, each with its typed values."""
    return _axis(columns)


def _key(typed: str) -> str:
    """Return the key of an axis: a field of `Config`, ``ratio``, or a plugin's setting."""
    if typed == RATIO or re.fullmatch(r"plugin\.[^.]+\.[^.]+", typed):
        return typed
    return _field(typed, axis=True)


def _field(typed: str, axis: bool = False) -> str:
    name = typed.removeprefix("--").replace("-", "_")
    known = [spec.name for spec in dataclasses.fields(Config) if spec.name not in _PER_RUN]
    name = {"plugin": "plugins", "link": "links", "probe": "probes", "log": "loggers"}.get(
        name, name
    )
    if axis and name in ("seed", "seeds"):
        raise ConfigError("seeds are no axis; say how many or which with --seeds")
    if axis and name in ("plugins", "stack", "stacks"):
        raise ConfigError("stacks are no axis; name each with --plugin, or in `stacks`")
    if name not in known and (axis or name not in ("plugins", "seed")):
        more = [shown_key(each) for each in known]
        what, remedy = ("axis", f"; or {RATIO}, or plugin.NAME.SETTING") if axis else ("option", "")
        raise unknown_name(what, typed, more, remedy)
    return name


def _typed(key: str, text: str) -> Any:
    """Turn a text into a value of the key's type."""
    if key.startswith("plugin."):
        return text
    hint = float if key == RATIO else typing.get_type_hints(Config)[key]
    if typing.get_origin(hint) is tuple:
        return [] if text == "none" else [text]
    return _checked(key, Parameter(shown_key(key), hint, None).parse("an axis", text))


def _checked(key: str, value: Any) -> Any:
    """Return a value that the key can have, in the form in which a study keeps it."""
    if key.startswith("plugin."):
        if isinstance(value, list | dict):
            raise ConfigError(f"{key} = {value!r} is not allowed; a setting is a text or a number")
        return shown(value)
    if key == RATIO:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ConfigError(f"ratio {value} is not allowed; more than 0, at most 1")
        return float(value)
    found = getattr(Config.from_mapping({key: value}), key)
    return [*found] if isinstance(found, tuple) else found


def _texts(values: Iterable[Any], what: str) -> list[str]:
    found = [*values]
    for value in found:
        if not isinstance(value, str):
            raise ConfigError(f"{what} has {value!r}; it takes texts")
    return found


def _check_keys_meet(keys: Sequence[str], stacks: Sequence[str]) -> None:
    """Check that every plugin's setting on an axis is one of a plugin that is there."""
    members = {called(member) for text in stacks for member in split_stack(text)}
    for key in keys:
        if key.startswith("plugin.") and key.split(".")[1] not in members:
            raise unknown_name("plugin of the stacks", key.split(".")[1], members)


def called(member: str) -> str:
    """Return what an axis calls a member of a stack: its name, or the class of a file."""
    return split("plugins", member)[0].rpartition(".py:")[2]

"""A run is described by one frozen `Config`: from defaults, a TOML file and the command line.

Every field's help text and group stand beside it and are what ``splitlab run --help`` prints.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.binding import split_stack
from splitlab.core.contract.errors import ConfigError, unknown_name
from splitlab.core.contract.settings import ACCESS
from splitlab.core.runs.access import ACCESS_FILES, Access
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.machine import Machine
from splitlab.core.runs.option import GROUPS, check_ranges, flag_of, option
from splitlab.core.runs.training import Training

__all__ = ["GROUPS", "LABELS", "Config", "by_group", "differences"]

DEFAULT_DATASET = "fashion-mnist-mini"

_NOMINAL_HELP = (
    "when to stop: steps=500, epochs=10, bytes=50MB (real training bytes, both directions) "
    "or nominal=1.0 (nominal ratio times samples, in uncompressed epochs; "
    "the paper's rule is nominal=10)"
)


_DATA, _MODEL, _METHOD, _, _LINK, _END, _ = GROUPS

_AUGMENTATIONS = ("none", "paper")
_WITH_SETTINGS = ("timm:", "device:")

LABELS = ("name", "tags", "loggers")
"""Fields that only say what a run is called and where its numbers go besides: they decide none, and
may change at any time."""

_LABEL = re.compile(r"\w[\w.+=@ -]{0,79}")
_LABEL_RULE = "up to 80 letters, digits, spaces and . _ + - = @, a letter or digit first"


@dataclass(frozen=True)
class Config(Access, Training, Machine):
    """Everything that decides a run's numbers, and a few things that do not.

    An optional field that is None is decided when the run starts (see its help) and written to the
    run folder as it was decided.
    """

    plugins: tuple[str, ...] = option(
        (),
        "a compression plugin and its settings; a stack of several is joined by + or given by "
        "repeating the option, first one first; none at all trains uncompressed; a setting may "
        "change while the run goes on: ratio=0.4..0.1 is 0.4 in the first half of its steps, then "
        "0.1",
        flag="--plugin",
        metavar="NAME[:key=value,…][+NAME…]",
        kinds=("plugins", "stacks"),
        group=_METHOD,
    )
    probes: tuple[str, ...] = option(
        (),
        "a probe and its settings, which watches and changes nothing; repeat it for several",
        flag="--probe",
        metavar="NAME[:key=value,…]",
        kinds=("probes",),
        group=_METHOD,
    )
    transport: str = option(
        "inprocess",
        "the link between the peers and its settings (see `splitlab transports`)",
        metavar="NAME[:key=value,…]",
        kinds=("transports",),
        group=_LINK,
    )
    links: tuple[str, ...] = option(
        (),
        "make the link as slow as one of `splitlab links`, or as rate=20mbit,delay=40ms,jitter=5ms,"
        "loss=0.01, or put another wrapper around it; repeat it for several, innermost first",
        flag="--link",
        metavar="NAME[:key=value,…]|key=value,…",
        kinds=("links",),
        group=_LINK,
    )
    dataset: str | None = option(
        None,
        "data set by name (see `splitlab datasets`)",
        unset=f"{DEFAULT_DATASET}, which ships",
        metavar="NAME",
        kinds=("datasets",),
        group=_DATA,
    )
    data_dir: str | None = option(
        None,
        "local data: a folder or file of one of the forms that `splitlab datasets` lists, such as "
        "train/CLASS/ and test/CLASS/ images",
        metavar="DIR",
        group=_DATA,
    )
    label_column: str | None = option(
        None,
        "column of a table that holds the classes",
        unset="label, or another usual name",
        metavar="NAME",
        group=_DATA,
    )
    test_split: str | None = option(
        None,
        "part of the data to evaluate on",
        unset="test, or another usual name",
        metavar="NAME",
        group=_DATA,
    )
    test_share: float | None = option(
        None,
        "evaluate on this share of the training part, of every class alike, instead",
        group=_DATA,
    )
    augment: str = option(
        "none",
        "training augmentation: none; paper: RandAugment(2, 9), colour jitter, flip; or timm's "
        "crop, flip and policy, such as timm:rand-m9-mstd0.5-inc1 or timm:augmix-m3, which takes "
        "scale, ratio, hflip, vflip and color_jitter, too: timm:none,scale=0.3,hflip=0; or "
        "device:key=value,…, on the client's device: pad, scale, ratio, hflip, vflip, erase, as in "
        "device:pad=4,hflip=0.5",
        metavar="none|paper|timm:POLICY[,key=value…]|device:key=value,…",
        group=_DATA,
    )
    mixup: float = option(
        0.0,
        "mix every training batch with itself reversed, images and targets, by a share drawn from "
        "Beta(X, X); targets then cross the link as class probabilities",
        group=_DATA,
    )
    model: str = option(
        "vit-mini",
        "a model and its settings, FILE.py:function, or any model of timm's that can be cut (see "
        "`splitlab models`)",
        metavar="NAME",
        kinds=("models",),
        group=_MODEL,
    )
    image_size: int | None = option(
        None,
        "input height and width in pixels",
        unset="the model's own",
        group=_MODEL,
    )
    pretrained: bool = option(
        False,
        "start a timm model from its published weights (downloads them)",
        group=_MODEL,
    )
    weights: str = option(
        "default",
        "what to start from: a safetensors or .pth FILE, default (what ships with the model) or "
        "none (random numbers)",
        metavar="FILE|default|none",
        group=_MODEL,
    )
    cut: int | None = option(
        None,
        "what the client runs, 0 for the least (see `splitlab models`)",
        unset="the model's own",
        group=_MODEL,
    )
    budget: str = option("nominal=1.0", _NOMINAL_HELP, metavar="UNIT=AMOUNT", group=_END)
    evaluate: str = option(
        "both",
        "evaluate through the stack, without it, or both where a plugin acts in evaluation",
        choices=("both", "compressed", "uncompressed"),
        group=_END,
    )
    eval_every: int | None = option(
        None, "steps between evaluations", unset="one epoch", group=_END
    )
    eval_points: int | None = option(
        None,
        "evaluations at this many even shares of the budget, and one before the first step, "
        "instead of --eval-every",
        metavar="N",
        group=_END,
    )
    eval_samples: int | None = option(
        None,
        "evaluate on this many test samples, of every class alike and the same for every seed; the "
        "last evaluation is on all of them, as always",
        unset="all of them",
        metavar="N",
        group=_END,
    )
    patience: int | None = option(
        None,
        "end the run after this many evaluations in a row without a better accuracy",
        unset="the budget ends it",
        metavar="N",
        group=_END,
    )
    keep: str = option(
        "newest",
        "keep the two newest checkpoints, or that of the best accuracy besides",
        choices=("newest", "best"),
        group=_END,
    )
    checkpoint_every: int | None = option(
        None, "steps between checkpoints", unset="at every evaluation", group=_END
    )
    timeout: float = option(
        60.0,
        "time without progress after which a peer counts as gone",
        metavar="SECONDS",
        group=_LINK,
    )
    reconnect: float = option(
        300.0,
        "time that a lost connection may take to come back; 0 ends the run at once",
        metavar="SECONDS",
        group=_LINK,
    )
    output: str | None = option(
        None, "the run folder", unset="runs/STACK-TIME, or runs/NAME", metavar="DIR", group=_END
    )
    name: str | None = option(
        None,
        "what lists call the run, and its folder without --output",
        unset="its folder's name",
        metavar="NAME",
        group=_END,
    )
    tags: tuple[str, ...] = option(
        (),
        "a word to find the run by (see `splitlab runs`); repeat it for several",
        flag="--tag",
        metavar="TAG",
        group=_END,
    )
    loggers: tuple[str, ...] = option(
        (),
        "a logger and its settings, which is sent the run's numbers (see `splitlab loggers`); "
        "repeat it for several",
        flag="--log",
        metavar="NAME[:key=value,…]",
        kinds=("loggers",),
        group=_END,
    )

    def __post_init__(self) -> None:
        self.check_training()
        self.check_machine()
        ranges = (
            ("test_share", 0.001, 0.999),
            ("mixup", 0.0, 1e6),
            ("image_size", 1, 4096),
            ("cut", 0, 10_000),
            ("eval_every", 1, 2**63 - 1),
            ("eval_points", 1, 1_000_000),
            ("eval_samples", 1, 2**63 - 1),
            ("patience", 1, 2**63 - 1),
            ("checkpoint_every", 1, 2**63 - 1),
            ("timeout", 0.1, 1e6),
            ("reconnect", 0.0, 1e6),
        )
        check_ranges(self, ranges)
        for spec in dataclasses.fields(self):
            choices = spec.metadata.get("choices")
            value = getattr(self, spec.name)
            if choices and value not in choices:
                raise unknown_name(f"value of {flag(spec.name)}", value, choices)
        if self.augment not in _AUGMENTATIONS and not self.augment.startswith(_WITH_SETTINGS):
            known = (*_AUGMENTATIONS, "timm:POLICY", "device:key=value,…")
            raise unknown_name("value of --augment", self.augment, known)
        if self.pretrained and self.weights not in ("default", "none"):
            raise ConfigError(
                f"--pretrained and --weights {self.weights} exclude each other; keep one of them"
            )
        if self.test_share is not None and self.test_split:
            raise ConfigError("--test-share and --test-split exclude each other; keep one of them")
        if self.eval_points is not None:
            self._check_points(self.eval_points)
        if self.compile == "reduce-overhead" and self.accumulate > 1:
            raise ConfigError(
                "--compile reduce-overhead overwrites the gradients that --accumulate "
                f"{self.accumulate} adds up; choose --compile default, or leave one of them out"
            )
        Budget.parse(self.budget)
        named = () if self.name is None else (self.name,)
        for given, label in [*(("--name", n) for n in named), *(("--tag", t) for t in self.tags)]:
            if not _LABEL.fullmatch(label):
                raise ConfigError(f"{given} {label!r} is not allowed; {_LABEL_RULE}")
        for name in ACCESS_FILES:
            if getattr(self, name) == "":  # such as of a variable of the shell that is not set
                raise ConfigError(f"{flag(name)} '' names no file; name one, or leave it out")
        # The shell leaves --output=~/x as it is.
        for name in ("data_dir", "weights", "output", *ACCESS_FILES):
            if value := getattr(self, name):
                object.__setattr__(self, name, os.path.expanduser(value))

    def _check_points(self, points: int) -> None:
        if self.eval_every is not None:
            raise ConfigError("--eval-every and --eval-points exclude each other; keep one of them")
        # The first one of a trained model is always the best so far.
        if self.patience is not None and self.patience >= points:
            raise ConfigError(
                f"--patience {self.patience} ends no run of {points} evaluations; give less, or "
                "more --eval-points"
            )

    @property
    def link(self) -> str:
        """The transport and the wrappers around it, for display."""
        return " + ".join((self.transport, *self.links))

    def placed(self) -> Config:
        """Return it with absolute paths of all files and folders that are there."""
        data, weights = Path(self.data_dir or ""), Path(self.weights)
        return dataclasses.replace(
            self,
            model=_placed(self.model),
            transport=_placed(self.transport),
            plugins=tuple(_placed(each) for text in self.plugins for each in split_stack(text)),
            probes=tuple(map(_placed, self.probes)),
            links=tuple(map(_placed, self.links)),
            loggers=tuple(map(_placed, self.loggers)),
            data_dir=str(data.absolute()) if self.data_dir and data.exists() else self.data_dir,
            weights=str(weights.absolute()) if weights.is_file() else self.weights,
            **{name: os.path.abspath(f) for name in ACCESS_FILES if (f := getattr(self, name))},
        )

    @classmethod
    def from_mapping(cls, values: typing.Mapping[str, Any], where: str = "") -> Config:
        """Build from names and values, such as a parsed TOML file.

        Raises:
            ConfigError: an unknown key (names the nearest known one) or a value of the wrong type.
        """
        prefix = f"{where}: " if where else ""
        hints = _hints()
        checked = {}
        for key, value in values.items():
            if key not in hints:
                raise ConfigError(f"{prefix}{unknown_name('key', key, hints)}")
            checked[key] = _coerce(hints[key], value, f"{prefix}{key}")
        return cls(**checked)

    @classmethod
    def from_toml(cls, path: str | Path) -> Config:
        """Read a file such as ``config.toml`` of a run folder."""
        return cls.from_mapping(read_toml(path), str(path))

    def to_toml(self) -> str:
        """Return the text of a file that `from_toml` reads back to an equal object."""
        lines = []
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if value is not None:
                value = list(value) if isinstance(value, tuple) else value
                # JSON's strings, numbers, booleans and flat lists are TOML's too, but for DEL.
                text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
                lines.append(f"{spec.name} = {text}\n")
        return "".join(lines)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the parsed file; `ConfigError` if it is missing or not TOML."""
    try:
        return tomllib.loads(Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML: {error}") from None


def by_group() -> list[dataclasses.Field[Any]]:
    """Return the fields of `Config` in the order in which they are explained: by their groups."""
    return sorted(
        dataclasses.fields(Config),
        key=lambda spec: (GROUPS.index(spec.metadata["group"]), spec.name in ACCESS),
    )


def flag(name: str) -> str:
    """Return the command-line option of a field: ``batch_size`` → ``--batch-size``."""
    return flag_of(Config, name)


def differences(now: Config, was: Config, ignore: typing.Collection[str] = ()) -> list[str]:
    """Return every option in which two configurations differ, with both values."""
    return [
        f"{flag(spec.name)} was {_shown(old)} and is now {_shown(new)}"
        for spec in by_group()
        if spec.name not in ignore
        and (old := getattr(was, spec.name)) != (new := getattr(now, spec.name))
    ]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value) or "nothing"
    return "not given" if value is None else str(value)


def _placed(text: str) -> str:
    """Return ``FILE.py:Name…`` with the absolute path of the file, and any other text as it is."""
    head, separator, rest = text.partition(".py:")
    path = Path(head + ".py")
    placed = f"{path.absolute()}:{rest}"
    # A folder's name may look like the end of a file's.
    return placed if separator and path.is_file() and placed.count(".py:") == 1 else text


@functools.cache
def _hints() -> dict[str, Any]:
    return typing.get_type_hints(Config)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) is not tuple else ()
    wanted = next((option for option in options if option is not type(None)), hint)
    if value is None and type(None) in options:
        return None
    if typing.get_origin(wanted) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{where} = {value!r} is not allowed; it takes a list of strings")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        takes = "true | false" if wanted is bool else wanted.__name__
        raise ConfigError(f"{where} = {value!r} is not allowed; it takes {takes}")
    return value

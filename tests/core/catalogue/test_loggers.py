"""Loggers are made with their settings, or refused with what they lack."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core import ConfigError, Logger, PluginError
from splitlab.core.catalogue.loggers import lacks, load_loggers


class Works(Logger):
    """A logger with a setting."""

    def __init__(self, *, rows: int = 3) -> None:
        self.rows = rows


class Lacks(Logger):
    """A logger whose library is not there."""

    needs = "nothing_like_it"
    install = "splitlab[it]"


class Stutters(Logger):
    """A logger that raises when it is asked."""

    def unavailable(self) -> str | None:
        raise OSError("no answer")


class Half:
    """Not quite a logger."""

    def unavailable(self) -> str | None: ...
    def begin(self, run: object) -> None: ...


@pytest.fixture(autouse=True)
def outside(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    """Let a package bring all of these."""
    for made in (Works, Lacks, Stutters, Half):
        monkeypatch.setattr(f"splitlab.core.testing.{made.__name__}", made, raising=False)
    home = "splitlab.core.testing"
    install(
        "splitlab.loggers",
        works=f"{home}:Works",
        lacks=f"{home}:Lacks",
        stutters=f"{home}:Stutters",
        half=f"{home}:Half",
    )


def test_each_is_made_with_its_settings_in_the_order_given() -> None:
    made = load_loggers(["works:rows=7", "none", "works"])
    assert list(made) == ["works:rows=7", "none", "works"]
    assert [vars(logger) for logger in made.values()] == [{"rows": 7}, {}, {"rows": 3}]
    assert load_loggers([]) == {}


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("lacks", ConfigError, "'lacks' cannot be used here: nothing_like_it is not installed"),
        ("lacks", ConfigError, "pip install 'splitlab[it]'"),
        ("work", ConfigError, "unknown logger 'work' (did you mean 'works'?)"),
        ("works:row=1", ConfigError, "logger 'works': unknown parameter 'row'"),
        ("time", ConfigError, "'time' is a probe, not a logger; --probe time takes it"),
        ("half", PluginError, "logger 'half' has no method log; let its class be a subclass of"),
        ("stutters", PluginError, "logger 'stutters' cannot say whether it works here: OSError"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        load_loggers(["works", text])
    assert words.split(": ")[-1] in (lacks(text) or "")


def test_one_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="--log works is given twice"):
        load_loggers(["works", "works"])

"""Loggers as objects that work on this machine."""

from __future__ import annotations

from collections.abc import Iterable

from splitlab.core.catalogue.binding import bind
from splitlab.core.contract.errors import FAULTS, ConfigError, PluginError, SplitlabError, reason
from splitlab.core.contract.logger import Logger

__all__ = ["lacks", "load_loggers"]

_METHODS = ("unavailable", "begin", "log", "end")


def load_loggers(texts: Iterable[str]) -> dict[str, Logger]:
    """Return new loggers by what the user wrote: ``NAME[:key=value,…]`` or ``FILE.py:Class…``.

    Raises:
        ConfigError: no such name or setting, one twice, or one that cannot work on this machine:
            says what is missing.
        PluginError: it cannot be imported or built, or is no logger.
    """
    loggers: dict[str, Logger] = {}
    for text in texts:
        if text in loggers:
            raise ConfigError(f"--log {text} is given twice; give it once")
        loggers[text], missing = _built(text)
        if missing:
            raise ConfigError(f"logger {text!r} cannot be used here: {missing}")
    return loggers


def lacks(text: str) -> str | None:
    """Return why this logger cannot be used on this machine, or None if it can."""
    try:
        return _built(text)[1]
    except SplitlabError as error:
        return str(error)


def _built(text: str) -> tuple[Logger, str | None]:
    """Return the logger, and what it lacks here."""
    bound = bind("loggers", text)
    logger: Logger = bound.build()
    forgotten = [name for name in _METHODS if not callable(getattr(logger, name, None))]
    if forgotten:
        raise PluginError(
            f"logger {bound.label!r} has no method {forgotten[0]}; let its class be a subclass of "
            "splitlab.core.Logger"
        )
    try:
        return logger, logger.unavailable()
    except SplitlabError:
        raise
    except FAULTS as error:
        raise PluginError(
            f"logger {bound.label!r} cannot say whether it works here: {reason(error, logger)}"
        ) from error

"""Settings of what users name with ``NAME:key=value,…``: read from a constructor's signature.

Plugins, transports, models, probes and link wrappers all take their settings this way: the types
of the parameters decide what a text may say, and an unknown key or a wrong value is refused with
what is allowed.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from splitlab.core.contract.errors import (
    FAULTS,
    ConfigError,
    PluginError,
    SplitlabError,
    reason,
)

__all__ = ["ACCESS", "Bound", "Parameter", "Piecewise", "parameters", "shown"]

ACCESS = ("tls_cert", "tls_key", "tls_ca", "secret_file", "insecure")
"""Parameters of a transport that say who may connect. Options of the same names decide them, which
every network transport may take: files' names as ``str | None``, and ``insecure`` as ``bool``."""


_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Piecewise:
    """The values that a setting has one after another, in equal shares of a run's steps."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return _THEN.join(map(shown, self.values))


_THEN = ".."
"""Between the values of `Piecewise`, as users type them."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor, read from its signature."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is _REQUIRED

    @property
    def kind(self) -> str:
        """The type as users read it: ``float``, ``sqrt | fifth``, ``int | none``."""
        return _describe(self.annotation)

    @property
    def default_text(self) -> str:
        """The default as users would type it."""
        return "(needed)" if self.required else shown(self.default)

    def parse(self, owner: str, text: str, piecewise: bool = False) -> Any:
        """Turn the text into a value of the annotated type, or raise `ConfigError`.

        Args:
            owner: whose parameter it is, for the message: ``"plugin 'adc'"``.
            text: as the user wrote it.
            piecewise: whether it may be several values, joined by "..": `Piecewise`.
        """
        try:
            return self._parsed(text, piecewise)
        except ValueError:
            default = "" if self.required else f" (default {self.default_text})"
            raise ConfigError(
                f"{owner}: {self.name}={text} is not allowed; "
                f"{self.name} takes {self.kind.replace('bool', 'true | false')}{default}"
            ) from None

    def _parsed(self, text: str, piecewise: bool) -> Any:
        try:
            return _parse(self.annotation, text)
        except ValueError:
            if not piecewise or _THEN not in text:
                raise
        return Piecewise(tuple(_parse(self.annotation, part) for part in text.split(_THEN)))


def parameters(factory: Any) -> dict[str, Parameter]:
    """Return the parameters of a class's constructor, or of a function, with types and defaults.

    Raises:
        PluginError: an annotation names what its module does not define.
    """
    takes = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = typing.get_type_hints(takes)
    except FAULTS as error:
        code = getattr(takes, "__code__", None)
        place = f" ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else ""
        raise PluginError(
            f"the types of the parameters of {factory.__name__} cannot be read: "
            f"{type(error).__name__}: {error}{place}"
        ) from error
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        found[name] = Parameter(name, hints.get(name, str), parameter.default)
    return found


def _parse(annotation: Any, text: str) -> Any:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        for choice in typing.get_args(annotation):
            if str(choice) == text:
                return choice
    elif origin in (typing.Union, types.UnionType):
        # "none" is the value none, also where any text is allowed.
        members = typing.get_args(annotation)
        for member in sorted(members, key=lambda member: member is not type(None)):
            try:
                return _parse(member, text)
            except ValueError:
                continue
    elif annotation is type(None):
        if text.lower() == "none":
            return None
    elif annotation is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
    elif annotation in (int, float, str):
        return annotation(text)
    raise ValueError(text)


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(_describe, typing.get_args(annotation)))
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def shown(value: Any) -> str:
    """Return a value as users would type it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Bound:
    """A class or function with all its parameters, ready to be built once for every peer.

    Attributes:
        label: what messages and tables call it: its name, or the class of a file.
        identity: what both peers compare: the name, or class and content hash of a file.
        factory: the class.
        params: every parameter of the constructor, defaults filled in.
        given: the parameters that the user set, for display.
        reconstruction: whether the method was rebuilt from an abstract; tables say so.
        kind: what it is, for messages: ``"plugin"``, ``"transport"``, ``"model"`` and so on.
    """

    label: str
    identity: str
    factory: Any
    params: Mapping[str, Any]
    given: Mapping[str, Any]
    reconstruction: bool = False
    kind: str = "plugin"

    @property
    def title(self) -> str:
        """What tables call it: the label, with ``-recon`` behind a reconstruction's."""
        return f"{self.label}-recon" if self.reconstruction else self.label

    @property
    def pieces(self) -> int:
        """How many values its settings have one after another while a run goes on; 1: they stay."""
        piecewise = (value for value in self.params.values() if isinstance(value, Piecewise))
        return max((len(value.values) for value in piecewise), default=1)

    def piece(self, i: int) -> Bound:
        """Return it as it is in one of its `pieces`, the first one being 0."""
        params, given = (
            {key: v.values[i] if isinstance(v, Piecewise) else v for key, v in which.items()}
            for which in (self.params, self.given)
        )
        return replace(self, params=params, given=given)

    def check_whole(self) -> None:
        """Refuse settings that change while a run goes on."""
        for key, value in self.params.items():
            if isinstance(value, Piecewise):
                raise ConfigError(
                    f"{self.kind} {self.label!r}: {key}={value} changes while a run goes on; "
                    f"here it needs one value, such as {key}={shown(value.values[0])}"
                )

    def build(self, **more: Any) -> Any:
        """Return a new instance; ``more`` is what users do not set, such as the classes.

        Raises:
            ConfigError: a setting is refused, or is `Piecewise`, which `piece` makes one value.
            PluginError: it cannot be built.
        """
        self.check_whole()
        try:
            return self.factory(**self.params, **more)
        except SplitlabError as error:
            owner = f"{self.kind} {self.label!r}"
            if str(error).startswith(owner):
                raise
            raise type(error)(f"{owner}: {error}") from error
        except FAULTS as error:
            raise PluginError(
                f"{self.kind} {self.label!r} cannot be built: {reason(error, self.factory)}"
            ) from error

    def __str__(self) -> str:
        given = ",".join(f"{key}={shown(value)}" for key, value in self.given.items())
        return f"{self.title}:{given}" if given else self.title

    def full(self, name: str = "") -> str:
        """Return it with every parameter, under its title or another name."""
        every = ",".join(f"{key}={shown(value)}" for key, value in self.params.items())
        return ":".join(filter(None, (name or self.title, every)))

    def agreement(self) -> str:
        """Return what both peers must have in common, in one line."""
        return self.full(self.identity)

"""The members of a stack as tables see them: what each is called, and all its parameters.

A study keeps them with its rows: who looks at it later imports no plugin.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitlab.core.catalogue.binding import bind_stack, split_stack
from splitlab.core.catalogue.loading import split
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.errors import SplitlabError
from splitlab.core.contract.settings import shown

__all__ = ["Member", "differing", "members_of"]


@dataclass(frozen=True)
class Member:
    """One member of a stack as the user wrote it: a plugin, or the name of a stack.

    Attributes:
        label: what tables call it.
        identity: of its plugins with all their parameters.
        params: every parameter; of a named stack, those that reach the first plugin with it. Each
            is a text, a finite number, a truth value or None.
        given: the parameters that the user set.
    """

    label: str
    identity: str
    params: Mapping[str, Any]
    given: tuple[str, ...]

    def title(self, more: Iterable[str], without: Iterable[str] = ()) -> str:
        """Return its label with what the user set and these parameters, but for those."""
        keys = [key for key in (*self.given, *more) if key not in {*without}]
        told = ",".join(f"{key}={shown(self.params[key])}" for key in dict.fromkeys(keys))
        return f"{self.label}:{told}" if told else self.label

    @classmethod
    def of_record(cls, values: Mapping[str, Any]) -> Member:
        """Read what `dataclasses.asdict` returned, from JSON.

        Raises:
            TypeError, ValueError, LookupError, AttributeError: it is damaged.
        """
        params, given = dict(values["params"]), tuple(values["given"])
        texts = (values["label"], values["identity"], *params)
        whole = all(isinstance(text, str) for text in texts)
        if not whole or any(_plain(value) is not value for value in params.values()):
            raise ValueError(f"a member of a stack is {dict(values)}")
        _ = [params[key] for key in given]
        return cls(values["label"], values["identity"], params, given)


def members_of(texts: Iterable[str]) -> tuple[Member, ...]:
    """Return the members of a stack as the user wrote it; imports its plugins."""
    return tuple(_member(member) for text in texts for member in split_stack(text))


def _member(text: str) -> Member:
    head, given = split("plugins", text)
    try:
        bound = bind_stack([text])
    except SplitlabError:  # a file that is gone, of a run that was: its text is what is left
        return Member(head, text, dict(given), tuple(given))
    rebuilt = any(plugin.reconstruction for plugin in bound)
    label = bound[0].title
    params: dict[str, Any] = {}
    for plugin in reversed(bound):
        params |= {key: _plain(value) for key, value in plugin.params.items()}
    if (stack := entries("stacks").get(head)) is not None and "plugins" in stack.facts:
        label = f"{head}-recon" if rebuilt or stack.facts.get("reconstruction") else head
    identity = " + ".join(plugin.agreement() for plugin in bound)
    return Member(label, identity, params, tuple(given))


def _plain(value: Any) -> Any:
    """Return a value as JSON can keep it."""
    plain = value is None or isinstance(value, str | bool | int)
    finite = isinstance(value, float) and math.isfinite(value)
    return value if plain or finite else shown(value)


def differing(stacks: Sequence[tuple[Member, ...]]) -> list[tuple[str, ...]]:
    """Return the parameters in which stacks of the same members differ, for every member."""
    found = []
    for members in zip(*stacks, strict=True):
        keys = dict.fromkeys(key for member in members for key in member.params)
        found.append(
            tuple(
                key
                for key in keys
                if len({shown(member.params.get(key)) for member in members}) > 1
            )
        )
    return found

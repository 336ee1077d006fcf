"""The state table of a session: who may say what when, and what comes of it.

Both sides keep the state and take every message through the same table, `TABLE`; what it does not
hold is refused. Numbers are not in it: which step is due is `due`'s business.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from splitlab.core.contract.errors import ProtocolError
from splitlab.core.contract.link import PeerRole
from splitlab.core.contract.message import Kind, Message
from splitlab.core.session.protocol import BYE

__all__ = [
    "SPEAKERS",
    "TABLE",
    "State",
    "Steps",
    "Word",
    "after",
    "drawn",
    "refused",
    "word_of",
]


class State(enum.StrEnum):
    """Where a session stands."""

    NEW = "new"
    """Nothing is said."""
    GREETED = "greeted"
    READY = "ready"
    """Between steps."""
    TRAINING = "training"
    HALF_TRAINED = "half trained"
    """A step that takes more than one exchange."""
    ASKED = "asked"
    HALF_ASKED = "half asked"
    COMPARING = "comparing"
    SAVING = "saving"
    PARTING = "parting"
    PARTED = "parted"
    OVER = "over"
    FAILED = "failed"


class Word(enum.StrEnum):
    """What a message says, whoever says it."""

    HELLO = "HELLO"
    TRAIN = "ACTIVATION of a step"
    QUERY = "ACTIVATION of an evaluation"
    COMPARE = "ACTIVATION that asks for a gradient"
    SAVE = "CONTROL save"
    FINISH = "CONTROL finish"
    BYE = "CONTROL bye"
    MORE = "what goes on with a step"
    TRAINED = "GRADIENT of a step"
    PREDICTED = "PREDICTION"
    COMPARED = "GRADIENT that was asked for"
    SAVED = "CONTROL saved"
    FINISHED = "CONTROL finished"
    ERROR = "ERROR"
    UNKNOWN = "what nobody knows"


_CLIENT: Final = (
    State.NEW,
    State.READY,
    State.HALF_TRAINED,
    State.HALF_ASKED,
    State.PARTED,
    State.OVER,
)

TABLE: Final[Mapping[State, Mapping[Word, State]]] = MappingProxyType(
    {
        State.NEW: {Word.HELLO: State.GREETED},
        State.GREETED: {Word.HELLO: State.READY},
        State.READY: {
            Word.TRAIN: State.TRAINING,
            Word.QUERY: State.ASKED,
            Word.COMPARE: State.COMPARING,
            Word.SAVE: State.SAVING,
            Word.FINISH: State.PARTING,
        },
        State.TRAINING: {Word.TRAINED: State.READY, Word.MORE: State.HALF_TRAINED},
        State.HALF_TRAINED: {Word.MORE: State.TRAINING},
        State.ASKED: {Word.PREDICTED: State.READY, Word.MORE: State.HALF_ASKED},
        State.HALF_ASKED: {Word.MORE: State.ASKED},
        State.COMPARING: {Word.COMPARED: State.READY},
        State.SAVING: {Word.SAVED: State.READY},
        State.PARTING: {Word.FINISHED: State.PARTED},
        State.PARTED: {Word.BYE: State.OVER},
        State.OVER: {},
        State.FAILED: {},
    }
)
"""What the peer whose turn it is may say in a state, and the state behind it.

An ERROR may be said by either peer in every state but the last, and ends the session.
"""

SPEAKERS: Final[Mapping[State, PeerRole]] = MappingProxyType(
    {state: "client" if state in _CLIENT else "server" for state in State}
)
"""Whose turn it is; nobody's, where nothing may be said."""

_REQUESTS = {"save": Word.SAVE, "finish": Word.FINISH, BYE: Word.BYE}
_ANSWERS = {"saved": Word.SAVED, "finished": Word.FINISHED}
_META: Final[Mapping[Word, frozenset[str]]] = {
    Word.HELLO: frozenset(
        {
            *("protocol", "agreement", "run", "step", "marks", "schedule"),
            *("session", "timeout", "waits", "heard", "attempt"),
        }
    ),
    Word.SAVE: frozenset({"do", "keep"}),
    Word.FINISH: frozenset({"do"}),
    Word.BYE: frozenset({"do"}),
    Word.SAVED: frozenset({"did"}),
    Word.FINISHED: frozenset({"did"}),
}
"""What messages without tensors may say; those with some are the engine's to look at."""


def word_of(message: Message, speaker: PeerRole) -> Word:
    """Return what a message says; `Word.UNKNOWN` of what nobody says."""
    kind = message.kind
    if kind is Kind.ERROR:
        return Word.ERROR
    if kind is Kind.HELLO or kind is Kind.CONTROL:
        return _bare(message, speaker)
    if speaker == "client":
        if kind is not Kind.ACTIVATION:
            return Word.MORE
        if message.training:
            return Word.TRAIN
        return Word.COMPARE if "gradient" in message.meta else Word.QUERY
    if kind is Kind.ACTIVATION:
        return Word.MORE
    if kind is Kind.PREDICTION:
        return Word.UNKNOWN if message.training else Word.PREDICTED
    return Word.TRAINED if message.training else Word.COMPARED


def _bare(message: Message, speaker: PeerRole) -> Word:
    """Return what a message without tensors says."""
    word: Word | None = Word.HELLO
    if message.kind is Kind.CONTROL:
        key, words = ("do", _REQUESTS) if speaker == "client" else ("did", _ANSWERS)
        said = message.meta.get(key)
        word = words.get(said) if isinstance(said, str) else None
    if word is None or len(message) or message.notes or not message.meta.keys() <= _META[word]:
        return Word.UNKNOWN
    return word if message.training and message.stacked else Word.UNKNOWN


def after(state: State, word: Word, speaker: PeerRole) -> State | None:
    """Return the state behind a word; None where it may not be said."""
    if word is Word.ERROR:
        return None if state is State.FAILED else State.FAILED
    return TABLE[state].get(word) if SPEAKERS[state] == speaker else None


class Steps:
    """Which step, and which batch of an evaluation, is due; it follows from those before.

    Args:
        trained: steps that are done when the session begins.

    Attributes:
        trained: steps of the whole run.
    """

    def __init__(self, trained: int = 0) -> None:
        self.trained = trained
        self._batch = 0

    def due(self, word: Word) -> tuple[int, ...]:
        """Return the numbers that a message of the client may have."""
        if word is Word.QUERY:  # the next one, or the first of another evaluation
            return (0, self._batch) if self._batch else (0,)
        return (self.trained,)

    def done(self, word: Word, number: int) -> None:
        """Take note that the server gave this answer to this number."""
        if word is Word.TRAINED:
            self.trained += 1
        elif word is Word.PREDICTED:
            self._batch = number + 1


def _allowed(state: State, speaker: PeerRole) -> str:
    """Return what a peer may say, for an error message."""
    words = TABLE[state] if SPEAKERS[state] == speaker else {}
    return ", ".join(words) or "nothing but ERROR"


def refused(who: str, message: Message, state: State, speaker: PeerRole) -> ProtocolError:
    """Return the error of a message that may not be said."""
    if state is State.NEW and speaker == "client":
        return ProtocolError(f"{who} began with {message.kind.name}, not with HELLO")
    if state in (State.PARTED, State.OVER):
        return ProtocolError(f"{who} sent {message!r} after its goodbye")
    other = "server" if speaker == "client" else "client"
    return ProtocolError(
        f"{who} sent what a {other} does not take: {message!r}; allowed while the session is "
        f"{state}: {_allowed(state, speaker)}"
    )


def drawn() -> list[str]:
    """Return the table as lines of Markdown, as docs/design.md has it."""
    lines = ["| state | speaks | says | then |", "|---|---|---|---|"]
    for state, words in TABLE.items():
        for word, then in words.items():
            lines.append(f"| {state} | {SPEAKERS[state]} | {word} | {then} |")
    return lines

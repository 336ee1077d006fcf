"""The state table: every message in every state, at both sides, and what the docs say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core import Kind, LinkError, Message, ProtocolError, Role
from splitlab.core.session.client import ClientSession
from splitlab.core.session.protocol import PROTOCOL
from splitlab.core.session.states import (
    SPEAKERS,
    TABLE,
    State,
    Steps,
    Word,
    after,
    drawn,
    word_of,
)
from splitlab.core.wire.ledger import Ledger
from splitlab.transports.inprocess import InProcess


def said(word: Word, speaker: str, hello: dict[str, Any]) -> Message:
    """Return a message that says this, of step 0 or batch 0."""
    payload = torch.zeros(3)
    match word:
        case Word.HELLO:
            meta = hello
            if speaker == "server":
                meta = {"protocol": PROTOCOL, "timeout": 60.0, "waits": 300.0}
            return Message(Kind.HELLO, meta=meta)
        case Word.TRAIN | Word.QUERY | Word.COMPARE:
            made = Message(Kind.ACTIVATION, training=word is Word.TRAIN)
            if word is Word.COMPARE:
                made.meta["gradient"] = True
        case Word.TRAINED | Word.COMPARED:
            made = Message(Kind.GRADIENT, training=word is Word.TRAINED, meta={"loss": 1.0})
        case Word.PREDICTED:
            made = Message(Kind.PREDICTION, training=False, meta={"loss_sum": 1.0})
        case Word.MORE:
            made = Message(Kind.ACTIVATION if speaker == "server" else Kind.GRADIENT)
        case Word.SAVE | Word.FINISH | Word.BYE:
            return Message(Kind.CONTROL, meta={"do": word.split()[1]})
        case Word.SAVED | Word.FINISHED:
            return Message(Kind.CONTROL, meta={"did": word.split()[1]})
        case Word.ERROR:
            return Message(Kind.ERROR, meta={"error": "no"})
        case _:
            return Message(Kind.CONTROL, meta={"do": "dance"})
    made.put("x", payload, Role.PAYLOAD)
    return made


def spoken(word: Word, speaker: str) -> Word:
    """Return what this message is when the other peer says it."""
    theirs = {Word.TRAIN, Word.QUERY, Word.COMPARE, Word.SAVE, Word.FINISH, Word.BYE}
    ours = {Word.TRAINED, Word.PREDICTED, Word.COMPARED, Word.SAVED, Word.FINISHED}
    if word in (ours if speaker == "client" else theirs):
        bare = (Word.SAVE, Word.FINISH, Word.SAVED, Word.FINISHED, Word.BYE)
        data = word not in bare
        return Word.MORE if data else Word.UNKNOWN
    return word


@pytest.mark.parametrize("speaker", ["client", "server"])
@pytest.mark.parametrize("word", Word)
def test_a_message_says_one_word(talk: Any, word: Word, speaker: Any) -> None:
    assert word_of(said(word, speaker, talk.HELLO), speaker) is spoken(word, speaker)


def test_what_has_tensors_notes_flags_or_words_too_many_says_nothing(talk: Any) -> None:
    for word, speaker in ((Word.HELLO, "client"), (Word.SAVE, "client"), (Word.SAVED, "server")):
        for change in ("tensor", "note", "training", "stacked", "meta"):
            message = said(word, speaker, talk.HELLO)
            if change == "tensor":
                message.put("x", torch.zeros(1), Role.SIDE)
            elif change == "note":
                message.push("adc", 1)
            elif change == "meta":
                message.meta["loss"] = 1.0
            else:
                setattr(message, change, False)
            assert word_of(message, speaker) is Word.UNKNOWN  # type: ignore[arg-type]


def test_every_state_can_be_reached_and_says_whose_turn_it_is() -> None:
    assert TABLE.keys() == SPEAKERS.keys() == {*State}
    reached, new = {State.NEW, State.FAILED}, True
    while new:
        found = {then for state in reached for then in TABLE[state].values()}
        new = not found <= reached
        reached |= found
    assert reached == {*State}
    for state, words in TABLE.items():
        assert all(SPEAKERS[then] != SPEAKERS[state] for then in words.values() if TABLE[then])
        assert Word.UNKNOWN not in words


class Half:
    """A server whose steps and evaluations take as many exchanges as it is told."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.more = False
        self.training = True

    def settle(self) -> None:
        pass

    def handle(self, message: Message) -> Message:
        if message.kind is Kind.ACTIVATION:
            self.training = message.training
        word = Word.TRAINED if self.training else Word.PREDICTED
        if "gradient" in message.meta:
            word = Word.COMPARED
        return said(Word.MORE if self.more else word, "server", {})


WAY: dict[State, list[Word]] = {
    State.NEW: [],
    State.READY: [Word.HELLO],
    State.HALF_TRAINED: [Word.HELLO, Word.TRAIN],
    State.HALF_ASKED: [Word.HELLO, Word.QUERY],
    State.PARTED: [Word.HELLO, Word.FINISH],
    State.OVER: [Word.HELLO, Word.FINISH, Word.BYE],
    State.FAILED: [Word.UNKNOWN],
}
"""How a client brings a session to each state in which it is its turn, or nobody's."""


@pytest.mark.parametrize("word", Word)
@pytest.mark.parametrize("state", WAY)
def test_a_server_takes_what_the_table_holds_and_nothing_else(
    talk: Any, state: State, word: Word
) -> None:
    server = Half()
    table = talk.Table(server=server)
    for step in WAY[state]:
        server.more = state in (State.HALF_TRAINED, State.HALF_ASKED) and step is not Word.HELLO
        table.client_end.send(said(step, "client", talk.HELLO), 1.0)
        if step is Word.BYE:
            assert not table.server.turn()
        else:
            table.client_end.receive(1.0)
    assert table.server._state is state
    server.more = False
    heard = spoken(word, "client")
    table.client_end.send(said(word, "client", talk.HELLO), 1.0)
    if state is State.PARTED and word is Word.BYE:
        assert not table.server.turn()  # nobody waits for an answer
        assert table.server._state is State.OVER
        return
    answer = table.client_end.receive(1.0)
    then = after(state, heard, "client")
    if then is None or heard is Word.ERROR:
        assert answer.kind is Kind.ERROR
        assert table.server._state is State.FAILED
        assert isinstance(table.told[-1], LinkError)
        assert type(table.told[-1]) is (LinkError if then else ProtocolError)
        assert table.saved == []
        return
    assert answer.kind is not Kind.ERROR
    assert after(then, word_of(answer, "server"), "server") is table.server._state


ASKED = {
    Word.HELLO: State.GREETED,
    Word.TRAIN: State.TRAINING,
    Word.QUERY: State.ASKED,
    Word.COMPARE: State.COMPARING,
    Word.SAVE: State.SAVING,
    Word.FINISH: State.PARTING,
}


def answered_with(answers: list[Message]) -> ClientSession:
    """Return a client whose server says these, one after another, whatever it is asked."""

    def serve() -> None:
        server_end.receive(1.0)
        server_end.send(answers.pop(0), 1.0)

    client_end, server_end = InProcess().pair(serve)
    return ClientSession(client_end, Ledger(), 1.0)


@pytest.mark.parametrize("word", Word)
@pytest.mark.parametrize("asked", ASKED)
def test_a_client_takes_what_the_table_holds_and_nothing_else(
    talk: Any, asked: Word, word: Word
) -> None:
    """By the same messages, a client that may not ask does not."""
    to_say: list[Message] = []
    client = answered_with(to_say)
    if asked is not Word.HELLO:
        with pytest.raises(ProtocolError, match="this client began with"):
            client.exchange(said(asked, "client", talk.HELLO))
        to_say.append(said(Word.HELLO, "server", {}))
        client.exchange(said(Word.HELLO, "client", talk.HELLO))
    heard = spoken(word, "server")
    then = after(ASKED[asked], heard, "server")
    to_say.append(said(word, "server", {}))
    question = said(asked, "client", talk.HELLO)
    if then is None or heard is Word.ERROR:
        words = "the server ended the run: no" if then else "sent what a client does not take"
        with pytest.raises(ProtocolError, match=words):
            client.exchange(question)
        with pytest.raises(ProtocolError, match=r"this client .* is failed"):
            client.exchange(said(Word.SAVE, "client", {}))
        return
    assert client.exchange(question).kind is not Kind.ERROR
    assert client._state is then


def test_an_answer_to_another_step_is_refused(talk: Any) -> None:
    for asked, word in ((Word.TRAIN, Word.TRAINED), (Word.SAVE, Word.SAVED)):
        answers = [said(Word.HELLO, "server", {}), said(word, "server", {})]
        answers[1].step = 1
        client = answered_with(answers)
        client.exchange(said(Word.HELLO, "client", talk.HELLO))
        with pytest.raises(ProtocolError, match=r"sent what a client does not take: .* step=1"):
            client.exchange(said(asked, "client", {}))


def test_which_numbers_are_due() -> None:
    steps = Steps(3)
    for word in (Word.TRAIN, Word.COMPARE, Word.SAVE, Word.FINISH, Word.MORE):
        assert steps.due(word) == (3,)
    assert steps.due(Word.QUERY) == (0,)
    steps.done(Word.TRAINED, 3)
    steps.done(Word.COMPARED, 4)
    steps.done(Word.SAVED, 4)
    assert steps.due(Word.TRAIN) == (4,)
    for number in (0, 1, 0):
        steps.done(Word.PREDICTED, number)
        assert steps.due(Word.QUERY) == (0, number + 1)


def test_the_page_of_the_design_has_this_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "design.md").read_text()
    assert "\n".join(drawn()) in page

"""The server's side of a session: what it takes before and after the handshake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from splitlab.core import Diverged, Kind, LinkError, Message, NetworkError, ProtocolError
from splitlab.core.contract.peer import Schedule
from splitlab.core.engine.server import Server
from splitlab.core.session.awaiting import Superseded
from splitlab.core.session.protocol import PROTOCOL, names_a_run
from splitlab.transports.inprocess import InProcess

# Handshake.


def test_another_version_of_the_protocol_names_both(talk: Any) -> None:
    table = talk.Table(nested=False)
    table.client_end.send(Message(Kind.HELLO, meta=talk.HELLO | {"protocol": PROTOCOL + 1}), 1.0)
    with pytest.raises(ProtocolError, match="differ in protocol: client 4, server 3"):
        table.server.turn()


@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.CONTROL, Kind.GRADIENT, Kind.PREDICTION])
def test_a_client_must_begin_with_hello(talk: Any, kind: Kind) -> None:
    table = talk.Table(nested=False)
    table.client_end.send(Message(kind, meta={"do": "save"}), 1.0)
    with pytest.raises(ProtocolError, match=f"began with {kind.name}, not with HELLO"):
        table.server.turn()
    assert table.client_end.receive(1.0).kind is Kind.ERROR
    assert (table.echo.handled, table.saved) == ([], [])


WORDS = ["agreement", "marks", "protocol", "run", "session", "step", "timeout"]
"""What a HELLO says."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    changes=st.dictionaries(st.sampled_from(WORDS), JSON, min_size=1),
    more=st.just({}),
    absent=st.sets(st.sampled_from(WORDS)),
)
@example(changes={"step": True}, more={}, absent=set())
@example(changes={"step": -1}, more={}, absent=set())
@example(changes={"step": 10**300}, more={}, absent=set())
@example(changes={"session": "../x"}, more={}, absent=set())
@example(changes={"timeout": 0}, more={}, absent=set())
@example(changes={"timeout": 0.01}, more={}, absent=set())
@example(changes={"timeout": 2e6}, more={}, absent=set())
@example(changes={"timeout": True}, more={}, absent=set())
@example(changes={"run": "../x"}, more={}, absent=set())
@example(changes={"protocol": True}, more={}, absent=set())
@example(changes={"protocol": "2"}, more={}, absent=set())
@example(changes={"marks": {"run": "x", "seed": "0"}}, more={}, absent=set())
@example(changes={"marks": {"run": "x", "seed": "0", "plan": 1}}, more={}, absent=set())
@example(changes={}, more={"cut": None}, absent=set())
@example(changes={}, more={"more": None}, absent=set())
@example(changes={}, more={"long\n" * 1000: "x"}, absent=set())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_malformed_hello_is_the_clients_error(
    talk: Any, changes: dict[str, Any], more: dict[str, Any], absent: set[str]
) -> None:
    """`more` is what the agreement holds besides."""
    assert sorted(talk.HELLO) == WORDS
    said = talk.HELLO | changes
    if more:
        said["agreement"] = talk.AGREEMENT | more
    meta = {key: value for key, value in said.items() if key not in absent}
    table = talk.Table(nested=False)
    table.client_end.send(Message(Kind.HELLO, meta=meta), 1.0)
    fine = (
        meta.keys() == talk.HELLO.keys()
        and type(meta["protocol"]) is int
        and meta["protocol"] == PROTOCOL
        and meta["agreement"] == talk.AGREEMENT
        and isinstance(meta["run"], str)
        and names_a_run(meta["run"])
        and type(meta["step"]) is int
        and 0 <= meta["step"] < 2**63
        and meta["marks"] == talk.MARKS
        and meta["session"] == talk.HELLO["session"]
        and type(meta["timeout"]) in (int, float)
        and 0.1 <= meta["timeout"] <= 1e6
    )
    if fine:
        assert table.server.turn()
        assert table.resumed == [(meta["run"], meta["step"], talk.MARKS)]
        return
    with pytest.raises(ProtocolError) as caught:
        table.server.turn()
    assert len(str(caught.value)) < 4000
    assert "\n" not in str(caught.value)
    assert table.client_end.receive(1.0).kind is Kind.ERROR
    assert table.resumed == []


def nested_list(depth: int) -> Any:
    inner: Any = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize("key", ["protocol", "agreement", "run", "step", "error"])
def test_deep_nesting_exhausts_no_stack(talk: Any, key: str) -> None:
    for depth in range(50, 1000, 50):
        table = talk.Table(nested=False)
        deep = nested_list(depth)
        meta = talk.HELLO | {key: {"cut": deep} if key == "agreement" else deep}
        try:
            table.client_end.send(
                Message(Kind.ERROR if key == "error" else Kind.HELLO, meta=meta), 1.0
            )
        except Exception:  # noqa: BLE001 - the sender cannot write it: nothing to test
            return
        with pytest.raises(LinkError):
            table.server.turn()


def test_a_large_frame_before_the_handshake_is_refused_and_told(talk: Any) -> None:
    table = talk.Table(nested=False)
    table.client_end.send(talk.activation(size=20_000), 1.0)
    with pytest.raises(ProtocolError, match="allowed on this link: 65536"):
        table.server.turn()
    assert "allowed on this link: 65536" in table.client_end.receive(1.0).meta["error"]


def test_a_second_hello_is_refused(talk: Any) -> None:
    table = talk.Table().open()
    with pytest.raises(ProtocolError, match="sent what a server does not take: <Message HELLO"):
        table.say(Message(Kind.HELLO, meta=talk.HELLO))


# A run.


def test_save_and_finish(talk: Any) -> None:
    table = talk.Table(nested=False)
    answers = []
    for message in (
        Message(Kind.HELLO, meta=talk.HELLO | {"step": 8}),
        Message(Kind.CONTROL, 8, meta={"do": "save"}),
        talk.activation(8),
        Message(Kind.CONTROL, 9, meta={"do": "finish"}),
    ):
        table.client_end.send(message, 1.0)
        answers.append((table.server.turn(), table.client_end.receive(1.0)))
    assert [goes_on for goes_on, _ in answers] == [True, True, True, False]
    assert [(m.kind, m.step, m.meta) for _, m in answers[1:]] == [
        (Kind.CONTROL, 8, {"did": "saved"}),
        (Kind.GRADIENT, 8, {"loss": 1.0}),
        (Kind.CONTROL, 9, {"did": "finished"}),
    ]
    assert table.saved == [(8, [])]


@pytest.mark.parametrize("do", ["save", "finish"])
def test_a_step_that_diverged_is_told_before_a_checkpoint_and_before_the_goodbye(
    talk: Any, do: str
) -> None:
    table = talk.Table().open(step=8)
    table.say(talk.activation(8))
    table.echo.owed = Diverged("step 9: the gradient of x is not finite")
    with pytest.raises(Diverged, match="step 9: the gradient of x is not finite"):
        table.say(control(do, 9))
    assert table.saved == []


@pytest.mark.parametrize("keep", [3, None, True, {"steps": 3}, "3,8", "-3", "3" * 20, "3\n", "³"])
def test_steps_to_keep_are_numbers(talk: Any, keep: object) -> None:
    table = talk.Table().open(step=8)
    message = Message(Kind.CONTROL, 8, meta={"do": "save", "keep": keep})
    with pytest.raises(ProtocolError, match="asks to keep"):
        table.say(message)
    assert table.saved == []


def control(do: str, step: int) -> Message:
    return Message(Kind.CONTROL, step, meta={"do": do})


@pytest.mark.parametrize("begun", [0, 5])
@pytest.mark.parametrize("ahead", [-1, 1, 2, 2**40])
@pytest.mark.parametrize("what", ["activation", "save", "finish"])
def test_steps_follow_each_other(talk: Any, what: str, ahead: int, begun: int) -> None:
    table = talk.Table().open(step=begun)
    table.say(talk.activation(begun))
    number = begun + 1 + ahead
    words = {
        "activation": f"sent ACTIVATION of step {number + 1}, and step {begun + 2} is due",
        "save": f"asks to save after step {number}, and {begun + 1} are trained",
        "finish": f"asks to finish after step {number}, and {begun + 1} are trained",
    }
    message = talk.activation(number) if what == "activation" else control(what, number)
    with pytest.raises(ProtocolError, match=words[what]):
        table.say(message)
    assert [type(error) for error in table.told] == [ProtocolError]
    assert (len(table.echo.handled), table.saved) == (1, [])


def test_batches_of_an_evaluation_have_numbers_of_their_own(talk: Any) -> None:
    table = talk.Table().open()
    for number in (0, 1, 0, 1, 2):
        answer = table.say(talk.activation(number, training=False))
        assert answer.kind is Kind.PREDICTION
    assert table.say(talk.activation(0)).kind is Kind.GRADIENT
    with pytest.raises(ProtocolError, match="evaluation batch 1 or evaluation batch 4 is"):
        table.say(talk.activation(7, training=False))


def test_a_gradient_that_is_asked_for_besides_is_no_step(talk: Any, tiny: Any) -> None:
    table = talk.Table(server=tiny.server()).open()
    client = tiny.client()
    client.peer.compare(1)
    for step in range(2):
        table.client.hold(client.train(tiny.batch(step), step))
        assert (table.server.steps, table.server._numbers.trained) == (step + 1, step + 1)
    assert table.told == []


@pytest.mark.parametrize("what", ["finish", "save", "activation"])
def test_nothing_comes_after_the_goodbye(talk: Any, what: str) -> None:
    table = talk.Table().open()
    table.client.finish(0)
    message = talk.activation() if what == "activation" else control(what, 0)
    with pytest.raises(ProtocolError, match=f"sent <Message {message.kind.name} .* its goodbye"):
        table.say(message)
    assert (table.echo.handled, table.saved) == ([], [])


def test_a_run_that_begins_anew_while_its_server_parts_is_told(talk: Any) -> None:
    table = talk.Table().open()
    other, newcomer = InProcess().pair(None)
    table.client_end.send(control("finish", 0), 1.0)
    assert table.client_end.receive(1.0).meta == {"did": "finished"}

    def superseded(timeout: float) -> Message:
        raise Superseded(newcomer)  # type: ignore[arg-type]

    table.server_end.receive = superseded
    table.server.part(1.0)
    assert other.receive(1.0).meta["error"] == "this server's run has ended"
    with pytest.raises(NetworkError, match="closed"):
        other.receive(1.0)


def test_a_turn_may_wait_less_than_the_others(talk: Any) -> None:
    table = talk.Table(nested=False)
    waited: list[float] = []

    def receive(timeout: float) -> Message:
        waited.append(timeout)
        raise NetworkError("silence")

    table.server_end.receive = receive
    for timeout in (0.05, None):
        with pytest.raises(NetworkError, match="silence"):
            table.server.turn(timeout)
    assert waited == [0.05, 1.0]


def test_a_step_of_two_messages_is_one_step(talk: Any, tiny: Any) -> None:
    class Waits(Server):
        """Trains on the first message when the second one has come, of whatever kind."""

        def _converse(self, message: Any) -> Any:
            cut = self._arrived(message)
            message = yield Message(Kind.ACTIVATION, message.step)
            assert message.kind is Kind.GRADIENT
            answer = self._train(cut)
            self.metrics = {"probe": {"x": 0.5}}
            yield answer

    server = tiny.server()
    server.__class__ = Waits
    table = talk.Table(server=server).open()
    client = tiny.client()

    def conversation(step: int) -> Any:
        answer = yield next(client.train(tiny.batch(step), step))
        assert answer.kind is Kind.ACTIVATION
        assert (table.server.steps, table.measured) == (step, list(range(1, step + 1)))
        return (yield Message(Kind.GRADIENT, step))

    for step in range(2):
        assert table.client.hold(conversation(step)).kind is Kind.GRADIENT
    assert (table.server.steps, table.measured) == (2, [1, 2])
    assert table.told == []


@pytest.mark.parametrize("meta", [{}, {"do": "dance"}, {"do": {"save": 1}}, {"do": None}])
def test_a_request_that_no_server_knows_is_refused(talk: Any, meta: dict[str, Any]) -> None:
    table = talk.Table().open()
    with pytest.raises(ProtocolError, match="sent what a server does not take"):
        table.say(Message(Kind.CONTROL, meta=meta))
    assert table.saved == []


@pytest.mark.parametrize("before", [True, False], ids=["before hello", "after hello"])
def test_the_server_is_told_what_the_client_raised(talk: Any, before: bool) -> None:
    table = talk.Table() if before else talk.Table().open()
    table.client.fail(ValueError("disk\nfull"))
    with pytest.raises(
        LinkError, match="the client ended the run: ValueError: disk full"
    ) as caught:
        table.server.turn()
    assert type(caught.value) is LinkError


def test_steps_come_one_after_the_other(talk: Any) -> None:
    for step in (3, 5, 2**63):
        table = talk.Table().open(step=3)
        table.say(talk.activation(3))
        table.say(talk.activation(0, training=False))
        with pytest.raises(ProtocolError, match="and step 5 is due"):
            table.say(talk.activation(step))


def test_a_server_hears_how_long_the_run_is_to_last(talk: Any) -> None:
    table = talk.Table()
    table.echo.peer = SimpleNamespace(schedule=None)
    table.open(schedule=Schedule(600, "bytes", 5e6))
    assert table.echo.peer.schedule == Schedule(600, "bytes", 5e6)
    table = talk.Table()
    table.echo.peer = SimpleNamespace(schedule=None)
    table.open(schedule=Schedule(600, "bytes", 5e6, 70))
    assert table.echo.peer.schedule == Schedule(600, "bytes", 5e6, 70)


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"training_samples": 0, "unit": "steps", "amount": 1},
        {"training_samples": True, "unit": "steps", "amount": 1},
        {"training_samples": 1, "unit": 3, "amount": 1},
        {"training_samples": 1, "unit": "steps", "amount": float("nan")},
        {"training_samples": 1, "unit": "steps", "amount": "1"},
        {"training_samples": 1, "unit": "steps", "amount": 1, "more": 1},
        {"training_samples": 1, "unit": "steps", "amount": 1, "steps": 0},
        {"training_samples": 1, "unit": "steps", "amount": 1, "steps": 1.5},
        {"training_samples": 1, "unit": "steps", "amount": 10**400},
        {"training_samples": 1, "unit": "steps", "amount": 1, "steps": 10**400},
        {"training_samples": 1, "unit": "steps", "steps": 1},
    ],
)
def test_a_schedule_that_makes_no_sense_is_the_clients_error(talk: Any, said: Any) -> None:
    table = talk.Table(nested=False)
    table.client_end.send(Message(Kind.HELLO, meta=talk.HELLO | {"schedule": said}), 1.0)
    with pytest.raises(ProtocolError, match="sent a malformed HELLO"):
        table.server.turn()


def test_a_session_says_whether_a_state_may_have_been_loaded(talk: Any) -> None:
    table = talk.Table(nested=False)
    assert not table.server.resumed
    hello = talk.HELLO | {"agreement": {"stack": "another"}}
    table.client_end.send(Message(Kind.HELLO, meta=hello), 1.0)
    with pytest.raises(ProtocolError):
        table.server.turn()
    assert not table.server.resumed
    assert talk.Table().open().server.resumed

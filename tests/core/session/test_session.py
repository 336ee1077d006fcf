"""The talk between the peers: handshake, limits, checkpoints, goodbye, and who is told what."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from splitlab.core import ConfigError, Kind, LinkError, Message, NetworkError, ProtocolError, Role
from splitlab.core.contract.link import DEFAULT_LIMITS
from splitlab.core.run.config import Config
from splitlab.core.run.records import SERVER_METRICS, StepRecord, read_records, version_line
from splitlab.core.run.serve import open_session
from splitlab.core.session.client import ClientSession
from splitlab.core.session.protocol import PROTOCOL
from splitlab.core.session.server import ServerSession
from splitlab.core.wire.ledger import Ledger
from splitlab.transports.inprocess import InProcess

AGREEMENT = {
    "stack": "adc:ratio=0.1",
    "model": "vit-mini",
    "image size": "28",
    "cut": "3",
    "classes": "10",
    "weights": "0123456789abcdef",
    "batch size": "128",
    "optimizer": "adam lr=0.0003 weight_decay=0.0",
    "seed": "0",
}
BATCH_BYTES = 1000
HELLO = {"protocol": PROTOCOL, "agreement": AGREEMENT, "run": "run", "step": 0}


class Echo:
    """Stands in for the server: answers every message, or raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.handled: list[Message] = []
        self.metrics: dict[str, dict[str, float]] = {}

    def handle(self, message: Message) -> Message:
        self.handled.append(message)
        if self.error:
            raise self.error
        time.sleep(0.002)
        kind = Kind.GRADIENT if message.training else Kind.PREDICTION
        answer = Message(kind, message.step, training=message.training, meta={"loss": 1.0})
        answer.put("gradient", torch.zeros(10), Role.PAYLOAD)
        return answer


class Table:
    """Both sessions at one table: two ends of a link in this thread."""

    def __init__(self, agreement: dict[str, str] | None = None, *, nested: bool = True) -> None:
        self.echo = Echo()
        self.resumed: list[tuple[str, int]] = []
        self.saved: list[int] = []
        self.resume_error: Exception | None = None
        self.told: list[BaseException] = []
        self.ledger = Ledger()
        self.client_end, self.server_end = InProcess().pair(self._serve if nested else None)
        self.server = ServerSession(
            self.server_end,
            self.echo,  # type: ignore[arg-type]
            AGREEMENT if agreement is None else agreement,
            batch_bytes=BATCH_BYTES,
            timeout=1.0,
            resume=self._resume,
            save=self.saved.append,
        )
        self.client = ClientSession(self.client_end, self.ledger, 1.0)

    def _resume(self, run: str, step: int) -> None:
        if self.resume_error:
            raise self.resume_error
        self.resumed.append((run, step))

    def _serve(self) -> None:
        """Take a turn as a server process would: what it raises does not reach the client."""
        try:
            self.server.turn()
        except Exception as error:  # noqa: BLE001
            self.told.append(error)

    def open(self, **changes: Any) -> Table:
        settings = {"run": "run", "step": 0, "batch_bytes": BATCH_BYTES}
        self.client.open(AGREEMENT, **settings | changes)
        return self


def activation(step: int = 0, *, training: bool = True, size: int = 10) -> Message:
    made = Message(Kind.ACTIVATION, step, training=training)
    made.put("activations", torch.zeros(size), Role.PAYLOAD)
    return made


# Handshake.


def test_peers_that_agree_shake_hands_and_resume() -> None:
    table = Table().open(run="my-run", step=40)
    assert table.resumed == [("my-run", 40)]
    assert table.told == []
    assert table.ledger.total("up") == table.ledger.total("up", "control") > 0
    assert table.ledger.total("down") == table.ledger.total("down", "control") > 0


@pytest.mark.parametrize("key", AGREEMENT)
def test_a_difference_names_the_key_and_both_values(key: str) -> None:
    table = Table(AGREEMENT | {key: "the server's"})
    words = f"the peers differ in {key}: client {AGREEMENT[key]}, server the server's; give both"
    with pytest.raises(ProtocolError) as caught:
        table.open()
    assert words in str(caught.value)
    [told] = table.told
    assert isinstance(told, ProtocolError)
    assert words in str(told)
    assert table.resumed == []


def test_a_key_that_only_one_peer_knows_is_a_difference() -> None:
    for agreement in ({**AGREEMENT, "new": "1"}, {k: AGREEMENT[k] for k in list(AGREEMENT)[:-1]}):
        with pytest.raises(ProtocolError, match=r"the peers differ in (new|seed): client"):
            Table(agreement).open()


def test_another_version_of_the_protocol_names_both() -> None:
    table = Table(nested=False)
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"protocol": 2}), 1.0)
    with pytest.raises(ProtocolError, match="differ in protocol: client 2, server 1"):
        table.server.turn()


@pytest.mark.parametrize("kind", [Kind.ACTIVATION, Kind.CONTROL, Kind.GRADIENT, Kind.PREDICTION])
def test_a_client_must_begin_with_hello(kind: Kind) -> None:
    table = Table(nested=False)
    table.client_end.send(Message(kind, meta={"do": "save"}), 1.0)
    with pytest.raises(ProtocolError, match=f"began with {kind.name}, not with HELLO"):
        table.server.turn()
    assert table.client_end.receive(1.0).kind is Kind.ERROR
    assert (table.echo.handled, table.saved) == ([], [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    changes=st.dictionaries(st.sampled_from(sorted(HELLO)), JSON, min_size=1),
    absent=st.sets(st.sampled_from(sorted(HELLO))),
)
@example(changes={"step": True}, absent=set())
@example(changes={"step": -1}, absent=set())
@example(changes={"protocol": True}, absent=set())
@example(changes={"protocol": "1"}, absent=set())
@example(changes={"agreement": AGREEMENT | {"cut": None}}, absent=set())
@example(changes={"agreement": AGREEMENT | {"more": None}}, absent=set())
@example(changes={"agreement": AGREEMENT | {"long\n" * 1000: "x"}}, absent=set())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_malformed_hello_is_the_clients_error(changes: dict[str, Any], absent: set[str]) -> None:
    meta = {key: value for key, value in (HELLO | changes).items() if key not in absent}
    table = Table(nested=False)
    table.client_end.send(Message(Kind.HELLO, meta=meta), 1.0)
    fine = (
        meta.keys() == HELLO.keys()
        and type(meta["protocol"]) is int
        and meta["protocol"] == PROTOCOL
        and meta["agreement"] == AGREEMENT
        and isinstance(meta["run"], str)
        and type(meta["step"]) is int
        and meta["step"] >= 0
    )
    if fine:
        assert table.server.turn()
        assert table.resumed == [(meta["run"], meta["step"])]
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
def test_deep_nesting_exhausts_no_stack(key: str) -> None:
    for depth in range(50, 1000, 50):
        table = Table(nested=False)
        deep = nested_list(depth)
        meta = HELLO | {key: {"cut": deep} if key == "agreement" else deep}
        try:
            table.client_end.send(
                Message(Kind.ERROR if key == "error" else Kind.HELLO, meta=meta), 1.0
            )
        except Exception:  # noqa: BLE001 - the sender cannot write it: nothing to test
            return
        with pytest.raises(LinkError):
            table.server.turn()


@pytest.mark.parametrize(
    "run",
    ["../other", "/etc", "a/b", "", ".", "..", ".hidden", "-x", "x" * 201, "a\n", "a b", "a\0"],
)
def test_run_names_that_are_paths_are_refused(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = session_with_checkpoints(None)
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"run": run}), 1.0)
    with pytest.raises(ProtocolError, match=r"name for the run, .*cannot name a folder"):
        table.server.turn()
    assert list(tmp_path.iterdir()) == []


def session_with_checkpoints(output: Path | None, tensors: Any = None) -> Any:
    """Return a table whose server keeps real checkpoints."""
    state: dict[str, torch.Tensor] = {"x": torch.zeros(1)}
    reported: list[Path] = []
    server: Any = SimpleNamespace(
        state=lambda: (state, {"n": 1}),
        load_state=lambda tensors, values: state.update(tensors),
        stack=SimpleNamespace(report=reported.append),
        handle=Echo().handle,
        metrics={},
    )
    plan: Any = SimpleNamespace(
        agreement=AGREEMENT, batch_bytes=BATCH_BYTES, config=Config(timeout=1.0)
    )
    table = Table(nested=False)
    table.server = open_session(table.server_end, server, plan, output)
    return SimpleNamespace(
        client_end=table.client_end,
        server=table.server,
        state=state,
        metrics=server.metrics,
        reported=reported,
    )


def test_the_server_keeps_its_checkpoints_under_the_name_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for output, folder in (
        (None, tmp_path / "runs" / "a.b+c-1"),
        (tmp_path / "out", tmp_path / "out"),
    ):
        hello = HELLO | {"run": "a.b+c-1" if output is None else "../ignored"}
        first = session_with_checkpoints(output)
        first.state["x"] += 7
        for message in (
            Message(Kind.HELLO, meta=hello),
            Message(Kind.CONTROL, 12, meta={"do": "save"}),
        ):
            first.client_end.send(message, 1.0)
            assert first.server.turn()
        assert (folder / "checkpoints" / "step-00000012" / "server.safetensors").is_file()
        second = session_with_checkpoints(output)
        second.client_end.send(Message(Kind.HELLO, meta=hello | {"step": 12}), 1.0)
        assert second.server.turn()
        assert second.state["x"] == 7


def test_a_step_that_the_server_does_not_have_is_told(tmp_path: Path) -> None:
    table = session_with_checkpoints(tmp_path)
    table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"step": 3}), 1.0)
    with pytest.raises(ConfigError, match="the server has no checkpoint of step 3"):
        table.server.turn()
    assert "no checkpoint of step 3" in table.client_end.receive(1.0).meta["error"]


def test_the_server_logs_its_numbers_and_forgets_those_of_later_steps(tmp_path: Path) -> None:
    log = tmp_path / SERVER_METRICS
    for resumed, steps, left in ((0, (0, 1, 2), [1, 2, 3]), (0, (0,), [1])):
        table = session_with_checkpoints(tmp_path)
        table.metrics["probe"] = {"x": 0.5}
        table.client_end.send(Message(Kind.HELLO, meta=HELLO | {"step": resumed}), 1.0)
        assert table.server.turn()
        for step in steps:
            table.client_end.send(activation(step), 1.0)
            assert table.server.turn()
        table.client_end.send(Message(Kind.CONTROL, 3, meta={"do": "finish"}), 1.0)
        assert not table.server.turn()
        records = read_records(tmp_path, SERVER_METRICS)
        assert records == [StepRecord(n, metrics={"probe": {"x": 0.5}}) for n in left]
        assert table.reported == [tmp_path / "probes"]
    assert log.read_text().startswith(version_line())


# Limits.


def test_frame_limits_are_narrow_before_the_handshake_and_fit_batches_after() -> None:
    table = Table()
    assert table.server_end.limits.frame_bytes == 65536
    seen: list[int] = []
    original = table.client_end.receive
    table.client_end.receive = lambda timeout: (  # type: ignore[method-assign]
        seen.append(table.client_end.limits.frame_bytes),
        original(timeout),
    )[1]
    table.open()
    assert seen == [65536]
    after = 4 * BATCH_BYTES + (1 << 20)
    for end in (table.client_end, table.server_end):
        assert end.limits.frame_bytes == after
        assert end.limits.header_bytes == DEFAULT_LIMITS.header_bytes
    table.client.exchange(activation(size=after // 4 - 1000))
    with pytest.raises(ProtocolError, match=rf"allowed on this link: {after}"):
        table.client.exchange(activation(size=after // 4))
    assert len(table.echo.handled) == 1


def test_a_large_frame_before_the_handshake_is_refused_and_told() -> None:
    table = Table(nested=False)
    table.client_end.send(activation(size=20_000), 1.0)
    with pytest.raises(ProtocolError, match="allowed on this link: 65536"):
        table.server.turn()
    assert "allowed on this link: 65536" in table.client_end.receive(1.0).meta["error"]


def test_a_failed_handshake_does_not_open_the_limits() -> None:
    table = Table(AGREEMENT | {"cut": "4"})
    with pytest.raises(ProtocolError):
        table.open()
    assert table.server_end.limits.frame_bytes == table.client_end.limits.frame_bytes == 65536


def test_a_second_hello_is_refused() -> None:
    table = Table().open()
    with pytest.raises(ProtocolError, match="sent what a server does not take: <Message HELLO"):
        table.client.exchange(Message(Kind.HELLO, meta=HELLO))


# A run.


def test_steps_are_counted_and_timed_apart_from_the_link() -> None:
    table = Table().open()
    for step in range(3):
        assert table.client.exchange(activation(step)).step == step
    table.client.exchange(activation(0, training=False))
    assert table.server.steps == 3
    assert [message.training for message in table.echo.handled] == [True] * 3 + [False]
    assert 0.008 <= table.client.server_seconds < 5
    assert table.client.link_seconds > 0
    counts = table.ledger.counts
    assert counts["training"]["up"]["activation"] == 3 * 40
    assert counts["training"]["down"]["gradient"] == 3 * 40
    assert counts["evaluation"]["up"]["activation"] == 40
    assert counts["evaluation"]["down"]["prediction"] == 40


def test_save_and_finish() -> None:
    table = Table(nested=False)
    answers = []
    for message in (
        Message(Kind.HELLO, meta=HELLO),
        Message(Kind.CONTROL, 8, meta={"do": "save"}),
        Message(Kind.CONTROL, 9, meta={"do": "finish"}),
    ):
        table.client_end.send(message, 1.0)
        answers.append((table.server.turn(), table.client_end.receive(1.0)))
    assert [goes_on for goes_on, _ in answers] == [True, True, False]
    assert [(m.kind, m.step, m.meta) for _, m in answers[1:]] == [
        (Kind.CONTROL, 8, {"did": "saved"}),
        (Kind.CONTROL, 9, {"did": "finished"}),
    ]
    assert table.saved == [8]


def test_the_client_asks_for_both() -> None:
    table = Table().open()
    table.client.save(8)
    table.client.finish(9)
    assert table.saved == [8]


@pytest.mark.parametrize("meta", [{}, {"do": "dance"}, {"do": ["save"]}, {"do": None}])
def test_a_request_that_no_server_knows_is_refused(meta: dict[str, Any]) -> None:
    table = Table().open()
    with pytest.raises(ProtocolError, match="sent what a server does not take"):
        table.client.exchange(Message(Kind.CONTROL, meta=meta))
    assert table.saved == []


@pytest.mark.parametrize("request_", ["save", "finish"])
def test_an_answer_to_another_question_is_the_servers_error(request_: str) -> None:
    table = answering(Message(Kind.CONTROL, meta={"did": "something"}))
    with pytest.raises(
        ProtocolError, match=f"the server answered '{request_}' with <Message CONTROL"
    ):
        getattr(table.client, request_)(1)


def test_an_answer_other_than_hello_ends_the_handshake() -> None:
    table = answering(Message(Kind.CONTROL))
    with pytest.raises(ProtocolError, match="answered a HELLO with CONTROL"):
        table.open()


def answering(answer: Message) -> Table:
    """Return a table whose server says this, whatever it is asked."""
    table = Table()
    table._serve = lambda: table.server_end.send(answer, 1.0)  # type: ignore[method-assign,return-value]
    table.client_end, table.server_end = InProcess().pair(lambda: table._serve())
    table.client = ClientSession(table.client_end, table.ledger, 1.0)
    return table


# Errors.


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConfigError("bad\n\n  news"), "the server ended the run: bad news"),
        (ValueError("a bug"), "the server ended the run: ValueError: a bug"),
        (ValueError("x" * 5000), "the server ended the run: ValueError: xxx"),
    ],
)
def test_the_client_is_told_what_the_server_raised(error: Exception, words: str) -> None:
    table = Table().open()
    table.echo.error = error
    with pytest.raises(ProtocolError) as caught:
        table.client.exchange(activation())
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1100
    assert table.told == [error]


def test_the_client_is_told_when_the_server_cannot_resume_or_save() -> None:
    table = Table()
    table.resume_error = ConfigError("no checkpoint of step 3")
    with pytest.raises(ProtocolError, match="the server ended the run: no checkpoint of step 3"):
        table.open(step=3)


def test_the_client_is_told_when_the_servers_answer_cannot_be_sent() -> None:
    table = Table().open()

    def unsendable(message: Message) -> Message:
        answer = Message(Kind.GRADIENT, message.step)
        answer.put("gradient", torch.zeros(2, dtype=torch.complex64), Role.PAYLOAD)
        return answer

    table.echo.handle = unsendable  # type: ignore[method-assign]
    with pytest.raises(ProtocolError, match=r"the server ended the run: cannot send .*complex64"):
        table.client.exchange(activation())


@pytest.mark.parametrize("before", [True, False], ids=["before hello", "after hello"])
def test_the_server_is_told_what_the_client_raised(before: bool) -> None:
    table = Table() if before else Table().open()
    table.client.fail(ValueError("disk\nfull"))
    with pytest.raises(
        LinkError, match="the client ended the run: ValueError: disk full"
    ) as caught:
        table.server.turn()
    assert type(caught.value) is LinkError


@pytest.mark.parametrize("meta", [{}, {"error": None}, {"error": {"a": [1]}}])
def test_an_error_without_a_reason_says_so(meta: dict[str, Any]) -> None:
    table = Table(nested=False)
    table.client_end.send(Message(Kind.ERROR, meta=meta), 1.0)
    with pytest.raises(LinkError, match="the client ended the run: it gives no reason"):
        table.server.turn()


def test_telling_a_peer_that_is_gone_is_no_error_of_its_own() -> None:
    table = Table().open()
    table.server_end.close()
    table.client.fail(ValueError("nobody hears this"))
    with pytest.raises(NetworkError):
        table.client.exchange(activation())


def test_silence_ends_a_turn_and_an_exchange_within_the_timeout() -> None:
    table = Table(nested=False)
    table.server._timeout = table.client._timeout = 0.1
    waits: list[Callable[[], object]] = [
        table.server.turn,
        lambda: table.client.exchange(activation()),
    ]
    for wait in waits:
        started = time.monotonic()
        with pytest.raises(NetworkError, match="sent nothing"):
            wait()
        assert time.monotonic() - started < 2

"""What both sides of a session hold to: the agreement, the frame limits, and errors in one line."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import ConfigError, Kind, LinkError, Message, NetworkError, ProtocolError
from splitlab.core.contract.link import DEFAULT_LIMITS
from splitlab.core.session.protocol import compare, frame_limit, line, reason, tell

KEYS = [
    "stack",
    "model",
    "image size",
    "cut",
    "classes",
    "weights",
    "batch size",
    "optimizer",
    "seed",
]


def test_every_key_of_the_agreement_is_tried(talk: Any) -> None:
    assert list(talk.AGREEMENT) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_a_difference_names_the_key_and_both_values(talk: Any, key: str) -> None:
    table = talk.Table(talk.AGREEMENT | {key: "the server's"})
    words = (
        f"the peers differ in {key}: client {talk.AGREEMENT[key]}, server the server's; give both"
    )
    with pytest.raises(ProtocolError) as caught:
        table.open()
    assert words in str(caught.value)
    [told] = table.told
    assert isinstance(told, ProtocolError)
    assert words in str(told)
    assert table.resumed == []


def test_a_key_that_only_one_peer_knows_is_a_difference(talk: Any) -> None:
    for agreement in (
        {**talk.AGREEMENT, "new": "1"},
        {k: talk.AGREEMENT[k] for k in list(talk.AGREEMENT)[:-1]},
    ):
        with pytest.raises(ProtocolError, match=r"the peers differ in (new|seed): client"):
            talk.Table(agreement).open()


def test_all_differences_are_told_and_nothing_else(talk: Any) -> None:
    ours = talk.AGREEMENT
    with pytest.raises(ProtocolError) as caught:
        compare(ours, ours | {"cut": "4", "seed": "1"})
    assert str(caught.value) == (
        "the peers differ in cut: client 3, server 4; seed: client 0, server 1; "
        "give both the same options"
    )


def test_settings_of_what_only_one_peer_has_are_not_told() -> None:
    client = {"stack": "none", "seed": "0"}
    server = {"stack": "adc", "adc's ratio": "0.1", "adc's layers": "3", "seed": "0"}
    with pytest.raises(ProtocolError, match="differ in stack: client none, server adc; give both"):
        compare(client, server)
    with pytest.raises(ProtocolError, match="differ in adc's ratio: client the default, server"):
        compare({**client, "stack": "adc"}, server)


def test_a_peer_that_differs_in_everything_is_told_in_a_bounded_line() -> None:
    many = {f"key {number}\x1b": "x\x1b" * 10_000 for number in range(1000)}
    with pytest.raises(ProtocolError, match="; and in 993 more; give") as caught:
        compare(many, {"cut": "3"})
    assert len(str(caught.value)) < 4_000
    assert str(caught.value).isprintable()


def test_frame_limits_are_narrow_before_the_handshake_and_fit_batches_after(talk: Any) -> None:
    table = talk.Table()
    assert table.server_end.limits.frame_bytes == 65536
    seen: list[int] = []
    original = table.client_end.receive
    table.client_end.receive = lambda timeout: (  # type: ignore[method-assign]
        seen.append(table.client_end.limits.frame_bytes),
        original(timeout),
    )[1]
    table.open()
    assert seen == [65536]
    after = 4 * talk.BATCH_BYTES + (1 << 20)
    for end in (table.client_end, table.server_end):
        assert end.limits.frame_bytes == after
        assert end.limits.header_bytes == DEFAULT_LIMITS.header_bytes
    table.client.exchange(talk.activation(size=after // 4 - 1000))
    with pytest.raises(ProtocolError, match=rf"allowed on this link: {after}"):
        table.client.exchange(talk.activation(size=after // 4))
    assert len(table.echo.handled) == 1


def test_a_failed_handshake_does_not_open_the_limits(talk: Any) -> None:
    table = talk.Table(talk.AGREEMENT | {"cut": "4"})
    with pytest.raises(ProtocolError):
        table.open()
    assert table.server_end.limits.frame_bytes == table.client_end.limits.frame_bytes == 65536


def test_a_reason_cannot_command_the_terminal(talk: Any) -> None:
    for end in ("client", "server"):
        table = talk.Table(nested=False)
        link = table.client_end if end == "client" else table.server_end
        link.send(Message(Kind.ERROR, meta={"error": "\x1b]0;mine\x07 \r no"}), 1.0)
        with pytest.raises(LinkError) as caught:
            table.server.turn() if end == "client" else table.open()
        assert str(caught.value) == rf"the {end} ended the run: \x1b]0;mine\x07 no"


@pytest.mark.parametrize("meta", [{}, {"error": None}, {"error": {"a": [1]}}])
def test_an_error_without_a_reason_says_so(talk: Any, meta: dict[str, Any]) -> None:
    table = talk.Table(nested=False)
    table.client_end.send(Message(Kind.ERROR, meta=meta), 1.0)
    with pytest.raises(LinkError, match="the client ended the run: it gives no reason"):
        table.server.turn()


def test_telling_a_peer_that_is_gone_is_no_error_of_its_own(talk: Any) -> None:
    table = talk.Table().open()
    table.server_end.close()
    table.client.fail(ValueError("nobody hears this"))
    with pytest.raises(NetworkError):
        table.client.exchange(talk.activation())


def test_peers_that_agree_are_not_told_apart() -> None:
    compare({"cut": "3", "seed": "0"}, {"seed": "0", "cut": "3"})


def test_the_frame_limit_leaves_room_for_small_batches_and_for_values_with_indices() -> None:
    assert frame_limit(0) == 1 << 20
    assert frame_limit(1000) - frame_limit(0) == 4000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n b\t c ", "a b c"),
        ("x" * 5000, "x" * 1000),
        (None, "None"),
        ("", ""),
        ("\x1b[2Jgone\x07\0", r"\x1b[2Jgone\x07\x00"),
        ("\u202eevil\u2066 \ud800", r"\u202eevil\u2066 \ud800"),
        (
            "\N{GREEK SMALL LETTER XI} is 'fine' \\ too",
            "\N{GREEK SMALL LETTER XI} is 'fine' \\ too",
        ),
    ],
)
def test_a_line_is_one_line_of_bounded_length(text: object, expected: str) -> None:
    assert line(text) == expected


def test_an_error_of_ours_is_told_as_it_is_and_a_bug_with_its_kind(talk: Any) -> None:
    table = talk.Table(nested=False)
    for error, words in (
        (ConfigError("no such cut"), "no such cut"),
        (KeyError("x"), "KeyError: 'x'"),
    ):
        tell(table.server_end, error, 1.0)
        told = table.client_end.receive(1.0)
        assert told.kind is Kind.ERROR
        assert told.meta == {"error": words}
        assert reason(told) == words

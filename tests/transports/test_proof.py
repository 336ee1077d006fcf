"""Who knows the secret, without a connection: what is said is carried and replayed here."""

from __future__ import annotations

import pytest

from splitlab.core.contract.errors import NetworkError
from splitlab.transports.proof import MAGIC, Exchange, NoOpening, claim, judge

SECRET = b"a secret of the lab's"


class End:
    """One side: what it wants to say, and how it ended."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.said = b""
        self.error: NetworkError | None = None
        self.over = False
        self._wants = 0
        self._heard = b""
        self._go_on(None)

    def hear(self, data: bytes) -> None:
        self._heard += data
        while not self.over and len(self._heard) >= self._wants:
            part, self._heard = self._heard[: self._wants], self._heard[self._wants :]
            self._go_on(part)

    def _go_on(self, answer: bytes | None) -> None:
        try:
            want = self._exchange.send(answer)
            while isinstance(want, bytes):
                self.said += want
                want = self._exchange.send(None)
            self._wants = want
        except StopIteration:
            self.over = True
        except NetworkError as error:
            self.over, self.error = True, error

    def take(self) -> bytes:
        said, self.said = self.said, b""
        return said


def meet(client: End, server: End) -> list[tuple[str, bytes]]:
    """Carry what they say until neither has more to say; returns it all."""
    carried = []
    while client.said or server.said:
        for name, near, far in (("up", client, server), ("down", server, client)):
            if said := near.take():
                carried.append((name, said))
                far.hear(said)
    return carried


def test_both_know_the_secret() -> None:
    client, server = End(claim(SECRET, b"cert")), End(judge(SECRET, b"cert"))
    carried = meet(client, server)
    assert (client.over, client.error, server.over, server.error) == (True, None, True, None)
    assert [name for name, _ in carried] == ["up", "down", "up", "down"]
    assert SECRET not in b"".join(said for _, said in carried)


def test_without_a_secret_who_comes_is_let_in() -> None:
    client, server = End(claim(None, b"")), End(judge(None, b""))
    meet(client, server)
    assert (client.over, client.error, server.over, server.error) == (True, None, True, None)


@pytest.mark.parametrize(
    ("theirs", "ours", "client_told", "server_told"),
    [
        (b"another secret, as long", SECRET, "refused the proof", "proof of the secret is wrong"),
        (None, SECRET, "lets in who knows its secret; give", "gave no --secret-file"),
        (SECRET, None, "knows no secret; start it with the same", "this server has none"),
    ],
)
def test_peers_that_differ_are_both_told(
    theirs: bytes | None, ours: bytes | None, client_told: str, server_told: str
) -> None:
    client, server = End(claim(theirs, b"")), End(judge(ours, b""))
    meet(client, server)
    assert client_told in str(client.error)
    assert server_told in str(server.error)


def test_a_proof_is_of_one_channel() -> None:
    client, server = End(claim(SECRET, b"of this server")), End(judge(SECRET, b"of another"))
    meet(client, server)
    assert client.error is not None
    assert server.error is not None


def test_what_was_said_once_proves_nothing_again() -> None:
    carried = meet(End(claim(SECRET, b"")), End(judge(SECRET, b"")))
    server = End(judge(SECRET, b""))
    for name, said in carried:
        if name == "up":
            server.hear(said)
    assert "proof of the secret is wrong" in str(server.error)
    client = End(claim(SECRET, b""))
    for name, said in carried:
        if name == "down":
            client.hear(said)
    assert "does not know the secret" in str(client.error)


def test_a_proof_is_of_one_role() -> None:
    """A server that knows nothing sends the client its own proof back."""
    client = End(claim(SECRET, b""))
    opening = client.take()
    client.hear(MAGIC + b"\x01" + opening[-32:])
    proof = client.take()
    assert len(proof) == 32
    client.hear(MAGIC + b"\x00" + proof)
    assert "does not know the secret" in str(client.error)


def test_a_server_cannot_talk_a_client_out_of_its_secret() -> None:
    client = End(claim(SECRET, b""))
    client.hear(MAGIC + b"\x00" + bytes(32))
    assert "the server knows no secret" in str(client.error)
    assert len(client.take()) == 37  # its opening, and no proof


def test_two_beginnings_are_never_alike() -> None:
    assert len({End(claim(SECRET, b"")).take() for _ in range(50)}) == 50


def test_a_server_tells_a_stranger_by_its_first_bytes_and_says_nothing() -> None:
    server = End(judge(SECRET, b""))
    server.hear(b"SPLT")
    assert isinstance(server.error, NoOpening)
    assert server.error.began == b"SPLT"
    assert server.take() == b""


def test_what_is_no_answer_is_named() -> None:
    client = End(claim(None, b""))
    client.hear(b"HTTP/1.1 400 Bad Request\r\n" + b" " * 20)
    assert "answers with b'HTTP'" in str(client.error)
    client = End(claim(None, b""))
    client.hear(MAGIC + b"\x63" + bytes(32))
    assert "answer 99 is unknown" in str(client.error)

"""The checks of a link: the contract of `splitlab.core.contract.link`, held by both of its ends.

Each check takes both ends from whoever makes them, a transport or a wrapper around one.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from splitlab.core.contract.errors import NetworkError, ProtocolError
from splitlab.core.contract.link import Limits, Link
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing.expect import raises, within
from splitlab.core.testing.links import Ends, a_message
from splitlab.core.testing.report import Check, Failed, Skipped
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.wire.encode import Frame, encode

__all__ = ["LARGEST_BYTES", "LINK_CHECKS"]

LARGEST_BYTES = 2**25
"""Length of the largest tensor that a check sends."""


def every_kind_arrives(s: Ends) -> str | None:
    """A message of every kind arrives as it was sent, and both ends count its bytes."""
    with s.both() as (client, server, aside):
        for sender, receiver in ((client, server), (server, client)):
            for step, kind in enumerate(Kind):
                sent = a_message(kind, step, loss=0.1, agreement={"words": ["a", None]})
                sent.push("somebody", ["a", None])
                size = encode(sent).nbytes
                sending = aside.submit(sender.send, sent, s.soon)
                arrived = receiver.receive(s.soon)
                if not sending.result() == sent.frame_bytes == arrived.frame_bytes == size:
                    raise Failed(
                        f"a {kind.name} frame has {size} bytes; send returns {sending.result()} "
                        f"and sets frame_bytes={sent.frame_bytes}, receive {arrived.frame_bytes}"
                    )
                found = difference([Seen.of(sent)], [Seen.of(arrived.to(torch.device("cpu")))])
                if found or arrived.elapsed_ns != sent.elapsed_ns:
                    raise Failed(f"what arrives is not what was sent: {found or 'elapsed_ns'}")
        sending = aside.submit(client.send, Message(Kind.CONTROL, meta={"do": "goodbye"}), s.soon)
        if server.receive(s.soon).meta != {"do": "goodbye"}:
            raise Failed("a message without tensors loses its metadata")
        sending.result()
    return None


def arrives_in_order(s: Ends) -> str | None:
    """Messages arrive in the order in which they were sent."""
    with s.both() as (client, server, aside):

        def send_all() -> None:
            for step in range(20):
                client.send(a_message(step=step), s.soon)

        sending = aside.submit(send_all)
        steps = [server.receive(s.soon).step for _ in range(20)]
        sending.result()
    if steps != [*range(20)]:
        raise Failed(f"20 messages arrive in the order {steps}")
    return None


def arrives_in_own_memory(s: Ends) -> str | None:
    """A large tensor arrives whole, in memory that the sender does not reach."""
    tensor = torch.arange(LARGEST_BYTES // 4, dtype=torch.int32)
    with s.both() as (client, server, aside):
        sent = Message(Kind.ACTIVATION)
        sent.put("activations", tensor, Role.PAYLOAD)
        sending = aside.submit(client.send, sent, s.soon)
        arrived = server.receive(s.soon)["activations"]
        sending.result()
        if not torch.equal(arrived.cpu(), tensor):
            raise Failed("a tensor of 32 MiB arrives with other numbers")
        if arrived.data_ptr() == tensor.data_ptr():
            raise Failed("the receiver gets the sender's own memory; copy it")
    return None


def silence_ends_in_time(s: Ends) -> str | None:
    """Receiving from a silent end ends by the deadline, and not before."""
    with s.both() as (_, server, _), within(s.late, "a receive of 0.3 s", at_least=0.2):
        raises(NetworkError, "receiving from a silent end", lambda: server.receive(0.3))
    return None


def unread_send_ends_in_time(s: Ends) -> str | None:
    """Sending to an end that does not read ends by the deadline."""
    large = Message(Kind.ACTIVATION)
    large.put("activations", torch.zeros(LARGEST_BYTES, dtype=torch.uint8), Role.PAYLOAD)
    with (
        s.both() as (client, _, _),
        within(s.late, "a send of 0.5 s to an end that does not read"),
        contextlib.suppress(NetworkError),  # in one process, memory takes everything
    ):
        client.send(large, 0.5)
    return None


def closing_is_noticed(s: Ends) -> str | None:
    """An end that closes is noticed at once, receiving and sending."""
    with s.both() as (client, server, _):
        client.close()
        with within(s.late, "noticing that the other end closed"):
            raises(NetworkError, "receiving from a closed end", lambda: server.receive(s.soon))

    def send_many() -> None:
        for _ in range(100):  # the kernel takes some before it hears of it
            server.send(a_message(), s.soon)

    with s.both() as (client, server, _):
        client.close()
        with within(s.late, "noticing that the other end closed"):
            raises(NetworkError, "sending to a closed end", send_many)
    return None


def closed_link_says_so(s: Ends) -> str | None:
    """Closing twice is allowed; a closed link moves nothing more."""
    with s.both() as (client, _, _):
        client.close()
        client.close()
        raises(NetworkError, "receiving on a closed link", lambda: client.receive(s.soon))
        raises(NetworkError, "sending on a closed link", lambda: client.send(a_message(), s.soon))
    return None


def limits_hold(s: Ends) -> str | None:
    """What an end's limits do not allow is a `ProtocolError`."""
    size = encode(a_message()).nbytes
    with s.both() as (client, server, aside):
        sending = aside.submit(client.send, a_message(), s.soon)
        server.limits = Limits(frame_bytes=size)
        if server.receive(s.soon).frame_bytes != size:
            raise Failed(f"frame_bytes is not the {size} bytes of the frame")
        sending.result()
        server.limits = Limits(frame_bytes=size - 1)
        _refused(s, client, server, aside, f"receiving {size} bytes where {size - 1} are allowed")
    return None


def garbage_is_refused(s: Ends) -> str | None:
    """What is no frame is a `ProtocolError`."""
    module = s.module()
    if getattr(module, "encode", None) is not encode:
        raise Skipped("the transport's module takes frames from elsewhere than splitlab.core.wire")

    def corrupt(message: Message) -> Frame:
        frame = encode(message)
        return frame._replace(head=b"HTTP" + frame.head[4:])

    with s.both() as (client, server, aside):
        vars(module)["encode"] = corrupt
        try:
            _refused(s, client, server, aside, "receiving what is no frame")
        finally:
            vars(module)["encode"] = encode
    return None


def _refused(s: Ends, client: Link, server: Link, aside: ThreadPoolExecutor, what: str) -> None:
    """Send a message that the server's end must refuse."""
    sending: Future[int] = aside.submit(client.send, a_message(), s.soon)
    try:
        raises(ProtocolError, what, lambda: server.receive(s.soon))
    finally:
        server.close()
        with contextlib.suppress(NetworkError):
            sending.result()


def names_the_other_end(s: Ends) -> str | None:
    """Each end says in one line who is at the other."""
    with s.both() as (client, server, _):
        for end, role in ((client, "client"), (server, "server")):
            said = end.remote
            if not isinstance(said, str) or not said.strip() or "\n" in said:
                raise Failed(f"the {role}'s end calls the other {said!r}; say it in one line")
    return None


LINK_CHECKS: list[Check[Ends]] = [
    Check("every-kind-arrives", "both ways, as many bytes as the wire's", every_kind_arrives),
    Check("arrives-in-order", "twenty messages arrive as they were sent", arrives_in_order),
    Check("arrives-in-own-memory", "a large tensor is a copy", arrives_in_own_memory),
    Check("silence-ends-in-time", "a receive ends by its deadline", silence_ends_in_time),
    Check("unread-send-ends-in-time", "so does a send nobody reads", unread_send_ends_in_time),
    Check("closing-is-noticed", "at once, by whoever sends or receives", closing_is_noticed),
    Check("closed-link-says-so", "closing twice is allowed", closed_link_says_so),
    Check("limits-hold", "from the next message on", limits_hold),
    Check("garbage-is-refused", "and is the other end's fault", garbage_is_refused),
    Check("names-the-other-end", "for error messages", names_the_other_end),
]

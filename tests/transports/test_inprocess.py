"""Both peers in one process: the turns of the server, and memory that nobody shares.

The contract that it holds like every other transport is in test_contract.py.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core import Kind, Message, NetworkError, Role
from splitlab.core.catalogue.listing import transport_facts
from splitlab.core.contract.errors import ProtocolError
from splitlab.core.contract.link import Limits
from splitlab.core.engine.conversation import hold
from splitlab.core.testing import check_transport
from splitlab.core.testing.links import a_message
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.wire.encode import encode
from splitlab.core.wire.layout import DTYPES
from splitlab.transports import inprocess
from splitlab.transports.inprocess import InProcess

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")


def message(step: int = 0, tensor: torch.Tensor | None = None) -> Message:
    made = Message(Kind.ACTIVATION, step)
    made.put("x", torch.zeros(3) if tensor is None else tensor, Role.PAYLOAD)
    return made


def test_it_works_everywhere_and_in_one_process_only() -> None:
    assert InProcess().unavailable() is None
    assert InProcess().place == "inside"


def test_the_server_takes_its_turns_inside_of_the_clients_wait() -> None:
    turns: list[int] = []

    def serve() -> None:
        arrived = server.receive(0.0)
        turns.append(arrived.step)
        if arrived.step != 1:  # it may need more than one turn to answer
            server.send(message(10 * arrived.step), 1.0)

    client, server = InProcess().pair(serve)
    for step in (1, 2):
        client.send(message(step), 1.0)
    assert turns == []
    assert client.receive(1.0).step == 20
    assert turns == [1, 2]


def test_a_server_that_says_nothing_costs_no_patience() -> None:
    client, server = InProcess().pair(lambda: server.receive(0.0))
    client.send(message(), 1.0)
    started = time.monotonic()
    with pytest.raises(
        NetworkError, match="the server in this process: the other end sent nothing"
    ):
        client.receive(60.0)
    assert time.monotonic() - started < 30


def test_the_peers_share_no_memory_and_no_message() -> None:
    client, server = InProcess().pair()
    tensor = torch.ones(3)
    sent = message(4, tensor)
    assert client.send(sent, 1.0) == sent.frame_bytes > 12
    tensor.zero_()
    arrived: Any = server.receive(1.0)
    assert arrived is not sent
    assert arrived["x"].tolist() == [1, 1, 1]
    assert arrived.frame_bytes == sent.frame_bytes


def test_what_was_sent_before_the_end_still_arrives() -> None:
    client, server = InProcess().pair()
    client.send(message(7), 1.0)
    client.close()
    assert server.receive(1.0).step == 7
    with pytest.raises(
        NetworkError, match="the client in this process: the other end closed the co"
    ):
        server.receive(60.0)
    with pytest.raises(NetworkError, match="closed the connection"):
        server.send(message(), 1.0)


# Tensors that stay on their device. Without a GPU, those in CPU memory are told to stay there.

DEVICES = ["cpu", pytest.param("cuda", marks=[gpu, needs_gpu])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "cpu":
        monkeypatch.setattr(inprocess, "_stays", lambda tensor: True)
        return torch.device("cpu")
    return torch.device("cuda", 0)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    made = Message(
        draw(st.sampled_from(Kind)),
        draw(st.integers(0, 2**64 - 1)),
        training=draw(st.booleans()),
        stacked=draw(st.booleans()),
        meta=draw(st.dictionaries(st.sampled_from(["loss", "step"]), st.floats(), max_size=2)),
    )
    made.elapsed_ns = draw(st.integers(0, 2**64 - 1))
    made.notes = draw(st.dictionaries(st.just("adc"), st.lists(st.integers(), max_size=2)))
    for number in range(draw(st.integers(0, 5))):
        dtype = draw(st.sampled_from([*DTYPES.values()]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        raw = torch.tensor([*draw(st.randoms()).randbytes(27 * 8)], dtype=torch.uint8)
        tensor = raw[: torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)
        if draw(st.booleans()) and tensor.ndim > 1:
            tensor = tensor.transpose(0, 1)
        made.put(str(number), tensor, draw(st.sampled_from(Role)))
    return made


def copied(sent: Message, devices: list[torch.device]) -> Message:
    """Return an equal message, its tensors on these devices in turn."""
    made = Message(
        sent.kind, sent.step, training=sent.training, stacked=sent.stacked, meta=sent.meta
    )
    made.notes = dict(sent.notes)
    made.elapsed_ns = sent.elapsed_ns
    for number, name in enumerate(sent):
        tensor = sent[name].to(devices[number % len(devices)])
        made.put(name, tensor, sent.role(name))
    return made


def carried(sent: Message, *, real_bytes: bool = False) -> Message:
    """Return what arrives of it, through as many bytes as were counted."""
    client, server = InProcess(real_bytes=real_bytes).pair()
    size = client.send(sent, 1.0)
    arrived = server.receive(1.0)
    assert size == sent.frame_bytes == arrived.frame_bytes
    return arrived


def facts(message: Message) -> Any:
    said = json.dumps([message.meta, message.notes])  # as text, so that NaN equals itself
    flags = (message.kind, message.step, message.training, message.stacked)
    return said, flags, message.elapsed_ns, message.frame_bytes


@given(sent=messages())
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("name", DEVICES)
def test_what_stays_arrives_as_what_was_decoded(name: str, sent: Message) -> None:
    device = torch.device(name)
    decoded = carried(copied(sent, [device]), real_bytes=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess, "_stays", lambda tensor: tensor.device.type == name)
        arrived = carried(copied(sent, [device]))
    assert facts(arrived) == facts(decoded)
    assert difference([Seen.of(arrived)], [Seen.of(decoded)]) is None
    assert all(decoded[key].is_cpu for key in decoded)
    full = [arrived[key] for key in arrived if arrived[key].numel()]
    assert {tensor.device.type for tensor in full} <= {name}
    assert all(tensor.data_ptr() % tensor.dtype.itemsize == 0 for tensor in full)


def test_what_stays_is_there_already(device: torch.device) -> None:
    arrived = carried(copied(a_message(), [device]))
    assert {arrived[name].device for name in arrived} == {device}
    before = [arrived[name] for name in arrived]
    arrived.to(device)
    assert all(arrived[name] is tensor for name, tensor in zip(arrived, before, strict=True))


def test_what_stays_is_shared_with_nobody(device: torch.device) -> None:
    client, server = InProcess().pair()
    tensor = torch.ones(3, 4, device=device)
    client.send(message(4, tensor), 1.0)
    tensor.zero_()
    client.send(message(5, tensor), 1.0)
    first, second = server.receive(1.0), server.receive(1.0)
    assert first["x"].tolist() == [[1.0] * 4] * 3
    first["x"].fill_(7)
    assert second["x"].tolist() == [[0.0] * 4] * 3
    assert tensor.sum() == 0


def test_limits_hold_for_what_stays(device: torch.device) -> None:
    sent = copied(a_message(), [device])
    size = encode(sent).nbytes
    client, server = InProcess().pair()
    for _ in range(4):
        client.send(sent, 1.0)
    server.limits = Limits(frame_bytes=size)
    assert server.receive(1.0).frame_bytes == size
    for limits in (Limits(frame_bytes=size - 1), Limits(header_bytes=8), Limits(tensors=3)):
        server.limits = limits
        with pytest.raises(ProtocolError, match="allowed"):
            server.receive(1.0)


def test_a_frame_whose_head_lies_is_refused(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(sent: Message) -> Any:
        frame = encode(sent)
        return frame._replace(head=frame.head.replace(b'"F32"', b'"F23"'))

    monkeypatch.setattr(inprocess, "encode", lying)
    client, server = InProcess().pair()
    client.send(message(tensor=torch.ones(3, device=device)), 1.0)
    with pytest.raises(ProtocolError, match="the header and the checksum differ"):
        server.receive(1.0)


def test_peers_train_alike_on_what_stays(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses() -> list[float]:
        client, server = tiny.pair()

        def ask(asked: Message) -> Message:
            return carried(server.handle(carried(asked)))

        return [hold(client.train(tiny.batch(step), step), ask).loss for step in range(3)]

    decoded = losses()
    monkeypatch.setattr(inprocess, "_stays", lambda tensor: True)
    assert losses() == decoded


@gpu
@needs_gpu
def test_a_frame_of_two_devices_arrives_on_both() -> None:
    both = [torch.device("cpu"), torch.device("cuda", 0)]
    sent = copied(a_message(), both)
    arrived = carried(sent)
    decoded = carried(copied(a_message(), both), real_bytes=True)
    where = {name: arrived[name].device for name in arrived if arrived[name].numel()}
    assert where == {"side": both[0], "activations": both[1], "targets": both[0]}
    cpu = torch.device("cpu")
    assert difference([Seen.of(arrived.to(cpu))], [Seen.of(decoded.to(cpu))]) is None


@gpu
@needs_two
def test_a_receiver_on_another_gpu_fetches_the_tensors() -> None:
    sent = copied(a_message(), [torch.device("cuda", 0)])
    arrived = carried(sent).to(torch.device("cuda", 1))
    decoded = carried(copied(a_message(), [torch.device("cpu")]))
    cpu = torch.device("cpu")
    assert difference([Seen.of(arrived.to(cpu))], [Seen.of(decoded)]) is None


@gpu
@needs_gpu
def test_nobody_waits_for_what_stays() -> None:
    sent = copied(a_message(loss=0.5), [torch.device("cuda", 0)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        carried(sent).to(torch.device("cuda", 0))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@needs_gpu
def test_a_receiver_with_a_stream_of_its_own_waits_for_the_copies() -> None:
    client, server = InProcess().pair()
    device = torch.device("cuda", 0)
    tensor = torch.zeros(2**20, device=device)
    torch.cuda.synchronize(device)
    sums: list[float] = []

    def receive() -> None:
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for _ in range(3):
                sums.append(server.receive(10.0)["x"].sum().item())

    thread = threading.Thread(target=receive)
    thread.start()
    with torch.cuda.stream(torch.cuda.Stream(device)):
        for step in range(3):
            torch.cuda._sleep(20_000_000)  # the copies are far from done when they are taken
            tensor.fill_(step + 1)
            client.send(message(step, tensor), 10.0)
            tensor.zero_()
    thread.join()
    torch.cuda.synchronize(device)
    assert sums == [2.0**20, 2.0**21, 3 * 2.0**20]


class Recorded:
    """Stands in for a stream, and for a tensor that is on a GPU."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def wait_stream(self, stream: str) -> None:
        self.log.append(("waits for", stream))

    def record_stream(self, stream: Recorded) -> None:
        self.log.append(("used by", stream is self))


def test_the_receivers_stream_waits_and_keeps_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: Any = Recorded()
    recorded.device = device = torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.current_stream", lambda of: {device: recorded}[of])
    theirs: Any = "the sender's"
    on_cpu = torch.zeros(1)
    inprocess._Copies(b"", [recorded, on_cpu], {device: theirs})._wait()
    assert recorded.log == [("waits for", "the sender's"), ("used by", True)]


def test_peers_of_one_stream_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: Any = Recorded()
    recorded.device = device = torch.device("cuda", 1)
    monkeypatch.setattr("torch.cuda.current_stream", lambda of: recorded)
    inprocess._Copies(b"", [recorded], {device: recorded})._wait()
    assert recorded.log == []


def test_the_real_bytes_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "_stays", lambda tensor: pytest.fail("it asks what stays"))
    check_transport("inprocess:real_bytes=true").raise_if_failed()
    [setting] = transport_facts("inprocess")["parameters"]
    assert (setting["name"], setting["default"]) == ("real_bytes", False)

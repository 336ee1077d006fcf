"""A link that is as slow as another one: whatever crosses it takes as long as it would take there.

    splitlab run --plugin adc --link lte
    splitlab run --plugin adc --link rate=20mbit,delay=40ms,jitter=5ms,loss=0.01

Frames and their bytes stay as they are. Each end holds what it sends back for as long as the frame
would be on its way, since peers take turns and nothing else could be sent meanwhile:

    seconds = packets sent * bits of a packet / rate + waits for what was lost + delay ± jitter

A frame goes in packets of 1,500 bytes as on Ethernet: 1,448 of them the frame's, and 66 bytes of
headers around these (Ethernet 14, IPv4 20, TCP 20 and its time stamp 12). A rate is that of the
link, headers included, as the kernel's ``tc … tbf`` counts it.

Each packet is lost with the probability ``loss``, independently. The sender learns of it one round
trip (two delays) later, and sends it again before anything else, until all has arrived: selective
repeat at full rate. So a packet that is lost amid a long frame costs its time on the link, and one
at the end the round trip as well. Congestion control, which slows down after a loss, is not in it,
and neither are the other end's acknowledgements. The ledger counts a frame once: what is repeated
is seconds here, not bytes.

Evaluations are not paced: they are the laboratory's, and in no seconds that a run tells.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import torch

from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.core.contract.link import Link, PeerRole, WrappedLink
from splitlab.core.contract.message import Message
from splitlab.core.wire.encode import encode

__all__ = ["Paced", "PacedLink"]

_RATES: Final = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TIMES: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_PACKET_BYTES = 1448
_HEADER_BYTES = 66
_MOST_SECONDS = 60.0
_MOST_LOSS = 0.5


class Paced:
    """Everything takes as long as on a link of this rate, delay, jitter and loss.

    Args:
        rate: bits a second, headers included, as 20mbit (bit, kbit, mbit, gbit); none: no limit.
        up: the same of what the client sends, where that is another; none: as rate.
        delay: of everything, in one direction, as 40ms (us, ms, s).
        jitter: a message's delay is drawn from delay ± this, evenly; no more than delay.
        loss: probability that a packet is lost and sent again, 0 to 0.5; it costs time, no bytes.
        seed: of the draws, which are those of the message at both ends, and after a resume.
    """

    def __init__(
        self,
        *,
        rate: str | None = None,
        up: str | None = None,
        delay: str = "0ms",
        jitter: str = "0ms",
        loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        down = _rate("rate", rate)
        self._rates: dict[PeerRole, float] = {
            "client": down if up is None else _rate("up", up),
            "server": down,
        }
        self._delay, self._jitter = _time("delay", delay), _time("jitter", jitter)
        if self._jitter > self._delay:
            raise ConfigError(
                f"jitter={jitter} is more than delay={delay}: a message would arrive before it was "
                "sent; give less jitter, or more delay"
            )
        if not 0 <= loss <= _MOST_LOSS:
            raise ConfigError(f"loss={loss} is not allowed; a share of the packets, 0 to 0.5")
        self._loss = loss
        self._seed = seed

    def wrap(self, link: Link, role: PeerRole) -> Link:
        """Return a link that takes its time with what this end sends."""
        return PacedLink(link, self, role)

    def seconds(self, role: PeerRole, frame_bytes: int, *purpose: str | int) -> float:
        """Return how long a frame is on its way.

        Args:
            role: of the peer that sends it.
            frame_bytes: its length.
            purpose: what the draws of delay and loss follow.
        """
        draws = random.Random(" ".join(map(str, (self._seed, role, *purpose))))
        delay = self._delay + draws.uniform(-self._jitter, self._jitter)
        packets = max(1, math.ceil(frame_bytes / _PACKET_BYTES))
        sending = 8 * (frame_bytes + packets * _HEADER_BYTES) / self._rates[role]
        if self._loss:
            sending = _repeating(packets, sending / packets, 2 * self._delay, self._loss, draws)
        return sending + delay


class PacedLink(WrappedLink):
    """Waits before it sends, for as long as the frame would be on its way."""

    def __init__(self, inside: Link, pace: Paced, role: PeerRole) -> None:
        super().__init__(inside)
        self._pace = pace
        self._role = role

    def send(self, message: Message, timeout: float) -> int:
        """Wait, then send; `NetworkError` at once if that takes longer than the deadline."""
        if not message.training:
            return super().send(message, timeout)
        frame = encode(message)
        _wait_for(frame.tensors)
        began = time.perf_counter()
        size = frame.nbytes
        seconds = self._pace.seconds(self._role, size, message.kind.name, message.step)
        if seconds > timeout:
            raise NetworkError(
                f"{self.remote}: a frame of {size:,} bytes takes {seconds:.3g} s on this link, and "
                f"a peer waits for {timeout:g} s; give --timeout {math.ceil(seconds)} or more, "
                "compress more, or take a faster --link"
            )
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        return super().send(message, timeout)

    def receive(self, timeout: float) -> Message:
        """Return the next message.

        It may be on its way for as long as the deadline, of which nothing is seen here, so silence
        is found out after twice the deadline.
        """
        return super().receive(2 * timeout)


def _wait_for(tensors: Sequence[torch.Tensor]) -> None:
    """Wait until a GPU has made what is sent, which cannot be on its way before."""
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()


def _repeating(
    packets: int, each: float, round_trip: float, loss: float, draws: random.Random
) -> float:
    """Return the seconds until the last of the packets has left that is not lost.

    Args:
        packets: of the frame.
        each: seconds of one on the link.
        round_trip: seconds after which the sender learns that one was lost.
        loss: probability of that.
        draws: gives it for each packet that is sent.
    """
    now, fresh = 0.0, packets
    known: deque[float] = deque()  # when the sender learns of each that is lost
    while fresh or known:
        if known and (known[0] <= now or not fresh):
            now = max(now, known.popleft())
        else:
            fresh -= 1
        now += each
        if draws.random() < loss:
            known.append(now + round_trip)
    return now


def _rate(name: str, text: str | None) -> float:
    """Return bits a second."""
    if text is None:
        return math.inf
    rate = _number(text, _RATES)
    if rate is None or rate < 1:
        raise ConfigError(
            f"{name}={text} is not allowed; a rate above 0 with its unit, bit, kbit, mbit or gbit, "
            f"as in {name}=20mbit"
        )
    return rate


def _time(name: str, text: str) -> float:
    """Return seconds."""
    seconds = _number(text, _TIMES)
    if seconds is None or seconds > _MOST_SECONDS:
        raise ConfigError(
            f"{name}={text} is not allowed; 0 to 60 s with the unit us, ms or s, as in {name}=40ms"
        )
    return seconds


def _number(text: str, units: dict[str, float]) -> float | None:
    """Return a number with a unit in the base unit; None if the text is none."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([a-z]+)", text.strip().lower())
    if not found or found[2] not in units:
        return None
    return float(found[1]) * units[found[2]]

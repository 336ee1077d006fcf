"""Erasure: packets of what leaves are lost, and the receiver knows which.

The packet erasure channel; T. M. Cover, J. A. Thomas, "Elements of Information Theory", 2nd
edition, 2006, section 7.1.5, with a packet as its symbol.

1. The sender cuts the bytes of every payload tensor, as they are about to leave, into packets.
2. Every packet is lost with probability ``rate``, whatever becomes of the others. Both peers draw
   the same losses, so that the receiver knows them as it would from missing numbers of packets.
3. ``lost=zeros``: its bytes are 0: zeros in floating point; of codes, the code 0, which a quantizer
   decodes as the lowest value of its range.
   ``lost=last``: its bytes are those of the same packet of the last training step, as the receiver
   had them then; 0 where there was none.
   ``lost=resend``: it is sent again until it arrives; each time is lost with the same probability.

Up and down: what comes in, as many bytes, lost ones included, for they were sent. With
``lost=resend`` the packets that were sent again follow (``erasure.NAME``), and count as side
information. Headers, notes, labels and side information are never lost.

Gradient: natural with ``lost=resend``, which changes nothing; else straight-through, and the
gradient has losses of its own on its way back. Evaluation batches pass the channel as well, and
with ``lost=last`` are filled from the last training step; predictions that come back pass it not.
``lost_packets`` of a step are logged by the peer that sent them.

``zeros`` and ``last`` stand behind methods that decode whatever bits arrive; others take
``lost=resend``. A number in a packet that is lost is left out, whatever it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from splitlab.core import Kind, Message, Peer, ProtocolError, Role, Traits, hookimpl, upload
from splitlab.plugins.common.channels import Direction, by_kind, octets_of, payloads, seeded
from splitlab.plugins.common.settings import check_choice, refusal

__all__ = ["Erasure"]

Lost = Literal["zeros", "last", "resend"]

_NAME = "erasure"
_MOST_RATE = 0.9


class Erasure:
    """Lose packets of the payload at random.

    Args:
        rate: chance of every packet of activations to be lost, 0 to 0.9.
        gradient_rate: of gradients; None: the same.
        packet: bytes of a packet, a multiple of 8, so that no number is torn; the last one may be
            shorter. 1400 and headers fit into an Ethernet frame.
        lost: what takes a lost packet's place: zeros, last (of the last training step), or resend.
        direction: both, up (activations) or down (gradients).
        evaluation: whether evaluation batches pass the channel, too.
    """

    def __init__(
        self,
        *,
        rate: float = 0.1,
        gradient_rate: float | None = None,
        packet: int = 1400,
        lost: Lost = "zeros",
        direction: Direction = "both",
        evaluation: bool = True,
    ) -> None:
        check_choice("lost", lost, get_args(Lost))
        if packet < 8 or packet % 8:
            raise refusal("packet", packet, "multiples of 8", "for example packet=1400")
        self._rate = by_kind("rate", rate, gradient_rate, direction, _check_rate)
        self._packet = packet
        self._lost = lost
        self._evaluation = evaluation
        self._count: int | None = None
        self._last: dict[str, torch.Tensor] = {}

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, for the draws."""
        self._peer = peer

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Lose packets: leave zeros, or append what is sent again."""
        if not self._acts_on(message):
            return
        count = 0
        for name, tensor in payloads(message):
            octets, times = octets_of(tensor), self._losses(message, name, tensor.nbytes)
            count += int(times.sum())
            if self._lost == "resend":
                message.put(f"{_NAME}.{name}", self._again(octets, times), Role.SIDE)
                continue
            kept = octets.masked_fill(self._gone(times, octets), 0)
            message.put(name, kept.view(tensor.dtype).view(tensor.shape), Role.PAYLOAD)
        if message.training:
            self._count = count

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Drop what came again, or fill gaps with what came last."""
        if self._lost == "zeros" or not self._acts_on(message):
            return
        for name, tensor in payloads(message):
            if self._lost == "last":
                octets = octets_of(tensor)
                gone = self._gone(self._losses(message, name, tensor.nbytes), octets)
                filled = torch.where(gone, self._before(message, name, octets), octets)
                if message.training:
                    self._last[_key(message, name)] = filled.clone()
                message.put(name, filled.view(tensor.dtype).view(tensor.shape), Role.PAYLOAD)
            elif f"{_NAME}.{name}" in message:
                message.take(f"{_NAME}.{name}")
            else:
                raise ProtocolError(f"plugin {_NAME!r}: tensor '{_NAME}.{name}' is missing")

    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        """Return how many packets of what was sent were lost, each time one."""
        count, self._count = self._count, None
        return {} if count is None else {"lost_packets": float(count)}

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return the bytes that came last, by direction and tensor."""
        return dict(self._last)

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._last = {key: upload(last, self._peer.device) for key, last in state.items()}

    @hookimpl
    def traits(self) -> Traits:
        """Needs a payload that may have any bits, unless it is sent again; stands last."""
        resend = self._lost == "resend"
        return Traits(
            needs=set() if resend else {"any bits"},
            last=True,
            evaluation=self._evaluation and Kind.ACTIVATION in self._rate,
            stateful=self._lost == "last",
            gradient="natural" if resend else "straight-through",
        )

    def _acts_on(self, message: Message) -> bool:
        return message.kind in self._rate and (message.training or self._evaluation)

    def _losses(self, message: Message, name: str, octets: int) -> torch.Tensor:
        """Return how many times each packet is lost, (packets,) int64 on the CPU.

        At least k times with probability rate^k; what is not sent again is lost at most once.
        """
        rate = self._rate[message.kind]
        packets = -(-octets // self._packet)
        draw = seeded(self._peer, _NAME, message, name)
        chance = 1 - torch.rand(packets, generator=draw, dtype=torch.float64)  # in (0, 1]
        if rate == 0:
            return torch.zeros(packets, dtype=torch.int64)
        times = (chance.log() / math.log(rate)).floor().long()
        return times if self._lost == "resend" else times.clamp(max=1)

    def _gone(self, times: torch.Tensor, octets: torch.Tensor) -> torch.Tensor:
        """Return which bytes are in a packet that is lost, (n,) bool."""
        gone = upload(times > 0, octets.device)
        return gone[:, None].expand(-1, self._packet).reshape(-1)[: len(octets)]

    def _again(self, octets: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the bytes of all packets that are sent again, (m,) uint8."""
        again = torch.arange(len(times)).repeat_interleave(times)
        places = (again[:, None] * self._packet + torch.arange(self._packet)).view(-1)
        places = places[places < len(octets)]
        return octets.index_select(0, upload(places, octets.device))

    def _before(self, message: Message, name: str, octets: torch.Tensor) -> torch.Tensor:
        """Return what came last, as far as there was anything, as long as these bytes."""
        last = self._last.get(_key(message, name))
        if last is None:
            return torch.zeros_like(octets)
        last = last[: len(octets)]
        return torch.cat((last, octets.new_zeros(len(octets) - len(last))))


def _key(message: Message, name: str) -> str:
    return f"{message.kind.name} {name}"


def _check_rate(name: str, value: Any) -> None:
    if not 0 <= value <= _MOST_RATE:
        raise refusal(name, value, f"0 to {_MOST_RATE:g}", f"for example {name}=0.1")

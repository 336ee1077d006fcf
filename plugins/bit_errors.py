"""Bit errors: bits of what leaves flip on their way, each with the same chance.

The binary symmetric channel, T. M. Cover, J. A. Thomas, "Elements of Information Theory", 2nd
edition, 2006, section 7.1.4, without a code that would correct it.

The chance may be given as what it is for bits that are sent one by one as ±1 over additive white
Gaussian noise (BPSK, J. G. Proakis, "Digital Communications", 4th edition, 2001, section 5.2):
rate = ½ erfc(sqrt(s / 2)), where s is ``snr`` as awgn has it: power over the noise's, of one real
channel use. Codes and analog numbers then stand on one axis.

1. The sender takes the bytes of every payload tensor as they are about to leave: codes of a
   quantizer, or floating point if nothing in front made codes.
2. Every bit flips with probability ``rate``, whatever the others do. The distance from one error to
   the next is then geometric, so that errors are drawn and not bits: d = 1 + ⌊ln(1 - u) / ln(1 -
   rate)⌋ with u uniform in [0, 1).
3. Floating point only: a flipped exponent makes a number huge, infinite or NaN. The sender says the
   largest magnitude of every row (``bit-errors.NAME``), and what is beyond it or not finite is 0
   for the receiver, and counted (``zeroed_numbers``). What is smaller stays wrong. A row that was
   not finite when it left arrives as NaN: nobody's divergence is hidden.

Up and down: what comes in, as many bytes; 4 bytes for every row of floating point. Headers, notes,
labels and side information (places of kept numbers, ranges of codes) are taken to travel behind a
strong code, and arrive as they left. Whatever bits codes have after it must be codes: methods of
which only some are, or whose bytes follow from each other, are refused in front of it.

Gradient: straight-through; the gradient has errors of its own on its way back. Evaluation batches
pass the channel as well; predictions that come back do not. Channel and receiver are computed at
the sender, who logs ``flipped_bits`` and ``zeroed_numbers`` of what it sent in a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from splitlab.core import Fetch, Kind, Message, Peer, Role, Traits, hookimpl, upload
from splitlab.plugins.common.channels import (
    Direction,
    by_kind,
    check_db,
    octets_of,
    payloads,
    rows_of,
    seeded,
)
from splitlab.plugins.common.exchange import take_checked, working_dtype
from splitlab.plugins.common.settings import either, refusal

__all__ = ["BitErrors", "bpsk_errors", "errors"]

_NAME = "bit-errors"
_DEFAULT_RATE = 1e-3
_MOST_RATE = 0.5


class BitErrors:
    """Flip bits of the payload at random.

    Args:
        rate: chance of every bit of activations to flip, 0 to 0.5; 0.001 if neither rate nor snr is
            given. Time and memory grow with the number of errors.
        snr: signal to noise in dB, -100 to 100, of BPSK that has this chance.
        gradient_rate: of gradients; None: the same.
        direction: both, up (activations) or down (gradients).
        evaluation: whether evaluation batches pass the channel, too.
    """

    def __init__(
        self,
        *,
        rate: float | None = None,
        snr: float | None = None,
        gradient_rate: float | None = None,
        direction: Direction = "both",
        evaluation: bool = True,
    ) -> None:
        either(rate=rate, snr=snr)
        if snr is not None:
            check_db("snr", snr)
            rate = bpsk_errors(snr)
        rate = _DEFAULT_RATE if rate is None else rate
        self._rate = by_kind("rate", rate, gradient_rate, direction, _check_rate)
        self._evaluation = evaluation
        self._flipped: int | None = None
        self._zeroed: Fetch | None = None

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, for the draws."""
        self._peer = peer

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Flip bits of the payload."""
        rate = self._rate.get(message.kind)
        if rate is None or not (message.training or self._evaluation):
            return
        flipped, zeroed = 0, []
        for name, tensor in payloads(message):
            octets = octets_of(tensor)
            places = errors(octets.numel() * 8, rate, seeded(self._peer, _NAME, message, name))
            flipped += len(places)
            mask = upload(_mask(places, octets.numel()), octets.device)
            arrived = (octets ^ mask).view(tensor.dtype).view(tensor.shape)
            if tensor.is_floating_point():
                peak_R = _peaks(tensor)
                arrived, count = _held(arrived, peak_R)
                zeroed.append(count)
                message.put(f"{_NAME}.{name}", peak_R, Role.SIDE)
            message.put(name, arrived, Role.PAYLOAD)
        if message.training:
            self._flipped = flipped
            self._zeroed = Fetch(torch.stack(zeroed).sum()) if zeroed else None

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Take away what was said of the largest magnitudes: the sender has gone by it."""
        if message.kind not in self._rate or not (message.training or self._evaluation):
            return
        for name, tensor in payloads(message):
            if tensor.is_floating_point():
                dtype, shape = working_dtype(tensor.dtype), [len(rows_of(tensor))]
                take_checked(message, _NAME, f"{_NAME}.{name}", dtype, shape)

    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        """Return how many bits flipped in what was sent, and how many numbers that made 0."""
        found = {}
        if self._flipped is not None:
            found["flipped_bits"] = float(self._flipped)
        if self._zeroed is not None:
            found["zeroed_numbers"] = float(self._zeroed.tensor())
        self._flipped = self._zeroed = None
        return found

    @hookimpl
    def traits(self) -> Traits:
        """Needs a payload that may have any bits; stands last."""
        return Traits(
            needs={"any bits"},
            last=True,
            evaluation=self._evaluation and Kind.ACTIVATION in self._rate,
            gradient="straight-through",
        )


def bpsk_errors(snr: float) -> float:
    """Return the chance that a bit sent as ±1 arrives as the other one.

    Args:
        snr: in dB, of a real channel use.
    """
    return math.erfc(math.sqrt(10 ** (snr / 10) / 2)) / 2


def errors(bits: int, rate: float, draw: torch.Generator) -> torch.Tensor:
    """Return which of so many bits flip, each with this chance: (errors,) int64, rising.

    Args:
        bits: how many there are.
        rate: in [0, 0.5].
        draw: on the CPU.
    """
    found, last = [torch.empty(0, dtype=torch.float64)], -1.0
    while rate > 0 and last < bits - 1:
        count = int((bits - last) * rate * 1.1) + 64  # nearly always enough at once
        chance = torch.rand(count, generator=draw, dtype=torch.float64)
        gaps = (torch.log1p(-chance) / math.log1p(-rate)).floor() + 1
        places = last + gaps.cumsum(0)
        found.append(places)
        last = float(places[-1])
    places = torch.cat(found)
    return places[places < bits].long()


def _mask(places: torch.Tensor, octets: int) -> torch.Tensor:
    """Return the bytes (octets,) uint8 with a 1 at each of these bits."""
    mask = torch.zeros(octets, dtype=torch.uint8)
    return mask.index_add_(0, places // 8, (1 << places % 8).to(torch.uint8))


def _peaks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of every row, exactly, (R,)."""
    return rows_of(tensor).to(working_dtype(tensor.dtype)).abs().amax(dim=1)


def _held(tensor: torch.Tensor, peak_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 0 for what is beyond its row's peak, NaN if that is no number; and how many are 0."""
    peak_R1 = peak_R[:, None]
    rows_Rn = rows_of(tensor).to(peak_R.dtype)
    beyond_Rn = ~(rows_Rn.abs() <= peak_R1)
    faulty_R1 = ~peak_R1.isfinite()
    held_Rn = rows_Rn.masked_fill(beyond_Rn, 0.0).masked_fill(faulty_R1, torch.nan)
    return held_Rn.view(tensor.shape).to(tensor.dtype), (beyond_Rn & ~faulty_R1).sum()


def _check_rate(name: str, value: Any) -> None:
    if not 0 <= value <= _MOST_RATE:
        raise refusal(name, value, f"0 to {_MOST_RATE:g}", f"for example {name}=0.001")

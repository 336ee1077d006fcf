"""AWGN and Rayleigh: the numbers leave as they are, analog, and noise is added on their way.

Each real number is one real channel use, without quantizing or coding, as in E. Bourtsoulatze,
D. B. Kurka, D. Gündüz, "Deep Joint Source-Channel Coding for Wireless Image Transmission", 2019,
arXiv 1809.01733, which normalises the power alike and has the same two channels. Fading as in
D. Tse, P. Viswanath, "Fundamentals of Wireless Communication", 2005, section 2.4; equalizers as in
its chapters 3 and 8.

Every payload tensor by itself; R rows (samples) of n numbers each, or the whole tensor:

1. Power: x̂ = x / p with p = sqrt(mean x²), so that a number has mean power 1.
2. Channel: s² = 10^(-snr / 10) is the power of the noise in a number.
   awgn: y = x̂ + s n with n ~ N(0, 1).
   rayleigh: two numbers are one complex symbol, y = h x̂ + noise, with h ~ CN(0, 1), the same for
   a whole row (``fading=block``) or drawn for every symbol (``fading=iid``). The receiver knows h
   and turns its phase back, which leaves circular noise as it is: r = g x̂ + s n, g = |h|, where g²
   is exponentially distributed with mean 1; ``snr`` is the mean over fading.
3. Equalizer of rayleigh: ``mmse`` y = g r / (g² + s²), or ``zf`` y = r / g, whose noise has no
   finite power over all fades.
4. The receiver multiplies by p.

Up and down: the payload in its own dtype, and p beside it (``awgn.NAME``, ``rayleigh.NAME``): 4
bytes per row or tensor, which arrive without noise, as side information and labels do. What the
receiver learns of h from pilots is not charged. An analog channel has no bytes; what the ledger
counts are numbers of its own width, which is channel uses in units of so many bytes.

Gradient: straight-through, as if what arrives were what left: neither p, by which the noise follows
the numbers, nor the gain g² / (g² + s²) of mmse is differentiated. The gradient has its own channel
on its way back. Evaluation batches pass the channel as well; predictions that come back do not.
Channel and equalizer are computed at the sender, in one place with one draw.

NaN or an infinity makes everything not finite that shares its power.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch

from splitlab.core import Kind, Message, Peer, ProtocolError, Role, Traits, hookimpl
from splitlab.plugins.common.channels import (
    Direction,
    by_kind,
    check_db,
    payloads,
    rows_of,
    seeded,
)
from splitlab.plugins.common.exchange import take_checked, working_dtype
from splitlab.plugins.common.settings import check_choice

__all__ = ["AWGN", "Rayleigh"]

Per = Literal["row", "tensor"]
Fading = Literal["block", "iid"]
Equalizer = Literal["mmse", "zf"]


class _Analog(ABC):
    """A channel for numbers: power, noise of a named SNR, and power again."""

    name: str

    def __init__(
        self,
        snr: float,
        gradient_snr: float | None,
        per: Per,
        direction: Direction,
        evaluation: bool,
    ) -> None:
        check_choice("per", per, get_args(Per))
        self._snr = by_kind("snr", snr, gradient_snr, direction, check_db)
        self._per = per
        self._evaluation = evaluation

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, for the noise."""
        self._peer = peer

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Replace numbers by what the channel makes of them, of mean power 1."""
        snr = self._snr.get(message.kind)
        if snr is None or not (message.training or self._evaluation):
            return
        noise_power = math.pow(10, -snr / 10)
        passed = []
        for name, values in payloads(message):
            working = values.to(working_dtype(values.dtype))
            signal_Rn, power_R = _normalised(self._rows(working))
            agreed = seeded(self._peer, self.name, message, name)
            # The receiver needs no draws, so that they may be made where the values lie.
            draw = torch.Generator(values.device).manual_seed(agreed.initial_seed())
            received = self._through(signal_Rn, noise_power, draw).view(values.shape)
            if values.dtype.itemsize < 4:  # in 8 bits of floating point too much is no number
                most = torch.finfo(values.dtype).max
                received = received.clamp(-most, most)
            message.put(name, received.to(values.dtype), Role.PAYLOAD)
            message.put(f"{self.name}.{name}", power_R, Role.SIDE)
            passed.append(name)
        if passed:
            message.push(self.name, passed)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Give the numbers their power back."""
        note = message.pop(self.name)
        if note is None:
            return
        if not isinstance(note, list) or any(str(name) not in message for name in note):
            raise ProtocolError(
                f"plugin {self.name!r}: the note does not name tensors of the message"
            )
        for name in note:
            received = message[name]
            if not received.is_floating_point() or not received.numel():
                raise ProtocolError(f"plugin {self.name!r}: {name} arrived as {received.dtype}")
            dtype = working_dtype(received.dtype)
            rows_Rn = self._rows(received.to(dtype))
            shape = [len(rows_Rn)]
            power_R = take_checked(message, self.name, f"{self.name}.{name}", dtype, shape)
            restored = (rows_Rn * power_R[:, None]).view(received.shape)
            message.put(name, restored.to(received.dtype), Role.PAYLOAD)

    @hookimpl
    def traits(self) -> Traits:
        """Needs numbers and nothing else; stands last."""
        return Traits(
            needs={"analog"},
            last=True,
            evaluation=self._evaluation and Kind.ACTIVATION in self._snr,
            gradient="straight-through",
        )

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return what has a power of its own, (R, n)."""
        return rows_of(values) if self._per == "row" else values.reshape(1, -1)

    @abstractmethod
    def _through(
        self, signal_Rn: torch.Tensor, noise_power: float, draw: torch.Generator
    ) -> torch.Tensor:
        """Return what is received of a signal of mean power 1, (R, n)."""


class AWGN(_Analog):
    """Send analog numbers through additive white Gaussian noise.

    Args:
        snr: signal to noise in dB, -100 to 100, of activations.
        gradient_snr: of gradients; None: the same.
        per: what is normalised to power 1 by itself: row (a sample) or tensor (a whole message).
        direction: both, up (activations) or down (gradients).
        evaluation: whether evaluation batches pass the channel, too.
    """

    name = "awgn"

    def __init__(
        self,
        *,
        snr: float = 10.0,
        gradient_snr: float | None = None,
        per: Per = "row",
        direction: Direction = "both",
        evaluation: bool = True,
    ) -> None:
        super().__init__(snr, gradient_snr, per, direction, evaluation)

    def _through(
        self, signal_Rn: torch.Tensor, noise_power: float, draw: torch.Generator
    ) -> torch.Tensor:
        return signal_Rn + math.sqrt(noise_power) * _standard(signal_Rn, draw)


class Rayleigh(_Analog):
    """Send analog numbers through Rayleigh fading and noise, to a receiver that knows the channel.

    Args:
        snr: mean signal to noise in dB, -100 to 100, of activations.
        gradient_snr: of gradients; None: the same.
        fading: what has a coefficient of its own: block (whatever has a power of its own, see per)
            or iid (every symbol, which is two numbers).
        equalizer: mmse (least mean square error) or zf (zero forcing).
        per: what is normalised to power 1 by itself: row (a sample) or tensor (a whole message).
        direction: both, up (activations) or down (gradients).
        evaluation: whether evaluation batches pass the channel, too.
    """

    name = "rayleigh"

    def __init__(
        self,
        *,
        snr: float = 10.0,
        gradient_snr: float | None = None,
        fading: Fading = "block",
        equalizer: Equalizer = "mmse",
        per: Per = "row",
        direction: Direction = "both",
        evaluation: bool = True,
    ) -> None:
        check_choice("fading", fading, get_args(Fading))
        check_choice("equalizer", equalizer, get_args(Equalizer))
        super().__init__(snr, gradient_snr, per, direction, evaluation)
        self._fading = fading
        self._equalizer = equalizer

    def _through(
        self, signal_Rn: torch.Tensor, noise_power: float, draw: torch.Generator
    ) -> torch.Tensor:
        gain_Rn = self._gain(signal_Rn, draw)
        received_Rn = gain_Rn * signal_Rn + math.sqrt(noise_power) * _standard(signal_Rn, draw)
        if self._equalizer == "zf":
            return received_Rn / gain_Rn
        return received_Rn * gain_Rn / (gain_Rn.square() + noise_power)

    def _gain(self, signal_Rn: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Return |h|, above 0, for every number."""
        R, n = signal_Rn.shape
        drawn = 1 if self._fading == "block" else (n + 1) // 2
        power_Rs = signal_Rn.new_empty(R, drawn).exponential_(generator=draw)
        gain_Rs = power_Rs.clamp_(min=torch.finfo(power_Rs.dtype).tiny).sqrt_()
        if self._fading == "block":
            return gain_Rs
        return gain_Rs[..., None].expand(R, drawn, 2).reshape(R, -1)[:, :n]


def _normalised(values_Rn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows of mean power 1, and the root of the power that each had, (R,).

    Squares of small gradients underflow and those of large numbers overflow, so each row is first
    divided by its largest number. A row of zeros stays one, and its power 0 silences the noise.
    """
    peak_R1 = values_Rn.abs().amax(dim=1, keepdim=True)
    scaled_Rn = values_Rn / torch.where(peak_R1 > 0, peak_R1, 1.0)
    root_R1 = scaled_Rn.square().mean(dim=1, keepdim=True).sqrt()
    signal_Rn = scaled_Rn / torch.where(root_R1 > 0, root_R1, 1.0)
    return signal_Rn, (root_R1 * peak_R1).squeeze(1)


def _standard(like: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=draw, dtype=like.dtype, device=like.device)

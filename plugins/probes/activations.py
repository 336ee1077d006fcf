"""What activations at the cut are like: effective rank, sparsity, kurtosis, and loss by quantizers.

    splitlab run --plugin adc --probe activations:every=50

It looks at what the client's part makes, before the first plugin, in the first training step and in
every n-th behind it. ``metrics.jsonl`` then holds, under ``activations``:

- ``effective rank``: the exponential of the entropy of the normalised singular values (Roy and
  Vetterli, "The effective rank", EUSIPCO 2007) of at most 512 tokens of the batch, drawn by chance,
  around their mean. Hence it is at most 511, and at most the width.
- ``zeros``: share of numbers that are 0; ``sparsity``: of those below a hundredth of the root mean
  square.
- ``kurtosis``: the fourth moment over the square of the second, minus 3: 0 of a normal
  distribution, and large where few numbers are far out, which a quantizer's range has to hold.
- ``lost at 8 bits``, ``4`` and ``2``: the squared error of rounding to the nearest of 2^bits evenly
  spaced levels from the smallest to the largest number of the batch, over the squared numbers. It
  is above 1, worse than zeros, where outliers leave no level near most numbers.

``activations.png`` has numbers and singular values of the last look, of those tokens, and effective
rank and losses over steps. It sits at the client, and takes any model and stack: nothing of a
plugin is seen.

Shapes: B samples, N tokens, D width; R rows, the tokens that singular values are taken of.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from pathlib import Path

import torch

from splitlab.core import Cut, Fetch, Peer, hookimpl, picture, upload
from splitlab.plugins.probes.sampled import Sampled, curves

__all__ = ["Activations", "effective_rank", "lost", "singular_values"]

_ROWS = 512
_BITS = (8, 4, 2)
_BINS = 64


class Activations(Sampled):
    """Effective rank, sparsity and kurtosis of the activations, and what quantizers would lose.

    Args:
        every: steps between two looks.
    """

    def __init__(self, *, every: int = 50) -> None:
        super().__init__(every)
        self._fetched: tuple[Fetch, Fetch] | None = None
        self._spectrum = torch.zeros(0)
        self._values = torch.zeros(0)

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, which gives a generator."""
        self._peer = peer

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Look before the stack's first plugin."""
        if self.due(cut):
            with torch.no_grad():
                made_BND = cut.activations.detach().float()
                rows = made_BND.flatten(0, -2)
                # By chance: every n-th may be the same place of every sample.
                draw = self._peer.generator("probe activations", cut.step)
                chosen_R = torch.randperm(len(rows), generator=draw)[:_ROWS]
                rows_RD = rows[upload(chosen_R, rows.device)]
                self._fetched = Fetch(_moments(made_BND)), Fetch(rows_RD)
        yield

    def numbers(self) -> Mapping[str, float]:
        """Return what was seen."""
        if self._fetched is None:
            return {}
        (moments, rows), self._fetched = self._fetched, None
        rows_RD = rows.tensor()
        self._values = rows_RD.flatten()
        self._spectrum = singular_values(rows_RD)
        names = ["zeros", "sparsity", "kurtosis", *(f"lost at {bits} bits" for bits in _BITS)]
        told = dict(zip(names, moments.tensor().tolist(), strict=True))
        return {"effective rank": effective_rank(self._spectrum), **told}

    def kept(self) -> Mapping[str, torch.Tensor]:
        """Return what was seen last."""
        return {"spectrum": self._spectrum, "values": self._values}

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take it back."""
        self._spectrum, self._values = state["spectrum"].cpu(), state["values"].cpu()

    @hookimpl
    def report(self, folder: Path) -> str | None:
        """Draw ``activations.png``."""
        if not self.history:
            return None
        with picture(folder / "activations.png", 6.9, 3.8) as figure:
            ((values, spectrum), (rank, loss)) = figure.subplots(2, 2)
            step = int(self.history[-1]["step"])
            finite = self._values[self._values.isfinite()]
            values.hist(finite.numpy(), bins=_BINS, log=True)
            values.set(xlabel=f"activation, step {step}", ylabel="count")
            sizes = self._spectrum.clamp(min=1e-12).numpy()
            spectrum.semilogy(range(1, len(sizes) + 1), sizes)
            spectrum.set(xlabel=f"number from the largest, step {step}", ylabel="singular value")
            curves(rank, self.history, {"effective rank": ""}, "effective rank")
            lost = {f"lost at {bits} bits": f"{bits} bits" for bits in _BITS}
            curves(loss, self.history, lost, "squared error, relative")
            loss.set_yscale("log")
        last = self.history[-1]
        return f"effective rank {last['effective rank']:.1f}, kurtosis {last['kurtosis']:.1f}"


def singular_values(rows_RD: torch.Tensor) -> torch.Tensor:
    """Return the singular values of rows around their mean, largest first, float32.

    NaN, all of them, where a number is not finite.
    """
    rows_RD = rows_RD.double()
    if not bool(rows_RD.isfinite().all()):
        return torch.full((min(rows_RD.shape),), math.nan)
    rows_RD = rows_RD - rows_RD.mean(dim=0)
    R, D = rows_RD.shape
    gram = rows_RD.T @ rows_RD if D <= R else rows_RD @ rows_RD.T
    squares: torch.Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt().flip(0).float()


def effective_rank(spectrum: torch.Tensor) -> float:
    """Return the exponential of the entropy of normalised singular values; 0 if all are 0."""
    total = float(spectrum.sum())
    if total == 0:
        return 0.0
    shares = spectrum.double() / total
    return math.exp(float(-shares.xlogy(shares).sum()))


def lost(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the squared error of rounding to 2^bits levels, over the squared values, ().

    The levels go evenly from the smallest to the largest value. 0 where all are equal.
    """
    low, high = values.aminmax()
    step = (high - low) / (2**bits - 1)
    step = torch.where(step > 0, step, 1.0)
    error = ((values - low) / step).round_().mul_(step).add_(low).sub_(values)
    return error.square_().sum() / values.square().sum().clamp(min=1e-30)


def _moments(values: torch.Tensor) -> torch.Tensor:
    """Return zeros, sparsity, kurtosis, and what is lost at each number of bits."""
    size = values.abs()
    level = 0.01 * values.square().mean().sqrt()
    centred = (values - values.mean()).square_()
    kurtosis = centred.square().mean() / centred.mean().square().clamp(min=1e-30) - 3
    shares = (size == 0).float().mean(), (size < level).float().mean()
    return torch.stack([*shares, kurtosis, *(lost(values, bits) for bits in _BITS)])

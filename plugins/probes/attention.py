"""Whom the class token attends to, by layer and head, and how evenly.

    splitlab run --plugin adc --probe attention:every=50

It looks at the attention of every layer that the client computes, in the first training step and in
every n-th behind it. ``metrics.jsonl`` then holds, under ``attention``:

- ``entropy``, and ``entropy L.H`` of layer L and head H, both from 1: of the class token's
  attention over all tokens, in nats, mean over the batch. log N if it attends to all N alike.
- ``self``: the share of attention that the class token keeps for itself, mean over all heads.

``attention.png`` has one image of the last look, and beside it where every head looks, each on a
scale of its own, of twelve layers and heads at most; ``entropy.png`` has the entropies by layer and
head, and over steps. It sits at the client, and takes any stack; a model without a class token, or
cut before its first attention, is refused.

Shapes: B samples, L layers, H heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

import torch

from splitlab.core import Cut, Fetch, HeadAttention, Peer, hookimpl, picture
from splitlab.plugins.probes.sampled import Sampled, bare, curves, drawable

__all__ = ["Attention", "entropies"]

_MOST = 12
"""Layers and heads in a picture."""


class Attention(Sampled):
    """The class token's attention by layer and head, and its entropy.

    Args:
        every: steps between two looks.
    """

    def __init__(self, *, every: int = 50) -> None:
        super().__init__(every)
        self._fetched: tuple[Fetch, Fetch, torch.Tensor] | None = None
        self._entropies = torch.zeros(0, 0)
        self._map = torch.zeros(0, 0, 0)
        self._image = torch.zeros(0, 0, 0, dtype=torch.uint8)

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Ask for the attention; a model without a class token is refused here."""
        self._grid, self._prefix = peer.grid, peer.prefix_tokens
        self._request = HeadAttention()
        if peer.role == "client":
            peer.request("attention", self._request)

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Look before the stack's first plugin."""
        if self.due(cut) and cut.images is not None:
            attention_BLHN = cut.measured[self._request]
            entropy_LH = entropies(attention_BLHN)
            to_self = attention_BLHN[..., :1].mean(dim=(0, 3))
            told = Fetch(torch.stack((entropy_LH, to_self)))
            self._fetched = told, Fetch(attention_BLHN[0]), cut.images[:1]
        yield

    def numbers(self) -> Mapping[str, float]:
        """Return what was seen."""
        if self._fetched is None:
            return {}
        (told, attention, image), self._fetched = self._fetched, None
        entropy_LH, self_LH = told.tensor()
        self._entropies, self._map, self._image = entropy_LH, attention.tensor(), drawable(image)[0]
        found = {"entropy": float(entropy_LH.mean()), "self": float(self_LH.mean())}
        for layer, row in enumerate(entropy_LH.tolist(), 1):
            found |= {f"entropy {layer}.{head}": value for head, value in enumerate(row, 1)}
        return found

    def kept(self) -> Mapping[str, torch.Tensor]:
        """Return what was seen last."""
        return {"entropies": self._entropies, "map": self._map, "image": self._image}

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take it back."""
        self._entropies, self._map = state["entropies"].cpu(), state["map"].cpu()
        self._image = state["image"].cpu()

    @hookimpl
    def report(self, folder: Path) -> str | None:
        """Draw ``entropy.png``, and ``attention.png`` where tokens have places in the image."""
        if not self.history:
            return None
        self._draw_entropies(folder / "entropy.png")
        if self._grid is not None:
            self._draw_maps(folder / "attention.png", self._grid)
        return f"mean entropy of the class token's attention {self.history[-1]['entropy']:.3f} nats"

    def _draw_entropies(self, path: Path) -> None:
        L, H = self._entropies.shape
        with picture(path) as figure:
            by_head, over_steps = figure.subplots(1, 2)
            shown = by_head.imshow(self._entropies.numpy(), aspect="auto")
            by_head.set_xticks(range(H), map(str, range(1, H + 1)))
            by_head.set_yticks(range(L), map(str, range(1, L + 1)))
            by_head.set(xlabel="head", ylabel="layer")
            by_head.grid(False)
            step = int(self.history[-1]["step"])
            figure.colorbar(shown, ax=by_head, label=f"entropy in nats, step {step}")
            means = [
                {"step": each["step"]}
                | {
                    f"layer {layer}": sum(each[f"entropy {layer}.{h}"] for h in range(1, H + 1)) / H
                    for layer in range(1, L + 1)
                }
                for each in self.history
            ]
            names = {f"layer {layer}": f"layer {layer}" for layer in range(1, L + 1)}
            # Layers have an order, and may be more than colours that are told apart.
            over_steps.set_prop_cycle(color=shown.cmap(torch.linspace(0, 0.9, L).numpy()))
            curves(over_steps, means, names, "entropy in nats")

    def _draw_maps(self, path: Path, grid: tuple[int, int]) -> None:
        """Draw the image, and what each head looks at of it; rows are layers."""
        L, H = (min(_MOST, count) for count in self._map.shape[:2])
        with picture(path, 0.2 + 0.8 * (H + 1), 0.5 + 0.8 * L) as figure:
            step = int(self.history[-1]["step"])
            figure.suptitle(f"step {step}: from least (dark) to most attention of each head")
            panels = figure.subplots(L, H + 1, squeeze=False)
            bare(panels)
            for layer, (image, *heads) in enumerate(panels):
                image.imshow(self._image.numpy(), cmap="gray", vmin=0, vmax=255)
                image.set_ylabel(f"layer {layer + 1}")
                for head, axes in enumerate(heads):
                    axes.imshow(self._map[layer, head, self._prefix :].view(grid).numpy())
                    if layer == 0:
                        axes.set_title(f"head {head + 1}")


def entropies(attention_BLHN: torch.Tensor) -> torch.Tensor:
    """Return the entropy of every layer's and head's attention, mean over samples, (L, H)."""
    return -attention_BLHN.xlogy(attention_BLHN).sum(dim=-1).mean(dim=0)

"""Which tokens are kept: drawn on images, and how much steps agree on them.

    splitlab run --plugin adc --probe selection:every=50

It looks at where the tokens of a batch went, in the first training step and in every n-th behind
it. ``metrics.jsonl`` then holds, under ``selection``:

- ``kept``, ``fused`` and ``left out``: shares of the patches: alone in their place, merged with
  other tokens, or not sent.
- ``agreement``: of the samples that were looked at before, in another epoch: the patches kept both
  times over those kept at all (Jaccard index), mean over samples. Absent where there is none. Two
  draws by chance of a share k have about k / (2 - k). With augmentation a sample is another image
  in another epoch, and merged samples share their patches. 4096 samples are remembered, those that
  came first.
- ``agreement of places``: how alike the patches of this look and of the one before were kept,
  whatever the images: the cosine of the frequencies at which every place was. 1 if it is always the
  same places, or if all places are as frequent. Absent where none is kept.

``selection.png`` has images of the last look with a veil over what was not kept, a thin one over
what was fused, and ``places.png`` how often every place was kept, and numbers over steps. It sits
at the client, and takes any stack; where no plugin says that it chooses or merges tokens
(`Cut.provenance`; ``adc``,
``adc-token-select``, ``evit``, ``tome``, ``random-tokens`` and ``grid-pool`` do), it says that
there was nothing to see. Images are drawn where the patches have places in a grid.

Shapes: B samples, N tokens, P patches, special tokens not counted.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from splitlab.core import Cut, Fetch, Peer, hookimpl, picture
from splitlab.plugins.probes.sampled import Sampled, bare, curves, drawable

__all__ = ["Selection", "agreement", "fates"]

_IMAGES = 8
_REMEMBERED = 4096
_LEFT_OUT, _FUSED = 0.25, 0.6
"""What is still seen of a patch that is not kept."""
_VEIL = (0.0, 0.45, 0.7)


class Selection(Sampled):
    """Which tokens are kept, on images, and how much steps agree on them.

    Args:
        every: steps between two looks.
    """

    def __init__(self, *, every: int = 50) -> None:
        super().__init__(every)
        self._fetched: tuple[Fetch, torch.Tensor, torch.Tensor] | None = None
        self._untold = False
        self._places = torch.zeros(0)
        self._seen: dict[int, int] = {}
        self._masks = torch.zeros(0, 0, dtype=torch.bool)
        self._drawn: dict[str, torch.Tensor] = {}

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, which knows the places of patches."""
        self._peer = peer

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Look behind the stack's last plugin."""
        (B, N), ids = cut.activations.shape[:2], cut.sample_ids
        yield
        if self.due(cut) and cut.images is not None and ids is not None:
            if not cut.provenance.moved:
                shape = cut.activations.shape
                self._untold = self._untold or len(shape) < 2 or shape[1] != N
                return
            self._fetched = Fetch(cut.provenance.slots(B, N)), ids, cut.images[:_IMAGES]

    def numbers(self) -> Mapping[str, float]:
        """Return what was seen."""
        if self._fetched is None:
            return {}
        (slots, ids, images), self._fetched = self._fetched, None
        first = self._peer.prefix_tokens
        kept_BP, fused_BP = (fate_BN[:, first:] for fate_BN in fates(slots.tensor()))
        found = {
            "kept": float(kept_BP.double().mean()),
            "fused": float(fused_BP.double().mean()),
            "left out": float((~kept_BP & ~fused_BP).double().mean()),
        }
        known = [i for i, name in enumerate(ids.tolist()) if name in self._seen]
        if known:
            rows = [self._seen[int(ids[i])] for i in known]
            found["agreement"] = agreement(self._masks[rows], kept_BP[known])
        places_P = kept_BP.double().mean(dim=0)
        if self._places.any() and places_P.any():
            cosine = F.cosine_similarity(self._places, places_P, dim=0)
            found["agreement of places"] = float(cosine)
        self._places = places_P
        self._remember(ids, kept_BP)
        clear_BP = torch.where(kept_BP, 1.0, torch.where(fused_BP, _FUSED, _LEFT_OUT))
        self._drawn = {"images": drawable(images), "clear": clear_BP[:_IMAGES]}
        return found

    def _remember(self, ids: torch.Tensor, kept_BP: torch.Tensor) -> None:
        fresh: list[torch.Tensor] = []
        for name, mask in zip(ids.tolist(), kept_BP, strict=True):
            if name in self._seen:
                self._masks[self._seen[name]] = mask
            elif len(self._seen) < _REMEMBERED:
                self._seen[name] = len(self._seen)
                fresh.append(mask)
        if fresh:
            own = self._masks if len(self._masks) else kept_BP[:0]
            self._masks = torch.cat((own, torch.stack(fresh)))

    def kept(self) -> Mapping[str, torch.Tensor]:
        """Return what was seen last, and what is remembered of samples."""
        seen = torch.tensor([*self._seen], dtype=torch.int64)
        return {"places": self._places, "seen": seen, "masks": self._masks, **self._drawn}

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take it back."""
        own = {name: tensor.cpu() for name, tensor in state.items()}
        self._places, self._masks = own.pop("places"), own.pop("masks")
        self._seen = {name: i for i, name in enumerate(own.pop("seen").tolist())}
        self._drawn = own

    @hookimpl
    def report(self, folder: Path) -> str | None:
        """Draw ``selection.png`` and ``places.png``, or say why there is nothing to draw."""
        if not self.history:
            if self._peer.role == "server":
                return None
            return (
                "the stack changes the number of tokens, and no plugin says which are left"
                if self._untold
                else "no plugin of the stack says that it chooses or merges tokens; adc, "
                "adc-token-select, evit and tome do"
            )
        self._draw_places(folder / "places.png")
        if self._peer.grid is not None:
            self._draw_images(folder / "selection.png", self._peer.grid)
        last = self.history[-1]
        return f"{last['kept']:.1%} of the patches kept, {last['fused']:.1%} fused"

    def _draw_places(self, path: Path) -> None:
        with picture(path) as figure:
            where, over_steps = figure.subplots(1, 2)
            step = int(self.history[-1]["step"])
            if self._peer.grid is None:
                where.bar(range(len(self._places)), self._places.numpy())
                where.set(xlabel=f"token, step {step}", ylabel="kept, share of samples")
            else:
                places = self._places.view(self._peer.grid).numpy()
                shown = where.imshow(places, vmin=0, vmax=1)
                where.set(xticks=[], yticks=[])
                where.spines[:].set_visible(False)
                where.grid(False)
                figure.colorbar(shown, ax=where, label=f"kept, share of samples, step {step}")
            names = ("kept", "agreement", "agreement of places")
            used = {name: name for name in names if any(name in each for each in self.history)}
            curves(over_steps, self.history, used, "0 to 1")
            over_steps.set_ylim(0, 1.02)

    def _draw_images(self, path: Path, grid: tuple[int, int]) -> None:
        images, size = self._drawn["images"] / 255, self._drawn["images"].shape[1:3]
        clear = F.interpolate(self._drawn["clear"].view(-1, 1, *grid), size=size)[:, 0, ..., None]
        veiled = (images * clear + torch.tensor(_VEIL) * (1 - clear)).clamp(0, 1).numpy()
        with picture(path, max(3, 0.9 * len(images)), 2.1) as figure:
            step = int(self.history[-1]["step"])
            figure.suptitle(f"step {step}; kept: clear, fused: thin veil, left out: thick veil")
            panels = figure.subplots(2, len(images), squeeze=False)
            bare(panels)
            for column, (image, behind) in enumerate(zip(images.numpy(), veiled, strict=True)):
                panels[0][column].imshow(image, cmap="gray", vmin=0, vmax=1)
                panels[1][column].imshow(behind)


def fates(slots_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which tokens are alone in their slot, and which share one, (B, N) bool each.

    Args:
        slots_BN: (B, N) int64 as of `Provenance.slots`, -1 for what was left out.
    """
    there_BN = slots_BN >= 0
    slots_BN = slots_BN.clamp(min=0)
    counts = torch.zeros(len(slots_BN), int(slots_BN.max()) + 1, dtype=torch.int64)
    counts.scatter_add_(1, slots_BN, there_BN.long())
    shared_BN = counts.gather(1, slots_BN) > 1
    return there_BN & ~shared_BN, there_BN & shared_BN


def agreement(ours_BP: torch.Tensor, theirs_BP: torch.Tensor) -> float:
    """Return the mean over samples of the Jaccard index of two sets of patches; 1 of empty ones."""
    both_B = (ours_BP & theirs_BP).sum(dim=1).double()
    any_B = (ours_BP | theirs_BP).sum(dim=1).double()
    return float(torch.where(any_B > 0, both_B / any_B.clamp(min=1), 1.0).mean())

"""What compression does to the client's gradient, beside that of the same batch without the stack.

    splitlab run --plugin adc --probe gradient-flow:every=200

In the first training step and in every n-th behind it the engine also asks the server for the
gradient that the same batch would have without the stack (`Peer.compare`): same weights, same draws
of dropout, no optimizer step. ``metrics.jsonl`` then holds, under ``gradient-flow``:

- ``returned``: the norm of what comes back at the cut, of the shape that was sent, behind the
  stack's last plugin.
- ``cut``, ``cut uncompressed``, ``cut cosine``: norms of the gradient of what the client's part
  made, with and without the stack, and the cosine between them.
- ``LAYER``, ``LAYER uncompressed``, ``LAYER cosine``: the same of the parameters of every layer,
  which is called by the beginning of their names; and of ``all`` layers.

The gradients are those of this batch, before clipping, and before the mean over ``--accumulate``
batches. A cosine is absent where a gradient is 0. ``gradient-flow.png`` has norms and cosines by
layer at the last look, and over steps. It sits at the client, and takes any stack; where
the client trains nothing it says so. A look takes the time of an uncompressed step, and sends one:
the ledger counts its bytes as evaluation, no budget does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Generator, Mapping
from pathlib import Path

import torch
from torch.utils.hooks import RemovableHandle

from splitlab.core import Cut, Fetch, Peer, hookimpl, picture
from splitlab.plugins.probes.sampled import Sampled, curves

__all__ = ["GradientFlow", "layer_of"]

_CUT = "cut"
_ALL = "all"


class GradientFlow(Sampled):
    """Norms of the client's gradients by layer, and their cosine with those without the stack.

    Args:
        every: steps between two looks, each of which takes as long as an uncompressed step.
    """

    def __init__(self, *, every: int = 200) -> None:
        super().__init__(every)
        self._looking = False
        self._reference: Mapping[str, torch.Tensor] = {}
        self._products: dict[str, torch.Tensor] = {}
        self._returned: torch.Tensor | None = None
        self._listening: list[RemovableHandle] = []

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Ask for the gradient without the stack."""
        self._parameters = peer.parameters
        if peer.role == "client":
            peer.compare(self._every)

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Listen to the gradients of what the client's part made, and of its parameters."""
        if self.due(cut) and cut.reference is not None:
            self._looking, self._products = True, {}
            # A parameter has no such name.
            self._reference = {"": cut.reference.gradient, **cut.reference.parameters}
            passing = {"": cut.activations, **self._parameters}
            for name in self._reference:
                if passing[name].requires_grad:
                    listens = functools.partial(self._passes, name)
                    self._listening.append(passing[name].register_hook(listens))  # type: ignore[no-untyped-call]
        yield

    @hookimpl(wrapper=True)
    def gradient_return(self, cut: Cut) -> Generator[None, None, None]:
        """Look behind the stack's last plugin."""
        yield
        if self._looking and cut.gradient is not None:
            self._returned = cut.gradient.detach().float().norm()

    def _passes(self, name: str, gradient: torch.Tensor) -> None:
        """Take the products of a gradient that passes by and that without the stack."""
        ours, theirs = gradient.detach().float(), self._reference[name].float()
        pairs = ((ours, ours), (theirs, theirs), (ours, theirs))
        self._products[name] = torch.stack([(a * b).sum() for a, b in pairs])

    def numbers(self) -> Mapping[str, float]:
        """Return what was seen."""
        for handle in self._listening:
            handle.remove()
        self._listening, self._looking, self._reference = [], False, {}
        if self._returned is None:
            return {}
        products, self._products = self._products, {}
        own = list(products.values())
        told = Fetch(torch.cat([self._returned[None], *own])).tensor().double()
        self._returned = None
        found = {"returned": float(told[0])}
        three = dict(zip(products, told[1:].view(-1, 3), strict=True))
        layers: dict[str, torch.Tensor] = {}
        for name in filter(three.__contains__, (*self._parameters, "")):
            for layer in (layer_of(name), _ALL) if name else (_CUT,):
                layers[layer] = layers.get(layer, 0) + three[name]
        for layer, (ours, theirs, both) in ((name, sums.tolist()) for name, sums in layers.items()):
            found[layer] = math.sqrt(ours)
            found[f"{layer} uncompressed"] = math.sqrt(theirs)
            if ours and theirs:
                found[f"{layer} cosine"] = both / math.sqrt(ours * theirs)
        return found

    @hookimpl
    def report(self, folder: Path) -> str | None:
        """Draw ``gradient-flow.png``."""
        if not self.history:
            return None
        last = self.history[-1]
        layers = [n.removesuffix(" uncompressed") for n in last if n.endswith(" uncompressed")]
        layers.sort(key=(_CUT, _ALL).count)  # these behind the layers, which have their order
        if not layers:
            return "the client trains nothing, so there is no gradient behind the cut"
        with picture(folder / "gradient-flow.png", 6.9, 4.6) as figure:
            ((norms, cosines), (norm, cosine)) = figure.subplots(2, 2)
            places = range(len(layers))
            norms.plot(places, [last[name] for name in layers], "o", ms=4, label="with the stack")
            without = [last[f"{name} uncompressed"] for name in layers]
            norms.plot(places, without, "o", ms=4, fillstyle="none", label="without")
            norms.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
            norms.set(ylabel=f"norm, step {int(last['step'])}", yscale="log")
            turned = [last.get(f"{name} cosine", math.nan) for name in layers]
            cosines.bar(places, turned)
            least = -1 if any(each < 0 for each in turned) else 0
            cosines.set(ylabel=f"cosine, step {int(last['step'])}", ylim=(least, 1))
            for axes in (norms, cosines):
                axes.set_xticks(places, layers, rotation=90)
            names = {"returned": "returned", _CUT: "cut", f"{_CUT} uncompressed": "cut, without"}
            curves(norm, self.history, names, "norm")
            norm.set_yscale("log")
            lines = {f"{name} cosine": name for name in (_CUT, _ALL) if name in layers}
            curves(cosine, self.history, lines, "cosine")
        known = [each[f"{_CUT} cosine"] for each in self.history if f"{_CUT} cosine" in each]
        if not known:
            return "the gradient at the cut is 0"
        return f"cosine at the cut {sum(known) / len(known):.3f}, mean of {len(known)} looks"


def layer_of(name: str) -> str:
    """Return the layer of a parameter: its name up to the first number, or its first word.

    >>> layer_of("layers.0.attn.qkv.weight"), layer_of("patch_embed.proj.bias"), layer_of("0.bias")
    ('layers.0', 'patch_embed', '0')
    """
    words = name.split(".")
    front = list(itertools.takewhile(lambda word: not word.isdigit(), words))
    return ".".join(words[: len(front) + 1]) if len(front) < len(words) else words[0]

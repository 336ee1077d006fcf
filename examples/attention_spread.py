"""A probe in one file: how evenly the class token attends, and what the stack leaves of a batch.

splitlab run --plugin adc --probe examples/attention_spread.py:AttentionSpread
"""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from splitlab.core import Attention, Cut, Peer, hookimpl


class AttentionSpread:
    """Entropy of the class token's attention in nats, and the share of numbers that the stack kept.

    Both are of the client, in training; the server's instance has nothing to say.
    """

    def __init__(self) -> None:
        self._now: dict[str, float] = {}
        self._entropies: list[float] = []

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Ask for the attention; a model without a class token is refused here."""
        self._attention = peer.request("attention-spread", Attention())

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Look at the cut before the stack's first plugin, and behind its last one."""
        attention_BN = cut.measured[self._attention]
        whole = cut.activations.numel()
        yield
        if cut.training:
            entropy_B = -attention_BN.xlogy(attention_BN).sum(dim=1)
            kept = cut.activations.numel() / whole
            self._now = {"entropy": float(entropy_B.mean()), "kept": kept}

    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        """Return the numbers of the step."""
        now, self._now = self._now, {}
        if now:
            self._entropies.append(now["entropy"])
        return now

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return what a resumed run needs for its report."""
        return {"entropies": self._entropies}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the report."""
        self._entropies = list(state["entropies"])

    @hookimpl
    def report(self, folder: Path) -> None:
        """Write the entropies of all steps into a file."""
        if self._entropies:
            lines = [f"{step},{entropy:.6f}" for step, entropy in enumerate(self._entropies, 1)]
            (folder / "entropy.csv").write_text("\n".join(["step,entropy", *lines]) + "\n")

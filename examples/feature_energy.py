"""Send the K features of the batch that carry the most energy. docs/write-a-plugin.md builds it.

    splitlab run --plugin examples/feature_energy.py:FeatureEnergy:ratio=0.1

1. The client takes the mean square of every feature over all samples and tokens, and keeps the
   K = max(1, ⌊ratio · D⌋) largest; of equal ones the first.
2. The server puts them back where they were, and zeros elsewhere.

Up: activations (B, N, K), and the features' numbers (K,) as side information. Down: the gradient of
what was sent, (B, N, K). Gradient: natural. Evaluation batches are compressed, too.

Shapes: B samples, N tokens, D width, K features sent.
"""

import torch

from splitlab.core import ConfigError, Cut, Peer, ProtocolError, Traits, hookimpl


class FeatureEnergy:
    """Send the features of the batch that carry the most energy.

    Args:
        ratio: ξ in (0, 1], the share of features that is sent.
    """

    def __init__(self, *, ratio: float = 0.1) -> None:
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio={ratio} is refused; allowed: more than 0, at most 1")
        self._ratio = ratio

    @hookimpl
    def traits(self) -> Traits:
        """Needs whole tokens, leaves narrower ones; acts in evaluation."""
        return Traits(needs={"features"}, changes={"features"}, evaluation=True)

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Remember the model's width."""
        self._width = peer.width
        self._kept = max(1, int(self._ratio * peer.width))

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Replace (B, N, D) by (B, N, K)."""
        energy_D = cut.activations.detach().float().square().mean(dim=(0, 1))
        order = energy_D.argsort(descending=True, stable=True)
        chosen_K = order[: self._kept].sort().values
        cut.activations = cut.activations.index_select(-1, chosen_K)
        cut.side["feature-energy.chosen"] = chosen_K.to(torch.int16)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Replace (B, N, K) by (B, N, D)."""
        chosen_K = cut.side.pop("feature-energy.chosen").long()
        B, N, K = cut.activations.shape
        fault = ProtocolError("feature-energy: the features' numbers do not fit what was sent")
        if len(chosen_K) != K:
            raise fault
        cut.expect((chosen_K.min() >= 0) & (chosen_K.max() < self._width), lambda: fault)
        chosen_K = chosen_K.clamp(0, self._width - 1)
        zeros_BND = cut.activations.new_zeros(B, N, self._width)
        cut.activations = zeros_BND.index_copy(-1, chosen_K, cut.activations)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return ξ for both directions."""
        return self._kept / self._width, self._kept / self._width

"""A probe with a parameter: norms of what the client sends and of the gradient that comes back.

splitlab run --plugin adc --probe examples/norms.py:Norms:every=10
"""

from collections.abc import Generator, Mapping

from splitlab.core import ConfigError, Cut, hookimpl


class Norms:
    """Norms of the cut's activations and of their gradient, at the client, in training.

    Args:
        every: steps of the log between two measurements.
    """

    def __init__(self, *, every: int = 1) -> None:
        if every < 1:
            raise ConfigError(f"every={every} is not allowed; 1 or more")
        self._every = every
        self._now: dict[str, float] = {}

    @hookimpl(wrapper=True)
    def gradient_return(self, cut: Cut) -> Generator[None, None, None]:
        """Look behind the stack's last plugin; steps count from 0 here, and from 1 in logs."""
        yield
        if cut.gradient is not None and (cut.step + 1) % self._every == 0:
            seen = {"activations": cut.activations, "gradient": cut.gradient}
            self._now = {name: float(tensor.detach().norm()) for name, tensor in seen.items()}

    @hookimpl
    def metrics(self) -> Mapping[str, float]:
        """Return the norms of this step; none at all in between."""
        now, self._now = self._now, {}
        return now

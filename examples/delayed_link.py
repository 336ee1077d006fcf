"""A link wrapper in one file: what this end sends arrives later.

    splitlab run --link examples/delayed_link.py:Delayed:ms=20
    splitlab run --link examples/delayed_link.py:Delayed:ms=20 --transport tcp

Both ends of the link are wrapped, each with an object of its own. The bytes, and with them the
ledger, stay the same; only the time changes.
"""

import time

from splitlab.core import ConfigError, Link, Message, PeerRole, WrappedLink


class Delayed:
    """Every message takes so long to arrive.

    Args:
        ms: milliseconds on the way, in each direction.
    """

    def __init__(self, *, ms: float = 20.0) -> None:
        if not 0 <= ms < 60_000:
            raise ConfigError(f"ms={ms} is refused; allowed: 0 to 60,000, a minute not included")
        self._seconds = ms / 1e3

    def wrap(self, link: Link, role: PeerRole) -> Link:
        """Return a link that sends later; both roles alike."""
        return DelayedLink(link, self._seconds)


class DelayedLink(WrappedLink):
    """Waits before it sends. Peers take turns, so that nothing else could be sent meanwhile."""

    def __init__(self, inside: Link, seconds: float) -> None:
        super().__init__(inside)
        self._seconds = seconds

    def send(self, message: Message, timeout: float) -> int:
        """Wait, then send; what is counted is what the link inside sent."""
        time.sleep(self._seconds)
        return super().send(message, timeout)

"""Where tasks on other machines tell how far they are, and ask whether to stop.

It is an actor of its own: it imports nothing that takes long.
"""

from __future__ import annotations

__all__ = ["Post"]


class Post:
    """Keeps the last word of every job until it is fetched."""

    def __init__(self) -> None:
        self._stopping = False
        self._news: dict[int, tuple[float, str]] = {}

    def tell(self, number: int, share: float, note: str) -> bool:
        """Take the word of a job; returns whether it is to stop."""
        self._news[number] = share, note
        return self._stopping

    def news(self, stopping: bool) -> dict[int, tuple[float, str]]:
        """Return what was told since the last time, by the number of the job.

        Args:
            stopping: whether all jobs are to stop after their step.
        """
        self._stopping = stopping
        news, self._news = self._news, {}
        return news

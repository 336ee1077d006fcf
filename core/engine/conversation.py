"""A step as a conversation: the client's side yields messages and is handed the answers.

Whoever drives it sends what it yields, over a link or by a function call. This is the only loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from splitlab.core.contract.message import Message

__all__ = ["Conversation", "hold"]

R = TypeVar("R")

Conversation = Generator[Message, Message, R]
"""Yields messages to the other peer, takes its answers, and returns what came of it."""


def hold(conversation: Conversation[R], ask: Callable[[Message], Message]) -> R:
    """Hold a conversation to its end, and return what came of it.

    Args:
        conversation: of a `Client`.
        ask: takes a message to the other peer and returns the answer.
    """
    try:
        message = next(conversation)
        while True:
            message = conversation.send(ask(message))
    except StopIteration as end:
        result: R = end.value
        return result

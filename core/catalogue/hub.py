"""The Hugging Face hub: whether it can be reached is asked before its clients are.

They would ask again and again, for a minute, before they say that there is no network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hub_or_cache"]

_PATIENCE = 5.0  # seconds until a network that swallows what it is sent counts as none
_CLIENTS = ("huggingface_hub.constants", "datasets.config")


@contextmanager
def hub_or_cache() -> Iterator[str]:
    """Within it, the hub's clients take from their cache alone if the hub cannot be reached.

    Yields why nothing else can be had, in words; the text is empty if the hub can be reached.
    """
    absent = _absent()
    clients = [sys.modules[name] for name in _CLIENTS if absent and name in sys.modules]
    before = [client.HF_HUB_OFFLINE for client in clients]
    for client in clients:
        vars(client)["HF_HUB_OFFLINE"] = True
    try:
        yield absent
    finally:
        for client, offline in zip(clients, before, strict=True):
            vars(client)["HF_HUB_OFFLINE"] = offline


def _absent() -> str:
    """Return why the hub cannot be reached; an empty text if it answers, whatever it says."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it is not in the cache"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    # Which library sends the requests, and so which errors there are, is the client's business.
    except Exception as error:  # noqa: BLE001
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        return f"{constants.ENDPOINT} cannot be reached: {line[:160]}; it is not in the cache"
    return ""

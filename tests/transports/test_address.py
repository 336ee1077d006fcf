"""Addresses are read as users write them, and written back the same."""

from __future__ import annotations

import pytest

from splitlab.core import ConfigError
from splitlab.transports.address import Address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://127.0.0.1:4711", "127.0.0.1", 4711),
        ("tcp://some.host:0", "some.host", 0),
        ("tcp://[::1]:4711", "::1", 4711),
        ("tcp://[fe80::1]:65535", "fe80::1", 65535),
    ],
)
def test_an_address_is_read_and_written_back(text: str, host: str, port: int) -> None:
    address = Address.parse(text, "tcp")
    assert address == ("tcp", host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:4711",
        "gloo://127.0.0.1:4711",
        "tcp://127.0.0.1",
        "tcp://:4711",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1:65536",
        "tcp://[::1:4711",
        "tcp://a..b:4711",
        f"tcp://{'a' * 64}:4711",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(
        ConfigError, match="is not an address of this transport; write tcp://HOST"
    ) as e:
        Address.parse(text, "tcp")
    assert repr(text) in str(e.value)

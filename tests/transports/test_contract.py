"""The contract of `splitlab.core.contract.link`, held by every transport of ``registry.toml``.

What the contract is stands in `splitlab.core.testing`, for transports of others too; here are the
texts that ours say, which tell users the way out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitlab.core.catalogue.loading import load
from splitlab.core.catalogue.tables import catalogue
from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.core.testing import TRANSPORT_CHECKS, check_transport
from splitlab.core.testing.links import both_ends

TRANSPORTS = [
    pytest.param(name, marks=pytest.mark.gpu) if name == "nccl" else name
    for name in sorted(catalogue()["transports"])
]


@pytest.mark.parametrize("check", [check.name for check in TRANSPORT_CHECKS])
@pytest.mark.parametrize("name", TRANSPORTS)
def test_the_contract(name: str, check: str) -> None:
    report = check_transport(name, only=[check])
    report.raise_if_failed()
    if report.rows[0].outcome == "skipped":
        pytest.skip(f"{name}: {report.rows[0].reason}")


@pytest.fixture(params=TRANSPORTS)
def networked(request: pytest.FixtureRequest) -> Any:
    transport = load("transports", request.param)()
    if reason := transport.unavailable():
        pytest.skip(f"{request.param}: {reason}")
    if transport.place == "inside":
        pytest.skip("both peers are in one process")
    return transport


@pytest.fixture
def device(networked: Any) -> torch.device:
    return torch.device("cuda" if type(networked).__name__ == "Nccl" else "cpu")


def test_an_address_in_use_has_a_way_out(networked: Any, device: torch.device) -> None:
    listener = networked.listen(networked.default_address, device=device)
    with pytest.raises(NetworkError, match=f"cannot listen on {listener.address}: .*port 0"):
        networked.listen(listener.address, device=device)
    listener.close()


def test_whoever_waits_alone_is_told_how_to_start_the_other_peer(
    networked: Any, device: torch.device
) -> None:
    listener = networked.listen(networked.default_address, device=device)
    with pytest.raises(NetworkError, match=f"no client came .*splitlab join {listener.address}"):
        listener.accept(0.1)
    listener.close()
    with pytest.raises(NetworkError, match=f"no server at {listener.address}.*splitlab serve"):
        networked.connect(listener.address, device=device, timeout=0.1)


def test_a_malformed_address_is_shown_as_it_should_be(networked: Any, device: torch.device) -> None:
    scheme = networked.default_address.partition(":")[0]
    with pytest.raises(ConfigError, match=f"write {scheme}://HOST:PORT"):
        networked.listen("127.0.0.1:80", device=device)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_the_end_of_a_link_says_what_happened(name: str) -> None:
    transport = load("transports", name)()
    if reason := transport.unavailable():
        pytest.skip(f"{name}: {reason}")
    device = torch.device("cuda" if name == "nccl" else "cpu")
    with (
        both_ends(transport, device) as (_, server, _),
        pytest.raises(NetworkError, match="the other end sent nothing"),
    ):
        server.receive(0.05)
    with both_ends(transport, device) as (client, server, _):
        client.close()
        with pytest.raises(NetworkError, match="the other end closed the connection"):
            server.receive(5)

"""The checks of how a transport makes links: by listening and connecting, or both ends at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.core.contract.message import Kind
from splitlab.core.testing.expect import names, raises, within
from splitlab.core.testing.links import Ends, a_message
from splitlab.core.testing.report import Check, Failed

__all__ = ["CONNECT_CHECKS"]


def default_is_loopback(s: Ends) -> str | None:
    """The default address is loopback, and every listener there gets a port of its own."""
    network = s.networked()
    default = network.default
    with closing(network.listen()) as one, closing(network.listen()) as other:
        found = [one.address, other.address]
    if len({default, *found}) != 3:
        raise Failed(
            f"two listeners at {default} listen at {' and '.join(found)}; the default is a free "
            "port, and a listener's address says which it became"
        )
    if not any(name in default for name in ("127.", "localhost", "::1")):
        raise Failed(f"by default it listens at {default}, which is not loopback")
    return None


def address_in_use_is_named(s: Ends) -> str | None:
    """An address in use is refused by its name; after `close` it is free."""
    network = s.networked()
    with closing(network.listen()) as listener:
        address = listener.address
        names(
            raises(NetworkError, "listening where one listens", lambda: network.listen(address)),
            address,
        )
        listener.close()  # and once more behind the block
    network.listen(address).close()
    return None


def accept_ends_in_time(s: Ends) -> str | None:
    """Waiting for a client ends by the deadline, and says where nobody came."""
    with closing(s.networked().listen()) as listener:
        with within(s.late, "an accept of 0.2 s", at_least=0.1):
            text = raises(NetworkError, "accepting nobody", lambda: listener.accept(0.2))
        names(text, listener.address)
    raises(NetworkError, "accepting on a closed listener", lambda: listener.accept(0.2))
    return None


def connect_ends_in_time(s: Ends) -> str | None:
    """Connecting to nobody is tried until the deadline, and says where nobody was."""
    network = s.networked()
    address = network.free_address()
    with within(s.late, "a connect of 0.3 s", at_least=0.2):
        text = raises(NetworkError, "connecting to nobody", lambda: network.connect(address, 0.3))
    names(text, address)
    return None


def client_may_come_first(s: Ends) -> str | None:
    """A client that comes before its server waits for it."""
    network = s.networked()
    address = network.free_address()
    with ThreadPoolExecutor(1) as aside:
        connecting = aside.submit(network.connect, address)
        time.sleep(0.2)
        if connecting.done():
            raise Failed(f"a client that may wait {s.soon:g} s gives up: {connecting.exception()}")
        with (
            closing(network.listen(address)) as listener,
            closing(listener.accept(s.soon)),
            closing(connecting.result()) as client,
        ):
            names(client.remote, address)
    return None


def clients_come_in_turn(s: Ends) -> str | None:
    """A listener takes one client after another."""
    network = s.networked()
    with ThreadPoolExecutor(1) as aside, closing(network.listen()) as listener:
        for step in range(2):
            connecting = aside.submit(network.connect, listener.address)
            with closing(listener.accept(s.soon)) as server, closing(connecting.result()) as client:
                sending = aside.submit(client.send, a_message(step=step), s.soon)
                arrived = server.receive(s.soon).step
                sending.result()
            if arrived != step:
                raise Failed(f"client {step} sends, and server {step} receives of client {arrived}")
    return None


def bad_address_is_refused(s: Ends) -> str | None:
    """A malformed address is a `ConfigError` that shows the form."""
    network = s.networked()
    for rest in ("127.0.0.1:80", "{}://127.0.0.1", "{}://:80", "{}://host:99999", "{}://[::1", "x"):
        address = rest.format(network.scheme)
        for verb, action in (
            ("listening at", partial(network.listen, address)),
            ("connecting to", partial(network.connect, address, 1)),
        ):
            names(raises(ConfigError, f"{verb} {address!r}", action), f"{network.scheme}://")
    return None


def unknown_host_is_named(s: Ends) -> str | None:
    """A host that nobody knows is a `NetworkError` that names it."""
    network = s.networked()
    address = f"{network.scheme}://no.such.host.invalid:1"
    for text in (
        raises(NetworkError, "connecting to an unknown host", lambda: network.connect(address, 1)),
        raises(NetworkError, "listening at an unknown host", lambda: network.listen(address)),
    ):
        names(text, "no.such.host.invalid")
    return None


# Both ends made at once.


def server_takes_its_turns(s: Ends) -> str | None:
    """The server answers all that waits for it while the client receives."""

    def turn() -> None:
        server.send(a_message(Kind.GRADIENT, server.receive(s.soon).step), s.soon)

    client, server = s.paired().pair(turn)
    for step in range(3):
        client.send(a_message(step=step), s.soon)
    steps = [client.receive(s.soon).step for _ in range(3)]
    if steps != [0, 1, 2]:
        raise Failed(f"three answers arrive in the order {steps}")
    with within(s.late, "receiving where nobody is left who could send"):
        raises(NetworkError, "receiving a fourth answer", lambda: client.receive(s.soon))
    client.close()
    server.close()
    return None


def idle_server_ends_in_time(s: Ends) -> str | None:
    """A server that takes no turn does not hold the client for ever."""
    client, _ = s.paired().pair(lambda: None)
    client.send(a_message(), s.soon)
    with within(s.late, "a receive of 0.2 s"):
        raises(NetworkError, "a server that takes no turn", lambda: client.receive(0.2))
    return None


def servers_error_arrives(s: Ends) -> str | None:
    """What the server raises in its turn reaches the client as it is."""

    def turn() -> None:
        raise ConfigError("the server's own")

    client, _ = s.paired().pair(turn)
    client.send(a_message(), s.soon)
    text = raises(ConfigError, "a server's own error", lambda: client.receive(s.soon))
    names(text, "the server's own")
    return None


CONNECT_CHECKS: list[Check[Ends]] = [
    Check("default-is-loopback", "and a free port", default_is_loopback),
    Check("address-in-use-is-named", "and free after close", address_in_use_is_named),
    Check("accept-ends-in-time", "waiting for a client ends by the deadline", accept_ends_in_time),
    Check("connect-ends-in-time", "so does connecting to nobody", connect_ends_in_time),
    Check("client-may-come-first", "it waits for the server", client_may_come_first),
    Check("clients-come-in-turn", "one listener takes one after another", clients_come_in_turn),
    Check("bad-address-is-refused", "and is the user's fault", bad_address_is_refused),
    Check("unknown-host-is-named", "to whoever listens or connects", unknown_host_is_named),
    Check("server-takes-its-turns", "while the client waits", server_takes_its_turns),
    Check("idle-server-ends-in-time", "one that takes no turn", idle_server_ends_in_time),
    Check("servers-error-arrives", "at the client, as it is", servers_error_arrives),
]

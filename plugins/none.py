"""None: sends what it gets. Copy this file to start a method of your own.

1. Copy the class, give it your method's name and write down its algorithm here, with the paper.
2. Choose where it works. If the server can undo it by a differentiable function, keep the two
   hooks that take a ``cut`` and delete the two that take a ``message``: autograd then makes a
   gradient of the size that was sent. Otherwise keep those that take a ``message``; they see
   activations on their way up and gradients on their way down.
3. Declare in `traits` what the method needs, changes and does.
4. Run it: ``splitlab run --plugin my_method.py:MyMethod:ratio=0.1``.

Up and down: what comes in, bit for bit. Gradient: natural. Evaluation is left alone.
"""

from __future__ import annotations

from splitlab.core import Cut, Message, Peer, Role, Traits, hookimpl

__all__ = ["Nothing"]


class Nothing:
    """Changes nothing, and takes no parameters.

    Parameters are keyword-only arguments of ``__init__``, each with a type and a default:
    ``def __init__(self, *, ratio: float = 0.1)``.
    """

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Check the parameters against the model; both peers, once."""
        self._peer = peer  # sizes, and peer.generator("what for", step) for every random draw

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        """Client: encode the activations (rows, tokens, features) on the autograd graph."""
        cut.activations = cut.activations.view_as(cut.activations)

    @hookimpl
    def before_send(self, message: Message) -> None:
        """Sender, in both directions: encode the payload, no longer on any graph."""
        for name in message.names(Role.PAYLOAD):
            message.put(name, message[name], Role.PAYLOAD)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        """Receiver: decode, with nothing but what the message holds."""
        for name in message.names(Role.PAYLOAD):
            message.put(name, message[name], Role.PAYLOAD)

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        """Server: decode the activations, with nothing but what the cut holds."""
        cut.activations = cut.activations.view_as(cut.activations)

    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        """Client: correct the gradient that came back; few methods do."""
        assert cut.gradient is not None
        cut.gradient = cut.gradient.view_as(cut.activations)

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return the share of bytes that a paper would charge (up, down)."""
        return 1.0, 1.0

    @hookimpl
    def traits(self) -> Traits:
        """Needs nothing and changes nothing."""
        return Traits(needs=set(), changes=set(), gradient="natural")

"""The server: one client is served to the end of its run."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from splitlab.core.catalogue.links import load_transport
from splitlab.core.contract.errors import (
    ConfigError,
    Interrupted,
    LinkError,
    NetworkError,
    PluginError,
    ProtocolError,
    SplitlabError,
)
from splitlab.core.contract.link import DEFAULT_LIMITS, Link, Listener, SeverableLink
from splitlab.core.engine.server import Server
from splitlab.core.models.segments import Segmented
from splitlab.core.runs.checkpoint import Checkpoints, plan_mark
from splitlab.core.runs.disk import hold
from splitlab.core.runs.ends import called, end
from splitlab.core.runs.folder import append, cut_after
from splitlab.core.runs.plan import Decided, PeerPlan, make_for_server
from splitlab.core.runs.precision import products
from splitlab.core.runs.records import SERVER_METRICS, StepRecord
from splitlab.core.runs.repeating import repeating
from splitlab.core.runs.returning import Returning
from splitlab.core.runs.stopping import Asking
from splitlab.core.runs.strangers import Strangers
from splitlab.core.runs.workers import build_server, limited_threads
from splitlab.core.session.awaiting import Awaiting, Superseded
from splitlab.core.session.protocol import HELLO_BYTES, MARKS, names_a_folder
from splitlab.core.session.server import ServerSession

__all__ = ["HANDSHAKE_SECONDS", "open_session", "serve"]

HANDSHAKE_SECONDS = 10.0
"""How long somebody who has connected may take to say who it is, all in all."""

_PARTING = 10.0
"""Seconds for a client to hear the answer to its goodbye, and to say so."""
_A_LOOK = 0.2
_PATIENCE = 5.0
"""Seconds for the server of a client that was killed to see that it is alone."""


def serve(
    decided: Decided,
    classes: int,
    *,
    address: str | None = None,
    output: str | None = None,
    announce: int | None = None,
    wait: float = 86400.0,
    peers_here: int = 1,
    patient: bool = True,
    samples: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
    client_is_gone: Callable[[], bool] = lambda: False,
) -> int:
    """Listen, serve one client, and return the number of training steps served.

    Args:
        decided: of a configuration that is the client's in everything that both must agree on.
        classes: C, width of the head.
        address: where to listen; the transport's default (loopback, a free port) if None.
        output: folder for the server's checkpoints; ``runs/NAME`` by default, with the client's
            name for the run.
        announce: file descriptor to which the real address is written once the server listens.
        wait: seconds to wait for a client.
        peers_here: 2 if the client runs on this machine too; it then has the first GPU.
        patient: whether a client that does not fit is turned away as strangers are; otherwise it
            is an error. Until the deadline it then waits for the right one.
        samples: of the client's training data, if a client on this machine started this server.
        say: is told in a line where it listens, who was turned away, and how it went.
        should_stop: asked when a client has come, after every step and while a connection is lost;
            True lets the client end its run with a checkpoint, and this one with `Interrupted`.
        client_is_gone: asked while its connection is lost; True if it cannot come back.

    Raises:
        SplitlabError: also when the client is gone before the end of its run.
    """
    named = decided.config.transport
    transport = load_transport(named, decided.config.access)
    if transport.place == "inside":
        raise ConfigError(
            f"transport {named!r} has both peers in one process and serves nobody elsewhere; give "
            "another with --transport, such as tcp"
        )
    with ExitStack() as cleanup:
        cleanup.enter_context(limited_threads(decided.threads))
        cleanup.enter_context(products(decided.config.precision))
        cleanup.enter_context(repeating(decided.config))
        make = partial(make_for_server, decided, classes, peers_here=peers_here, samples=samples)
        plan, model = make()
        ready: Server | None = _build(plan, model, cleanup)
        del model  # the server has its part

        def build() -> Server:
            nonlocal ready
            server, ready = ready, None
            return server or _build(plan, make()[1], cleanup)

        owner, place = f"transport {named!r}", address or transport.default_address
        listener = called(owner, transport.listen, place, device=plan.device)
        with closing(listener):
            say(f"serving {' + '.join(plan.titles) or 'none'} on {listener.address}")
            if announce is not None:
                with os.fdopen(announce, "w") as pipe:
                    pipe.write(listener.address + "\n")
            clients = _Clients(listener, plan, wait, patient, say, should_stop, client_is_gone)
            try:
                steps = _serve_all(clients, build, output, say, should_stop)
            except SplitlabError as error:
                clients.close(error)
                raise
            finally:
                clients.close()
    say(f"served {steps} steps to the end of the client's run")
    return steps


def _serve_all(
    clients: _Clients,
    build: Callable[[], Server],
    output: str | None,
    say: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> int:
    """Serve a client to its end, however often it begins its run anew; returns its steps."""
    came: SeverableLink | None = None
    while True:
        served = clients.first(build, output, came)
        should_stop()  # from here on a wish waits for the end of a step
        try:
            with served.cleanup:
                _to_the_end(served, should_stop)
            return served.session.steps
        except Superseded as other:
            came = other.link
            say(str(other))
        del served  # its model, before the next one is made


def _to_the_end(served: _Served, should_stop: Callable[[], bool]) -> None:
    session = served.session
    try:
        while session.turn():
            pass
    except Superseded:
        raise
    except LinkError as error:
        if should_stop():
            raise Interrupted(f"interrupted after {session.steps} steps; {error}") from error
        raise
    if served.lasting is not None:
        served.lasting.patience = min(served.lasting.patience, _PARTING)
    session.part(_PARTING)
    served.report()


def _build(plan: PeerPlan, model: Segmented, cleanup: ExitStack) -> Server:
    server = build_server(plan, model, alone=True)
    cleanup.callback(server.stack.run_end)
    return server


@dataclass(frozen=True)
class _Served:
    """A client that fits.

    Attributes:
        session: with it, after its handshake.
        report: lets the server's probes report.
        lasting: its link, if it outlives its connection.
        cleanup: closes the link, and lets go of the folder.
    """

    session: ServerSession
    report: Callable[[], None]
    lasting: Awaiting | None
    cleanup: ExitStack


class _Clients:
    """Who comes to a listener, until the first one that fits.

    Args:
        listener: where they come.
        plan: of the server.
        wait: seconds to wait.
        patient: whether to wait for another one if one does not fit.
        say: is told who was turned away.
        should_stop, client_is_gone: as of `serve`.
    """

    def __init__(
        self,
        listener: Listener,
        plan: PeerPlan,
        wait: float,
        patient: bool,
        say: Callable[[str], None],
        should_stop: Callable[[], bool] = lambda: False,
        client_is_gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._listener = listener
        self._plan = plan
        self._config = plan.config
        self._wait = wait
        self._patient = patient
        self._say = say
        hear: Any = getattr(listener, "hear", None)  # of a `PatientListener`
        self._hear = hear
        self._should_stop = should_stop
        self._client_is_gone = client_is_gone
        self._until = time.monotonic() + wait
        self._strangers = Strangers(say)
        # One that a run started beside itself may have to wait for a machine that is busy.
        config = plan.config
        self._opening = min(config.timeout, HANDSHAKE_SECONDS) if patient else config.timeout
        self._returning = Returning(hear, self._opening, self._strangers.add)

    def close(self, error: SplitlabError | None = None) -> None:
        """Hear nobody any more; who waits is told why."""
        self._returning.end(self._listener.close, error)

    def first(
        self,
        build: Callable[[], Server],
        output: str | None,
        came: SeverableLink | None = None,
    ) -> _Served:
        """Return the first client that fits.

        Args:
            build: makes a server, and another one where a client spoiled it.
            output: as in `open_session`.
            came: link to who comes first of all, if that is known.
        """
        self._returning.pause()
        if came is not None:
            self._until = time.monotonic() + self._wait
        try:
            server = build()
        except BaseException:
            if came is not None:
                came.close()
            raise
        while True:
            with ExitStack() as attempt:
                bare: Any = came or self._accept()
                returns = self._hear is not None and hasattr(bare, "sever")
                lasting = self._lasting(bare) if returns else None
                bare = lasting or bare
                attempt.enter_context(closing(bare))
                wrapped = end(bare, self._config.transport, self._plan.links, "server")
                link = Asking(wrapped, self._should_stop)
                session, report = open_session(link, server, self._plan, output, attempt)
                try:
                    session.turn(self._opening if self._patient else None)
                except PluginError:
                    raise  # ours
                except SplitlabError as error:
                    if not self._patient and (session.resumed or self._hear is None):
                        raise  # the one client for which it was started; or nobody can tell
                    if session.resumed:
                        server = build()  # a checkpoint may have been loaded, or a part of it
                    why = str(error)
                    self._strangers.add(why if link.remote in why else f"{link.remote}: {why}")
                    came = None
                    continue
                if lasting is None:
                    self._listener.close()  # nobody can come back
                else:
                    lasting.keep()
                    self._returning.begin(lasting, session.run)
                self._strangers.close()
                return _Served(session, report, lasting, attempt.pop_all())

    def _next(self) -> SeverableLink:
        """Return the link to who comes next, when a session was there before."""
        while time.monotonic() < self._until:
            came = self._returning.next(_A_LOOK)
            if came is not None:
                return came
            if self._should_stop():
                raise Interrupted("interrupted while no client was there")
        raise NetworkError(f"no client came to {self._listener.address} in {self._wait:g} s")

    def _lasting(self, bare: SeverableLink) -> Awaiting:
        config = self._config
        return Awaiting(
            bare,
            self._returning,
            timeout=self._plan.timeout,
            patience=config.reconnect,
            hopeless=self._client_is_gone,
            stopping=self._should_stop,
            say=self._say,
        )

    def _accept(self) -> Link:
        """Return the link to who comes next, and has said something if the listener can tell."""
        left = max(0.001, round(self._until - time.monotonic(), 3))
        owner, strangers = f"transport {self._config.transport!r}", self._strangers
        try:
            if self._hear is None:
                return called(owner, self._listener.accept, left)
            if self._returning.hears:
                return self._next()
            limits = dataclasses.replace(DEFAULT_LIMITS, frame_bytes=HELLO_BYTES)
            link: Link = called(
                owner, self._hear, left, opening=self._opening, limits=limits, away=strangers.add
            )
            return link
        except NetworkError as error:
            if not strangers.count or time.monotonic() < self._until:
                raise
            strangers.close()
            raise NetworkError(
                f"no client that fits came to {self._listener.address} in {self._wait:g} s; "
                f"turned away: {strangers.count}, at last {strangers.last}"
            ) from error


def open_session(
    link: Link,
    server: Server,
    plan: PeerPlan,
    output: str | Path | None,
    cleanup: ExitStack,
) -> tuple[ServerSession, Callable[[], None]]:
    """Return the server's session on a link, and what lets its probes report after its goodbye.

    What the server leaves is written below ``output``, which it holds until ``cleanup``.
    """
    folder = Path(output if output is not None else "runs").absolute()
    checkpoints: list[Checkpoints] = []

    def resume(run: str, step: int, marks: Mapping[str, str]) -> None:
        nonlocal folder
        if output is None:
            if not names_a_folder(run):
                raise ProtocolError(
                    f"the client's name for the run, {run!r}, cannot name a folder; "
                    "name the server's own with --output DIR"
                )
            folder = folder / run
        cleanup.enter_context(hold(folder, "server", _PATIENCE))
        kept = Checkpoints(folder, "server", {name: marks[name] for name in MARKS})
        if step:
            try:
                with kept.taking(step):
                    server.load_state(*kept.load(step))
            except ConfigError as error:
                theirs = marks.get("steps", "").split()
                older = kept.older(step, lambda n: str(n) in theirs and kept.whole(n))
                again = f"{marks.get('again', '--resume RUN')} --from-step {older}"
                raise ConfigError(f"{error}; go on from step {older} with: {again}") from error
        else:
            kept.refuse_others()
        kept.forget_after(step)
        cut_after(folder / SERVER_METRICS, step)
        mine = {"run": marks["run"], "seed": marks["seed"], "plan": plan_mark(plan.agreement)}
        checkpoints.append(Checkpoints(folder, "server", mine))

    def save(step: int, keep: Collection[int]) -> None:
        checkpoints[0].save(step, *server.state(), keep)

    def measured(step: int) -> None:
        append(folder / SERVER_METRICS, StepRecord(step, metrics=server.metrics))

    def report() -> None:
        server.stack.report(folder / "probes")

    session = ServerSession(
        link,
        server,
        dict(plan.agreement),
        batch_bytes=plan.batch_bytes,
        timeout=plan.timeout,
        waits=plan.config.reconnect,
        resume=resume,
        save=save,
        measured=measured,
    )
    return session, report

"""Connections: they tell two sockets of each other's mailboxes, and when one of the two is gone.

An address is held by a socket of the system that listens there. Who connects says which mailbox it has, and hears the
same of the other side. No message travels over the connection; it stays open as long as both want it, and its end is
the end of the pipe. All of this happens on the hub's thread.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import select
import socket
from typing import TYPE_CHECKING, Any

from zmq.constants import Event, ReconnectStop, SocketOption, SocketType

import byref

from ._endpoints import Endpoint
from ._hub import hub
from ._patterns import PEERS
from ._pipe import Pipe
from ._wire import HELLO, command

if TYPE_CHECKING:
    from ._core import Core

Opt = SocketOption

_log = logging.getLogger("byref.zmq")
MAGIC = b"BYREF-ZMQ/1 "
# What libzmq says first.
ZMTP = b"\xff"
# Bytes of what is said at the beginning, and seconds that the other mailbox has to answer.
GREETING_LIMIT = 4096
MEETING = 2.0


class Refused(Exception):
    """The two cannot be connected; the text says why."""


class Link:
    """One connection, at either side."""

    def __init__(self, core: Core, connection: socket.socket, owner: Listener | Connector) -> None:
        self.core = core
        self.connection = connection
        self.owner = owner
        self.pipe: Pipe | None = None
        self.received = b""
        self.greeted = False
        self.open = True
        core.links.add(self)
        hub.watch(connection.fileno(), self._ready)
        if limit := core.options[Opt.HANDSHAKE_IVL]:
            hub.call_later(limit / 1000, self._give_up)

    def _give_up(self) -> None:
        if self.open and not self.greeted:
            self.close()

    def greet(self, pipe: Pipe) -> None:
        """Say which mailbox is at this side."""
        said = {
            "mailbox": self.core.box.address,
            "type": self.core.kind,
            "id": bytes(self.core.options[Opt.ROUTING_ID]).hex(),
            "pipe": pipe.number,
            "window": pipe.window(),
        }
        self._say(said)

    def _say(self, said: dict[str, Any]) -> None:
        try:
            self.connection.sendall(MAGIC + json.dumps(said).encode() + b"\n")
        except OSError:
            self.close()

    def _ready(self) -> None:
        if not self.open:
            return
        try:
            piece = self.connection.recv(GREETING_LIMIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            piece = b""
        if not piece:
            self.close()
            return
        if self.greeted:
            return
        self.received += piece
        try:
            self._hear()
        except Refused as problem:
            self.core.emit(Event.HANDSHAKE_FAILED_PROTOCOL, self.owner.address, Event.PROTOCOL_ERROR_ZMTP_UNSPECIFIED)
            self.owner.complain(str(problem))
            self.close()

    def _hear(self) -> None:
        if self.received.startswith(ZMTP):
            raise Refused(
                "at the other side is a libzmq that does not run on byref; run that program with "
                "PYZMQ_BACKEND=byref.zmq or `byref exec --zmq`, too"
            )
        if not MAGIC.startswith(self.received[: len(MAGIC)]) or len(self.received) > GREETING_LIMIT:
            raise Refused("at the other side is something else than a socket of byref.zmq")
        if not self.received.endswith(b"\n"):
            return
        self.greeted = True
        said = json.loads(self.received[len(MAGIC) :])
        if "refused" in said:
            if said["again"]:
                self.close()
                return
            raise Refused(said["refused"])
        self._meet(said)

    def _meet(self, said: dict[str, Any]) -> None:
        """Open the pipe to the mailbox that the other side has told of."""
        core, kind, routing_id = self.core, said["type"], bytes.fromhex(said["id"])
        incoming = isinstance(self.owner, Listener)
        if kind not in PEERS[core.kind]:
            text = f"{SocketType(kind).name} cannot be connected with {SocketType(core.kind).name}"
            if incoming:
                self._say({"refused": text, "again": False})
            raise Refused(text)
        if incoming:
            with core.lock:
                if core.closed or core.closing:
                    self.close()
                    return
                if reason := core.pattern.refuses(routing_id):
                    self._say({"refused": reason, "again": True})
                    self.close()
                    return
                self.pipe = Pipe(core)
            self.greet(self.pipe)
        assert self.pipe is not None
        if not self.open:
            return
        own = core.box.identity
        try:
            peer = own if said["mailbox"] == own.address else core.box.wait_for_peer(said["mailbox"], timeout=MEETING)
            # The first message between two mailboxes takes a meeting of their processes: not at the program's expense.
            core.box.send(peer, b"", None, command(HELLO), MEETING)
        except byref.Error as problem:
            if isinstance(problem, byref.PeerLost | byref.Closed):
                self.close()
                return
            raise Refused(
                f"the mailbox of the other side cannot be reached; both must run on one host, with the same BYREF_DIR "
                f"({problem})"
            ) from problem
        if not core.opened(self.pipe, peer, kind, routing_id, said["pipe"], said["window"], self):
            self.close()
            return
        descriptor = self.connection.fileno()
        core.emit(Event.HANDSHAKE_SUCCEEDED, self.owner.address, descriptor)

    def close(self) -> None:
        """End the connection, and with it the pipe."""
        if not self.open:
            return
        self.open = False
        hub.forget(self.connection.fileno())
        descriptor = self.connection.fileno()
        self.connection.close()
        self.core.links.discard(self)
        if self.greeted:
            self.core.emit(Event.DISCONNECTED, self.owner.address, descriptor)
        if self.pipe is not None:
            self.core.shut(self.pipe, self)
        self.owner.ended(self)


class Listener:
    """Accepts connections at an address."""

    def __init__(self, core: Core, address: str, endpoint: Endpoint, listening: socket.socket) -> None:
        self.core = core
        self.address = address
        self.endpoint = endpoint
        self.listening = listening
        self.complained = False
        self.inode: int | None = None
        if endpoint.protocol == "ipc" and not endpoint.place.startswith("\0"):
            self.inode = os.stat(endpoint.place).st_ino
        hub.watch(listening.fileno(), self._accept)

    def complain(self, text: str) -> None:
        """Say once that somebody could not be connected."""
        if not self.complained:
            self.complained = True
            _log.error("%s: somebody connected in vain: %s", self.address, text)

    def _accept(self) -> None:
        try:
            connection, _ = self.listening.accept()
        except OSError as problem:
            if problem.errno not in (errno.EAGAIN, errno.EINTR, errno.ECONNABORTED):
                self.core.emit(Event.ACCEPT_FAILED, self.address, problem.errno or 0)
            return
        connection.setblocking(False)
        self.core.emit(Event.ACCEPTED, self.address, connection.fileno())
        Link(self.core, connection, self)

    def ended(self, link: Link) -> None:
        """A connection has ended."""

    def close(self) -> None:
        """Accept no more."""
        descriptor = self.listening.fileno()
        if descriptor < 0:
            return
        hub.forget(descriptor)
        if self.inode is not None:
            try:
                if os.stat(self.endpoint.place).st_ino == self.inode:
                    os.unlink(self.endpoint.place)
            except OSError:
                pass
        self.listening.close()
        self.core.emit(Event.CLOSED, self.address, descriptor)


class Connector:
    """Connects to an address, again and again if it has to."""

    def __init__(self, core: Core, address: str, endpoint: Endpoint, pipe: Pipe) -> None:
        self.core = core
        self.address = address
        self.endpoint = endpoint
        self.pipe = pipe
        self.complained = False
        self.stopped = False
        self.link: Link | None = None
        self.trying: socket.socket | None = None
        self.interval = core.options[Opt.RECONNECT_IVL]

    def complain(self, text: str) -> None:
        """Say once that it cannot be connected."""
        if not self.complained:
            self.complained = True
            _log.error("%s: cannot connect: %s", self.address, text)
        if self.core.options[Opt.RECONNECT_STOP] & ReconnectStop.HANDSHAKE_FAILED:
            self.stopped = True

    def attempt(self) -> None:
        """Try to connect."""
        if self.stopped or self.link is not None or self.trying is not None:
            return
        if self.core.closed and not self.core.closing:
            return
        trying = socket.socket(self.endpoint.family, socket.SOCK_STREAM)
        trying.setblocking(False)
        result = trying.connect_ex(self.endpoint.place)
        if result == 0:
            self._connected(trying)
        elif result == errno.EINPROGRESS:
            self.trying = trying
            self.core.emit(Event.CONNECT_DELAYED, self.address, result)
            hub.watch(trying.fileno(), self._answered, select.EPOLLOUT)
        else:
            trying.close()
            self._again(result)

    def _answered(self) -> None:
        trying = self.trying
        if trying is None:
            return
        self.trying = None
        hub.forget(trying.fileno())
        result = trying.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result == 0 and self.endpoint.family != socket.AF_UNIX and trying.getsockname() == trying.getpeername():
            result = errno.ECONNREFUSED  # Nobody listens, and by chance it has met itself.
        if result == 0 and not self.stopped:
            self._connected(trying)
        else:
            trying.close()
            self._again(result)

    def _connected(self, connection: socket.socket) -> None:
        self.core.emit(Event.CONNECTED, self.address, connection.fileno())
        self.interval = self.core.options[Opt.RECONNECT_IVL]
        self.link = Link(self.core, connection, self)
        with self.core.lock:
            self.link.pipe = self.core.renewed(self.pipe)
        self.link.greet(self.pipe)

    def _again(self, result: int) -> None:
        if result == errno.ECONNREFUSED and self.core.options[Opt.RECONNECT_STOP] & ReconnectStop.CONN_REFUSED:
            self.stopped = True
        if self.stopped or self.interval < 0:
            return
        self.core.emit(Event.CONNECT_RETRIED, self.address, self.interval)
        # Not all at the same moment.
        hub.call_later(self.interval / 1000 * random.uniform(1, 1.25), self.attempt)
        most = self.core.options[Opt.RECONNECT_IVL_MAX]
        if most > self.interval:
            self.interval = min(self.interval * 2, most)

    def ended(self, link: Link) -> None:
        """The connection has ended."""
        if self.link is link:
            self.link = None
            if self.core.options[Opt.RECONNECT_STOP] & ReconnectStop.AFTER_DISCONNECT:
                self.stopped = True
            self._again(0)

    def close(self) -> None:
        """Connect no more."""
        self.stopped = True
        trying, self.trying = self.trying, None
        if trying is not None:
            hub.forget(trying.fileno())
            trying.close()
        if self.link is not None:
            self.link.close()

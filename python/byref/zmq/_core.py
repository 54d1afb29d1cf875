"""A socket, as several Python objects may refer to it (shadows): its mailbox, its pipes, and its waiting."""

from __future__ import annotations

import errno
import itertools
import os
import select
import struct
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from zmq.constants import Errno, Event, PollEvent, SocketOption, SocketType

import byref

from . import _endpoints, _options
from ._errors import OPTIONS, fail
from ._hub import hub
from ._links import Connector, Link, Listener
from ._patterns import PATTERNS, PEERS
from ._pipe import Pipe
from ._wire import (
    BYE,
    COMMAND,
    CREDIT,
    KIND_MASK,
    KIND_SHIFT,
    PIPE_MASK,
    PIPE_SHIFT,
    SUBSCRIBE,
    UNSUBSCRIBE,
    VALUE_SHIFT,
    WAKE,
    Part,
    command,
)

if TYPE_CHECKING:
    from ._context import ContextCore

Opt = SocketOption
# Messages that may wait at each other mailbox: twice what flow control lets through, for commands.
DEPTH = 8192
# Seconds that a socket has to meet itself.
MEETING = 10.0
# Seconds after which memory that was missing is looked for again.
HUNGER = 0.002
_numbers = itertools.count(0x10000, 0x10)
CORES: weakref.WeakValueDictionary[int, Core] = weakref.WeakValueDictionary()


class Core:
    """The lock is held while anything is changed, and by nobody who waits."""

    def __init__(self, context: ContextCore, kind: int) -> None:
        if kind not in PATTERNS:
            name = kind if kind not in list(SocketType) else SocketType(kind).name
            fail(Errno.EINVAL, f"sockets of type {name} do not run on byref: {OPTIONS}")
        self.number = next(_numbers)
        self.context = context
        self.kind = kind
        self.options = _options.defaults()
        if context.ipv6:
            self.options[Opt.IPV6], self.options[Opt.IPV4ONLY] = 1, 0
        if not context.blocky:
            self.options[Opt.LINGER] = 0
        self.lock = threading.RLock()
        try:
            self.box = byref.Mailbox(depth=DEPTH, events=True)
        except (OSError, byref.Error) as problem:
            fail(errno.EMFILE, f"no mailbox for a socket: {problem}")
        self.process = os.getpid()
        self.pipes: dict[int, Pipe] = {}
        self._pipe_numbers = itertools.count(1)
        # Messages that were taken out of the mailbox, and those parts of one that the program has not seen yet.
        self.inbox: deque[tuple[Pipe, Any, int]] = deque()
        self.rest: deque[Part] = deque()
        # Parts of a message whose last one has not been sent.
        self.begun: list[Part] = []
        self.begun_keep: list[Any] = []
        self.pattern = PATTERNS[kind](self)
        self.last_endpoint = b""
        self.listeners: dict[str, Listener | str] = {}
        self.connectors: dict[str, list[Connector | Pipe]] = {}
        self.links: set[Link] = set()
        # Whether a thread waits for the mailbox: it alone takes messages out, or their order would be lost.
        self.reading = False
        self.woken = False
        self.bell = False
        self.watched = False
        # Whether the hub looks again soon whether there is memory.
        self.hungry = False
        # Closed for the program; and whether messages still wait to be sent.
        self.closed = False
        self.closing = False
        self.monitoring: tuple[Core, int, str] | None = None
        CORES[self.number] = self

    # ---- states

    def check(self) -> None:
        """Raise if the socket, or its context, is not usable any more."""
        if self.closed:
            fail(errno.ENOTSOCK)
        if self.context.terminated:
            fail(Errno.ETERM)
        if self.process != os.getpid():
            fail(errno.ENOTSOCK, "the socket belongs to the parent of this forked process; create a new one here")

    # ---- what comes

    def drain(self) -> None:
        """Take out of the mailbox all that is there."""
        if self.reading:
            return
        receive, handle = self.box.try_recv, self.handle
        while (message := receive()) is not None:
            handle(message)

    def handle(self, message: byref.Message | byref.Event) -> None:
        """Something came out of the mailbox."""
        if isinstance(message, byref.Event):
            self._told(message)
            return
        tag = message.timestamp_ns
        number = tag >> PIPE_SHIFT & PIPE_MASK
        pipe = self.pipes.get(number)
        if pipe is not None and pipe.early is not None and number == pipe.number:
            pipe.early.append(message)
        elif tag & COMMAND:
            self._commanded(pipe, tag, message)
        elif pipe is not None:
            self.pattern.arrived(pipe, message, tag)

    def _commanded(self, pipe: Pipe | None, tag: int, message: byref.Message) -> None:
        kind = tag >> KIND_SHIFT & KIND_MASK
        if kind == WAKE:
            self.woken = False
        elif pipe is None:
            pass
        elif kind == CREDIT:
            pipe.credit += tag >> VALUE_SHIFT
            if pipe.pending:
                pipe.flush()
        elif kind == BYE:
            self.pipes.pop(tag >> PIPE_SHIFT & PIPE_MASK, None)
            if pipe.number == tag >> PIPE_SHIFT & PIPE_MASK:
                self.shut(pipe)
        elif kind in (SUBSCRIBE, UNSUBSCRIBE):
            self.pattern.commanded(pipe, kind, bytes(message))

    def _told(self, event: byref.Event) -> None:
        """A mailbox has come or gone."""
        if event.kind not in ("left", "lost", "evicted") or event.peer is None:
            return
        for number, pipe in list(self.pipes.items()):
            if pipe.former.pop(number, pipe.peer if number == pipe.number else None) == event.peer:
                del self.pipes[number]
                if pipe.peer == event.peer:
                    self.shut(pipe)
        self.box.undelivered(event.peer)

    def wake(self) -> None:
        """Let who waits for the mailbox, or its descriptor, look again."""
        if not self.woken:
            self.woken = True
            try:
                # The first message to itself takes a meeting, as with others.
                self.box.send(self.box.identity, b"", None, command(WAKE), 0 if self.bell else MEETING)
                self.bell = True
            except (byref.Error, ValueError):
                self.woken = False

    def wait(self, deadline: float | None) -> None:
        """Wait until something comes; `Again` when it is late. The lock is held once, and not while this waits."""
        timeout = None
        if deadline is not None:
            timeout = deadline - time.monotonic()
            if timeout <= 0:
                fail(errno.EAGAIN)
        if self.reading:  # Another thread, or what a signal has interrupted, waits already.
            self.lock.release()
            try:
                time.sleep(0.001)
            finally:
                self.lock.acquire()
            self.check()
            return
        self.reading = True
        self.lock.release()
        message = None
        try:
            message = self.box.recv(timeout)
        except (byref.Timeout, byref.Closed):
            pass
        finally:
            self.lock.acquire()
            self.reading = False
        if message is not None:
            self.handle(message)
        self.check()

    def deadline(self, option: int, flags: int) -> float | None:
        """Until when a call waits."""
        if flags & 1:
            return 0.0
        limit = self.options[option]
        return None if limit < 0 else time.monotonic() + limit / 1000

    # ---- the program's calls

    def send(self, parts: list[Part], flags: int, keep: Any = None) -> None:
        """Send a message."""
        with self.lock:
            self.check()
            self.drain()
            if self.pattern.send(parts, keep):
                return
            deadline = self.deadline(Opt.SNDTIMEO, flags)
            while True:
                self.wait(deadline)
                self.drain()
                if self.pattern.send(parts, keep):
                    return

    def send_part(self, part: Part, flags: int, keep: Any) -> None:
        """Send a part of a message; the message goes with its last part."""
        if not flags & 2:
            if not self.begun:
                self.send([part], flags, keep)
                return
            parts, kept = [*self.begun, part], [*self.begun_keep, keep]
            self.send(parts, flags, kept if any(kept) else None)
            self.begun, self.begun_keep = [], []
            return
        with self.lock:
            if not self.begun:
                self._admit(part, flags)
            self.begun.append(bytes(part) if keep is None and isinstance(part, memoryview) else part)
            self.begun_keep.append(keep)

    def _admit(self, part: Part, flags: int) -> None:
        """Wait until a message that begins so can be sent."""
        self.check()
        self.drain()
        if self.pattern.admits(part):
            return
        deadline = self.deadline(Opt.SNDTIMEO, flags)
        while not self.pattern.admits(part):
            self.wait(deadline)
            self.drain()

    def receive(self, flags: int) -> list[Part]:
        """Receive all parts of a message, or those that are left of one."""
        with self.lock:
            if self.rest:
                parts = list(self.rest)
                self.rest.clear()
                return parts
            self.check()
            if not self.inbox:
                self.drain()
            found = self.pattern.receive()
            if found is not None:
                return found
            deadline = self.deadline(Opt.RCVTIMEO, flags)
            while True:
                self.wait(deadline)
                found = self.pattern.receive()
                if found is not None:
                    return found

    def receive_part(self, flags: int) -> Part:
        """Receive the next part of a message."""
        if self.rest:
            self.check()
            return self.rest.popleft()
        parts = self.receive(flags)
        if len(parts) > 1:
            self.rest.extend(parts[1:])
        return parts[0]

    def events(self) -> int:
        """What can be done without waiting."""
        with self.lock:
            self.check()
            self.drain()
            found = PollEvent.POLLIN.value if self.rest or self.pattern.readable() else 0
            return found | PollEvent.POLLOUT.value if self.pattern.writable() else found

    # ---- who is at the other side

    def new_number(self, pipe: Pipe) -> int:
        """A number for a pipe, which its messages are tagged with."""
        number = next(self._pipe_numbers)
        self.pipes[number] = pipe
        return number

    def renewed(self, pipe: Pipe) -> Pipe:
        """The pipe, with a new number for a new connection; what comes by the old one is still taken."""
        pipe.number = self.new_number(pipe)
        pipe.early = []
        return pipe

    def opened(
        self,
        pipe: Pipe,
        peer: byref.Identity,
        kind: int,
        routing_id: bytes,
        number: int,
        window: int,
        link: Link | None = None,
    ) -> bool:
        """There is a mailbox at the other side of a pipe; False if this socket is closed meanwhile."""
        with self.lock:
            if self.closed and not self.closing:
                return False
            pipe.link = link
            pipe.peer_kind = kind
            pipe.routing_id = pipe.given_id or routing_id
            pipe.open(peer, number, window)
            self.pattern.opened(pipe)
            pipe.flush()
            if self.options[Opt.PROBE_ROUTER]:
                pipe.push(b"", 0)
            early, pipe.early = pipe.early or [], None
            for message in early:
                self.handle(message)
            self.wake()
            return True

    def shut(self, pipe: Pipe, link: Link | None = None) -> None:
        """There is nobody at the other side of a pipe any more."""
        with self.lock:
            if link is not None and pipe.link is not link:
                return
            link, pipe.link = pipe.link, None
            if pipe.peer is not None:
                pipe.former[pipe.number] = pipe.peer
            self.pattern.shut(pipe)
            pipe.shut()
            if not pipe.lasting:
                pipe.ended = True
                self.pattern.detach(pipe)
            elif self.options[Opt.IMMEDIATE]:
                self.pattern.detach(pipe)
            self.wake()
        if link is not None:
            hub.call_soon(link.close)

    # ---- addresses

    def bind(self, address: str) -> None:
        """Listen at an address."""
        self.check()
        endpoint = _endpoints.parse(address, True, bool(self.options[Opt.IPV6]))
        if endpoint.protocol == "inproc":
            self.context.bind(self, endpoint.place)
            self.listeners[address] = endpoint.place
            self.last_endpoint = address.encode()
            return
        listening = _endpoints.listen(endpoint, self.options[Opt.BACKLOG])
        name = _endpoints.name_of(endpoint, listening)
        self.last_endpoint = name.encode()
        self.listeners[name] = Listener(self, name, endpoint, listening)
        self.emit(Event.LISTENING, name, listening.fileno())

    def unbind(self, address: str) -> None:
        """Listen there no more; who is connected stays so."""
        self.check()
        found = self.listeners.pop(self._resolve(address, self.listeners), None)
        if found is None:
            fail(errno.ENOENT)
        if isinstance(found, Listener):
            found.close()
        else:
            self.context.unbind(self, found)

    def _resolve(self, address: str, among: dict[str, Any]) -> str:
        """The name under which an address is kept."""
        if address in among:
            return address
        endpoint = _endpoints.parse(address, True, bool(self.options[Opt.IPV6]))
        for name, found in among.items():
            if isinstance(found, Listener) and found.endpoint == endpoint:
                return name
        return address

    def connect(self, address: str) -> None:
        """Connect to an address, also if nobody is there yet."""
        self.check()
        endpoint = _endpoints.parse(address, False, bool(self.options[Opt.IPV6]))
        with self.lock:
            pipe = Pipe(self)
            pipe.lasting = True
            pipe.given_id, self.options[Opt.CONNECT_ROUTING_ID] = bytes(self.options[Opt.CONNECT_ROUTING_ID]), b""
            if not self.options[Opt.IMMEDIATE] and not self._publishes():
                self.pattern.attach(pipe)
        self.last_endpoint = address.encode()
        if endpoint.protocol == "inproc":
            pipe.lasting = False
            self.connectors.setdefault(address, []).append(pipe)
            self.context.connect(self, endpoint.place, pipe)
            return
        connector = Connector(self, address, endpoint, pipe)
        self.connectors.setdefault(address, []).append(connector)
        hub.call_soon(connector.attempt)

    def _publishes(self) -> bool:
        return self.kind in (SocketType.PUB, SocketType.XPUB)

    def disconnect(self, address: str) -> None:
        """End a connection; what waits to be sent over it is given up."""
        self.check()
        found = self.connectors.get(address)
        if not found:
            fail(errno.ENOENT)
        one = found.pop()
        if not found:
            del self.connectors[address]
        pipe = one.pipe if isinstance(one, Connector) else one
        with self.lock:
            self.drain()
            pipe.flush()
            pipe.pending.clear()
            pipe.bid_farewell()
            pipe.lasting = False
            peer = pipe.partner() if pipe.partner is not None else None
            self.pattern.detach(pipe)
            pipe.shut()
            pipe.ended = True
        if isinstance(one, Connector):
            hub.call_soon(one.close)
        else:
            self.context.disconnect(self, pipe)
            if peer is not None:
                peer.core.shut(peer)

    # ---- options

    def set(self, option: int, value: Any) -> None:
        """Set an option."""
        self.check()
        if option == Opt.HWM:
            self.set(Opt.SNDHWM, value)
            self.set(Opt.RCVHWM, value)
            return
        _options.check(self.kind, option, value)
        if option in (Opt.SUBSCRIBE, Opt.UNSUBSCRIBE):
            with self.lock:
                self.drain()
                self.pattern.set(option, value)
            return
        if option in (Opt.ROUTING_ID, Opt.CONNECT_ROUTING_ID):
            value = bytes(value)
            if not 1 <= len(value) <= 255:
                fail(Errno.EINVAL)
        if option == Opt.XPUB_WELCOME_MSG and self.kind != SocketType.XPUB:
            fail(Errno.EINVAL)
        self.options[option] = bytes(value) if isinstance(value, bytearray | memoryview) else value
        if option == Opt.IPV6:
            self.options[Opt.IPV4ONLY] = 1 - value
        elif option == Opt.IPV4ONLY:
            self.options[Opt.IPV6] = 1 - value

    def get(self, option: int) -> int | bytes:
        """What an option is set to."""
        if option == Opt.RCVMORE:
            self.check()
            return int(bool(self.rest))
        if option == Opt.EVENTS:
            return self.events()
        self.check()
        if option == Opt.FD:
            with self.lock:
                self.drain()
            return self.box.fileno()
        if option == Opt.TYPE:
            return self.kind
        if option == Opt.LAST_ENDPOINT:
            return self.last_endpoint
        if option == Opt.HWM:
            option = Opt.SNDHWM
        if option == Opt.TOPICS_COUNT and self.kind in (
            SocketType.PUB,
            SocketType.XPUB,
            SocketType.SUB,
            SocketType.XSUB,
        ):
            with self.lock:
                self.drain()
                return len(self.pattern.topics)  # type: ignore[attr-defined]
        if option in (Opt.CONNECT_ROUTING_ID, Opt.XPUB_WELCOME_MSG):
            fail(Errno.EINVAL)
        if option in self.options:
            value: int | bytes = self.options[option]
            return value
        if option in _options.ABSENT:
            return _options.ABSENT[option]
        name = SocketOption(option).name if option in list(SocketOption) else option
        fail(Errno.EINVAL, f"socket option {name} cannot be read on byref: {OPTIONS}")

    # ---- monitoring

    def monitor(self, address: str | None, events: int) -> None:
        """Tell what happens to connections, to who connects to an address within the process."""
        self.check()
        if self.monitoring is not None:
            self._end_monitor()
        if address is None:
            return
        protocol, _ = _endpoints.split(address)
        if protocol != "inproc":
            fail(Errno.EPROTONOSUPPORT)
        core = Core(self.context, SocketType.PAIR)
        self.context.add(core)
        core.options[Opt.LINGER] = 0
        try:
            core.bind(address)
        except Exception:
            core.close()
            raise
        self.monitoring = core, events, address

    def _end_monitor(self) -> None:
        monitoring, self.monitoring = self.monitoring, None
        if monitoring is not None:
            core, events, _ = monitoring
            if events & Event.MONITOR_STOPPED:
                self._report(core, Event.MONITOR_STOPPED, "", 0)
            core.close()

    def emit(self, event: int, address: str, value: int) -> None:
        """Tell of something that happened."""
        if (monitoring := self.monitoring) is not None and monitoring[1] & event:
            self._report(monitoring[0], event, address, value)

    @staticmethod
    def _report(core: Core, event: int, address: str, value: int) -> None:
        with core.lock:
            if not core.closed and core.pattern.writable():
                core.pattern.send([struct.pack("=Hi", event, value), address.encode()], None)

    # ---- waiting for room, and the end

    def watch(self) -> None:
        """Let the hub send on what waits; the lock is held."""
        if not self.watched:
            self.watched = True
            hub.watch(self.box.fileno(), self._flush, select.EPOLLIN | select.EPOLLET)
            # Once without the bell: it may have rung before.
            hub.call_soon(self._flush)

    def _fed(self) -> None:
        self.hungry = False
        self._flush()

    def _flush(self) -> None:
        """Send on what waits, on the hub's thread."""
        with self.lock:
            if not self.watched:
                return
            self.drain()
            pipes = set(self.pipes.values())
            before = sum(len(pipe.pending) for pipe in pipes)
            for pipe in pipes:
                if pipe.pending:
                    pipe.flush()
            if self.reading and sum(len(pipe.pending) for pipe in pipes) < before:
                self.wake()
            if not self.hungry and any(pipe.starved for pipe in pipes):
                self.hungry = True
                hub.call_later(HUNGER, self._fed)
            if not any(pipe.pending and pipe.peer is not None for pipe in pipes):
                if not self.closing:
                    self.watched = False
                    hub.forget(self.box.fileno())
                elif not self.unsent():
                    self._finish()

    def unsent(self) -> bool:
        """Whether messages wait that somebody may still take."""
        return any(
            not pipe.ended and any(not flags & COMMAND for _, flags, _ in pipe.pending)
            for pipe in set(self.pipes.values())
        )

    def close(self) -> None:
        """Close the socket; what waits to be sent has the time that LINGER gives."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            if self.process != os.getpid():
                self.context.remove(self)
                return
            for name, listener in list(self.listeners.items()):
                if isinstance(listener, Listener):
                    listener.close()
                else:
                    self.context.unbind(self, listener)
                del self.listeners[name]
            self.begun.clear()
            self._end_monitor()
            self.drain()
            for pipe in set(self.pipes.values()):
                pipe.flush()
            linger = self.options[Opt.LINGER]
            self.closing = True
            if linger == 0 or not self.unsent():
                self._finish()
                return
            self.wake()
            self.watched = False
            self.watch()
            if linger > 0:
                hub.call_later(linger / 1000, self._finish)

    def _finish(self) -> None:
        """Give back everything."""
        with self.lock:
            if not self.closing:
                return
            self.closing = False
            if self.watched:
                self.watched = False
                hub.forget(self.box.fileno())
            pipes = set(self.pipes.values())
            self.pipes.clear()
            partners = [pipe.partner() for pipe in pipes if pipe.partner is not None]
            for pipe in pipes:
                pipe.bid_farewell()
                pipe.peer = None
            connectors = [one for found in self.connectors.values() for one in found]
            self.connectors.clear()
            self.inbox.clear()
            self.rest.clear()
            self.box.close()
        for one in connectors:
            if isinstance(one, Connector):
                hub.call_soon(one.close)
            else:
                self.context.disconnect(self, one)
        for link in list(self.links):
            hub.call_soon(link.close)
        for partner in partners:
            if partner is not None:
                hub.call_soon(lambda ended=partner: ended.core.shut(ended))  # type: ignore[misc]
        self.context.remove(self)


__all__ = ["CORES", "PEERS", "Core"]

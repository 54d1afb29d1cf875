"""What each type of socket does with messages: to whom they go, and which come out.

Methods are called with the lock of the socket held. `send` says whether the message went; it is asked again when
something has changed. `receive` gives the next message, or None.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from zmq.constants import Errno, SocketOption, SocketType

from ._errors import fail
from ._pipe import Pipe
from ._wire import EMPTY, SUBSCRIBE, UNSUBSCRIBE, Part, Payload, decode, encode, pack, unpack

if TYPE_CHECKING:
    from ._core import Core

T = SocketType
Opt = SocketOption

# Who may be at the other side.
PEERS: dict[int, set[SocketType]] = {
    T.PAIR: {T.PAIR},
    T.PUB: {T.SUB, T.XSUB},
    T.XPUB: {T.SUB, T.XSUB},
    T.SUB: {T.PUB, T.XPUB},
    T.XSUB: {T.PUB, T.XPUB},
    T.PUSH: {T.PULL},
    T.PULL: {T.PUSH},
    T.REQ: {T.REP, T.ROUTER},
    T.REP: {T.REQ, T.DEALER},
    T.DEALER: {T.REP, T.DEALER, T.ROUTER},
    T.ROUTER: {T.REQ, T.DEALER, T.ROUTER},
}


class Pattern:
    """What all types have in common: messages come out in the order in which they came, from whomever."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.pipes: list[Pipe] = []
        self._turn = 0

    # ---- who is at the other side

    def refuses(self, _routing_id: bytes) -> str | None:
        """Why nobody else may connect at this time; None if somebody may."""
        return None

    def attach(self, pipe: Pipe) -> None:
        """Begin to send to a pipe."""
        if not pipe.attached:
            pipe.attached = True
            self.pipes.append(pipe)

    def detach(self, pipe: Pipe) -> None:
        """Send no more to a pipe."""
        if pipe.attached:
            pipe.attached = False
            self.pipes.remove(pipe)

    def opened(self, pipe: Pipe) -> None:
        """There is somebody at the other side of a pipe."""
        self.attach(pipe)

    def shut(self, pipe: Pipe) -> None:
        """There is nobody at the other side of a pipe any more."""

    def commanded(self, pipe: Pipe, kind: int, payload: bytes) -> None:
        """The other side of a pipe says something of its own."""

    # ---- sending

    def send(self, parts: list[Part], keep: Any) -> bool:
        """Send a message."""
        payload, flags = encode(parts)
        return bool(self.balance(payload, flags, keep))

    def writable(self) -> bool:
        """Whether a message could be sent now."""
        return any(pipe.room() for pipe in self.pipes)

    def admits(self, _first: Part) -> bool:
        """Whether a message that begins so could be sent now; raises if it cannot be sent at all."""
        return self.writable()

    def balance(self, payload: Payload, flags: int, keep: Any) -> Pipe | bool:
        """Send to the next pipe that has room; gives it."""
        pipes = self.pipes
        count = len(pipes)
        for step in range(count):
            pipe = pipes[(self._turn + step) % count]
            if pipe.room():
                self._turn = (self._turn + step + 1) % count
                pipe.push(payload, flags, keep)
                return pipe
        return False

    # ---- receiving

    def arrived(self, pipe: Pipe, message: Any, tag: int) -> None:
        """A message came."""
        inbox = self.core.inbox
        if self.core.options[Opt.CONFLATE]:
            while inbox:
                inbox.popleft()[0].took()
        inbox.append((pipe, message, tag))

    def readable(self) -> bool:
        """Whether a message could be received now."""
        return bool(self.core.inbox)

    def receive(self) -> list[Part] | None:
        """The next message."""
        inbox = self.core.inbox
        if not inbox:
            return None
        pipe, message, tag = inbox.popleft()
        pipe.took()
        return decode(message, tag)

    def set(self, option: int, value: Any) -> None:
        """An option that only this type has was set."""
        fail(Errno.EINVAL)


class _CannotSend(Pattern):
    def send(self, parts: list[Part], keep: Any) -> bool:
        fail(errno.ENOTSUP)

    def admits(self, _first: Part) -> bool:
        fail(errno.ENOTSUP)

    def writable(self) -> bool:
        return False


class _CannotReceive(Pattern):
    def receive(self) -> list[Part] | None:
        fail(errno.ENOTSUP)

    def readable(self) -> bool:
        return False

    def arrived(self, pipe: Pipe, message: Any, tag: int) -> None:
        pipe.took()


class Push(_CannotReceive):
    """To the next that has room."""


class Pull(_CannotSend):
    """From all, in turn."""


class Dealer(Pattern):
    """To the next that has room, and from all in turn."""


class Pair(Pattern):
    """One peer at a time."""

    def refuses(self, _routing_id: bytes) -> str | None:
        return "it has a peer already" if self.pipes else None

    def attach(self, pipe: Pipe) -> None:
        if not self.pipes:
            super().attach(pipe)

    def arrived(self, pipe: Pipe, message: Any, tag: int) -> None:
        if pipe in self.pipes or pipe.ended:
            super().arrived(pipe, message, tag)


class Req(Pattern):
    """A request to the next that has room, then its reply."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.asked: Pipe | None = None
        self.number = itertools.count(int.from_bytes(os.urandom(3), "little"))
        self.last = b""

    def send(self, parts: list[Part], keep: Any) -> bool:
        if self.asked is not None and not self.core.options[Opt.REQ_RELAXED]:
            fail(Errno.EFSM)
        if self.core.options[Opt.REQ_CORRELATE]:
            self.last = next(self.number).to_bytes(8, "little")[:4]
            payload, flags = pack([self.last, b"", *parts])
        else:
            payload, flags = pack(parts)
            flags |= EMPTY
        sent = self.balance(payload, flags, keep)
        if not sent:
            return False
        assert isinstance(sent, Pipe)
        # What answers earlier requests is of no interest any more.
        self._drop()
        self.asked = sent
        return True

    def admits(self, _first: Part) -> bool:
        if self.asked is not None and not self.core.options[Opt.REQ_RELAXED]:
            fail(Errno.EFSM)
        return self.writable()

    def _drop(self) -> None:
        inbox = self.core.inbox
        while inbox:
            inbox.popleft()[0].took()

    def writable(self) -> bool:
        return (self.asked is None or bool(self.core.options[Opt.REQ_RELAXED])) and super().writable()

    def arrived(self, pipe: Pipe, message: Any, tag: int) -> None:
        body = self._body(pipe, message, tag)
        if body is None:
            pipe.took()
        else:
            self.core.inbox.append((pipe, body, 0))

    def _body(self, pipe: Pipe, message: Any, tag: int) -> list[Part] | None:
        """The reply, without what stands in front of it; None if it answers something else."""
        if pipe is not self.asked:
            return None
        parts = unpack(message, tag)
        if self.core.options[Opt.REQ_CORRELATE]:
            if tag & EMPTY or len(parts) < 3 or bytes(parts[0]) != self.last or len(parts[1]):
                return None
            return parts[2:]
        return parts if tag & EMPTY else None

    def readable(self) -> bool:
        return self.asked is not None and bool(self.core.inbox)

    def receive(self) -> list[Part] | None:
        if self.asked is None:
            fail(Errno.EFSM)
        if not self.core.inbox:
            return None
        pipe, body, _ = self.core.inbox.popleft()
        pipe.took()
        self.asked = None
        return body  # type: ignore[no-any-return]


class Rep(Pattern):
    """A request, then the reply to whoever asked."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        # Whom to reply to, and what stands in front of the reply; None for the empty part alone.
        self.asker: tuple[Pipe, list[Part] | None] | None = None

    def send(self, parts: list[Part], keep: Any) -> bool:
        if self.asker is None:
            fail(Errno.EFSM)
        pipe, envelope = self.asker
        self.asker = None
        if pipe.peer is not None and pipe.room():
            if envelope is None:
                payload, flags = pack(parts)
                pipe.push(payload, flags | EMPTY, keep)
            else:
                payload, flags = encode([*envelope, *parts])
                pipe.push(payload, flags, keep)
        return True

    def admits(self, _first: Part) -> bool:
        if self.asker is None:
            fail(Errno.EFSM)
        return True

    def writable(self) -> bool:
        return self.asker is not None

    def readable(self) -> bool:
        return self.asker is None and bool(self.core.inbox)

    def receive(self) -> list[Part] | None:
        if self.asker is not None:
            fail(Errno.EFSM)
        inbox = self.core.inbox
        while inbox:
            pipe, message, tag = inbox.popleft()
            pipe.took()
            parts = unpack(message, tag)
            if tag & EMPTY:
                self.asker = pipe, None
                return parts
            end = next((at for at, part in enumerate(parts) if not len(part)), None)
            if end is not None and end + 1 < len(parts):
                self.asker = pipe, [bytes(part) for part in parts[: end + 1]]
                return parts[end + 1 :]
        return None


class Router(Pattern):
    """To the peer that the first part names."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.routes: dict[bytes, Pipe] = {}
        self.number = itertools.count(int.from_bytes(os.urandom(3), "little"))

    def refuses(self, routing_id: bytes) -> str | None:
        if routing_id in self.routes and not self.core.options[Opt.ROUTER_HANDOVER]:
            return f"a peer with the identity {routing_id!r} is connected"
        return None

    def attach(self, pipe: Pipe) -> None:
        pass  # Nobody can be named before it has said what it is called.

    def opened(self, pipe: Pipe) -> None:
        if not pipe.routing_id:
            pipe.routing_id = b"\0" + (next(self.number) & 0xFFFFFFFF).to_bytes(4, "big")
        before = self.routes.get(pipe.routing_id)
        if before is not None and before is not pipe:
            if not self.core.options[Opt.ROUTER_HANDOVER]:
                return
            before.attached = False
            self.pipes.remove(before)
        self.routes[pipe.routing_id] = pipe
        super().attach(pipe)

    def detach(self, pipe: Pipe) -> None:
        super().detach(pipe)
        if self.routes.get(pipe.routing_id) is pipe:
            del self.routes[pipe.routing_id]

    def shut(self, pipe: Pipe) -> None:
        self.detach(pipe)

    def send(self, parts: list[Part], keep: Any) -> bool:
        pipe = self.routes.get(bytes(parts[0]))
        if pipe is None or not pipe.room():
            if not self.core.options[Opt.ROUTER_MANDATORY]:
                return True
            if pipe is None:
                fail(errno.EHOSTUNREACH)
            return False
        if len(parts) > 1:
            payload, flags = encode(parts[1:])
            pipe.push(payload, flags, keep)
        return True

    def admits(self, first: Part) -> bool:
        if not self.core.options[Opt.ROUTER_MANDATORY]:
            return True
        pipe = self.routes.get(bytes(first))
        if pipe is None:
            fail(errno.EHOSTUNREACH)
        return pipe.room()

    def writable(self) -> bool:
        return not self.core.options[Opt.ROUTER_MANDATORY] or super().writable()

    def receive(self) -> list[Part] | None:
        inbox = self.core.inbox
        if not inbox:
            return None
        pipe, message, tag = inbox.popleft()
        pipe.took()
        return [pipe.routing_id, *decode(message, tag)]


class XPub(Pattern):
    """To all that subscribed to what the first part begins with; subscriptions come out."""

    silent = False

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.topics: Counter[bytes] = Counter()
        self.last: Pipe | None = None

    def opened(self, pipe: Pipe) -> None:
        super().opened(pipe)
        if welcome := self.core.options[Opt.XPUB_WELCOME_MSG]:
            pipe.push(welcome, 0)

    def commanded(self, pipe: Pipe, kind: int, payload: bytes) -> None:
        if kind not in (SUBSCRIBE, UNSUBSCRIBE):
            return
        if self.core.options[Opt.XPUB_MANUAL]:
            self._tell(pipe, kind, payload)
        elif kind == SUBSCRIBE:
            new = self._add(pipe, payload)
            if new or self.core.options[Opt.XPUB_VERBOSE] or self.core.options[Opt.XPUB_VERBOSER]:
                self._tell(pipe, kind, payload)
        elif self._remove(pipe, payload) or self.core.options[Opt.XPUB_VERBOSER]:
            self._tell(pipe, kind, payload)

    def _tell(self, pipe: Pipe, kind: int, topic: bytes) -> None:
        if not self.silent:
            self.core.inbox.append((pipe, [(b"\1" if kind == SUBSCRIBE else b"\0") + topic], -1))

    def _add(self, pipe: Pipe, topic: bytes) -> bool:
        """Whether nobody had subscribed to it."""
        if topic in pipe.topics:
            return False
        pipe.topics.add(topic)
        pipe.prefixes = tuple(pipe.topics)
        self.topics[topic] += 1
        return self.topics[topic] == 1

    def _remove(self, pipe: Pipe, topic: bytes) -> bool:
        """Whether nobody is subscribed to it any more."""
        if topic not in pipe.topics:
            return False
        pipe.topics.discard(topic)
        pipe.prefixes = tuple(pipe.topics)
        self.topics[topic] -= 1
        if self.topics[topic]:
            return False
        del self.topics[topic]
        return True

    def shut(self, pipe: Pipe) -> None:
        for topic in list(pipe.topics):
            if self._remove(pipe, topic) or self.core.options[Opt.XPUB_VERBOSER]:
                self._tell(pipe, UNSUBSCRIBE, topic)

    def send(self, parts: list[Part], keep: Any) -> bool:
        inverted = bool(self.core.options[Opt.INVERT_MATCHING])
        if not self.topics and not inverted:
            return True
        first = parts[0]
        longest = max(map(len, self.topics), default=0)
        topic = first if type(first) is bytes else bytes(memoryview(first)[:longest])
        wanting = [pipe for pipe in self.pipes if topic.startswith(pipe.prefixes) != inverted]
        if self.core.options[Opt.XPUB_NODROP] and not all(pipe.room() for pipe in wanting):
            return False
        if wanting:
            payload, flags = encode(parts)
            for pipe in wanting:
                if pipe.room() or self.core.options[Opt.CONFLATE]:
                    pipe.push(payload, flags, keep)
        return True

    def writable(self) -> bool:
        return True

    def receive(self) -> list[Part] | None:
        inbox = self.core.inbox
        if not inbox:
            return None
        pipe, message, tag = inbox.popleft()
        if tag >= 0:
            pipe.took()
            return decode(message, tag)
        self.last = pipe
        return message  # type: ignore[no-any-return]

    def set(self, option: int, value: Any) -> None:
        if not self.core.options[Opt.XPUB_MANUAL]:
            fail(Errno.EINVAL)
        if self.last is not None and self.last.peer is not None:
            (self._add if option == Opt.SUBSCRIBE else self._remove)(self.last, bytes(value))


class Pub(XPub):
    """As XPUB, and nothing comes out."""

    silent = True

    def arrived(self, pipe: Pipe, message: Any, tag: int) -> None:
        pipe.took()

    def receive(self) -> list[Part] | None:
        fail(errno.ENOTSUP)

    def readable(self) -> bool:
        return False

    def set(self, option: int, value: Any) -> None:
        fail(Errno.EINVAL)


class XSub(Pattern):
    """From all publishers what it subscribed to; messages that begin with 1 or 0 subscribe and unsubscribe."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.topics: Counter[bytes] = Counter()
        # Whether something may come that is not wanted any more.
        self.stale = False

    def opened(self, pipe: Pipe) -> None:
        super().opened(pipe)
        for topic in self.topics:
            pipe.tell(SUBSCRIBE, topic)

    def set(self, option: int, value: Any) -> None:
        topic = bytes(value)
        if option == Opt.SUBSCRIBE:
            self.topics[topic] += 1
            changed = self.topics[topic] == 1
        elif self.topics[topic] == 0:
            del self.topics[topic]
            changed = False
        else:
            self.topics[topic] -= 1
            changed = self.topics[topic] == 0
            if changed:
                del self.topics[topic]
                self.stale = True
        if changed:
            for pipe in self.pipes:
                pipe.tell(SUBSCRIBE if option == Opt.SUBSCRIBE else UNSUBSCRIBE, topic)

    def send(self, parts: list[Part], keep: Any) -> bool:
        first = bytes(parts[0])
        if len(parts) == 1 and first[:1] in (b"\0", b"\1"):
            if first[0]:
                self.set(Opt.SUBSCRIBE, first[1:])
            elif self.topics[first[1:]]:
                self.set(Opt.UNSUBSCRIBE, first[1:])
            return True
        payload, flags = encode(parts)
        for pipe in self.pipes:
            if pipe.room():
                pipe.push(payload, flags, keep)
        return True

    def writable(self) -> bool:
        return True

    def receive(self) -> list[Part] | None:
        while (parts := super().receive()) is not None:
            if not self.stale or self.wants(parts[0]):
                return parts
        return None

    def wants(self, first: Part) -> bool:
        """Whether a message that begins so is subscribed to."""
        return bytes(first).startswith(tuple(self.topics)) != bool(self.core.options[Opt.INVERT_MATCHING])

    def readable(self) -> bool:
        inbox = self.core.inbox
        while self.stale and inbox and not self.wants(decode(*inbox[0][1:])[0]):
            inbox.popleft()[0].took()
        return bool(inbox)


class Sub(_CannotSend, XSub):
    """As XSUB, and subscribes by options."""


PATTERNS: dict[int, type[Pattern]] = {
    T.PAIR: Pair,
    T.PUB: Pub,
    T.SUB: Sub,
    T.REQ: Req,
    T.REP: Rep,
    T.DEALER: Dealer,
    T.ROUTER: Router,
    T.PULL: Pull,
    T.PUSH: Push,
    T.XPUB: XPub,
    T.XSUB: XSub,
}

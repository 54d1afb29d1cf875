"""A pipe: one socket's way to another, in order, with what waits for room there."""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import byref

from ._wire import BYE, COMMAND, CREDIT, PIPE_SHIFT, VALUE_LIMIT, Payload, command, owned

if TYPE_CHECKING:
    from ._core import Core
    from ._links import Link

# Messages that may be on the way to a socket without a high-water mark; what is more waits at the sender.
WINDOW_LIMIT = 2048


class Pipe:
    """Its methods are called with the lock of its socket held.

    Flow control: the receiver tells at first how many messages may be on their way to it (its high-water mark), then,
    now and then, how many it has taken. What is more waits here, up to the sender's own high-water mark.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        # What messages to this side are tagged with. A new connection has a new number.
        self.number = core.new_number(self)
        # The mailbox at the other side, while there is one.
        self.peer: byref.Identity | None = None
        self.peer_kind = -1
        self.routing_id = b""
        # What messages to the other side are tagged with.
        self.tag = 0
        self.credit = 0
        # What waits for room: payload, flags, and what keeps the payload's memory.
        self.pending: deque[tuple[Payload, int, Any]] = deque()
        # Whether memory was missing, for which nobody says when there is some again.
        self.starved = False
        # Messages that the program took since the other side was told.
        self.taken = 0
        self.batch = 1
        # For publishers: what the other side subscribed to.
        self.topics: set[bytes] = set()
        self.prefixes: tuple[bytes, ...] = ()
        # Whether its socket sends to it.
        self.attached = False
        # Whether it goes on after a connection has ended: that of a side that connects.
        self.lasting = False
        self.ended = False
        # What the other side sent before this one knew all of it.
        self.early: list[byref.Message] | None = []
        # The connection that it has, or the pipe at the other side where both are in this process.
        self.link: Link | None = None
        self.partner: weakref.ref[Pipe] | None = None
        # Who was at the other side of earlier connections, of whom something may still come, by number.
        self.former: dict[int, byref.Identity] = {}
        # What a ROUTER was told to call the peer.
        self.given_id = b""

    def window(self) -> int:
        """How many messages may be on their way to this side."""
        mark: int = self.core.options[24]
        return min(mark or WINDOW_LIMIT, WINDOW_LIMIT)

    def room(self) -> bool:
        """Whether a message can be sent without waiting."""
        if self.credit and not self.pending:
            return True
        mark: int = self.core.options[23]
        return not mark or len(self.pending) < mark

    def push(self, payload: Payload, flags: int, keep: Any = None) -> None:
        """Send a message, or let it wait for room."""
        if self.credit and not self.pending and self._send(payload, flags):
            self.credit -= 1
            return
        if self.core.options[54]:  # CONFLATE: only the last one is of interest.
            self.pending = deque(entry for entry in self.pending if entry[1] & COMMAND)
        self.pending.append((owned(payload) if keep is None else payload, flags, keep))
        if self.peer is not None:
            self.core.watch()

    def tell(self, kind: int, payload: bytes = b"", value: int = 0) -> None:
        """Send a command, after what waits."""
        tag = command(kind, 0, value)
        if self.peer is not None and (self.pending or not self._send(payload, tag)):
            self.pending.append((payload, tag, None))
            self.core.watch()

    def _send(self, payload: Payload, flags: int) -> bool:
        assert self.peer is not None
        try:
            self.core.box.send(self.peer, payload, None, self.tag | flags, 0)
        except byref.Timeout:
            self.starved = True
            return False
        except (byref.PeerLost, byref.Unroutable, byref.Closed):
            self.credit = 0
            return self.peer is None
        return True

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        self.starved = False
        while self.pending and self.peer is not None:
            payload, flags, _ = self.pending[0]
            if flags & COMMAND:
                if not self._send(payload, flags):
                    break
            elif not self.credit or not self._send(payload, flags):
                break
            else:
                self.credit -= 1
            self.pending.popleft()

    def took(self) -> None:
        """The program took a message of it."""
        self.taken += 1
        if self.taken >= self.batch and self.peer is not None:
            taken = min(self.taken, VALUE_LIMIT - 1)
            if self._send(b"", command(CREDIT, 0, taken)):
                self.taken -= taken

    def open(self, peer: byref.Identity, number: int, window: int) -> None:
        """There is a mailbox at the other side, which calls this pipe by that number."""
        self.peer = peer
        self.tag = number << PIPE_SHIFT
        self.credit = window
        self.taken = 0
        self.batch = (self.window() + 1) // 2

    def shut(self) -> None:
        """There is nobody at the other side any more; what it sent before is still received."""
        self.peer = None
        self.credit = 0
        self.topics.clear()
        self.prefixes = ()
        self.pending = deque(entry for entry in self.pending if not entry[1] & COMMAND)

    def bid_farewell(self) -> None:
        """Say that nothing comes any more."""
        if self.peer is not None:
            self._send(b"", command(BYE))

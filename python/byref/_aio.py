"""`async for` over a subscriber and `await` for a ticket, on any event loop that has `add_reader`."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ._byref import _Releases
from ._errors import Closed

if TYPE_CHECKING:
    from ._byref import Event, Message, Subscriber, Ticket

# So many messages in a row, and the loop's other tasks get a turn.
_IN_A_ROW = 64


class _Waiters:
    """The tasks of one event loop that wait for one subscriber's descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fileno: int) -> None:
        self.loop = loop
        self._fileno = fileno
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Wait until the descriptor is readable or the subscriber was closed."""
        waiter = self.loop.create_future()
        if not self._waiting:
            self.loop.add_reader(self._fileno, self.wake)
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                if not self._waiting:
                    self.loop.remove_reader(self._fileno)

    def wake(self) -> None:
        """Let everybody look; who finds nothing waits again."""
        if self._waiting:
            self.loop.remove_reader(self._fileno)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)


_waiters: WeakKeyDictionary[Subscriber[Event], dict[asyncio.AbstractEventLoop, _Waiters]] = WeakKeyDictionary()


class Messages:
    """The messages (and events) of a subscriber as they come; ends when it is closed. A cancelled wait loses none."""

    def __init__(self, subscriber: Subscriber[Event]) -> None:
        self._subscriber = subscriber
        self._in_a_row = 0

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message | Event:
        self._in_a_row += 1
        if self._in_a_row > _IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        try:
            fileno = self._subscriber.fileno()
            while (message := self._subscriber.try_recv()) is None:
                self._in_a_row = 0
                loop = asyncio.get_running_loop()
                of_loops = _waiters.setdefault(self._subscriber, {})
                await of_loops.setdefault(loop, _Waiters(loop, fileno)).wait()
        except Closed:
            raise StopAsyncIteration from None
        return message


def closed(subscriber: Subscriber[Event]) -> None:
    """Let the tasks that wait for a closed subscriber find out; called by `Subscriber.close`, from any thread."""
    for waiters in _waiters.pop(subscriber, {}).values():
        if not waiters.loop.is_closed():
            waiters.loop.call_soon_threadsafe(waiters.wake)


class _Tickets:
    """The tickets that the tasks of one event loop wait for: one descriptor, whatever their number."""

    def __init__(self) -> None:
        self._releases = _Releases()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._last = 0

    async def wait(self, ticket: Ticket) -> None:
        """Wait until the ticket is over."""
        loop = asyncio.get_running_loop()
        self._last += 1
        name, over = self._last, loop.create_future()
        if not self._waiting:
            loop.add_reader(self._releases.fileno(), self._wake)
        self._waiting[name] = over
        try:
            self._releases.add(ticket, name)
            await over
        finally:
            self._releases.remove(ticket, name)
            del self._waiting[name]
            if not self._waiting:
                loop.remove_reader(self._releases.fileno())

    def _wake(self) -> None:
        for name in self._releases.take():
            over = self._waiting.get(name)
            if over is not None and not over.done():
                over.set_result(None)


_tickets: WeakKeyDictionary[asyncio.AbstractEventLoop, _Tickets] = WeakKeyDictionary()


async def released(ticket: Ticket) -> None:
    """Wait for a release; `await ticket` is this. `Closed` when the publisher was closed before."""
    if not ticket.released:
        loop = asyncio.get_running_loop()
        if loop not in _tickets:
            _tickets[loop] = _Tickets()
        await _tickets[loop].wait(ticket)
        ticket.wait_released(0)

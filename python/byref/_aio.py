"""Waiting in event loops: `async for`, `recv_async`, `send_async`, `await` for a ticket; on asyncio, trio and anyio.

An asyncio loop is any that has `add_reader`; anyio runs on one of the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from . import _loops
from ._byref import _Releases
from ._errors import Closed, WouldBlock

if TYPE_CHECKING:
    from ._byref import (
        Client,
        Event,
        Job,
        Mailbox,
        Message,
        PendingReply,
        Publisher,
        Puller,
        Server,
        Subscriber,
        Ticket,
        _Jobs,
    )

    _Source = Subscriber[Event] | Puller | Server | Client

# So many messages in a row, and the loop's other tasks get a turn.
_IN_A_ROW = 64
# A send without room lets the other tasks run so often, since they may make room,
_TURNS = 4
# and looks again after pauses from the one to the other, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.005

# Who waits for a reply looks so often, in seconds.
_LOOK_AGAIN = 1.0

_in_a_row = 0


def _trio() -> Any:
    """The trio module if it runs the current task, else None: then asyncio does."""
    trio = sys.modules.get("trio")
    if trio is None:
        return None
    with contextlib.suppress(RuntimeError):
        if asyncio.current_task() is not None:
            return None  # It may itself run within trio.
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return None
    return trio


async def sleep(seconds: float) -> None:
    """Let other tasks run, for so long."""
    await (_trio() or asyncio).sleep(seconds)


async def readable(fileno: int, seconds: float | None = None) -> None:
    """Wait until a descriptor is readable, or so many seconds."""
    trio = _trio()
    if trio is not None:
        await _readable_in_trio(trio, fileno, seconds)
        return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    with _own(fileno) as own:
        loop.add_reader(own, _wake, waiter)
        timer = None if seconds is None else loop.call_later(seconds, _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_reader(own)
            if timer is not None:
                timer.cancel()


@contextlib.contextmanager
def _own(fileno: int) -> Iterator[int]:
    """A descriptor of the same file: loops know one waiter for each descriptor, and that may be the program's own."""
    own = os.dup(fileno)
    try:
        yield own
    finally:
        os.close(own)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _readable_in_trio(trio: Any, fileno: int, seconds: float | None) -> None:
    with trio.move_on_after(float("inf") if seconds is None else seconds), _own(fileno) as own:
        await trio.lowlevel.wait_readable(own)


class _Waiters:
    """The tasks of one asyncio loop that wait for one subscriber; there is one as long as there are such tasks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fileno: int, others: _Loops) -> None:
        self.loop = loop
        self._others = others
        self._waiting: deque[asyncio.Future[None]] = deque()
        # Loops know one reader for each descriptor, and that may be the program's own.
        self._own = os.dup(fileno)
        try:
            loop.add_reader(self._own, self.wake)
        except BaseException:
            os.close(self._own)
            raise
        others[loop] = self

    async def wait(self, seconds: float | None) -> None:
        """Wait until the descriptor is readable or the subscriber was closed, or so long."""
        waiter = self.loop.create_future()
        self._waiting.append(waiter)
        timer = None if seconds is None else self.loop.call_later(seconds, _wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                if not self._waiting:
                    self._end()

    def wake(self) -> None:
        """Let everybody look; who finds nothing waits again."""
        if self._waiting:
            self._end()
        while self._waiting:
            _wake(self._waiting.popleft())

    def _end(self) -> None:
        self._others.pop(self.loop, None)
        with contextlib.suppress(RuntimeError):  # The loop may be closed.
            self.loop.remove_reader(self._own)
        os.close(self._own)


_Loops = dict[asyncio.AbstractEventLoop, _Waiters]
# What is here of a subscriber stays the same object, which other threads may just have looked up.
_waiters: WeakKeyDictionary[_Source, _Loops] = WeakKeyDictionary()


async def _message(subscriber: _Source, fileno: int, seconds: float | None = None) -> None:
    """Wait until a subscriber that had nothing may have something, or so long."""
    trio = _trio()
    if trio is not None:
        await _readable_in_trio(trio, fileno, seconds)
        return
    loop = asyncio.get_running_loop()
    loops = _waiters.setdefault(subscriber, {})
    await (loops.get(loop) or _Waiters(loop, fileno, loops)).wait(seconds)


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
            await sleep(0)
        try:
            fileno = self._subscriber.fileno()
            while (message := self._subscriber.try_recv()) is None:
                self._in_a_row = 0
                await _message(self._subscriber, fileno)
        except Closed:
            raise StopAsyncIteration from None
        return message


class Jobs:
    """The jobs of a puller as they come. In a loop each is done when the body has ended without an exception."""

    def __init__(self, puller: Puller, is_loop: bool) -> None:
        self._puller = puller
        self._work: _Jobs | None = puller._loop() if is_loop else None
        self._in_a_row = 0

    def __aiter__(self) -> Jobs:
        if self._work is None and _loops.begins(sys._getframe(1)):
            return Jobs(self._puller, True)  # A loop over one that others have, too, gets its own.
        return self

    async def __anext__(self) -> Job:
        if self._work is not None:
            self._work._go_on_with()
        self._in_a_row += 1
        if self._in_a_row > _IN_A_ROW:
            self._in_a_row = 0
            await sleep(0)
        try:
            fileno = self._puller.fileno()
            while (job := self._puller.try_recv()) is None:
                self._in_a_row = 0
                await _message(self._puller, fileno)
        except Closed:
            raise StopAsyncIteration from None
        if self._work is not None:
            self._work._go_on_with(job)
        return job


async def settled(job: Job, work: Coroutine[Any, Any, object]) -> object:
    """Await what works on a job: it is done when that ends, or has failed when it raises."""
    is_done = False
    try:
        result = await work
        is_done = True
    finally:
        job._settle(is_done)
    return result


async def _now_and_then() -> None:
    """Let the other tasks run, one in so many times."""
    global _in_a_row
    _in_a_row += 1
    if _in_a_row > _IN_A_ROW:
        _in_a_row = 0
        await sleep(0)


async def recv(subscriber: Subscriber[Event] | Puller, timeout: float | None) -> Message | Event | Job:
    """Receive a message; `Subscriber.recv_async`. Nothing is awaited once it is taken, so no cancellation loses it."""
    await _now_and_then()
    fileno = subscriber.fileno()
    deadline = None if timeout is None else time.monotonic() + timeout
    while (message := subscriber.try_recv()) is None:
        left = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and left is not None and left <= 0:
            return subscriber._recv_at_last(timeout)
        await _message(subscriber, fileno, left)
    return message


def _at_most(left: float | None) -> float:
    """How long to wait for a reply before another look: a task of another loop may have silenced the descriptor."""
    return _LOOK_AGAIN if left is None else min(left, _LOOK_AGAIN)


async def reply(pending: PendingReply) -> Message:
    """Wait for a reply; `await pending` is this. A cancelled wait leaves the request as it is."""
    await _now_and_then()
    client = pending._client()
    fileno = client.fileno()
    while not pending.done():
        await _message(client, fileno, _at_most(pending._seconds_left()))
    return pending.result(0)


class Parts:
    """The parts of a streamed reply as they come."""

    def __init__(self, pending: PendingReply) -> None:
        self._pending = pending

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> Message:
        await _now_and_then()
        client = self._pending._client()
        fileno = client.fileno()
        while True:
            try:
                part = self._pending._next_now()
            except WouldBlock:
                await _message(client, fileno, _at_most(self._pending._seconds_left()))
                continue
            if part is None:
                raise StopAsyncIteration
            return part


async def send(endpoint: Publisher | Mailbox[Any], arguments: tuple[Any, ...], timeout: float | None) -> int:
    """Send a message; `send_async`. Nothing is awaited once it is sent, so a cancelled one sent nothing."""
    await _now_and_then()
    sending = endpoint._send_now(*arguments)
    if isinstance(sending, int):
        return sending
    deadline = None if timeout is None else time.monotonic() + timeout
    turns, pause = _TURNS, _FIRST_PAUSE
    try:
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                sequence = sending.attempt(timeout)
            else:
                if turns > 0:
                    turns -= 1
                    await sleep(0)
                else:
                    await sleep(pause if left is None else min(pause, left))
                    pause = min(2 * pause, _LONGEST_PAUSE)
                sequence = sending.attempt()
            if sequence is not None:
                return sequence
    finally:
        sending.discard()


def closed(subscriber: _Source) -> None:
    """Let the tasks that wait for a closed subscriber find out; called by `Subscriber.close`, from any thread."""
    for waiters in list(_waiters.get(subscriber, {}).values()):
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            waiters.loop.call_soon_threadsafe(waiters.wake)


class _Tickets:
    """The tickets that the tasks of one asyncio loop wait for: one descriptor, whatever their number."""

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


async def _released_in_trio(trio: Any, ticket: Ticket) -> None:
    releases = _Releases()
    releases.add(ticket, 0)
    try:
        while not releases.take():
            await trio.lowlevel.wait_readable(releases.fileno())
    finally:
        releases.remove(ticket, 0)


async def released(ticket: Ticket) -> None:
    """Wait for a release; `await ticket` is this. `Closed` when the publisher was closed before."""
    if ticket.released:
        return
    trio = _trio()
    if trio is not None:
        await _released_in_trio(trio, ticket)
    else:
        loop = asyncio.get_running_loop()
        if loop not in _tickets:
            _tickets[loop] = _Tickets()
        await _tickets[loop].wait(ticket)
    ticket.wait_released(0)

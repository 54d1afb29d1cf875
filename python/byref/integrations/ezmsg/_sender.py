"""The publisher's side: an `Outlet` stands where `Publisher` has its shared memory, and `broadcast` sends through it.

**Back-pressure.** Subscribers acknowledge by hand, when a message is processed, and their `depth` is the publisher's
`num_buffers`: so there is room for a message exactly when the one `num_buffers` before it is processed by all. A
publisher without room looks again for a moment. Then it *asks* each channel, over the connection that ezmsg has for
its acknowledgements, to say when all up to a certain message is processed, and sleeps until they have. No message is
sent for an acknowledgement that nobody waits for.

    publisher to channel   TX_SHM, number of the question, sequence number in words
    channel to publisher   RX_ACK, number of the question

Numbers of questions have their highest bit set; those of messages that travel by TCP do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from uuid import UUID

import numpy as np
from ezmsg.core import profiling, pubclient
from ezmsg.core.graphmeta import ProfileChannelType
from ezmsg.core.netprotocol import Command, close_stream_writer, encode_str, read_int, uint64_to_bytes

from ..._byref import Publisher, _Sending
from ..._errors import Closed, Error
from ._memory import most_memory
from ._topics import new_topic

QUESTION = 1 << 63

# What a message is, in the lowest bits of its tag: an array as it is, a pickle, one with its buffers beside it, or the
# number of an object that cannot be pickled. The other bits are ezmsg's number of the message, for profiles.
FORM_BITS, FORM = 2, 3
ARRAY, PICKLE, PARTS, OBJECT = range(4)

# The most messages that a publisher's ring can hold for a subscriber.
MOST_BUFFERS = 16384

# How long a publisher without room looks again, with turns for the loop's other tasks, before it asks; in seconds.
_LOOK = 100e-6
# A publisher that lacks memory, not room, looks again after pauses from the one to the other; in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.01

sent = {"messages": 0, "by_reference": 0}

_stock = pubclient.Publisher
_stock_create = _stock.create.__func__
_stock_broadcast = _stock.broadcast
_stock_sync = _stock.sync
_stock_handle_channel = _stock._handle_channel
_signature = inspect.signature(_stock_create)

# How profiles call messages within the process, for the publisher that is being made; None: it is to have memory of
# ezmsg's own.
_kind: ContextVar[ProfileChannelType | None] = ContextVar("_kind", default=None)

# The outlets of this process, by topic.
_outlets: dict[str, Outlet] = {}


class Outlet:
    """What a publisher sends through. It has the surface of an `SHMContext` that ezmsg uses."""

    def __init__(self, num_buffers: int, buf_size: int, kind: ProfileChannelType) -> None:
        self.name = new_topic()
        self.num_buffers = num_buffers
        self.buf_size = buf_size
        self.kind = kind
        self.publisher = Publisher(self.name, max_memory=most_memory())
        self.process = os.getpid()
        # The sequence number of the next message.
        self.next = 0
        # Subscribers in this process.
        self.clients = 0
        # Objects that cannot be pickled, by the number that is sent in their place.
        self.objects: dict[int, Kept] = {}
        self._kept = 0
        # By number of a question: the channels that have not answered, and who waits for them.
        self._asked: dict[int, tuple[set[UUID], asyncio.Future[None]]] = {}
        self._numbers = itertools.count(QUESTION)
        _outlets[self.name] = self

    def close(self) -> None:
        """End it. What was sent still reaches those who were connected."""
        _outlets.pop(self.name, None)
        self.publisher.close()
        for _channels, answered in list(self._asked.values()):
            _wake(answered)

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""

    def keep(self, obj: Any) -> int:
        """Keep an object for the subscribers in this process; gives its number."""
        for number, kept in list(self.objects.items()):
            if kept.sequence is not None and kept.sequence < self.next - self.num_buffers:
                del self.objects[number]
        self._kept += 1
        self.objects[self._kept] = Kept(obj, self.clients)
        return self._kept

    def let_go(self, number: int) -> None:
        """One of the subscribers in this process is done with an object."""
        kept = self.objects.get(number)
        if kept is not None:
            kept.left -= 1
            if kept.left <= 0:
                del self.objects[number]

    async def processed(self, publisher: Any, sequence: int) -> None:
        """Wait until all channels have processed everything up to that message."""
        channels = [channel for channel in publisher._channels.values() if channel.shm_ok]
        if not channels:
            return
        number = next(self._numbers)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked[number] = {channel.id for channel in channels}, answered
        try:
            question = Command.TX_SHM.value + uint64_to_bytes(number) + encode_str(str(sequence))
            for channel in channels:
                with contextlib.suppress(OSError):
                    channel.writer.write(question)
            await answered
        finally:
            del self._asked[number]

    def answer(self, number: int, channel: UUID) -> None:
        """A channel has answered."""
        left, answered = self._asked.get(number, (None, None))
        if left is not None and answered is not None:
            left.discard(channel)
            if not left:
                _wake(answered)

    def forget(self, channel: UUID) -> None:
        """A channel is gone, and will not answer."""
        for number in list(self._asked):
            self.answer(number, channel)


class Kept:
    """An object that cannot be pickled."""

    def __init__(self, obj: Any, left: int) -> None:
        self.object = obj
        # The subscribers that have yet to process it, and the sequence number once it is sent.
        self.left = left
        self.sequence: int | None = None


def _wake(answered: asyncio.Future[None]) -> None:
    if not answered.done():
        answered.set_result(None)


def outlet_here(topic: str) -> Outlet | None:
    """The outlet of a publisher of this process; None if it is another's, also the parent's of a forked child."""
    outlet = _outlets.get(topic)
    return outlet if outlet is not None and outlet.process == os.getpid() else None


class GraphService(pubclient.GraphService):  # type: ignore[misc]
    """What `Publisher` takes for ezmsg's `GraphService`."""

    async def create_shm(self, num_buffers: int, buf_size: int = 0) -> Any:
        """Give an outlet. If byref cannot be used here, or the publisher wants TCP, give ezmsg's shared memory."""
        kind = _kind.get()
        if kind is not None and num_buffers <= MOST_BUFFERS:
            try:
                return Outlet(num_buffers, buf_size, kind)
            except Error as problem:
                pubclient.logger.warning(f"byref cannot be used, and ezmsg's own shared memory is: {problem}")
        return await super().create_shm(num_buffers, buf_size)


async def create(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand for `Publisher.create`."""
    given = _signature.bind(cls, *args, **kwargs).arguments
    force_tcp = pubclient._resolve_force_tcp(given.get("force_tcp"))
    is_local = not force_tcp and pubclient._resolve_allow_local(force_tcp, given.get("allow_local"))
    kind = ProfileChannelType.LOCAL if is_local else ProfileChannelType.SHM
    token = _kind.set(None if force_tcp else kind)
    try:
        publisher = await _stock_create(cls, *args, **kwargs)
    finally:
        _kind.reset(token)
    if type(publisher._shm) is Outlet:
        publisher._profile.__class__ = Metrics
        publisher._profile.publisher = publisher
    return publisher


class Metrics(profiling._PublisherMetrics):  # type: ignore[misc]
    """The profile of a publisher with an outlet: what is in flight is counted when somebody wants to know."""

    @property
    def inflight_messages_current(self) -> int:
        """The messages that are not processed by all."""
        publisher = self.publisher
        try:
            lags = [subscriber.lag for subscriber in publisher._shm.publisher.subscribers]
        except (Closed, AttributeError):
            lags = []
        return max(lags, default=0) + int(publisher._backpressure.pressure)

    @inflight_messages_current.setter
    def inflight_messages_current(self, inflight: int) -> None:
        pass


_stock_dump = pubclient.MessageMarshal.dump


def _travels_as_it_is(array: np.ndarray[Any, Any]) -> bool:
    """Whether byref gives the same array as a pickle would, if nobody has exchanged how ezmsg pickles."""
    return (
        array.dtype.kind in "biufc"
        and array.dtype.isnative
        and array.flags.c_contiguous
        and array.ndim > 0
        and pubclient.MessageMarshal.dump is _stock_dump
    )


async def broadcast(self: Any, obj: Any) -> None:
    """Stand for `Publisher.broadcast`."""
    outlet = self._shm
    if type(outlet) is not Outlet:
        await _stock_broadcast(self, obj)
        return
    if not self._running.is_set():
        await self._running.wait()

    # By byref if somebody is there, and by TCP to peers without this adapter.
    is_remote, others = False, None
    local = self._local_channel.id
    for channel in self._channels.values():
        if not channel.shm_ok:
            others = [*others, channel] if others else [channel]
        elif channel.id != local:
            is_remote = True
    if others:
        while not self._backpressure.available(self._msg_id % self._num_buffers):
            with _waiting(self):
                await self._backpressure.wait(self._msg_id % self._num_buffers)
    if is_remote or outlet.clients:
        kept = None
        data: Any
        if type(obj) is np.ndarray and _travels_as_it_is(obj):
            data, form = obj, ARRAY
        else:
            try:
                buffers = pubclient.MessageMarshal.dump(obj)
            except Exception:
                if is_remote or others:
                    raise
                kept = outlet.keep(obj)
                data, form = kept.to_bytes(8), OBJECT
                sent["by_reference"] += 1
            else:
                data, form = (buffers[0], PICKLE) if len(buffers) == 1 else (tuple(buffers), PARTS)
        sequence = outlet.publisher._send_now(data, None, None, self._msg_id << FORM_BITS | form)
        if not isinstance(sequence, int):
            sequence = await _send_when_there_is_room(self, outlet, sequence)
        outlet.next = sequence + 1
        if kept is not None and kept in outlet.objects:
            outlet.objects[kept].sequence = sequence
        sent["messages"] += 1
    if others:
        await _send_by_tcp(self, obj, others)
    self._profile.record_publish(0, msg_seq=self._msg_id)
    self._msg_id += 1


async def _send_when_there_is_room(self: Any, outlet: Outlet, sending: _Sending) -> int:
    look_until = time.perf_counter() + _LOOK
    pause = _FIRST_PAUSE
    try:
        with _waiting(self):
            while True:
                await asyncio.sleep(0)
                if (sequence := sending.attempt()) is not None:
                    return sequence
                if time.perf_counter() < look_until:
                    continue
                await outlet.processed(self, outlet.next - outlet.num_buffers)
                if (sequence := sending.attempt()) is not None:
                    return sequence
                # What took the room is processed: memory is short, or another task was sooner.
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
    finally:
        sending.discard()


@contextlib.contextmanager
def _waiting(self: Any) -> Iterator[None]:
    """Warn of back-pressure, and measure it, as `Publisher.broadcast` does."""
    now = time.time()
    if pubclient.BACKPRESSURE_WARNING and now - self._last_backpressure_event > pubclient.BACKPRESSURE_REFRACTORY:
        pubclient.logger.warning(f"{self.topic} under subscriber backpressure!")
    self._last_backpressure_event = now
    began = pubclient.PROFILE_TIME() if self._profile._trace_backpressure_wait_enabled else None
    yield
    if began is not None:
        self._profile.record_backpressure_wait(pubclient.PROFILE_TIME() - began, msg_seq=self._msg_id)


async def _send_by_tcp(self: Any, obj: Any, channels: list[Any]) -> None:
    """Do what `Publisher.broadcast` does for peers that have not got its shared memory."""
    with pubclient.MessageMarshal.serialize(self._msg_id, obj) as (size, header, buffers):
        numbers = uint64_to_bytes(self._msg_id) + uint64_to_bytes(size)
        message = Command.TX_TCP.value + numbers + header + b"".join(buffers)
    for channel in channels:
        try:
            channel.writer.write(message)
            await channel.writer.drain()
            self._backpressure.lease(channel.id, self._msg_id % self._num_buffers)
        except (ConnectionResetError, BrokenPipeError):
            pubclient.logger.debug(f"Publisher {self.id}: Channel {channel.id} connection fail")


async def sync(self: Any) -> None:
    """Stand for `Publisher.sync`."""
    outlet = self._shm
    if type(outlet) is Outlet:
        self._running.clear()
        with contextlib.suppress(Closed):
            while True:
                await outlet.processed(self, outlet.next - 1)
                try:
                    outlet.publisher.flush(timeout=0)
                    break
                except TimeoutError:
                    # A subscriber of another event loop has yet to look.
                    await asyncio.sleep(_FIRST_PAUSE)
    await _stock_sync(self)


async def handle_channel(self: Any, info: Any, reader: asyncio.StreamReader) -> None:
    """Stand for `Publisher._handle_channel`, which reads acknowledgements."""
    outlet = self._shm
    if type(outlet) is not Outlet:
        await _stock_handle_channel(self, info, reader)
        return
    self._channels[info.id] = info
    try:
        while command := await reader.read(1):
            if command == Command.RX_ACK.value:
                number = await read_int(reader)
                if number & QUESTION:
                    outlet.answer(number, info.id)
                else:
                    self._backpressure.free(info.id, number % self._num_buffers)
    except (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError):
        pubclient.logger.debug(f"Publisher {self.id}: Channel {info.id} connection fail")
    finally:
        self._backpressure.free(info.id)
        outlet.forget(info.id)
        await close_stream_writer(self._channels[info.id].writer)
        del self._channels[info.id]

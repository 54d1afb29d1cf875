"""The subscriber's side: an `Inlet` stands where `Channel` has shared memory, with an `Inbox` for each client.

Each of ezmsg's subscribers has, for each publisher, a byref subscriber of its own, unpickles for itself, and
acknowledges when it has processed a message. What comes is put into the queue that ezmsg has for the subscriber, as a
pair of the inbox and the message; messages that travel by TCP are pairs of the publisher's UUID and a number there,
as ever.

**Ends.** byref tells the end of a publisher after all that it sent. It goes through the same queue, so who receives
has everything first, and is told then. ezmsg's graph server may tell sooner that a publisher is gone, in the same
words as that a subscriber was disconnected from one that lives. What was sent before is in the publisher's ring by
then: it is taken out and kept until byref tells the end. If another message comes, or no end in time, the subscriber
was disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from copy import deepcopy
from types import TracebackType
from typing import Any
from uuid import UUID

from ezmsg.core import messagecache, messagechannel, subclient
from ezmsg.core.graphmeta import ProfileChannelType
from ezmsg.core.netprotocol import Command, close_stream_writer, read_int, read_str, uint64_to_bytes

from ..._byref import Event, Message, Subscriber
from ..._errors import Error
from . import PublisherClosed, PublisherEnded, PublisherLost
from ._sender import ARRAY, FORM, FORM_BITS, OBJECT, PICKLE, Outlet, outlet_here
from ._topics import is_of_this_directory, is_of_this_host, is_topic

# How long it may take to reach a publisher that is sure to be in the same rendezvous directory, and one that may not
# be; in seconds. ezmsg's graph server waits for 1 s until a subscriber has met its publishers.
_REACH, _REACH_ELSEWHERE = 10.0, 0.4
# A subscriber that finds its queue empty looks into its inboxes itself. After so many looks other tasks have a turn.
_LOOKS = 8
# How long after ezmsg byref may tell that a publisher ended; in seconds.
_TOLD = 2.0

_stock_channel = messagechannel.Channel
_stock_publisher_connection = _stock_channel._publisher_connection
_stock_register_client = _stock_channel.register_client
_stock_unregister_client = _stock_channel.unregister_client
_stock_subscriber = subclient.Subscriber
_stock_close = _stock_subscriber.close
_stock_dropped = _stock_subscriber._handle_dropped_notification


class GraphService(messagechannel.GraphService):  # type: ignore[misc]
    """What `Channel` takes for ezmsg's `GraphService`."""

    async def attach_shm(self, name: str) -> Any:
        """Give an inlet for a topic of byref; `ValueError` where that cannot be reached: messages come by TCP then."""
        if not is_topic(name):
            return await super().attach_shm(name)
        outlet = outlet_here(name)
        if outlet is None:
            await _reach(name)
        return Inlet(name, outlet)


async def _reach(topic: str) -> None:
    """Make sure that messages of that topic can come here."""
    if not is_of_this_host(topic):
        raise ValueError("the publisher is on another host")
    loop = asyncio.get_running_loop()
    until = loop.time() + (_REACH if is_of_this_directory(topic) else _REACH_ELSEWHERE)
    try:
        with Subscriber(topic, policy="latest") as probe:
            while not probe.publishers:
                if loop.time() > until:
                    raise ValueError("the publisher has another rendezvous directory")
                await asyncio.sleep(0.001)
    except (Error, ValueError) as problem:
        messagechannel.logger.warning(f"messages come by TCP, since byref does not reach their publisher: {problem}")
        raise ValueError(str(problem)) from problem


class Inlet:
    """What a channel receives through. It has the surface of an `SHMContext` that ezmsg uses."""

    def __init__(self, topic: str, outlet: Outlet | None) -> None:
        self.name = topic
        # The publisher's side, if that is in this process.
        self.outlet = outlet
        self.loop = asyncio.get_running_loop()
        self.inboxes: dict[UUID, Inbox] = {}
        # What the publisher asked and was not answered: numbers of questions, and sequence numbers of messages.
        self.questions: dict[int, int] = {}
        self.answers_soon = False
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        """There is nothing to close: inboxes are closed when their clients are unregistered."""

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""

    def asked(self, number: int, sequence: int, writer: asyncio.StreamWriter) -> None:
        """The publisher wants to know when everything up to a message is processed."""
        self._writer = writer
        self.questions[number] = sequence
        for inbox in list(self.inboxes.values()):
            if inbox.loop is self.loop:
                inbox.take()
        self.answer()

    def answer(self) -> None:
        """Answer what can be answered now."""
        self.answers_soon = False
        if not self.questions or self._writer is None:
            return
        oldest = min((inbox.oldest() for inbox in list(self.inboxes.values())), default=math.inf)
        for number, sequence in list(self.questions.items()):
            if sequence < oldest:
                del self.questions[number]
                with contextlib.suppress(OSError):
                    self._writer.write(Command.RX_ACK.value + uint64_to_bytes(number))


class Inbox:
    """What one client of a channel receives of its publisher."""

    def __init__(self, inlet: Inlet, channel: Any, queue: Any) -> None:
        self.inlet = inlet
        self.topic = str(channel.topic)
        # What profiles call this way of a message.
        self.kind = inlet.outlet.kind if inlet.outlet is not None else ProfileChannelType.SHM
        self.loop = asyncio.get_running_loop()
        # The sequence numbers of messages that were taken and are not processed, in order.
        self.unprocessed: dict[int, None] = {}
        self._queue = queue
        self._most = channel.num_buffers
        self._is_open = True
        # From the time when ezmsg has unregistered it: the messages that were not received by then.
        self._rest: list[Message] | None = None
        self._subscriber: Subscriber[Event] = Subscriber(
            inlet.name, depth=channel.num_buffers, ack="manual", events=True
        )
        # Until it is connected, messages pass it by. Both sides connect on threads that need no event loop.
        with contextlib.suppress(TimeoutError):
            self._subscriber.wait_for_publishers(timeout=_REACH)
        if inlet.outlet is not None:
            inlet.outlet.clients += 1
        self._descriptor = self._subscriber.fileno()
        self.loop.add_reader(self._descriptor, self.take)
        if getattr(queue, "byref_inboxes", None) is None:
            queue.byref_inboxes, queue.byref_looks = [], 0
        queue.byref_inboxes.append(self)
        self.take()

    def take(self) -> None:
        """Put what is there into the client's queue."""
        if not self._is_open:
            return
        receive, queue, unprocessed = self._subscriber.try_recv, self._queue, self.unprocessed
        for _ in range(self._most + 1):
            item = receive()
            if item is None:
                return
            if type(item) is Message:
                if self._rest is not None:
                    self._close()
                    return
                unprocessed[item.sequence] = None
                queue.put_nowait((self, item))
            elif item.kind in ("left", "lost", "evicted"):
                self._end(item)
                return
        # The descriptor tells of messages only when all are taken. Other tasks have their turn meanwhile.
        self.loop.call_soon(self.take)

    def oldest(self) -> float:
        """The sequence number of the oldest message that was taken and is not processed."""
        while True:
            try:
                return next(iter(self.unprocessed), math.inf)
            except RuntimeError:  # Another thread has just processed one.
                continue

    def processed(self, message: Message) -> None:
        """The client is done with a message."""
        self.unprocessed.pop(message.sequence, None)
        inlet = self.inlet
        if message.tag & FORM == OBJECT and inlet.outlet is not None:
            inlet.outlet.let_go(int.from_bytes(message))
        if self._is_open:
            message.ack()
        if inlet.questions and not inlet.answers_soon:
            # Once the client has no more to take, or waits: until then it may process others.
            inlet.answers_soon = True
            inlet.loop.call_soon_threadsafe(inlet.answer)

    def value(self, message: Message, writable: bool) -> Any:
        """What was sent, anew: with arrays that are private and copy-on-write, or read-only."""
        form = message.tag & FORM
        if form == PICKLE:
            return messagecache.MessageMarshal.load([message.value])
        if form == OBJECT:
            return self.inlet.outlet.objects[int.from_bytes(message)].object  # type: ignore[union-attr]
        value = message.writable() if writable else message.value
        return value if form == ARRAY else messagecache.MessageMarshal.load(value)

    def leave(self, at_once: bool) -> None:
        """The client is unregistered: it ends itself (`at_once`), or is disconnected, or the publisher is gone."""
        if not at_once:
            self.take()
        if not self._is_open:
            return
        self._rest = [message for source, message in _taken_out(self._queue, self) if type(message) is Message]
        if at_once:
            self._close()
            return
        # If the publisher lives, it is not to wait for these.
        for message in self._rest:
            message.ack()
        self.unprocessed.clear()
        self.loop.call_later(_TOLD, self._close)

    def _end(self, event: Event) -> None:
        """The publisher ended. The client has the messages that are left, then the news."""
        for message in self._rest or ():
            self._queue.put_nowait((self, message))
        self._rest = None
        self._close()
        kind = PublisherClosed if event.kind == "left" else PublisherLost
        ended = kind(self.topic, event.publisher.pid)
        if self._queue.full():
            # A leaky queue, which would drop a message for it.
            _ends(self._queue).append((self._queue._queue[-1], ended))
        else:
            self._queue.put_nowait((self, ended))

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._rest = None
            self.loop.remove_reader(self._descriptor)
            self._subscriber.close()
            self._queue.byref_inboxes.remove(self)
            if self.inlet.outlet is not None:
                self.inlet.outlet.clients -= 1


def _taken_out(queue: Any, source: Any) -> list[Any]:
    """Take what came from one source out of a queue."""
    found = []
    for _ in range(queue.qsize()):
        item = queue.get_nowait()
        if item[0] is source:
            found.append(item)
        else:
            queue.put_nowait(item)
    return found


# ---- what stands for methods of `Channel` ----------------------------------------------------------------------------


async def publisher_connection(self: Any, reader: asyncio.StreamReader) -> None:
    """Stand for `Channel._publisher_connection`: the publisher asks what is processed, and sends no messages here."""
    inlet = self.shm
    if type(inlet) is not Inlet:
        await _stock_publisher_connection(self, reader)
        return
    try:
        while command := await reader.read(1):
            if command != Command.TX_SHM.value:
                raise ValueError(f"unimplemented data telemetry: {command!r}")
            number = await read_int(reader)
            inlet.asked(number, int(await read_str(reader)), self._pub_writer)
    except (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError):
        messagechannel.logger.debug(f"connection fail: channel:{self.id} - pub:{self.pub_id}")
    finally:
        await close_stream_writer(self._pub_writer)


def register_client(self: Any, client_id: UUID, queue: Any = None, local_backpressure: Any = None) -> None:
    """Stand for `Channel.register_client`."""
    _stock_register_client(self, client_id, queue, local_backpressure)
    if type(self.shm) is Inlet and queue is not None:
        inbox = self.shm.inboxes[client_id] = Inbox(self.shm, self, queue)
        self._channel_kind = inbox.kind


def unregister_client(self: Any, client_id: UUID) -> None:
    """Stand for `Channel.unregister_client`."""
    inlet = self.shm
    inbox = inlet.inboxes.pop(client_id, None) if type(inlet) is Inlet else None
    if inbox is None:
        _stock_unregister_client(self, client_id)
        return
    queue = self.clients.pop(client_id)
    inbox.leave(at_once=getattr(queue, "byref_is_closed", False))
    inlet.answer()


# ---- what stands for methods of `Subscriber` -------------------------------------------------------------------------


class Receiving:
    """One message of a subscriber, until the end of an `async with` block."""

    __slots__ = ("_kind", "_lease", "_number", "_started", "_subscriber", "_writable", "message", "source")

    def __init__(self, subscriber: Any, writable: bool = False) -> None:
        self._subscriber = subscriber
        self._writable = writable

    async def take(self) -> None:
        """Wait for the message; raises `PublisherEnded` when it is that news."""
        subscriber = self._subscriber
        queue = subscriber._incoming
        ends = getattr(queue, "byref_ends", None)
        if ends and ends[0][0] is None:
            raise ends.pop(0)[1]
        while True:
            if queue.empty():
                await _look(queue)
            item = await queue.get()
            self.source, self.message = item
            if ends:
                _is_over(ends, item)
            if type(self.source) is Inbox:
                if type(self.message) is not Message:
                    raise self.message
                self._lease, self._kind, self._number = None, self.source.kind, self.message.tag >> FORM_BITS
                break
            # By TCP; else it comes from a publisher that was unregistered.
            channel = subscriber._channels.get(self.source)
            if channel is not None:
                self._lease, self._kind, self._number = (
                    channel.get(self.message, subscriber.id),
                    channel.channel_kind,
                    self.message,
                )
                break
        profile = subscriber._profile
        subscriber._active_msg_seq = self._number
        subscriber._active_trace_sampled = profile.begin_message(self._kind)
        self._started = subclient.PROFILE_TIME() if profile._trace_lease_time_enabled else None

    def value(self) -> Any:
        """What was sent. By byref it is made anew each time."""
        if self._lease is None:
            return self.source.value(self.message, self._writable)
        return self._lease.__enter__()

    def is_shared(self) -> bool:
        """Whether others may have the very object that `value` gives."""
        return self._lease is not None or self.message.tag & FORM == OBJECT

    def processed(self) -> None:
        """The publisher need not wait for it any more."""
        if self._lease is None:
            self.source.processed(self.message)
        else:
            self._lease.__exit__(None, None, None)

    def over(self, failed: bool) -> None:
        """Tell the profile."""
        subscriber = self._subscriber
        if self._started is not None and not failed:
            subscriber._profile.record_lease_time(
                self._kind,
                subclient.PROFILE_TIME() - self._started,
                msg_seq=self._number,
                sampled=subscriber._active_trace_sampled,
            )
        subscriber._active_msg_seq = None
        subscriber._active_trace_sampled = False

    async def __aenter__(self) -> Any:
        await self.take()
        try:
            return self.value()
        except BaseException:
            self._end(True)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(kind is not None)

    def _end(self, failed: bool) -> None:
        try:
            self.processed()
        except messagecache.CacheMiss:
            # Its publisher, without this adapter, ended meanwhile.
            failed = True
            raise
        finally:
            self.over(failed)


async def _look(queue: Any) -> None:
    """Take what is there without a turn of the event loop; other tasks have theirs now and then."""
    inboxes = getattr(queue, "byref_inboxes", None)
    if inboxes is None:
        return
    queue.byref_looks += 1
    if queue.byref_looks % _LOOKS == 0:
        await asyncio.sleep(0)
    for inbox in tuple(inboxes):
        inbox.take()


def recv_zero_copy(self: Any) -> Receiving:
    """Stand for `Subscriber.recv_zero_copy`."""
    return Receiving(self)


async def recv(self: Any) -> Any:
    """Stand for `Subscriber.recv`."""
    receiving = Receiving(self, writable=True)
    async with receiving as value:
        return deepcopy(value) if receiving.is_shared() else value


def handle_dropped_notification(self: Any, notification: tuple[Any, Any]) -> None:
    """Stand for `Subscriber._handle_dropped_notification`."""
    source, message = notification
    queue = self._incoming
    if type(source) is not Inbox:
        _stock_dropped(self, notification)
    elif type(message) is Message:
        source.processed(message)
    else:
        _ends(queue).append((None, message))
    if getattr(queue, "byref_ends", None):
        _is_over(queue.byref_ends, notification)


def close(self: Any) -> None:
    """Stand for `Subscriber.close`: what is not received by then is not wanted."""
    self._incoming.byref_is_closed = True
    _stock_close(self)


def _ends(queue: Any) -> list[tuple[Any, PublisherEnded]]:
    """The ends of publishers for which a leaky queue had no room, each with the item that goes before it, if any."""
    if getattr(queue, "byref_ends", None) is None:
        queue.byref_ends = []
    found: list[tuple[Any, PublisherEnded]] = queue.byref_ends
    return found


def _is_over(ends: list[tuple[Any, PublisherEnded]], item: Any) -> None:
    """An item was taken out of the queue: what waited for it is next."""
    for place, (before, ended) in enumerate(ends):
        if before is item:
            ends[place] = None, ended

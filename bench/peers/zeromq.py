"""What pyzmq and pyomq, which share an interface, have in common.

PUSH/PULL is the lossless one-way pattern: PUB drops messages at the high-water mark, and is slower where it
can be told not to. PAIR is the fastest for round trips. Both libraries hand a message to a thread of their
own, and to wake a thread on another, sleeping core costs more than all the rest: with both processes on one
core, small round trips take half the time, back to back and with pauses. Neither has a call for many
messages: a multipart message with a frame for each takes twice as long as sending them one by one.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import repeat, starmap
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import pyarrow as pa

from bench.contents import CONTENTS
from bench.peers import Address, AsyncMessages, AsyncPeer, BlockingPeer, BroadcastPeer, Messages, ObjectPeer, Send, meet

LARGE = 64 << 10
"""Bytes from which `copy=False` is faster and sharing a core is slower."""

MOST_QUEUED = 256 << 20
"""Bytes of large messages that may be queued: without a limit, a fast sender takes all memory."""


class ZeroMQ(BlockingPeer, BroadcastPeer, ObjectPeer, AsyncPeer):
    one_cpu_below = LARGE

    def __init__(
        self, package: str, library: ModuleType, asynchronous: ModuleType, high_water_mark: int, large_transport: str
    ) -> None:
        self.package = package
        self._zmq = library
        self._asynchronous = asynchronous
        self._high_water_mark = high_water_mark
        self._large_transport = large_transport
        self.configuration = (
            f"PUSH/PULL over ipc, high-water mark {high_water_mark or 'unlimited'}; round trips PAIR, "
            f"below {LARGE >> 10} KiB over ipc with both processes on one core; "
            f"from {LARGE >> 10} KiB over {large_transport} with copy=False"
        )

    @contextmanager
    def sender(self, address: Address, size: int) -> Iterator[Send]:
        with self._socket(self._zmq, self._zmq.PUSH, size) as socket:
            socket.connect(self._endpoint(address, size))
            yield _for_size(socket.send, size)

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        with self._socket(self._zmq, self._zmq.PULL, size) as socket:
            socket.bind(self._endpoint(address, size))
            yield starmap(_for_size(socket.recv, size), repeat(()))

    @contextmanager
    def duplex(self, address: Address, size: int, first: bool, channel: Connection) -> Iterator[tuple[Send, Messages]]:
        with self._socket(self._zmq, self._zmq.PAIR, size) as socket:
            (socket.bind if first else socket.connect)(self._endpoint(address, size))
            meet(channel)
            yield _for_size(socket.send, size), starmap(_for_size(socket.recv, size), repeat(()))

    @contextmanager
    def broadcaster(self, address: Address, size: int, receivers: int) -> Iterator[Send]:
        with self._socket(self._zmq, self._zmq.XPUB, size) as socket:
            socket.set_hwm(0)  # At the high-water mark messages would be dropped.
            socket.setsockopt(self._zmq.XPUB_VERBOSE, 1)
            socket.bind(self._endpoint(address, size))
            for _ in range(receivers):
                socket.recv()  # A subscription.
            yield _for_size(socket.send, size)

    @contextmanager
    def listener(self, address: Address, size: int) -> Iterator[Messages]:
        with self._socket(self._zmq, self._zmq.SUB, size) as socket:
            socket.set_hwm(0)
            socket.connect(self._endpoint(address, size))
            socket.setsockopt(self._zmq.SUBSCRIBE, b"")
            yield starmap(_for_size(socket.recv, size), repeat(()))

    @contextmanager
    def object_sender(self, address: Address, name: str) -> Iterator[Send]:
        with self.sender(address, CONTENTS[name].nbytes) as send:
            if name == "batch":
                yield lambda batch: send(batch.serialize())
            else:
                yield lambda table: send(_as_stream(table))

    @contextmanager
    def object_receiver(self, address: Address, name: str) -> Iterator[Iterator[Any]]:
        with self.receiver(address, CONTENTS[name].nbytes) as messages:
            buffers = map(pa.py_buffer, messages)
            if name == "batch":
                schema = CONTENTS[name].make().schema
                yield (pa.ipc.read_record_batch(buffer, schema) for buffer in buffers)
            else:
                yield (pa.ipc.open_stream(buffer).read_all() for buffer in buffers)

    @asynccontextmanager
    async def async_receiver(self, address: Address, size: int) -> AsyncIterator[AsyncMessages]:
        with self._socket(self._asynchronous, self._zmq.PULL, size) as socket:
            socket.bind(self._endpoint(address, size))
            yield _AsyncMessages(socket.recv)

    @contextmanager
    def _socket(self, library: ModuleType, kind: int, size: int) -> Iterator[Any]:
        with library.Context() as context, context.socket(kind) as socket:
            socket.set_hwm(self._high_water_mark if size < LARGE else MOST_QUEUED // size)
            yield socket

    def _endpoint(self, address: Address, size: int) -> str:
        transport = "ipc" if size < LARGE else self._large_transport
        return f"ipc://@{address.name}" if transport == "ipc" else f"tcp://127.0.0.1:{address.port}"


class _AsyncMessages:
    """What an asynchronous socket receives; `async for` without the cost of an asynchronous generator."""

    def __init__(self, receive: Callable[[], Any]) -> None:
        self._receive = receive

    def __aiter__(self) -> "_AsyncMessages":
        return self

    def __anext__(self) -> Any:
        return self._receive()


def _as_stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _for_size(call: Callable[..., Any], size: int) -> Callable[..., Any]:
    return call if size < LARGE else partial(call, copy=False)

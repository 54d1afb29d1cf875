"""ezmsg's publishers and subscribers, awaited in an event loop.

Its synchronous interface passes each call to such a loop in another thread, and is slower. The more buffers,
the seldomer the publisher waits for an acknowledgement: measured best of 32 (the default) to 4,096. Of large messages,
which stay in the processor's caches as long as there are few buffers, 8 are best of 2 to 32.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

from ezmsg.core.graphcontext import GraphContext
from ezmsg.core.graphserver import GraphServer
from ezmsg.core.netprotocol import DEFAULT_SHM_SIZE
from ezmsg.core.pubclient import Publisher
from ezmsg.core.subclient import Subscriber

from bench.peers import START_TIMEOUT, Address, AsyncMessages, AsyncPeer, AsyncSend

BUFFERS, LARGE_BUFFERS = 1024, 8

LARGE = 64 << 10
"""Bytes from which a message is large: not bytes, but an object that shows shared memory."""


class Ezmsg(AsyncPeer):
    package = "ezmsg"
    configuration = f"asyncio, recv_zero_copy, {BUFFERS} buffers, or {LARGE_BUFFERS} from {LARGE >> 10} KiB"

    @contextmanager
    def service(self, address: Address) -> Iterator[None]:
        _quiet()
        server = GraphServer()
        server.start(("127.0.0.1", address.port))
        try:
            yield
        finally:
            server.stop()

    @asynccontextmanager
    async def async_sender(self, address: Address, size: int) -> AsyncIterator[AsyncSend]:
        count = BUFFERS if size < LARGE else LARGE_BUFFERS
        async with _context(address) as context:
            publisher = await context.publisher(address.name, num_buffers=count, buf_size=size + DEFAULT_SHM_SIZE)
            async with asyncio.timeout(START_TIMEOUT):
                await _connected(publisher)
            yield publisher.broadcast

    @asynccontextmanager
    async def async_receiver(self, address: Address, size: int) -> AsyncIterator[AsyncMessages]:
        receive = _receive if size < LARGE else _lend
        async with (
            _context(address) as context,
            aclosing(receive(await context.subscriber(address.name))) as messages,
        ):
            yield messages


def _context(address: Address) -> GraphContext:
    _quiet()
    return GraphContext(("127.0.0.1", address.port), auto_start=False)


def _quiet() -> None:
    """No word when a server starts or a subscriber is slow."""
    logging.getLogger("ezmsg").setLevel(logging.ERROR)


async def _connected(publisher: Publisher) -> None:
    """Wait for a subscriber; there is no public way to do that."""
    while not publisher._channels:
        await asyncio.sleep(0.001)


async def _receive(subscriber: Subscriber) -> AsyncGenerator[Any, None]:
    while True:
        async with subscriber.recv_zero_copy() as message:
            pass
        yield message  # bytes, which are a copy already


async def _lend(subscriber: Subscriber) -> AsyncGenerator[Any, None]:
    while True:
        async with subscriber.recv_zero_copy() as message:
            try:
                yield message
            finally:
                del message  # what it shows is unmapped, or overwritten


PEER = Ezmsg()

"""byref, with default settings."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from itertools import repeat
from operator import attrgetter
from typing import Any

import byref
import numpy as np

from bench.peers import (
    BATCH,
    ROW,
    START_TIMEOUT,
    Address,
    AsyncMessages,
    AsyncPeer,
    BlockingPeer,
    BroadcastPeer,
    Buffer,
    Messages,
    ObjectPeer,
    Run,
    Send,
    Stop,
)


class Byref(BlockingPeer, BroadcastPeer, ObjectPeer, AsyncPeer):
    package = "byref"
    configuration = "default settings"

    @contextmanager
    def sender(self, address: Address, size: int, receivers: int = 1) -> Iterator[Send]:
        with self._publisher(address, receivers) as publisher:
            yield publisher.send

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        with byref.Subscriber(address.name) as subscriber:
            yield iter(subscriber)

    def broadcaster(self, address: Address, size: int, receivers: int) -> AbstractContextManager[Send]:
        return self.sender(address, size, receivers)

    def listener(self, address: Address, size: int) -> AbstractContextManager[Messages]:
        return self.receiver(address, size)

    @contextmanager
    def caller(
        self, address: Address, size: int, function: Callable[[Buffer], Any], receivers: int = 1
    ) -> Iterator[tuple[Run, Stop]]:
        with byref.EventQueue() as queue:
            for _ in range(receivers):
                queue.subscribe(address.name, function)
            yield queue.run, queue.stop

    @contextmanager
    def row_sender(self, address: Address, rows: np.ndarray) -> Iterator[Callable[[], Any]]:
        with self._publisher(address) as publisher:
            yield partial(publisher.send_many, rows)

    @contextmanager
    def row_receiver(self, address: Address) -> Iterator[Iterator[np.ndarray]]:
        with byref.Subscriber(address.name) as subscriber:
            yield (subscriber.recv_batch(BATCH).array(ROW) for _ in repeat(None))

    @contextmanager
    def object_sender(self, address: Address, name: str) -> Iterator[Send]:
        with self._publisher(address) as publisher:
            yield publisher.send_pickle if name == "pickle" else publisher.send

    @contextmanager
    def object_receiver(self, address: Address, name: str) -> Iterator[Iterator[Any]]:
        with byref.Subscriber(address.name, allow_pickle=name == "pickle") as subscriber:
            yield map(attrgetter("value"), subscriber)

    @asynccontextmanager
    async def async_receiver(self, address: Address, size: int) -> AsyncIterator[AsyncMessages]:
        with byref.Subscriber(address.name) as subscriber:
            yield aiter(subscriber)

    @contextmanager
    def loaner(self, address: Address, size: int) -> Iterator[Callable[[int], Callable[[], Any]]]:
        """A function that fills a loaned message with one byte's value and returns what sends it."""
        with self._publisher(address) as publisher:

            def fill(byte: int) -> Callable[[], Any]:
                loan = publisher.loan(size)
                loan.array.fill(byte)
                return loan.send

            yield fill

    @contextmanager
    def poller(self, address: Address) -> Iterator[Callable[[], Any]]:
        """A function that returns the next message, or None at once."""
        with byref.Subscriber(address.name) as subscriber:
            yield subscriber.try_recv

    @contextmanager
    def topic_sender(self, address: Address, number: int, kept: int = 0) -> Iterator[tuple[Send, Callable[[], Any]]]:
        """A sender on one of many topics that keeps so many messages for who comes, and what waits for a receiver."""
        with byref.Publisher(f"{address.name}/{number}", history=kept) as publisher:
            yield publisher.send, partial(publisher.wait_for_subscribers, timeout=START_TIMEOUT)

    @contextmanager
    def topics_receiver(self, address: Address, kept: int) -> Iterator[Callable[[float], Any]]:
        """A function that returns the next message of any topic, within so many seconds."""
        with byref.Subscriber(f"{address.name}/**", history=kept) as subscriber:
            yield subscriber.recv

    @contextmanager
    def topics_queue(self, address: Address) -> Iterator[tuple[Callable[..., Any], Run, Stop, Callable[[], int]]]:
        """Functions of a queue: add a receiver of one topic; run; stop; call back for what is there."""
        with byref.EventQueue() as queue:

            def subscribe(number: int, function: Callable[[Buffer], Any]) -> None:
                queue.subscribe(f"{address.name}/{number}", function)

            yield subscribe, queue.run, queue.stop, queue.dispatch

    @staticmethod
    @contextmanager
    def _publisher(address: Address, receivers: int = 1) -> Iterator[byref.Publisher]:
        with byref.Publisher(address.name) as publisher:
            publisher.wait_for_subscribers(receivers, timeout=START_TIMEOUT)
            yield publisher


PEER = Byref()

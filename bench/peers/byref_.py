"""byref, with default settings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import byref

from bench.peers import START_TIMEOUT, Address, Messages, Peer, Send


class Byref(Peer):
    configuration = "default settings"

    @contextmanager
    def sender(self, address: Address, size: int) -> Iterator[Send]:
        with self._publisher(address) as publisher:
            yield publisher.send

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        with byref.Subscriber(address.name) as subscriber:
            yield iter(subscriber)

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

    @staticmethod
    @contextmanager
    def _publisher(address: Address) -> Iterator[byref.Publisher]:
        with byref.Publisher(address.name) as publisher:
            publisher.wait_for_subscribers(timeout=START_TIMEOUT)
            yield publisher


PEER = Byref()

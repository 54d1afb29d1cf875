"""The systems under test: one module each, with a `PEER` in it that says how the system is set up."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import import_module
from importlib.metadata import version
from itertools import islice, repeat
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

MODULES = {
    "byref": "byref_",
    "pyzmq": "zmq_",
    "pyomq": "pyomq_",
    "zenoh": "zenoh_",
    "iceoryx2": "iceoryx2_",
    "multiprocessing": "multiprocessing_",
    "ezmsg": "ezmsg_",
    "dora": "dora_",
}
"""The module of each system."""

START_TIMEOUT = 10.0
"""Seconds that a sender may wait for its receiver to be connected."""

BATCH = 1000
"""Most messages that become one array."""

ROW = np.dtype([("number", np.uint64), ("rest", np.uint64, 7)])
"""A message, where messages travel as rows of an array."""

Buffer = Any
"""What the buffer protocol accepts (a type for it exists from Python 3.12)."""

Send = Callable[[Buffer], Any]
"""Sends one message; blocks while the receiver is too far behind, so that nothing is lost."""

Messages = Iterator[Buffer]
"""Blocks until the next message is there, which is valid until the one after it is asked for."""

AsyncSend = Callable[[Buffer], Awaitable[Any]]
"""As `Send`, to be awaited."""

AsyncMessages = AsyncIterator[Buffer]
"""As `Messages`, with `async for`."""

Run, Stop = Callable[[], Any], Callable[[], Any]
"""Calls a function with messages as they come, until that function calls the `Stop`."""


class Address(NamedTuple):
    """Where the processes of a trial meet. A peer uses what it needs of it."""

    name: str
    port: int

    def at(self, suffix: str) -> "Address":
        """The address of one of several channels of a trial."""
        return self._replace(name=f"{self.name}-{suffix}")


class Peer(ABC):
    """How a system is set up for the trials; all messages of a trial are `size` bytes long."""

    package: str | None
    """Its name on PyPI; None for what comes with Python."""

    configuration: str
    """The settings that were chosen, for the report."""

    one_cpu_below: float = 0
    """Round trips of fewer bytes than this are faster when both processes share one processor."""

    def service(self, address: Address) -> AbstractContextManager[Any]:
        """What has to run, or to be there, beside the processes of a trial."""
        return nullcontext()


class BlockingPeer(Peer):
    """A system whose calls block."""

    @abstractmethod
    def sender(self, address: Address, size: int) -> AbstractContextManager[Send]:
        """Connect to the receiver, which is open already."""

    @abstractmethod
    def receiver(self, address: Address, size: int) -> AbstractContextManager[Messages]:
        """Be ready for senders."""

    @contextmanager
    def duplex(self, address: Address, size: int, first: bool, channel: Connection) -> Iterator[tuple[Send, Messages]]:
        """One end of a two-way connection: two one-way ones, unless the system has something better."""
        outbound, inbound = ("forth", "back") if first else ("back", "forth")
        with self.receiver(address.at(inbound), size) as messages:
            meet(channel)
            with self.sender(address.at(outbound), size) as send:
                yield send, messages

    @contextmanager
    def caller(self, address: Address, size: int, function: Callable[[Buffer], Any]) -> Iterator[tuple[Run, Stop]]:
        """Be ready to call `function` with what is received: in a loop, unless the system has something better."""
        with self.receiver(address, size) as messages:

            def run() -> None:
                with suppress(_Stopped):
                    for message in messages:
                        function(message)

            def stop() -> None:
                raise _Stopped

            yield run, stop

    @contextmanager
    def row_sender(self, address: Address, rows: np.ndarray) -> Iterator[Callable[[], Any]]:
        """What sends each row as a message, all again with each call: one by one, unless there is a better way."""
        messages = [row.tobytes() for row in rows]
        with self.sender(address, rows.itemsize) as send:

            def send_rows() -> None:
                for message in messages:
                    send(message)

            yield send_rows

    @contextmanager
    def row_receiver(self, address: Address) -> Iterator[Iterator[np.ndarray]]:
        """Yields arrays of messages: `BATCH` of them joined, unless there is a better way."""
        with self.receiver(address, ROW.itemsize) as messages:
            yield (np.frombuffer(b"".join(islice(messages, BATCH)), ROW) for _ in repeat(None))


class BroadcastPeer(Peer):
    """A system in which a message may reach many receivers, each a process."""

    @abstractmethod
    def broadcaster(self, address: Address, size: int, receivers: int) -> AbstractContextManager[Send]:
        """Connect to so many receivers, which are open already or will be."""

    @abstractmethod
    def listener(self, address: Address, size: int) -> AbstractContextManager[Messages]:
        """One of the receivers."""


class ObjectPeer(Peer):
    """A system by which more than bytes can be sent."""

    @abstractmethod
    def object_sender(self, address: Address, name: str) -> AbstractContextManager[Send]:
        """As `BlockingPeer.sender`, for the object that `bench.contents` has by that name."""

    @abstractmethod
    def object_receiver(self, address: Address, name: str) -> AbstractContextManager[Iterator[Any]]:
        """Be ready for senders; yields the objects."""


class AsyncPeer(Peer):
    """A system that can be received from in a coroutine."""

    @abstractmethod
    def async_receiver(self, address: Address, size: int) -> AbstractAsyncContextManager[AsyncMessages]:
        """Be ready for senders."""


class _Stopped(Exception):
    """Ends the loop that calls a function."""


def load(system: str) -> Any:
    """The peer of that name; ImportError if its package is not installed."""
    return import_module(f"{__name__}.{MODULES[system]}").PEER


def describe(system: str) -> str:
    """Version and settings of a system, or why it cannot be used."""
    try:
        peer = load(system)
        return f"{version(peer.package) if peer.package else 'of this Python'}, {peer.configuration}"
    except Exception as error:  # A broken installation may fail in any way.
        return f"cannot be used: {error}"


def meet(channel: Connection) -> None:
    """Return once the other process of the trial has come to the same point."""
    channel.send(None)
    channel.recv()

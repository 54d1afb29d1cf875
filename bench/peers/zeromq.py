"""What pyzmq and pyomq, which share an interface, have in common.

PUSH/PULL is the lossless one-way pattern: PUB drops messages at the high-water mark, and is slower where it
can be told not to. PAIR is the fastest for round trips. Both libraries hand a message to a thread of their
own, and to wake a thread on another, sleeping core costs more than all the rest: with both processes on one
core, small round trips take less than half the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat, starmap
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

from bench.peers import Address, Messages, Peer, Send, meet

LARGE = 64 << 10
"""Bytes from which `copy=False` is faster and sharing a core is slower."""


class ZeroMQ(Peer):
    one_cpu_below = LARGE

    def __init__(self, library: ModuleType, high_water_mark: int, large_transport: str) -> None:
        self._zmq = library
        self._high_water_mark = high_water_mark
        self._large_transport = large_transport
        self.configuration = (
            f"PUSH/PULL over ipc, high-water mark {high_water_mark or 'unlimited'}; round trips PAIR, "
            f"below {LARGE >> 10} KiB over ipc with both processes on one core, "
            f"from there over {large_transport} with copy=False"
        )

    @contextmanager
    def sender(self, address: Address, size: int) -> Iterator[Send]:
        with self._socket(self._zmq.PUSH) as socket:
            socket.connect(_endpoint("ipc", address))
            yield socket.send

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        with self._socket(self._zmq.PULL) as socket:
            socket.bind(_endpoint("ipc", address))
            yield starmap(socket.recv, repeat(()))

    @contextmanager
    def duplex(self, address: Address, size: int, first: bool, channel: Connection) -> Iterator[tuple[Send, Messages]]:
        copy = size < LARGE
        endpoint = _endpoint("ipc" if copy else self._large_transport, address)
        with self._socket(self._zmq.PAIR) as socket:
            (socket.bind if first else socket.connect)(endpoint)
            meet(channel)
            yield partial(socket.send, copy=copy), starmap(partial(socket.recv, copy=copy), repeat(()))

    @contextmanager
    def _socket(self, kind: int) -> Iterator[Any]:
        with self._zmq.Context() as context, context.socket(kind) as socket:
            socket.set_hwm(self._high_water_mark)
            yield socket


def _endpoint(transport: str, address: Address) -> str:
    return f"ipc://@{address.name}" if transport == "ipc" else f"tcp://127.0.0.1:{address.port}"

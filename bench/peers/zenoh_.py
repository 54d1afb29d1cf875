"""Zenoh, peer to peer over a unix socket, without scouting; it blocks on congestion and so loses nothing.

Measured best of unix socket and tcp; of its own batching and `express`; of queues of all lengths and a
callback in its thread. Round trips are fastest over the low-latency transport, which has no batches, and with both
processes on one core: Zenoh has threads of its own, whose wake-ups cost most. Shared memory is faster from
`LARGE` bytes on.
"""

import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zenoh
import zenoh.shm

from bench.peers import START_TIMEOUT, Address, BlockingPeer, Messages, Send, meet

LARGE = 16 << 10
"""Bytes from which shared memory is faster."""

POOL = 32 << 20
"""Bytes of a sender's shared memory."""

QUEUE_LENGTH = 100_000
"""Messages that wait for the receiver; the senders wait when there are more."""


class Zenoh(BlockingPeer):
    package = "eclipse-zenoh"
    configuration = (
        "peers over a unix socket, no scouting, congestion control BLOCK; "
        "round trips with the low-latency transport and both processes on one core; "
        f"from {LARGE >> 10} KiB in shared memory"
    )
    one_cpu_below = float("inf")

    @contextmanager
    def service(self, address: Address) -> Iterator[None]:
        try:
            yield
        finally:
            for path in _socket(address).parent.glob(f"{_socket(address).name}*"):
                path.unlink()

    @contextmanager
    def sender(self, address: Address, size: int) -> Iterator[Send]:
        with _session(address, size, listen=False) as session:
            yield _publish(session, "forth", size)

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        with _session(address, size, listen=True) as session:
            yield _receive(session, "forth")

    @contextmanager
    def duplex(self, address: Address, size: int, first: bool, channel: Connection) -> Iterator[tuple[Send, Messages]]:
        outbound, inbound = ("forth", "back") if first else ("back", "forth")
        if not first:
            meet(channel)
        with _session(address, size, listen=first, low_latency=True) as session:
            messages = _receive(session, inbound)
            if first:
                meet(channel)
            yield _publish(session, outbound, size), messages


def _socket(address: Address) -> Path:
    return Path(tempfile.gettempdir(), address.name)


@contextmanager
def _session(address: Address, size: int, listen: bool, low_latency: bool = False) -> Iterator[zenoh.Session]:
    endpoints = [f"unixsock-stream/{_socket(address)}"]
    settings: dict[str, Any] = {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "listen/endpoints": endpoints if listen else [],
        "connect/endpoints": [] if listen else endpoints,
        "transport/shared_memory/enabled": size >= LARGE,
        "transport/unicast/qos/enabled": not low_latency,
        "transport/unicast/lowlatency": low_latency,
    }
    config = zenoh.Config()
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    with zenoh.open(config) as session:
        yield session
    if size >= LARGE:
        _remove_shared_memory()


def _remove_shared_memory() -> None:
    """Remove the segments that this process maps: a process that ends often leaves them to the next Zenoh program."""
    maps = Path("/proc/self/maps").read_text()
    for path in set(re.findall(r"/dev/shm/\d+\.zenoh$", maps, re.MULTILINE)):
        Path(path).unlink(missing_ok=True)


def _publish(session: zenoh.Session, key: str, size: int) -> Send:
    publisher = session.declare_publisher(key, congestion_control=zenoh.CongestionControl.BLOCK)
    deadline = time.monotonic() + START_TIMEOUT
    while not publisher.matching_status.matching:
        if time.monotonic() > deadline:
            raise TimeoutError("no subscriber was found")
        time.sleep(0.001)
    if size < LARGE:
        return publisher.put
    allocate = zenoh.shm.ShmProvider.default_backend(POOL).alloc
    policy = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())

    def send(buffer: bytes) -> None:
        memory = allocate(size, policy)
        memory[:] = buffer
        publisher.put(memory)

    return send


def _receive(session: zenoh.Session, key: str) -> Messages:
    return _payloads(session.declare_subscriber(key, zenoh.handlers.FifoChannel(QUEUE_LENGTH)))


def _payloads(subscriber: zenoh.Subscriber) -> Messages:
    for sample in subscriber:
        yield sample.payload.to_bytes()


PEER = Zenoh()

"""dora, a flow of two dynamic nodes in a daemon of its own.

By default it drops messages in a burst, from queues of any length. With the policy `backpressure` they take
the way through the daemon, where none was lost, and which is six times as fast for small ones.

Large ones are five times as fast by the default policy, in shared memory with room for many. The receiver
acknowledges them, and the sender is at most `WINDOW` ahead.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count, islice, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
from dora import Node

from bench.contents import CHUNKS
from bench.peers import START_TIMEOUT, Address, BlockingPeer, Messages, ObjectPeer, Send, meet

QUEUE_LENGTH = 100_000
"""Messages that may wait for a node: ten times as many are kept before any is dropped."""

POOL = 1 << 30
"""Bytes of a sender's shared memory: what does not fit takes the way through the daemon."""

WINDOW = 2
"""Large messages that the receiver may have yet to acknowledge."""


_SETTLE = 1.0
"""Seconds for which large messages may be lost after a node has joined."""


class Dora(BlockingPeer, ObjectPeer):
    package = "dora-rs"
    configuration = (
        f"two dynamic nodes and a daemon, queue policy backpressure, queue size {QUEUE_LENGTH}; "
        f"tables: default policy, acknowledged, {POOL >> 30} GiB of shared memory"
    )

    @contextmanager
    def service(self, address: Address) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as directory:
            flow = Path(directory, "flow.yml")
            flow.write_text(json.dumps({"nodes": [_describe("first", "second"), _describe("second", "first")]}))
            daemon = subprocess.Popen(
                [Path(sys.executable).with_name("dora"), "run", flow],
                cwd=directory,
                env={**os.environ, "DORA_ZENOH_MULTICAST": "off"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                yield
            finally:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()

    @contextmanager
    def sender(self, address: Address, size: int) -> Iterator[Send]:
        yield partial(_node("first").send_output, "out")

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        yield _inputs(_node("second"))

    @contextmanager
    def duplex(self, address: Address, size: int, first: bool, channel: Connection) -> Iterator[tuple[Send, Messages]]:
        node = _node("first" if first else "second")
        meet(channel)
        yield partial(node.send_output, "out"), _inputs(node)

    @contextmanager
    def object_sender(self, address: Address, name: str) -> Iterator[Send]:
        node = _node("first")
        if name == "batch":
            yield lambda batch: node.send_output("out", batch.to_struct_array())
        else:
            time.sleep(_SETTLE)
            yield partial(_send_table, node, _values(node), count())

    @contextmanager
    def object_receiver(self, address: Address, name: str) -> Iterator[Iterator[Any]]:
        node = _node("second")
        yield map(pa.RecordBatch.from_struct_array, _values(node)) if name == "batch" else _receive_tables(node)


def _describe(name: str, other: str) -> dict[str, object]:
    """A node as a flow's description has it (which is YAML, and so may be JSON)."""
    queue = {"source": f"{other}/out", "queue_size": QUEUE_LENGTH, "queue_policy": "backpressure"}
    large = {"source": f"{other}/large", "queue_size": QUEUE_LENGTH}
    return {"id": name, "path": "dynamic", "inputs": {"in": queue, "large": large}, "outputs": ["out", "large"]}


def _node(name: str) -> Node:
    """Join the flow, once its daemon is ready. What is sent to a node before it has joined is lost."""
    os.environ |= {"DORA_ZENOH_MULTICAST": "off", "DORA_NODE_SHM_POOL_SIZE": str(POOL), "RUST_LOG": "error"}
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return Node(name)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _inputs(node: Node) -> Messages:
    for value in _values(node):
        yield value.to_numpy().tobytes()


def _values(node: Node) -> Iterator[pa.Array]:
    return (event["value"] for event in node if event["type"] == "INPUT")


def _send_table(node: Node, acknowledgements: Iterator[Any], numbers: Iterator[int], table: pa.Table) -> None:
    """Send a table in as many messages as it has chunks: a message is one array, and to join them is a copy."""
    for batch in table.to_batches():
        if next(numbers) >= WINDOW:
            next(acknowledgements)
        node.send_output("large", batch.to_struct_array())


def _receive_tables(node: Node) -> Iterator[pa.Table]:
    batches = map(partial(_acknowledge, node), _values(node))
    return (pa.Table.from_batches(islice(batches, CHUNKS)) for _ in repeat(None))


def _acknowledge(node: Node, value: pa.StructArray) -> pa.RecordBatch:
    node.send_output("out", _RECEIVED)
    return pa.RecordBatch.from_struct_array(value)


_RECEIVED = pa.array([True])

PEER = Dora()

"""dora, a flow of two dynamic nodes in a daemon of its own.

By default it drops messages in a burst, from queues of any length. With the policy `backpressure` they take
the way through the daemon, where none was lost, and which is six times as fast for small ones.
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
from itertools import islice, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
from dora import Node

from bench.contents import CHUNKS
from bench.peers import START_TIMEOUT, Address, BlockingPeer, Messages, ObjectPeer, Send, meet

QUEUE_LENGTH = 100_000
"""Messages that may wait for a node: ten times as many are kept before any is dropped."""


class Dora(BlockingPeer, ObjectPeer):
    package = "dora-rs"
    configuration = f"two dynamic nodes and a daemon, queue policy backpressure, queue size {QUEUE_LENGTH}"

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
        send = partial(_node("first").send_output, "out")
        if name == "batch":
            yield lambda batch: send(batch.to_struct_array())
        else:
            # A message is one array, and to make one of all chunks is a copy.
            yield lambda table: [send(batch.to_struct_array()) for batch in table.to_batches()]

    @contextmanager
    def object_receiver(self, address: Address, name: str) -> Iterator[Iterator[Any]]:
        batches = map(pa.RecordBatch.from_struct_array, _values(_node("second")))
        if name == "batch":
            yield batches
        else:
            yield (pa.Table.from_batches(islice(batches, CHUNKS)) for _ in repeat(None))


def _describe(name: str, other: str) -> dict[str, object]:
    """A node as a flow's description has it (which is YAML, and so may be JSON)."""
    queue = {"source": f"{other}/out", "queue_size": QUEUE_LENGTH, "queue_policy": "backpressure"}
    return {"id": name, "path": "dynamic", "inputs": {"in": queue}, "outputs": ["out"]}


def _node(name: str) -> Node:
    """Join the flow, once its daemon is ready. What is sent to a node before it has joined is lost."""
    os.environ["DORA_ZENOH_MULTICAST"] = "off"
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


PEER = Dora()

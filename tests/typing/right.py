"""Right programs: no type checker has anything to say about them, and they run."""

import asyncio
import functools
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypedDict, assert_type

import byref
import numpy as np
import polars as pl
import pyarrow as pa
from byref import Batch, Event, Loan, Message, Publisher, Subscriber
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


class Views(TypedDict):
    """What a camera with a sense of depth sends."""

    rgb: Frame
    depth: NDArray[np.float32]


def payloads(pub: Publisher, frame: Frame, table: pa.Table) -> None:
    """What has memory of its own."""
    for sequence in (pub.send(b"abc"), pub.send(bytearray(3)), pub.send(memoryview(b"abc")), pub.send(frame)):
        assert_type(sequence, int)
    pub.send(frame[::2, ::2])
    pub.send(table)
    pub.send(table.column("x"))
    pub.send(table.to_batches()[0])
    pub.send(pl.DataFrame({"x": [1, 2]}))
    pub.send(pl.Series("x", [1.5]))
    pub.send(np.float32(1.5))
    pub.send_many(np.zeros((10, 3)))
    pub.send_many([b"ab", b"cd"])
    pub.send_many([frame, frame])


def containers(pub: Publisher, frame: Frame, table: pa.Table) -> None:
    """Dicts, lists and tuples, of one type of parts and of several."""
    arrays: dict[str, Frame] = {"left": frame, "right": frame}
    pub.send(arrays)
    pub.send_tracked(arrays)
    numbered: dict[int, NDArray[np.float64]] = {1: np.zeros(3)}
    pub.send(numbered)
    mixed: dict[str, Any] = {"rgb": frame, "table": table, "pose": [1.0, 2.0], "ok": True, "nothing": None}
    pub.send(mixed)
    pub.send({"rgb": frame, "pose": (1, 2.5, "x"), "nested": {"a": [frame, {"b": b"raw"}]}, "complex": 1j})
    frames: list[Frame] = [frame, frame]
    pub.send(frames)
    pub.send({"frames": frames, "of": arrays})
    names: dict[str, list[str]] = {"names": ["a", "b"]}
    pub.send(names)
    pub.send([names, names])
    pub.send((frame, 1))
    pair: tuple[Frame, str] = (frame, "front")
    pub.send(pair)
    views: Views = {"rgb": frame, "depth": np.zeros((2, 2), np.float32)}
    pub.send(views)
    pub.send({})
    pub.send([])


def headers(pub: Publisher) -> None:
    """Headers of one type and of several."""
    texts: dict[str, str] = {"camera": "front"}
    numbers: dict[str, int] = {"exposure": 3}
    mapping: Mapping[str, float] = MappingProxyType({"gain": 1.5})
    pub.send(b"", texts)
    pub.send(b"", headers=numbers)
    pub.send_pickle({1, 2}, headers=mapping)
    pub.send_many([b"a", b"b"], {"a": 1, "b": "text", "c": b"bytes", "d": True, "e": 1.5})
    with pub.loan(3) as array:
        assert_type(array, NDArray[Any])
        array[:] = 1
    loan = pub.loan((3, 4), "f4")
    assert_type(loan, Loan)
    loan.headers["camera"] = "front"
    loan.send(timeout=1)


def columns(pub: Publisher) -> None:
    """A loan of columns."""
    with pub.loan_batch(pa.schema([("x", pa.int64())]), 3) as batch:
        assert_type(batch, dict[str, NDArray[Any]])
        batch["x"][:] = 7


def relay(sub: Subscriber, pub: Publisher) -> None:
    """What was received is sent on."""
    msg = sub.recv(timeout=10)
    assert_type(msg, Message)
    pub.send(msg)
    pub.send({"first": msg, "second": [msg]})
    pub.send(memoryview(msg))
    frame: Frame = msg.value
    copied = msg.copy(out=np.empty_like(frame))
    assert_type(copied, Frame)
    assert_type(msg.copy(), NDArray[Any])
    assert_type(np.asarray(msg).shape, tuple[Any, ...])
    for name, value in msg.headers.items():
        assert_type(name, str)
        assert_type(value, str | bytes | int | float | bool)


def messages(sub: Subscriber) -> Iterator[Message]:
    """Messages without events."""
    for msg in sub:
        assert_type(msg, Message)
        yield msg
    while (waiting := sub.try_recv()) is not None:
        assert_type(waiting, Message)
    assert_type(sub.recv_batch(10), Batch)


def events(topic: str) -> list[str]:
    """Messages and events, told apart."""
    found: list[str] = []
    with byref.Subscriber(topic, events=True) as sub:
        assert_type(sub, Subscriber[Event])
        while (item := sub.try_recv()) is not None:
            match item:
                case Event():
                    assert_type(item, Event)
                    found.append(item.kind)
                case Message():
                    assert_type(item, Message)
                    found.append(item.topic)
    return found


class Recorder:
    """Callables of a program: methods, and an instance that can be called."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.received: list[Message] = []
        self.rows = 0

    def on_message(self, msg: Message) -> None:
        """Take a message."""
        self.received.append(msg)

    def on_batch(self, batch: Batch) -> int:
        """Take several."""
        self.rows += len(batch.array())
        return self.rows

    def __call__(self, item: Message | Event) -> None:
        """Take a message, or hear of a publisher."""


def narrow(sub: Subscriber[Event], loan: Loan[NDArray[Any]]) -> None:
    """Annotations with an argument, which Python evaluates."""
    assert_type(sub.recv(), Message | Event)
    assert_type(loan.array, NDArray[Any])


def on_batch_or_event(item: Batch | Event) -> None:
    """Take several messages, or hear of a publisher."""


def on_named(name: str, msg: Message) -> None:
    """Take a message under a name."""


async def on_message_later(msg: Message) -> None:
    """Take a message in an event loop."""
    await asyncio.sleep(0)


def subscribe(topic: str) -> None:
    """Each kind of callable, with what it is called with."""
    recorder = Recorder()
    with byref.EventQueue() as queue:
        receiver = queue.subscribe(topic, recorder.on_message, policy="latest")
        assert_type(receiver, byref.Receiver)
        queue.subscribe(topic, recorder.received.append)
        queue.subscribe(topic, lambda msg: print(msg.topic, msg.sequence))
        queue.subscribe(topic, functools.partial(on_named, "front"))
        queue.subscribe(topic, print)
        queue.subscribe(topic, on_message_later)
        queue.subscribe(topic, recorder)
        queue.subscribe(topic, recorder, events=True)
        queue.subscribe(topic, recorder.on_batch, batch=True)
        queue.subscribe(topic, recorder.on_batch, 100)
        queue.subscribe(topic, lambda batch: print(batch.array().sum()), batch=True)
        queue.subscribe(topic, on_batch_or_event, batch=True, events=True)
        queue.subscribe(topic, on_batch_or_event, batch=True)


def run(queue: byref.EventQueue) -> None:
    """A queue on a thread."""
    problems: list[BaseException | None] = []
    thread = queue.start(daemon=True, on_exit=problems.append, stop_event=threading.Event())
    assert_type(thread, threading.Thread)
    queue.stop()
    thread.join()
    assert_type(queue.stats()["callbacks"], int)


async def in_a_loop(sub: Subscriber, pub: Publisher) -> None:
    """`async for`, and a ticket that is awaited."""
    ticket = pub.send_tracked(b"abc")
    async for msg in sub:
        assert_type(msg, Message)
        msg.release()
        break
    await ticket
    arrays: dict[str, NDArray[np.float64]] = {"a": np.zeros(3)}
    assert_type(await pub.send_async(arrays, {"camera": "front"}), int)
    assert_type(await sub.recv_async(), Message)

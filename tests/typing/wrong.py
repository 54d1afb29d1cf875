"""Wrong programs: type checkers are to report each line that is marked so, and no other."""

import collections
import datetime

import byref
import numpy as np
from byref import Batch, Event, Message, Publisher, Subscriber
from numpy.typing import NDArray


def payloads(pub: Publisher) -> None:
    """What has no memory of its own, and is in no container."""
    pub.send("text")  # wrong
    pub.send(1.5)  # wrong
    pub.send(None)  # wrong
    pub.send(object())  # wrong
    pub.send(datetime.date.today())  # wrong
    pub.send({1, 2})  # wrong
    pub.send(range(3))  # wrong
    pub.send(iter([b"a"]))  # wrong
    pub.send()  # wrong
    pub.send_many(b"ab" for _ in range(3))  # wrong
    pub.send_many({"a": b"b"})  # wrong
    pub.send_many(collections.deque([b"ab"]))  # wrong
    pub.send_many(["ab", "cd"])  # wrong


def containers(pub: Publisher) -> None:
    """Parts that cannot be sent."""
    pub.send({"a": object()})  # wrong
    pub.send([{1, 2}])  # wrong
    dates: dict[str, datetime.date] = {}
    pub.send(dates)  # wrong
    pub.send([dates])  # wrong
    pub.send((1, datetime.date.today()))  # wrong
    pub.send({"a": {"b": [object()]}})  # wrong


def headers(pub: Publisher) -> None:
    """Headers that cannot be sent."""
    pub.send(b"", {"a": None})  # wrong
    pub.send(b"", {1: "a"})  # wrong
    pub.send(b"", [("a", 1)])  # wrong
    lists: dict[str, list[int]] = {}
    pub.send(b"", headers=lists)  # wrong
    pub.send(b"", timeout="1")  # wrong
    pub.send(b"", timestamp=1)  # wrong


def endpoints(sub: Subscriber) -> None:
    """Arguments, and what comes of them."""
    byref.Subscriber("t", policy="newest")  # wrong
    byref.Subscriber("t", "block", "10")  # wrong
    byref.Publisher(b"t")  # wrong
    byref.Publisher()  # wrong
    print(sub.try_recv().value)  # wrong
    sub.recv().shape = (1,)  # wrong
    print(sub.recv().values)  # wrong
    with byref.Subscriber("t", events=True) as told:
        print(told.recv().value)  # wrong
    for item in told:
        print(item.kind)  # wrong
    frame: NDArray[np.uint8] = sub.recv_batch(3)  # wrong
    frame.sum()
    sub.send(b"")  # wrong


def on_message(msg: Message) -> None:
    """Take a message."""


def on_batch(batch: Batch) -> None:
    """Take several."""


def on_event(event: Event) -> None:
    """Hear of a publisher."""


def subscribe(queue: byref.EventQueue) -> None:
    """Callables that are called with something else than what they take."""
    queue.subscribe("t", on_batch)  # wrong
    queue.subscribe("t", on_message, batch=True)  # wrong
    queue.subscribe("t", on_message, 100)  # wrong
    queue.subscribe("t", on_message, events=True)  # wrong
    queue.subscribe("t", on_event, events=True)  # wrong
    queue.subscribe("t", on_batch, batch=True, events=True)  # wrong
    queue.subscribe("t", lambda msg: msg.array())  # wrong
    queue.subscribe("t", lambda batch: batch.value, batch=True)  # wrong
    queue.subscribe("t", lambda: None)  # wrong
    queue.subscribe("t", None)  # wrong
    queue.subscribe("t")  # wrong
    queue.subscribe("t", on_message, policy="all")  # wrong
    queue.subscribe("t", on_message, None, "latest")  # wrong


async def in_a_loop(pub: Publisher, sub: Subscriber) -> None:
    """What is awaited, and what is not."""
    await pub.send_async("text")  # wrong
    await pub.send(b"")  # wrong
    print((await sub.recv_async()).values)  # wrong

"""`tag=`: a number of the sender's own beside each message."""

import asyncio
from collections.abc import Callable
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.processes import PATIENCE, Child, Line

Spawn = Callable[..., Child]

LARGEST = 2**64 - 1
DATA: dict[str, Any] = {
    "nothing": b"",
    "bytes with room for a tag": b"x" * 32,
    "bytes without": b"x" * 33,
    "bytes": b"x" * 5000,
    "an array": np.arange(5),
    "a large array": np.arange(5000),
    "a column": np.asfortranarray(np.arange(5000).reshape(50, 100)),
    "a dict": {"a": 1, "b": [np.arange(3000)]},
    "a table": pa.table({"a": np.arange(3000)}),
}


def tell_tags(line: Line, count: int) -> None:
    """Tells the tags of so many messages."""
    with byref.Subscriber("t", allow_pickle=True) as sub:
        line.tell([sub.recv(timeout=PATIENCE).tag for _ in range(count)])


@pytest.mark.parametrize("what", DATA)
def test_it_travels_with_all_that_can_be_sent(what: str, spawn: Spawn) -> None:
    child = spawn(tell_tags, 7)
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=PATIENCE)
        pub.send(DATA[what])
        pub.send(DATA[what], tag=1)
        pub.send(DATA[what], {"name": "front"}, tag=LARGEST)
        assert pub.send(DATA[what], keep=True, tag=3).tag == 3
        pub.send_tracked(DATA[what], tag=4)
        pub.send_pickle(DATA[what], tag=5)
        pub.send(DATA[what], tag=0)
        assert child.hear() == [0, 1, LARGEST, 3, 4, 5, 0]
    child.finish()


def test_rows_share_one_and_batches_list_them() -> None:
    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=PATIENCE)
        for tag in (0, 7, 0):
            pub.send(b"x", tag=tag)
        batch = sub.recv_batch(9, timeout=PATIENCE)
        assert batch.tags.dtype == np.uint64
        assert batch.tags.tolist() == [0, 7, 0]
        assert [msg.tag for msg in batch] == [0, 7, 0]
        pub.send_many(np.arange(3000).reshape(3, 1000), tag=8)
        with pub.loan(10) as array:
            array[:] = 1
        loan = pub.loan(10)
        loan.send(tag=9)
        assert sub.recv_batch(9, timeout=PATIENCE).tags.tolist() == [8, 8, 8]
        assert [sub.recv(timeout=PATIENCE).tag for _ in range(2)] == [0, 9]


def test_coroutines() -> None:
    async def main() -> None:
        await pub.send_async(b"x", tag=5)
        await pub.send_async(np.arange(3000), tag=6)
        assert [(await sub.recv_async(timeout=PATIENCE)).tag for _ in range(2)] == [5, 6]

    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=PATIENCE)
        asyncio.run(main())


def test_mailboxes() -> None:
    with byref.Mailbox("a") as one, byref.Mailbox("b") as other:
        for data in DATA.values():
            one.send("b", data, tag=2)
            one.send(other.identity, data, tag=3)
            one.send_tracked("b", data, tag=4)
            one.send_to_all("b", data, tag=5)
            assert [other.recv(timeout=PATIENCE).tag for _ in range(4)] == [2, 3, 4, 5]
        one.send_many("b", np.arange(3000).reshape(3, 1000), tag=6)
        assert other.recv_batch(9, timeout=PATIENCE).tags.tolist() == [6] * 3


def test_what_was_never_taken_keeps_it() -> None:
    with byref.Mailbox("a") as one, byref.Mailbox("c") as third:
        with byref.Mailbox("b"):
            one.send("b", b"small", tag=2)
            one.send("b", b"large" * 1000, tag=3)
        left = one.undelivered("b")
        assert [message.tag for message in left] == [2, 3]
        for message in left:
            one.send("c", message)
        assert [third.recv(timeout=PATIENCE).tag for _ in range(2)] == [2, 3]


def test_others_have_none() -> None:
    """The library marks requests and jobs by words of its own in the same place."""
    with byref.Server("s") as server, byref.Client("s") as client:
        pending = client.submit(b"?", wait=PATIENCE)
        request = server.recv(timeout=PATIENCE)
        assert getattr(request, "tag", 0) == 0
        request.reply(b"!")
        assert pending.result(PATIENCE).tag == 0


@pytest.mark.parametrize("tag", [-1, 2**64, 1.5, "1", None])
def test_bad_input(tag: Any) -> None:
    with byref.Publisher("t") as pub, byref.Mailbox("a") as box:
        for send in (pub.send, pub.send_tracked, pub.send_pickle, lambda data, tag: box.send("a", data, tag=tag)):
            with pytest.raises((TypeError, OverflowError), match=r"tag|int"):
                send(b"x", tag=tag)
        assert pub.stats()["sent"] == 0

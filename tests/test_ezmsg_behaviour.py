"""`byref.integrations.ezmsg`: what stays as ezmsg has it, and the edges: other peers, ends, what cannot be pickled."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ezmsg_programs import prepare
from tests.processes import Child, Line, eventually
from tests.test_ezmsg import Graph, graph

__all__ = ["graph"]  # A fixture.

Spawn = Callable[..., Child]


def inside(line: Line, name: str, address: list[Any]) -> None:
    """One of the scenarios below, in a child: in the tests' process nothing of ezmsg is exchanged."""
    prepare()
    import ezmsg.core as ez

    async def main() -> None:
        async with ez.GraphContext((address[0], address[1]), auto_start=False) as context:
            await globals()[name](context)

    asyncio.run(main())
    line.tell("done")


def scenario(test: Callable[[Any], Any]) -> Callable[[Spawn, Graph], None]:
    """A test that runs in a child."""

    def run(spawn: Spawn, graph: Graph) -> None:
        child = spawn(inside, f"scenario_{test.__name__.removeprefix('test_')}", graph.address)
        assert child.hear() == "done"
        child.finish()
        assert "Traceback" not in child.output(), child.output()

    run.__name__ = run.__qualname__ = test.__name__
    globals()[f"scenario_{test.__name__.removeprefix('test_')}"] = test
    return run


async def is_waiting(task: "asyncio.Task[Any]") -> bool:
    """Whether a task goes on waiting."""
    await asyncio.sleep(0.15)
    return not task.done()


@contextlib.asynccontextmanager
async def held(subscriber: Any) -> AsyncIterator[Any]:
    """A message that is received and not processed, until the end of the block."""
    async with asyncio.timeout(20):
        receiving = subscriber.recv_zero_copy()
        message = await receiving.__aenter__()
    yield message
    await receiving.__aexit__(None, None, None)


@scenario
async def test_buffers_count_what_is_not_processed(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A", num_buffers=2)
    await publisher.broadcast(0)
    await publisher.broadcast(1)
    third = asyncio.create_task(publisher.broadcast(2))
    assert await is_waiting(third)
    async with held(subscriber) as message:
        assert message == 0
        assert await is_waiting(third)  # Received, but not processed.
    await asyncio.wait_for(third, 20)
    fourth = asyncio.create_task(publisher.broadcast(3))
    assert await is_waiting(fourth)
    assert await subscriber.recv() == 1
    await asyncio.wait_for(fourth, 20)
    assert [await subscriber.recv(), await subscriber.recv()] == [2, 3]


@scenario
async def test_out_of_order_the_oldest_counts(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A", num_buffers=2)
    await publisher.broadcast(0)
    await publisher.broadcast(1)
    third = asyncio.create_task(publisher.broadcast(2))
    async with held(subscriber):
        async with held(subscriber) as later:
            assert later == 1
        assert await is_waiting(third)
    await asyncio.wait_for(third, 20)


@scenario
async def test_all_subscribers_count(context: Any) -> None:
    fast, slow = await context.subscriber("A"), await context.subscriber("A")
    publisher = await context.publisher("A", num_buffers=1)
    await publisher.broadcast(0)
    second = asyncio.create_task(publisher.broadcast(1))
    assert await fast.recv() == 0
    assert await is_waiting(second)
    assert await slow.recv() == 0
    await asyncio.wait_for(second, 20)
    # One that leaves holds nobody up.
    third = asyncio.create_task(publisher.broadcast(2))
    assert await fast.recv() == 1
    assert await is_waiting(third)
    slow.close()
    await slow.wait_closed()
    await asyncio.wait_for(third, 20)


@scenario
async def test_sync_waits_until_all_is_processed(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A")
    await asyncio.wait_for(publisher.sync(), 20)  # Nothing was sent.
    publisher.resume()
    await publisher.broadcast(0)
    synced = asyncio.create_task(publisher.sync())
    assert await is_waiting(synced)
    async with held(subscriber):
        assert await is_waiting(synced)
    await asyncio.wait_for(synced, 20)
    assert not publisher.running


@scenario
async def test_a_paused_publisher_waits(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A")
    await context.pause()
    while publisher.running:
        await asyncio.sleep(0.001)
    sending = asyncio.create_task(publisher.broadcast(0))
    assert await is_waiting(sending)
    await context.resume()
    await asyncio.wait_for(sending, 20)
    assert await subscriber.recv() == 0


@scenario
async def test_a_leaky_subscriber_keeps_the_newest(context: Any) -> None:
    leaky = await context.subscriber("A", leaky=True, max_queue=3)
    publisher = await context.publisher("A", num_buffers=8)
    for number in range(100):
        await asyncio.wait_for(publisher.broadcast(number), 20)
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert [await leaky.recv() for _ in range(3)] == [97, 98, 99]
    await asyncio.wait_for(publisher.sync(), 20)


@scenario
async def test_a_leaky_subscriber_is_told_of_ends_after_the_last_messages(context: Any) -> None:
    from byref.integrations.ezmsg import PublisherClosed

    leaky = await context.subscriber("A", leaky=True, max_queue=2)
    publisher = await context.publisher("A")
    other = await context.publisher("A")
    for number in range(5):
        await publisher.broadcast(number)
    publisher.close()
    await publisher.wait_closed()
    await asyncio.sleep(0.2)
    assert [await leaky.recv(), await leaky.recv()] == [3, 4]
    with pytest.raises(PublisherClosed, match=r"topic 'A': the publisher in process .* was closed"):
        await leaky.recv()
    # One whose end is not received before others fill the queue.
    third = await context.publisher("A")
    await third.broadcast("third")
    third.close()
    await third.wait_closed()
    while leaky._incoming.qsize() < 2:
        await asyncio.sleep(0.001)
    for number in range(5):
        await other.broadcast(number)
    await asyncio.sleep(0.1)
    with pytest.raises(PublisherClosed):
        await leaky.recv()
    assert [await leaky.recv(), await leaky.recv()] == [3, 4]


@scenario
async def test_received_arrays_are_private_and_lent_ones_read_only(context: Any) -> None:
    one, other = await context.subscriber("A"), await context.subscriber("A")
    publisher = await context.publisher("A")
    for length in (4, 300_000):
        await publisher.broadcast({"array": np.arange(length)})
        private = (await one.recv())["array"]
        private[:] = -1
        async with held(other) as message:
            assert not message["array"].flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                message["array"][0] = 1
            assert (message["array"] == np.arange(length)).all()
        assert (private == -1).all()
        # They outlive the publisher's next messages.
        kept = message["array"]
        for _ in range(64):
            await publisher.broadcast({"array": np.zeros(length, int)})
            await one.recv()
            await other.recv()
        assert (kept == np.arange(length)).all()


@scenario
async def test_arrays_of_every_kind_arrive_as_they_were(context: Any) -> None:
    """Whether byref carries them as they are, or in a pickle."""
    subscriber, lent = await context.subscriber("A"), await context.subscriber("A")
    publisher = await context.publisher("A")

    class Own(np.ndarray):
        pass

    for array in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(100_000, dtype=">i4"),
        np.arange(100_000, dtype=np.complex64)[::2],
        np.array(3.5),
        np.zeros((0, 4)),
        np.zeros(3, [("a", "i4"), ("b", "f8")]),
        np.array(["a", None, 3], object),
        np.array(["one", "two"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.array([True, False]),
        np.float32(1.5),
        np.arange(50_000).view(Own),
    ):
        await publisher.broadcast(array)
        async with held(lent) as read_only:
            for found in (await subscriber.recv(), read_only):
                assert type(found) is type(array)
                assert found.dtype == array.dtype
                assert found.shape == array.shape
                if array.flags.c_contiguous or array.flags.f_contiguous:
                    assert found.flags.f_contiguous == array.flags.f_contiguous
                np.testing.assert_array_equal(np.asarray(found), np.asarray(array))


@scenario
async def test_what_cannot_be_pickled_goes_by_reference(context: Any) -> None:
    import gc
    import weakref

    from byref.integrations.ezmsg import stats

    class Unpicklable:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    before = stats()
    one, other = await context.subscriber("A"), await context.subscriber("A")
    publisher = await context.publisher("A", num_buffers=4)
    thing = Unpicklable()
    await publisher.broadcast("before")
    await publisher.broadcast(thing)
    await publisher.broadcast("after")
    for subscriber in (one, other):
        assert await subscriber.recv() == "before"
        async with held(subscriber) as message:
            assert message is thing
        assert await subscriber.recv() == "after"
    after = stats()
    assert after["by_reference"] - before["by_reference"] == 1
    assert after["messages"] - before["messages"] == 3
    # Nothing keeps it.
    gone = weakref.ref(thing)
    del thing, message
    gc.collect()
    assert gone() is None


@scenario
async def test_profiles_tell_what_is_in_flight(context: Any) -> None:
    from ezmsg.core.graphmeta import ProfileChannelType
    from ezmsg.core.profiling import PROFILES

    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A")
    for number in range(5):
        await publisher.broadcast(number)
    snapshot = PROFILES.snapshot()
    (of_publisher,) = snapshot.publishers.values()
    assert (of_publisher.messages_published_total, of_publisher.inflight_messages_current) == (5, 5)
    for _ in range(5):
        await subscriber.recv()
    snapshot = PROFILES.snapshot()
    (of_publisher,), (of_subscriber,) = snapshot.publishers.values(), snapshot.subscribers.values()
    assert of_publisher.inflight_messages_current == 0
    assert of_subscriber.messages_received_total == 5
    assert of_subscriber.channel_kind_last == ProfileChannelType.LOCAL


@scenario
async def test_a_disconnected_subscriber_gets_nothing_more(context: Any) -> None:
    subscriber = await context.subscriber("B")
    publisher = await context.publisher("A", num_buffers=4)
    await context.connect("A", "B")
    await publisher.broadcast("connected")
    assert await subscriber.recv() == "connected"
    for number in range(4):
        await publisher.broadcast(number)
    await context.disconnect("A", "B")
    for number in range(20):  # Nobody is waited for.
        await asyncio.wait_for(publisher.broadcast(number), 20)
    await context.connect("A", "B")
    await publisher.broadcast("connected again")
    assert await asyncio.wait_for(subscriber.recv(), 20) == "connected again"


@scenario
async def test_what_was_sent_arrives_if_ezmsg_tells_the_end_before_byref(context: Any) -> None:
    from byref.integrations.ezmsg import PublisherClosed
    from ezmsg.core.channelmanager import CHANNELS

    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A")
    for number in range(5):
        await publisher.broadcast(number)
    # What a subscriber does upon the graph server's word that the publisher is gone.
    await CHANNELS.unregister(publisher.id, subscriber.id, context.graph_address)
    del subscriber._channels[publisher.id]
    publisher.close()
    assert [await asyncio.wait_for(subscriber.recv(), 20) for _ in range(5)] == list(range(5))
    with pytest.raises(PublisherClosed):
        await asyncio.wait_for(subscriber.recv(), 20)


@scenario
async def test_cancelled_receives_lose_nothing(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A", num_buffers=64)

    async def send() -> None:
        for number in range(500):
            await publisher.broadcast(number)
            await asyncio.sleep(0.0005)

    sending = asyncio.create_task(send())
    found = []
    while len(found) < 500:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.0007):
                found.append(await subscriber.recv())
    await sending
    assert found == list(range(500))


@scenario
async def test_many_tasks_may_broadcast(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A", num_buffers=3)

    async def send(name: int) -> None:
        for number in range(50):
            await publisher.broadcast((name, number))

    sending = [asyncio.create_task(send(name)) for name in range(8)]
    found = [await asyncio.wait_for(subscriber.recv(), 20) for _ in range(400)]
    await asyncio.gather(*sending)
    for name in range(8):
        assert [number for of, number in found if of == name] == list(range(50))


@scenario
async def test_a_flood_leaves_turns_to_other_tasks(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A")
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def receive() -> None:
        for _ in range(2000):
            await subscriber.recv()

    taking, receiving = asyncio.create_task(take_turns()), asyncio.create_task(receive())
    for number in range(2000):
        await publisher.broadcast(number)
    await receiving
    taking.cancel()
    assert turns > 20


@scenario
async def test_a_publisher_without_memory_waits_for_it(context: Any) -> None:
    """Its subscriber keeps what it received, and lets go of it only later."""
    os.environ["BYREF_EZMSG_MAX_MEMORY"] = str(8 << 20)
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A")
    receiving = [subscriber.recv_zero_copy() for _ in range(6)]
    for number in range(6):
        await publisher.broadcast(np.full(1 << 17, number))
    kept = [await one.__aenter__() for one in receiving]
    sending = asyncio.create_task(publisher.broadcast(np.full(1 << 18, 6)))
    assert await is_waiting(sending)
    assert [int(array[-1]) for array in kept] == list(range(6))
    kept.clear()
    for one in receiving:
        await one.__aexit__(None, None, None)
    receiving.clear()
    await asyncio.wait_for(sending, 20)
    assert (await subscriber.recv() == 6).all()


@scenario
async def test_one_that_cannot_be_unpickled_does_not_stop_the_others(context: Any) -> None:
    subscriber = await context.subscriber("A")
    publisher = await context.publisher("A", num_buffers=1)
    await publisher.broadcast(Fragile())
    with pytest.raises(RuntimeError, match="not here"):
        await subscriber.recv()
    await asyncio.wait_for(publisher.broadcast("next"), 20)
    assert await subscriber.recv() == "next"


class Fragile:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise RuntimeError("not here")


@scenario
async def test_a_subscriber_of_another_event_loop_is_waited_for(context: Any) -> None:
    publisher = await context.publisher("A", num_buffers=2)
    received, go_on, over = threading.Event(), threading.Event(), threading.Event()

    async def receive() -> None:
        import ezmsg.core as ez

        async with ez.GraphContext(context.graph_address, auto_start=False) as own:
            subscriber = await own.subscriber("A")
            received.set()
            go_on.wait(60)
            for number in range(3):
                assert await subscriber.recv() == number
            over.set()

    receiving = asyncio.create_task(asyncio.to_thread(asyncio.run, receive()))
    await asyncio.to_thread(received.wait, 60)
    await publisher.broadcast(0)
    await publisher.broadcast(1)
    third = asyncio.create_task(publisher.broadcast(2))
    assert await is_waiting(third)
    go_on.set()
    await asyncio.wait_for(third, 20)
    await asyncio.wait_for(publisher.sync(), 20)
    await receiving
    assert over.is_set()


@scenario
async def test_a_synchronous_program_is_served(context: Any) -> None:
    import ezmsg.core as ez

    def use() -> list[Any]:
        found: list[Any] = []
        with ez.sync.init(tuple(context.graph_address), auto_start=False) as sync:
            sync.create_subscription("A", callback=found.append)
            lent = sync.create_subscription("A")
            publisher = sync.create_publisher("A")
            for number in range(3):
                publisher.publish(np.full(40_000, number))
                with lent.recv_zero_copy() as message:
                    assert (message == number).all()
            while len(found) < 3:
                sync.spin_once(timeout=1)
        return [int(array[0]) for array in found]

    assert await asyncio.to_thread(use) == [0, 1, 2]


# ---- peers that byref does not reach ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", ["sender", "receiver"])
def test_a_peer_without_the_adapter_is_served_by_ezmsg_itself(graph: Graph, plain: str) -> None:
    receiver = graph.start("receive_growing", steps=10, adapter=plain != "receiver")
    adapted = graph.start("receive_growing", steps=10)
    assert receiver.hear() == "ready"
    assert adapted.hear() == "ready"
    # In memory of ezmsg's own, messages that grow are lost.
    graph.start("grow", steps=10, adapter=plain != "sender", buf_size=1 << 20)
    assert receiver.hear() == [list(range(50)), True]
    assert adapted.hear() == [list(range(50)), True]


def test_a_peer_with_another_rendezvous_directory_is_served_by_tcp(
    graph: Graph, rendezvous: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        monkeypatch.setenv("BYREF_DIR", elsewhere)
        receiver = graph.start("receive_growing", steps=10)
        assert receiver.hear() == "ready"
        monkeypatch.setenv("BYREF_DIR", str(rendezvous))
        graph.start("grow", steps=10)
        assert receiver.hear() == [list(range(50)), True]
        eventually(lambda: "messages come by TCP" in receiver.output(), "a word about it")
        receiver.finish()


@scenario
async def test_a_topic_of_another_host_is_refused_at_once(context: Any) -> None:
    from byref.integrations.ezmsg._receiver import GraphService
    from ezmsg.core.netprotocol import Address

    service = GraphService(Address(*context.graph_address))
    with pytest.raises(ValueError, match="another host"):
        await asyncio.wait_for(service.attach_shm("byref.ezmsg/another-boot/0"), 1)


# ---- putting it in place ---------------------------------------------------------------------------------------------


def python(program: str) -> str:
    """What a program prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_byref_imports_nothing_of_it() -> None:
    program = "import sys, byref; print([name for name in sys.modules if 'ezmsg' in name or 'integrations' in name])"
    assert python(program) == "[]"
    program = "import sys, byref.integrations.ezmsg; print('ezmsg' in sys.modules, 'ezmsg.core' in sys.modules)"
    assert python(program) == "False False"


def test_install_twice_is_as_once_and_keeps_signatures() -> None:
    program = """
import inspect, json
from ezmsg.core import Publisher, Subscriber
before = [str(inspect.signature(f)) for f in (Publisher.create, Publisher.broadcast, Subscriber.recv)]
from byref.integrations.ezmsg import install
install()
once = Publisher.broadcast, Subscriber.recv, Publisher.create.__func__
install()
twice = Publisher.broadcast, Subscriber.recv, Publisher.create.__func__
after = [str(inspect.signature(f)) for f in (Publisher.create, Publisher.broadcast, Subscriber.recv)]
print(json.dumps([before == after, once == twice, Publisher.broadcast.__module__]))
"""
    assert json.loads(python(program)) == [True, True, "ezmsg.core.pubclient"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "metadata.version = lambda name: '3.8.2'",
            "works with ezmsg from 3.9 on and below 4.0, but 3.8.2 is installed",
        ),
        ("metadata.version = lambda name: '4.1'", "but 4.1 is installed"),
        ("ezmsg.core.pubclient.Publisher.broadcast = lambda self: None", "broadcast has other parameters"),
        ("del ezmsg.core.messagechannel.Channel.register_client", "it has no messagechannel.Channel.register_client"),
    ],
)
def test_a_version_that_does_not_fit_is_refused_and_left_alone(change: str, words: str) -> None:
    program = f"""
from importlib import metadata
import ezmsg.core
{change}
before = ezmsg.core.Subscriber.recv
import byref.integrations.ezmsg
try:
    byref.integrations.ezmsg.install()
except ImportError as problem:
    print(problem)
assert ezmsg.core.Subscriber.recv is before
"""
    assert words in python(program)


def test_without_ezmsg_the_error_says_what_to_do() -> None:
    program = """
import sys
from importlib import metadata
def version(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = version
import byref.integrations.ezmsg
try:
    byref.integrations.ezmsg.install()
except ImportError as problem:
    print(problem)
"""
    assert "pip install 'ezmsg>=3.9,<4'" in python(program)

"""What event queues tell: to their process, to others, and to the log while a callback hangs."""

import ctypes
import functools
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import pytest

from tests.conftest import Endpoints
from tests.processes import Child, Line, eventually

Spawn = Callable[..., Child]


def monitor(name: str) -> dict[str, Any]:
    """The only queue of that name. A process that the machine lets wait may answer too late: it is asked again."""
    found: list[Any] = []

    def is_found() -> bool:
        found[:] = [one for one in byref.monitors() if one["name"] == name]
        return bool(found)

    eventually(is_found, "it answers")
    assert len(found) == 1, found
    return found[0]


def shown(*names: str) -> None:
    """These queues are shown, soon."""
    eventually(lambda: [one["name"] for one in byref.monitors()] == list(names), f"{names} are shown")


def receiver_of(stats: dict[str, Any], topic: str) -> dict[str, Any]:
    """The only receiver of that topic."""
    found = [one for one in stats["receivers"] if one["topic"] == topic]
    assert len(found) == 1, found
    return found[0]


def hang(line: Line, options: dict[str, Any]) -> None:
    """Has a queue whose callbacks hang when they are told to; reports each of them."""

    def slow(msg: byref.Message) -> None:
        if bytes(msg) == b"hang":
            line.tell("hangs")
            line.hear(90)
        elif bytes(msg) == b"hang with the interpreter":
            line.tell("hangs")
            ctypes.PyDLL(None).usleep(900_000)  # Unlike CDLL it keeps the GIL.

    def quick(_msg: byref.Message) -> None:
        pass

    with byref.EventQueue(name="hanging", **options) as queue:
        queue.subscribe("slow/topic", slow)
        queue.subscribe("quick/topic", quick, name="the quick one")
        line.tell(os.getpid())
        queue.run()


def test_a_queue_seen_from_another_process(spawn: Spawn, endpoints: Endpoints) -> None:
    child = spawn(hang, {})
    pid = child.hear()
    slow, quick = endpoints.publisher("slow/topic"), endpoints.publisher("quick/topic")
    slow.wait_for_subscribers(timeout=20)
    quick.wait_for_subscribers(timeout=20)
    for _ in range(3):
        quick.send(b"")
    slow.send(b"fine")
    eventually(lambda: monitor("hanging")["callbacks"] == 4, "all are counted")
    seen = monitor("hanging")
    assert (seen["pid"], seen["receiver_count"], seen["running"]) == (pid, 2, None)
    assert (seen["waiting"], seen["oldest_age"], seen["lost"]) == (0, None, 0)
    one = receiver_of(seen, "quick/topic")
    assert (one["name"], one["callbacks"]) == ("the quick one", 3)
    assert 0 < one["longest_callback"] <= one["callback_time"] <= seen["callback_time"]

    slow.send(b"hang", timestamp_ns=time.time_ns() - 10**12)
    assert child.hear() == "hangs"
    slow.send(b"waits", timestamp_ns=time.time_ns() - 10**11)
    for _ in range(5):
        quick.send(b"")
    seen = monitor("hanging")
    assert seen["running"]["topic"] == "slow/topic"
    assert "hang.<locals>.slow" in seen["running"]["name"]
    assert seen["waiting"] == 6
    assert 100 <= seen["oldest_age"] < 900, "what runs waits no more"
    assert receiver_of(seen, "slow/topic")["waiting"] == 1
    assert receiver_of(seen, "slow/topic")["callbacks"] == 1, "what runs is not over"
    assert receiver_of(seen, "quick/topic")["waiting"] == 5
    before = seen["running"]["time"]
    eventually(lambda: monitor("hanging")["running"]["time"] > before + 0.05, "time goes on")
    child.tell()
    eventually(lambda: monitor("hanging")["waiting"] == 0, "it goes on")
    seen = monitor("hanging")
    assert seen["running"] is None
    assert seen["longest_callback"] == receiver_of(seen, "slow/topic")["longest_callback"] > before


def test_death_and_silence(spawn: Spawn, rendezvous: Path) -> None:
    """A dead queue's socket is cleared away; a stopped process, or a stranger's socket, is left out."""
    child = spawn(hang, {})
    child.hear()
    sockets = list(rendezvous.glob("queue-*"))
    assert len(sockets) == 1
    with byref.EventQueue(name="mine"), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        shown("hanging", "mine")
        child.signal(signal.SIGSTOP)
        silent.bind(str(rendezvous / ("queue-" + "0" * 32)))
        silent.listen()
        shown("mine")
        child.signal(signal.SIGCONT)
        shown("hanging", "mine")
        child.kill()
        shown("mine")
        assert not sockets[0].exists()
    assert byref.monitors() == []
    assert list(rendezvous.iterdir()) == [], "the stranger's, too"


def test_what_strangers_answer(rendezvous: Path) -> None:
    """Garbage, no descriptor, or one that is no sealed memory: left out."""
    answers: list[tuple[bytes, str]] = [(b"", ""), (b"garbage", ""), (b"garbage", "/proc/self/exe"), (b"x" * 9000, "")]
    for number, (packet, passed) in enumerate(answers):
        path = rendezvous / f"queue-{number:032x}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen()

            def answer(listener: socket.socket = listener, packet: bytes = packet, passed: str = passed) -> None:
                end, _ = listener.accept()
                with end:
                    if passed:
                        fd = os.open(passed, os.O_RDONLY)
                        socket.send_fds(end, [packet], [fd])
                        os.close(fd)
                    else:
                        end.send(packet)

            stranger = threading.Thread(target=answer)
            stranger.start()
            assert byref.monitors() == []
            stranger.join()
        path.unlink()


def test_only_named_queues_are_shown(rendezvous: Path) -> None:
    with byref.EventQueue() as unnamed, byref.EventQueue(name="naïve ☂") as named:
        assert unnamed.name is None
        assert named.name == "naïve ☂"
        shown("naïve ☂")
        assert unnamed.stats()["name"] is None
        assert unnamed.stats()["pid"] == os.getpid()
    assert list(rendezvous.iterdir()) == []


def test_publishers_ignore_the_sockets_of_queues(rendezvous: Path, endpoints: Endpoints) -> None:
    with byref.EventQueue(name="bystander"):
        pub, sub = endpoints.pair()
        pub.send(b"x")
        assert bytes(sub.recv(timeout=20)) == b"x"
        assert len(sub.publishers) == 1


def test_many_receivers(endpoints: Endpoints) -> None:
    """The table has 256 places: the rest counts, but is not listed elsewhere. Long texts are cut."""
    topic = "t/" + "é" * 200
    got: list[str] = []
    with byref.EventQueue(name="large") as queue:
        receivers = [
            queue.subscribe(topic, functools.partial(lambda name, _: got.append(name), str(n))) for n in range(260)
        ]
        named = queue.subscribe(topic, print, name="last")
        endpoints.publisher(topic).wait_for_subscribers(261, timeout=60)
        seen = monitor("large")
        assert (seen["receiver_count"], len(seen["receivers"])) == (261, 256)
        assert all(one["topic"] == topic[:129] for one in seen["receivers"]), "cut between two characters"
        assert len(queue.stats()["receivers"]) == 261
        assert queue.stats()["receivers"][260] | {"name": "last", "topic": topic} == queue.stats()["receivers"][260]
        for receiver in receivers[:10]:
            receiver.close()
        named.close()
        seen = monitor("large")
        assert (seen["receiver_count"], len(seen["receivers"])) == (250, 246)
        del receiver, receivers[:10]
        queue.subscribe("reused", print, name="new")
        seen = monitor("large")
        assert (seen["receiver_count"], len(seen["receivers"])) == (251, 247)
        one = receiver_of(seen, "reused")
        assert (one["name"], one["callbacks"]) == ("new", 0)


def test_numbers_of_closed_receivers_stay(endpoints: Endpoints) -> None:
    with byref.EventQueue(name="q") as queue:
        receiver = queue.subscribe("t", lambda _: None)
        pub = endpoints.publisher()
        pub.wait_for_subscribers(timeout=20)
        for _ in range(5):
            pub.send(b"")
        while queue.stats()["callbacks"] < 5:
            queue.dispatch(1)
        receiver.close()
        queue.subscribe("t", print)
        assert receiver.stats()["callbacks"] == receiver.stats()["received"] == 5
        assert receiver_of(queue.stats(), "t")["callbacks"] == 0
        assert queue.stats()["callbacks"] == 5


def logged(child: Child, pattern: str) -> list[str]:
    """The lines of a child's log that match."""
    return [line for line in child.output().splitlines() if re.search(pattern, line)]


def test_a_callback_is_reported_while_it_hangs(spawn: Spawn, endpoints: Endpoints) -> None:
    child = spawn(hang, {"slow_callback": 0.1})
    child.hear()
    pub = endpoints.publisher("slow/topic")
    pub.wait_for_subscribers(timeout=20)
    for round_ in (1, 2):
        pub.send(b"hang")
        pub.send(b"waits")
        assert child.hear() == "hangs"
        hung = "event queue 'hanging'.*receiver 'hang.*slow' of topic 'slow/topic' still runs after"
        eventually(lambda: len(logged(child, hung)) == round_, "it is reported")  # noqa: B023
        assert "slow_callback=100ms" in logged(child, hung)[-1]
        assert "1 messages wait" in logged(child, hung)[-1]
        time.sleep(0.3)
        assert len(logged(child, hung)) == round_, "once"
        child.tell()
        eventually(lambda: len(logged(child, "took .* for a callback")) == round_, "and its time when it is over")  # noqa: B023


def test_a_callback_that_keeps_the_interpreter_is_reported(spawn: Spawn, endpoints: Endpoints) -> None:
    child = spawn(hang, {"slow_callback": 0.05})
    child.hear()
    pub = endpoints.publisher("slow/topic")
    pub.wait_for_subscribers(timeout=20)
    pub.send(b"hang with the interpreter")
    assert child.hear() == "hangs"
    eventually(lambda: bool(logged(child, "took .* for a callback")), "it is over")
    assert logged(child, "still runs after"), "which was written while it ran"


def test_thresholds_of_what_waits(spawn: Spawn, endpoints: Endpoints) -> None:
    child = spawn(hang, {"backlog": 5, "max_age": 60.0})
    child.hear()
    slow, quick = endpoints.publisher("slow/topic"), endpoints.publisher("quick/topic")
    slow.wait_for_subscribers(timeout=20)
    quick.wait_for_subscribers(timeout=20)
    for round_ in (1, 2):
        slow.send(b"hang")
        assert child.hear() == "hangs"
        slow.send(b"waits")
        for _ in range(7):
            quick.send(b"")
        pattern = "8 messages wait .backlog=5., 7 of them for receiver 'the quick one' of topic 'quick/topic'"
        eventually(lambda: len(logged(child, pattern)) == round_, "the backlog is reported")  # noqa: B023
        assert not logged(child, "max_age") or round_ == 2
        slow.send(b"old", timestamp_ns=time.time_ns() - 100 * 10**9)
        child.tell()
        eventually(lambda: monitor("hanging")["waiting"] == 0, "it goes on")
        slow.send(b"hang")
        assert child.hear() == "hangs"
        slow.send(b"old", timestamp_ns=time.time_ns() - 100 * 10**9)
        pattern = "a message for receiver '.*slow' of topic 'slow/topic' waits since 10.*max_age=60s"
        eventually(lambda: len(logged(child, pattern)) == round_, "the age is reported")  # noqa: B023
        child.tell()
        eventually(lambda: monitor("hanging")["waiting"] == 0, "it goes on")
        time.sleep(0.6)  # The service thread sees that all is well.


def test_monitors_while_threads_subscribe_and_close(endpoints: Endpoints) -> None:
    """What is read at any moment is a receiver that was there, with its own text."""
    over = threading.Event()
    with byref.EventQueue(name="busy") as queue:

        def change() -> None:
            number = 0
            while not over.is_set():
                number += 1
                with queue.subscribe(f"topic/{number % 7}", print, name=f"receiver of topic/{number % 7}"):
                    pass

        changing = threading.Thread(target=change)
        changing.start()
        seen = 0
        for _ in range(200):
            for one in monitor("busy")["receivers"]:
                assert one["name"] == f"receiver of {one['topic']}"
                seen += 1
        over.set()
        changing.join()
        assert monitor("busy")["receivers"] == []


@pytest.mark.parametrize("where", ["process", "other process"])
def test_reading_does_not_disturb(where: str, endpoints: Endpoints, spawn: Spawn) -> None:
    """Any thread may read while messages come."""
    count = 0

    def receive(_: byref.Message) -> None:
        nonlocal count
        count += 1

    with byref.EventQueue(name="read") as queue:
        queue.subscribe("t", receive)
        pub = endpoints.publisher()
        pub.wait_for_subscribers(timeout=20)
        thread = queue.start()
        read: Callable[[], dict[str, Any]] = queue.stats if where == "process" else functools.partial(monitor, "read")
        last = 0
        for number in range(20_000):
            pub.send(b"")
            if number % 200 == 0:
                now = read()["callbacks"]
                assert now >= last
                last = now
        eventually(lambda: count == 20_000 == read()["callbacks"], "all are counted")
        queue.stop()
        thread.join(20)

"""A subscriber to a pattern follows every publisher whose topic matches, and no other."""

import contextlib
import os
import resource
import selectors
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import pytest

from tests.conftest import Endpoints
from tests.processes import Child, Line, descriptors, eventually, settled
from tests.strangers import (
    CLOSE,
    FIRST,
    GREETING,
    MAGIC,
    NOT_THIS_TOPIC,
    OPEN,
    SAY,
    SEALED,
    Channel,
    accept_process,
    accept_subscriber,
    fake_publisher,
    head,
    memfd,
    welcome,
)  # fmt: skip

Spawn = Callable[..., Child]


def publish(line: Line, topics: list[str], options: dict[str, Any], before: int = 0) -> None:
    """Sends `before` messages on each topic, then as many as it hears; 0 asks who subscribes, -1 ends it."""
    with contextlib.ExitStack() as stack:
        pubs = [stack.enter_context(byref.Publisher(topic, **options)) for topic in topics]

        def send(count: int) -> None:
            for pub in pubs:
                for _ in range(count):
                    pub.send(f"{pub.topic} {os.getpid()}".encode())

        send(before)
        line.tell("ready")
        while (count := line.hear(90)) >= 0:
            send(count)
            line.tell([len(pub.subscribers) for pub in pubs])


def start(spawn: Spawn, *topics: str, before: int = 0, **options: Any) -> Child:
    """A process that publishes on these topics, when it is ready."""
    child = spawn(publish, topics, options, before)
    assert child.hear() == "ready"
    return child


def say(child: Child, count: int) -> Any:
    """Have it send so many on each topic; gives how many subscribe to each."""
    child.tell(count)
    return child.hear()


def take(sub: byref.Subscriber) -> tuple[str, int, int]:
    """The next message's topic, process and sequence number. Everything that names its topic names the same."""
    msg = sub.recv(timeout=30)
    topic, pid = bytes(msg).decode().split()
    assert msg.topic == msg.publisher.topic == topic
    assert msg.publisher.pid == int(pid)
    assert repr(topic)[1:-1] in repr(msg)
    return topic, int(pid), msg.sequence


# ---- what matches ----

TOPICS = ["camera", "camera/front", "camera/front/left", "camera/back", "front", "ticks/front", "ticks/ü/front"]
MATCHES = {
    "camera": {"camera"},
    "camera/front": {"camera/front"},
    "*": {"camera", "front"},
    "camera/*": {"camera/front", "camera/back"},
    "*/front": {"camera/front", "ticks/front"},
    "*/*/left": {"camera/front/left"},
    "ticks/*/front": {"ticks/ü/front"},
    "**": set(TOPICS),
    "**/**": set(TOPICS),
    "**/*": set(TOPICS),
    "*/**": set(TOPICS),
    "camera/**": {"camera", "camera/front", "camera/front/left", "camera/back"},
    "camera/**/*": {"camera/front", "camera/front/left", "camera/back"},
    "camera/**/left": {"camera/front/left"},
    "camera/front/**/left": {"camera/front/left"},
    "**/front": {"camera/front", "front", "ticks/front", "ticks/ü/front"},
    "**/front/**": {"camera/front", "camera/front/left", "front", "ticks/front", "ticks/ü/front"},
    "*/*/**": set(TOPICS) - {"camera", "front"},
    "nothing/**": set(),
    "cam/*": set(),
}


def test_every_pattern_gets_what_it_matches(spawn: Spawn, endpoints: Endpoints) -> None:
    child = start(spawn, *TOPICS, before=3, history=3)
    subs = {pattern: endpoints.subscriber(pattern, history=2) for pattern in MATCHES}
    for pattern, topics in MATCHES.items():
        sub = subs[pattern]
        sub.wait_for_publishers(len(topics), timeout=30)
        assert sub.topic == pattern
        assert repr(sub) == f'<byref.Subscriber to "{pattern}">'
        got = Counter(take(sub) for _ in range(2 * len(topics)))
        assert got == Counter((topic, child.pid, number) for topic in topics for number in (1, 2)), pattern
    wanted = [sum(topic in topics for topics in MATCHES.values()) for topic in TOPICS]
    eventually(lambda: say(child, 0) == wanted, "each publisher has the subscribers whose patterns match, no other")
    say(child, 1)
    for pattern, topics in MATCHES.items():
        assert Counter(take(subs[pattern]) for _ in topics) == Counter((topic, child.pid, 3) for topic in topics)
        assert subs[pattern].try_recv() is None
        assert {publisher.topic for publisher in subs[pattern].publishers} == topics


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "empty"),
        ("a/", "empty level"),
        ("/**", "empty level"),
        ("**//b", "empty level"),
        ("a*", "whole level"),
        ("a/*b/c", "whole level"),
        ("***", "whole level"),
        ("a/$*", "whole level"),
        ("a/b$*c", "whole level"),
        ("*/\0", "NUL"),
        ("*/" * 512 + "*", "1024"),
    ],
)
def test_wrong_patterns(pattern: str, reason: str) -> None:
    with pytest.raises(byref.InvalidTopic, match=reason):
        byref.Subscriber(pattern)


@pytest.mark.parametrize("pattern", ["*", "**", "a/*", "**/b", "a*", "a/$*"])
def test_a_publisher_names_one_topic(pattern: str, rendezvous: Path) -> None:
    with pytest.raises(byref.InvalidTopic, match="publisher names one topic"):
        byref.Publisher(pattern)
    assert list(rendezvous.iterdir()) == []


def test_other_characters_have_no_meaning(endpoints: Endpoints) -> None:
    topics = ["@a/$x", "?/a#", "[ab]/{c}", ".+/x"]
    sub = endpoints.subscriber("*/*")
    single = [endpoints.subscriber(topic) for topic in topics]
    pubs = [endpoints.publisher(topic) for topic in topics]
    sub.wait_for_publishers(4, timeout=30)
    for pub, one in zip(pubs, single, strict=True):
        one.wait_for_publishers(timeout=30)
        pub.send(b"x")
        assert sub.recv(timeout=30).topic == one.recv(timeout=30).topic == pub.topic


def test_errors_name_the_pattern(endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("camera/*")
    with pytest.raises(byref.Timeout, match=r"'camera/\*'.*no publisher is connected"):
        sub.recv(timeout=0)
    sub.close()
    with pytest.raises(byref.Closed, match=r"'camera/\*'"):
        sub.recv()


# ---- coming and going ----


def test_publishers_come_and_go(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("line/*")
    for topic, end in [
        ("line/a", Child.kill),
        ("line/b", Child.finish),
        ("line/a", Child.kill),
        ("line/c", Child.kill),
    ]:
        child, other = start(spawn, topic), start(spawn, "other")
        sub.wait_for_publishers(timeout=30)
        assert say(child, 5) == [1]
        assert say(other, 5) == [0]
        if end == Child.finish:
            child.tell(-1)
        end(child)  # What was sent before still comes.
        assert [take(sub) for _ in range(5)] == [(topic, child.pid, number) for number in range(5)]
        other.kill()
        eventually(lambda: sub.try_recv() is None and not sub.publishers, "the publisher is gone")
    together = [start(spawn, f"line/{number}") for number in range(3)]
    sub.wait_for_publishers(3, timeout=30)
    for child in together:
        say(child, 1)
    assert {take(sub)[1] for _ in together} == {child.pid for child in together}


def test_history_of_each_publisher_for_a_late_subscriber(spawn: Spawn, endpoints: Endpoints) -> None:
    none, some = start(spawn, "log/none", before=50), start(spawn, "log/some", before=50, history=5)
    many = start(spawn, "log/many", "other/many", before=50, history=100)
    sub = endpoints.subscriber("log/*", history=20)
    sub.wait_for_publishers(3, timeout=30)
    for child in (none, some, many):
        say(child, 1)
    got = Counter(take(sub) for _ in range(1 + 6 + 21))
    wanted = {("log/none", none.pid): 50, ("log/some", some.pid): 45, ("log/many", many.pid): 30}
    assert got == Counter((topic, pid, number) for (topic, pid), first in wanted.items() for number in range(first, 51))
    assert sub.try_recv() is None


# ---- policies, and who else is there ----


def test_policies(spawn: Spawn, endpoints: Endpoints) -> None:
    child = start(spawn, "p/1", "p/2")
    subs = {
        "block": endpoints.subscriber("p/*"),
        "exact": endpoints.subscriber("p/1"),
        "drop_oldest": endpoints.subscriber("**", policy="drop_oldest", depth=5),
        "latest": endpoints.subscriber("p/**", policy="latest"),
    }
    for name, sub in subs.items():
        sub.wait_for_publishers(1 if name == "exact" else 2, timeout=30)
    assert say(child, 100) == [4, 3]
    topics = ("p/1", "p/2")

    def wanted(first: int, *of: str) -> Counter[Any]:
        return Counter((topic, child.pid, number) for topic in of for number in range(first, 100))

    assert Counter(take(subs["exact"]) for _ in range(100)) == wanted(0, "p/1")
    assert Counter(take(subs["block"]) for _ in range(200)) == wanted(0, *topics)
    assert Counter(take(subs["drop_oldest"]) for _ in range(10)) == wanted(95, *topics)
    assert Counter(take(subs["latest"]) for _ in range(2)) == wanted(99, *topics)
    assert [sub.try_recv() for sub in subs.values()] == [None] * 4
    assert {name: sub.lost for name, sub in subs.items()} == {
        "block": 0,
        "exact": 0,
        "drop_oldest": 2 * 95,
        "latest": 2 * 99,
    }


def test_a_lossless_pattern_makes_publishers_wait(spawn: Spawn, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("fast/*", depth=100)
    children = [start(spawn, f"fast/{number}") for number in range(2)]
    sub.wait_for_publishers(2, timeout=30)
    for child in children:
        child.tell(20_000)
    expected: Counter[int] = Counter()
    for _ in range(2 * 20_000):
        _, pid, number = take(sub)
        assert number == expected[pid]
        expected[pid] += 1
    assert [child.hear() for child in children] == [[1], [1]]
    assert sub.lost == 0


def test_turns_are_fair_among_topics(spawn: Spawn, endpoints: Endpoints) -> None:
    child = start(spawn, "fair/a", "fair/b", "fair/c")
    sub = endpoints.subscriber("fair/*")
    sub.wait_for_publishers(3, timeout=30)
    say(child, 1000)
    turns = Counter(take(sub)[0] for _ in range(300))
    assert len(turns) == 3
    assert min(turns.values()) >= 80


# ---- many that do not match ----


def refuse(line: Line, directory: str, count: int) -> None:
    """Stands for `count` publishers of other topics; tells how many of them turned how many subscribers away."""
    told: Counter[bytes] = Counter()

    def hear(end: socket.socket) -> None:
        packet = end.recv(4096)
        if packet == GREETING:
            end.send(FIRST)
        elif packet[:1] == bytes([OPEN]):
            _, number = struct.unpack_from("<BI", packet)
            told[packet[6 : 6 + packet[5]]] += 1
            end.send(head(SAY, number) + FIRST + NOT_THIS_TOPIC)
            end.send(head(CLOSE, number))
        elif not packet:
            selector.unregister(end)
            end.close()

    with selectors.DefaultSelector() as selector:
        for number in range(count):
            listener = fake_publisher(Path(directory), f"other/{number}", number + 1)
            selector.register(listener, selectors.EVENT_READ, "listener")
        selector.register(line, selectors.EVENT_READ, "line")
        line.tell("ready")
        while True:
            for key, _ in selector.select():
                if key.data == "line":
                    line.hear()
                    line.tell([len(told), sum(told.values())])
                elif key.data == "listener":
                    end, _ = key.fileobj.accept()  # type: ignore[union-attr]
                    selector.register(end, selectors.EVENT_READ, "process")
                else:
                    with contextlib.suppress(ConnectionError):
                        hear(key.fileobj)  # type: ignore[arg-type]


def find_a_few(line: Line) -> None:
    """Finds three publishers among very many others, with fewer descriptors than there are others."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    os.environ["BYREF_RAISE_NOFILE"] = "0"

    def sockets() -> int:
        return sum(name.startswith("socket:") for name in descriptors().values())

    before = sockets()
    with byref.Subscriber("few/*") as sub:
        sub.wait_for_publishers(3, timeout=60)
        line.tell("found")
        assert line.hear(60) == "all were asked"
        eventually(lambda: sockets() == before + 2, "there is one for each process that publishes")
        assert not [name for name in descriptors().values() if "byref-lease" in name]
        line.tell(sorted(publisher.topic for publisher in sub.publishers))
        line.hear(60)
        line.tell([take(sub)[0] for _ in range(3)])
        assert settled(sockets) == before + 2


def test_three_among_a_thousand(spawn: Spawn, rendezvous: Path) -> None:
    others = spawn(refuse, str(rendezvous), 1000)
    assert others.hear() == "ready"
    late = start(spawn, "few/1", "fewer/1")
    sub = spawn(find_a_few)
    child = start(spawn, "few/2", "few/3", "few/x/y", "few")
    assert sub.hear(90) == "found"
    eventually(lambda: say(others, 0)[0] == 1000, "everybody was asked")
    sub.tell("all were asked")
    assert sub.hear() == ["few/1", "few/2", "few/3"]
    assert say(child, 1) == [1, 1, 0, 0]
    assert say(late, 1) == [1, 0]
    sub.tell()
    assert sorted(sub.hear()) == ["few/1", "few/2", "few/3"]
    sub.finish()
    assert say(others, 0) == [1000, 1000]  # Once each.


def test_a_publisher_keeps_nothing_of_those_it_turned_away(spawn: Spawn, endpoints: Endpoints) -> None:
    pub = endpoints.publisher("mine")
    open_before = len(descriptors())
    for _ in range(20):
        with byref.Subscriber("theirs/*"), byref.Subscriber("*/theirs"):
            pass
    assert pub.subscribers == []
    eventually(lambda: len(descriptors()) <= open_before, "all descriptors are closed")


def test_those_that_do_not_answer_hold_up_nobody(rendezvous: Path, endpoints: Endpoints) -> None:
    silent = [fake_publisher(rendezvous, f"silent/{number}", number + 1) for number in range(100)]
    sub = endpoints.subscriber("**")
    pub = endpoints.publisher("heard")
    pub.wait_for_subscribers(timeout=20)
    pub.send(b"hello")
    assert sub.recv(timeout=20).topic == "heard"
    sub.close()
    for listener in silent:
        with listener, accept_process(listener) as end:
            while end.recv(4096):  # Nor does a closed subscriber wait for them.
                pass


def test_a_full_backlog_is_tried_again(rendezvous: Path, endpoints: Endpoints) -> None:
    with fake_publisher(rendezvous, "busy/1") as listener:
        (name,) = os.listdir(rendezvous)
        crowd = []
        while True:
            crowd.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            crowd[-1].setblocking(False)
            try:
                crowd[-1].connect(str(rendezvous / name))
            except BlockingIOError:
                break
        sub = endpoints.subscriber("busy/*")
        pub = endpoints.publisher("busy/2")
        pub.wait_for_subscribers(timeout=20)
        for member in crowd:
            member.close()
        with accept_subscriber(listener) as end:
            take_in(end, "busy/1")
            sub.wait_for_publishers(2, timeout=20)


# ---- those that lie ----


def take_in(end: Channel, topic: str) -> None:
    """Welcomes a subscriber to a topic, with an empty ring."""
    end.send_with_descriptor(welcome(topic), memfd(1 << 20, SEALED))


NO_TOPICS = ["camera/*", "**", "camera/", "camera//front", "camera/\0", ""]
LIES = {
    "camera/front": ["camera/back", "camera", *NO_TOPICS],
    "camera/*": ["ticks/a", "camera", "camera/front/left", *NO_TOPICS],
    "**": NO_TOPICS,
}


@pytest.mark.parametrize(("topic", "lie"), [(topic, lie) for topic, lies in LIES.items() for lie in lies])
def test_a_publisher_that_answers_for_another_topic(
    topic: str, lie: str, rendezvous: Path, endpoints: Endpoints
) -> None:
    with fake_publisher(rendezvous, "camera/front") as listener:
        sub = endpoints.subscriber(topic)
        with accept_subscriber(listener) as end:
            take_in(end, lie)
            assert end.recv(4096) == b""  # It hung up,
        assert sub.publishers == []
        honest = fake_publisher(rendezvous, "camera/front", 7)
        with honest, accept_subscriber(honest) as end:  # which is not because of anything else.
            take_in(end, "camera/front")
            sub.wait_for_publishers(timeout=20)
            assert [publisher.topic for publisher in sub.publishers] == ["camera/front"]


def answer_as_version_99(listener: socket.socket, topic: bytes) -> None:
    """An answer in the words that all versions share."""
    with accept_process(listener) as end:
        end.sendall(struct.pack("<II", MAGIC, 99) + topic)
        while end.recv(4096):
            pass


def test_another_version_matters_only_on_topics_that_match(rendezvous: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber("camera/*")
    with fake_publisher(rendezvous, "ticks/a", 1) as other:
        answer_as_version_99(other, b"ticks/a")
    assert sub.try_recv() is None
    with fake_publisher(rendezvous, "camera/front", 2) as mine:
        answer_as_version_99(mine, b"camera/front")
    with pytest.raises(byref.VersionMismatch, match=r"'camera/front'.*99"):
        sub.recv(timeout=20)
    with fake_publisher(rendezvous, "camera/front", 3) as unclear:
        answer_as_version_99(unclear, b"\xff\0?")
    with pytest.raises(byref.VersionMismatch, match=r"'camera/\*'.*99"):
        sub.recv(timeout=20)
    pub = endpoints.publisher("camera/back")
    pub.wait_for_subscribers(timeout=20)
    pub.send(b"hello")
    assert sub.recv(timeout=20).topic == "camera/back"

"""Endpoints find each other in any order, whatever else is in the directory; stale sockets go, live ones stay."""

import array
import contextlib
import os
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import pytest

from tests.conftest import Endpoints
from tests.payloads import is_payload, payload
from tests.processes import Child, Line, count_of_descriptors, descriptors, eventually, maps
from tests.strangers import FIRST, MAGIC, VERSION, WELCOME, accept_process, accept_subscriber, fake_publisher, memfd

Spawn = Callable[..., Child]


def publish(line: Line, topic: str, subscribers: int = 1) -> None:
    """Announces itself, sends its process's number when so many subscribe, and waits."""
    with byref.Publisher(topic) as pub:
        line.tell("listening")
        pub.wait_for_subscribers(subscribers, timeout=60)
        pub.send(str(os.getpid()).encode())
        line.hear(90)


def subscribe(line: Line, topic: str, count: int) -> None:
    """Tells the first `count` messages."""
    with byref.Subscriber(topic) as sub:
        line.tell("watching")
        for _ in range(count):
            line.tell(int(bytes(sub.recv(timeout=60))))
        line.hear(90)


@pytest.mark.parametrize("order", ["publisher first", "subscriber first", "both at once"])
def test_the_order_of_start_does_not_matter(order: str, spawn: Spawn) -> None:
    if order == "subscriber first":
        sub = spawn(subscribe, "t", 1)
        assert sub.hear() == "watching"
    pub = spawn(publish, "t")
    if order == "publisher first":
        assert pub.hear() == "listening"
    if order != "subscriber first":
        sub = spawn(subscribe, "t", 1)
        assert sub.hear() == "watching"
    assert sub.hear() == pub.pid


def test_endpoints_come_and_go(spawn: Spawn, rendezvous: Path) -> None:
    sub = spawn(subscribe, "t", 6)
    assert sub.hear() == "watching"
    for end in (Child.kill, Child.finish, Child.kill):  # A restarted publisher is found again,
        pub = spawn(publish, "t")
        assert sub.hear() == pub.pid
        if end == Child.finish:
            pub.tell()
        end(pub)
    together = [spawn(publish, "t") for _ in range(3)]  # and several at once.
    assert {sub.hear() for _ in together} == {pub.pid for pub in together}


def test_the_directory_is_empty_after_close(endpoints: Endpoints, rendezvous: Path) -> None:
    for topic in ("a", "a", "b/c"):
        endpoints.publisher(topic)
        endpoints.subscriber(topic)
    assert len(os.listdir(rendezvous)) == 3
    endpoints.close()
    assert os.listdir(rendezvous) == []


def listening(rendezvous: Path) -> set[int]:
    """The sockets in the directory, whatever names they have."""
    return {entry.stat().st_ino for entry in rendezvous.iterdir()}


def test_a_process_listens_once(spawn: Spawn, rendezvous: Path) -> None:
    """Its publishers have a name each for one socket, in whatever order they come and go."""
    sub = spawn(subscribe, "b/*", 4)
    assert sub.hear() == "watching"
    before = count_of_descriptors()
    first, second = byref.Publisher("a"), byref.Publisher("b/1")
    between = len(descriptors())
    third = byref.Publisher("b/2")
    queue = byref.EventQueue(name="q")
    assert len(os.listdir(rendezvous)) == 4
    assert len(listening(rendezvous)) == 1
    assert [monitor["name"] for monitor in byref.monitors()] == ["q"]
    first.close()  # Its name was the first.
    fourth = byref.Publisher("b/3")
    assert len(listening(rendezvous)) == 1
    for pub in (second, third, fourth):
        pub.wait_for_subscribers(timeout=30)
        pub.send(b"1")
        assert sub.hear() == 1
    queue.close()
    del queue
    for pub in (second, third, fourth):
        pub.close()
    assert os.listdir(rendezvous) == []
    eventually(lambda: len(descriptors()) <= before, "the socket is closed")
    assert between > before
    again = byref.Publisher("b/4")
    again.wait_for_subscribers(timeout=30)
    again.send(b"4")
    assert sub.hear() == 4
    again.close()


def test_what_further_publishers_cost(rendezvous: Path, endpoints: Endpoints) -> None:
    """A descriptor each for the ring and for its payload memory; none for listening, or for a wait that never comes."""
    endpoints.publisher("t/0")
    before = count_of_descriptors()
    publishers = [endpoints.publisher(f"t/{number}") for number in range(1, 11)]
    assert count_of_descriptors() - before == 10
    for pub in publishers:
        pub.send(bytes(100_000))
    assert count_of_descriptors() - before == 20


@pytest.mark.parametrize("gone", ["most", "all"])
def test_names_that_others_removed_are_no_way_to_a_socket(gone: str, spawn: Spawn, rendezvous: Path) -> None:
    """A publisher is linked by what is left, or listens at a socket of its own. All are found."""
    publishers = [byref.Publisher(f"t/{number}") for number in range(10)]
    before = listening(rendezvous)
    for name in os.listdir(rendezvous)[gone == "most" :]:
        (rendezvous / name).unlink()
    publishers.append(byref.Publisher("t/10"))
    if gone == "most":
        assert listening(rendezvous) == before
    sub = spawn(subscribe, "t/*", len(publishers))
    assert sub.hear() == "watching"
    for number, pub in enumerate(publishers):
        pub.wait_for_subscribers(timeout=30)
        pub.send(str(number).encode())
        assert sub.hear() == number
    eventually(lambda: len(os.listdir(rendezvous)) == len(publishers), "each has a name")
    for pub in publishers:
        pub.close()
    assert os.listdir(rendezvous) == []


def test_a_name_that_leads_nowhere_in_its_process(rendezvous: Path, endpoints: Endpoints) -> None:
    """Somebody else's link to a socket: whoever asks by it is told that there is no such publisher."""
    pub = endpoints.publisher("other")
    (name,) = os.listdir(rendezvous)
    hashed = fake_publisher(rendezvous, "t", 1)
    (false,) = {*os.listdir(rendezvous)} - {name}
    hashed.close()
    (rendezvous / false).unlink()
    os.link(rendezvous / name, rendezvous / false)
    sub = endpoints.subscriber("t")
    with pytest.raises(byref.Timeout):
        sub.recv(timeout=0.5)
    assert pub.subscribers == []
    (rendezvous / false).unlink()


def test_endpoints_leave_no_descriptors(rendezvous: Path) -> None:
    def use(count: int) -> None:
        for _ in range(count):
            with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
                pub.wait_for_subscribers(timeout=20)
                pub.send(bytes(10_000))
                sub.recv(timeout=20)
                sub.fileno()

    use(1)
    before = sorted(descriptors().values())
    use(20)

    def kinds() -> list[str]:
        return sorted(name.partition("[")[0] if "[" in name else name for name in descriptors().values())

    eventually(lambda: len(kinds()) <= len(before), "all descriptors are closed")


def test_a_stale_socket_goes_and_a_new_publisher_is_found(spawn: Spawn, endpoints: Endpoints, rendezvous: Path) -> None:
    dead = spawn(publish, "t")
    assert dead.hear() == "listening"
    dead.kill()
    (stale,) = os.listdir(rendezvous)
    sub = endpoints.subscriber()
    eventually(lambda: stale not in os.listdir(rendezvous), "the stale socket is removed")
    alive = spawn(publish, "t")
    assert int(bytes(sub.recv(timeout=30))) == alive.pid


def listen_and_fork(line: Line) -> None:
    """Announces itself, and has a forked child that keeps its sockets."""
    pub = byref.Publisher("t")
    if not os.fork():
        line.hear(90)
        line.tell("still here")
        os._exit(0)
    line.tell("listening")
    line.hear(90)
    pub.close()


def test_a_stale_socket_goes_though_a_forked_child_keeps_it(
    spawn: Spawn, endpoints: Endpoints, rendezvous: Path
) -> None:
    parent = spawn(listen_and_fork)
    assert parent.hear() == "listening"
    parent.kill()
    (stale,) = os.listdir(rendezvous)
    sub = endpoints.subscriber()
    eventually(lambda: stale not in os.listdir(rendezvous), "the stale socket is removed")
    assert sub.publishers == []
    parent.tell()
    assert parent.hear() == "still here"


def test_a_live_socket_stays_though_its_publisher_answers_nobody(
    spawn: Spawn, endpoints: Endpoints, rendezvous: Path
) -> None:
    frozen = spawn(publish, "t", 2)
    assert frozen.hear() == "listening"
    frozen.signal(signal.SIGSTOP)
    (name,) = os.listdir(rendezvous)
    crowd = []
    while True:  # Fill its backlog.
        crowd.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        crowd[-1].setblocking(False)
        try:
            crowd[-1].connect(str(rendezvous / name))
        except BlockingIOError:
            break
    assert len(crowd) > 100
    sub = endpoints.subscriber()
    other = spawn(subscribe, "t", 0)  # A process that starts clears the directory, but not of this one.
    assert other.hear() == "watching"
    with pytest.raises(byref.Timeout):
        sub.recv(timeout=0.3)
    assert os.listdir(rendezvous) == [name]
    for member in crowd:
        member.close()
    frozen.signal(signal.SIGCONT)
    assert int(bytes(sub.recv(timeout=30))) == frozen.pid


# ---- the directory itself ----


def make_endpoints() -> list[Callable[[], object]]:
    """Both kinds."""
    return [lambda: byref.Publisher("t"), lambda: byref.Subscriber("t")]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777, 0o500])
def test_a_directory_of_the_wrong_mode(mode: int, rendezvous: Path) -> None:
    rendezvous.chmod(mode)
    for make in make_endpoints():
        with pytest.raises(byref.Error) as refused:
            make()
        text = str(refused.value)
        assert str(rendezvous) in text
        assert f"{mode:04o}" in text
        assert f"({os.getuid()})" in text
    assert os.listdir(rendezvous) == []
    rendezvous.chmod(0o700)


def test_a_directory_of_somebody_else(rendezvous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(rendezvous, 12345, 12345)
        foreign, owner = str(rendezvous), 12345
    else:
        foreign, owner = "/usr", 0
        monkeypatch.setenv("BYREF_DIR", foreign)
    for make in make_endpoints():
        with pytest.raises(byref.Error) as refused:
            make()
        text = str(refused.value)
        assert foreign in text
        assert f"user {owner}" in text or f"({owner})" in text
        assert f"({os.getuid()})" in text
        assert f"{os.stat(foreign).st_mode & 0o777:04o}" in text


def test_what_is_no_directory(rendezvous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rendezvous / "file"
    file.touch()
    for path in (file, file / "below", Path("/proc/byref")):
        monkeypatch.setenv("BYREF_DIR", str(path))
        for make in make_endpoints():
            with pytest.raises(byref.Error) as refused:
                make()
            assert str(path) in str(refused.value)


def test_a_missing_directory_is_made(rendezvous: Path, monkeypatch: pytest.MonkeyPatch, endpoints: Endpoints) -> None:
    path = rendezvous / "a" / "b"
    monkeypatch.setenv("BYREF_DIR", str(path))
    before = os.umask(0)
    pub, sub = endpoints.pair()
    os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o700
    pub.send(b"hello")
    assert bytes(sub.recv(timeout=30)) == b"hello"


def test_a_directory_deeper_than_a_socket_path(rendezvous: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawn) -> None:
    path = rendezvous.joinpath(*["x" * 50] * 5)
    path.mkdir(0o700, parents=True)
    assert len(str(path)) > 250
    monkeypatch.setenv("BYREF_DIR", str(path))
    pub, sub = spawn(publish, "t"), spawn(subscribe, "t", 1)
    assert sub.hear() == "watching"
    assert sub.hear() == pub.pid
    assert len(os.listdir(path)) == 1


def test_long_and_odd_topics(endpoints: Endpoints) -> None:
    topics = ["x" * 1024, "/".join("ab" * 100), "ü" * 512, "a b", ".", "..", "../../etc", "🎥/front"]
    pairs = [(endpoints.publisher(topic), endpoints.subscriber(topic)) for topic in topics]
    for number, (pub, _) in enumerate(pairs):
        pub.wait_for_subscribers(timeout=30)
        pub.send(bytes([number]))
    for number, (_, sub) in enumerate(pairs):
        msg = sub.recv(timeout=30)
        assert (bytes(msg), msg.topic) == (bytes([number]), topics[number])
        assert sub.try_recv() is None


@pytest.mark.parametrize("topic", ["a\nb", "a\0b", "\x1b[2J", "a/\x85"])
def test_control_characters_are_refused(topic: str) -> None:
    """They would forge lines of a log, and reach terminals."""
    for endpoint in (byref.Publisher, byref.Subscriber):
        with pytest.raises(byref.InvalidTopic, match="control character") as refused:
            endpoint(topic)
        assert str(refused.value).isprintable()


def test_endpoints_in_two_directories_do_not_meet(
    rendezvous: Path, monkeypatch: pytest.MonkeyPatch, endpoints: Endpoints
) -> None:
    pub = endpoints.publisher()
    monkeypatch.setenv("BYREF_DIR", str(rendezvous / "other"))
    sub, other = endpoints.subscriber(), endpoints.publisher()
    other.wait_for_subscribers(timeout=30)
    with pytest.raises(byref.Timeout):
        pub.wait_for_subscribers(timeout=0.1)
    assert len(sub.publishers) == 1


def test_other_files_in_the_directory_are_left_alone(rendezvous: Path, endpoints: Endpoints) -> None:
    name = "0123456789abcdef-" + "0" * 32  # As a publisher's, but a file.
    strangers = {
        "notes.txt",
        "tmp-notes",
        name,
        "af63dc4c8601ec8c-short",
        "directory",
        "link",
        b"\xff\xfe".decode(errors="surrogateescape"),
    }
    for stranger in strangers - {"directory", "link"}:
        (rendezvous / stranger).write_text("mine")
    (rendezvous / "directory").mkdir()
    (rendezvous / "link").symlink_to("/nowhere")
    pub, sub = endpoints.pair()
    pub.send(b"hello")
    assert bytes(sub.recv(timeout=30)) == b"hello"
    endpoints.close()
    assert strangers - {name} <= set(os.listdir(rendezvous))


# ---- strange peers ----


@pytest.fixture
def knock(rendezvous: Path) -> "Callable[[], socket.socket]":
    """Connects to the one publisher there is, as a stranger would."""

    def connect() -> socket.socket:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end.settimeout(30)
        (name,) = os.listdir(rendezvous)
        end.connect(str(rendezvous / name))
        return end

    return connect


def test_who_connects_and_says_nothing_blocks_nobody(knock: Callable[[], socket.socket], endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    silent = [knock() for _ in range(20)]
    sub = endpoints.subscriber()
    pub.wait_for_subscribers(timeout=30)
    pub.send(b"hello", timeout=30)
    assert bytes(sub.recv(timeout=30)) == b"hello"
    pub.flush(timeout=30)
    for end in silent:
        assert end.recv(1) == b"", "it is sent away after ten seconds"
        end.close()


def test_garbage_harms_nobody(knock: Callable[[], socket.socket], endpoints: Endpoints) -> None:
    pub = endpoints.publisher()
    hello = FIRST + b"\x01t" + b"\0" * 5
    packets = [
        b"\0",
        b"garbage",
        FIRST,
        hello,
        FIRST + b"\xff" * 100,
        FIRST + b"\xff" * 5000,
        struct.pack("<II", MAGIC, 99),
    ]
    files = [
        None,
        memfd(4096),
        memfd(4096, 0x1F),
        memfd(8 << 20),
        memfd(8 << 20, 0x7),
        os.open("/dev/null", os.O_RDWR),
        *os.pipe(),
    ]
    for packet in packets:
        for fd in files:
            with knock() as end:
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
                end.sendmsg([packet], control)
                with contextlib.suppress(BrokenPipeError):  # It may have hung up already.
                    end.sendall(b"more")
    for fd in files:
        if fd is not None:
            os.close(fd)
    sub = endpoints.subscriber()
    pub.wait_for_subscribers(timeout=30)
    eventually(lambda: len(pub.subscribers) == 1, "only the real one is taken in")
    pub.send(bytes(10_000), timeout=30)
    assert sub.recv(timeout=30).nbytes == 10_000


@pytest.mark.parametrize(
    "answer",
    [b"\0", b"garbage", FIRST + WELCOME + b"\xff" * 60, b"x" * 6000],
    ids=["one byte", "garbage", "half a welcome", "too long"],
)
def test_a_publisher_that_answers_nonsense(answer: bytes, rendezvous: Path, endpoints: Endpoints) -> None:
    with fake_publisher(rendezvous) as listener:
        sub = endpoints.subscriber()
        with accept_subscriber(listener) as end:
            end.send(answer)
            pub = endpoints.publisher()
            pub.wait_for_subscribers(timeout=30)
            pub.send(b"hello")
            assert bytes(sub.recv(timeout=30)) == b"hello"
            assert len(sub.publishers) == 1


def test_a_publisher_of_another_version(rendezvous: Path, endpoints: Endpoints) -> None:
    with fake_publisher(rendezvous) as listener:
        sub = endpoints.subscriber()
        with accept_process(listener) as end:
            end.sendall(struct.pack("<II", MAGIC, 99))
            with pytest.raises(byref.VersionMismatch, match="99"):
                sub.recv(timeout=20)
        pub = endpoints.publisher()
        pub.wait_for_subscribers(timeout=30)
        pub.send(b"hello")
        assert bytes(sub.recv(timeout=30)) == b"hello"


def test_a_subscriber_of_another_version_is_told_version_and_topic(
    knock: Callable[[], socket.socket], endpoints: Endpoints
) -> None:
    endpoints.publisher("t")
    with knock() as end:
        end.sendall(struct.pack("<II", MAGIC, 99) + b"whatever")
        assert end.recv(4096) == struct.pack("<II", MAGIC, VERSION) + b"t"


def pass_by(line: Line, count: int, messages: int, end: str) -> None:
    """Publishers that come, one after another, meet the subscriber, say something perhaps, and go."""
    line.hear()
    for number in range(count):
        if not os.fork():
            pub = byref.Publisher(f"a/{number}", max_memory=1 << 20)
            pub.wait_for_subscribers(timeout=30)
            for _ in range(messages):
                pub.send(payload(number, 5000))
            if end == "close":
                pub.close()
            os.kill(os.getpid(), signal.SIGKILL)
        os.wait()
    line.tell(count)


def footprint() -> tuple[int, int]:
    """Descriptors of this process, and mappings of publishers' memory."""
    return len(descriptors()), len([name for _, _, _, name in maps() if "memfd:byref" in name])


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize(
    ("policy", "messages"), [("block", 0), ("block", 3), ("latest", 0), ("latest", 3), ("drop_oldest", 0)]
)
@pytest.mark.parametrize("events", [False, True])
def test_publishers_that_came_and_went_cost_a_subscriber_that_does_not_receive_nothing(
    end: str, messages: int, policy: Any, events: bool, spawn: Spawn, endpoints: Endpoints
) -> None:
    """It is not looked at meanwhile. A lossless subscriber keeps what it has to read, and nothing else."""
    # A lossy subscriber keeps the last messages of the last publishers only: of 64 of them.
    count, kept = (100, 64) if policy == "latest" and messages else (40, 0)
    publishers = spawn(pass_by, count, messages, end)
    sub = endpoints.subscriber("a/*", policy=policy, events=events)
    with endpoints.publisher("a/first"):
        sub.wait_for_publishers(timeout=30)
    if events:
        assert [sub.recv(timeout=30).kind for _ in range(2)] == ["joined", "left"]
    eventually(lambda: not sub.publishers, "the first one is gone")
    before = footprint()
    publishers.tell()
    assert publishers.hear(90) == count
    publishers.finish()
    keeps = policy == "block" and messages
    if not keeps:

        def is_flat() -> bool:
            now = footprint()
            # What belongs to a few more may still be there. Each has a socket and its death, or three mappings.
            return now[0] <= before[0] + 4 + 3 * kept and now[1] <= before[1] + 4 + 3 * kept

        eventually(is_flat, f"{before} at first, and now {footprint()}", timeout=20)
    received: Counter[str] = Counter()
    told: Counter[str] = Counter()
    ends = 0
    while ends < 2:  # Once more after the last one is gone: that is noticed by asking for them, too.
        found = sub.try_recv()
        ends = 0 if found is not None or sub.publishers else ends + 1
        if isinstance(found, byref.Event):
            told[found.kind] += found.count if found.kind == "gap" else 1
        elif found is not None:
            number = int(found.topic.removeprefix("a/"))
            assert is_payload(found, number, 5000)
            received[found.topic] += 1
    if policy == "block":
        assert received == {f"a/{number}": messages for number in range(count) if messages}
    assert received.total() + sub.lost == count * messages, "what a lossy subscriber missed was counted"
    if events:
        assert told.pop("gap", 0) == sub.lost
        assert told == {"joined": count, "left" if end == "close" else "lost": count}
    del found
    eventually(lambda: footprint()[0] <= before[0] and footprint()[1] <= before[1], "nothing is left")

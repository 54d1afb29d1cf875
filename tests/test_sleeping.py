"""What a receiver without a message sleeps at, and that it wakes for whatever happens."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import resource
import select
import signal
import threading
import time
from collections.abc import Callable

import byref
import pytest

from tests.processes import Child, Line, eventually, state_of
from tests.test_steps import FAULTS, needs_faults

Spawn = Callable[..., Child]

FUTEX_WAITV = 449
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
FUTEX_CMP_REQUEUE = 4
# Where the wake word lies in the segment of a publisher's ring.
WAKE_WORD = 384
_LIBC = ctypes.CDLL(None, use_errno=True)

has_waitv = not (_LIBC.syscall(FUTEX_WAITV, None, 0, 0, None, 0) < 0 and ctypes.get_errno() == 38)
pytestmark = pytest.mark.skipif(not has_waitv, reason="this system has no futex_waitv (Linux 5.16)")


def sleeps_at_words(pid: int, thread: int | None = None) -> bool:
    """Whether a thread (the main one) is in the system call that waits for words of memory."""
    with open(f"/proc/{pid}/task/{thread or pid}/syscall") as file:
        return file.read().split()[0] == str(FUTEX_WAITV)


def receive(line: Line, count: int, is_polled: bool = False) -> None:
    """Receives so many messages, and tells each."""
    with byref.Subscriber("t", events=True) as sub:
        if is_polled:
            sub.fileno()
        while count:
            item = sub.recv()
            if not isinstance(item, byref.Event):
                count -= 1
                line.tell(bytes(item).decode())
        line.tell("done")


def test_sockets_are_only_for_who_polls(spawn: Spawn) -> None:
    with byref.Publisher("t") as pub:
        plain, polled = spawn(receive, 2), spawn(receive, 2, True)
        pub.wait_for_subscribers(2, timeout=60)
        eventually(lambda: sleeps_at_words(plain.pid), "it sleeps at the publisher's word")
        for text in ("one", "two"):
            time.sleep(0.1)
            assert not sleeps_at_words(polled.pid)
            pub.send(text.encode())
            assert [plain.hear(), polled.hear()] == [text, text]
        for child in (plain, polled):
            assert child.hear() == "done"
            child.finish()


def follow(line: Line, kind: str) -> None:
    """Sleeps, and tells what woke it."""
    with byref.Subscriber("t/*", events=True) as sub:
        sub.wait_for_publishers(timeout=60)
        closing = threading.Timer(0.5, sub.close)
        while True:
            try:
                item = sub.recv(timeout=1.5 if kind == "timeout" else None)
            except (byref.Closed, byref.Timeout, KeyboardInterrupt, byref.Error) as error:
                line.tell(type(error).__name__)
                return
            line.tell(f"{item.topic} {item.kind}" if isinstance(item, byref.Event) else item.topic)
            if kind == "close":
                closing.start()


def publish(line: Line, topic: str) -> None:
    """Publishes, and does as it is told."""
    with byref.Publisher(topic) as pub:
        pub.wait_for_subscribers(timeout=60)
        line.tell("ready")
        while (what := line.hear()) != "close":
            if what == "evict":
                pub.evict(pub.subscribers[0])
            else:
                pub.send(bytes(what))
    line.tell("closed")


@pytest.mark.parametrize("kind", ["kill", "closed", "newcomer", "large", "evict", "close", "timeout", "signal"])
def test_a_sleeper_wakes_for(kind: str, spawn: Spawn) -> None:
    publisher = spawn(publish, "t/a")
    sub = spawn(follow, kind)
    assert publisher.hear() == "ready"
    assert sub.hear() == "t/a joined"
    if kind not in ("close", "timeout"):
        eventually(lambda: sleeps_at_words(sub.pid), "it sleeps at words")
    match kind:
        case "kill":
            publisher.kill()
            assert sub.hear() == "t/a lost"
        case "closed":
            publisher.tell("close")
            assert sub.hear() == "t/a left"
        case "newcomer":
            other = spawn(publish, "t/b")
            assert sub.hear() == "t/b joined"
            assert other.hear() == "ready"
            for number in range(20):
                eventually(lambda: sleeps_at_words(sub.pid), "it sleeps at both words")
                (publisher, other)[number % 2].tell(10)
                assert sub.hear() == ("t/a", "t/b")[number % 2]
        case "large":
            for size in (100_000, 200_000_000, 100_000):  # New segments, and some that are retired.
                eventually(lambda: sleeps_at_words(sub.pid), "it sleeps at words")
                publisher.tell(size)
                assert sub.hear() == "t/a"
        case "evict":
            publisher.tell("evict")
            assert sub.hear() == "t/a evicted"
        case "close":
            assert sub.hear() == "Closed"
        case "timeout":
            assert sub.hear() == "Timeout"
        case "signal":
            sub.signal(signal.SIGINT)
            assert sub.hear() == "KeyboardInterrupt"


def send_to_frozen(line: Line) -> None:
    """Receives and tells; somebody stops this process meanwhile."""
    receive(line, 200)


def test_a_sleeper_that_is_stopped_misses_nothing(spawn: Spawn) -> None:
    sub = spawn(send_to_frozen)
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(timeout=60)
        for number in range(100):
            eventually(lambda: sleeps_at_words(sub.pid), "it sleeps at words")
            sub.signal(signal.SIGSTOP)
            pub.send(f"{number} while it is stopped".encode())
            if number % 2:
                pub.send(f"{number} again".encode())
            sub.signal(signal.SIGCONT)
            if not number % 2:
                pub.send(f"{number} again".encode())
            assert sub.hear() == f"{number} while it is stopped"
            assert sub.hear() == f"{number} again"
    assert sub.hear() == "done"


def test_many_sleepers_are_woken(spawn: Spawn) -> None:
    """By another thread than the sender's, which ends with the publisher."""
    subs = [spawn(receive, 20) for _ in range(12)]
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(len(subs), timeout=60)
        for number in range(20):
            eventually(lambda: all(sleeps_at_words(sub.pid) for sub in subs), "they sleep at words")
            pub.send(b"%d" % number)
            assert {sub.hear() for sub in subs} == {str(number)}
        eventually(lambda: "byref-waker" in _threads(), "the service thread starts it")
    eventually(lambda: "byref-waker" not in _threads(), "the thread ends")
    for sub in subs:
        assert sub.hear() == "done"


def send_to_many(line: Line, fault: str, count: int) -> None:
    """Sends so often when it is told to, and meets its fate when it wakes those who sleep."""
    os.environ["BYREF_FAULT"] = fault
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(12, timeout=60)
        for number in range(count):
            line.hear()
            pub.send(b"%d" % number)
            eventually(lambda: "byref-waker" in _threads(), "the service thread starts it")
            line.tell("it runs")
        line.hear()


@needs_faults
@pytest.mark.parametrize("fate", ["stop", "kill"])
@pytest.mark.parametrize("point", ["wake.requested", "wake.word_before", "wake.word_raised", "wake.word_after"])
def test_a_publisher_ends_while_it_wakes_many(
    point: str, fate: str, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first time the sender wakes them itself.
    count = 2 if point == "wake.requested" else 1
    subs = [spawn(receive, count) for _ in range(12)]
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    pub = spawn(send_to_many, f"{point}:1:{fate}", count)
    for number in range(count - 1):
        eventually(lambda: all(sleeps_at_words(sub.pid) for sub in subs), "they sleep at words")
        pub.tell()
        assert pub.hear() == "it runs"
        assert {sub.hear() for sub in subs} == {str(number)}
    eventually(lambda: all(sleeps_at_words(sub.pid) for sub in subs), "they sleep at words")
    time.sleep(0.2)
    pub.tell()
    if fate == "kill":
        assert pub.wait() == -signal.SIGKILL
    else:
        eventually(lambda: state_of(pub.pid) == "T", "it stops")
        pub.signal(signal.SIGCONT)
    for sub in subs:
        assert [sub.hear(), sub.hear()] == [str(count - 1), "done"]


def send_from_one_processor(line: Line, processor: int, policy: str) -> None:
    """Sends to many from a thread with a processor of its own; tells where byref's threads run, and how."""
    if policy == "real time":
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except PermissionError:
            line.tell(None)
            return

    def send() -> None:
        os.sched_setaffinity(0, {processor})
        if policy == "real time":
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        with byref.Publisher("t") as pub:
            pub.wait_for_subscribers(9, timeout=60)
            line.tell("met")
            line.hear()  # Now they sleep, each of them for its only message.
            while "byref-waker" not in _threads():
                pub.send(b"x")
                time.sleep(0.02)
            # It changes its own policy when it first runs.
            eventually(lambda: os.SCHED_FIFO not in {policy for _, policy in places().values()}, "they share time")
            line.tell({name: [sorted(processors), policy] for name, (processors, policy) in places().items()})
            line.hear()

    def places() -> dict[str, tuple[set[int], int]]:
        threads = [int(thread) for thread in os.listdir("/proc/self/task")]
        names = {thread: _name_of(thread) for thread in threads}
        return {
            name: (os.sched_getaffinity(thread), os.sched_getscheduler(thread))
            for thread, name in names.items()
            if name.startswith("byref")
        }

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
@pytest.mark.parametrize("policy", ["usual", "real time"])
def test_a_sender_keeps_its_processor_and_priority_to_itself(policy: str, spawn: Spawn) -> None:
    """A thread that it starts would not run if it sends, or looks around, without a pause."""
    all_processors = os.sched_getaffinity(0)
    own = min(all_processors)
    subs = [spawn(receive, 1) for _ in range(9)]
    sender = spawn(send_from_one_processor, own, policy)
    if sender.hear() is None:
        pytest.skip("real-time priorities are not for this user")
    eventually(lambda: all(sleeps_at_words(sub.pid) for sub in subs), "they sleep at words")
    sender.tell()
    places = sender.hear()
    assert places == {name: [sorted(all_processors - {own}), os.SCHED_OTHER] for name in ("byref", "byref-waker")}
    for sub in subs:
        assert [sub.hear(), sub.hear()] == ["x", "done"]


def send_without_threads(line: Line, count: int) -> None:
    """Sends to many in a process that can start no thread any more; tells the warnings."""
    warnings: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger("byref").addHandler(Kept())
    byref.log_to_logging()
    with byref.Publisher("t") as pub:
        pub.wait_for_subscribers(9, timeout=60)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        if os.getuid() == 0:
            os.setuid(65534)  # The limit is not for root.
        for number in range(count):
            line.hear()
            pub.send(b"%d" % number)
        line.hear()
        eventually(lambda: warnings, "the log's reader runs")
        line.tell([text for text in warnings if "thread" in text])


def test_where_no_thread_can_be_started_the_sender_wakes_all(spawn: Spawn) -> None:
    subs = [spawn(receive, 20) for _ in range(9)]
    sender = spawn(send_without_threads, 20)
    for number in range(20):
        eventually(lambda: all(sleeps_at_words(sub.pid) for sub in subs), "they sleep at words")
        sender.tell()
        assert {sub.hear() for sub in subs} == {str(number)}
    sender.tell()
    warnings = sender.hear()
    assert len(warnings) == 1
    assert "cannot start a thread that wakes subscribers" in warnings[0]
    for sub in subs:
        assert sub.hear() == "done"


def _name_of(thread: int) -> str:
    try:
        with open(f"/proc/self/task/{thread}/comm") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # It has just ended.


def _threads() -> list[str]:
    return [_name_of(int(thread)) for thread in os.listdir("/proc/self/task")]


def test_a_thread_sleeps_while_another_one_begins_to_poll() -> None:
    for number in range(50):
        with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
            pub.wait_for_subscribers(timeout=60)
            sleeper = Sleeper(sub)
            sleeper.start()
            if number % 5:
                eventually(sleeper.sleeps, "it sleeps at words")
            poll = select.poll()
            poll.register(sub.fileno(), select.POLLIN)
            assert sub.try_recv() is None
            pub.send(b"one")
            pub.send(b"two")
            # One of them is for each.
            while (msg := sub.try_recv()) is None:
                assert poll.poll(30_000)
            sleeper.join()
            assert sorted([bytes(msg), sleeper.got]) == [b"one", b"two"]


class Sleeper(threading.Thread):
    """Receives one message."""

    def __init__(self, sub: byref.Subscriber) -> None:
        super().__init__()
        self.sub, self.got = sub, b""

    def run(self) -> None:
        self.got = bytes(self.sub.recv(timeout=30))

    def sleeps(self) -> bool:
        return sleeps_at_words(os.getpid(), self.native_id)


def receive_in_thread(line: Line, count: int) -> None:
    """In the main thread each sleep ends now and then, for the sake of signals."""
    thread = threading.Thread(target=receive, args=(line, count))
    thread.start()
    thread.join()


@pytest.mark.skipif(not FUTEX, reason="the numbers of this machine's system calls are not listed")
def test_wake_ups_that_a_stranger_takes_away_come_later(spawn: Spawn) -> None:
    """Whoever has the ring mapped, may move those that sleep at its word to a word of their own."""
    sub = spawn(receive_in_thread, 3)
    with byref.Publisher("t") as pub, byref.Subscriber("t"):
        pub.wait_for_subscribers(2, timeout=60)
        words = []
        with open("/proc/self/maps") as rows:
            for row in rows:
                if "memfd:byref-ring" in row and row.split()[1] == "r--s":
                    words.append(int(row.split("-")[0], 16) + WAKE_WORD)
        elsewhere = ctypes.c_uint32()
        for number in range(3):
            moved = 0
            while not moved:
                for word in words:
                    value = ctypes.c_uint32.from_address(word).value
                    call = (FUTEX, word, FUTEX_CMP_REQUEUE, 0, 1 << 30, ctypes.byref(elsewhere), value)
                    moved += max(0, _LIBC.syscall(*map(_as_argument, call)))
            pub.send(b"%d" % number)
            assert sub.hear() == str(number)
        assert sub.hear() == "done"


def _as_argument(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value

"""Log lines: complete, whole, to standard error or to `logging`, and no obstacle to anybody."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import byref
import pytest

from tests.processes import PATIENCE, ROOT, Child, Line, eventually
from tests.test_sandbox import CALLS

Spawn = Callable[..., Child]

LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z byref\[(?P<process>\d+)\] (?P<level>[A-Z]+) (?P<text>.+)"
)
IN_VAIN = "reached nobody"


def in_vain(topic: str = "t") -> None:
    """Logs one line."""
    with byref.Publisher(topic) as pub:
        pub.send(b"")


def log_one(line: Line) -> None:
    in_vain()
    line.tell("done")


def test_a_line_says_when_and_who(spawn: Spawn) -> None:
    child = spawn(log_one)
    assert child.hear() == "done"
    child.finish()
    (text,) = child.output().splitlines()
    found = LINE.fullmatch(text)
    assert found
    said = datetime.fromisoformat(found["time"]).replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - said) < timedelta(seconds=PATIENCE)
    assert (int(found["process"]), found["level"]) == (child.pid, "WARN")
    assert found["text"].startswith("topic 't': a publisher is closed")


def log_forgery(line: Line) -> None:
    os.environ["BYREF_DIR"] += "/a\nforged line\x1b[31m"
    in_vain()
    line.tell("done")


def test_nobody_forges_a_line(spawn: Spawn) -> None:
    child = spawn(log_forgery)
    assert child.hear() == "done"
    child.finish()
    (text,) = child.output().splitlines()
    assert LINE.fullmatch(text)
    assert "\x1b" not in text


def meet(line: Line) -> None:
    with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
        pub.wait_for_subscribers(timeout=20)
        sub.wait_for_publishers(timeout=20)
        with byref.Subscriber("*") as other:
            other.wait_for_publishers(timeout=20)
            pub.wait_for_subscribers(2, timeout=20)
        line.tell("done")
        line.hear()  # Its service thread goes on, and has more to tell.


def test_debug_lines_tell_of_connecting(spawn: Spawn, monkeypatch: pytest.MonkeyPatch, rendezvous: object) -> None:
    monkeypatch.setenv("BYREF_LOG", "debug")
    child = spawn(meet)
    assert child.hear() == "done"
    gone = f"topic 't': the subscriber in process {child.pid} is gone"
    eventually(lambda: gone in child.output(), "it tells of the end")
    child.tell()
    child.finish()
    lines = child.output().splitlines()
    assert all(LINE.fullmatch(text) for text in lines), lines
    for told in (
        r"topic 't': announced as [0-9a-f]{16}-[0-9a-f]{32} in " + str(rendezvous),
        f"publishers are looked for in {rendezvous}",
        r"topic 't': asks the publisher [0-9a-f]{16}-[0-9a-f]{32}",
        rf"topic '\*': connected to the publisher in process {child.pid}",
        rf"topic 't': a subscriber in process {child.pid} is connected",
    ):
        assert any(re.search(told, text) for text in lines), (told, lines)


@pytest.mark.parametrize(
    ("wanted", "lines"), [("off", 0), ("error", 0), ("byref=warn", 1), ("other=debug", 0), ("=", 2)]
)
def test_the_environment_chooses(wanted: str, lines: int, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is told, and the default taken."""
    monkeypatch.setenv("BYREF_LOG", wanted)
    child = spawn(log_one)
    assert child.hear() == "done"
    child.finish()
    assert len(child.output().splitlines()) == lines


# ---- to Python ----


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.may_begin = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.may_begin.wait(PATIENCE)
        self.records.append(record)


def log_to_python(line: Line) -> None:
    kept, logger = Kept(), logging.getLogger("mine")
    logger.addHandler(kept)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    byref.log_to_logging(logger)
    began = time.time()
    meet(line)
    in_vain("äöü/%s")
    ended = time.time()
    kept.may_begin.set()
    eventually(lambda: any(IN_VAIN in record.getMessage() for record in kept.records), "the warning comes")
    (warning,) = (record for record in kept.records if record.levelno == logging.WARNING)
    assert warning.getMessage().startswith("topic 'äöü/%s': a publisher is closed")
    assert (warning.name, warning.process, warning.module) == ("mine", os.getpid(), "linger")
    assert began - 1 <= warning.created <= ended, "when it happened, not when it was handled"
    assert any("announced as" in record.getMessage() and record.levelno == logging.DEBUG for record in kept.records)

    byref.log_to_logging(logger, level=logging.ERROR)
    count = len(kept.records)
    in_vain()
    byref.log_to_logging(logger, level=logging.WARNING)  # What is under way is passed on first.
    assert len(kept.records) == count
    in_vain()
    eventually(lambda: len(kept.records) == count + 1, "it is heard again")

    pid = os.fork()
    if not pid:
        in_vain("of a child")
        os._exit(0)
    os.waitpid(pid, 0)
    assert not any("of a child" in record.getMessage() for record in kept.records)
    line.tell("heard")


def test_lines_go_to_logging(spawn: Spawn) -> None:
    child = spawn(log_to_python)
    assert child.hear() == "done"
    child.tell()
    assert child.hear() == "heard"
    child.finish()
    (text,) = child.output().splitlines()
    assert "topic 'of a child'" in text, "a child logs to standard error"


def test_the_last_lines_are_not_lost() -> None:
    program = """
import logging, byref
logging.basicConfig(format="PY %(levelname)s %(name)s %(message)s")
byref.log_to_logging()
for number in range(5):
    with byref.Publisher(f"t{number}") as pub:
        pub.send(b"")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    lines = done.stderr.splitlines()
    assert [line[:34] for line in lines] == [f"PY WARNING byref topic 't{number}': a pub"[:34] for number in range(5)]


def log_much_to_a_handler_that_hangs() -> tuple[threading.Event, list[str]]:
    """Gives what ends its hanging, and the lines that it has got."""
    hanging, kept = threading.Event(), []

    class Hangs(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())
            hanging.wait(60)

    logger = logging.getLogger("mine")
    logger.addHandler(Hangs())
    logger.propagate = False
    byref.log_to_logging(logger, level=logging.WARNING)
    for _ in range(600):
        in_vain()
    return hanging, kept


def log_to_a_handler_that_hangs(line: Line) -> None:
    """It is the program's, and so is its trouble."""
    hanging, kept = log_much_to_a_handler_that_hangs()
    line.tell("not held up")
    hanging.set()

    def is_told() -> bool:
        # Until the reader has made room, this line is lost, too.
        in_vain()
        return any("lines before were lost" in text for text in kept)

    eventually(is_told, "what was lost is told")


def test_a_handler_that_hangs_holds_nobody_up(spawn: Spawn) -> None:
    child = spawn(log_to_a_handler_that_hangs)
    assert child.hear() == "not held up"
    child.finish()


def change_often(line: Line) -> None:
    """Nothing is left of those before: no descriptor, no thread; not even when a handler does it."""
    logger = logging.getLogger("mine")
    logger.propagate = False

    class Again(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            byref.log_to_logging(logger, level=logging.WARNING)

    def readers() -> int:
        return sum(thread.name == "byref-logging" for thread in threading.enumerate())

    byref.log_to_logging(logger, level=logging.WARNING)
    before = len(os.listdir("/proc/self/fd"))  # Without a publisher, whose service thread has some until it ends.
    stop = threading.Event()

    def log() -> None:
        while not stop.is_set():
            in_vain()

    busy = threading.Thread(target=log)
    busy.start()
    for _ in range(10):
        byref.log_to_logging(logger, level=logging.WARNING)
    stop.set()
    busy.join()
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before and readers() == 1, "they are gone")
    logger.addHandler(Again())
    for _ in range(5):
        reader = next(thread for thread in threading.enumerate() if thread.name == "byref-logging")
        in_vain()
        eventually(lambda reader=reader: not reader.is_alive(), "the handler has made another reader")  # type: ignore[misc]
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before and readers() == 1, "they are gone")
    line.tell("done")


def test_changing_it_leaves_nothing_behind(spawn: Spawn) -> None:
    child = spawn(change_often)
    assert child.hear() == "done"
    child.finish()


def stop_when_it_is_full(line: Line) -> None:
    hanging, kept = log_much_to_a_handler_that_hangs()
    reader = next(thread for thread in threading.enumerate() if thread.name == "byref-logging")
    threading.Timer(0.2, hanging.set).start()
    byref.log_to_logging(logging.getLogger("other"), level=logging.ERROR)
    reader.join(20)
    assert not reader.is_alive(), "it hears of its end although the socket was full"
    line.tell(len(kept))


def test_a_full_socket_ends(spawn: Spawn) -> None:
    child = spawn(stop_when_it_is_full)
    heard = child.hear()
    assert isinstance(heard, int)
    assert heard > 1, "what was under way was passed on"
    child.finish()


# ---- who is in nobody's way ----


def test_a_reader_of_standard_error_that_stops_holds_nobody_up() -> None:
    program = """
import byref
for _ in range(600):
    with byref.Publisher("t") as pub:
        pub.send(b"")
print("done", flush=True)
"""
    end, error = os.pipe()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=error, text=True) as process:
        os.close(error)
        assert process.stdout
        assert process.stdout.readline() == "done\n"
        os.close(end)


def has_pipes_that_need_not_wait() -> bool:
    """Whether the kernel knows RWF_NOWAIT for them."""
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2]) >= (6, 4)


def run_with_a_pipe(program: str) -> tuple[str, str]:
    """Run a program that logs into a pipe, whose other end is its standard input; what it printed, and what is left."""
    end, error = os.pipe()
    try:
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, cwd=ROOT, stdin=end, stdout=subprocess.PIPE, stderr=error, text=True) as process:
            try:
                printed, _ = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        os.set_blocking(end, False)
        with contextlib.suppress(BlockingIOError):
            return printed, os.read(end, 1 << 20).decode()
        return printed, ""
    finally:
        os.close(end)
        os.close(error)


@pytest.mark.skipif(not has_pipes_that_need_not_wait(), reason="Linux 6.4 has writes to pipes that never wait")
@pytest.mark.skipif(not CALLS, reason="the numbers of this machine's system calls are not listed")
def test_a_pipe_that_somebody_else_fills_just_before_a_line() -> None:
    """There was room when the logger looked. So it may write only by a call that never waits."""
    program = """
import errno
import byref
from tests.test_sandbox import forbid
try:
    forbid("write", errno.EPERM, (0, 2))
except AssertionError:
    print("none")
else:
    with byref.Publisher("t") as pub:
        pub.send(b"")
    print("done")
"""
    printed, left = run_with_a_pipe(program)
    if printed == "none\n":
        pytest.skip("seccomp cannot be had here")
    assert printed == "done\n"
    assert LINE.fullmatch(left.rstrip("\n")), left


def test_lost_lines_are_told_at_the_end() -> None:
    program = """
import byref, os
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    os.set_blocking(2, True)
for _ in range(3):
    with byref.Publisher("t") as pub:
        pub.send(b"")
os.read(0, 1 << 20)
print("done", flush=True)
"""
    printed, left = run_with_a_pipe(program)
    assert printed == "done\n"
    found = LINE.fullmatch(left.rstrip("\n"))
    assert found, left
    assert (found["level"], found["text"]) == ("WARN", "the last 3 lines were lost: nobody read them")


def fork_while_others_log(line: Line) -> None:
    """Each child logs, too."""
    stop = False

    def log() -> None:
        while not stop:
            in_vain()
            time.sleep(0.001)

    loggers = [threading.Thread(target=log) for _ in range(3)]
    for each in loggers:
        each.start()
    hung = 0
    for _ in range(150):
        pid = os.fork()
        if not pid:
            signal.alarm(20)  # A child that hangs is ended by it.
            with contextlib.suppress(byref.Error):
                in_vain()
            os._exit(0)
        hung += os.waitpid(pid, 0)[1] != 0
    stop = True
    for each in loggers:
        each.join()
    line.tell(hung)


@pytest.mark.parametrize("level", ["warn", "trace"])
def test_a_child_that_was_forked_while_others_logged(level: str, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYREF_LOG", level)
    child = spawn(fork_while_others_log)
    assert child.hear() == 0
    child.finish()
    lines = child.output().splitlines()
    # Of a long output that is the beginning.
    assert all(LINE.fullmatch(text) for text in lines[:-1]), "lines stay whole"

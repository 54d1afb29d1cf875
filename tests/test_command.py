"""The `byref` command, as shells and scripts use it."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import Endpoints
from tests.processes import Child, Line, eventually

Spawn = Callable[..., Child]


def byref_command(*arguments: str, expected: int = 0, **options: Any) -> str:
    """What the command writes; it ends with that exit code."""
    command = [sys.executable, "-m", "byref", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == expected, (done.stdout, done.stderr)
    return done.stdout if expected == 0 else done.stderr


def objects(*arguments: str) -> list[dict[str, Any]]:
    """The JSON objects that it writes."""
    return [json.loads(line) for line in byref_command(*arguments, "--json").splitlines()]


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command, running."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", "byref", *arguments], stdout=pipe, stderr=pipe, text=True, **options)


# ---- looking ---------------------------------------------------------------------------------------------------------


def test_topics_tells_who_publishes_and_who_subscribes(endpoints: Endpoints) -> None:
    front = endpoints.publisher("camera/front", name="left", history=2)
    endpoints.publisher("odometry")
    late = endpoints.subscriber("camera/*", name="viewer", depth=5)
    front.wait_for_subscribers(timeout=20)
    for number in range(4):
        front.send(np.full(1000, number, "<f4"))
    held = late.recv(timeout=20)
    one, two = objects("topics", "--over", "0")
    assert (one["topic"], two["topic"]) == ("camera/front", "odometry")
    assert (one["pid"], one["name"], one["sent"], one["sent_bytes"]) == (os.getpid(), "left", 4, 16_000)
    assert (one["history"], one["messages_per_second"]) == (2, None)
    (viewer,) = one["subscribers"]
    assert viewer == {
        "pid": os.getpid(),
        "name": "viewer",
        "policy": "block",
        "depth": 5,
        "lag": 3,
        "held": 1,
        "held_bytes": 4000,
    }
    assert [found["topic"] for found in objects("topics", "camera/**", "--over", "0.01")] == ["camera/front"]
    head, row, *_ = byref_command("topics").splitlines()
    assert head.split() == ["TOPIC", "PUBLISHER", "SENT", "MSG/S", "BYTES/S", "SUBSCRIBERS"]
    assert row.endswith(f"{os.getpid()} 'viewer' (block, 3 behind)")
    text = byref_command("info", "camera/front")
    assert "4 messages, 15.6 KiB" in text
    assert "1 (3.9 KiB)" in text, "what it holds"
    del held


def test_nobody_is_an_exit_code_of_its_own(rendezvous: Path) -> None:
    for arguments in (["topics"], ["topics", "--json"], ["info", "t"], ["hz", "t"], ["bw", "t", "--json"]):
        assert "nobody publishes" in byref_command(*arguments, expected=3)
    text = byref_command("echo", "t", "--timeout", "0.1", expected=3)
    assert "recv on topic 't' timed out" in text
    text = byref_command("pub", "t", "--text", "x", "--timeout", "0.1", expected=3)
    assert "timed out" in text
    assert rendezvous.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "Usage: byref"),
        (["bogus"], 2, "unrecognized subcommand 'bogus'"),
        (["topics", "a//b"], 1, "invalid topic 'a//b'"),
        (["hz", "t", "--over", "0"], 2, "more than 0 seconds"),
        (["topics", "--over", "nan"], 2, "no number of seconds"),
        (["pub", "a/*", "--text", "x"], 1, "invalid topic 'a/*'"),
        (["pub", "t", "--file", "/does/not/exist"], 1, "cannot read /does/not/exist"),
        (["pub", "t", "--text", "x", "--rate", "0"], 1, "--rate must be more than 0"),
        (["echo", "t", "--raw", "--json"], 2, "cannot be used with"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, text: str, rendezvous: Path) -> None:
    assert text in byref_command(*arguments, expected=code)
    assert rendezvous.exists()


def send_steadily(line: Line) -> None:
    """Sends 100 bytes again and again until told to stop."""
    with byref.Publisher("steady", name="drum") as pub:
        line.tell()
        while not line.has_something():
            pub.send(bytes(100))


def test_rates_come_from_the_publishers_own_counters(spawn: Spawn) -> None:
    publisher = spawn(send_steadily)
    publisher.hear()
    first, second = objects("hz", "**", "-n", "2", "--over", "0.2")
    for told in (first, second):
        assert (told["topic"], told["pid"], told["name"]) == ("steady", publisher.pid, "drum")
        assert told["messages_per_second"] > 0
        assert told["bytes_per_second"] == pytest.approx(100 * told["messages_per_second"])
    (line,) = byref_command("bw", "steady", "-n", "1", "--over", "0.2").splitlines()
    assert line.endswith("in messages of 100 B")
    assert objects("topics", "steady")[0]["subscribers"] == [], "nobody subscribed for it"
    publisher.signal(signal.SIGSTOP)
    assert "nobody publishes" in byref_command("hz", "steady", "-n", "1", expected=3)
    publisher.signal(signal.SIGCONT)
    publisher.tell()
    publisher.finish()


def test_top_in_a_terminal(endpoints: Endpoints) -> None:
    endpoints.publisher("in/top", name="shown").send(b"x")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "byref", "top", "--every", "0.05"]
    top = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    seen = b""

    def shows(*texts: bytes) -> bool:
        nonlocal seen
        if select.select([ours], [], [], 0.01)[0]:
            seen += os.read(ours, 1 << 16)
        return all(text in seen for text in texts)

    eventually(lambda: shows(b"TOPIC", b"in/top", b"'shown'"), "the table is there")
    os.write(ours, b"\n")
    eventually(lambda: shows(b"of process", b"SUBSCRIBER"), "the topic's page is there")
    os.write(ours, b"qq")
    eventually(lambda: shows() and top.poll() is not None, "it ends")
    assert top.returncode == 0
    assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
    os.close(ours)
    os.close(theirs)
    assert "top needs a terminal" in byref_command("top", expected=1)


# ---- echo and pub ----------------------------------------------------------------------------------------------------

VALUES: list[tuple[Any, Any, str]] = [
    (b"some text", {"bytes": 9, "text": "some text"}, " some text"),
    (b"\0\xff", {"bytes": 2, "hex": "00ff"}, " 2 bytes 00ff"),
    (
        np.arange(4, dtype="<f4") / 10,
        {"array": "<f4", "shape": [4], "first": [0.0, 0.1, 0.2, 0.3]},
        " array <f4 (4), [0.0, 0.1, 0.2, 0.3]",
    ),
    (
        np.arange(100, dtype=">i2").reshape(10, 10),
        {"array": ">i2", "shape": [10, 10], "first": list(range(16)), "min": 0.0, "max": 99.0},
        " array >i2 (10, 10), 0.0 to 99.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, ...]",
    ),
    (
        {"n": 1, "deep": {"list": [1, 2.5, None, "x"], "big": 2**70}, "frame": np.zeros((2, 2), "u1")},
        {
            "n": 1,
            "deep": {"list": [1, 2.5, None, "x"], "big": "0x400000000000000000"},
            "frame": {"array": "|u1", "shape": [2, 2], "first": [0, 0, 0, 0]},
        },
        "\nn: 1\ndeep:\n  list: [1, 2.5, null, x]\n  big: 0x400000000000000000\nframe: array |u1 (2, 2), [0, 0, 0, 0]",
    ),
    (
        pa.table({"a": [1, 2, 3], "b": ["x", "y", None]}),
        {"arrow": "table", "rows": 3, "schema": {"a": "int64", "b": "string"}},
        ' Arrow table of 3 rows, {"a":"int64","b":"string"}',
    ),
    ([1, float("nan")], [1, "NaN"], " [1, NaN]"),
    (np.array(["2026-01-01"], "M8[D]"), {"array": "<M8[D]", "shape": [1]}, " array <M8[D] (1)"),
]


def test_echo_shows_all_that_can_be_sent(endpoints: Endpoints) -> None:
    pub = endpoints.publisher("some/topic", history=100, name="sender")
    for value, _, _ in VALUES:
        pub.send(value)
    pub.send_pickle({1, 2})
    pub.send(b"with headers", headers={"text": "x", "bytes": b"\1", "number": 7, "flag": True, "float": 0.5})
    count = len(VALUES) + 2
    told = objects("echo", "some/*", "--history", "100", "-n", str(count))
    assert [one["value"] for one in told[: len(VALUES)]] == [shown for _, shown, _ in VALUES]
    assert [one["sequence"] for one in told] == list(range(count))
    assert told[-2]["value"]["beside"] == 0
    assert told[-1]["headers"] == {
        "text": "x",
        "bytes": {"bytes": 1, "hex": "01"},
        "number": 7,
        "flag": True,
        "float": 0.5,
    }
    assert told[0]["publisher"] == {"pid": os.getpid(), "name": "sender"}
    text = byref_command("echo", "some/topic", "--history", "100", "-n", str(count))
    for number, (_, _, shown) in enumerate(VALUES):
        assert f"some/topic #{number}:{shown}\n" in text
    fields = byref_command("echo", "**", "--history", "1", "-n", "1", "--fields", "sequence,size,publisher")
    assert fields == f"{count - 1}  12  {os.getpid()} 'sender'\n"
    raw = byref_command("echo", "**", "--history", "1", "-n", "1", "--raw")
    assert raw == "with headers"


def test_echo_does_not_hold_up_who_publishes(endpoints: Endpoints) -> None:
    pub = endpoints.publisher("fast")
    echo = start("echo", "fast", "--fields", "sequence")
    pub.wait_for_subscribers(timeout=20)
    echo.send_signal(signal.SIGSTOP)
    for _ in range(50_000):
        pub.send(b"x", timeout=20)
    echo.send_signal(signal.SIGCONT)
    assert echo.stdout is not None
    assert echo.stdout.readline() != ""
    echo.kill()
    _, errors = echo.communicate(timeout=20)
    assert "messages lost before the next one" in errors


def test_pub_sends_lines_texts_and_files(endpoints: Endpoints, tmp_path: Path) -> None:
    sub = endpoints.subscriber("from/shell")
    byref_command("pub", "from/shell", "--name", "shell", input="first\n\nlast")
    msgs = [sub.recv(timeout=20) for _ in range(3)]
    assert [bytes(msg) for msg in msgs] == [b"first", b"", b"last"]
    assert msgs[0].publisher.name == "shell"
    byref_command("pub", "from/shell", "--text", "x", "-n", "3", "--rate", "1000")
    assert [bytes(sub.recv(timeout=20)) for _ in range(3)] == [b"x"] * 3
    file = tmp_path / "payload"
    file.write_bytes(os.urandom(100_000))
    byref_command("pub", "from/shell", "--file", str(file))
    assert bytes(sub.recv(timeout=20)) == file.read_bytes()


def test_who_has_read_enough_and_ctrl_c_end_it_quietly(endpoints: Endpoints) -> None:
    pub = endpoints.publisher("t", history=1)
    pub.send(b"x" * 1000)
    echo = start("echo", "t", "--history", "1")
    assert echo.stdout is not None
    assert echo.stdout.readline().startswith("t #0: xxx")
    echo.send_signal(signal.SIGINT)
    _, errors = echo.communicate(timeout=20)
    assert (echo.returncode, errors) == (-signal.SIGINT, "")
    echo = start("echo", "t", "--history", "1")
    assert echo.stdout is not None
    echo.stdout.close()

    def has_ended() -> bool:
        pub.send(b"x")
        return echo.poll() is not None

    eventually(has_ended, "it ends")
    assert echo.returncode == 0
    assert echo.stderr is not None
    assert echo.stderr.read() == ""
    echo.stderr.close()


# ---- doctor and shells -----------------------------------------------------------------------------------------------


def test_doctor(endpoints: Endpoints, rendezvous: Path, spawn: Spawn) -> None:
    endpoints.publisher("t")
    checks = {one["check"]: one for one in objects("doctor")}
    assert checks["sealed memory"]["state"] == "ok"
    assert (checks["publishers"]["state"], checks["publishers"]["found"]) == ("ok", "1 answer")
    assert checks["directory"]["found"] == str(rendezvous)
    publisher = spawn(send_steadily)
    publisher.hear()
    publisher.signal(signal.SIGSTOP)
    checks = {one["check"]: one for one in objects("doctor")}
    assert (checks["publishers"]["state"], checks["publishers"]["found"]) == ("could be better", "1 of 2 do not answer")
    publisher.signal(signal.SIGKILL)
    eventually(lambda: publisher.process.poll() is not None, "it is dead")
    assert "1 of processes that were killed" in byref_command("doctor")
    text = byref_command("doctor", env=os.environ | {"BYREF_DIR": "/proc/none"}, expected=1)
    assert "1 of 9 checks failed" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "elvish", "powershell"])
def test_completions(shell: str) -> None:
    script = byref_command("completions", shell)
    assert "doctor" in script
    if shell == "bash" and shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)

"""Event queues in programs whose threads gevent or eventlet made green."""

import subprocess
import sys

import pytest

from tests.processes import PATIENCE, ROOT

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "gevent, threads alone": "from gevent import monkey; monkey.patch_thread(); monkey.patch_time()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}

PROGRAM = """
import warnings; warnings.simplefilter("ignore")
import _thread
start_native = _thread.start_new_thread
{patch}
import byref, threading, time

def native(job):
    start_native(job, ())

queue = byref.EventQueue()
got, beats, over = [], 0, []

def receive(msg):
    time.sleep(0.001)  # Others run meanwhile.
    got.append(bytes(msg))

def beat():
    global beats
    while True:
        time.sleep(0.001)
        beats += 1

threading.Thread(target=beat, daemon=True).start()
receiver = queue.subscribe("t", receive)
{options}
thread = queue.start(on_exit=over.append{arguments})
pub = byref.Publisher("t")
pub.wait_for_subscribers(timeout=20)
for number in range(100):
    pub.send(b"%d" % number)
while len(got) < 100:
    time.sleep(0.01)
assert got == [b"%d" % number for number in range(100)]
time.sleep(0.1)  # The queue has nothing to do.
pub.send(b"more")
while len(got) < 101:
    time.sleep(0.01)
assert beats > 50, beats
{end}
"""

ENDS = {
    "stop": "queue.stop(); thread.join(20); print(thread.is_alive(), over)",
    "close": "queue.close(); thread.join(20); print(thread.is_alive(), over)",
    "a native thread stops it": "native(queue.stop); thread.join(20); print(thread.is_alive(), over)",
    "again": "queue.stop(); thread.join(20); thread = queue.start(); queue.stop(); thread.join(20)\n"
    "print(thread.is_alive(), over)",
    "stop event": "event.set(); thread.join(20); print(thread.is_alive(), over)",
    "the program ends": "print('False [None]')",
    "daemon": "print('False [None]')",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("patch", PATCHES)
def test_a_started_queue(patch: str, end: str) -> None:
    options, arguments = "", ""
    if end == "stop event":
        options, arguments = "event = threading.Event()", ", stop_event=event"
    if end == "daemon":
        arguments = ", daemon=True"
    pieces = {"{patch}": PATCHES[patch], "{options}": options, "{arguments}": arguments, "{end}": ENDS[end]}
    program = PROGRAM
    for name, text in pieces.items():
        program = program.replace(name, text)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False [None]\n", "")


@pytest.mark.parametrize("patch", PATCHES)
def test_exceptions(patch: str) -> None:
    program = f"""
import warnings; warnings.simplefilter("ignore")
{PATCHES[patch]}
import byref
queue, over = byref.EventQueue(), []
queue.subscribe("t", lambda msg: 1 / 0)
with byref.Publisher("t") as pub:
    pub.wait_for_subscribers(timeout=20)
    pub.send(b"x")
    queue.start(on_exit=over.append).join(20)
print(over)
async def never(msg): pass
queue.subscribe("t", never)
queue.start(on_exit=over.append).join(20)
print(over[1])
queue.start()
raise RuntimeError
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    out = done.stdout.splitlines()
    assert out[0] == "[ZeroDivisionError('division by zero')]"
    assert out[1].startswith("the receiver never of topic 't' is a coroutine function")
    assert "RuntimeError" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("patch", PATCHES)
def test_a_queue_that_cannot_begin(patch: str) -> None:
    """Nobody waits for it."""
    program = f"""
import warnings; warnings.simplefilter("ignore")
{PATCHES[patch]}
import byref, byref._queue
def fail():
    raise OSError("no descriptor")
byref._queue._green_wait = fail
queue, over = byref.EventQueue(), []
queue.start(on_exit=over.append).join(20)
queue.close()
print(over)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[OSError('no descriptor')]\n", "")


@pytest.mark.parametrize("patch", PATCHES)
def test_ctrl_c(patch: str) -> None:
    """A wait that one green thread made says nothing about which system thread handles signals."""
    program = f"""
import warnings; warnings.simplefilter("ignore")
import _thread, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
start_native = _thread.start_new_thread
from time import sleep
{PATCHES[patch]}
import byref, os, threading
sub = byref.Subscriber("t")
def wait():
    try:
        sub.recv(timeout=0.01)
    except byref.Timeout:
        print("waited")
thread = threading.Thread(target=wait)
thread.start()
thread.join()
start_native(lambda: (sleep(0.2), os.kill(os.getpid(), signal.SIGINT)), ())
try:
    sub.recv(timeout=20)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "waited\ninterrupted\n", "")

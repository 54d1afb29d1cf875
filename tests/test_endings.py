"""The end of the interpreter finds threads at work: in callbacks, in waits, in Python code that byref calls."""

import signal
import subprocess
import sys
import time

import pytest

from tests.processes import PATIENCE, ROOT

# An object that goes last takes its time: threads that want the interpreter meanwhile are ended, or sleep for ever.
PROGRAM = """
import asyncio, byref, byref._queue, importlib, io, sys, threading, time, types
import numpy as np

class Last:
    def __del__(self, sleep=time.sleep):
        sleep(0.15)

sys.last = Last()  # What lies in this module stays, since threads refer to it.

def on_thread(job):
    def repeat():
        while True:
            job()
    threading.Thread(target=repeat, daemon=True).start()

def feed(*topics):
    pubs = [byref.Publisher(topic) for topic in topics]
    for pub in pubs:
        pub.wait_for_subscribers(timeout=20)
    on_thread(lambda: ([pub.send(b"x", timeout=1) for pub in pubs], time.sleep(0.001)))

running = threading.Event()
lock = threading.Lock()

def pause():
    running.set()
    time.sleep(0.01)

def late():
    running.set()
    time.sleep(0.12)

def slow(name):
    real = importlib.import_module(name)
    sys.modules[name] = module = types.ModuleType(name)
    module.__getattr__ = lambda wanted: (late(), getattr(real, wanted))[1]

def refuse_threads_at_end():
    def refuse(*args):
        raise RuntimeError("can't create new thread at interpreter shutdown")
    threading._register_atexit(lambda: setattr(threading, "_start_new_thread", refuse))  # Before byref's own.

def queue(callback=lambda msg: pause(), **options):
    made = byref.EventQueue(**options)
    made.subscribe("t", callback, policy="latest")
    return made

class Slow:
    def __reduce__(self):
        pause()
        return str, ("slow",)

{body}
running.wait(20)
time.sleep(0.05)
print("end", flush=True)
"""

QUEUES = {
    "sleep": "queue().start(daemon=True); feed('t')",
    "file": "queue(lambda msg: (running.set(), open('/proc/self/stat').read())).start(daemon=True); feed('t')",
    "work": "queue(lambda msg: (running.set(), sum(range(2000)))).start(daemon=True); feed('t')",
    "lock": "queue(lambda msg: (running.set(), lock.acquire())).start(daemon=True); feed('t')",
    "for ever": "queue(lambda msg: (running.set(), time.sleep(1000))).start(daemon=True); feed('t')",
    "logging": """
import logging
def fail(msg):
    pause()
    raise ValueError("logged")
logging.getLogger("byref").addHandler(logging.StreamHandler(io.StringIO()))
logging.getLogger("byref").propagate = False
queue(fail, on_error="log").start(daemon=True); feed('t')""",
    "nobody knows it": "queue().start(daemon=True); feed('t'); import gc; gc.collect()",
    "run": "threading.Thread(target=queue().run, daemon=True).start(); feed('t')",
    "dispatch": "on_thread(lambda own=queue(): own.dispatch(0.1)); feed('t')",
    "asyncio": "threading.Thread(target=lambda: asyncio.run(queue().run_async()), daemon=True).start(); feed('t')",
    "stop event": "queue().start(daemon=True, stop_event=threading.Event()); feed('t')",
    "on exit": "queue().start(daemon=True, on_exit=lambda problem: pause()); feed('t')",
}

WAITS = {
    "recv": "sub = byref.Subscriber('t'); on_thread(sub.recv); feed('t'); running.set()",
    "recv with timeout": "sub = byref.Subscriber('t', policy='latest'); running.set()\n"
    "def receive():\n"
    "    try: sub.recv(timeout=0.001)\n"
    "    except byref.Timeout: pass\n"
    "on_thread(receive); feed('t')",
    "iteration": "sub = byref.Subscriber('t'); on_thread(lambda: [pause() for msg in sub]); feed('t')",
    "batches": "sub = byref.Subscriber('t'); on_thread(lambda: sub.recv_batch(10)); feed('t'); running.set()",
    "recv, nothing comes": "sub = byref.Subscriber('t'); on_thread(sub.recv); running.set()",
    "send": "pub, sub = byref.Publisher('t'), byref.Subscriber('t', depth=1); pub.wait_for_subscribers(timeout=20)\n"
    "on_thread(lambda: pub.send(b'x')); on_thread(lambda: (sub.recv(), pause()))",
    "wait_for_subscribers": "pub = byref.Publisher('t'); running.set(); on_thread(pub.wait_for_subscribers)",
    "wait_for_publishers": "sub = byref.Subscriber('t'); running.set(); on_thread(sub.wait_for_publishers)",
    "flush": "pub, sub = byref.Publisher('t'), byref.Subscriber('t'); pub.wait_for_subscribers(timeout=20)\n"
    "on_thread(lambda: (pub.send(b'x'), pub.flush())); on_thread(lambda: (sub.recv(), pause()))",
    "wait_released": "pub, sub = byref.Publisher('t'), byref.Subscriber('t'); pub.wait_for_subscribers(timeout=20)\n"
    "on_thread(lambda: pub.send_tracked(b'x').wait_released()); on_thread(lambda: (sub.recv(), pause()))",
    "async for": "async def main(sub=byref.Subscriber('t')):\n"
    "    async for msg in sub: pause()\n"
    "threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start(); feed('t')",
}

CODE = {
    "pickling": "pub = byref.Publisher('t'); on_thread(lambda: pub.send_pickle(Slow()))",
    "unpickling": "class Late:\n"
    "    def __reduce__(self): return pause, ()\n"
    "pub, sub = byref.Publisher('t'), byref.Subscriber('t', allow_pickle=True)\n"
    "pub.wait_for_subscribers(timeout=20); on_thread(lambda: (pub.send_pickle(Late()), sub.recv().value))",
    "numpy": "pub = byref.Publisher('t'); big = np.ones((3000, 3000))[:, ::2]; running.set()\n"
    "on_thread(lambda: pub.send(big))",
    "rows": "pub = byref.Publisher('t'); big = np.ones((3000, 3000))[:, ::2]; running.set()\n"
    "on_thread(lambda: pub.send_many(big))",
    "protocols": "class Lazy:\n"
    "    @property\n"
    "    def __arrow_c_array__(self): pause(); raise AttributeError\n"
    "pub = byref.Publisher('t')\n"
    "def send():\n"
    "    try: pub.send(Lazy())\n"
    "    except TypeError: pass\n"
    "on_thread(send)",
    "copies": "pub, sub = byref.Publisher('t'), byref.Subscriber('t'); pub.wait_for_subscribers(timeout=20)\n"
    "pub.send(np.ones((2000, 2000))); msg = sub.recv(); out = np.empty((2000, 2000), 'f4')\n"
    "running.set(); on_thread(lambda: msg.copy(out))",
    "arrays": "pub, sub = byref.Publisher('t'), byref.Subscriber('t'); pub.wait_for_subscribers(timeout=20)\n"
    "pub.send(np.ones((2000, 2000))); msg = sub.recv(); running.set(); on_thread(lambda: np.array(msg, copy=True))\n"
    "on_thread(lambda: msg.__array__(copy=True))",
    "astype": "pub, sub = byref.Publisher('t'), byref.Subscriber('t'); pub.wait_for_subscribers(timeout=20)\n"
    "pub.send(np.ones((2000, 2000))); msg = sub.recv(); running.set()\n"
    "on_thread(lambda: msg.__array__(np.dtype('f4')))",
    "headers": "class Lazy(dict):\n"
    "    def keys(self): late(); return super().keys()\n"
    "headers = types.MappingProxyType(Lazy(a=1)); pub = byref.Publisher('t')\n"
    "on_thread(lambda: pub.send(b'', headers))",
    "element types": "import byref._dtypes\n"
    "def decode(kind, real=byref._dtypes.decode): pause(); return real(kind)\n"
    "byref._dtypes.decode = decode; pub, sub = byref.Publisher('t'), byref.Subscriber('t')\n"
    "pub.wait_for_subscribers(timeout=20)\n"
    "for number in range(100): pub.send(np.zeros(1, [(f'a{number}', 'f4')]))\n"
    "msgs = [sub.recv() for _ in range(100)]; on_thread(lambda: msgs.pop().value)",
    "a dtype of batches": "class Lazy:\n"
    "    @property\n"
    "    def dtype(self): pause(); return np.dtype('u1')\n"
    "pub, sub = byref.Publisher('t'), byref.Subscriber('t'); pub.wait_for_subscribers(timeout=20)\n"
    "pub.send(b'12'); batch = sub.recv_batch(1); on_thread(lambda: batch.array(Lazy()))",
    "who is the main thread": "def get_native_id(real=threading.get_native_id): late(); return real()\n"
    "sub = byref.Subscriber('t')\n"
    "on_thread(lambda: (setattr(threading, 'get_native_id', get_native_id), sub.recv()))",
    "recv_async": "slow('byref._aio'); sub = byref.Subscriber('t'); on_thread(lambda: sub.recv_async().close())",
    "send_async": "slow('byref._aio'); pub = byref.Publisher('t'); on_thread(lambda: pub.send_async(b'').close())",
    "aiter": "slow('byref._aio'); sub = byref.Subscriber('t'); on_thread(lambda: aiter(sub))",
    "await": "pub, sub = byref.Publisher('t'), byref.Subscriber('t'); pub.wait_for_subscribers(timeout=20)\n"
    "ticket = pub.send_tracked(b''); slow('byref._aio'); on_thread(ticket.__await__)",
    "run_async": "own = byref.EventQueue(); slow('byref._queue')\non_thread(lambda: own.run_async().close())",
    "closing a subscriber": "sub = byref.Subscriber('t'); sub.fileno(); slow('byref._aio'); on_thread(sub.close)",
    "closing a queue": "class Callback:\n"
    "    def __call__(self, msg): pass\n"
    "    def __del__(self): late()\n"
    "own = byref.EventQueue(); own.subscribe('t', Callback()); on_thread(own.close)",
    "subscribing to a queue": "class Callback:\n"
    "    def __call__(self, msg): pass\n"
    "    def __getattr__(self, name): pause(); raise AttributeError(name)\n"
    "own = byref.EventQueue(); callback = Callback(); on_thread(lambda: own.subscribe('t', callback).close())",
}

# What a thread that has used byref does when it is nearly gone.
LATE_CODE = {
    "a destructor of the system's": "import ctypes\n"
    "libc = ctypes.CDLL(None); key = ctypes.c_uint(); kept = []\n"
    "@ctypes.CFUNCTYPE(None, ctypes.c_void_p)\n"
    "def destroy(_): kept.append([bytes(48) for _ in range(100)]); late()\n"
    "assert libc.pthread_key_create(ctypes.byref(key), destroy) == 0\n"
    "pub, sub = byref.Publisher('t'), byref.Subscriber('t')\n"
    "pub.wait_for_subscribers(timeout=20)\n"  # A slow end of the program is one of the thread and the publisher, too.
    "def work():\n"
    "    libc.pthread_setspecific(key, ctypes.c_void_p(1)); pub.send({'a': 1})\n"
    "threading.Thread(target=work, daemon=True).start()",
}


# Queues that no daemon runs: they end with the program's other threads.
STARTED = {
    "idle": ("queue().start(); running.set()", "end\n"),
    "busy": ("queue().start(); feed('t')", "end\n"),
    "on exit": ("queue().start(on_exit=lambda problem: print('over', problem)); feed('t')", "end\nover None\n"),
    "the callback in progress is waited for": (
        "queue(lambda msg: (running.set(), threading.main_thread().join(), time.sleep(0.3), print('called'))).start()\n"
        "feed('t')",
        "end\ncalled\n",
    ),
    "for a thread that needs it": (
        "called = threading.Event()\n"
        "own = queue(lambda msg: (pause(), bytes(msg) == b'late' and (print('called'), called.set())))\n"
        "own.start(); feed('t')\n"
        "def work():\n"
        "    threading.main_thread().join(); time.sleep(0.2)\n"
        "    with byref.Publisher('t') as pub:\n"
        "        pub.wait_for_subscribers(timeout=20); pub.send(b'late'); called.wait(20)\n"
        "threading.Thread(target=work).start()",
        "end\ncalled\n",
    ),
    "started by such a thread": (
        "own = queue(lambda msg: (running.set(), print('called'), own.stop()))\n"
        "def work():\n"
        "    threading.main_thread().join(); own.start().join()\n"
        "threading.Thread(target=work).start(); running.set(); feed('t')",
        "end\ncalled\n",
    ),
    "for such a thread, where none begins any more": (
        "byref._queue._WATCHER_FIRST = True; refuse_threads_at_end()\n"
        "called = threading.Event()\n"
        "own = queue(lambda msg: (pause(), bytes(msg) == b'late' and (print('called'), called.set())))\n"
        "own.start(); feed('t'); pub = byref.Publisher('t')\n"
        "def work():\n"
        "    threading.main_thread().join(); time.sleep(0.2)\n"
        "    pub.wait_for_subscribers(timeout=20); pub.send(b'late'); called.wait(20)\n"
        "threading.Thread(target=work).start()",
        "end\ncalled\n",
    ),
    "where no thread begins any more": (
        "byref._queue._WATCHER_FIRST = False; refuse_threads_at_end(); queue().start(); feed('t')\n"
        "threading.Thread(target=lambda: time.sleep(1)).start()",
        "end\n",
    ),
    "with idle threads of an executor": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "pool = ThreadPoolExecutor(2); pool.submit(print, 'pool').result(); queue().start(); feed('t')",
        "pool\nend\n",
    ),
    "a thread is just being started": (
        "queue().start()\n"
        "start = '_start_joinable_thread' if sys.version_info >= (3, 13) else '_start_new_thread'\n"
        "def begin(*args, real=getattr(threading, start), **more):\n"
        "    if args[0].__self__.name == 'late': running.set(); threading.main_thread().join(); time.sleep(0.3)\n"
        "    return real(*args, **more)\n"
        "setattr(threading, start, begin)\n"
        "late = threading.Thread(target=print, args=('late',), name='late', daemon=False)\n"
        "threading.Thread(target=late.start, daemon=True).start()",
        "end\nlate\n",
    ),
    "started at that moment": (
        "def between(real=threading.get_native_id):\n"
        "    byref._queue._stop_all(); threading.get_native_id = real; return real()\n"
        "threading.get_native_id = between\n"
        "try: queue().start()\n"
        "except byref.Error as problem: print(problem)\n"
        "running.set()",
        "the program has ended, so an event queue cannot be started any more\nend\n",
    ),
    "in a forked child": (
        "import os\n"
        "own = queue(); own.start(); feed('t'); running.wait(20); child = os.fork()\n"
        "if child: print('child', os.waitpid(child, 0)[1])\n"
        "else: raise SystemExit",
        "child 0\nend\n",
    ),
    "started at exit": (
        "import atexit\n"
        "def late():\n"
        "    try: queue().start()\n"
        "    except byref.Error as problem: print(problem)\n"
        "queue().start(); atexit.register(late); running.set()",
        "end\nthe program has ended, so an event queue cannot be started any more\n",
    ),
}


def ends(body: str, rounds: int, output: str = "end\n") -> None:
    # From 3.12 on, Python warns of each fork beside a thread.
    quiet = ["-W", "ignore:This process:DeprecationWarning"]
    for _ in range(rounds):
        program = [sys.executable, *quiet, "-c", PROGRAM.replace("{body}", body)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
        assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


@pytest.mark.parametrize("work", QUEUES)
def test_daemonic_queues(work: str) -> None:
    ends(QUEUES[work], 2)


@pytest.mark.parametrize("wait", WAITS)
def test_daemonic_threads_that_wait(wait: str) -> None:
    ends(WAITS[wait], 2)


@pytest.mark.parametrize("code", CODE)
def test_python_code_that_byref_calls(code: str) -> None:
    ends(CODE[code], 2)


@pytest.mark.parametrize("code", LATE_CODE)
def test_threads_that_are_nearly_gone(code: str) -> None:
    ends(LATE_CODE[code], 5)


@pytest.mark.parametrize("how", STARTED)
def test_started_queues_end_with_the_program(how: str) -> None:
    body, output = STARTED[how]
    ends(body, 1, output)


def test_an_exception_in_the_main_thread_ends_the_program() -> None:
    program = "import byref; queue = byref.EventQueue(); queue.subscribe('t', print); queue.start(); raise RuntimeError"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "RuntimeError")


def test_one_ctrl_c_ends_a_program_whose_callback_hangs() -> None:
    body = "queue(lambda msg: (print('called', flush=True), running.set(), time.sleep(1000))).start(); feed('t')"
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = [sys.executable, "-c", handler + PROGRAM.replace("{body}", body)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout
        try:
            assert [child.stdout.readline() for _ in range(2)] == ["called\n", "end\n"]
            time.sleep(0.3)  # Then it waits for the callback.
            child.send_signal(signal.SIGINT)
            assert child.wait(PATIENCE) in (0, 1, -signal.SIGINT)
        finally:
            child.kill()

"""Programs of pyzmq on byref: `PYZMQ_BACKEND=byref.zmq`, across real processes.

Each test's program runs in processes of its own: the backend of a process is chosen when pyzmq is imported.
"""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import PATIENCE

BEGIN = """
import asyncio, errno, os, signal, sys, threading, time
import zmq, zmq.asyncio
assert zmq.backend.Socket.__module__ == "byref.zmq._socket"
ctx = zmq.Context()

def make(kind, **options):
    made = ctx.socket(kind)
    for name, value in options.items():
        setattr(made, name, value)
    return made

def number_of(call, *arguments):
    try:
        call(*arguments)
    except zmq.ZMQError as problem:
        return errno.errorcode.get(problem.errno, problem.errno)
    return None
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, rendezvous: Path) -> Iterator[Start]:
    """Starts a program of pyzmq on byref, which finds a folder in its arguments."""
    running: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-X", "faulthandler", "-c", BEGIN + textwrap.dedent(program), str(tmp_path)]
        environment = os.environ | {"PYZMQ_BACKEND": "byref.zmq"}
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen([*command, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> list[str]:
    """What a program prints until its end, which is a good one."""
    output, problems = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output + problems
    return output.splitlines()


def line(process: "subprocess.Popen[str]") -> str:
    """The next line that a program prints."""
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        _, problems = process.communicate(timeout=PATIENCE)
        raise AssertionError(problems)
    return text.strip()


ENDPOINTS = ["inproc://a", "ipc://{folder}/a", "tcp://127.0.0.1:0"]


# ---- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_all_patterns(start: Start, endpoint: str) -> None:
    program = """
    address = sys.argv[2].format(folder=sys.argv[1])
    for first, second in ((zmq.PAIR, zmq.PAIR), (zmq.PUSH, zmq.PULL), (zmq.DEALER, zmq.DEALER)):
        a, b = make(first), make(second)
        a.bind(address); b.connect(a.last_endpoint)
        a.send(b"one"); a.send_multipart([b"", b"two", b"x" * 100_000])
        assert b.recv() == b"one" and b.recv_multipart() == [b"", b"two", b"x" * 100_000]
        a.close(); b.close()
    req, rep = make(zmq.REQ), make(zmq.REP)
    rep.bind(address); req.connect(rep.last_endpoint)
    for body in ([b"a"], [b"a", b""], [b"", b"a"]):
        req.send_multipart(body); assert rep.recv_multipart() == body
        assert number_of(req.send, b"again") == zmq.EFSM and number_of(rep.recv) == zmq.EFSM
        rep.send_multipart(body[::-1]); assert req.recv_multipart() == body[::-1]
    req.close(); rep.close()
    router, dealer, req = make(zmq.ROUTER), make(zmq.DEALER, identity=b"d"), make(zmq.REQ, identity=b"r" * 255)
    router.bind(address); dealer.connect(router.last_endpoint); req.connect(router.last_endpoint)
    dealer.send_multipart([b"x", b"y"]); assert router.recv_multipart() == [b"d", b"x", b"y"]
    req.send(b"q"); assert router.recv_multipart() == [b"r" * 255, b"", b"q"]
    router.send_multipart([b"r" * 255, b"", b"answer"]); assert req.recv() == b"answer"
    for made in (router, dealer, req): made.close()
    xpub, sub, xsub = make(zmq.XPUB), make(zmq.SUB), make(zmq.XSUB)
    xpub.bind(address); sub.connect(xpub.last_endpoint); xsub.connect(xpub.last_endpoint)
    sub.subscribe = b"a"; assert xpub.recv() == b"\\1a"
    xsub.send(b"\\1b"); assert xpub.recv() == b"\\1b"
    for topic in (b"a1", b"b1", b"c1", b"a2"): xpub.send_multipart([topic, b"body"])
    assert [sub.recv_multipart()[0] for _ in range(2)] == [b"a1", b"a2"] and xsub.recv_multipart() == [b"b1", b"body"]
    sub.close(); assert xpub.recv() == b"\\0a"
    xpub.close(); xsub.close()
    ctx.term()
    print("done")
    """
    assert said(start(program, endpoint)) == ["done"]


def test_frames_arrive_by_reference(start: Start) -> None:
    program = """
    import byref
    a, b = make(zmq.PUSH), make(zmq.PULL)
    a.bind("inproc://a"); b.connect("inproc://a")
    tracker = a.send(bytearray(1 << 20), copy=False, track=True)
    tracker.wait(20)
    frame = b.recv(copy=False)
    assert byref.copied_bytes()["receive"] < 1000, byref.copied_bytes()
    view = memoryview(frame)
    assert view.readonly and len(view) == len(frame) == 1 << 20
    del frame
    for _ in range(100): a.send(b"\\1" * (1 << 20)); b.recv()
    assert not any(view[:1000])
    a.send_multipart([b"small", memoryview(view)], copy=False)
    small, large = b.recv_multipart(copy=False)
    assert small.more and not large.more and large.buffer == view
    print("done")
    """
    assert said(start(program)) == ["done"]


# ---- addresses -------------------------------------------------------------------------------------------------------


def test_an_address_is_held_by_listening(start: Start, tmp_path: Path) -> None:
    holder = start("""
    a, b = make(zmq.REP), make(zmq.REP)
    a.bind("tcp://127.0.0.1:0"); b.bind(f"ipc://{sys.argv[1]}/held")
    print(a.last_endpoint.decode(), flush=True)
    sys.stdin.readline()
    """)
    address = line(holder)
    path = f"ipc://{tmp_path}/held"
    host, port = address.removeprefix("tcp://").split(":")
    socket.create_connection((host, int(port)), timeout=PATIENCE).close()  # A readiness probe.
    other = """
    for address in sys.argv[2:]: print(number_of(make(zmq.REP).bind, address))
    """
    assert said(start(other, address, path)) == ["EADDRINUSE", "EADDRINUSE"]
    holder.kill()
    holder.wait()
    assert said(start(other, address, path)) == ["None", "None"]


def test_errors_have_the_numbers_of_libzmq(start: Start) -> None:
    program = """
    made = make(zmq.PUSH)
    print(*(number_of(made.bind, address) for address in ("tcp://", "udp://127.0.0.1:1", "tcp://127.0.0.1:99999",
        "ipc:///no/such/folder/a", "ipc://" + "x" * 200, "tcp://192.0.2.1:7000")))
    print(number_of(made.recv), number_of(made.unbind, "inproc://a"), number_of(made.setsockopt, zmq.SUBSCRIBE, b""),
        number_of(made.send, b"", zmq.DONTWAIT), number_of(make, zmq.STREAM), number_of(made.setsockopt, zmq.HWM, -1))
    made.bind("inproc://a"); print(number_of(make(zmq.PULL).bind, "inproc://a"))
    try: made.curve_server = 1
    except zmq.ZMQError as problem: print("docs/integrations/pyzmq.md" in str(problem))
    made.close(); print(number_of(made.send, b""))
    """
    first, second, *rest = said(start(program))
    assert first.split() == ["EINVAL", "EPROTONOSUPPORT", "EINVAL", "ENOENT", "ENAMETOOLONG", "EADDRNOTAVAIL"]
    assert second.split() == ["ENOTSUP", "ENOENT", "EINVAL", "EAGAIN", "EINVAL", "EINVAL"] or second.split()[0] in (
        "EOPNOTSUPP"
    )
    assert rest == ["EADDRINUSE", "True", "ENOTSOCK"]


def test_a_libzmq_without_byref_is_told_of(start: Start, tmp_path: Path) -> None:
    ours = start("""
    made = make(zmq.PULL); made.bind(f"ipc://{sys.argv[1]}/mixed")
    print("bound", flush=True)
    made.poll(3000)
    """)
    line(ours)
    stock = f"import zmq; s = zmq.Context().socket(zmq.PUSH); s.connect('ipc://{tmp_path}/mixed'); s.poll(1000)"
    environment = {name: value for name, value in os.environ.items() if name != "PYZMQ_BACKEND"}
    subprocess.run([sys.executable, "-c", stock + "; s.close(0)"], env=environment, check=True, timeout=PATIENCE)
    _, problems = ours.communicate(timeout=PATIENCE)
    assert "somebody connected in vain" in problems
    assert "byref exec --zmq" in problems


# ---- what Scaler's runs showed ---------------------------------------------------------------------------------------


def test_an_unknown_or_dead_peer_drops_and_never_blocks(start: Start, tmp_path: Path) -> None:
    peer = """
    made = make(zmq.DEALER, identity=b"w" * int(sys.argv[2])); made.connect(f"ipc://{sys.argv[1]}/r")
    made.send(b"here")
    while True: made.recv()
    """
    program = """
    router = make(zmq.ROUTER); router.bind(f"ipc://{sys.argv[1]}/r")
    router.send_multipart([b"nobody", b"lost"])
    print("bound", flush=True)
    for _ in range(2):
        name, body = router.recv_multipart(); assert body == b"here"
        print(len(name), flush=True); sys.stdin.readline()
        for _ in range(5000): router.send_multipart([name, b"x" * 1000], zmq.DONTWAIT)
    print("done", flush=True)
    """
    router = start(program)
    assert line(router) == "bound"
    assert router.stdin is not None
    for length in (1, 255):
        child = start(peer, str(length))
        assert line(router) == str(length)
        child.send_signal(signal.SIGKILL if length == 1 else signal.SIGSTOP)
        router.stdin.write("\n")
        router.stdin.flush()
    assert line(router) == "done"


def test_a_duplicate_identity_waits_for_the_end_of_the_first(start: Start) -> None:
    peer = """
    made = make(zmq.DEALER, identity=b"same"); made.connect(f"ipc://{sys.argv[1]}/r")
    made.send(sys.argv[2].encode()); print("sent", flush=True)
    print(made.recv().decode(), flush=True)
    """
    router = start("""
    router = make(zmq.ROUTER); router.bind(f"ipc://{sys.argv[1]}/r")
    print("bound", flush=True)
    while True:
        name, body = router.recv_multipart()
        print(body.decode(), flush=True)
        if body == b"second": router.send_multipart([name, b"hello second"])
    """)
    assert line(router) == "bound"
    first = start(peer, "first")
    assert line(router) == "first"
    second = start(peer, "second")
    assert line(second) == "sent"
    first.kill()
    assert line(router) == "second"
    assert [line(second)] == ["hello second"]


def test_without_a_high_water_mark_nothing_blocks_and_all_arrives(start: Start) -> None:
    sender = start("""
    made = make(zmq.PUSH, hwm=0); made.connect(f"ipc://{sys.argv[1]}/p")
    for number in range(20_000): made.send(b"%d" % number, zmq.DONTWAIT)
    print("sent", flush=True)
    made.close(); ctx.term(); print("gone", flush=True)
    """)
    assert line(sender) == "sent"
    receiver = start("""
    made = make(zmq.PULL); made.bind(f"ipc://{sys.argv[1]}/p")
    print([int(made.recv()) for _ in range(20_000)] == list(range(20_000)))
    """)
    assert said(receiver) == ["True"]
    assert line(sender) == "gone"


def test_a_high_water_mark_blocks(start: Start) -> None:
    program = """
    a, b = make(zmq.PUSH, sndhwm=3, sndtimeo=50), make(zmq.PULL, rcvhwm=4)
    a.bind("inproc://a"); b.connect("inproc://a")
    sent = 0
    while number_of(a.send, b"%d" % sent) is None: sent += 1
    print(sent)
    assert [int(b.recv()) for _ in range(sent)] == list(range(sent))
    a.send(b"again"); assert b.recv() == b"again"
    """
    assert said(start(program)) == ["7"]


def test_closing_in_a_signal_handler_ends_a_receive(start: Start) -> None:
    program = """
    made = make(zmq.PULL); made.bind(f"ipc://{sys.argv[1]}/c")
    signal.signal(signal.SIGTERM, lambda *_: made.close())
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    print(number_of(made.recv))
    """
    assert said(start(program)) == ["ENOTSOCK"]


def test_a_stopped_peer_stalls_nobody(start: Start) -> None:
    program = """
    pub = make(zmq.PUB); pub.bind(f"ipc://{sys.argv[1]}/s")
    push = make(zmq.PUSH, hwm=10); push.bind(f"ipc://{sys.argv[1]}/t")
    while True:
        pub.send(b"tick")
        if push.get(zmq.EVENTS) & zmq.POLLOUT: push.send(b"job", zmq.DONTWAIT)
        time.sleep(0.001)
    """
    peer = """
    sub = make(zmq.SUB, subscribe=b""); sub.connect(f"ipc://{sys.argv[1]}/s")
    pull = make(zmq.PULL, hwm=10); pull.connect(f"ipc://{sys.argv[1]}/t")
    sub.recv(); pull.recv(); print("here", flush=True)
    sys.stdin.readline()
    for _ in range(300): sub.recv(); pull.recv()
    print("done", flush=True)
    """
    start(program)
    first, second = start(peer), start(peer)
    assert line(first) == line(second) == "here"
    first.send_signal(signal.SIGSTOP)
    assert second.stdin is not None
    second.stdin.write("\n")
    second.stdin.flush()
    assert line(second) == "done"


def test_asyncio_in_another_thread_and_cancelled_receives(start: Start) -> None:
    program = """
    shared = zmq.asyncio.Context()
    pull, push = shared.socket(zmq.PULL), make(zmq.PUSH)
    pull.bind(f"ipc://{sys.argv[1]}/a"); push.connect(f"ipc://{sys.argv[1]}/a")

    async def take():
        found = []
        while len(found) < 500:
            try: found.append(int(await asyncio.wait_for(pull.recv(), 0.002)))
            except asyncio.TimeoutError: pass
        print(found == list(range(500)))

    def send():
        for number in range(500):
            push.send(b"%d" % number)
            if number % 50 == 0: time.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(take())); thread.start()
    send(); thread.join()
    pull.close(); push.close(); shared.term(); ctx.term()
    """
    assert said(start(program)) == ["True"]


def test_destroy_does_not_wait_for_sockets_of_shadows(start: Start) -> None:
    program = """
    import warnings
    shadow = zmq.asyncio.Context(ctx)
    made = shadow.socket(zmq.PULL); made.bind("inproc://a")
    ctx.destroy(linger=0); print(made.closed, ctx.closed)
    """
    assert said(start(program)) == ["True True"]


def test_term_interrupts_and_waits_for_what_lingers(start: Start) -> None:
    program = """
    made = make(zmq.PULL); made.bind("inproc://a")
    numbers = []
    def wait():
        numbers.append(number_of(made.recv)); made.close()
    thread = threading.Thread(target=wait); thread.start(); time.sleep(0.2)
    push = make(zmq.PUSH, linger=300); push.connect(f"ipc://{sys.argv[1]}/nobody"); push.send(b"x"); push.close()
    before = time.monotonic(); ctx.term(); took = time.monotonic() - before
    thread.join(); print(numbers == [zmq.ETERM], took > 0.2)
    """
    assert said(start(program)) == ["True True"]


def test_a_forked_child_harms_nobody(start: Start) -> None:
    program = """
    rep = make(zmq.REP); rep.bind(f"ipc://{sys.argv[1]}/f")
    req = make(zmq.REQ); req.connect(f"ipc://{sys.argv[1]}/f")
    req.send(b"a"); assert rep.recv() == b"a"; rep.send(b"b"); assert req.recv() == b"b"
    if (child := os.fork()) == 0:
        rep.close(); req.close(); ctx.destroy()
        inner = zmq.Context(); made = inner.socket(zmq.PAIR); made.bind("inproc://x"); made.close(); inner.term()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    req.send(b"a"); assert rep.recv() == b"a"; rep.send(b"b"); assert req.recv() == b"b"
    other = make(zmq.REQ); other.connect(f"ipc://{sys.argv[1]}/f")
    other.send(b"c"); assert rep.recv() == b"c"
    print("done")
    """
    assert said(start(program)) == ["done"]


def test_poll_proxy_and_monitor(start: Start) -> None:
    program = """
    from zmq.utils.monitor import recv_monitor_message
    front, back = make(zmq.ROUTER), make(zmq.DEALER)
    front.bind("inproc://front"); back.bind("inproc://back")
    def hand_on():
        try: zmq.proxy(front, back)
        except zmq.ContextTerminated: front.close(); back.close()
    thread = threading.Thread(target=hand_on, daemon=True); thread.start()
    req, rep = make(zmq.REQ), make(zmq.REP)
    events = req.get_monitor_socket()
    req.connect("inproc://front"); rep.connect("inproc://back")
    req.send(b"q"); poller = zmq.Poller(); poller.register(rep, zmq.POLLIN); poller.register(os.pipe()[0], zmq.POLLIN)
    assert dict(poller.poll(20_000)) == {rep: zmq.POLLIN}
    assert rep.recv() == b"q"; rep.send(b"a"); assert req.recv() == b"a"
    server = make(zmq.REP); server.bind("tcp://127.0.0.1:0"); req.connect(server.last_endpoint)
    seen = set()
    while not seen >= {zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED}:
        seen.add(recv_monitor_message(events)["event"])
    server.close()
    while recv_monitor_message(events)["event"] != zmq.EVENT_DISCONNECTED: pass
    for made in (req, rep, events): made.close(0)
    ctx.term(); thread.join(); print("done")
    """
    assert said(start(program)) == ["done"]

"""Directories and sockets that vanish: endpoints that live meet newcomers all the same, and nobody twice."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import byref
import pytest

from tests.conftest import Endpoints
from tests.processes import Child, Line, descriptors, eventually, state_of
from tests.test_steps import FAULTS, needs_faults

Spawn = Callable[..., Child]

# Longer than the service thread waits between two looks at the directory (s).
A_LOOK = 1.5


@pytest.fixture
def place(rendezvous: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rendezvous directory that may come and go."""
    path = rendezvous / "place"
    monkeypatch.setenv("BYREF_DIR", str(path))
    return path


def publish(line: Line, topic: str) -> None:
    """Sends what it is told to, and tells who listens."""
    with byref.Publisher(topic) as pub:
        line.tell("listening")
        while (order := line.hear(90)) != "end":
            if isinstance(order, int):
                pub.wait_for_subscribers(order, timeout=30)
                line.tell(sorted(sub.pid for sub in pub.subscribers))
            else:
                line.tell(pub.send(order.encode(), timeout=30))


def subscribe(line: Line, topic: str, policy: str = "block") -> None:
    """Tells each message, and each event."""
    with byref.Subscriber(topic, policy=policy, events=True) as sub:
        line.tell("watching")
        for item in sub:
            if isinstance(item, byref.Event):
                line.tell(item.kind)
            else:
                line.tell(bytes(item).decode())
                if bytes(item) == b"last":
                    return


def removed(place: Path) -> None:
    shutil.rmtree(place)


def moved(place: Path) -> None:
    place.rename(place.parent / "elsewhere")


def replaced(place: Path) -> None:
    moved(place)
    place.mkdir(mode=0o700)


def mounted_over(place: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("nothing can be mounted here")


@pytest.fixture
def vanish(request: pytest.FixtureRequest, place: Path) -> Iterator[Callable[[], None]]:
    """Lets the directory vanish in the test's way."""
    yield lambda: request.param(place)
    if request.param is mounted_over:
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


in_all_ways = pytest.mark.parametrize("vanish", [removed, moved, replaced, mounted_over], indirect=True)


@in_all_ways
def test_a_waiting_subscriber_meets_who_comes_later(vanish: Callable[[], None], spawn: Spawn, place: Path) -> None:
    sub = spawn(subscribe, "t")
    assert sub.hear() == "watching"
    vanish()
    pub = spawn(publish, "t")
    assert pub.hear() == "listening"
    pub.tell(1)
    assert pub.hear() == [sub.pid]
    assert sub.hear() == "joined"


@in_all_ways
def test_a_publisher_meets_who_comes_later(vanish: Callable[[], None], spawn: Spawn, place: Path) -> None:
    pub = spawn(publish, "t")
    assert pub.hear() == "listening"
    vanish()
    sub = spawn(subscribe, "t")
    assert sub.hear() == "watching"
    pub.tell(1)
    assert pub.hear() == [sub.pid]


@in_all_ways
@pytest.mark.parametrize("topic", ["t", "*"])
def test_who_is_connected_stays_and_is_not_connected_twice(
    topic: str, vanish: Callable[[], None], spawn: Spawn, place: Path
) -> None:
    """Also by a subscriber that looks around anew, in the new directory."""
    pub, sub = spawn(publish, "t"), spawn(subscribe, topic)
    assert (pub.hear(), sub.hear()) == ("listening", "watching")
    pub.tell(1)
    assert pub.hear() == [sub.pid]
    vanish()
    second = spawn(subscribe, "t")  # Whoever comes next makes the directory.
    assert second.hear() == "watching"
    pub.tell(2)
    assert pub.hear() == sorted([sub.pid, second.pid])
    time.sleep(A_LOOK)
    pub.tell(2)
    assert pub.hear() == sorted([sub.pid, second.pid])
    for word in ("one", "two", "last"):
        pub.tell(word)
        pub.hear()
    assert [sub.hear() for _ in range(4)] == ["joined", "one", "two", "last"]
    sub.finish()


@in_all_ways
def test_a_frozen_process_catches_up(vanish: Callable[[], None], spawn: Spawn, place: Path) -> None:
    pub, sub = spawn(publish, "t"), spawn(subscribe, "u")
    assert (pub.hear(), sub.hear()) == ("listening", "watching")
    for child in (pub, sub):
        child.signal(signal.SIGSTOP)
    vanish()
    late_sub, late_pub = spawn(subscribe, "t"), spawn(publish, "u")
    assert (late_sub.hear(), late_pub.hear()) == ("watching", "listening")
    for child in (pub, sub):
        child.signal(signal.SIGCONT)
    pub.tell(1)
    assert pub.hear() == [late_sub.pid]
    late_pub.tell(1)
    assert late_pub.hear() == [sub.pid]


def test_again_and_again(spawn: Spawn, place: Path, endpoints: Endpoints) -> None:
    pub = spawn(publish, "t")
    assert pub.hear() == "listening"
    names = set()
    for count in range(1, 5):
        endpoints.subscriber("t").wait_for_publishers(timeout=20)
        pub.tell(count)
        assert pub.hear() == [os.getpid()] * count
        (name,) = os.listdir(place)
        names.add(name)
        removed(place)
    assert len(names) == 4, "no name is used again"
    assert len({name[:-8] for name in names}) == 1, "all tell whose they are"


def test_a_lone_socket_that_is_removed_comes_again(spawn: Spawn, place: Path, endpoints: Endpoints) -> None:
    """As a cleaner of old files does it."""
    pub = spawn(publish, "t")
    assert pub.hear() == "listening"
    first = endpoints.subscriber("t")
    first.wait_for_publishers(timeout=20)
    (name,) = os.listdir(place)
    (place / name).unlink()
    (again,) = eventually(lambda: os.listdir(place), "it is announced anew")
    assert again != name
    endpoints.subscriber("t").wait_for_publishers(timeout=20)
    time.sleep(A_LOOK)
    pub.tell(2)
    assert pub.hear() == [os.getpid()] * 2
    assert len(first.publishers) == 1
    pub.tell("end")
    pub.finish()
    assert os.listdir(place) == []


def serve(line: Line) -> None:
    """Has a queue with a name."""
    with byref.EventQueue(name="answering") as queue:
        queue.subscribe("t", print)
        line.tell("there")
        line.hear(90)


@in_all_ways
def test_a_queue_is_found_again(vanish: Callable[[], None], spawn: Spawn, place: Path) -> None:
    queue = spawn(serve)
    assert queue.hear() == "there"
    vanish()
    eventually(lambda: [report["name"] for report in byref.monitors()] == ["answering"], "the queue is found")
    queue.tell()
    queue.finish()
    assert os.listdir(place) == []


def test_a_directory_that_nobody_needs_is_not_made_again(place: Path, endpoints: Endpoints) -> None:
    endpoints.pair()
    removed(place)
    time.sleep(A_LOOK)
    assert not place.exists()


def test_a_replaced_directory_is_checked(place: Path, endpoints: Endpoints, spawn: Spawn) -> None:
    pub, sub = endpoints.pair()
    removed(place)
    place.mkdir(mode=0o700)
    place.chmod(0o755)
    time.sleep(A_LOOK)
    assert os.listdir(place) == [], "nobody announces itself where others can look"
    pub.send(b"still connected")
    assert bytes(sub.recv(timeout=30)) == b"still connected"
    place.chmod(0o700)
    late = spawn(subscribe, "t")
    assert late.hear() == "watching"
    pub.wait_for_subscribers(2, timeout=20)


# ---- at each step of it ----

POINTS = ["meet.moved", "listen.bound", "listen.announced", "renew.former_left", "meet.told"]


def publish_to_the_end(line: Line, topic: str, fate: str) -> None:
    """Announces itself, and meets its fate when it does so again."""
    os.environ["BYREF_FAULT"] = fate
    publish(line, topic)


def passing(point: str) -> int:
    """Of the points that each publisher passes when it is made, the next passing is the one that counts."""
    return 2 if point.startswith("listen.") else 1


@needs_faults
@pytest.mark.parametrize("point", POINTS)
def test_a_publisher_that_stops_while_it_moves(
    point: str, spawn: Spawn, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    pub, sub = spawn(publish_to_the_end, "t", f"{point}:{passing(point)}:stop"), spawn(subscribe, "t")
    assert (pub.hear(), sub.hear()) == ("listening", "watching")
    pub.tell(1)
    assert pub.hear() == [sub.pid]
    replaced(place)
    eventually(lambda: state_of(pub.pid) == "T", "it stops")
    late = spawn(subscribe, "t")
    assert late.hear() == "watching"
    pub.signal(signal.SIGCONT)
    pub.tell(2)
    assert pub.hear() == sorted([sub.pid, late.pid])
    pub.tell("last")
    pub.hear()
    assert [sub.hear(), sub.hear()] == ["joined", "last"]
    assert [late.hear(), late.hear()] == ["joined", "last"]
    pub.tell("end")
    pub.finish()
    assert os.listdir(place) == []


@needs_faults
@pytest.mark.parametrize("point", POINTS)
def test_a_publisher_that_dies_while_it_moves(
    point: str, spawn: Spawn, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who are connected learn of it, and newcomers meet its successor."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    pub, sub = spawn(publish_to_the_end, "t", f"{point}:{passing(point)}:kill"), spawn(subscribe, "t")
    assert (pub.hear(), sub.hear()) == ("listening", "watching")
    pub.tell(1)
    assert pub.hear() == [sub.pid]
    replaced(place)
    assert pub.wait() == -signal.SIGKILL
    assert [sub.hear(), sub.hear()] == ["joined", "lost"]
    second = spawn(publish, "t")
    assert second.hear() == "listening"
    second.tell(1)
    assert second.hear() == [sub.pid]
    second.tell("end")
    second.finish()
    eventually(
        lambda: all(name.startswith("tmp-") for name in os.listdir(place)), "nothing but a temporary name is left"
    )


# ---- which directory ----


def test_a_relative_path_and_a_later_chdir(rendezvous: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawn) -> None:
    """What counts is where a process was when it imported byref."""
    elsewhere = rendezvous / "/".join("a" * 20)
    elsewhere.mkdir(parents=True)
    sub = spawn(subscribe_elsewhere, os.path.relpath(rendezvous / "relative"), str(elsewhere))
    assert sub.hear() == "watching"
    monkeypatch.setenv("BYREF_DIR", str(rendezvous / "relative"))
    pub = spawn(publish, "t")
    assert pub.hear() == "listening"
    pub.tell(1)
    assert pub.hear() == [sub.pid]


def subscribe_elsewhere(line: Line, directory: str, elsewhere: str) -> None:
    """Makes one endpoint before it goes to another directory, and one afterwards, which meet."""
    os.environ["BYREF_DIR"] = directory
    with byref.Publisher("here"):
        os.chdir(elsewhere)
        with byref.Subscriber("here") as here:
            here.wait_for_publishers(timeout=20)
        subscribe(line, "t")


def test_a_home_directory(rendezvous: Path, monkeypatch: pytest.MonkeyPatch, endpoints: Endpoints) -> None:
    monkeypatch.setenv("HOME", str(rendezvous))
    monkeypatch.setenv("BYREF_DIR", "~/of/mine")
    endpoints.pair()
    assert len(os.listdir(rendezvous / "of" / "mine")) == 1
    assert not Path("~").exists()


def test_what_cannot_be_resolved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYREF_DIR", "~somebody/else")
    for make in (byref.Publisher, byref.Subscriber):
        with pytest.raises(byref.Error, match="'~somebody' is not looked up; write the path in full"):
            make("t")
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("BYREF_DIR", "~/mine")
    with pytest.raises(byref.Error, match="HOME is not set"):
        byref.Publisher("t")


# ---- what is told ----


def test_errors_name_the_directory(rendezvous: Path, endpoints: Endpoints) -> None:
    sub, pub = endpoints.subscriber("a"), endpoints.publisher("b")
    looked_for = f"no publisher is connected: they are looked for in {rendezvous}"
    for call in (sub.recv, sub.wait_for_publishers, lambda timeout: sub.recv_batch(10, timeout=timeout)):
        with pytest.raises(byref.Timeout, match=looked_for):
            call(timeout=0.01)  # type: ignore[operator]
    with pytest.raises(byref.Timeout, match=f"subscribers find it in {rendezvous}"):
        pub.wait_for_subscribers(timeout=0.01)


def test_a_directory_that_is_gone_is_told(place: Path, endpoints: Endpoints) -> None:
    sub = endpoints.subscriber()
    removed(place)
    with pytest.raises(byref.Timeout, match=f"in {place}, which is gone"):
        sub.recv(timeout=0.01)


def test_a_publisher_in_another_likely_directory_is_told(
    rendezvous: Path, monkeypatch: pytest.MonkeyPatch, endpoints: Endpoints
) -> None:
    """As with a service that has another TMPDIR."""
    monkeypatch.setenv("TMPDIR", str(rendezvous))
    theirs = rendezvous / f"byref-{os.geteuid()}"
    monkeypatch.setenv("BYREF_DIR", str(theirs))
    endpoints.publisher("sensors/a")
    monkeypatch.setenv("BYREF_DIR", str(rendezvous / "ours"))
    other = f"listens in {theirs}: give both processes the same BYREF_DIR"
    with pytest.raises(byref.Timeout, match=f"a publisher of this topic {other}"):
        endpoints.subscriber("sensors/a").recv(timeout=0.2)
    with pytest.raises(byref.Timeout, match=f"publishers listen in {theirs}"):
        endpoints.subscriber("sensors/*").recv(timeout=0.2)
    with pytest.raises(byref.Timeout) as problem:
        endpoints.subscriber("sensors/b").recv(timeout=0.2)
    assert str(theirs) not in str(problem.value)
    with pytest.raises(byref.Timeout, match=f"other publishers listen in {theirs}"):
        endpoints.publisher("c").wait_for_subscribers(timeout=0.2)


USER = 41007


def publish_as_another_user(line: Line, topic: str) -> None:
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    del os.environ["BYREF_DIR"]
    publish(line, topic)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user and make /run/user/UID")
def test_a_session_that_begins_later(rendezvous: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before /run/user/UID is there endpoints meet among the temporary files, and go there when it is."""
    runtime = Path(f"/run/user/{USER}")
    assert not runtime.exists()
    rendezvous.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(rendezvous))
    early = spawn(publish_as_another_user, "t")
    assert early.hear() == "listening"
    assert (rendezvous / f"byref-{USER}").exists()
    made = not runtime.parent.exists()
    runtime.mkdir(parents=True)
    try:
        os.chown(runtime, USER, USER)
        late = spawn(subscribe_as_another_user, "t")
        assert late.hear() == "watching"
        early.tell(1)
        assert early.hear() == [late.pid]
        assert list((runtime / "byref").iterdir())
    finally:
        shutil.rmtree(runtime.parent if made else runtime)


def subscribe_as_another_user(line: Line, topic: str) -> None:
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    del os.environ["BYREF_DIR"]
    subscribe(line, topic)


# ---- topics that would never match ----


@pytest.mark.parametrize(
    "make", [byref.Publisher, byref.Subscriber, lambda topic: byref.EventQueue().subscribe(topic, print)]
)
@pytest.mark.parametrize(
    ("topic", "right"),
    [
        ("sensors/#", "sensors/**"),
        ("a/+/b", "a/*/b"),
        ("+/x/#", "*/x/**"),
        (unicodedata.normalize("NFD", "küche/café"), unicodedata.normalize("NFC", "küche/café")),
        ("\u212b", "\u00c5"),
    ],
)
def test_topics_that_would_never_match_are_refused(make: Callable[[str], object], topic: str, right: str) -> None:
    with pytest.raises(byref.InvalidTopic) as problem:
        make(topic)
    assert f"'{right}'" in str(problem.value)


@pytest.mark.parametrize("topic", ["c++", "#1", "a+b/c#", unicodedata.normalize("NFC", "küche/한국")])
def test_topics_that_only_look_so(topic: str, endpoints: Endpoints) -> None:
    pub, sub = endpoints.publisher(topic), endpoints.subscriber(topic)
    pub.wait_for_subscribers(timeout=20)
    pub.send(b"")
    assert sub.recv(timeout=20).topic == topic


# ---- where directories cannot be watched ----


def limit_inotify(kind: str, most: int) -> None:
    """Lets the users of this process's namespace have so many inotify instances, or watches."""
    Path(f"/proc/sys/user/max_inotify_{kind}").write_text(str(most))


def enter_user_namespace() -> bool:
    """Has limits of its own."""
    user, group, clone_newuser = os.geteuid(), os.getegid(), 0x10000000
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newuser):
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return True


def has_watch() -> bool:
    return "anon_inode:inotify" in descriptors().values()


def subscribe_without_watch(line: Line, kind: str) -> None:
    """Meets publishers while no watch can be had, and afterwards."""
    try:
        possible = enter_user_namespace()
        limit_inotify(kind, 0)
    except OSError:
        possible = False
    line.tell(possible)
    if not possible:
        return
    with byref.Subscriber("t", events=True) as sub:
        line.tell(has_watch())
        for order in ("joined", "left", "joined"):
            event = sub.recv(timeout=30)
            assert isinstance(event, byref.Event)
            assert event.kind == order
            line.tell(order)
        limit_inotify(kind, 100)
        eventually(has_watch, "it watches again")
        line.tell("watching")
        line.tell(sub.recv(timeout=30).kind)
        line.hear(90)


@pytest.fixture
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who enters a user namespace may have no other thread, not even one of NumPy's."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("kind", ["instances", "watches"])
def test_without_inotify(kind: str, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = spawn(subscribe_without_watch, kind)
    if not sub.hear():
        pytest.skip("no user namespace with limits of its own here")
    assert sub.hear() is False
    first = endpoints.publisher("t")
    assert sub.hear() == "joined"
    first.close()
    assert sub.hear() == "left"
    endpoints.publisher("t")
    assert [sub.hear() for _ in range(2)] == ["joined", "watching"]
    endpoints.publisher("t")
    assert sub.hear() == "joined"
    sub.tell()
    sub.finish()


def many_subscribers(line: Line, count: int, instances: int | None) -> None:
    """So many processes, each with a subscriber, of a user who may have so many inotify instances (None: the usual)."""
    try:
        possible = instances is None or enter_user_namespace()
        if instances is not None:
            limit_inotify("instances", instances)
    except OSError:
        possible = False
    line.tell(possible)
    if not possible:
        return
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            with byref.Subscriber("t") as sub:
                os._exit(0 if bytes(sub.recv(timeout=40)) == b"to all" else 1)
        children.append(pid)
    line.tell([os.waitpid(child, 0)[1] for child in children])


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(("count", "instances"), [(5, 2), (150, None)])
def test_more_processes_than_instances(count: int, instances: int | None, spawn: Spawn, endpoints: Endpoints) -> None:
    sub = spawn(many_subscribers, count, instances)
    if not sub.hear():
        pytest.skip("no user namespace with limits of its own here")
    pub = endpoints.publisher("t")
    pub.wait_for_subscribers(count, timeout=30)
    pub.send(b"to all")
    assert sub.hear() == [0] * count


def test_a_process_without_descriptors_is_told(spawn: Spawn) -> None:
    """Its own limit looks the same to it, and is none that another way would help against."""
    sub = spawn(subscribe_without_descriptors)
    assert sub.hear() == "told"
    sub.finish()


def subscribe_without_descriptors(line: Line) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.environ["BYREF_RAISE_NOFILE"] = "0"
    with byref.Publisher("t"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(2))
        for left in range(12):
            if left:
                os.close(taken.pop())
            said = "nothing"
            try:
                byref.Subscriber("t").close()
            except byref.Error as problem:
                said = str(problem)
            else:
                break
            assert "`ulimit -n`: 64" in said
        assert left > 0
        line.tell("told")

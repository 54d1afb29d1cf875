"""Who may connect: real users and groups, where the tests run as root."""

import ctypes
import json
import os
import select
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import byref
import pytest

from tests.payloads import is_payload, payload
from tests.processes import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

OWNER, FRIEND, STRANGER = 41001, 41002, 41003
GROUP = 42000
ME = os.geteuid()


class Person:
    """A process of another user that does one thing, and tells what came of it."""

    def __init__(self, user: int, groups: list[int], allow: str, task: Callable[["Person"], Any]) -> None:
        self.is_over = False
        self._answers, answers = os.pipe()
        self._end, end = os.pipe()
        self.errors, errors = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(errors, 2)
                self._answers, self._end = answers, self._end
                os.close(end)
                os.setgroups(groups)
                os.setgid(user)
                os.setuid(user)
                pr_set_dumpable = 4  # A process that changed its user may not look at its own descriptors otherwise.
                ctypes.CDLL(None).prctl(pr_set_dumpable, 1)
                os.environ["BYREF_ALLOW"] = allow
                try:
                    self.tell(task(self))
                except byref.Error as problem:
                    self.tell(f"{type(problem).__name__}: {problem}")
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.close(answers)
        os.close(errors)
        os.close(self._end)
        self._end = end

    def tell(self, value: Any) -> None:
        """Of the child: one more answer."""
        os.write(self._answers, json.dumps(value).encode() + b"\n")

    def wait_for_end(self) -> None:
        """Of the child: until the test lets go."""
        select.select([self._end], [], [], PATIENCE)

    def hear(self) -> Any:
        """The next answer."""
        text = b""
        while not text.endswith(b"\n"):
            assert select.select([self._answers], [], [], PATIENCE)[0], "no answer"
            piece = os.read(self._answers, 1)
            assert piece, os.read(self.errors, 1 << 16).decode()
            text += piece
        return json.loads(text)

    def end(self) -> str:
        """Let it go; gives what it logged."""
        self.is_over = True
        os.close(self._end)
        os.waitpid(self.pid, 0)
        logged = os.read(self.errors, 1 << 16).decode()
        os.close(self._answers)
        os.close(self.errors)
        return logged


People = Callable[..., Person]


@pytest.fixture
def people(rendezvous: Path) -> Iterator[People]:
    """Starts persons, who meet in a directory that does not exist yet; ends those that are still there."""
    os.chmod(rendezvous, 0o711)
    made: list[Person] = []

    def start(user: int, task: Callable[[Person], Any], groups: tuple[int, ...] = (), allow: str = "") -> Person:
        made.append(Person(user, list(groups), allow, task))
        return made[-1]

    yield start
    for person in made:
        if not person.is_over:
            os.kill(person.pid, signal.SIGKILL)  # It may wait for somebody who does not come.
            person.end()


def publish(person: Person) -> str:
    """Sends small and large messages to the first who connects."""
    with byref.Publisher("t", history=4) as pub:
        person.tell("ready")
        pub.wait_for_subscribers(timeout=30)
        for seed in range(4):
            pub.send(payload(seed, 50 if seed % 2 else 100_000))
        person.wait_for_end()
        return "done"


def receive(person: Person) -> bool:
    """Receives what `publish` sends."""
    with byref.Subscriber("t", history=4) as sub:
        return all(is_payload(sub.recv(timeout=30), seed, 50 if seed % 2 else 100_000) for seed in range(4))


def receive_nothing(person: Person) -> str:
    """Waits in vain."""
    with byref.Subscriber("t", history=4) as sub:
        try:
            return repr(sub.recv(timeout=1))
        except byref.Timeout:
            return "nothing"


@pytest.fixture
def meeting_place(rendezvous: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they meet: in a directory that everybody can reach, and nobody has made."""
    os.chmod(rendezvous, 0o1777)
    path = rendezvous / "shared"
    monkeypatch.setenv("BYREF_DIR", str(path))
    return path


def test_other_users_are_kept_out(people: People, meeting_place: Path) -> None:
    publisher = people(OWNER, publish)
    assert publisher.hear() == "ready"
    assert stat.S_IMODE(meeting_place.stat().st_mode) == 0o700
    for groups in ((), (OWNER,)):
        answer = people(STRANGER, receive, groups).hear()
        assert answer.startswith("Error: ")
        assert str(meeting_place) in answer
    # Who allows others is not thereby let in.
    assert people(STRANGER, receive, allow=f"user:{OWNER}").hear().startswith("Error: ")
    assert people(OWNER, receive).hear() is True


def test_the_owner_of_a_foreign_directory_is_told(people: People, meeting_place: Path) -> None:
    """By name, where there is one, and with what to do."""
    meeting_place.mkdir(mode=0o700)  # Of root.
    answer = people(STRANGER, receive).hear()
    assert "it belongs to user 'root' (0)" in answer
    assert f"this process runs as user {STRANGER}" in answer
    assert f"BYREF_ALLOW=user:0 here and BYREF_ALLOW=user:{STRANGER} there" in answer


def test_a_group_by_choice(people: People, meeting_place: Path) -> None:
    allow = f"group:{GROUP}"
    publisher = people(OWNER, publish, (GROUP,), allow)
    assert publisher.hear() == "ready"
    found = meeting_place.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (OWNER, GROUP, 0o3770)
    for entry in meeting_place.iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) & 0o007 == 0
    assert people(FRIEND, receive, (GROUP,), allow).hear() is True
    assert people(FRIEND, receive, (GROUP,)).hear().startswith("Error: ")  # It has not chosen to.
    assert people(STRANGER, receive, (), allow).hear().startswith("Error: ")
    publisher.end()
    second = people(FRIEND, publish, (GROUP,), allow)
    assert second.hear() == "ready"
    assert people(OWNER, receive, (GROUP,), allow).hear() is True


def shared_by_hand(path: Path, mode: int) -> None:
    """As an administrator makes a directory."""
    path.mkdir()
    os.chown(path, OWNER, GROUP)
    os.chmod(path, mode)


def test_another_user_by_choice(people: People, meeting_place: Path) -> None:
    """The directory lets the stranger in, too; the publisher does not."""
    shared_by_hand(meeting_place, 0o3770)
    publisher = people(OWNER, publish, (GROUP,), f"user:{FRIEND}")
    assert publisher.hear() == "ready"
    stranger = people(STRANGER, receive_nothing, (GROUP,), f"user:{OWNER},group:{GROUP}")
    assert stranger.hear() == "nothing"
    assert people(FRIEND, receive, (GROUP,), f"user:{OWNER}").hear() is True
    log = publisher.end()
    assert f"process {stranger.pid} runs as user {STRANGER}; see BYREF_ALLOW" in log


def test_publishers_are_not_trusted_either(people: People, meeting_place: Path) -> None:
    shared_by_hand(meeting_place, 0o3770)
    publisher = people(STRANGER, publish, (GROUP,), f"group:{GROUP}")
    assert publisher.hear() == "ready"
    friend = people(FRIEND, receive_nothing, (GROUP,), f"user:{OWNER}")
    assert friend.hear() == "nothing"
    assert "not to be trusted" in friend.end()


@pytest.mark.parametrize("mode", [0o3777, 0o3775, 0o3771, 0o3770 & ~0o100])
def test_nothing_is_open_to_the_world(mode: int, people: People, meeting_place: Path) -> None:
    shared_by_hand(meeting_place, mode)
    answer = people(FRIEND, receive, (GROUP,), f"group:{GROUP},user:{OWNER}").hear()
    assert answer.startswith("Error: ")
    if mode & 0o007:
        assert "3770" in answer


@pytest.mark.parametrize("allow", ["everybody", "group:", "user:no one has this name", "user:-3"])
def test_an_allowance_that_is_none(allow: str, monkeypatch: pytest.MonkeyPatch, rendezvous: Path) -> None:
    monkeypatch.setenv("BYREF_ALLOW", allow)
    with pytest.raises(ValueError, match="BYREF_ALLOW"):
        byref.Publisher("t")

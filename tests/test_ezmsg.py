"""`byref.integrations.ezmsg`: what programs of ezmsg have of it, with subscribers in every place that they can be."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ezmsg_programs import LOCAL, PROCESS, SHM, run, run_units, serve
from tests.processes import PATIENCE, Child, eventually

Spawn = Callable[..., Child]


class Graph:
    """A graph server, and programs that meet there."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._server = spawn(serve)
        self.address = self._server.hear()

    def start(self, name: str, *, local: bool = True, **options: Any) -> Child:
        """A program of `ezmsg_programs`."""
        return self._spawn(run, name, self.address, local, options)

    def start_both(self, where: str, first: str, second: str, **options: Any) -> tuple[Child, Child]:
        """A receiving program that says when it is ready, then the one that sends; twice the same in one process."""
        if where == PROCESS:
            receiver = self.start(first, **options)
            while receiver.hear() != "ready":
                pass
            return receiver, self.start(second, **options)
        child = self.start("both", local=where == LOCAL, first=first, second=second, options=options)
        assert child.hear() == "ready"
        return child, child

    def start_units(self, name: str, where: str, count: int, path: str) -> Child:
        """A collection of `ezmsg_units`."""
        return self._spawn(run_units, name, where, count, path, self.address)


@pytest.fixture
def graph(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> Graph:
    # On a busy machine it takes longer than ezmsg allows until all know each other; what is sent before goes past them.
    monkeypatch.setenv("EZMSG_SUBSCRIBER_UPDATE_TIMEOUT_SEC", str(PATIENCE))
    return Graph(spawn)


EVERYWHERE = pytest.mark.parametrize("where", [LOCAL, SHM, PROCESS])


@EVERYWHERE
def test_refilled_arrays_arrive_as_they_were(graph: Graph, where: str) -> None:
    receiver, _ = graph.start_both(where, "keep_a_window", "refill", count=200, length=50_000, num_buffers=60)
    assert receiver.hear() == 0


@EVERYWHERE
def test_relay_and_window_deliver_no_wrong_message(graph: Graph, where: str) -> None:
    count, options = 10_000, {"length": 500, "num_buffers": 32}
    receiver, _ = graph.start_both(where, "relay_and_window", "refill", count=count, **options)
    wrong = receiver.hear()
    while wrong == "ready":
        wrong = receiver.hear()
    assert wrong == 0


@pytest.mark.parametrize(("where", "end"), [(LOCAL, "close"), (SHM, "close"), (PROCESS, "close"), (PROCESS, "kill")])
def test_what_was_sent_arrives_then_the_end_is_told_once(graph: Graph, where: str, end: str) -> None:
    if where == PROCESS:
        receiver = graph.start("receive_late")
        assert receiver.hear() == "ready"
        sender = graph.start("send_and_stay", count=20)
        assert sender.hear() == "sent"
        if end == "kill":
            sender.kill()
        else:
            sender.tell("close")
            assert sender.hear() == "closed"
    else:
        receiver, _ = graph.start_both(where, "receive_late", "send_late")
    receiver.tell(20)
    found, error, _ = receiver.hear()
    assert found == list(range(20))
    assert error == ("PublisherLost" if end == "kill" else "PublisherClosed")

    # Once; and who comes later is heard.
    later = graph.start("send_and_stay", count=3)
    assert later.hear() == "sent"
    later.kill()
    receiver.tell(20)
    assert receiver.hear()[:2] == [[0, 1, 2], "PublisherLost"]
    receiver.tell(0.5)
    assert receiver.hear()[:2] == [[], "silence"]
    receiver.tell("end")
    receiver.finish()


@pytest.mark.parametrize("end", ["kill", "close"])
def test_who_waits_is_told_of_an_end_within_200_ms(graph: Graph, end: str) -> None:
    """On a busy machine not each time, but once in a few."""
    took = []
    for _ in range(10):
        receiver = graph.start("receive_late")
        assert receiver.hear() == "ready"
        receiver.tell(60)
        sender = graph.start("send_and_stay", count=3)
        assert sender.hear() == "sent"
        began = time.monotonic()
        if end == "kill":
            sender.process.kill()
        else:
            sender.tell("close")
        assert receiver.hear()[0] == [0, 1, 2]
        took.append(time.monotonic() - began)
        receiver.tell("end")
        if took[-1] < 0.2:
            return
    raise AssertionError(f"it took {took} seconds")


@EVERYWHERE
def test_growing_messages_lose_nothing(graph: Graph, where: str) -> None:
    receiver, _ = graph.start_both(where, "receive_growing", "grow", steps=18)
    assert receiver.hear() == [list(range(90)), True]


@EVERYWHERE
@pytest.mark.parametrize("name", ["Spoiled", "Relayed"])
def test_units_change_nobody_elses_messages(graph: Graph, tmp_path: Path, name: str, where: str) -> None:
    path = tmp_path / "wrong"
    units = graph.start_units(name, where, 20, str(path))
    assert units.hear() == "over"
    assert json.loads(path.read_text()) == []
    assert "Exception in Task" not in units.output()


def test_units_live_on_when_a_publisher_dies(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "seen"
    units = graph.start_units("Counter", LOCAL, 23, str(path))
    first = graph.start("send_and_stay", count=20, subscribers=1)
    assert first.hear() == "sent"
    first.kill()
    eventually(lambda: "died; what it had sent was received" in units.output(), "the units log it")
    graph.start("send_and_stay", count=3, subscribers=1)
    assert units.hear() == "over"
    assert json.loads(path.read_text()) == [*range(20), *range(3)]

"""Units of ezmsg that know nothing of byref, for tests of the adapter. Importing this puts it in place."""

from __future__ import annotations

import asyncio
import ctypes
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import ezmsg.core as ez
import numpy as np

from tests.ezmsg_programs import LOCAL, PROCESS, prepare

prepare()


class Pose:
    """An object with an attribute."""

    def __init__(self, number: int) -> None:
        self.number = number


class SourceSettings(ez.Settings):
    count: int
    allow_local: bool


class Source(ez.Unit):
    """Publishes numbered messages."""

    SETTINGS = SourceSettings
    OUTPUT = ez.OutputStream(dict)

    async def initialize(self) -> None:
        self.OUTPUT.allow_local = self.SETTINGS.allow_local

    @ez.publisher(OUTPUT)
    async def send(self) -> AsyncGenerator[Any, None]:
        for number in range(self.SETTINGS.count):
            message = {"number": number, "array": np.full(20_000, number), "pose": Pose(number), "inner": {"n": number}}
            yield self.OUTPUT, message


def spoil(message: dict[str, Any]) -> None:
    """Change all that can be changed."""
    array = message["array"]
    array[:1000] = -1
    array += 1
    ctypes.memset(array.ctypes.data + array.nbytes // 2, 0xFF, array.nbytes // 2)
    message["pose"].number = -1
    message["inner"]["n"] = -1
    message["number"] = -1
    message["more"] = "than there was"


class Spoiler(ez.Unit):
    """Changes what it receives, in two functions, of which neither sees what the other does."""

    INPUT = ez.InputStream(dict)

    @ez.subscriber(INPUT)
    async def one(self, message: dict[str, Any]) -> None:
        assert "more" not in message
        spoil(message)

    @ez.subscriber(INPUT)
    async def other(self, message: dict[str, Any]) -> None:
        assert "more" not in message
        spoil(message)


class Relay(ez.Unit):
    """Passes on what it receives, and changes it afterwards."""

    INPUT = ez.InputStream(dict)
    OUTPUT = ez.OutputStream(dict)

    @ez.subscriber(INPUT)
    @ez.publisher(OUTPUT)
    async def pass_on(self, message: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield self.OUTPUT, message
        spoil(message)


class CheckerSettings(ez.Settings):
    count: int
    path: str


class CheckerState(ez.State):
    wrong: list[Any]
    seen: int


class Checker(ez.Unit):
    """Looks at each message when others had time to change it, and writes to a file which were wrong."""

    SETTINGS = CheckerSettings
    STATE = CheckerState
    INPUT = ez.InputStream(dict)

    async def initialize(self) -> None:
        self.STATE.wrong, self.STATE.seen = [], 0

    @ez.subscriber(INPUT)
    async def check(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0.01)
        number = self.STATE.seen
        found = message["number"], message["pose"].number, message["inner"]["n"]
        if found != (number, number, number) or not (message["array"] == number).all() or "more" in message:
            self.STATE.wrong.append(number)
        self.STATE.seen += 1
        if self.STATE.seen == self.SETTINGS.count:
            Path(self.SETTINGS.path).write_text(json.dumps(self.STATE.wrong))
            raise ez.NormalTermination


class Spoiled(ez.Collection):
    """A source, one that changes what it receives, and one that looks."""

    SETTINGS = CheckerSettings
    SOURCE, SPOILER, CHECKER = Source(), Spoiler(), Checker()
    where = LOCAL

    def configure(self) -> None:
        self.SOURCE.apply_settings(SourceSettings(self.SETTINGS.count, self.where == LOCAL))
        self.CHECKER.apply_settings(self.SETTINGS)

    def network(self) -> ez.NetworkDefinition:
        return (self.SOURCE.OUTPUT, self.SPOILER.INPUT), (self.SOURCE.OUTPUT, self.CHECKER.INPUT)

    def process_components(self) -> tuple[Any, ...]:
        return (self.SPOILER, self.CHECKER) if self.where == PROCESS else ()


class Relayed(ez.Collection):
    """A source, a relay, and one that looks."""

    SETTINGS = CheckerSettings
    SOURCE, RELAY, CHECKER = Source(), Relay(), Checker()
    where = LOCAL

    def configure(self) -> None:
        self.SOURCE.apply_settings(SourceSettings(self.SETTINGS.count, self.where == LOCAL))
        self.CHECKER.apply_settings(self.SETTINGS)

    def network(self) -> ez.NetworkDefinition:
        return (self.SOURCE.OUTPUT, self.RELAY.INPUT), (self.RELAY.OUTPUT, self.CHECKER.INPUT)

    def process_components(self) -> tuple[Any, ...]:
        return (self.RELAY, self.CHECKER) if self.where == PROCESS else ()


class Counter(ez.Unit):
    """Writes what it has received to a file, when that are enough."""

    SETTINGS = CheckerSettings
    STATE = CheckerState
    INPUT = ez.InputStream(Any)

    async def initialize(self) -> None:
        self.STATE.wrong, self.STATE.seen = [], 0

    @ez.subscriber(INPUT)
    async def count(self, message: Any) -> None:
        self.STATE.wrong.append(int(message[0]))
        message[0] = -1
        if len(self.STATE.wrong) == self.SETTINGS.count:
            Path(self.SETTINGS.path).write_text(json.dumps(self.STATE.wrong))
            raise ez.NormalTermination


def run_collection(name: str, where: str, count: int, path: str, address: list[Any]) -> None:
    """Run one of the collections, until all that it has to see was seen."""
    if name == "Counter":
        counter = Counter(CheckerSettings(count, path))
        ez.run(COUNTER=counter, connections=(("A", counter.INPUT),), graph_address=(address[0], address[1]))
        return
    system = {"Spoiled": Spoiled, "Relayed": Relayed}[name](CheckerSettings(count, path))
    system.where = where
    ez.run(SYSTEM=system, graph_address=(address[0], address[1]))

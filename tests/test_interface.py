"""What the package says of itself: version, docstrings, what is printed of its objects, and what its types allow."""

import ast
import asyncio
import collections
import importlib.metadata
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest
from byref import _byref

from tests.conftest import Endpoints
from tests.processes import PATIENCE, ROOT
from tests.typing import right

STUBS = Path(byref.__file__).parent / "_byref.pyi"
# Python has docstrings of its own for these, whatever a class says.
SLOTS = {"__new__", "__await__"}


def documented() -> Iterator[tuple[str, str]]:
    """Every class, function and method of the stubs that has a docstring, and that."""
    for node in ast.parse(STUBS.read_text()).body:
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node.name, text
        if not isinstance(node, ast.ClassDef) or not hasattr(_byref, node.name):
            continue
        texts = {member.name: ast.get_docstring(member) for member in node.body if isinstance(member, ast.FunctionDef)}
        constructor = texts.get("__new__")
        yield node.name, (ast.get_docstring(node) or "") + (f"\n\n{constructor}" if constructor else "")
        yield from ((f"{node.name}.{name}", text) for name, text in texts.items() if text and name not in SLOTS)


@pytest.mark.parametrize(("name", "text"), [pytest.param(*entry, id=entry[0]) for entry in documented()])
def test_docstrings_are_those_of_the_stubs(name: str, text: str) -> None:
    thing = _byref
    for part in name.split("."):
        thing = getattr(thing, part)
    assert inspect.getdoc(thing) == text


def test_everything_public_has_a_docstring() -> None:
    undocumented = [name for name in byref.__all__ if name[0].isupper() and not getattr(byref, name).__doc__]
    for kind in (getattr(byref, name) for name in byref.__all__):
        if isinstance(kind, type) and kind.__module__ == "byref" and not issubclass(kind, Exception):
            undocumented += [
                f"{kind.__name__}.{name}"
                for name, member in vars(kind).items()
                if not name.startswith("_") and not inspect.getdoc(member)
            ]
    assert not undocumented


def test_version() -> None:
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
    assert byref.__version__ == importlib.metadata.version("byref") == cargo["workspace"]["package"]["version"]


def test_what_is_printed_of_objects(endpoints: Endpoints) -> None:
    """Topic, shape and type, and whether a thing can still be used."""
    pub, sub = endpoints.pair()

    def printed(value: Any) -> str:
        pub.send(value)
        return repr(sub.recv(timeout=20))

    assert printed(b"12345") == '<byref.Message 0 of "t", 5 bytes>'
    assert printed(np.zeros((2, 3), "f4")) == '<byref.Message 1 of "t", (2, 3) of float32, 24 bytes>'
    assert printed(np.array(1.0)) == '<byref.Message 2 of "t", () of float64, 8 bytes>'
    assert "\"t\", (1,) of [('a', '<f4')], 4 bytes" in printed(np.zeros(1, [("a", "f4")]))
    assert ", dict of 2, " in printed({"a": 1, "b": np.zeros(3)})
    assert ", list of 1, " in printed([{"a": 1}])
    assert ", tuple of 0, " in printed(())
    assert ", Arrow Table, " in printed(pa.table({"x": [1]}))
    pub.send_pickle({1})
    assert ", pickle, " in repr(sub.recv(timeout=20))
    pub.send_many(np.zeros((5, 2)))
    assert repr(sub.recv_batch(5)) == '<byref.Batch of 5 messages of "t", 80 bytes>'

    loan = pub.loan((2, 3), "u2")
    assert repr(loan) == '<byref.Loan on "t", (2, 3) of uint16, 12 bytes>'
    loan.send()
    assert repr(loan) == '<byref.Loan on "t", sent or discarded>'

    assert repr(pub) == '<byref.Publisher on "t">'
    assert repr(sub) == '<byref.Subscriber to "t">'
    pub.close()
    sub.close()
    assert repr(pub) == '<byref.Publisher on "t", closed>'
    assert repr(sub) == '<byref.Subscriber to "t", closed>'


def test_headers_are_any_mapping(pair: tuple[byref.Publisher, byref.Subscriber]) -> None:
    pub, sub = pair
    headers = collections.ChainMap({"camera": "front"}, {"gain": 1.5})
    pub.send(b"", headers)
    assert sub.recv(timeout=30).headers == dict(headers)
    for wrong in ([("camera", "front")], "camera", 1):
        with pytest.raises(TypeError, match=f"^headers must be a dict or another mapping, not {type(wrong).__name__}"):
            pub.send(b"", wrong)  # type: ignore[arg-type]


FIRST_MESSAGES = """
import array, sys
import byref
pub, sub = byref.Publisher("t"), byref.Subscriber("t")
pub.wait_for_subscribers(timeout=20)
imported = set(sys.modules)
pub.send(array.array("d", [1.0]))
pub.send({"a": memoryview(b"b"), "c": 1})
pub.loan((2, 2), "f4").send()
values = [sub.recv(timeout=20).value for _ in range(3)]
print(sorted(set(sys.modules) - imported))
queue = byref.EventQueue()
thread = queue.start()
queue.stop()
thread.join()
print("asyncio" in sys.modules)
"""


def test_the_first_messages_import_nothing() -> None:
    """NumPy takes 100 ms, at `import byref` and not at the first message. A queue on a thread needs no asyncio."""
    output = subprocess.run([sys.executable, "-c", FIRST_MESSAGES], capture_output=True, text=True, timeout=PATIENCE)
    assert output.stdout == "[]\nFalse\n", output.stdout + output.stderr


def test_right_programs_run(endpoints: Endpoints) -> None:
    """What type checkers allow is what byref takes: the programs that they check run."""
    pub, sub = endpoints.publisher(), endpoints.subscriber(policy="latest")
    pub.wait_for_subscribers(timeout=20)
    frame, table = np.zeros((4, 4), np.uint8), pa.table({"x": [1, 2]})
    right.payloads(pub, frame, table)
    right.containers(pub, frame, table)
    right.headers(pub)
    right.columns(pub)
    pub.send(frame)
    right.relay(sub, endpoints.publisher("relayed"))
    assert set(right.events("t")) <= {"joined"}
    right.subscribe("t")
    right.run(byref.EventQueue())
    asyncio.run(asyncio.wait_for(right.in_a_loop(sub, pub), 20))

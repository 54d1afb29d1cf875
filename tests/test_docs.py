"""The documents' examples run, calls in docs/python.md are as they are written, and what SAFETY.md names is there."""

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import byref
import numpy as np
import pyarrow as pa
import pytest

from tests.processes import PATIENCE, ROOT

SAFETY = (ROOT / "SAFETY.md").read_text()
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FRAME = np.zeros((1080, 1920, 3), np.uint8)
TICKS = np.zeros(1000, [("price", "f8"), ("size", "u4")])


def blocks(*pages: Path) -> list[Any]:
    """The Python blocks of these pages: page, line, code."""
    found = []
    for page in pages:
        text = page.read_text()
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            found.append(pytest.param(page, line, block[1], id=f"{page.name}:{line + 1}"))
    assert found
    return found


def run(page: Path, line: int, code: str, names: dict[str, Any]) -> None:
    """Run a block, which may await. Empty lines in front of it: a traceback names the line of the page."""
    compiled = compile("\n" * line + code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    begun = eval(compiled, {"__name__": "__main__", **names})
    if inspect.iscoroutine(begun):
        asyncio.run(begun)


# Its programs exchange parts of a library for the whole process.
APART = ROOT / "docs/integrations/ezmsg.md"
PAGES = [page for folder in ("formats", "integrations") for page in sorted((ROOT / "docs" / folder).glob("*.md"))]


@pytest.mark.parametrize(("page", "line", "code"), blocks(*(page for page in PAGES if page != APART)))
def test_example(page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those about formats and other libraries need nothing else."""
    monkeypatch.chdir(tmp_path)
    run(page, line, code, {})


@pytest.mark.parametrize(("page", "line", "code"), blocks(APART))
def test_program(page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole programs, each in a process of its own."""
    from ezmsg.core.graphserver import GraphServer

    server = GraphServer()
    server.start(("127.0.0.1", 0))
    try:
        monkeypatch.setenv("EZMSG_GRAPHSERVER_ADDR", str(server.address))
        program = tmp_path / f"program_{line}.py"
        program.write_text("\n" * line + code)
        done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=PATIENCE, check=False)
    finally:
        server.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr


class Seen(KeyboardInterrupt):
    """A fragment has printed, or called, what it has to; many would go on for ever."""


@contextmanager
def surroundings(code: str) -> Iterator[dict[str, Any]]:
    """What fragments take for granted: a pair of endpoints, functions to call, and cameras and tickers that go on."""
    awaited = {name for name in ("print", "on_ticks", "on_tick", "on_order", "show") if re.search(rf"\b{name}\b", code)}
    # "# prints" tells what is printed, apart from the numbers.
    told = [re.sub(r"\d+", "0", text) for text in re.findall(r"# prints (.*)", code)]

    def function(name: str) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            printed = re.sub(r"\d+", "0", " ".join(map(str, arguments)))
            if name != "print" or not told or printed in told:
                awaited.discard(name)
                if not awaited:
                    raise Seen

        return call

    over = threading.Event()

    def publish() -> None:
        # Four at once: who wants the latest alone misses three of them.
        topics = {
            "camera/front": np.stack([FRAME] * 4),
            "ticks": TICKS[:4],
            "ticks/EUR": TICKS[:4],
            "orders": TICKS[:4],
        }
        publishers = {topic: byref.Publisher(topic, max_memory=1 << 28) for topic in topics}
        while not over.wait(0.01):
            for topic, publisher in publishers.items():
                with suppress(byref.Timeout):
                    publisher.send_many(topics[topic], timeout=0.1)
        for publisher in publishers.values():
            publisher.close()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        with byref.Publisher("t") as pub, byref.Subscriber("t") as sub:
            pub.wait_for_subscribers(timeout=PATIENCE)
            pub.send(FRAME)
            msg = sub.recv(timeout=PATIENCE)
            if "recv_async" in code:
                pub.send(FRAME)
            yield {
                **{name: function(name) for name in ("print", "on_ticks", "on_tick", "show")},
                "byref": byref,
                "np": np,
                "torch": np,  # For its `from_dlpack`.
                "pub": pub,
                "sub": sub,
                "msg": msg,
                "image": FRAME,
                "depth": FRAME[..., 0],
                "x": 1.0,
                "y": 2.0,
                "pyarrow_table": pa.table({"a": [1, 2]}),
                "book": SimpleNamespace(on_order=function("on_order")),
            }
        assert not awaited, f"the block never reached {awaited}"
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("page", "line", "code"), blocks(ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
def test_fragment(page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other blocks: whole programs, and fragments within the surroundings that they speak of."""
    monkeypatch.chdir(tmp_path)
    if "__main__" in code:
        program = tmp_path / "hello.py"
        program.write_text(code)
        output = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=PATIENCE)
        assert f"it prints `{output.stdout.strip()}`" in README, output.stdout + output.stderr
    elif "log_to_logging" in code:  # It is for a whole process.
        program = f"import byref, logging\n{code}"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
    else:
        try:
            if re.match("import ", code):
                run(page, line, code, {})
            else:
                with surroundings(code) as names, suppress(Seen):
                    run(page, line, code, names)
        finally:
            byref.record_receives(False)  # What a block may have switched on.


def signatures() -> list[Any]:
    """What docs/python.md writes of calls, section by section: a name as in `byref`, and its parameters."""
    owner, found = "", []
    for line in (ROOT / "docs/python.md").read_text().splitlines():
        if heading := re.match(r"###? (\w+?)(?:es)?$", line):
            owner = heading[1] if hasattr(byref, heading[1]) else owner
        elif call := re.match(r"(\| |### |)`(?:await )?(\w+)\((.*?)\)(?: ->.*?)?`", line):
            where, name, arguments = call.groups()
            path = name if hasattr(byref, name) else f"{owner}.{name}"
            if where or path == name:
                found.append(pytest.param(path, arguments, id=path))
    assert len(found) > 30
    return [entry for entry in found if entry.id not in ("Message.memoryview", "Message.bytes", "Message.len")]


@pytest.mark.parametrize(("path", "arguments"), signatures())
def test_signature(path: str, arguments: str) -> None:
    function = ast.parse(f"def f({arguments}): pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    several = [function.args.vararg] if function.args.vararg else []
    names = [argument.arg for argument in (*function.args.args, *several, *function.args.kwonlyargs)]
    defaults = [*function.args.defaults, *(value for value in function.args.kw_defaults if value is not None)]
    thing: Any = byref
    for part in path.split("."):
        thing = getattr(thing, part)
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
    assert names == [parameter.name for parameter in parameters]
    given = [parameter.default for parameter in parameters if parameter.default is not inspect.Parameter.empty]
    assert [ast.literal_eval(value) for value in defaults] == given


def pages() -> list[Path]:
    """Every document."""
    patterns = ("*.md", "docs/**/*.md", "bench/**/*.md", "examples/**/*.md", "tests/**/*.md")
    return [page for pattern in patterns for page in ROOT.glob(pattern)]


def anchors(page: Path) -> set[str]:
    """The names under which its headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    linked = [(page, link) for page in pages() for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert len(linked) > 50
    broken = []
    for page, link in linked:
        place, _, anchor = link.partition("#")
        if not place.startswith("http"):
            target = page.parent / place if place else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append((page.name, link))
    assert not broken


def test_commands_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(page.name, name) for page in pages() for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert len(named) > 20
    assert not {(page, name) for page, name in named if name not in targets}


def python_tests() -> dict[str, set[str]]:
    """The names of the test functions in each file of tests."""
    files = (ROOT / "tests").glob("test_*.py")
    return {file.name: set(re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)) for file in files}


def rust_tests() -> set[str]:
    """The names of all tests and models in Rust."""
    sources = (ROOT / "crates").glob("*/**/*.rs")
    pattern = re.compile(r"#\[test\]\s+(?:#\[.*\]\s+)*fn (\w+)")
    return {name for file in sources for name in pattern.findall(file.read_text())}


def test_safety_names_tests_that_there_are() -> None:
    """A test stands behind the file that it is in, within its sentence, paragraph or cell."""
    of_python, of_rust = python_tests(), rust_tests()
    named = wrong = 0
    for passage in re.split(r"\n\n|\n(?=[|#-])|\|", SAFETY):
        file = ""
        for name in re.findall(r"`([^`]+)`", passage):
            if re.fullmatch(r"test_\w+\.py", name):
                file = name
                assert file in of_python, file
            elif name.startswith("test_"):
                named += 1
                wrong += name not in of_python.get(file, ())
                assert not wrong, f"{name} is not in {file or 'any file'}"
    assert named > 150
    for passage in re.findall(r"(?:\*Models?:\*|[Ii]n Rust:)(.*?)(?=\n\n|\||$|`test_)", SAFETY, re.DOTALL) + re.findall(
        r"\*(`\w+`)\*", SAFETY
    ):
        for name in re.findall(r"`(\w+)`", passage):
            assert name in of_rust, name


def test_safety_names_what_there_is() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", SAFETY)) <= targets
    sources = [str(file.relative_to(ROOT)) for file in (ROOT / "crates").glob("*/src/**/*.rs")]
    for name in re.findall(r"`([\w/-]+\.rs)`", SAFETY):
        assert any(file == name or file.endswith(f"/{name}") for file in sources), name
    for place in re.findall(r"`((?:crates|tests|fuzz|docs)/[\w./-]+)`|\]\(([\w./]+)\)", SAFETY):
        assert (ROOT / (place[0] or place[1])).exists(), place


def test_safety_lists_the_modules_with_unsafe_code() -> None:
    text = re.search(r"^`unsafe` is denied .*?(?=\n\n)", SAFETY, re.MULTILINE | re.DOTALL)
    assert text
    core, parts, binding = re.split(r"Of\s+`byref-parts`|Of the binding", text[0])
    for crate, said in (("byref", core), ("byref-parts", parts), ("byref-python", binding)):
        source = ROOT / "crates" / crate / "src"
        found = {
            str(file.relative_to(source).with_suffix(""))
            for file in source.glob("**/*.rs")
            if "[allow(unsafe_code)]" in file.read_text()
        }
        assert set(re.findall(r"`([\w/]+)`", said)) - {"unsafe"} == found, crate


@pytest.mark.parametrize(("name", "base"), [("weaken.toml", "crates/byref/src"), ("remove.toml", ".")])
def test_what_is_to_be_removed_is_there(name: str, base: str) -> None:
    """`make weaken` and `make remove` take too long to run with each change; that they can run is checked here."""
    groups = tomllib.loads((ROOT / "tools" / name).read_text())["group"]
    unfit = [
        (entry["where"], edit["file"])
        for group in groups
        for entry in group["entry"]
        for edit in entry["edits"]
        if _without_faults(ROOT / base / edit["file"]).count(edit["old"]) != 1
    ] + [
        (entry["where"], repeated["file"])
        for group in groups
        for entry in group["entry"]
        if (repeated := entry.get("repeats"))
        and repeated["text"] not in _without_faults(ROOT / base / repeated["file"])
    ]
    assert not unfit


def _without_faults(path: Path) -> str:
    return re.sub(r'^ *fault!\("[^"]*"\);\n', "", path.read_text(), flags=re.MULTILINE)

"""The examples in the documents run as they stand there; what SAFETY.md and the lists of removals name is there."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.processes import ROOT

SAFETY = (ROOT / "SAFETY.md").read_text()
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[object]:
    """The Python blocks of the pages on formats, by file and line."""
    found = []
    for page in sorted((ROOT / "docs/formats").glob("*.md")):
        text = page.read_text()
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            found.append(pytest.param(page, line, block[1], id=f"{page.name}:{line + 1}"))
    assert found
    return found


@pytest.mark.parametrize(("page", "line", "code"), examples())
def test_example(page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Empty lines in front: a traceback names the line of the page.
    exec(compile("\n" * line + code, str(page), "exec"), {"__name__": "__main__"})


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
    ]
    assert not unfit


def _without_faults(path: Path) -> str:
    return re.sub(r'^ *fault!\("[^"]*"\);\n', "", path.read_text(), flags=re.MULTILINE)

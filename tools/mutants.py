"""What weaken.py and remove.py share: a copy of the sources, changes that are taken back, and the round over a list."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parent.parent

# An entry of a list: where it changes what, and which test has to notice.
Entry = dict[str, Any]


class Trouble(Exception):
    """The list does not fit the sources."""


def source(path: Path) -> str:
    """A source without its fault points, which are nothing in these builds."""
    return re.sub(r'^ *fault!\("[^"]*"\);\n', "", path.read_text(), flags=re.MULTILINE)


class Copy:
    """A workspace of its own below target/, so that the tree itself is never changed."""

    def __init__(self, name: str, *more: str) -> None:
        """Copies the crates, and `more` directories; newer than anything that cargo has built there before."""
        self.root = ROOT / "target" / name
        self.target = self.root / "target"
        for directory in ("crates", *more):
            shutil.rmtree(self.root / directory, ignore_errors=True)
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / directory, self.root / directory, copy_function=shutil.copy, ignore=ignored)
        for file in ("Cargo.toml", "Cargo.lock"):
            shutil.copy(ROOT / file, self.root)

    @contextlib.contextmanager
    def changed(self, edits: list[dict[str, str]], base: str) -> Iterator[None]:
        """Has the edits made within; their files lie below `base`, and the old text of each is there exactly once."""
        texts: dict[Path, str] = {}
        for edit in edits:
            path = self.root / base / edit["file"]
            text = texts.get(path) or source(path)
            if text.count(edit["old"]) != 1:
                raise Trouble(f"this is not in {edit['file']} exactly once:\n{edit['old']}")
            texts[path] = text.replace(edit["old"], edit["new"])
        sound = {path: path.read_text() for path in texts}
        for path, text in texts.items():
            path.write_text(text)
        try:
            yield
        finally:
            for path, text in sound.items():
                path.write_text(text)

    def cargo(self, *arguments: str, **environment: str) -> list[Path]:
        """Builds something; the programs that it is."""
        command = ["cargo", *arguments, "--quiet", "--message-format=json"]
        environ = os.environ | {"CARGO_TARGET_DIR": str(self.target)} | environment
        built = subprocess.run(command, cwd=self.root, env=environ, capture_output=True, text=True, check=False)
        messages = [json.loads(line) for line in built.stdout.splitlines()]
        if built.returncode:
            errors = (m["message"]["rendered"] for m in messages if m.get("message", {}).get("level") == "error")
            raise Trouble(f"it does not build:\n{''.join(errors) or built.stderr}")
        return [Path(message["executable"]) for message in messages if message.get("executable")]


def find(program: Path, name: str) -> str:
    """The full name of a test in a test program."""
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    tests = [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]
    found = [test for test in tests if f"::{test}".endswith(f"::{name}")]
    if len(found) != 1:
        raise Trouble(f"there is no test {name}, or more than one")
    return found[0]


def table(head: str, groups: list[Entry], columns: dict[str, Callable[[Entry], str]], foot: str = "") -> str:
    """A document with a table for each group, which has a title and entries."""
    lines = [head]
    for group in groups:
        lines += [f"\n## {group['title']}\n", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
        lines += [f"| {' | '.join(show(entry) for show in columns.values())} |" for entry in group["entry"]]
    return "\n".join(lines) + "\n" + foot


class Tests(Protocol):
    """Runs the tests of a list over a copy."""

    def fails(self, test: str) -> bool:
        """Whether a test does, on the copy as it is now."""

    def notices(self, entry: Entry) -> bool:
        """Whether the test of an entry fails with its change."""


def go_round(entries: list[Entry], describe: Callable[[Entry], str], tests: Tests) -> bool:
    """Tries all of them, one at a time, and says what became of each; whether all were caught."""
    missed = 0
    begun = time.monotonic()
    for entry in entries:
        before = time.monotonic()
        caught = tests.notices(entry)
        missed += not caught
        verdict = "caught by" if caught else "NOT CAUGHT by"
        print(f"{describe(entry)}: {verdict} {entry['test']} ({time.monotonic() - before:.0f} s)", flush=True)
    outcome = f"{missed} of {len(entries)} are not caught" if missed else f"all {len(entries)} are caught"
    print(f"{outcome} ({(time.monotonic() - begun) / 60:.0f} minutes)")
    return not missed


def run(
    file: str,
    make_tests: Callable[[], Tests],
    describe: Callable[[Entry], str],
    document: Path,
    write: Callable[[list[Entry]], str],
) -> None:
    """The program: tries the entries of a list that are about one of its arguments; all, if there are none."""
    words = sys.argv[1:]
    groups = tomllib.loads((ROOT / "tools" / file).read_text())["group"]
    entries = [entry for group in groups for entry in group["entry"]]
    entries = [entry for entry in entries if not words or any(word in str(entry) for word in words)]
    # Tests of one kind come one after the other: less has to be built anew.
    entries.sort(key=lambda entry: ".py::" in entry["test"])
    try:
        if not entries:
            raise Trouble(f"no entry of {file} has any of these in it: {' '.join(words)}")
        tests = make_tests()
        for test in dict.fromkeys(entry["test"] for entry in entries):
            if tests.fails(test):
                raise Trouble(f"{test} fails on the sources as they are")
        if not go_round(entries, describe, tests):
            sys.exit(1)
    except Trouble as trouble:
        sys.exit(str(trouble))
    if not words:
        document.write_text(write(groups))

"""Takes away each ordering of the lock-free protocols, one at a time, and checks that its loom model notices.

Run it with `make weaken`, or for some models only with their names as arguments. It works on a copy of the crates in
target/weaken, and writes docs/orderings.md from weaken.toml when all weakenings are caught.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tools" / "weaken.toml"
TABLE = ROOT / "docs" / "orderings.md"
COPY = ROOT / "target" / "weaken"
SOURCES = COPY / "crates" / "byref" / "src"
MOST_SECONDS = 300

HEAD = """\
# Orderings

<!-- Written by tools/weaken.py from tools/weaken.toml. -->

Every memory ordering, fence, order of steps and check on which the lock-free protocols rest. `make weaken` takes each
away, alone, in a copy of the sources, and runs the loom model that has to fail then; it writes this file when
all of them do.
[`models.rs`](../crates/byref/src/models.rs) says what the models run and what loom cannot see.

A row with an asterisk is a step of code that cannot run in loom (it maps memory or reads sockets): there the step is
weakened in [`models/parties.rs`](../crates/byref/src/models/parties.rs), which repeats it, and the original is
checked to be unchanged since.
"""

FOOT = """
Accesses not listed are relaxed already.
"""


class Trouble(Exception):
    """The list does not fit the sources."""


def copy_crates() -> None:
    """Makes a workspace of its own, newer than anything that cargo has built there before."""
    shutil.rmtree(COPY / "crates", ignore_errors=True)
    shutil.copytree(ROOT / "crates", COPY / "crates", copy_function=shutil.copy)
    for file in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / file, COPY)


def source(path: Path) -> str:
    """A source without its fault points, which are nothing in this build."""
    return re.sub(r'^ *fault!\("[^"]*"\);\n', "", path.read_text(), flags=re.MULTILINE)


def weakened(weakening: dict[str, Any]) -> dict[Path, str]:
    """The files that a weakening changes, and their new text."""
    texts: dict[Path, str] = {}
    for edit in weakening["edits"]:
        path = SOURCES / edit["file"]
        text = texts.get(path) or source(path)
        if text.count(edit["old"]) != 1:
            raise Trouble(f"this is not in {edit['file']} exactly once:\n{edit['old']}")
        texts[path] = text.replace(edit["old"], edit["new"])
    original = weakening.get("repeats")
    if original and original["text"] not in source(SOURCES / original["file"]):
        raise Trouble(f"{original['file']} has changed; does models/parties.rs still repeat it?\n{original['text']}")
    return texts


def build() -> Path:
    """Builds the models; the test program."""
    command = ["cargo", "test", "--package=byref", "--lib", "--no-run", "--quiet", "--message-format=json"]
    environment = os.environ | {"RUSTFLAGS": "--cfg loom", "CARGO_TARGET_DIR": str(COPY / "target")}
    built = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True, check=False)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    if built.returncode:
        errors = (m["message"]["rendered"] for m in messages if m.get("message", {}).get("level") == "error")
        raise Trouble(f"it does not build:\n{''.join(errors) or built.stderr}")
    return Path(next(m["executable"] for m in messages if m.get("executable")))


def fails(program: Path, model: str) -> bool:
    """Whether the model finds something."""
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout
    test = next((line.split(": ")[0] for line in listed.splitlines() if line.endswith(f"::{model}: test")), None)
    if test is None:
        raise Trouble(f"there is no model {model}")
    run = subprocess.run([program, "--exact", test], capture_output=True, check=False, timeout=MOST_SECONDS)
    return run.returncode != 0


def table(protocols: list[dict[str, Any]]) -> str:
    lines = [HEAD]
    for protocol in protocols:
        lines += [
            f"\n## {protocol['title']}\n",
            "| where | ordering | what it prevents | weakened to | model that fails |",
        ]
        lines += ["| --- | --- | --- | --- | --- |"]
        for w in protocol["weakening"]:
            mark = "*" if "repeats" in w else ""
            where, model = w["where"] + mark, f"`{w['model']}`"
            lines.append(f"| {where} | {w['ordering']} | {w['prevents']} | {w['weakened']} | {model} |")
    return "\n".join(lines) + "\n" + FOOT


def is_caught(weakening: dict[str, Any]) -> bool:
    """Builds the models with the weakening, runs the one that is to catch it, and restores the sources."""
    texts = weakened(weakening)
    sound = {path: path.read_text() for path in texts}
    for path, text in texts.items():
        path.write_text(text)
    try:
        return fails(build(), weakening["model"])
    finally:
        for path, text in sound.items():
            path.write_text(text)


def main() -> int:
    protocols = tomllib.loads(LIST.read_text())["protocol"]
    weakenings = [weakening for protocol in protocols for weakening in protocol["weakening"]]
    if models := sys.argv[1:]:
        weakenings = [weakening for weakening in weakenings if weakening["model"] in models]
    copy_crates()
    sound = build()
    for model in sorted({weakening["model"] for weakening in weakenings}):
        if fails(sound, model):
            raise Trouble(f"{model} fails on the sources as they are")
    missed = 0
    for weakening in weakenings:
        begun = time.monotonic()
        caught = is_caught(weakening)
        missed += not caught
        what = f"{weakening['where']}: {weakening['ordering']} -> {weakening['weakened']}"
        verdict = "caught by" if caught else "NOT CAUGHT by"
        print(f"{what}: {verdict} {weakening['model']} ({time.monotonic() - begun:.0f} s)", flush=True)
    if missed:
        print(f"{missed} of {len(weakenings)} weakenings are not caught")
        return 1
    if not models:
        TABLE.write_text(table(protocols))
    print(f"all {len(weakenings)} weakenings are caught")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as trouble:
        sys.exit(str(trouble))

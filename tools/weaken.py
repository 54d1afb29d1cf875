"""Takes away each ordering of the lock-free protocols, one at a time, and checks that its loom model notices.

Run it with `make weaken`, or for some only with words of theirs (the name of a model, say) as ARGS. It works on a copy
of the crates in target/weaken, and writes docs/orderings.md from weaken.toml when all weakenings are caught.
"""

from __future__ import annotations

import subprocess

from mutants import ROOT, Copy, Entry, Trouble, find, run, source, table

TABLE = ROOT / "docs" / "orderings.md"
SOURCES = "crates/byref/src"
MOST_SECONDS = 300

HEAD = """\
# Orderings

<!-- Written by tools/weaken.py from tools/weaken.toml. -->

Every memory ordering, fence, order of steps and check on which the lock-free protocols rest. `make weaken` takes each
away, alone, in a copy of the sources, and runs the loom model that has to fail then; it writes this file when
all of them do. What ordinary tests have to notice is in [removals.md](removals.md).
[`models.rs`](../crates/byref/src/models.rs) says what the models run and what loom cannot see.

A row with an asterisk is a step of code that cannot run in loom (it maps memory or reads sockets): there the step is
weakened in [`models/parties.rs`](../crates/byref/src/models/parties.rs), which repeats it, and the original is
checked to be unchanged since.
"""

FOOT = """
Accesses not listed are relaxed already.
"""

COLUMNS = {
    "where": lambda entry: entry["where"] + ("*" if "repeats" in entry else ""),
    "ordering": lambda entry: entry["ordering"],
    "what it prevents": lambda entry: entry["prevents"],
    "weakened to": lambda entry: entry["weakened"],
    "model that fails": lambda entry: f"`{entry['test']}`",
}


class Models:
    """The models over a copy of the crates."""

    def __init__(self) -> None:
        self.copy = Copy("weaken")

    def fails(self, test: str) -> bool:
        """Whether the model finds something."""
        (program,) = self.copy.cargo("test", "--package=byref", "--lib", "--no-run", RUSTFLAGS="--cfg loom")
        command = [program, "--exact", find(program, test)]
        return subprocess.run(command, capture_output=True, check=False, timeout=MOST_SECONDS).returncode != 0

    def notices(self, entry: Entry) -> bool:
        """Whether the model that is to catch the weakening does."""
        if original := entry.get("repeats"):
            file, text = original["file"], original["text"]
            if text not in source(self.copy.root / SOURCES / file):
                raise Trouble(f"{file} has changed; does models/parties.rs still repeat it?\n{text}")
        with self.copy.changed(entry["edits"], SOURCES):
            return self.fails(entry["test"])


def describe(entry: Entry) -> str:
    return f"{entry['where']}: {entry['ordering']} -> {entry['weakened']}"


if __name__ == "__main__":
    run("weaken.toml", Models, describe, TABLE, lambda groups: table(HEAD, groups, COLUMNS, FOOT))

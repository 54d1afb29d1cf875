"""The examples in the documents run as they stand there."""

import re
from pathlib import Path

import pytest

from tests.processes import ROOT

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

"""What type checkers say of right and wrong programs, for `make lint`.

mypy and pyright check `tests/typing`: both have to report each line that ends in "# wrong", and nothing else. A report
of another line means that users cannot write a right program; a marked line without a report is a mistake that nobody
tells them of. Both check for the oldest Python that byref supports and for a newer one, since what is a buffer depends
on that. pyright also has to know the type of everything that the package exports.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests/typing"
VERSIONS = ("3.11", "3.13")


def mypy(version: str) -> dict[tuple[str, int], str]:
    """What mypy reports, by file and line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", version, "--no-pretty", str(PROGRAMS)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if output.returncode not in (0, 1):
        raise SystemExit(f"mypy failed:\n{output.stdout}{output.stderr}")
    found = re.findall(r"^(.+?):(\d+)(?::\d+)?: error: (.*)$", output.stdout, re.MULTILINE)
    return {(Path(file).name, int(line)): text for file, line, text in reversed(found)}


def pyright(version: str) -> dict[tuple[str, int], str]:
    """What pyright reports, by file and line."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    command += ["--pythonversion", version, str(PROGRAMS)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if output.returncode not in (0, 1):
        raise SystemExit(f"pyright failed:\n{output.stdout}{output.stderr}")
    found = json.loads(output.stdout)["generalDiagnostics"]
    return {(Path(item["file"]).name, item["range"]["start"]["line"] + 1): item["message"] for item in reversed(found)}


def incomplete() -> str:
    """What pyright says of exported names whose types it does not know."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--ignoreexternal"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    output = subprocess.run([*command, "--verifytypes", "byref"], env=environment, capture_output=True, text=True)
    return output.stdout if output.returncode else ""


def marked() -> set[tuple[str, int]]:
    """The lines that are to be reported."""
    return {
        (program.name, number)
        for program in PROGRAMS.glob("*.py")
        for number, line in enumerate(program.read_text().splitlines(), 1)
        if line.endswith("# wrong")
    }


def main() -> None:
    wanted = marked()
    assert wanted
    complaints = [text] if (text := incomplete()) else []
    for checker in (mypy, pyright):
        for version in VERSIONS:
            said = checker(version)
            for file, line in sorted(wanted - set(said)):
                complaints.append(f"{file}:{line}: {checker.__name__} for {version} does not report it")
            for file, line in sorted(set(said) - wanted):
                complaints.append(f"{file}:{line}: {checker.__name__} for {version} says: {said[file, line]}")
    if complaints:
        raise SystemExit("\n".join(complaints))


if __name__ == "__main__":
    main()

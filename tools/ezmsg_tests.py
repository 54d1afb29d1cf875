"""ezmsg's own tests, on ezmsg alone and with `byref.integrations.ezmsg`: what passes there has to pass here.

pip gets the source distribution of the version that is installed, and what its tests need, into target/ezmsg. Arguments
go to pytest, as in `python tools/ezmsg_tests.py -k backpressure`.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "target" / "ezmsg"

# They would change how byref's own tests run if they were installed beside them.
NEEDED = ["pytest>=8.4.1", "pytest-asyncio>=1.1.0", "pytest-cov>=6.2.1", "pytest-benchmark>=5.2.3", "psutil>=7.1.0"]

# What Python imports at its start, also in the processes that the tests start.
SITE = '''
import sys

class Watch:
    """Puts the adapter in place when `ezmsg.core` has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "ezmsg.core":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec
        spec = find_spec(name)
        plain = spec.loader.exec_module
        def load(module):
            plain(module)
            from byref.integrations.ezmsg import install
            install()
        spec.loader.exec_module = load
        return spec

sys.meta_path.insert(0, Watch())
'''


def pip(*arguments: str) -> None:
    """Run pip, or say what cannot be had."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"ezmsg's tests need: pip {' '.join(arguments)}; it failed, see above")


def get() -> Path:
    """The unpacked source distribution, with what its tests need beside it."""
    try:
        version = metadata.version("ezmsg")
    except metadata.PackageNotFoundError:
        raise SystemExit("ezmsg's tests need ezmsg: pip install 'ezmsg>=3.9,<4'") from None
    source = PLACE / f"ezmsg-{version}"
    if not source.exists():
        PLACE.mkdir(parents=True, exist_ok=True)
        pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(PLACE), f"ezmsg=={version}")
        with tarfile.open(PLACE / f"{source.name}.tar.gz") as archive:
            archive.extractall(PLACE, filter="data")
    if not (PLACE / "packages").exists():
        pip("install", "--target", str(PLACE / "packages"), *NEEDED)
    return source


def run(source: Path, name: str, paths: list[Path], arguments: list[str]) -> dict[str, str]:
    """Run the tests; gives the outcome of each."""
    report = PLACE / f"{name}.xml"
    report.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="byref-") as rendezvous:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, [*paths, PLACE / "packages"])),
            "BYREF_DIR": rendezvous,
        }
        options = ["--quiet", "--no-cov", "--benchmark-disable", "-p", "no:cacheprovider"]
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"--junit-xml={report}", *arguments],
            cwd=source,
            env=environment,
            check=False,
        )
    outcomes = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failed = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = failed
    return outcomes


def main() -> None:
    source = get()
    site = PLACE / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    alone = run(source, "alone", [], sys.argv[1:])
    adapted = run(source, "adapted", [site, ROOT / "python"], sys.argv[1:])
    worse = [test for test, outcome in alone.items() if outcome == "passed" and adapted.get(test) != "passed"]
    # A machine that is busy can fail a test either way: each has another chance.
    for test in list(worse):
        again = run(source, "again", [site, ROOT / "python"], ["-k", test.rpartition("::")[2].partition("[")[0]])
        if again.get(test) == "passed":
            worse.remove(test)
    counts = [sum(outcome == "passed" for outcome in outcomes.values()) for outcomes in (alone, adapted)]
    print(f"ezmsg {source.name.partition('-')[2]}: {counts[0]} tests pass on it alone, {counts[1]} with the adapter")
    if worse:
        raise SystemExit("\n".join(["these pass on ezmsg alone only:", *worse]))


if __name__ == "__main__":
    main()

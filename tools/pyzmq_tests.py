"""pyzmq's own tests against byref.zmq, for `make pyzmq`.

It gets, by pip, the source distribution of the pyzmq that is installed, and a virtual environment for what those tests
need beside what is installed here, both below target/. Each file of tests runs in a process of its own; a line tells
how it went. `--stock` runs them on pyzmq's own backend, to compare. Names of files choose: `test_socket test_poll`.
"""

import argparse
import os
import re
import site
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target/pyzmq"
NEEDED = ("pytest-asyncio", "pytest-timeout", "tornado")
# What is about sockets and messages. The others are about security mechanisms, other transports and pyzmq's build.
FILES = (
    *("test_socket", "test_multipart", "test_message", "test_context", "test_pair", "test_pubsub", "test_reqrep"),
    *("test_poll", "test_error", "test_etc", "test_constants", "test_monitor", "test_asyncio", "test_future"),
    *("test_device", "test_proxy_steerable", "test_decorators", "test_retry_eintr", "test_version", "test_imports"),
    *("test_monqueue", "test_zmqstream", "test_ioloop", "test_log"),
)


def source() -> Path:
    """The tests of the pyzmq that is installed."""
    version = metadata.version("pyzmq")
    folder = HOME / f"pyzmq-{version}"
    if not folder.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pyzmq"]
        subprocess.run([*command, "--dest", HOME, f"pyzmq=={version}"], check=True)
        with tarfile.open(HOME / f"pyzmq-{version}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")
    return folder / "tests"


def environment() -> Path:
    """A Python with all that is installed here, and what the tests need beside it."""
    python = HOME / "venv/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", HOME / "venv"], check=True)
        (packages,) = (HOME / "venv/lib").glob("python*/site-packages")
        (here,) = site.getsitepackages()
        (packages / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*command, *NEEDED], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--stock", action="store_true")
    asked = parser.parse_args()
    tests, python = source(), environment()
    failed = 0
    for name in asked.files:
        with tempfile.TemporaryDirectory(prefix="byref-") as rendezvous:
            variables = os.environ | {"BYREF_DIR": rendezvous, "PYZMQ_BACKEND": "byref.zmq"}
            if asked.stock:
                del variables["PYZMQ_BACKEND"]
            command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--timeout", "60", f"{name}.py"]
            done = subprocess.run(command, cwd=tests, env=variables, capture_output=True, text=True)
        print(f"{name}: {done.stdout.splitlines()[-1] if done.stdout else done.stderr}", flush=True)
        for test in re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE):
            failed += 1
            print(f"    {test}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

"""`byref exec`: whole programs, their children, and Pythons that have no byref."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import byref
import pytest

from tests.processes import PATIENCE, ROOT

SITE = Path(byref.__file__).parent / "integrations/_site/sitecustomize.py"
# Says which backend pyzmq has loaded.
BACKEND = "import zmq; print(zmq.backend.Socket.__module__)"


def byref_exec(*arguments: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """`byref exec` with these arguments; it ends with that exit code."""
    command = [sys.executable, "-m", "byref", "exec", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def output(program: str, *flags: str, **options: Any) -> str:
    """What a Python program prints under `byref exec --zmq`."""
    return byref_exec("--zmq", *flags, "--", sys.executable, "-c", program, **options).stdout.strip()


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Writes a program into a file."""

    def write(text: str, name: str = "program.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


# ---- what it puts in place -------------------------------------------------------------------------------------------


def test_pyzmq_has_byrefs_backend() -> None:
    assert output(BACKEND) == "byref.zmq._socket"
    plain = subprocess.run([sys.executable, "-c", BACKEND], capture_output=True, text=True, check=True)
    assert plain.stdout.strip().startswith("zmq.backend.")


def test_it_says_in_one_line_what_it_put_in_place() -> None:
    done = byref_exec("--zmq", "--", sys.executable, "-c", "pass")
    (line,) = done.stderr.splitlines()
    assert line.startswith("byref exec: pyzmq 2")
    assert "on byref.zmq" in line
    assert sys.executable in line
    assert byref_exec("--zmq", "--quiet", "--", sys.executable, "-c", "pass").stderr == ""


def test_without_flags_it_is_for_all_that_are_installed() -> None:
    done = byref_exec("--", sys.executable, "-c", BACKEND)
    assert done.stdout.strip() == "byref.zmq._socket"
    assert "pyzmq" in done.stderr


CHILDREN = """
    import multiprocessing, os, subprocess, sys

    def say(queue):
        import zmq
        queue.put(zmq.backend.Socket.__module__)

    if __name__ == "__main__":
        for method in ("spawn", "forkserver", "fork"):
            context = multiprocessing.get_context(method)
            queue = context.SimpleQueue()
            child = context.Process(target=say, args=(queue,))
            child.start()
            print(method, queue.get())
            child.join()
        grandchild = [sys.executable, "-c", "import zmq; print(zmq.backend.Socket.__module__)"]
        code = f"import subprocess; subprocess.run({grandchild!r}, check=True)"
        print("subprocess", flush=True)
        subprocess.run([sys.executable, "-c", code], check=True)
"""


def test_children_have_it_too(script: Any) -> None:
    said = byref_exec("--zmq", "--", sys.executable, script(CHILDREN)).stdout.split()
    assert said == [
        *("spawn", "byref.zmq._socket"),
        *("forkserver", "byref.zmq._socket"),
        *("fork", "byref.zmq._socket"),
        *("subprocess", "byref.zmq._socket"),
    ]


def test_the_environment_says_nothing_to_pythons_that_it_is_not_for() -> None:
    program = "import os, zmq; print(os.environ.get('PYZMQ_BACKEND'))"
    assert output(program) == "None"
    environment = os.environ | {"PYZMQ_BACKEND": "cython"}
    assert output(program + "; " + BACKEND, env=environment).split() == ["cython", "byref.zmq._socket"]


def test_it_costs_nothing_where_its_library_is_not_imported() -> None:
    program = "import sys; print([name for name in sys.modules if name.split('.')[0] in ('byref', 'zmq', 'numpy')])"
    assert output(program) == "[]"
    assert output("import sys; print(any('_site' in place for place in sys.path))") == "False"


def test_importing_byref_imports_no_adapter() -> None:
    program = "import byref, sys; print([name for name in sys.modules if 'integrations' in name or 'zmq' in name])"
    plain = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == "[]"
    assert output("import byref, sys; print([name for name in sys.modules if 'zmq' in name])") == "[]"


# ---- what was there before -------------------------------------------------------------------------------------------


def test_a_sitecustomize_that_was_there_runs(tmp_path: Path, script: Any) -> None:
    script("import sys; sys.before = __file__", "sitecustomize.py")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    said = output(f"import sys; print(sys.before, sys.path.count({str(tmp_path)!r})); {BACKEND}", env=environment)
    assert said.split() == [str(tmp_path / "sitecustomize.py"), "1", "byref.zmq._socket"]


def test_a_sitecustomize_that_fails_fails_as_before(tmp_path: Path, script: Any) -> None:
    script("import module_that_there_is_not", "sitecustomize.py")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = byref_exec("--zmq", "--", sys.executable, "-c", BACKEND, env=environment)
    assert "module_that_there_is_not" in done.stderr
    assert done.stdout.strip() == "byref.zmq._socket"


# ---- Pythons without byref -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has pyzmq, and no byref."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    import zmq

    home = Path(zmq.__file__).parent
    (packages / "zmq").symlink_to(home)
    for beside in home.parent.glob("pyzmq*"):
        (packages / beside.name).symlink_to(beside)
    return folder / "bin/python"


def test_a_python_without_byref_runs_unharmed(bare: Path) -> None:
    done = byref_exec("--zmq", "--", str(bare), "-c", BACKEND)
    assert done.stdout.strip().startswith("zmq.backend.")
    assert f"byref is not installed for {bare}, and zmq stays as it is there" in done.stderr
    assert byref_exec("--zmq", "--quiet", "--", str(bare), "-c", BACKEND).stderr == ""


def test_the_site_is_read_by_pythons_of_all_ages() -> None:
    """Python 2.7 and the early ones of 3 read it at their start: nothing in it may be new to them."""
    tree = ast.parse(SITE.read_text(), feature_version=(3, 4))
    new = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.Nonlocal, ast.Starred, ast.YieldFrom, ast.arg)
    found = [node for node in ast.walk(tree) if isinstance(node, new) and getattr(node, "annotation", True)]
    assert not found
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.cause]
    for name in ("python2", "python2.7", "python3.6", "python3.8", "python3.9", "python3.10"):
        old = shutil.which(name)
        # What pyenv puts there does not work where the version itself is missing.
        if old and subprocess.run([old, "-c", ""], capture_output=True).returncode == 0:
            environment = {"PYTHONPATH": str(SITE.parent), "BYREF_EXEC": "zmq"}
            done = subprocess.run([old, "-c", "print(1)"], env=environment, capture_output=True, text=True, check=True)
            assert (done.stdout, done.stderr) == ("1\n", "")


# ---- the program's end -----------------------------------------------------------------------------------------------


def test_exit_codes_are_the_programs() -> None:
    byref_exec("--zmq", "--quiet", "--", sys.executable, "-c", "raise SystemExit(7)", code=7)
    byref_exec("--zmq", "--quiet", "--", "sh", "-c", "kill -TERM $$", code=-signal.SIGTERM)
    assert "cannot run 'no-such-program'" in byref_exec("--zmq", "--", "no-such-program", code=127).stderr
    assert "cannot run '/'" in byref_exec("--zmq", "--", "/", code=126).stderr


def test_it_becomes_the_program() -> None:
    """Signals reach the program itself: there is no process between."""
    command = [sys.executable, "-m", "byref", "exec", "--zmq", "--quiet", "--"]
    program = """
import os, signal, sys
ignored = [number.name for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
print(os.getpid(), sorted(ignored), flush=True)
signal.pause()
"""
    with subprocess.Popen([*command, sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        plain = subprocess.run(
            [sys.executable, "-c", program.replace("signal.pause()", "")], capture_output=True, text=True, check=True
        )
        pid, ignored = running.stdout.readline().split(maxsplit=1)
        assert int(pid) == running.pid
        assert ignored.strip() == plain.stdout.split(maxsplit=1)[1].strip()
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == -signal.SIGTERM


def test_a_signal_that_was_ignored_stays_so() -> None:
    """Shells start what runs in the background so."""
    program = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    command = f"trap '' INT; exec {sys.executable} -m byref exec --zmq --quiet -- {sys.executable} -c '{program}'"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.fixture
def pretended(tmp_path: Path) -> dict[str, str]:
    """An environment in which another version of pyzmq seems to be installed."""
    folder = tmp_path / "packages/pyzmq-25.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: pyzmq\nVersion: 25.1.0\n")
    return os.environ | {"PYTHONPATH": str(folder.parent)}


def test_another_version_of_the_library_is_refused(pretended: dict[str, str]) -> None:
    text = "byref.zmq works with pyzmq from 27.0 on and below 28.0, but 25.1.0 is installed"
    done = byref_exec("--zmq", "--", sys.executable, "-c", "pass", code=1, env=pretended)
    assert text in done.stderr
    # All that can work here: this one cannot, which is said.
    done = byref_exec("--", sys.executable, "-c", "pass", env=pretended)
    assert f"zmq left out: {text}" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", "import zmq"],
        env=pretended | {"PYZMQ_BACKEND": "byref.zmq"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert text in done.stderr


def test_an_adapter_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    absent = [name for name in ("ezmsg", "dora") if not (ROOT / f"python/byref/integrations/{name}.py").exists()]
    absent = [name for name in absent if not (ROOT / f"python/byref/integrations/{name}").exists()]
    for name in absent:
        done = byref_exec(f"--{name}", "--", sys.executable, "-c", "pass", code=1)
        assert f"has no adapter for {name}" in done.stderr


@pytest.mark.parametrize("arguments", [["--zmq"], ["--other", "--", "true"], []])
def test_a_wrong_command_line_is_told(arguments: list[str]) -> None:
    assert "byref exec" in byref_exec(*arguments, code=2).stderr


def test_the_command_tells_of_it() -> None:
    command = [sys.executable, "-m", "byref"]
    text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "  exec " in text
    text = subprocess.run([*command, "exec", "--help"], capture_output=True, text=True, check=True).stdout
    for flag in ("--zmq", "--ezmsg", "--dora", "--quiet"):
        assert flag in text

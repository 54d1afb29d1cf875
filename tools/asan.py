"""AddressSanitizer over the core's tests, and over the extension in the Python tests that are named.

The sanitizer is unstable in rustc, so the compiler is told to take itself for a nightly. Its runtime comes with it, as
an archive for programs; an interpreter, which is no such program, gets it preloaded as a shared object.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "target" / "asan"


def say(*command: str | Path, **options: object) -> str:
    """What a program prints."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout.strip()  # type: ignore[call-overload]


def skip(why: str) -> None:
    print(f"asan: skipped, {why}")
    sys.exit(0)


def build_runtime() -> Path:
    """The sanitizer's runtime as something to preload; a name like its own would alarm it."""
    host = say("rustc", "--print", "host-tuple")
    archives = sorted(Path(say("rustc", "--print", "target-libdir")).glob("librustc-*_rt.asan.a"))
    if not archives:
        skip(f"this Rust has no runtime of it for {host}")
    if not shutil.which("cc") or not shutil.which("ar"):
        skip("there is no C compiler to link its runtime")
    TARGET.mkdir(parents=True, exist_ok=True)
    archive, runtime = TARGET / "runtime.a", TARGET / "runtime.so"
    shutil.copy(archives[0], archive)
    say("ar", "d", archive, "asan_preinit.cpp.o")  # Only programs may have it.
    whole = ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive"]
    say("cc", "-shared", "-o", runtime, *whole, "-lpthread", "-ldl", "-lm", "-lrt")
    return runtime


def cargo(*arguments: str) -> None:
    """With the sanitizer; `--target` keeps it out of build scripts and macros."""
    flags = {"RUSTC_BOOTSTRAP": "1", "RUSTFLAGS": "-Zsanitizer=address"}
    place = ["--target", say("rustc", "--print", "host-tuple"), "--target-dir", str(TARGET)]
    subprocess.run(["cargo", *arguments, *place], check=True, cwd=ROOT, env=os.environ | flags)


def package_with_sanitizer() -> Path:
    """A folder with the Python package, whose extension is sanitized."""
    cargo("build", "--quiet", "--package", "byref-python", "--profile", "test")
    folder = TARGET / "python"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "python", folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (built,) = TARGET.glob("*/debug/lib_byref.so")
    shutil.copy(built, folder / "byref" / "_byref.so")
    return folder


def main() -> None:
    """All of it; fails with the first test that fails."""
    runtime = build_runtime()
    cargo("test", "--quiet", "--package", "byref", "--lib", "--tests")
    folder = package_with_sanitizer()
    settings = {
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": str(runtime),
        # Python's own allocator would hide what happens to small objects.
        "PYTHONMALLOC": "malloc",
        # Python frees not everything at its end; some tests want a child to die of a signal.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:handle_sigbus=0:allocator_may_return_null=1",
        # Everything takes longer.
        "BYREF_TEST_PATIENCE": "5",
    }
    program = "import byref._byref, sys; assert 'asan' in byref._byref.__file__; import pytest; sys.exit(pytest.main())"
    arguments = [sys.executable, "-c", program, *sys.argv[1:]]
    sys.exit(subprocess.run(arguments, cwd=ROOT, env=os.environ | settings).returncode)


if __name__ == "__main__":
    main()

"""Whether every crate that byref is built from is for the minimum Rust version, for `make msrv`."""

import json
import subprocess
import sys


def version(text: str) -> tuple[int, ...]:
    """A version to compare."""
    return tuple(map(int, text.split(".")))


def main() -> None:
    least = sys.argv[1]
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    packages = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["packages"]
    newer = [
        f"{package['name']} {package['version']} needs Rust {package['rust_version']}"
        for package in packages
        if package["rust_version"] and version(package["rust_version"])[:2] > version(least)[:2]
    ]
    if newer:
        raise SystemExit("\n".join([f"Cargo.toml promises Rust {least}, but:", *newer]))


if __name__ == "__main__":
    main()

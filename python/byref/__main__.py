"""The `byref` command: `python -m byref` is the same."""

import contextlib
import signal
import sys

from ._byref import _command


def main() -> int:
    """Run the command of `sys.argv`; gives its exit code."""
    with contextlib.suppress(ValueError):  # On another thread than the main one there are no handlers to set.
        # Ctrl-C ends it by the signal: no Python code runs that could handle it. Where it was ignored it stays so.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _command(["byref", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())

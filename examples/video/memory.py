"""What the kernel says about this process's memory (see proc(5))."""

import mmap
import re
from pathlib import Path

import numpy as np

from .clip import Pixels

_PRESENT = np.uint64(1 << 63)
_SHARED_OR_FILE = np.uint64(1 << 61)


def private_bytes(array: Pixels) -> int:
    """The size of those memory pages below the array that belong to this process alone.

    In a copy-on-write view they are the pages that were written to; the others are still the publisher's.
    """
    first = array.ctypes.data // mmap.PAGESIZE
    last = (array.ctypes.data + array.nbytes - 1) // mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(8 * first)
        pages = np.frombuffer(pagemap.read(8 * (last - first + 1)), np.uint64)
    return int(np.count_nonzero(pages & (_PRESENT | _SHARED_OR_FILE) == _PRESENT)) * mmap.PAGESIZE


def own_memory_bytes() -> int:
    """Resident memory that this process shares with nobody: its heap and stacks, but no mapped message."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    if found is None:
        raise OSError("/proc/self/status has no RssAnon line")
    return int(found[1]) * 1024

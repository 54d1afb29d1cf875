"""The machine on which a run takes place."""

import os
import platform
import re
from pathlib import Path


def facts() -> dict[str, str]:
    """What the figures depend on besides the systems."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processors": f"{len(os.sched_getaffinity(0))} x {model[1] if model else platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def others_cpu_seconds() -> float:
    """Processor time used, since the system started, by all but this process and its children that have ended."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    busy = user + nice + system + sum(interrupts)
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

"""Which libraries can run on byref, and in which versions. It imports none of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata, util


class Unusable(ImportError):
    """An adapter cannot work here; the text says why, and what to do."""


@dataclass(frozen=True)
class Adapter:
    """What stands in for a library, or for a part of it."""

    # How `byref exec` calls it.
    name: str
    # What pip calls the library, and the versions that the adapter was made for: from the first, below the second.
    distribution: str
    first: tuple[int, int]
    below: tuple[int, int]
    # The module of byref that has the adapter.
    module: str

    def installed(self) -> str | None:
        """The version of the library that this Python has; None where it has none."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None

    def check(self) -> None:
        """Raise `Unusable` if the adapter is not there, or cannot work with the version that is installed."""
        if util.find_spec(self.module) is None:
            raise Unusable(f"this version of byref has no adapter for {self.distribution} ({self.module})")
        version = self.installed()
        if version is None:
            return
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if not self.first <= numbers < self.below:
            since, until = (".".join(map(str, bound)) for bound in (self.first, self.below))
            raise Unusable(
                f"{self.module} works with {self.distribution} from {since} on and below {until}, but {version} is "
                f"installed: pip install '{self.distribution}>={since},<{until}'"
            )


ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        Adapter("zmq", "pyzmq", (27, 0), (28, 0), "byref.zmq"),
        Adapter("ezmsg", "ezmsg", (3, 9), (4, 0), "byref.integrations.ezmsg"),
        Adapter("dora", "dora-rs", (1, 0), (2, 0), "byref.integrations.dora"),
    )
}

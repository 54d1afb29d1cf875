"""What every Python process of a program under `byref exec` imports at its start, whatever its version.

It watches for the import of the libraries that `BYREF_EXEC` names, and puts their adapters in place then. It imports
nothing by itself, leaves Pythons alone that have no byref, and goes on with the `sitecustomize` that was there before.
"""
# mypy: ignore-errors

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def load_backend(load, module):
    """Load `zmq.backend`, which reads from the environment, then only, what is to carry its messages."""
    before = os.environ.get("PYZMQ_BACKEND")
    os.environ["PYZMQ_BACKEND"] = "byref.zmq"
    try:
        load(module)
    finally:
        if before is None:
            del os.environ["PYZMQ_BACKEND"]
        else:
            os.environ["PYZMQ_BACKEND"] = before


def load_ezmsg(load, module):
    """Load `ezmsg.core`, then exchange what carries its messages."""
    load(module)
    import importlib

    importlib.import_module("byref.integrations.ezmsg").install()


def load_dora(load, module):
    """Give byref's module for `dora`, which is not loaded."""
    import importlib

    sys.modules[module.__name__] = importlib.import_module("byref.integrations.dora")


# The module whose import is watched, and how it is loaded.
WATCHED = {
    "zmq": ("zmq.backend", load_backend),
    "ezmsg": ("ezmsg.core", load_ezmsg),
    "dora": ("dora", load_dora),
}


class Watch(object):  # noqa: UP004 (older Pythons read it, too)
    """A finder of modules that finds by the others, and changes how a watched module is loaded."""

    def __init__(self, names):
        self.loads = dict(WATCHED[name] for name in names if name in WATCHED)

    def find_spec(self, fullname, path=None, target=None):
        load = self.loads.pop(fullname, None)
        if load is None:
            return None
        spec = None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    break
        if spec is None or not hasattr(spec.loader, "exec_module"):
            self.loads[fullname] = load  # It may come later, when the path has changed.
            return spec
        from importlib.util import find_spec

        if find_spec("byref") is None:
            if not os.environ.get("BYREF_EXEC_QUIET"):
                text = "byref exec: byref is not installed for %s, and %s stays as it is there\n"
                sys.stderr.write(text % (sys.executable, fullname.partition(".")[0]))
            return spec
        plain = spec.loader.exec_module
        spec.loader.exec_module = lambda module: load(plain, module)
        return spec


def watch():
    """Begin to watch."""
    names = [name for name in os.environ.get("BYREF_EXEC", "").split(",") if name]
    if names and sys.version_info >= (3, 11):
        sys.meta_path.insert(0, Watch(names))


def go_on():
    """Import the `sitecustomize` that this one stands in front of, and give the path back as it was."""
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or os.curdir) != HERE]
    this = sys.modules.pop("sitecustomize", None)
    try:
        __import__("sitecustomize")
    except ImportError as problem:
        # As `site` does: that there is none is no fault.
        if getattr(problem, "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        if this is not None:
            sys.modules.setdefault("sitecustomize", this)


watch()
go_on()

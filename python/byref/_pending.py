"""Python code for a thread that waits in the extension, on a free-threaded interpreter."""


def nothing() -> None:
    """Do nothing: when Python code begins to run, the interpreter does what the thread has put off."""

"""The types of the dicts that event queues tell their numbers in."""

from typing import TypedDict


class Figures(TypedDict):
    """Numbers of a queue, or of one receiver. Times are seconds."""

    callbacks: int
    callback_time: float
    longest_callback: float
    waiting: int
    oldest_age: float | None
    lost: int


class ReceiverFigures(Figures):
    """One receiver in the numbers of its queue."""

    topic: str
    name: str


class TimerFigures(TypedDict):
    """The timers of one name in the numbers of their queue. Times are seconds."""

    name: str
    callbacks: int
    callback_time: float
    longest_callback: float
    missed: int


class ReceiverStats(Figures):
    """What `Receiver.stats()` gives."""

    received: int
    bytes: int
    copied_bytes: int
    sleeps: int


class RunningCallback(TypedDict):
    """The callback that runs. A timer has no topic; both texts are empty when the receiver or timer is not listed."""

    topic: str
    name: str
    time: float


class QueueStats(Figures):
    """What `EventQueue.stats()` and `monitors()` give."""

    name: str | None
    pid: int
    running: RunningCallback | None
    receiver_count: int
    receivers: list[ReceiverFigures]
    timer_count: int
    timers: list[TimerFigures]

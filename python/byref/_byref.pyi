"""The extension module, as `byref` re-exports it."""

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, ItemsView, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Literal, Never, Protocol, Self, TypeAlias, final, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import Buffer, CapsuleType, TypeVar

from ._stats import QueueStats, ReceiverStats

_HeaderValue: TypeAlias = str | bytes | int | float | bool
_Headers: TypeAlias = Mapping[str, _HeaderValue | np.bool_ | np.integer[Any] | np.floating[Any]]
_Policy: TypeAlias = Literal["block", "drop_oldest", "latest"]
_Ack: TypeAlias = Literal["auto", "manual"]

_Value = TypeVar("_Value", covariant=True)

class _Dict(Protocol[_Value]):
    """A dict whose values may be of a narrower type: `dict` itself is invariant, and a mapping need not be a dict."""

    def __len__(self) -> int: ...
    def items(self) -> ItemsView[Any, _Value]: ...
    def copy(self) -> object: ...
    def popitem(self) -> object: ...

class _TypedDict(Protocol):
    """A `TypedDict`, of whose values checkers tell no more than `object`."""

    __required_keys__: ClassVar[frozenset[str]]

class _List(Protocol[_Value]):
    """A list whose items may be of a narrower type. (A str, which is a sequence of str, cannot be sent.)"""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_Value]: ...
    def __getitem__(self, index: slice, /) -> object: ...
    def copy(self) -> object: ...
    def reverse(self) -> None: ...

class _Tensor(Protocol):
    """What speaks DLPack."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, Any]: ...

class _ArrowSchema(Protocol):
    def __arrow_c_schema__(self) -> Any: ...

class _ArrowArray(Protocol):
    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[Any, Any]: ...

class _ArrowStream(Protocol):
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...

# What has a payload of its own, and travels by reference.
_Payload: TypeAlias = Buffer | NDArray[Any] | np.generic | _Tensor | _ArrowArray | _ArrowStream | Message
_Container: TypeAlias = _Dict["_Part"] | _TypedDict | _List["_Part"] | tuple["_Part", ...]
_Part: TypeAlias = _Payload | _Container | str | int | float | complex | None
# What travels as a message.
_Sendable: TypeAlias = _Payload | _Container
# What a loan lends: an array, or a dict of arrays.
_Lent = TypeVar("_Lent", covariant=True, default=NDArray[Any])
# What a subscriber receives beside messages: `Event` if it asked for them, otherwise nothing.
_Told = TypeVar("_Told", covariant=True, default=Never)

_Array = TypeVar("_Array", bound=NDArray[Any])

__all__ = [
    "INLINE_LIMIT",
    "Arrow",
    "Batch",
    "Client",
    "Event",
    "EventQueue",
    "Holder",
    "Identity",
    "Job",
    "Loan",
    "Mailbox",
    "Message",
    "Outstanding",
    "PendingReply",
    "Publisher",
    "PublisherInfo",
    "Puller",
    "Pusher",
    "Receiver",
    "Rejected",
    "Request",
    "Server",
    "Subscriber",
    "SubscriberInfo",
    "Ticket",
    "Timer",
    "Undelivered",
    "_Buffered",
    "_Iterator",
    "_Jobs",
    "_Owner",
    "_Releases",
    "_Sending",
    "__version__",
    "_close_log",
    "_command",
    "_open_log",
    "_tell_lost_log",
    "copied_bytes",
    "monitors",
    "record_receives",
]

__version__: Final[str] = ...
"""The version of the package."""

INLINE_LIMIT: Final[int] = ...
"""The most bytes of payload and attributes together that travel inside the ring, and are copied once on receive."""

@final
class Publisher:
    """Publishes messages on one topic. It may be shared by threads."""

    def __new__(
        cls,
        topic: str,
        max_memory: int | None = None,
        history: int = 0,
        name: str | None = None,
        hold_warning: float | None = None,
        max_held: int | None = None,
        max_stall: float | None = None,
        on_idle: Callable[[], object] | None = None,
    ) -> Self:
        """Announce a publisher.

        `max_memory`: the most bytes of payload memory, taken as needed (default: 1 GiB, or half of the control
        group's limit where that is less). `history`: how many of the last
        messages a late subscriber may ask for. `name`: for people, shown to subscribers and in errors. `hold_warning`:
        a log line says, once, of each message that a subscriber holds longer than so many seconds. `max_held`: a
        subscriber that holds more bytes of messages is evicted. `max_stall`: so is a lossless one for which sends have
        waited so many seconds while it neither took nor released anything. `on_idle`: called when the last subscriber
        is gone (closed, dead or evicted), on a thread of byref's own, once at a time; not before there was one, not
        when another one came meanwhile, and not when the publisher is closed. What it raises goes to
        `sys.unraisablehook`.

        An evicted subscriber holds nobody up any more; its next call raises `Evicted`; what it holds stays valid.

        Raises `InvalidTopic`, `ValueError` for numbers out of range, and `Error` when `$BYREF_DIR` cannot be used.
        """

    @overload
    def send(
        self,
        data: _Sendable,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        keep: Literal[False] = False,
        tag: int = 0,
    ) -> int: ...
    @overload
    def send(
        self,
        data: _Sendable,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        *,
        keep: Literal[True],
        tag: int = 0,
    ) -> Message: ...
    @overload
    def send(
        self,
        data: _Sendable,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        *,
        keep: bool,
        tag: int = 0,
    ) -> int | Message:
        """Send a copy of `data`; return its sequence number, or, with `keep=True`, the `Message`.

        `data`: a bytes-like object, a NumPy array, another library's tensor in main memory, Arrow data of any library
        (through the PyCapsule interface), a received message, or a dict, list or tuple of such parts, of scalars, and
        of further containers. The exact type decides, and what would arrive as less is refused. `headers`: a mapping of
        str to str, bytes, int (64 bits), float or bool.

        `keep`: what a subscriber would receive is returned, as a lease like any other: its memory is not reused as long
        as the message, or a view of it, lives.

        `tag`: a number of one's own, from 0 to 2**64 - 1, that the receiver finds in `msg.tag`. It costs 8 bytes of the
        record; a header costs more.

        `timestamp_ns`: default `CLOCK_REALTIME`, in nanoseconds. `timeout`: the most seconds to wait for lossless
        subscribers; `Timeout` means that nobody received anything. Raises `PoolExhausted` when memory can not be had by
        waiting, `TypeError` for data that cannot be sent (it says where they are, and what to do), `Closed`, `Forked`.
        """

    def send_async(
        self,
        data: _Sendable,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        tag: int = 0,
    ) -> Coroutine[Any, Any, int]:
        """Send as `send` does, and let other tasks run while there is no room; on asyncio, trio and anyio.

        When it is cancelled, or raises, nobody received anything. Tasks that wait for room have no order among each
        other.
        """

    def _send_now(
        self, data: _Sendable, headers: _Headers | None, timestamp_ns: int | None, tag: int
    ) -> int | _Sending: ...
    def send_pickle(
        self,
        obj: object,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        tag: int = 0,
    ) -> int:
        """Send any object that pickle can take; return its sequence number.

        Protocol 5: the buffers of its arrays lie beside the pickle, aligned, and arrive as views on the message. Only
        subscribers with `allow_pickle=True` unpickle it. Raises as `send` does; `TypeError` if it cannot be pickled.
        """

    def send_tracked(
        self,
        data: _Sendable,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        tag: int = 0,
    ) -> Ticket:
        """Send as `send` does; return a `Ticket`, which tells when no subscriber wants or holds the message any more.

        The message travels through the pool, also a small one. Raises as `send` does.
        """

    def send_many(
        self,
        rows: Buffer | NDArray[Any] | _Tensor | _List[_Payload] | tuple[_Payload, ...],
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        tag: int = 0,
    ) -> range:
        """Send copies of the rows of an array as that many messages, in one step; return their sequence numbers.

        `rows`: an array (its rows are those along the first dimension), or a list or tuple of payloads of the same
        size and type. They share headers, timestamp and tag, lie packed, and are all sent or, when it raises, none.
        Raises as `send` does, and `ValueError` for payloads that differ, or that are empty.
        """

    def loan(self, shape: int | Sequence[int], dtype: DTypeLike | None = None, timeout: float | None = None) -> Loan:
        """Lend memory to be filled in place: `shape` elements of `dtype` (default uint8), or `shape` plain bytes.

        Raises as `send` does, and `ValueError` for a shape that cannot be.
        """

    def loan_batch(
        self, schema: _ArrowSchema, rows: int, timeout: float | None = None
    ) -> Loan[dict[str, NDArray[Any]]]:
        """Lend memory for an Arrow record batch, to be filled in place: `array` is a dict of arrays by column.

        `schema`: a `pyarrow.Schema`, or any other object with `__arrow_c_schema__`. Its columns have elements of fixed
        size that NumPy can write (numbers, timestamps, durations, times, fixed-size binary); no value is null. Fill the
        arrays that are there, as in `columns["x"][:] = values`: a loan in which one was replaced is not sent but raises
        `ValueError`. Otherwise raises as `send` does, `TypeError` for other columns, and `ValueError` for a number of
        rows that cannot be.
        """

    def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> None:
        """Wait until at least `n` subscribers are connected and know it; `Timeout` after `timeout` seconds."""

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all connected subscribers have read everything sent so far; `Timeout` after `timeout` seconds."""

    def evict(self, subscriber: SubscriberInfo) -> bool:
        """Disconnect one of `subscribers` for good, whatever it is doing; False if it is gone already.

        It holds nobody up any more, and its next call raises `Evicted`. What it holds stays valid until it lets go.
        """

    def stats(self) -> dict[str, int]:
        """Counters: sent, bytes, copied_bytes, waits, subscribers, and pool_used, pool_allocated in bytes."""

    def close(self, linger: float | None = None) -> None:
        """Close the publisher; what was sent still reaches every connected lossless subscriber.

        `linger`: wait up to so many seconds until what was sent has been taken. If there has been no subscriber so far,
        wait for the first one, which gets all messages that are still there: the last `history` ones; of small ones
        those of the first two seconds, up to 8,192, or later at least the last 31; of large ones those whose memory was
        not used again. It waits for no second subscriber, and not at all if nothing was sent. Without `linger`,
        and at the end of a `with` block, it does not wait; if all messages reached nobody, a warning is logged.

        Calling it again has no effect. Raises `ValueError` for a negative time.
        """

    @property
    def outstanding(self) -> Outstanding:
        """What subscribers hold at this moment: messages that they took and have not released yet. Raises `Closed`."""

    @property
    def subscribers(self) -> list[SubscriberInfo]:
        """The connected subscribers."""

    @property
    def topic(self) -> str:
        """The topic."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Ticket:
    """Tells when a message is released.

    That is when every subscriber that was connected at some moment after the send has passed it (took it, skipped it
    by its policy, closed, or died) and none holds it any more. What the publisher keeps as history does not count.
    """

    def wait_released(self, timeout: float | None = None) -> None:
        """Wait until the message is released. Releases the GIL, obeys Ctrl-C.

        Raises `Timeout` after `timeout` seconds, with a text that names who holds the message, `Closed` when the
        publisher was closed before the release, and `Forked`.
        """

    def __await__(self) -> Generator[Any]:
        """Wait for the release in an event loop; `Closed` as above. May be cancelled, and awaited by many tasks."""

    @property
    def released(self) -> bool:
        """Whether the message is released by now. Once it was, it stays so."""

    @property
    def sequence(self) -> int:
        """The message's sequence number."""

@final
class _Sending:
    """A message that waits for room."""

    def attempt(self, waited: float | None = None) -> int | None:
        """Try again: its sequence number, or None while there is no room; for the last time with `waited`."""

    def discard(self) -> None:
        """Give it up, and its memory back."""

@final
class _Releases:
    """What an event loop polls for all the tickets that its tasks wait for."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """Readable when `take` has something to tell."""

    def add(self, ticket: Ticket, name: int) -> None:
        """Wait for a ticket, under a name."""

    def remove(self, ticket: Ticket, name: int) -> None:
        """Wait for it no more."""

    def take(self) -> list[int]:
        """The names of the tickets that are over, each once."""

@final
class Outstanding:
    """What subscribers hold of a publisher's messages, at one moment.

    Messages of up to `INLINE_LIMIT` bytes are copied by whoever takes them and are never held (tracked ones are). The
    messages of one `send_many` are held together.
    """

    @property
    def messages(self) -> int:
        """Messages that somebody holds."""

    @property
    def bytes(self) -> int:
        """Their payload bytes."""

    @property
    def holders(self) -> list[Holder]:
        """Who holds them: each connection of a subscriber that holds any."""

    @property
    def oldest(self) -> Holder | None:
        """The one of them that holds the oldest message."""

@final
class Holder:
    """What one subscriber holds of a publisher's messages."""

    @property
    def pid(self) -> int:
        """Its process; 0 when that is out of sight."""

    @property
    def name(self) -> str | None:
        """The name it was given."""

    @property
    def messages(self) -> int:
        """Messages that it holds."""

    @property
    def bytes(self) -> int:
        """Their payload bytes."""

    @property
    def oldest_sequence(self) -> int:
        """The sequence number of the oldest of them."""

    @property
    def oldest_age(self) -> float:
        """How many seconds ago that one was sent."""

    @property
    def received_at(self) -> str | None:
        """Where that one was received: the end of "file:line". None unless its process records that."""

def record_receives(on: bool = True) -> None:
    """Record, from now on in this process, the file and line where messages are received.

    Publishers show it in `outstanding`, in warnings and in errors. `BYREF_RECORD_RECEIVES=1` does the same from the
    start.
    """

@final
class Subscriber(Generic[_Told]):
    """Receives the messages of every publisher of one topic, or of all topics that a pattern matches.

    It may be shared by threads: each message goes to one. With `events=True` it also receives `Event` objects.
    """

    @overload
    def __new__(
        cls,
        topic: str,
        policy: _Policy = "block",
        depth: int | None = None,
        history: int = 0,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        events: Literal[False] = False,
        spin: float | None = None,
        ack: _Ack = "auto",
    ) -> Subscriber[Never]: ...
    @overload
    def __new__(
        cls,
        topic: str,
        policy: _Policy = "block",
        depth: int | None = None,
        history: int = 0,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        *,
        events: bool,
        spin: float | None = None,
        ack: _Ack = "auto",
    ) -> Subscriber[Event]:
        """Follow a topic, or a pattern of topics: `*` is exactly one level, `**` any number of them ("camera/*").

        `policy`: what happens when it falls behind: "block" (the publisher waits), "drop_oldest" (keep the newest
        `depth`), "latest" (keep one). `depth`: how many messages of each publisher may wait (default and most: what a
        publisher may keep, 16384; half for "drop_oldest"). `history`: how many messages from before it came
        it wants of each publisher, as far as that has them. `writable`: `msg.value` is a private copy-on-write array.
        `events`: what happens to publishers comes among their messages, as `Event` objects. `spin`: for how many
        seconds at most a call that waits looks again and again before it sleeps (default: 150 us); it adapts. `ack`:
        "manual" counts a message as taken when `msg.ack()` is called, not when it is received; only with the policy
        "block".

        Raises `InvalidTopic`, `ValueError`, and `Error` when `$BYREF_DIR` cannot be used.
        """

    def recv(self, timeout: float | None = None) -> Message | _Told:
        """Return the next message; `Timeout` when none came in `timeout` seconds. Releases the GIL, obeys Ctrl-C."""

    def recv_async(self, timeout: float | None = None) -> Coroutine[Any, Any, Message | _Told]:
        """Return the next message, and let other tasks run until it comes; on asyncio, trio and anyio.

        `Timeout` when none came in `timeout` seconds. When it is cancelled, no message is lost.
        """

    def _recv_at_last(self, waited: float) -> Message | _Told: ...
    def try_recv(self) -> Message | _Told | None:
        """Return the next message, or None when none is there."""

    def recv_batch(self, n: int, timeout: float | None = None) -> Batch | _Told:
        """Return up to `n` messages that are there, at least one; wait, as `recv` does, for the first only.

        Rows that were sent together by `send_many` come in batches of their own, without a copy.
        """

    def fileno(self) -> int:
        """A descriptor to poll, readable when a message comes after `try_recv` gave None."""

    def wait_for_publishers(self, n: int = 1, timeout: float | None = None) -> None:
        """Wait until at least `n` publishers are connected; `Timeout` after `timeout` seconds."""

    @property
    def unacknowledged(self) -> int:
        """How many messages were received and not acknowledged yet, with `ack="manual"`."""

    def stats(self) -> dict[str, int]:
        """Counters: received, bytes, copied_bytes, lost, sleeps."""

    def close(self) -> None:
        """Close the subscriber; iterations end, messages and views stay valid. Calling it again has no effect."""

    @property
    def lost(self) -> int:
        """How many messages this subscriber's policy lost."""

    @property
    def publishers(self) -> list[PublisherInfo]:
        """The publishers that are connected and alive."""

    @property
    def topic(self) -> str:
        """The topic or pattern, as it was given."""

    def __iter__(self) -> _Iterator[_Told]: ...
    def __next__(self) -> Message | _Told: ...
    def __aiter__(self) -> AsyncIterator[Message | _Told]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Mailbox(Generic[_Told]):
    """An address of one's own: messages to and from any number of other mailboxes, in whatever process of the host.

    Messages from one mailbox to another come in order; among several senders turns are fair. It may be shared by
    threads: each message goes to one. With `events=True` it also receives `Event` objects.
    """

    @overload
    def __new__(
        cls,
        address: str | None = None,
        depth: int = 256,
        max_memory: int | None = None,
        takeover: bool = False,
        events: Literal[False] = False,
        writable: bool = False,
        allow_pickle: bool = False,
    ) -> Mailbox[Never]: ...
    @overload
    def __new__(
        cls,
        address: str | None = None,
        depth: int = 256,
        max_memory: int | None = None,
        takeover: bool = False,
        *,
        events: bool,
        writable: bool = False,
        allow_pickle: bool = False,
    ) -> Mailbox[Event]:
        """Claim an address; one mailbox at a time has it. None: a random one, which others learn from its messages.

        `depth`: how many messages may wait at each destination; a send beyond that waits. `max_memory`: the most bytes
        of payload memory for all destinations together (default: as for a `Publisher`). `takeover`: takes the address
        from a mailbox that has it, which is closed and whose calls raise `AddressInUse`; that of a dead process is free
        anyway. `events`: which mailboxes come and go is told among the messages. `writable`, `allow_pickle`: as for a
        `Subscriber`.

        Raises `AddressInUse`, `InvalidTopic` (addresses look like topics, without wildcards), `ValueError`, and `Error`
        when `$BYREF_DIR` cannot be used.
        """

    def send(
        self,
        to: str | Identity,
        data: _Sendable | Undelivered,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        wait: float | None = None,
        tag: int = 0,
    ) -> int:
        """Send a copy of `data`; return its number among the messages from here to there.

        `to`: an address, whoever has it; or an `Identity`, such as `msg.sender`, and no later mailbox with its address.
        `data`: what `Publisher.send` takes; or an `Undelivered` message, which goes on with its headers, timestamp and
        tag, without a copy if this mailbox had sent it. `timeout`: the most seconds to wait for room, and for the other
        side to answer at first. `wait`: for how many seconds to let an address come that nobody has (default: none).

        A call that raises sent nothing: `Unroutable` when nobody has the address, `PeerLost` when the mailbox has
        ended, or ended while this call waited for it, `Timeout`, `PoolExhausted`, `TypeError`, `Closed`, `Forked`;
        `ValueError` when it is full of messages to itself.
        """

    def send_async(
        self,
        to: str | Identity,
        data: _Sendable | Undelivered,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        wait: float | None = None,
        tag: int = 0,
    ) -> Coroutine[Any, Any, int]:
        """Send as `send` does, and let other tasks run while there is no room; on asyncio, trio and anyio.

        When it is cancelled, or raises, nothing was sent. Tasks that wait for room have no order among each other.
        """

    def _send_now(
        self,
        to: str | Identity,
        data: _Sendable | Undelivered,
        headers: _Headers | None,
        timestamp_ns: int | None,
        wait: float | None,
        tag: int,
    ) -> int | _Sending: ...
    def send_pickle(
        self,
        to: str | Identity,
        obj: object,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        wait: float | None = None,
        tag: int = 0,
    ) -> int:
        """Send any object that pickle can take, as `Publisher.send_pickle` does; raises as `send` does."""

    def send_tracked(
        self,
        to: str | Identity,
        data: _Sendable,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        wait: float | None = None,
        tag: int = 0,
    ) -> Ticket:
        """Send as `send` does; the ticket tells when nobody holds the message any more."""

    def send_many(
        self,
        to: str | Identity,
        rows: Buffer | NDArray[Any] | _Tensor | _List[_Payload] | tuple[_Payload, ...],
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        wait: float | None = None,
        tag: int = 0,
    ) -> range:
        """Send copies of the rows of an array as that many messages, as `Publisher.send_many` does.

        Together they count as one message against `depth`. Raises as `send` does.
        """

    def send_to_all(
        self,
        pattern: str,
        data: _Sendable,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        tag: int = 0,
    ) -> list[Identity]:
        """Send a copy of `data` to all other mailboxes whose addresses `pattern` matches; return to whom it was sent.

        There is one copy in memory, and a record for each. While those that are full are waited for, the others have it
        already. One that has no room within `timeout` seconds, or ends meanwhile, is not among those that are returned.
        Nor is one that does not say within that time, or 5 s, which address it has. It is asked once.
        """

    def loan(
        self,
        to: str | Identity,
        shape: int | Sequence[int],
        dtype: DTypeLike | None = None,
        timeout: float | None = None,
        wait: float | None = None,
    ) -> Loan:
        """Lend memory to be filled in place and sent there, as `Publisher.loan` does; raises as `send` does."""

    def undelivered(self, peer: str | Identity) -> list[Undelivered]:
        """Return the messages that a mailbox which has ended never took, once; of one that lives, none.

        `peer`: an identity, or an address: then of all that had it. What the mailbox had taken is not among them: it
        may have been processed. They keep their memory as long as they live.
        """

    def recv(self, timeout: float | None = None) -> Message | _Told:
        """Return the next message; `Timeout` when none came in `timeout` seconds. Releases the GIL, obeys Ctrl-C."""

    def recv_async(self, timeout: float | None = None) -> Coroutine[Any, Any, Message | _Told]:
        """Return the next message, and let other tasks run until it comes; on asyncio, trio and anyio.

        `Timeout` when none came in `timeout` seconds. When it is cancelled, no message is lost.
        """

    def try_recv(self) -> Message | _Told | None:
        """Return the next message, or None when none is there."""

    def recv_batch(self, n: int, timeout: float | None = None) -> Batch | _Told:
        """Return up to `n` messages that are there, at least one; wait, as `recv` does, for the first only."""

    def fileno(self) -> int:
        """A descriptor to poll, readable when a message comes after `try_recv` gave None."""

    def wait_for_peer(self, pattern: str, timeout: float | None = None) -> Identity:
        """Wait until there is another mailbox whose address `pattern` is, or matches; return one of them."""

    def stats(self) -> dict[str, int]:
        """Counters.

        sent, sent_bytes, copied_bytes, waits, received, received_bytes, destinations, undelivered, pool_used,
        pool_allocated.
        """

    def close(self) -> None:
        """Close the mailbox: its address is free, iterations end, messages and views stay valid.

        What it sent is still received. What it did not take is its senders' again. Calling it again has no effect.
        """

    @property
    def address(self) -> str:
        """Its address."""

    @property
    def identity(self) -> Identity:
        """What others see as `msg.sender`."""

    @property
    def peers(self) -> list[Identity]:
        """The mailboxes that have sent to it, and those that it has sent to, as far as they live."""

    def __iter__(self) -> _Iterator[_Told]: ...
    def __next__(self) -> Message | _Told: ...
    def __aiter__(self) -> AsyncIterator[Message | _Told]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Pusher:
    """Gives jobs to the pullers of a queue: each to exactly one that has room, the longest idle first.

    A job is kept, in this pusher's memory, until a puller says that it is done. Jobs live as long as their pusher.
    Several pushers may serve one queue, and a pusher may be shared by threads.
    """

    def __new__(
        cls,
        queue: str,
        max_pending: int = 1000,
        redeliver: bool = True,
        max_attempts: int | None = None,
        max_time: float | None = None,
        max_memory: int | None = None,
        name: str | None = None,
    ) -> Self:
        """Announce a pusher of a queue.

        `max_pending`: how many jobs may be unfinished; a send beyond that waits. `redeliver`: whether a job whose
        puller ended, or gave it up, after it had taken it is given to another one: it may be done twice then (at least
        once); otherwise it is rejected (at most once). What was never taken is given to another one anyway.
        `max_attempts`: a job that has failed so often is rejected. `max_time`: a puller that has jobs and answers none
        of them for so many seconds loses them. `max_memory`: as for a `Publisher`. `name`: for people, shown to
        pullers.

        Raises `InvalidTopic` (queues look like topics, without wildcards), `ValueError`, and `Error` when `$BYREF_DIR`
        cannot be used.
        """

    def send(
        self,
        data: _Sendable | Rejected,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Push a copy of `data` as a job; return its number.

        `data`: what `Publisher.send` takes, or a `Rejected` job, which goes with its headers and timestamp, as a new
        one. `timeout`: the most seconds to wait while `max_pending` jobs are unfinished, or have all memory.

        A call that raises pushed nothing: `Timeout`, `PoolExhausted`, `TypeError`, `Closed`, `Forked`.
        """

    def send_pickle(
        self,
        obj: object,
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Push any object that pickle can take, as `Publisher.send_pickle` does; raises as `send` does."""

    def send_many(
        self,
        rows: Buffer | NDArray[Any] | _Tensor | _List[_Payload] | tuple[_Payload, ...],
        headers: _Headers | None = None,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
    ) -> range:
        """Push each row as a job of its own, all or none; return their numbers.

        `rows`: what `Publisher.send_many` takes. It waits for room for all of them; more than `max_pending` are a
        `ValueError`. Raises as `send` does.
        """

    def loan(self, shape: int | Sequence[int], dtype: DTypeLike | None = None, timeout: float | None = None) -> Loan:
        """Lend memory to be filled in place and pushed as a job, as `Publisher.loan` does; raises as `send` does."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until no job is pending; `Timeout` after `timeout` seconds. Releases the GIL, obeys Ctrl-C."""

    def take_rejected(self) -> list[Rejected]:
        """Return what `rejected` has, and forget it."""

    def wait_for_pullers(self, n: int = 1, timeout: float | None = None) -> None:
        """Wait until at least `n` pullers are connected; `Timeout` after `timeout` seconds."""

    def stats(self) -> dict[str, int]:
        """Counters.

        pushed, pushed_bytes, copied_bytes, done, rejected, failed (attempts), returned (jobs that came back untaken),
        late (answers that came after the job had been given to somebody else), pending, waiting (without a puller),
        pullers, pool_used, pool_allocated.
        """

    def close(self) -> None:
        """Close the pusher. Pending jobs are not given any more, and nobody hears what becomes of those that were
        taken.

        A log line tells how many these are; `join` waits for them. Calling it again has no effect.
        """

    @property
    def pending(self) -> int:
        """How many jobs are neither done nor rejected."""

    @property
    def rejected(self) -> list[Rejected]:
        """The jobs that will not be given again; the last 1024 are kept until they are taken by `take_rejected`."""

    @property
    def pullers(self) -> list[tuple[int, str | None]]:
        """The pullers that take jobs: process (0 when that is out of sight), and name."""

    @property
    def queue(self) -> str:
        """Its queue."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Rejected:
    """A job that will not be given again; `Pusher.send` pushes it as a new one. `bytes(job)` is its payload."""

    @property
    def number(self) -> int:
        """Its number among the jobs of its pusher."""

    @property
    def attempts(self) -> int:
        """How often it was tried."""

    @property
    def reason(self) -> str:
        """Why it will not be given again: what the puller said, or what happened."""

    @property
    def may_have_run(self) -> bool:
        """Nobody knows what became of it: its puller had taken it when it ended, and the pusher does not redeliver."""

    @property
    def timestamp_ns(self) -> int:
        """When it was pushed: nanoseconds of `CLOCK_REALTIME`, or what the pusher gave."""

    @property
    def headers(self) -> dict[str, _HeaderValue]:
        """The headers."""

    @property
    def nbytes(self) -> int:
        """The size of its payload in bytes."""

    def __len__(self) -> int: ...
    def __bool__(self) -> Literal[True]: ...
    def __bytes__(self) -> bytes: ...

@final
class Puller:
    """Takes jobs from the pushers of a queue, present and future. It may be shared by threads: each job goes to one.

    In `for job in puller:` a job is done when the body has ended without an exception, unless it was answered there;
    if an exception ends the body, the job has failed, and is given again. That holds for the `for` statement itself,
    for comprehensions and for `async for`. Who takes a job in any other way answers it: by `recv`, `next`, `zip`,
    `map`, `list`.
    """

    def __new__(
        cls,
        queue: str,
        prefetch: int = 1,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        spin: float | None = None,
    ) -> Self:
        """Look for the pushers of a queue.

        `prefetch`: how many jobs it has at a time, the one that it works on among them; more hide the time that an
        answer and the next job take, but what waits here does not go to others that are idle. `writable`,
        `allow_pickle`, `spin`: as for a `Subscriber`. `name`: for people, shown to pushers.

        Raises `InvalidTopic`, `ValueError`, and `Error` when `$BYREF_DIR` cannot be used.
        """

    def recv(self, timeout: float | None = None) -> Job:
        """Return the next job; `Timeout` when none came in `timeout` seconds. Releases the GIL, obeys Ctrl-C.

        None comes while `prefetch` jobs of this puller are not answered.
        """

    def recv_async(self, timeout: float | None = None) -> Coroutine[Any, Any, Job]:
        """Return the next job, and let other tasks run until it comes; on asyncio, trio and anyio.

        `Timeout` when none came in `timeout` seconds. When it is cancelled, no job is lost.
        """

    def _recv_at_last(self, waited: float) -> Job: ...
    def try_recv(self) -> Job | None:
        """Return the next job, or None when none is there."""

    def fileno(self) -> int:
        """A descriptor to poll, readable when a job comes after `try_recv` gave None."""

    def wait_for_pushers(self, n: int = 1, timeout: float | None = None) -> None:
        """Wait until at least `n` pushers are connected; `Timeout` after `timeout` seconds."""

    def stats(self) -> dict[str, int]:
        """Counters: received, bytes, copied_bytes, lost (jobs that were taken back before they were taken), sleeps."""

    def close(self) -> None:
        """Close the puller: what it has not taken goes to others; what it has taken may still be answered.

        Iterations end. Calling it again has no effect.
        """

    @property
    def pushers(self) -> list[PublisherInfo]:
        """The pushers that are connected and alive."""

    @property
    def unanswered(self) -> int:
        """How many jobs were taken and not answered."""

    @property
    def queue(self) -> str:
        """Its queue."""

    def __iter__(self) -> _Jobs: ...
    def _loop(self) -> _Jobs: ...
    def __aiter__(self) -> AsyncIterator[Job]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Job:
    """A job that a puller took, to be answered once: `done`, `retry` or `reject`, from any thread, in any order.

    One that is dropped without an answer has failed. It has the attributes and protocols of its `message`, such as
    `writable()`, `shape`, the buffer protocol and Arrow's; views of it stay valid when it was answered.
    """

    def done(self) -> None:
        """Say that it is done: it will not be given again. `ValueError` when it was answered before."""

    def retry(self, delay: float = 0.0) -> None:
        """Say that it has failed, and is to be given again after `delay` seconds, to whichever puller has room then.

        `ValueError` when it was answered before.
        """

    def reject(self, reason: str = "") -> None:
        """Say that it is never to be given again: it goes to `Pusher.rejected`.

        Of a reason beyond 256 bytes the first ones arrive. `ValueError` when it was answered before.
        """

    def _settle(self, is_done: bool) -> None: ...
    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1; more when the job has failed before."""

    @property
    def number(self) -> int:
        """Its number among the jobs of its pusher, from 0; the same in each attempt."""

    @property
    def answered(self) -> bool:
        """Whether it was answered."""

    @property
    def message(self) -> Message:
        """The payload and what is beside it."""

    @property
    def value(self) -> Any:
        """The natural object, as `Message.value` gives it."""

    @property
    def headers(self) -> dict[str, _HeaderValue]:
        """The headers."""

    @property
    def timestamp_ns(self) -> int:
        """When it was pushed: nanoseconds of `CLOCK_REALTIME`, or what the pusher gave."""

    @property
    def nbytes(self) -> int:
        """The size of its payload in bytes."""

    @property
    def pusher(self) -> PublisherInfo:
        """Who pushed it."""

    def __getattr__(self, name: str, /) -> Any: ...
    def __len__(self) -> int: ...
    def __bool__(self) -> Literal[True]: ...
    def __bytes__(self) -> bytes: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Identity:
    """A mailbox: its address, this claim on the address, and its process. Immutable, and valid after its end."""

    @property
    def address(self) -> str:
        """Its address."""

    @property
    def incarnation(self) -> str:
        """32 hexadecimal digits, different for each claim on the address."""

    @property
    def process(self) -> int:
        """Its process; 0 when that is out of sight."""

@final
class Undelivered:
    """A message that its destination never took; `Mailbox.send` sends it elsewhere. `bytes(message)` is its payload."""

    @property
    def peer(self) -> Identity:
        """The mailbox that it was sent to."""

    @property
    def sequence(self) -> int:
        """Its number among the messages that were sent to that one, from 0."""

    @property
    def timestamp_ns(self) -> int:
        """When it was sent: nanoseconds of `CLOCK_REALTIME`, or what the sender gave."""

    @property
    def tag(self) -> int:
        """The number that its sender gave it with `tag=`; 0: none."""

    @property
    def headers(self) -> dict[str, _HeaderValue]:
        """The headers."""

    @property
    def nbytes(self) -> int:
        """The size of its payload in bytes."""

    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...

@final
class Client:
    """Asks the servers of a service, in whatever process of the host, and gets their replies.

    A request goes to the server with the fewest of this client's under way. It may be shared by threads.
    """

    def __new__(
        cls, service: str, max_memory: int | None = None, writable: bool = False, allow_pickle: bool = False
    ) -> Self:
        """Make a client, which looks for servers from now on.

        `max_memory`: the most bytes of payload memory for all requests (default: as for a `Publisher`). `writable`,
        `allow_pickle`: how it wants replies, as for a `Subscriber`.

        Raises `InvalidTopic` (services are named like topics, without wildcards), `ValueError`, and `Error` when
        `$BYREF_DIR` cannot be used.
        """

    def request(
        self,
        data: _Sendable | Loan[Any],
        headers: _Headers | None = None,
        timeout: float | None = 30.0,
        to: Identity | str | None = None,
        wait: float | None = None,
        retry: Literal["idempotent"] | None = None,
        timestamp_ns: int | None = None,
        pickle: bool = False,
    ) -> Message:
        """Send a request, and return the reply; its `sender` is the server. Of a streamed one, the last part.

        `data`: what `Publisher.send` takes; or a loan of this client's, which is sent without a copy. `timeout`: the
        deadline in seconds, also for the server. `to`: one server (`reply.sender`, one of `servers`), or a group of
        them. `wait`: for how many seconds to let a server come if nobody serves (default: none).
        `retry="idempotent"`: when a server ends that has taken the request, another one gets it. `pickle`: any object,
        as with `Publisher.send_pickle`; the server's `allow_pickle` has to allow it.

        Raises `NoServer`; `DeadlineExceeded`; `RemoteError` when the service failed; `NoReply` when the server dropped
        it; `PeerLost` when the server ended: `taken` says whether it had taken the request. Further
        `TypeError`, `PoolExhausted`, `Closed`, `Forked`. When Ctrl-C ends the call, the request is cancelled.
        """

    def submit(
        self,
        data: _Sendable | Loan[Any],
        headers: _Headers | None = None,
        timeout: float | None = 30.0,
        to: Identity | str | None = None,
        wait: float | None = None,
        retry: Literal["idempotent"] | None = None,
        timestamp_ns: int | None = None,
        pickle: bool = False,
    ) -> PendingReply:
        """Send a request, and return at once what its reply will be; as `request` otherwise.

        It waits at the client while all servers have as many as they may.
        """

    def survey(
        self,
        data: _Sendable,
        headers: _Headers | None = None,
        timeout: float = 1.0,
        to: Identity | str | None = None,
        wait: float | None = None,
    ) -> list[Message]:
        """Ask every server that is there (of a group, with `to`); return the replies that came in `timeout` seconds.

        Those that fail, drop the request or end are not among them. `NoServer` when nobody serves.
        """

    def loan(self, shape: int | Sequence[int], dtype: DTypeLike | None = None, timeout: float | None = None) -> Loan:
        """Lend memory to be filled in place, for `request(loan)` or `submit(loan)`."""

    def wait_for_server(self, group: str | None = None, timeout: float | None = None) -> None:
        """Wait until there is a server (of that group); `Timeout` after `timeout` seconds."""

    def fileno(self) -> int:
        """A descriptor to poll, readable when a reply comes after `PendingReply.done()` was False."""

    def stats(self) -> dict[str, int]:
        """Counters.

        sent, copied_bytes, received, late (replies that nobody wanted any more), unasked, resent, under_way, waiting,
        servers, pool_used.
        """

    def close(self) -> None:
        """Close the client; servers see that nobody wants replies any more. Calling it again has no effect."""

    @property
    def service(self) -> str:
        """The service."""

    @property
    def identity(self) -> Identity:
        """What servers see as `request.sender`."""

    @property
    def servers(self) -> list[Identity]:
        """The servers that it is connected to."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class PendingReply:
    """The reply to a request that was submitted. `await` gives it, on asyncio, trio and anyio.

    Iteration gives the parts of a streamed reply as they come (`async for`, too). Dropping it cancels the request.
    """

    def result(self, timeout: float | None = None) -> Message:
        """Wait for the reply, and return it; raise as `Client.request` does, and `Timeout` after `timeout` seconds.

        Of a streamed reply, the last part.
        """

    def done(self) -> bool:
        """Whether there is something: the reply, a part of it, or the reason why there is none."""

    def cancel(self) -> bool:
        """Want no reply any more: the server sees it while it works. False when there was nothing to cancel."""

    def _client(self) -> Client: ...
    def _seconds_left(self) -> float | None: ...
    def _next_now(self) -> Message | None: ...
    def __await__(self) -> Generator[Any, None, Message]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Message: ...
    def __aiter__(self) -> AsyncIterator[Message]: ...

@final
class Server:
    """Serves a service: takes requests, and replies to them. Any number of servers may serve the same service.

    It may be shared by threads: each request goes to one.
    """

    def __new__(
        cls,
        service: str,
        group: str = "",
        prefetch: int = 1,
        max_memory: int | None = None,
        writable: bool = False,
        allow_pickle: bool = False,
    ) -> Self:
        """Make a server. Clients find it from now on.

        `group`: a name by which clients may choose among the servers. `prefetch`: how many requests of each client it
        may have and not have answered, at most 1,024: what its death or slowness can delay. Others go to
        other servers, or wait at the client. `max_memory`: the most bytes of payload memory for all replies (default:
        as for a `Publisher`). `writable`, `allow_pickle`: how it wants requests, as for a `Subscriber`.

        Raises `InvalidTopic`, `ValueError`, and `Error` when `$BYREF_DIR` cannot be used.
        """

    def recv(self, timeout: float | None = None) -> Request:
        """Return the next request; `Timeout` when none came in `timeout` seconds. Releases the GIL, obeys Ctrl-C."""

    def recv_async(self, timeout: float | None = None) -> Coroutine[Any, Any, Request]:
        """Return the next request, and let other tasks run until it comes; on asyncio, trio and anyio."""

    def _recv_at_last(self, waited: float) -> Request: ...
    def try_recv(self) -> Request | None:
        """Return the next request, or None when none is there."""

    def fileno(self) -> int:
        """A descriptor to poll, readable when a request comes after `try_recv` gave None."""

    def stats(self) -> dict[str, int]:
        """Counters.

        received, received_bytes, skipped (nobody wanted a reply when they were taken), replied, late (replies that
        nobody wanted any more), dropped, copied_bytes, clients, pool_used.
        """

    def close(self) -> None:
        """Close the server; iterations end. Calling it again has no effect.

        Requests that it has not taken go to other servers; those that it has taken can be answered no more.
        """

    @property
    def service(self) -> str:
        """The service."""

    @property
    def group(self) -> str:
        """The group; empty: none."""

    @property
    def identity(self) -> Identity:
        """What clients see as `reply.sender`."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Request: ...
    def __aiter__(self) -> AsyncIterator[Request]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Request:
    """A request that a server has taken; to be answered once, from whichever thread.

    It has all that its `message` has: `sender`, `headers`, `shape`, `dtype`, a buffer. Dropping it unanswered is
    `NoReply` for its client.
    """

    def reply(
        self,
        data: _Sendable | Loan[Any],
        headers: _Headers | None = None,
        more: bool = False,
        timestamp_ns: int | None = None,
        timeout: float | None = None,
        pickle: bool = False,
    ) -> bool:
        """Send the reply; return False when nobody wants it any more, so that it was dropped.

        `data`: what `Publisher.send` takes, or a loan of this request's. `more`: further parts follow; a part waits, up
        to `timeout` seconds, while its client has many to take. The last reply never waits for the client. `pickle`:
        any object; the client's `allow_pickle` has to allow it.

        Raises `ValueError` when it was answered before, `Closed` when the server was closed.
        """

    def finish(self) -> bool:
        """End a reply whose parts were all sent with `more`; as `reply` otherwise."""

    @property
    def has_room(self) -> bool:
        """Whether a part of a streamed reply would be sent at once (or dropped, since nobody wants it any more)."""

    def fail(self, code: int | str, text: str = "", traceback: str = "") -> bool:
        """Say that the service failed: the client gets a `RemoteError`; as `reply` otherwise."""

    def loan(self, shape: int | Sequence[int], dtype: DTypeLike | None = None, timeout: float | None = None) -> Loan:
        """Lend memory to be filled in place, for `reply(loan)`."""

    @property
    def message(self) -> Message:
        """The request as a message."""

    @property
    def value(self) -> Any:
        """What was sent; `message.value`."""

    @property
    def deadline(self) -> float | None:
        """When the reply has to be there, on the clock of `time.monotonic()`; None: at any time."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants a reply any more: cancelled, too late, or its client has ended. Receives nothing."""

    @property
    def answered(self) -> bool:
        """Whether it was answered."""

    def __getattr__(self, name: str) -> Any: ...
    def __len__(self) -> int: ...
    def __bytes__(self) -> bytes: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class EventQueue:
    """Calls receivers as messages come: any callables, on many topics, one after the other on one thread at a time."""

    def __new__(
        cls,
        on_error: Literal["raise", "log", "detach"] = "raise",
        name: str | None = None,
        slow_callback: float | None = None,
        backlog: int | None = None,
        max_age: float | None = None,
    ) -> Self:
        """Make a queue without receivers.

        `on_error`: what becomes of an `Exception` in a callback: "raise" it out of `run`, "log" it (Python's `logging`,
        logger "byref") and go on, or "detach" the receiver and log it. No message is lost by it. `name`: other
        processes see the queue in `monitors()`. A log line says when a callback takes longer than `slow_callback`
        seconds (also while it hangs), when more than `backlog` messages wait, or one waits longer than `max_age`
        seconds.

        Raises `ValueError`, and `Error` when `$BYREF_DIR` cannot be used.
        """

    def serve(
        self,
        service: str,
        function: Callable[[Request], object],
        *,
        group: str = "",
        prefetch: int = 1,
        max_memory: int | None = None,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
    ) -> Receiver:
        """Serve a service with any callable, which is called with each `Request`; closing the receiver ends that.

        What it returns is the reply (None: an empty one), unless it has answered by itself; what a generator yields are
        the parts of a streamed reply; what it raises is a `RemoteError` for the client, with the class's name, the text
        and the traceback, and the queue goes on. Coroutine functions and asynchronous generators serve in
        `run_async`. The other arguments: as for a `Server`.
        """

    @overload
    def subscribe(
        self,
        topic: Mailbox[_Told],
        receiver: Callable[[Message | _Told], object],
        batch: Literal[False] | None = None,
        *,
        name: str | None = None,
    ) -> Receiver: ...
    @overload
    def subscribe(
        self,
        topic: Mailbox[_Told],
        receiver: Callable[[Batch | _Told], object],
        batch: int,
        *,
        name: str | None = None,
    ) -> Receiver: ...
    @overload
    def subscribe(
        self,
        topic: Puller,
        receiver: Callable[[Job], object],
        *,
        name: str | None = None,
    ) -> Receiver: ...
    @overload
    def subscribe(
        self,
        topic: str,
        receiver: Callable[[Message], object],
        batch: Literal[False] | None = None,
        *,
        policy: _Policy = "block",
        depth: int | None = None,
        history: int = 0,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        events: Literal[False] = False,
        ack: _Ack = "auto",
    ) -> Receiver: ...
    @overload
    def subscribe(
        self,
        topic: str,
        receiver: Callable[[Message | Event], object],
        batch: Literal[False] | None = None,
        *,
        policy: _Policy = "block",
        depth: int | None = None,
        history: int = 0,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        events: bool,
        ack: _Ack = "auto",
    ) -> Receiver: ...
    @overload
    def subscribe(
        self,
        topic: str,
        receiver: Callable[[Batch], object],
        batch: int,
        *,
        policy: _Policy = "block",
        depth: int | None = None,
        history: int = 0,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        events: Literal[False] = False,
        ack: _Ack = "auto",
    ) -> Receiver: ...
    @overload
    def subscribe(
        self,
        topic: str,
        receiver: Callable[[Batch | Event], object],
        batch: int,
        *,
        policy: _Policy = "block",
        depth: int | None = None,
        history: int = 0,
        writable: bool = False,
        allow_pickle: bool = False,
        name: str | None = None,
        events: bool,
        ack: _Ack = "auto",
    ) -> Receiver:
        """Call `receiver` with each `Message` of `topic` from now on; the other arguments are those of `Subscriber`.

        `topic` may also be a `Mailbox` or a `Puller`, which nobody else should receive from meanwhile. It receives as
        it was made to, and goes on when the receiver is closed. A job is done when the callback returns, or has failed
        when that raises, unless it was answered there.

        `batch`: call it with a `Batch` of up to 1000 messages that are there, or of up to so many. `events`: call it
        with each `Event`, too, in order with the messages.

        How to call it is found out now, not with each message. May be called from any thread, also inside a callback.
        Raises `TypeError` for what cannot be called; otherwise as `Subscriber` does.
        """

    def call_later(self, seconds: float, function: Callable[..., object], *args: Any, name: str | None = None) -> Timer:
        """Call `function(*args)` once, `seconds` (0 or more) from now, on the queue's thread, between two messages.

        Times are those of `CLOCK_MONOTONIC`. What is due is called when the queue runs, the earliest first; so a call
        comes late by what the callback before it takes. `name`: for people, in errors and in `stats()`; without it that
        of the function. In `run_async` the coroutine of a coroutine function is awaited.

        May be called from any thread, also inside a callback. Raises `TypeError` for what cannot be called,
        `ValueError`, and `Closed`.
        """

    def call_every(self, seconds: float, function: Callable[..., object], *args: Any, name: str | None = None) -> Timer:
        """Call `function(*args)` every `seconds` (more than 0), first after that time, until the timer is cancelled.

        Calls stay in step with the first one: they do not drift. Calls whose time passes meanwhile, because another
        callback or nothing runs, are left out and counted (`Timer.missed`). Otherwise as `call_later`.
        """

    def run(self, timeout: float | None = None) -> None:
        """Call receivers until `stop` or `close`, an exception, or Ctrl-C.

        `Timeout` when no message came for `timeout` seconds. Raises `TypeError` when a receiver is a coroutine
        function, and `Error` when the queue runs already.
        """

    def start(
        self,
        daemon: bool = False,
        on_exit: Callable[[BaseException | None], object] | None = None,
        stop_event: threading.Event | None = None,
    ) -> threading.Thread:
        """Run the queue on a thread of its own, and return that.

        `on_exit` is called on it when the run is over, with the exception that ended it or None; without it an
        exception goes to `threading.excepthook`. `stop_event` is set after that; who sets it before ends the run
        within 100 ms.

        The queue is stopped when the program's main thread, and all others that are no daemons, have ended; unless
        `daemon`, the end of the program waits for the callback in progress. Where gevent or eventlet has patched
        `threading`, the thread is a green one.
        """

    def stop(self) -> None:
        """End the run, wherever it is, after the callback in progress; if nothing runs, the next one. Does not wait."""

    def dispatch(self, timeout: float | None = 0.0) -> int:
        """Handle what waits, and return how many messages that were.

        Waits up to `timeout` seconds for the first message, returns when nothing is left, and begins no callback after
        that time. With 0 it handles just what waited when it was called.
        """

    def fileno(self) -> int:
        """A descriptor to poll: readable when there is something to `dispatch`."""

    def run_async(self) -> Coroutine[Any, Any, None]:
        """Call receivers in the running event loop until `stop` or `close`; await what coroutine functions return."""

    def _enter(self) -> None: ...
    def _take_over(self) -> None: ...
    def _step(self, awaits: bool) -> Coroutine[Any, Any, object] | bool | None: ...
    def _awaited(self, raised: BaseException | None) -> None: ...
    def _leave(self) -> None: ...
    def _run_started(self, stop_event: threading.Event | None) -> None: ...
    @property
    def name(self) -> str | None:
        """The name it was given."""

    def stats(self) -> QueueStats:
        """What the queue and its receivers have done, and what waits; from any thread."""

    def close(self) -> None:
        """Close the queue and its receivers, and end its run; waits for a callback in progress.

        Calling it again has no effect.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Receiver:
    """A receiver of an event queue. It goes on without this handle, until it or the queue is closed."""

    @property
    def topic(self) -> str:
        """The topic."""

    @property
    def name(self) -> str:
        """The name it was given, or that of its callable."""

    @property
    def closed(self) -> bool:
        """Whether it, or its queue, was closed."""

    def stats(self) -> ReceiverStats:
        """What it received, and what waits; from any thread, also after `close`."""

    def close(self) -> None:
        """End it: its callable is never called again, and the queue refers to it no more.

        From another thread than the queue's it waits for a callback in progress. Calling it again has no effect.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class Timer:
    """What an `EventQueue` calls at a time. It goes on without this handle, until it is over or the queue is closed."""

    @property
    def name(self) -> str:
        """The name it was given, or that of its function."""

    @property
    def period(self) -> float | None:
        """The seconds between two calls; None for a single one."""

    @property
    def remaining(self) -> float | None:
        """The seconds until its next call, negative when that is late; None when none is to come."""

    @property
    def calls(self) -> int:
        """How many calls have begun."""

    @property
    def missed(self) -> int:
        """How many calls were left out because their time had passed."""

    def cancel(self) -> None:
        """End it: its function is never called again, and the queue refers to it no more.

        From another thread than the queue's it waits for a call in progress. Calling it again has no effect.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

def _command(arguments: list[str]) -> int: ...
def monitors() -> list[QueueStats]:
    """What the named event queues of this user tell, in whatever process; who does not answer soon is left out."""

@final
class Message:
    """A received message, and the lease on its memory: valid and unchanged as long as it, or a view of it, lives."""

    @property
    def value(self) -> Any:
        """The payload as what was sent, made anew on each call.

        A read-only NumPy array; a memoryview of plain bytes; Arrow data, as pyarrow's `Array`, `RecordBatch`,
        `ChunkedArray` or `Table` where that is installed and as `Arrow` otherwise; or the dict, list or tuple of parts
        like these. From a subscriber with `writable=True` arrays and buffers are private and writable. `Error` for what
        `send_pickle` sent, unless the subscriber said `allow_pickle=True`.
        """

    @property
    def topic(self) -> str:
        """The topic of its publisher."""

    @property
    def sequence(self) -> int:
        """Its number among the publisher's messages, from 0."""

    @property
    def timestamp_ns(self) -> int:
        """When it was sent: nanoseconds since the epoch, or what the sender gave."""

    @property
    def tag(self) -> int:
        """The number that its sender gave it with `tag=`; 0: none."""

    @property
    def sender(self) -> Identity | None:
        """Which mailbox sent it, if a mailbox received it; otherwise None. `Mailbox.send` takes it."""

    @property
    def publisher(self) -> PublisherInfo:
        """Who sent it."""

    @property
    def headers(self) -> dict[str, _HeaderValue]:
        """A new dict of the headers."""

    @property
    def nbytes(self) -> int:
        """The payload's length in bytes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The extent of each dimension; `(nbytes,)` for plain bytes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy element type; `uint8` for plain bytes."""

    def writable(self) -> Any:
        """Return a new private writable array: mapped copy-on-write and holding the lease, or a copy of a small one.

        Of a message of several parts, its value with such arrays and buffers; Arrow data stay read-only.
        """

    @overload
    def copy(self, out: None = None) -> NDArray[Any]: ...
    @overload
    def copy(self, out: _Array) -> _Array:
        """Return the payload in ordinary memory, which holds no lease: a new array, or `out`, filled.

        `out`: an array of the same shape, to which the elements are converted as `np.copyto` does. Raises `ValueError`
        for another shape, `TypeError` for types that do not go together. Large copies release the GIL.
        """

    def ack(self) -> None:
        """Tell the publisher that the message is done with, whatever views of it are kept, or released.

        For subscribers with `ack="manual"`; `ValueError` for others. Until then the message counts against the
        subscriber's `depth`, and `flush` waits for it. In any order, and from any thread; room is made from the oldest
        message on. Calling it again has no effect. `Closed` when the subscriber is closed.
        """

    def release(self) -> None:
        """Give the lease back now; `BufferError` while a view is alive. Calling it again has no effect."""

    def __len__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __bytes__(self) -> bytes: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...
    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]: ...
    def __arrow_c_schema__(self) -> Any: ...
    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[Any, Any]: ...
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...
    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType:
        """Return a capsule for `from_dlpack` of other libraries, which holds the lease unless it is a copy.

        It shows the message's memory, marked as read-only, to consumers of DLPack 1.0 and later; others, and those of
        a subscriber with `writable=True`, get a private copy-on-write view. `copy`: True gives a private copy, False
        the message's memory or a `BufferError`. `BufferError` also for element types that DLPack does not have, for
        another device than main memory, and for a stream.
        """

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return where the payload is, as DLPack numbers it: in main memory."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

class Arrow:
    """Arrow data in a message, for every library that speaks the Arrow PyCapsule interface.

    What a library makes of it shares the message's memory and holds its lease. What is one array, or one record batch,
    also has `__arrow_c_array__`.
    """

    def __arrow_c_schema__(self) -> Any: ...
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...

@final
class Batch:
    """Messages in the order in which they were received: a sequence of them, and arrays over all."""

    def ack(self) -> None:
        """`Message.ack` for all of them."""

    def array(self, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Return all payloads as one read-only array, with the first dimension along the messages.

        Without `dtype` each is what its sender declared, with the shape `(len(batch), *shape)`; `(len(batch), nbytes)`
        of uint8 for plain bytes. With `dtype` each payload is one element of it, or a row of them. It is a view where
        the messages lie packed (rows of one `send_many`, small messages), otherwise a copy. `ValueError` when they
        differ in length, or, without `dtype`, in type or shape.
        """

    @property
    def sequences(self) -> NDArray[np.uint64]:
        """A new array of the messages' sequence numbers."""

    @property
    def timestamps_ns(self) -> NDArray[np.uint64]:
        """A new array of the times at which they were sent, in nanoseconds since the epoch, or what the sender gave."""

    @property
    def tags(self) -> NDArray[np.uint64]:
        """The tag of each message (`Message.tag`)."""

    @property
    def publishers(self) -> list[tuple[range, PublisherInfo]]:
        """Who sent which messages: ranges of indices, which follow each other, and their publishers."""

    @property
    def nbytes(self) -> int:
        """The payload bytes of all messages together."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> Message: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[Message]: ...
    def __iter__(self) -> Iterator[Message]: ...

@final
class Event:
    """What happened to one publisher; it comes in order with that publisher's messages."""

    @property
    def kind(self) -> Literal["joined", "left", "lost", "evicted", "gap"]:
        """What happened.

        "joined": it was found. "left": it was closed. "lost": it died, or broke the rules. "evicted": it
        disconnected this subscriber. "gap": messages were lost.
        """

    @property
    def publisher(self) -> PublisherInfo:
        """Whom it happened to."""

    @property
    def topic(self) -> str:
        """That publisher's topic."""

    @property
    def peer(self) -> Identity | None:
        """Which mailbox it happened to, in what a `Mailbox` receives; otherwise None."""

    @property
    def undelivered(self) -> list[Undelivered]:
        """Of the end of a mailbox: the messages that were sent to it and that it never took."""

    @property
    def sequence(self) -> int | None:
        """Of a gap: the sequence number of the first message that was lost; otherwise None."""

    @property
    def count(self) -> int:
        """Of a gap: how many messages were lost; otherwise 0."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Loan(Generic[_Lent]):
    """Writable memory of a publisher. As a context manager it gives the array (or columns), and sends on exit."""

    @property
    def array(self) -> _Lent:
        """The memory, whose content is arbitrary at first. Read-only once the loan was sent or discarded.

        Of a record batch, a dict of its columns.
        """

    @property
    def headers(self) -> dict[str, _HeaderValue]:
        """Headers to send along; fill it as you like."""

    def truncate(self, n: int) -> None:
        """Shorten the message to `n` rows (elements of the first dimension; bytes for a loan of bytes)."""

    def send(self, timestamp_ns: int | None = None, timeout: float | None = None, tag: int = 0) -> int:
        """Send the message; return its sequence number. A send that times out leaves the loan as it was."""

    def discard(self) -> None:
        """Give the memory back unsent. Calling it again has no effect."""

    def __enter__(self) -> _Lent: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

@final
class PublisherInfo:
    """Who published a message. Immutable, and valid after its process died."""

    @property
    def id(self) -> str:
        """32 hexadecimal digits, different from every other publisher's."""

    @property
    def pid(self) -> int:
        """Its process; 0 when that is out of sight."""

    @property
    def name(self) -> str | None:
        """The name it was given."""

    @property
    def topic(self) -> str:
        """Its topic."""

    def __hash__(self) -> int: ...

@final
class SubscriberInfo:
    """A subscriber as its publisher sees it."""

    @property
    def pid(self) -> int:
        """Its process; 0 when that is out of sight."""

    @property
    def name(self) -> str | None:
        """The name it gave."""

    @property
    def policy(self) -> _Policy:
        """What it wants done when it falls behind."""

    @property
    def lag(self) -> int:
        """Messages that it has not taken yet; a block of `send_many` counts until all of it is taken."""

    @property
    def stalled(self) -> float:
        """For how many seconds sends have waited for it since it did something; counted with `max_stall`."""

@final
class _Jobs:
    """The jobs of a puller. In a loop one is done when the body has ended, or has failed if an exception ended that."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Job: ...
    def _go_on_with(self, job: Job | None = None) -> None: ...

@final
class _Iterator(Generic[_Told]):
    """The messages of a subscriber. It has no `close`, which a generator that is given up would call."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Message | _Told: ...

class _Buffered:
    """A buffer: that of its attribute `buffer`, which classes in Python that derive from it have."""

    def __new__(cls, *args: object, **kwargs: object) -> Self: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class _Owner:
    """The base of arrays over byref's memory. It has no use of its own."""

def copied_bytes() -> dict[str, int]:
    """How many payload bytes this process has copied, by cause.

    `send`: into shared memory, by its publishers. `receive`: small payloads, out of the ring. `writable`: private views
    of small messages. `copy`: because the program asked for a copy.
    """

# For `_logging`.
def _open_log(level: int | None) -> int: ...
def _close_log() -> None: ...
def _tell_lost_log() -> None: ...

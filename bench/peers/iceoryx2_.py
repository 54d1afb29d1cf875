"""iceoryx2's Python binding, lossless: no overflow, and a sender that meets a full queue tries again.

Busy polling is the fastest way to receive: its event service adds system calls and wake-ups. Payloads are
slices of bytes: fixed-size types take a slower way through the binding.
"""

import ctypes
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import iceoryx2 as iox2

from bench.peers import Address, BlockingPeer, BroadcastPeer, Messages, Send

QUEUE_LENGTH = 8192
"""At least the warm-up: until the receiver's first look at the queue, the sender does not wait but discards."""

MOST_QUEUED = 256 << 20
"""Bytes of large messages that may be queued: shared memory is taken for all of them."""


class Iceoryx2(BlockingPeer, BroadcastPeer):
    package = "iceoryx2"
    configuration = f"slices of bytes, busy polling, no overflow, retry on a full queue of {QUEUE_LENGTH}"

    @contextmanager
    def sender(self, address: Address, size: int) -> Iterator[Send]:
        publisher = (
            _service(address, size)
            .publisher_builder()
            .initial_max_slice_len(size)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )
        loan, copy = publisher.loan_slice_uninit, ctypes.memmove

        def send(buffer: bytes | ctypes.Array) -> None:
            sample = loan(size)
            copy(sample.payload_ptr, buffer, size)
            sample.assume_init().send()

        yield send

    @contextmanager
    def broadcaster(self, address: Address, size: int, receivers: int) -> Iterator[Send]:
        wait_for = _service(address, size).dynamic_config
        with self.sender(address, size) as send:
            while wait_for.number_of_subscribers < receivers:
                time.sleep(0.001)
            yield send

    def listener(self, address: Address, size: int) -> AbstractContextManager[Messages]:
        return self.receiver(address, size)

    @contextmanager
    def receiver(self, address: Address, size: int) -> Iterator[Messages]:
        yield _poll(_service(address, size).subscriber_builder().create(), size)


def _service(address: Address, size: int) -> iox2.PortFactoryPublishSubscribe:
    iox2.set_log_level(iox2.LogLevel.Error)
    return (
        iox2.NodeBuilder.new()
        .create(iox2.ServiceType.Ipc)
        .service_builder(iox2.ServiceName.new(address.name))
        .publish_subscribe(iox2.Slice[ctypes.c_uint8])
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(min(QUEUE_LENGTH, MOST_QUEUED // size))
        .open_or_create()
    )


def _poll(subscriber: iox2.Subscriber, size: int) -> Messages:
    receive, buffer_at = subscriber.receive, (ctypes.c_char * size).from_address
    while True:
        sample = receive()
        if sample is not None:
            yield buffer_at(sample.payload_ptr)


PEER = Iceoryx2()

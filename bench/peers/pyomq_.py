"""pyomq, a ZeroMQ in Rust. Measured best of ipc and tcp, and of high-water marks from 1,000 to none."""

import pyomq
import pyomq.asyncio

from bench.peers.zeromq import ZeroMQ

PEER = ZeroMQ("pyomq", pyomq, pyomq.asyncio, high_water_mark=100_000, large_transport="ipc")

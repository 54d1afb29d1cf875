"""pyzmq. Measured best of ipc and tcp, and of high-water marks from 1,000 to none."""

import zmq
import zmq.asyncio

from bench.peers.zeromq import ZeroMQ

PEER = ZeroMQ("pyzmq", zmq, zmq.asyncio, high_water_mark=0, large_transport="tcp")

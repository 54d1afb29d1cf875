"""A NumPy service. Run it with `serve` in one terminal, or in several, and without in another one."""

import sys
import time

import byref
import numpy as np

SERVICE = "examples/blur"


def blur(request: byref.Request) -> None:
    """Reply with the image, each pixel the mean of itself and its neighbours."""
    image = np.asarray(request)  # In the client's memory, read-only.
    if image.ndim != 2:
        request.fail("shape", f"an image has 2 dimensions, not {image.ndim}")
        return
    loan = request.loan(image.shape, "float32")  # In this server's memory, where the client will read it.
    out = loan.array
    np.copyto(out, image)
    for axis in (0, 1):
        for shift in (-1, 1):
            if request.cancelled:
                return  # Nobody wants it any more.
            out += np.roll(image, shift, axis)
    out /= 5
    request.reply(loan)  # No byte is copied on its way.


def serve() -> None:
    """Serve until Ctrl-C."""
    with byref.Server(SERVICE) as server:
        for request in server:
            blur(request)


def main() -> None:
    """Ask for some images, all at once, then for what cannot be done."""
    with byref.Client(SERVICE) as client:
        client.wait_for_server(timeout=10)
        began = time.perf_counter()
        pending = []
        for shade in range(8):
            loan = client.loan((512, 512), "float32")
            loan.array[:] = shade
            pending.append(client.submit(loan, timeout=10, retry="idempotent"))
        for shade, reply in enumerate(pending):
            assert np.allclose(reply.result().value, shade)
        print(f"8 images in {time.perf_counter() - began:.3f} s from {len(client.servers)} server(s)")
        try:
            client.request(np.zeros(3))
        except byref.RemoteError as problem:
            print(f"refused: {problem.text}")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()

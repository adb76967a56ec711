r"""A `Pipeline` inside an asyncio program: images over a TCP port, a request dropped as soon as its client has gone.

    python asyncio_service.py [PORT]
    printf 'frog 7\n' | nc localhost 8765 > frog.ppm      # a class and a seed; the answer is a PPM picture

Engines run in threads, which leave the event loop free; a pipeline may be used by several at once. `stop` is the way
back: it is asked before each scale, so that work nobody waits for ends within one.
"""

import asyncio
import contextlib
import logging
import sys
import threading

from engines import CancelledError, Pipeline, UsageError

log = logging.getLogger("asyncio_service")
AT_ONCE = 2  # batches under way; more would only share the same cores


class Service:
    """Answers one line per connection."""

    def __init__(self, pipeline):
        self.pipeline, self.slots = pipeline, asyncio.Semaphore(AT_ONCE)

    async def draw(self, name, seed):
        """One image uint8 (h, w, 3); cancelling the task stops the engine."""
        gone = threading.Event()
        async with self.slots:
            work = asyncio.to_thread(self.pipeline.generate, name, seeds=seed, stop=gone.is_set)
            task = asyncio.ensure_future(work)
            try:
                result = await asyncio.shield(task)
            except asyncio.CancelledError:
                gone.set()
                with contextlib.suppress(CancelledError):
                    await task  # the slot is free when the engine is
                log.info("%s %d: stopped", name, seed)
                raise
        return result.images[0]

    async def answer(self, reader, writer):
        """A connection, from its line to its picture."""
        try:
            name, _, seed = (await reader.readline()).decode().strip().rpartition(" ")
            drawing = asyncio.ensure_future(self.draw(name, int(seed)))
            leaving = asyncio.ensure_future(reader.read())  # ends when the client does
            await asyncio.wait({drawing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if not drawing.done():
                drawing.cancel()
                return
            image = drawing.result()
            writer.write(b"P6 %d %d 255\n" % (image.shape[1], image.shape[0]) + image.tobytes())
            await writer.drain()
        except (UsageError, ValueError) as error:
            writer.write(f"error: {error}\n".encode())
        finally:
            writer.close()


async def main(port=8765):
    with Pipeline.load() as pipeline:
        server = await asyncio.start_server(Service(pipeline).answer, "127.0.0.1", int(port))
        print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))

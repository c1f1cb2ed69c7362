"""Requests per second against a server that takes 200 ms for each: 16 at once, beside one at a time.

python -m benchmarks.vlm_harness
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from genlab.store import RowStore
from genlab.vlm.engines import OpenAIEndpoint

LATENCY = 0.2
BODY = b'{"id":"1","object":"chat.completion","created":0,"model":"m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"real"}}]}'  # noqa: E501


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(length)
            await asyncio.sleep(LATENCY)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def measure(connections: int, requests: int) -> float:
    """Requests per second; the server shares the process, so this is a lower bound."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    engine = OpenAIEndpoint("m", url, "GENLAB_NO_KEY", max_connections=connections)
    with tempfile.TemporaryDirectory() as folder:
        engine.open(RowStore(Path(folder) / "replies.sqlite"))
        await engine.ask([{"role": "user", "content": "first"}])  # imports and connects
        start = time.perf_counter()
        await asyncio.gather(*(engine.ask([{"role": "user", "content": str(i)}]) for i in range(requests)))
        rate = requests / (time.perf_counter() - start)
        await engine.close()
    server.close()
    return rate


if __name__ == "__main__":
    for connections, requests in ((16, 400), (1, 20)):
        rate = asyncio.run(measure(connections, requests))
        print(f"{connections:2d} at once: {rate:6.1f} requests/s, {rate / (connections / LATENCY):.0%} of {connections / LATENCY:.0f}")

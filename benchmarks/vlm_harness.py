"""Requests per second against a server that takes 200 ms for each: 16 at once, beside one at a time; and of the whole harness.

The server is a process of its own. Machines that do other work as well give lower figures.

python -m benchmarks.vlm_harness [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import io
import multiprocessing
import pstats
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from genlab.store import RowStore
from genlab.vlm.conversations import load_prompt
from genlab.vlm.engines import OpenAIEndpoint
from genlab.vlm.fusion import NumericFusion
from genlab.vlm.judging import Judge, Reader
from genlab.vlm.verdicts import StrictParser

LATENCY, REPEATS = 0.2, 5
PROMPTS = ("defect_query", "regional_analysis", "common_sense_reasoning", "structural_analysis", "stereotype_matching")
BODY = b'{"id":"1","object":"chat.completion","created":0,"model":"m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"real"}}]}'  # noqa: E501


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(length)
            await asyncio.sleep(LATENCY)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


def serve(port: Connection) -> None:
    """The server, in a process of its own until it is terminated."""

    async def forever() -> None:
        server = await asyncio.start_server(_answer, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


async def measure(url: str, connections: int, requests: int) -> tuple[float, float]:
    """Requests per second, and seconds of this process's CPU per request."""
    engine = OpenAIEndpoint("m", url, "GENLAB_NO_KEY", max_connections=connections)
    with tempfile.TemporaryDirectory() as folder:
        engine.open(RowStore(Path(folder) / "replies.sqlite"), Path(folder) / "calls.jsonl")
        await asyncio.gather(*(engine.ask([{"role": "user", "content": f"first {i}"}]) for i in range(connections)))  # imports, connects
        start, busy = time.perf_counter(), time.process_time()
        await asyncio.gather(*(engine.ask([{"role": "user", "content": str(i)}]) for i in range(requests)))
        rate, cpu = requests / (time.perf_counter() - start), (time.process_time() - busy) / requests
        await engine.close()
    return rate, cpu


def _pictures(count: int) -> list[bytes]:
    """JPEG files of about 100 kB, each another one."""
    made = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (300, 300, 3), np.uint8)).resize((640, 640)).save(buffer, "JPEG")
        made.append(buffer.getvalue())
    return made


async def judge(url: str, connections: int, pictures: list[bytes], batch: int) -> tuple[float, float]:
    """As `measure`, of the whole harness: five prompts about each picture, so many pictures at once."""
    engine = OpenAIEndpoint("m", url, "GENLAB_NO_KEY", max_connections=connections)
    judge = Judge(engine, [load_prompt(name) for name in PROMPTS], Reader("strict", StrictParser.load()), NumericFusion())
    with tempfile.TemporaryDirectory() as folder:
        engine.open(RowStore(Path(folder) / "replies.sqlite"), Path(folder) / "calls.jsonl")
        await asyncio.gather(*(engine.ask([{"role": "user", "content": f"first {i}"}]) for i in range(connections)))
        start, busy, before = time.perf_counter(), time.process_time(), engine.requests
        for first in range(0, len(pictures), batch):
            await asyncio.gather(*(judge(file, str(i), 0) for i, file in enumerate(pictures[first : first + batch])))
        requests = engine.requests - before
        rate, cpu = requests / (time.perf_counter() - start), (time.process_time() - busy) / requests
        await engine.close()
    return rate, cpu


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.vlm_harness")
    parser.add_argument("--profile", action="store_true", help="where the client's time goes")
    profile = parser.parse_args().profile
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}/v1"
    try:
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(lambda: asyncio.run(judge(url, 16, _pictures(32), 16)))
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
            return
        for connections, requests, repeats in ((16, 400, REPEATS), (1, 20, 1)):
            most = connections / LATENCY
            found = [asyncio.run(measure(url, connections, requests)) for _ in range(repeats)]
            rates = sorted(rate for rate, _ in found)
            cpu = statistics.median(cpu for _, cpu in found)
            print(
                f"{connections:2d} at once: median {statistics.median(rates):5.1f} requests/s ({rates[0]:.1f} to {rates[-1]:.1f}), "
                f"{statistics.median(rates) / most:.0%} of {most:.0f}; {1000 * cpu:.1f} ms of CPU a request"
            )
        pictures = _pictures(64)
        for batch in (16, 64):
            rate, cpu = asyncio.run(judge(url, 16, pictures, batch))
            size = sum(map(len, pictures)) / len(pictures) / 1000
            what = f"five prompts about {len(pictures)} pictures of {size:.0f} kB, {batch} together"
            print(f"16 at once, {what}: {rate:.1f} requests/s, {rate / 80:.0%} of 80; {1000 * cpu:.1f} ms of CPU a request")
    finally:
        server.terminate()


if __name__ == "__main__":
    main()

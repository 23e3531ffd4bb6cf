"""How many live audios one core serves, and what a thousand clients that misbehave do to two good
ones.

    export PYTHONPATH=.
    python tools/benchmarks/random_model.py egs/kespeech/conf/u2pp/train_u2pp_conformer.yaml model
    python tools/benchmarks/serve.py capacity --model model --data audio
    python tools/benchmarks/serve.py virtual --model model --data audio
    python tools/benchmarks/serve.py misbehave --model model --data audio
    python tools/benchmarks/serve.py capacity --data audio --chunk-ms 640 --command \\
        "sherpa-onnx-online-websocket-server --port={port} --tokens=tokens.txt --wenet-ctc-model=m
        --log-file=/dev/null"
    python tools/benchmarks/serve.py cost --model model --data audio --command "..."

The server is `asrtool serve` on one core (taskset), or whatever --command starts, which then is
spoken to as sherpa-onnx's clients do; the clients run on the other cores. Latency: from the moment
at which the first sample of a chunk was said to the arrival of the result that covers it, in real
time. `virtual` computes the same batches with a clock of CPU time, for a machine on which other
processes run; for such a machine is `cost` too, the CPU seconds that full batches take: clients do
not wait, and `asrtool serve` and the server of --command have their turns one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import multiprocessing
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import numpy as np

from asrtool.bin.recognize import files_of
from asrtool.data import audio
from tools.benchmarks.bad_clients import be_bad

PIECE = 0.04  # seconds of audio in a message
WARM = 3.0  # seconds that are not measured
SLACK = 0.3  # seconds that the 95th percentile may be above the chunk
RATE = 16000
PATIENCE = 300  # seconds that a client waits for the last result


# -- the server ---------------------------------------------------------------


@dataclass
class Server:
    """A process that listens."""

    process: subprocess.Popen
    address: str
    sherpa: bool  # speaks sherpa-onnx's protocol

    def cpu(self) -> float:
        """Seconds of CPU that it took so far."""
        return seconds_of(self.process.pid)

    def resident(self) -> float:
        """Megabytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def seconds_of(process: int) -> float:
    """Seconds of CPU that a process took so far."""
    parts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(args: argparse.Namespace, *options: str) -> Iterator[Server]:
    """`asrtool serve`, or --command, on one core."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if args.command:
        command = shlex.split(args.command.format(port=port))
    else:
        command = [sys.executable, "-m", "asrtool", "serve", str(args.model), "--port", str(port)]
        command += [*options, *shlex.split(args.options)]
    if args.core is not None:
        command = ["taskset", "--cpu-list", str(args.core), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            _wait(process, port, log)
            yield Server(process, f"http://127.0.0.1:{port}", bool(args.command))
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen, port: int, log: object) -> None:
    """Until it listens."""
    for _ in range(3000):
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"the server ended:\n{log.read()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise SystemExit("the server does not listen")


# -- a client in real time ------------------------------------------------------


@dataclass
class Heard:
    """What one client was told."""

    latencies: list[float] = field(default_factory=list)
    text: str = ""
    error: str = ""
    refused: int = 0  # times before it was taken


async def speak(
    session: aiohttp.ClientSession,
    server: Server,
    samples: np.ndarray,
    chunk: float,
    wait: float | None,
) -> Heard:
    """Say samples (T,) in real time, `wait` seconds from now; None: as fast as they are read."""
    heard, size = Heard(), round(PIECE * RATE)
    await asyncio.sleep(wait or 0.0)
    path = "/" if server.sherpa else "/v1/stream"
    async with session.ws_connect(path, max_msg_size=0) as socket:
        begun = time.monotonic()
        listening = asyncio.create_task(listen(socket, server.sherpa, begun, chunk, heard))
        if not server.sherpa:
            await socket.send_json({"type": "start", "rate": RATE, "format": "f32le"})
        with contextlib.suppress(aiohttp.ClientConnectionError):  # refused: `listen` hears why
            for at in range(0, len(samples), size):
                # what is said at a time can be sent when it was said
                if wait is not None:
                    await asyncio.sleep(begun + (at + size) / RATE - time.monotonic())
                if listening.done():
                    break
                await socket.send_bytes(samples[at : at + size].tobytes())
            await socket.send_str("Done" if server.sherpa else '{"type": "end"}')
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listening, PATIENCE)
    return heard


async def listen(
    socket: aiohttp.ClientWebSocketResponse, sherpa: bool, begun: float, chunk: float, heard: Heard
) -> None:
    """Note how late each result is."""
    finals, count = {}, 0
    async for message in socket:
        now = time.monotonic() - begun
        if message.type != aiohttp.WSMsgType.TEXT or message.data == "Done!":
            break
        fields = json.loads(message.data)
        if fields.get("type") == "error":
            heard.error = fields["message"]
        if "text" not in fields:
            continue
        count += 1  # sherpa-onnx's server sends one for every chunk
        end = count * chunk if sherpa else fields["end"]
        if end > WARM:
            heard.latencies.append(now - (end - chunk))
        if sherpa:
            finals[fields["segment"]] = fields["text"]
        elif fields["type"] == "final":
            finals[count] = fields["text"]
    heard.text = " ".join(filter(None, finals.values()))


def sounds(data: Path, seconds: float, count: int) -> list[np.ndarray]:
    """`count` audios of so many seconds, files of a folder behind each other."""
    pieces = [audio.read(path, rate=RATE) for path in files_of([str(data)])[:200]]
    draw, found = random.Random(0), []
    for _ in range(count):
        chosen, size = [], 0
        while size < seconds * RATE:
            chosen.append(draw.choice(pieces))
            size += len(chosen[-1])
        found.append(np.concatenate(chosen)[: round(seconds * RATE)])
    return found


# -- how many -------------------------------------------------------------------


async def together(
    server: Server, several: Sequence[np.ndarray], count: int, chunk: float
) -> tuple[float, float, float, list[str]]:
    """Median and 95th percentile of the latency, CPU seconds per second of audio, errors."""
    draw = random.Random(count)
    before = server.cpu()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.address, connector=connector) as session:
        found = await asyncio.gather(
            *(
                speak(session, server, several[at % len(several)], chunk, draw.uniform(0, 2))
                for at in range(count)
            )
        )
    seconds = sum(len(several[at % len(several)]) for at in range(count)) / RATE
    latencies = np.concatenate([one.latencies for one in found] or [[]])
    errors = [one.error for one in found if one.error]
    median, most = np.quantile(latencies, (0.5, 0.95)) if len(latencies) else (np.inf, np.inf)
    return float(median), float(most), (server.cpu() - before) / seconds, errors


def every(args: argparse.Namespace) -> tuple[str, ...]:
    """Options of a server that refuses nobody."""
    sizes = ("--chunk-ms", str(args.chunk_ms), "--batch", str(args.batch))
    return ("--connections", "4096", "--late-seconds", "1000", *sizes)


def most(args: argparse.Namespace, fits: Callable[[int, float], bool]) -> None:
    """Double the connections until they are late, then halve the interval. fits: whether so many
    are served within so many seconds.
    """
    limit = args.chunk_ms / 1000 + SLACK
    good, bad, count = 0, None, args.first
    print(f"limit: {limit:.2f} s", flush=True)
    while bad is None or bad - good > max(1, round(0.05 * good)):
        good, bad = (count, bad) if fits(count, limit) else (good, count)
        count = 2 * count if bad is None else (good + bad) // 2
        if not 0 < count <= args.most:
            break
    print(f"{good} connections in real time")


def capacity(args: argparse.Namespace) -> None:
    """On the clock: for a machine on which nothing else runs."""
    several, chunk = sounds(args.data, args.seconds, 32), args.chunk_ms / 1000
    with started(args, *every(args)) as server:

        def fits(count: int, limit: float) -> bool:
            median, late, cpu, errors = asyncio.run(together(server, several, count, chunk))
            print(
                f"{count:5d} connections: median {median:.3f} s, 95 % within {late:.3f} s, "
                f"{cpu:.4f} CPU s per s of audio, {server.resident():.0f} MB"
                + (f", {len(errors)} refused: {errors[0]}" if errors else ""),
                flush=True,
            )
            return late <= limit and not errors

        most(args, fits)


def cost(args: argparse.Namespace) -> None:
    """CPU seconds per second of audio, of `asrtool serve` and of --command in turns."""
    several, found = sounds(args.data, args.seconds, args.first), {}
    options = every(args)
    other, args.command = args.command, None
    with contextlib.ExitStack() as stack:
        servers = {"asrtool": stack.enter_context(started(args, *options))}
        if other:
            args.command = other
            servers["the other"] = stack.enter_context(started(args))
        for turn in range(args.turns + 1):
            for name, server in servers.items():
                took = asyncio.run(flood(server, several, args.chunk_ms / 1000))
                if turn:  # the first one warms up
                    found.setdefault(name, []).append(took)
                print(f"{name}: {took:.5f} CPU s per s of audio", flush=True)
    for name, values in found.items():
        print(f"{name}: median {np.median(values):.5f}")


async def flood(server: Server, several: Sequence[np.ndarray], chunk: float) -> float:
    """CPU seconds per second of audio that nobody waits to send."""
    before = server.cpu()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.address, connector=connector) as session:
        talks = (speak(session, server, samples, chunk, None) for samples in several)
        errors = [one.error for one in await asyncio.gather(*talks) if one.error]
    if errors:
        raise SystemExit(f"{len(errors)} connections failed: {errors[0]}")
    return (server.cpu() - before) / (sum(map(len, several)) / RATE)


# -- on a core of its own ----------------------------------------------------------


def virtual(args: argparse.Namespace) -> None:
    """The batches of `asrtool serve` without sockets, and a clock that goes on by the CPU time that
    they take: what other processes do to this machine is left out.
    """
    import torch

    from asrtool.model_folder import Experiment
    from asrtool.recognizer import Recognizer
    from asrtool.serve.model import served

    torch.set_num_threads(1)
    trained = Experiment.open(args.model)
    live = served(
        "model",
        Recognizer.load(trained),
        trained.decode_config(None, args.set, streaming=True),
        args.chunk_ms,
    ).live
    several, chunk = sounds(args.data, args.seconds, 32), args.chunk_ms / 1000

    def fits(count: int, limit: float) -> bool:
        median, late, cpu = _play(live, several, count, chunk, args)
        print(
            f"{count:5d} connections: median {median:.3f} s, 95 % within {late:.3f} s, "
            f"{cpu:.4f} CPU s per s of audio",
            flush=True,
        )
        return late <= limit

    most(args, fits)


def _play(
    live: object, several: Sequence[np.ndarray], count: int, chunk: float, args: argparse.Namespace
) -> tuple[float, float, float]:
    """Median and 95th percentile of the latency, CPU seconds per second of audio."""
    from asrtool.streaming.together import Piece, Streams

    streams, draw = Streams(live), random.Random(count)
    rows = {streams.enter(): several[at % len(several)] for at in range(count)}
    begun = {row: draw.uniform(0, 2) for row in rows}
    waiting = dict.fromkeys(rows, 0)  # row -> samples that were computed
    clock, work, latencies = 0.0, 0.0, []

    def due(row: object) -> float:
        """When the message comes that completes the chunk."""
        samples = min(waiting[row] + row.missing, len(rows[row]))
        return begun[row] + np.ceil(samples / RATE / PIECE) * PIECE

    while waiting:
        line = sorted(waiting, key=due)
        clock = max(clock, due(line[0]))
        chosen = [row for row in line[: args.batch] if due(row) <= clock]
        pieces = {}
        for row in chosen:
            part = rows[row][waiting[row] : waiting[row] + row.missing]
            waiting[row] += len(part)
            pieces[row] = Piece(part, waiting[row] >= len(rows[row]))
        before = time.process_time()
        results = streams.accept(pieces)
        took = time.process_time() - before
        seconds = sum(len(piece.samples) for piece in pieces.values()) / RATE
        clock, work = clock + took + args.loop * seconds, work + took + args.loop * seconds
        for row, result in results.items():
            if result.end > WARM:
                latencies.append(clock - begun[row] - (result.end - chunk))
        for row in [row for row, piece in pieces.items() if piece.final]:
            del waiting[row]
    median, most = np.quantile(latencies, (0.5, 0.95))
    return float(median), float(most), work / sum(len(rows[row]) / RATE for row in rows)


# -- clients that misbehave --------------------------------------------------------


@contextlib.contextmanager
def crowd(
    args: argparse.Namespace, server: Server, sound: np.ndarray
) -> Iterator[tuple[Callable[[], float], dict]]:
    """Bad clients in a process of their own, until `args.duration` seconds are over: their work
    must not delay the clock of the good ones. Gives the CPU seconds that they took so far, and, at
    the end, how many of each kind there were.
    """
    counts: dict[str, int] = {}
    near, far = multiprocessing.Pipe()
    wanted = server.address, args.connections, sound, args.duration, far
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=be_bad, args=wanted)
    process.start()
    near.recv()
    try:
        yield lambda: seconds_of(process.pid), counts
        counts |= near.recv()
    finally:
        process.terminate()
        process.join()


async def beside(
    args: argparse.Namespace, server: Server, several: Sequence[np.ndarray], chunk: float
) -> None:
    """Two good clients, first alone, then beside the bad ones."""
    async with aiohttp.ClientSession(server.address) as session:

        async def one(sound: np.ndarray, wait: float) -> Heard:
            """Again while the server takes no more streams."""
            refused = 0
            while "try again" in (heard := await speak(session, server, sound, chunk, wait)).error:
                refused, wait = refused + 1, 1.0
            return replace(heard, refused=refused)

        async def good() -> list[Heard]:
            return await asyncio.gather(*map(one, several, (0.0, 0.3)))

        def texts(heard: Sequence[Heard]) -> list[str]:
            return [one.text for one in heard]

        alone = await good()
        print(f"alone: {server.resident():.0f} MB, {_late(alone)}", flush=True)
        same, rounds = 0, []
        with crowd(args, server, several[0]) as (driver, counts):
            until = time.monotonic() + args.duration
            resident = asyncio.create_task(watch(server, until))
            spent = server.cpu(), driver(), await delays(session)
            while time.monotonic() + len(several[0]) / RATE < until:
                found = await good()
                rounds.append(found)
                same += texts(found) == texts(alone)
                before, spent = spent, (server.cpu(), driver(), await delays(session))
                loop = spent[2] - before[2]
                print(
                    f"  {until - time.monotonic():5.0f} s left: {server.resident():.0f} MB, "
                    f"{_late(found)}, {_loop(loop)}, CPU seconds of the server "
                    f"{spent[0] - before[0]:.1f}, of the bad clients {spent[1] - before[1]:.1f}, "
                    f"texts {'unchanged' if same == len(rounds) else 'CHANGED'}{_errors(found)}",
                    flush=True,
                )
            marks = await resident
        print(f"all rounds: {_late([one for found in rounds for one in found])}")
        parts = [max(part) for part in np.array_split(marks, 8)]
        print("most in each eighth of the time: " + ", ".join(f"{x:.0f} MB" for x in parts))
        await asyncio.sleep(2)
        after = await good()
        unchanged = texts(after) == texts(alone)
        print(f"after: {server.resident():.0f} MB, {_late(after)}, unchanged: {unchanged}")
        print(f"{same} of {len(rounds)} rounds with unchanged texts; bad connections: {counts}")


async def delays(session: aiohttp.ClientSession) -> collections.Counter:
    """How often the server's loop was at most so many seconds late."""
    async with session.get("/metrics") as answer:
        found = re.findall(r'loop_delay_seconds_bucket{le="(.*?)"} (.*)', await answer.text())
    return collections.Counter({float(most): float(number) for most, number in found})


def _loop(counts: collections.Counter) -> str:
    """The bound under which 95 of 100 delays are."""
    whole = max(counts.values(), default=0)
    bound = min((most for most, number in counts.items() if number >= 0.95 * whole), default=0)
    return f"95 % of the loop's delays within {bound:g} s"


async def watch(server: Server, until: float) -> list[float]:
    """Megabytes, once a second."""
    marks = [server.resident()]
    while time.monotonic() < until:
        await asyncio.sleep(1)
        marks.append(server.resident())
    return marks


def _late(several: Sequence[Heard]) -> str:
    latencies = np.concatenate([one.latencies for one in several])
    return f"95 % within {np.quantile(latencies, 0.95):.3f} s" if len(latencies) else "no results"


def _errors(several: Sequence[Heard]) -> str:
    refused = sum(one.refused for one in several)
    return f", refused {refused} times" + "".join(f", {x.error}" for x in several if x.error)


def nuisance(args: argparse.Namespace) -> None:
    options = ("--connections", str(args.connections + 2), "--chunk-ms", str(args.chunk_ms))
    # short limits, so that all of them are reached
    options += ("--idle-seconds", "15", "--send-seconds", "5", "--head-seconds", "10")
    several = sounds(args.data, args.seconds, 2)
    with started(args, *options) as server:
        asyncio.run(beside(args, server, several, args.chunk_ms / 1000))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = options.add_subparsers(required=True)
    for name, run in (
        ("capacity", capacity),
        ("cost", cost),
        ("virtual", virtual),
        ("misbehave", nuisance),
    ):
        one = what.add_parser(name)
        one.add_argument("--model", type=Path)
        one.add_argument(
            "--data", type=Path, required=True, help="folder of audio files, what is said"
        )
        one.add_argument("--core", type=int, default=0, help="of the server; -1: any")
        one.add_argument("--chunk-ms", type=float, default=640.0)
        one.add_argument("--seconds", type=float, default=20.0, help="of each audio")
        one.add_argument("--command", help="another server; {port} is replaced")
        one.add_argument("--options", default="", help="further ones of `asrtool serve`")
        one.set_defaults(run=run)
        if name != "misbehave":
            one.add_argument("--first", type=int, default=4, help="connections to begin with")
            one.add_argument("--most", type=int, default=4096, help="connections to end with")
            one.add_argument("--batch", type=int, default=32)
            one.add_argument("--turns", type=int, default=3, help="of cost")
            one.add_argument(
                "--loop",
                type=float,
                default=0.0012,
                help="of virtual: CPU seconds that sockets take per second of audio",
            )
            one.add_argument(
                "--set", nargs="*", default=[], help="of virtual: overrides of the search"
            )
        else:
            one.add_argument("--connections", type=int, default=1000, help="that misbehave")
            one.add_argument("--duration", type=float, default=120.0, help="seconds")
    args = options.parse_args()
    if getattr(args, "core", None) == -1:
        args.core = None
    args.run(args)


if __name__ == "__main__":
    main()

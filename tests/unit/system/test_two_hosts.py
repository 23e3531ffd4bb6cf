"""Two hosts, as network namespaces: one of them vanishes without a word, as at a power cut.

torchrun's agents watch their own processes. A rank whose peer is on a host that vanished waits for
the timeout of the collective, so asrtool/system/peers.py watches the connections.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ADDRESSES = {"asrtool-a": "10.77.0.1", "asrtool-b": "10.77.0.2"}
NOTICED = 45  # seconds in which a vanished host must be noticed; keep-alive takes 20


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    try:
        for name in ADDRESSES:
            ip("netns", "add", name)
        ip("link", "add", "cable-a", "type", "veth", "peer", "name", "cable-b")
        for (name, address), end in zip(ADDRESSES.items(), ("cable-a", "cable-b"), strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield
    remove()


def remove() -> None:
    for name in ADDRESSES:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start(how: str, node: int, said: Path) -> subprocess.Popen:
    name = list(ADDRESSES)[node]
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "asrtool.bin.torchrun"]
    command += ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
    command += ["--master-addr", ADDRESSES["asrtool-a"], "--master-port", "29599"]
    command += [str(ROOT / "tests/toy_two_hosts.py"), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "cable-a" if node == 0 else "cable-b"
    with open(said, "w") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def ended_after_a_power_cut(how: str, folder: Path) -> tuple[bool, str]:
    """Whether the launcher of rank 0 ended within `NOTICED` seconds; what it said."""
    said = [folder / "said-0", folder / "said-1"]
    launchers = [start(how, node, file) for node, file in enumerate(said)]
    try:
        deadline = time.monotonic() + 120
        while not all("started" in file.read_text() for file in said):
            assert time.monotonic() < deadline, [file.read_text() for file in said]
            time.sleep(0.2)
        ip("-n", "asrtool-b", "link", "set", "cable-b", "down")
        try:
            launchers[0].wait(NOTICED)
        except subprocess.TimeoutExpired:
            return False, said[0].read_text()
        return True, said[0].read_text()
    finally:
        for launcher in launchers:
            launcher.terminate()
        for launcher in launchers:
            try:
                launcher.wait(30)
            except subprocess.TimeoutExpired:
                launcher.kill()
        subprocess.run(["pkill", "-KILL", "-f", "toy_two_hosts.py"], capture_output=True)


@pytest.mark.slow
def test_the_ranks_of_a_host_that_vanished_are_missed_within_seconds(hosts, tmp_path):
    ended, said = ended_after_a_power_cut("watched", tmp_path)
    assert ended
    assert "rank 1 on " in said
    assert "died (killed, out of memory, or its machine failed)" in said


@pytest.mark.slow
def test_the_launcher_alone_does_not_miss_them(hosts, tmp_path):
    """What the watch is for. When this fails, torchrun does it, and peers.py can go."""
    ended, _ = ended_after_a_power_cut("plain", tmp_path)
    assert not ended

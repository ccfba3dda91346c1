"""Servers under test as processes of their own, pinned to one core, with what they use of CPU and memory."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES, LOAD_CORES = ({CORES[0]}, set(CORES[1:])) if len(CORES) > 1 else (set(CORES), set(CORES))
READY_S = 20.0
PEER_READY_S = 120.0  # LiteLLM's proxy imports for 6 s, and for 20 s where nothing is compiled yet
PEERS = Path(__file__).parents[1] / ".venv/peers/bin/python"
LITELLM_KEY = "sk-0123456789abcdef0123456789abcdef"  # it does not start without one
STOP_S = 10.0


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def is_healthy(port: int, path: str = "/health") -> bool:
    """Whether a path of a port of loopback is answered with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % path.encode())
            return sock.recv(15).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


@contextlib.contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Run on these cores; what is started meanwhile stays on them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """One server process.

    Args:
        name: What the table calls it.
        command: The command; it has to print a line that ends with `:<port>` once it serves, unless `port` is given.
        env: Variables beside PATH and HOME.
        port: Where it will listen, if that is known; then nothing is waited for.
        health: A path that is answered once it serves; waited for with a known port.
        files: Files of its working folder, by name.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: dict[str, str] | None = None,
        port: int = 0,
        files: dict[str, str] | None = None,
        health: str = "",
    ) -> None:
        self.name, self.port = name, port
        self._health = health
        self._command, self._env = list(command), env or {}
        self._files = files or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def start(self) -> Self:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: It does not.
        """
        self._folder = tempfile.mkdtemp(prefix="sag-bench-")
        for name, text in self._files.items():
            (Path(self._folder) / name).write_text(text)
        env = {"PATH": os.environ["PATH"], "HOME": self._folder, "PYTHONPATH": str(Path(__file__).parents[1])}
        out = subprocess.DEVNULL if self.port else subprocess.PIPE
        with pinned(SERVER_CORES):
            self._process = subprocess.Popen(self._command, env=env | self._env, cwd=self._folder, stdout=out)
        if not self.port:
            self.port = self._read_port()
        elif self._health:
            self._wait_healthy()
        return self

    def _read_port(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        until = time.monotonic() + READY_S
        while (left := until - time.monotonic()) > 0:
            if select.select([self._process.stdout], [], [], left)[0]:
                line = self._process.stdout.readline()
                if not line:
                    break
                port = line.decode().strip().rpartition(":")[2]
                if port.isdigit():
                    return int(port)
        self.stop()
        raise RuntimeError(f"{self.name} did not start")

    def _wait_healthy(self) -> None:
        assert self._process is not None
        until = time.monotonic() + PEER_READY_S
        while not is_healthy(self.port, self._health):
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"{self.name} did not start")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds of the process so far, user and system, all threads."""
        return time.clock_gettime((~self.pid << 3) | 2)  # clock_getcpuclockid(3); /proc's own figure has 10 ms steps

    def memory_kib(self, kind: str = "Pss") -> int:
        """Resident memory (`Rss`), or its share of what processes have in common (`Pss`)."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1])
        raise RuntimeError(f"no {kind}")

    def stop(self) -> None:
        """End it, by force if it does not go."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_S)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *given: object) -> None:
        self.stop()


def sag_command(port: int = 0) -> list[str]:
    """The hub as everybody starts it, but with its data in its working folder."""
    return [sys.executable, "-m", "sag.cli", "serve", "--port", str(port), "--data", "data"]


def make_sag(upstream: str = "", port: int = 0) -> Server:
    """The hub with its defaults; a client may send as many frames as the benchmark wants."""
    env = {"SAG_LOG": "warning"}
    if upstream:
        env |= {"LLM_PROVIDER": "openai", "LLM_BASE_URL": f"{upstream}/v1", "LLM_MODEL": "fake"}
    files = {"plugins.toml": "[hub.limits]\nframes_per_s = 1000000\n"}
    return Server("sag", sag_command(port), env, port, files)


def make_raw(upstream: str = "") -> Server:
    """asyncio protocols, no framework."""
    return Server("raw", [sys.executable, "-m", "benchmarks.servers.raw", upstream])


def make_bare(upstream: str = "", port: int = 0) -> Server:
    """Starlette and uvicorn."""
    return Server("bare", [sys.executable, "-m", "benchmarks.servers.bare", upstream, str(port)], port=port)


def peers_python() -> str:
    """The interpreter with the programs that the hub is measured beside (scripts/peers); "" where there is none."""
    python = os.environ.get("SAG_PEERS_PYTHON") or str(PEERS)
    return python if Path(python).exists() else ""


def make_sdk(upstream: str) -> Server:
    """Starlette and uvicorn with the vendor's own client."""
    return Server("openai-sdk", [peers_python(), "-m", "benchmarks.servers.sdk", upstream])


def make_litellm(upstream: str) -> Server:
    """LiteLLM's proxy."""
    port = free_port()
    litellm = str(Path(peers_python()).with_name("litellm"))
    command = [litellm, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    params = {"model": "openai/fake", "api_base": f"{upstream}/v1", "api_key": "none"}
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": LITELLM_KEY, "LITELLM_LOG": "ERROR"}
    files = {"config.yaml": json.dumps({"model_list": [{"model_name": "fake", "litellm_params": params}]})}
    return Server("litellm", command, env, port, files, "/health/liveliness")

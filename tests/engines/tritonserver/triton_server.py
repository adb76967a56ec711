"""A real Triton server, from PyPI's nvidia-pytriton, in a virtual environment of its own (`make triton-env`)."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[3]
VENV = Path(os.environ.get("TRITON_VENV") or ROOT / ".venv-triton").absolute()
BINARY = VENV / "bin/tritonserver"
READY_SECONDS = 90


def missing():
    """Why there is no server here; None where there is one."""
    return None if BINARY.is_file() else f"there is no {BINARY}: `make triton-env` sets one up"


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Server:
    """`tritonserver` over one model repository; a context manager.

    Keywords: options of tritonserver; True stands for one without a value.
    """

    def __init__(self, repository, folder, *options, wait=True):
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.http, self.grpc = f"127.0.0.1:{self.http_port}", f"127.0.0.1:{self.grpc_port}"
        self.name, self.log = f"t{self.http_port}", folder / f"server-{self.http_port}.log"
        command = [
            BINARY,
            f"--model-repository={repository}",
            f"--backend-config=python,shm-region-prefix-name={self.name}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=5",
            *options,
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    def wait_ready(self, path="/v2/health/ready"):
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.text()[-6000:]}")
            if self.get(path) is not None:
                return
            time.sleep(0.05)
        raise AssertionError(f"the server is not ready after {READY_SECONDS} s:\n{self.text()[-6000:]}")

    def get(self, path, port=None):
        """The body of a page, or None where the server refuses it."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.http_port}{path}", timeout=10) as reply:
                return reply.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def metrics(self):
        return self.get("/metrics", self.metrics_port) or ""

    def metric(self, name, **labels):
        """The sum of a metric's values over all lines that carry these labels."""
        total = 0.0
        for line in self.metrics().splitlines():
            if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def stubs(self):
        """Process ids of the Python models: model name -> id."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal():
                    words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                    if int(parent) == self.process.pid and "triton_python_backend_stub" in words[0]:
                        found[Path(words[1]).parents[1].name] = int(entry.name)
        return found

    def text(self):
        return self.log.read_text(errors="replace")

    def close(self):
        """End the server and what it started."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for left in Path("/dev/shm").glob(f"{self.name}*"):
            left.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

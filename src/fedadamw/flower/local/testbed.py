"""Runs a federation of real processes on this machine: a SuperLink with TLS, SuperNodes with keys, runs.

For demonstrations, tests, and to try out an operator's procedures.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from fedadamw.flower.local import certs
from fedadamw.validation import InputError, check

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent


class LocalFederation:
    """A SuperLink and SuperNodes with their files in `folder`; they are stopped at the end of the `with` block.

    nodes: number of keys to create. authenticated: whether only nodes with registered keys may connect.
    """

    def __init__(self, folder: Path, nodes: int, *, authenticated: bool = True) -> None:
        self.folder, self.port, self.authenticated = folder.resolve(), _free_port(), authenticated
        self.certs, self.logs, self.home = (self.folder / name for name in ("certs", "logs", "flwr"))
        for path in (self.logs, self.home):
            path.mkdir(parents=True, exist_ok=True)
        certs.write_certificates(self.certs, ["localhost", HOST], nodes)
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "bed"\n\n[superlink.bed]\naddress = "{HOST}:{self.port}"\n'
            f'root-certificates = "{self.certs / "ca.crt"}"\n'
        )
        self.superlink: subprocess.Popen[bytes] | None = None
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of Flower's commands."""
        return {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "PYTHONUNBUFFERED": "1",
        }

    def start_superlink(self) -> None:
        """Start the SuperLink; it continues with the database of an earlier one if there is one."""
        certificates = self.certs
        options = {
            "ssl-ca-certfile": certificates / "ca.crt",
            "ssl-certfile": certificates / "server.pem",
            "ssl-keyfile": certificates / "server.key",
            "host": HOST,
            "port": self.port,
            "database": self.folder / "link.db",
        }
        flags = ["--disable-runtime-dependency-installation"]
        if self.authenticated:
            flags.append("--enable-supernode-auth")
        self.superlink = self._start("superlink", [*_flags(options), *flags], "link")
        self._await_link()

    def register(self, node: int) -> None:
        """Register a node's key with the SuperLink."""
        self.flwr("supernode", "register", str(self.certs / f"node-{node}.pub"), "bed", "--name", f"node-{node}")

    def start_node(
        self,
        node: int,
        config: Mapping[str, str | int | float] | None = None,
        *,
        key: str | None = None,
        tls: bool = True,
    ) -> "subprocess.Popen[bytes]":
        """Start a SuperNode with the key of `node`, or the one in the file `key`; without TLS it cannot connect."""
        node_config = {"partition-id": node, "state-dir": str(self.folder / "state"), **(config or {})}
        words = " ".join(f"{k}={json.dumps(v)}" for k, v in node_config.items())
        options: dict[str, object] = {"superlink": f"{HOST}:{self.port}", "host": HOST, "port": _free_port()}
        if tls:
            options["root-certificates"] = self.certs / "ca.crt"
            options["auth-supernode-private-key"] = key or self.certs / f"node-{node}"
        flags = [] if tls else ["--insecure"]
        process = self._start("supernode", [*_flags(options), "--node-config", words, *flags], f"node-{node}")
        self.nodes[node] = process
        return process

    def flwr(self, *arguments: str) -> str:
        """Run a `flwr` command and return its output; raises InputError if it fails."""
        command = [str(BIN / "flwr"), *arguments]
        result = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        check(result.returncode == 0, f"flwr {arguments[0]}: {(result.stderr or result.stdout).strip()[-500:]}")
        return result.stdout

    def submit(self, app: Path, config: Mapping[str, str | int | bool]) -> int:
        """Start a run of the app in folder `app`; return its number."""
        options = [part for k, v in config.items() for part in ("-c", f"{k}={json.dumps(v)}")]
        reply = json.loads(self.flwr("run", str(app), "bed", *options, "--format", "json"))
        check("run-id" in reply, f"flwr run: {reply}")
        return int(reply["run-id"])

    def status(self, run: int) -> str:
        """Return a run's status from `flwr list`: running, finished:completed, finished:failed, ..."""
        runs = json.loads(self.flwr("list", "bed", "--format", "json"))["runs"]
        return next((str(entry["status"]) for entry in runs if int(entry["run-id"]) == run), "unknown")

    def wait_for_end(self, run: int, seconds: float) -> str:
        """Wait until a run ends; return its status. Raises InputError if it is still running after `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (status := self.status(run)).startswith("finished"):
                return status
            time.sleep(1.0)
        raise InputError(f"run {run} has not ended after {seconds:g} s (it is {status})")

    def run_log(self, run: int) -> str:
        """Return the log of a run's ServerApp."""
        return self.flwr("log", str(run), "bed", "--show")

    def log(self, name: str) -> str:
        """Return the log of the process `link` or `node-<i>`."""
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def __enter__(self) -> "LocalFederation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        processes = [*self.nodes.values(), *([self.superlink] if self.superlink else [])]
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            kill(process)  # and its child processes

    def _start(self, service: str, arguments: Sequence[str], name: str) -> "subprocess.Popen[bytes]":
        with open(self.logs / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "fedadamw", "flower", service, *arguments],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _await_link(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self.superlink is not None
            check(self.superlink.poll() is None, f"the SuperLink ended: {self.log('link')[-500:]}")
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self.port)) == 0:
                    return
            time.sleep(0.1)
        raise InputError("the SuperLink did not listen within a minute")


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill (SIGKILL) a process and its child processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises it if the process group has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _flags(options: Mapping[str, object]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])

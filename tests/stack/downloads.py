"""The servers' programs, at pinned versions, fetched once from the registries of Maven and Go into ``.cache/stack``.

Maven's and Go's own caches are used as those tools do. Processes that need the same thing at once wait for one another,
and what is in the cache is complete: it got its name last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

KAFKA: Final = "4.1.0"
CASSANDRA: Final = "5.0.5"
MINIO: Final = "v0.0.0-20260212201848-7aac2a2c5b7c"  # its releases are tags that Go cannot read as versions
TOXIPROXY: Final = "v2.5.0"
K6: Final = "v1.8.1"
_MAVEN_DEPENDENCY_PLUGIN: Final = "3.8.1"

_TIMEOUT_S: Final = 1200.0  # MinIO compiles for 2.5 minutes on two free cores
_running: Final[set[subprocess.Popen[str]]] = set()


class DownloadFailed(RuntimeError):
    """A server's program could not be had; the text names the server, the command and the end of its output."""


def cache() -> Path:
    """Where downloads are kept: STACK_CACHE, else ``.cache/stack`` of the checkout."""
    return Path(os.environ.get("STACK_CACHE") or ROOT / ".cache" / "stack")


def kafka() -> Path:
    """The folder that holds Kafka's jars."""
    return _jars("kafka", KAFKA)


def cassandra() -> Path:
    """The folder that holds Cassandra's jars."""
    return _jars("cassandra", CASSANDRA)


def minio() -> Path:
    """The program."""
    return _go_program("minio", "github.com/minio/minio", MINIO)


def toxiproxy() -> Path:
    """The program."""
    return _go_program("toxiproxy", "github.com/Shopify/toxiproxy/v2/cmd/server", TOXIPROXY)


def k6() -> Path:
    """The program."""
    return _go_program("k6", "go.k6.io/k6", K6)


def abort() -> None:
    """End what is being fetched; whoever waits for it gets DownloadFailed."""
    for process in tuple(_running):
        _kill(process)


def _jars(name: str, version: str) -> Path:
    def fetch(folder: Path) -> None:
        with _locked("maven"):  # Maven's local repository bears no two writers
            _run(
                name,
                (
                    "mvn", "--batch-mode", "--no-transfer-progress",
                    "--file", str(Path(__file__).with_name("jars") / f"{name}.xml"),
                    f"org.apache.maven.plugins:maven-dependency-plugin:{_MAVEN_DEPENDENCY_PLUGIN}:copy-dependencies",
                    f"-Dserver.version={version}", "-DincludeScope=runtime", f"-DoutputDirectory={folder}",
                ),
            )  # fmt: skip

    return _cached(name, version, fetch)


def _go_program(name: str, package: str, version: str) -> Path:
    def fetch(folder: Path) -> None:
        # A Go of the distribution may be older than a module wants, and some are told not to fetch a newer one.
        toolchain = os.environ.get("GOTOOLCHAIN", "auto")
        _run(name, (_go(), "install", f"{package}@{version}"), {"GOBIN": str(folder), "GOTOOLCHAIN": toolchain})
        next(folder.iterdir()).rename(folder / name)

    return _cached(name, version, fetch) / name


def _go() -> str:
    """Where Debian's default is too old, .ci/system-parts adds a newer one, which is not on PATH."""
    added = Path("/usr/lib").glob("go-1.2[1-9]/bin/go")
    return max(map(str, added), default="go")


def _cached(name: str, version: str, fetch: Callable[[Path], None]) -> Path:
    """The folder of this version; ``fetch`` fills it when it is not there yet."""
    folder = cache() / f"{name}-{version}"
    if folder.exists():
        return folder
    with _locked(name):
        if not folder.exists():
            for left_by_a_kill in cache().glob(f".{name}-*"):
                shutil.rmtree(left_by_a_kill)
            print(f"{name} {version}: fetching it once into {cache()} …", file=sys.stderr, flush=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache()))
            try:
                fetch(draft)
                draft.chmod(0o755)
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waiting for another process that fetches …", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run it to its end. Raises DownloadFailed."""

    def failed(reason: str) -> DownloadFailed:
        return DownloadFailed(f"{name} could not be fetched: {reason}\nThe command was: {' '.join(command)}")

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            text=True,
            errors="replace",
            start_new_session=True,  # its compilers end with it
        )
    except FileNotFoundError:
        raise failed(f"there is no {command[0]} on PATH (.ci/system-parts installs it or says how)") from None
    _running.add(process)
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise failed(f"it took longer than {_TIMEOUT_S:.0f} s") from None
    finally:
        _kill(process)
        process.wait()
        _running.discard(process)
    if process.returncode != 0:
        raise failed(f"exit code {process.returncode}, the end of its output:\n" + "\n".join(output.splitlines()[-15:]))


def _kill(process: subprocess.Popen[str]) -> None:
    """With all that it started; fine when it has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

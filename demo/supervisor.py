"""A whole system as one object: `with LocalSystem(folder) as system: system.api_url`; by hand: `make run`."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from demo import channels, cluster
from demo.channels import SetUp
from demo.cluster import ServersMissing
from demo.interrupts import interruptible
from demo.ports import HOST, Ports, PortsTaken, free_ports
from demo.processes import Crash, Program, StartFailed, StillRunning, Supervisor, print_crash
from demo.redis_server import (
    BUS_RULES,
    LOG_RULES,
    RedisNotFound,
    RedisTooOld,
    find_redis_server,
    redis_config,
    refuse_older_server,
)

ROOT: Final = Path(__file__).resolve().parent.parent
PROFILES: Final = ("local", "cluster")
MANAGE: Final = (sys.executable, str(ROOT / "manage.py"))
TEAMS: Final = ("core", "inbound")  # queues that WORKER_PROCESSES work on; a channel's worker sends in parallel anyway

# A shell that is set up for another project must not leak in: its DATABASE_URL would have us migrate a stranger's
# database, its HTTP_PROXY would get what belongs to 127.0.0.1. These are passed on, everything else is ours.
INHERITED: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE")
TUNABLES: Final = (
    "LOG_LEVEL",
    "PARTITIONS",
    "LANES",
    "GATHER_MS",
    "LOG_PARTITION_BYTES",
    "RETENTION_DAYS",
    "MAX_FILE_BYTES",
    "API_WORKERS",
    "API_THREADS",
    "WORKER_PROCESSES",
)

REDIS_STAGE, SERVICE_STAGE, BRIDGE_STAGE = range(3)  # the bridge stops first: nothing new is handed to the workers


class LocalSystem:
    """Every process of a system, its addresses and its folder.

    Without ``ports`` it takes free ones, so that several may run at once; ``env`` may name other servers (see
    `demo.cluster`): an event log elsewhere needs no redis-server of ours. ``processes`` names a part of the table;
    ``instances`` has several of a process, say ``{"bridge": 2}``: `bridge` and `bridge-2`. ``restart`` brings crashed
    processes back (a demo wants it, a test that kills them does not); ``set_up`` runs before the services start, and
    ``before_work`` when they are ready and nothing that waits on the log has been handed to them.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        ports: Ports | None = None,
        env: Mapping[str, str] | None = None,
        processes: Sequence[str] | None = None,
        instances: Mapping[str, int] | None = None,
        restart: bool = False,
        set_up: SetUp | None = None,
        before_work: Callable[[LocalSystem], None] = lambda _: None,
        on_crash: Callable[[Crash], None] = print_crash,
    ) -> None:
        self.state_dir = state_dir.absolute()
        self.ports = ports or Ports.free()
        self.env = {**_inherited(), **self._addresses(), **(env or {})}
        """What children and `manage` get, the name of the service aside."""
        self._first_commands = set_up or SetUp()
        self._before_work = before_work
        self._copies = _copies(instances or {})
        self._health_ports = self._take_health_ports()
        table = self._table()
        wanted = set(processes) if processes is not None else {program.name for program in table}
        if unknown := wanted - {program.name for program in table}:
            raise ValueError(f"no such process: {', '.join(sorted(unknown))}")
        self.processes = tuple(program.name for program in table if program.name in wanted)
        self._supervisor = Supervisor(
            [program for program in table if program.name in wanted],
            self.state_dir,
            restart=restart,
            on_crash=on_crash,
        )

    # --- addresses -----------------------------------------------------------------------------------------------

    @property
    def api_url(self) -> str:
        return self.env["API_URL"]

    @property
    def gateway_url(self) -> str:
        """For sockets: ``ws://…``."""
        return self.env["GATEWAY_URL"]

    @property
    def simulator_url(self) -> str:
        return self.env["SIMULATOR_URL"]

    @property
    def operator(self) -> dict[str, str]:
        """``username`` and ``password`` of the admin's first user, as they were made."""
        operator: dict[str, str] = json.loads((self.state_dir / "operator.json").read_text())
        return operator

    def ready_url(self, name: str) -> str:
        """Where a process tells whether it is ready. Raises KeyError for a redis-server, which has none."""
        path = "health" if name == "simulator" else "ready"  # it stands alone: there is nothing that it waits for
        return f"http://{HOST}:{self._health_ports[name]}/{path}"

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = 120) -> Self:
        """Returns when every part is ready. Raises PortsTaken, StillRunning, StartFailed and what ``before_work`` does;
        then nothing is left."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self.ports.check_free(unused=() if self._has_own_log else ("redis_log",))
        self._supervisor.open()
        try:
            for stage in self._supervisor.stages:
                if stage == SERVICE_STAGE:
                    self._set_up()
                if stage == BRIDGE_STAGE:
                    self._before_work(self)
                self._supervisor.start_stage(stage, timeout_s=timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop every process, the last started first; nothing is left. May be called again."""
        self._supervisor.close()

    def kill(self, name: str, *, alone: bool = False) -> None:
        """SIGKILL a process and its children, or it ``alone``; it stays down until `restart`, they live until then."""
        self._supervisor.kill(name, alone=alone)

    def end(self, name: str) -> None:
        """SIGTERM to a process, and wait until it and its children are gone; it stays down until `restart`."""
        self._supervisor.stop(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        self._supervisor.signal(name, number)

    def restart(self, name: str, timeout_s: float = 30) -> None:
        """Stop it unless it is down, start it, and wait until it is ready."""
        self._supervisor.restart(name, timeout_s=timeout_s)

    def pid(self, name: str) -> int:
        return self._supervisor.pid(name)

    def is_running(self, name: str) -> bool:
        return self._supervisor.is_running(name)

    def log_tail(self, name: str, lines: int = 20) -> str:
        return self._supervisor.log_tail(name, lines)

    def manage(self, *arguments: str) -> str:
        """Run ``manage.py`` on this system and return what it printed. Raises StartFailed with the end of it."""
        return self._run(f"manage.py {' '.join(arguments)}", "manage.py", *arguments)

    def run_commands(self, set_up: SetUp) -> str:
        """Several of them in one process. Raises StartFailed with the words of the first that failed."""
        return self._run("setting up", "-m", "demo.commands", *set_up.commands, env=set_up.env)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- inside --------------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        """What the services find when they start; each step may be repeated."""
        operator = shlex.quote(str(self.state_dir / "operator.json"))
        has_tables = self.env.get("MESSAGE_STORE_URL", "orm://").startswith("orm:")
        steps = (
            "migrate --noinput --verbosity 0 --database default",
            "migrate --noinput --verbosity 0 --database messages" if has_tables else "setup_keyspace",
            "setup_topics",
            "setup_storage",
            f"create_operator --file {operator}",
        )
        first = self._first_commands
        self.run_commands(SetUp((*steps, *first.commands), first.env))

    def _run(self, what: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        return _printed(what, *arguments, env={**self.env, **(env or {}), "SERVICE": "manage"})

    def _addresses(self) -> dict[str, str]:
        ports = self.ports
        return {
            **ports.environment(),
            "STATE_DIR": str(self.state_dir),
            "EVENT_LOG_URL": f"redis://{HOST}:{ports.redis_log}/0",
            "BUS_URL": f"redis://{HOST}:{ports.redis_bus}/0",
            "API_URL": f"http://{HOST}:{ports.api}",
            "GATEWAY_URL": f"ws://{HOST}:{ports.gateway}",
            "SIMULATOR_URL": f"http://{HOST}:{ports.simulator}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",  # drivers in C: a crash leaves its stack in the log
        }

    @property
    def _has_own_log(self) -> bool:
        return self.env["EVENT_LOG_URL"] == self._addresses()["EVENT_LOG_URL"]

    def _take_health_ports(self) -> dict[str, int]:
        ports = self.ports
        firsts = {
            "api": ports.api,
            "gateway": ports.gateway,
            "bridge": ports.bridge_health,
            "worker-core": ports.worker_core_health,
            "worker-inbound": ports.worker_inbound_health,
            "worker-whatsapp": ports.worker_whatsapp_health,
            "worker-instagram": ports.worker_instagram_health,
            "simulator": ports.simulator,
        }
        of_other_channels = [name for queue in queues() if (name := f"worker-{queue}") not in firsts]
        others = [*of_other_channels, *(name for names in self._copies.values() for name in names)]
        return {**firsts, **dict(zip(others, free_ports(len(others), besides=astuple(ports)), strict=True))}

    def _table(self) -> list[Program]:
        ports, setting = self.ports, self.env.get
        api = (
            *(sys.executable, "-m", "granian", "--interface", "wsgi", "chat4all_project.wsgi:application"),
            *("--host", HOST, "--port", str(ports.api), "--no-access-log", "--respawn-failed-workers"),
            *("--workers", setting("API_WORKERS", "2"), "--blocking-threads", setting("API_THREADS", "32")),
        )
        log_rules = (*LOG_RULES, f"maxmemory {self._log_memory()}")
        return [
            *([self._redis("redis-log", ports.redis_log, log_rules)] if self._has_own_log else ()),
            self._redis("redis-bus", ports.redis_bus, BUS_RULES),
            self._service("simulator", sys.executable, "-m", "simulator", "--port", str(ports.simulator)),
            self._service("api", *api),
            self._service("gateway", *MANAGE, "run_gateway", "--host", HOST, "--port", str(ports.gateway)),
            *(self._worker(queue, name) for queue in queues() for name in self._all_of(f"worker-{queue}")),
            *(self._bridge(name) for name in self._all_of("bridge")),
        ]

    def _all_of(self, name: str) -> list[str]:
        """A process and its copies."""
        return [name, *self._copies.get(name, ())]

    def _log_memory(self) -> int:
        """Bytes for all partitions, and half as much for what Redis adds to them. Of dead letters, which have one a
        topic and no bound, there may be more: then less is kept of what was done with."""
        work_topics = 3 + len(channel_names())
        streams = work_topics * (int(self.env.get("PARTITIONS", "3")) + 1)
        return streams * int(self.env.get("LOG_PARTITION_BYTES", str(64 * 1024 * 1024))) * 3 // 2

    def _redis(self, name: str, port: int, rules: tuple[str, ...]) -> Program:
        folder, executable = self.state_dir / name, find_redis_server()

        def prepare() -> None:
            refuse_older_server(executable, folder)
            redis_config(port=port, directory=folder, rules=rules)

        command = (executable, str(folder / "redis.conf"))
        return Program(
            name, command, env=self.env, stage=REDIS_STAGE, prepare=prepare, why_not_ready=lambda: _redis_fault(port)
        )

    def _worker(self, queue: str, name: str) -> Program:
        return self._service(
            name,
            *(*MANAGE, "run_worker", queue, "--name", name.removeprefix("worker-")),
            *("--processes", self.env.get("WORKER_PROCESSES", "2") if queue in TEAMS else "1"),
            HEALTH_PORT=str(self._health_ports[name]),
        )

    def _bridge(self, name: str) -> Program:
        return self._service(
            name, *MANAGE, "run_bridge", "--health-port", str(self._health_ports[name]), stage=BRIDGE_STAGE
        )

    def _service(self, name: str, *command: str, stage: int = SERVICE_STAGE, **extra: str) -> Program:
        metrics = self.state_dir / "metrics" / name

        def prepare() -> None:  # what a dead process counted is no longer true
            shutil.rmtree(metrics, ignore_errors=True)
            metrics.mkdir(parents=True)

        return Program(
            name,
            command,
            env={
                **self.env,
                "SERVICE": name,
                "PROMETHEUS_MULTIPROC_DIR": str(metrics),
                "PYTHONPATH": str(ROOT),
                **extra,
            },
            stage=stage,
            prepare=prepare,
            why_not_ready=lambda: _http_fault(self.ready_url(name)),
        )


@functools.cache
def channel_names() -> tuple[str, ...]:
    """Every channel that there is a connector for, in packages of their own too: asked, for we import none of them.

    Raises StartFailed with the words about one that cannot be loaded.
    """
    return tuple(_printed("looking for connectors", "-m", "connectors.registry", env=_inherited()).split())


def queues() -> tuple[str, ...]:
    """Each has a worker of its own."""
    return ("core", "inbound", *channel_names())


def _printed(what: str, *arguments: str, env: Mapping[str, str]) -> str:
    """What Python printed with these arguments. Raises StartFailed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StartFailed(f"{what} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def _copies(instances: Mapping[str, int]) -> dict[str, list[str]]:
    """The names beyond the first, by process. Raises ValueError for one of which there is always one."""
    several = ("bridge", *(f"worker-{queue}" for queue in queues()))
    if unknown := instances.keys() - set(several):
        raise ValueError(f"no such process to have several of: {', '.join(sorted(unknown))}")
    return {name: [f"{name}-{number}" for number in range(2, instances[name] + 1)] for name in instances}


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in (*INHERITED, *TUNABLES) if name in os.environ}


def _redis_fault(port: int) -> str:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError as error:
        return str(error)
    return "" if answer.startswith(b"+PONG") else answer.decode(errors="replace").strip()


def _http_fault(url: str) -> str:
    """ "" when ``url`` answers 200, else what it says."""
    try:
        with _DIRECT.open(url, timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code}: {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return str(error)


_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through the shell's HTTP_PROXY


# --- by hand -----------------------------------------------------------------------------------------------------


def demo_system(*, before_work: Callable[[LocalSystem], None] = lambda _: None) -> LocalSystem:
    """The system at its fixed addresses, moved where the environment says so, on the servers of PROFILE, with channel
    accounts that the simulator serves. Raises ValueError for a bad variable, ServersMissing."""
    on_cluster = profile() == "cluster"
    state_dir = Path(os.environ.get("STATE_DIR") or ROOT / ".chat4all" / ("cluster" if on_cluster else "")).absolute()
    ports = Ports.from_environment(os.environ)
    env = cluster.parts(os.environ, state_dir) if on_cluster else {}
    return connected_system(state_dir, ports, env=env, restart=True, before_work=before_work)


def profile() -> str:
    """``local`` or ``cluster``. Raises ValueError for anything else in PROFILE."""
    chosen = os.environ.get("PROFILE") or PROFILES[0]
    if chosen not in PROFILES:
        raise ValueError("PROFILE may be empty, `local` or `cluster`")
    return chosen


def connected_system(
    state_dir: Path,
    ports: Ports,
    *,
    env: Mapping[str, str] | None = None,
    restart: bool = False,
    before_work: Callable[[LocalSystem], None] = lambda _: None,
) -> LocalSystem:
    """A system whose WhatsApp and Instagram accounts are those of its simulator; unknown people reach the operator."""
    agents = dict.fromkeys(channels.ACCOUNT_IDS, "operator")
    return LocalSystem(
        state_dir,
        ports=ports,
        env={**channels.simulator_settings(state_dir, api_url=f"http://{HOST}:{ports.api}"), **(env or {})},
        set_up=channels.set_up(state_dir, simulator_url=f"http://{HOST}:{ports.simulator}", agents=agents),
        restart=restart,
        before_work=before_work,
    )


START_FAILURES: Final = (PortsTaken, StillRunning, StartFailed, RedisNotFound, RedisTooOld, ServersMissing, ValueError)
"""What a person is told in words when the system does not start."""


def main() -> int:
    """`make run`: everything up until Ctrl-C."""
    try:
        with interruptible(), demo_system() as system:
            print_addresses(system)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    except START_FAILURES as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def print_addresses(system: LocalSystem) -> None:
    print(f"  API        {system.api_url}  (reference: {system.api_url}/docs)")
    print(f"  console    {system.api_url}/console")
    print(f"  admin      {system.api_url}/admin/  (user and first password: {system.state_dir / 'operator.json'})")
    print(f"  sockets    {system.gateway_url}")
    print(f"  simulator  {system.simulator_url}/_control/messages  (docs/simulator.md)")
    print(f"  logs       {system.state_dir / 'logs'}")
    print("Ctrl-C stops it.", flush=True)


if __name__ == "__main__":
    sys.exit(main())

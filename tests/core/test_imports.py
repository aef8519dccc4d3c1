"""What only the API needs is not loaded by the other processes: each start of them, a demo's or a restart's, would pay
for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
OF_THE_API: Final = {"rest_framework.compat", "rest_framework.views", "drf_spectacular.plumbing", "requests", "psycopg"}
# What each of them runs for as long as it lives is left out; all that it loads until then is not.
COMMANDS: Final = {
    "run_worker core": "from chat4all_project.celery import app; app.Worker.start = lambda worker: None",
    "run_bridge": "from messaging.bridge import Bridge; Bridge.run = lambda bridge: None",
    "run_gateway": "from realtime.gateway import Gateway; Gateway.run = lambda gateway: None",
    "setup_topics --timeout 0": "",
    "setup_keyspace": "",
}
RUN: Final = """
import sys, django
django.setup()
{prelude}
from django.core.management import execute_from_command_line
try:
    execute_from_command_line(["manage.py", *sys.argv[1:]])
except SystemExit:
    pass
print(*sys.modules, sep="\\n")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_process_without_an_api_does_without_its_packages(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(prelude=COMMANDS[command]), *command.split()],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "chat4all_project.settings",
            "STATE_DIR": str(tmp_path),
            "EVENT_LOG_URL": "redis://127.0.0.1:1/0",  # nobody is there
        },
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "django.db.models" in loaded
    assert loaded & OF_THE_API == set()

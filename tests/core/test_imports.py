"""What only the API needs is not loaded by the other processes: each start of them, a demo's or a restart's, would pay
for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
OF_THE_API: Final = {"rest_framework.compat", "rest_framework.views", "drf_spectacular.plumbing", "requests", "psycopg"}
COMMANDS: Final = {
    "worker": ("-m", "celery", "-A", "chat4all_project", "report"),
    "bridge": ("manage.py", "run_bridge", "--help"),
    "gateway": ("manage.py", "run_gateway", "--help"),
    "setup_topics": ("manage.py", "setup_topics", "--help"),
}


@pytest.mark.parametrize("process", COMMANDS)
def test_a_process_without_an_api_does_without_its_packages(process: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMANDS[process]],
        cwd=ROOT,
        env={**os.environ, "STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "django.db.models" in loaded
    assert loaded & OF_THE_API == set()

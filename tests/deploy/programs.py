"""The programs that judge docker/ and deploy/: each comes with requirements/dev.txt, beside this Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent


def run(program: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What it says, whatever its exit code; it gets no environment but ``env``."""
    return subprocess.run(
        [BIN / program, *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

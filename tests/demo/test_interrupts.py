"""Ctrl-C, SIGTERM and a closed terminal, wherever they come: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import asyncio, os, signal
from demo.interrupts import interruptible, run

def strike():
    os.kill(os.getpid(), signal.{name})
"""
IN_ANY_TASK = """
async def other():
    strike()
    await asyncio.sleep(60)

async def work():
    task = asyncio.create_task(other())
    try:
        await asyncio.sleep(60)
    finally:
        strike()  # once more: nobody is heard while it clears up
        await asyncio.sleep(0.01)
        print("cleared up")
"""
AT_ITS_END = """
async def work():
    strike()
    print("done")
"""
AFTERWARDS = """
async def work():
    print("done")
"""
MAIN = """
try:
    with interruptible():
        run(work())
        strike()
        print("never")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    ("work", "printed"),
    [
        pytest.param(IN_ANY_TASK, "cleared up", id="in any task"),
        pytest.param(AT_ITS_END, "done", id="at its end"),
        pytest.param(AFTERWARDS, "done", id="afterwards"),
    ],
)
def test_a_signal_ends_the_work_once_and_nobody_reads_a_traceback(name: str, work: str, printed: str) -> None:
    script = HEAD.format(name=name) + work + MAIN
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [printed, "interrupted", ""]

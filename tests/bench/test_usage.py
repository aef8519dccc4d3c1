"""Finding servers by their port, and what a process with its children took."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from bench import usage

BUSY_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print("on", flush=True)
try:
    child.wait()
finally:
    child.kill()
"""


def test_a_server_is_found_by_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert usage.listener(port) == os.getpid()
    assert usage.listener(port) is None


def test_a_childs_cpu_counts_for_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY_CHILD], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            parent.stdout.readline()
            [_, child] = usage.family(parent.pid)
            before_s = usage.cpu_s(parent.pid)
            while usage.cpu_s(parent.pid) < before_s + 0.1:  # the child alone is busy
                assert parent.poll() is None
            assert usage.rss_mb([parent.pid, child]) > usage.rss_mb([parent.pid]) > 0
        finally:
            parent.terminate()
            os.kill(child, 9)

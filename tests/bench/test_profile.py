"""What py-spy saw, by process and package, and its picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from bench import plots
from bench.profile import Profiles, place, told

RAW = """\
<module> (manage.py:10);run (/srv/messaging/services/persist.py:30);execute (/x/site-packages/redis/client.py:9) 60
<module> (manage.py:10);run (/srv/messaging/services/persist.py:31) 40
not a line
"""


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ("execute (/x/lib/python3.11/site-packages/redis/client.py:9)", "redis:execute"),
        ("dumps (/usr/lib/python3.11/json/__init__.py:231)", "python:dumps"),
        ("_find (<frozen importlib._bootstrap>:1)", "python:_find"),
        ("persist (/srv/messaging/services/persist.py:30)", "messaging.services:persist"),
        ("<module> (manage.py:10)", "manage:<module>"),
        ("[idle]", "?:[idle]"),
    ],
)
def test_a_frame_is_named_by_its_package(frame: str, expected: str) -> None:
    assert place(frame) == expected


def profiles() -> Profiles:
    found = Profiles()
    found.add("worker-core", RAW)
    found.add("worker-core-2", RAW)
    found.add("bridge", "poll (/srv/messaging/bridge/runner.py:1) 50\n")
    for process, ms in (("worker-core", 3.0), ("worker-core-2", 1.0), ("bridge", 1.0)):
        found.took(process, ms)
    return found


def test_processes_are_told_by_what_they_take_and_copies_together() -> None:
    core, bridge = profiles().figures()
    assert (core.what, core.value) == ("worker-core", "4.00 ms a message")
    assert core.beside == "200 looks: redis 60%, messaging.services 40%"
    assert bridge.what == "bridge"


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        pytest.param({"redis": 99, "kombu": 1}, "100 looks: redis 99%, kombu 1%", id="enough"),
        pytest.param({"redis": 98, "kombu": 1}, "99 looks, too few for shares, redis", id="too few"),
        pytest.param({}, "0 looks, too few for shares", id="never at work"),
    ],
)
def test_shares_are_told_of_enough_looks_only(packages: dict[str, int], expected: str) -> None:
    assert told(Counter(packages)) == expected


def test_a_flame_is_as_wide_as_what_it_took() -> None:
    drawn = plots.svg(profiles().flame("x.svg", "<CPU>"))
    ElementTree.fromstring(drawn)
    wide = {
        title: float(width)
        for title, width in re.findall(
            r"<title>([^<:]+(?::[^<:]+)?): [\d.]+ ms</title><rect [^>]*width=\"([\d.]+)\"", drawn
        )
    }
    total = plots.WIDE - 20
    assert wide["worker-core"] == pytest.approx(total * 4 / 5, abs=0.1)
    assert wide["bridge"] == pytest.approx(total * 1 / 5, abs=0.1)
    assert wide["redis:execute"] == pytest.approx(total * 4 / 5 * 0.6, abs=0.1)

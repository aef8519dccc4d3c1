"""How a server in Java is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

JVMS: Final = Path("/usr/lib/jvm")

ALWAYS: Final = ("-XX:+UseSerialGC", "-Xshare:auto")
# A process that lives for a minute gains nothing from the second compiler, and two cores have no room for it.
FAST_START: Final = ("-XX:TieredStopAtLevel=1",)


def java(jars: Path, main: str, *arguments: str, flags: Sequence[str] = (), long_run: bool = False) -> tuple[str, ...]:
    """The command. ``long_run``: as in production, where what is done often is compiled once more, and better."""
    pace = () if long_run else FAST_START
    return (_program(), *ALWAYS, *pace, *flags, "-cp", f"{jars}/*", main, *arguments)


def _program() -> str:
    """Cassandra 5 wants Java 17, bears 21, and does not start on 24 and newer, which may be the one on PATH."""
    found = (path for version in (17, 21) for path in JVMS.glob(f"java-{version}-*/bin/java"))
    return str(next(found, "java"))

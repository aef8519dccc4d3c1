"""How a server in Java is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# A process that lives for a minute gains nothing from the second compiler, and two cores have no room for it.
FAST_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


def java(jars: Path, main: str, *arguments: str, flags: Sequence[str] = ()) -> tuple[str, ...]:
    return ("java", *FAST_START, *flags, "-cp", f"{jars}/*", main, *arguments)

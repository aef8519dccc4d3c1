"""One JSON object per line on stderr. Callers pass ids and counts, never texts, tokens or numbers of people."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


def log(event: str, **facts: str | int | float | bool | None) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"at": at, "service": "simulator", "event": event, **facts}), file=sys.stderr, flush=True)

"""k6 with the reference's load, and what its summary says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from bench.people import Talk
from tests.stack import downloads

SCRIPT: Final = Path(__file__).parent / "k6" / "reference.js"


@dataclass(frozen=True, slots=True)
class K6Summary:
    """Times in milliseconds, of whole requests."""

    requests: int
    per_s: float
    refused: int  # answered with anything but 202, or not at all
    dropped: int  # not sent when they were due: no client was free
    p50: float
    p95: float
    p99: float

    @classmethod
    def parse(cls, summary: Mapping[str, Any]) -> Self:
        """What `handleSummary` gets. Metrics that counted nothing are missing there."""
        metrics = {name: metric["values"] for name, metric in summary["metrics"].items()}
        took = metrics["http_req_duration"]
        return cls(
            requests=int(metrics["http_reqs"]["count"]),
            per_s=metrics["http_reqs"]["rate"],
            refused=int(metrics["checks"]["fails"]),
            dropped=int(metrics.get("dropped_iterations", {"count": 0})["count"]),
            p50=took["med"],
            p95=took["p(95)"],
            p99=took["p(99)"],
        )


def reference_load(url: str, people: Sequence[Talk], directory: Path, *, seconds: float) -> K6Summary:
    """Messages to ``url``. Raises subprocess.CalledProcessError, DownloadFailed."""
    directory.mkdir(parents=True, exist_ok=True)
    clients, summary = directory / "people.json", directory / "summary.json"
    clients.write_text(json.dumps([_client(each) for each in people]))
    subprocess.run(
        [
            *(str(downloads.k6()), "run", "--quiet", "--no-usage-report", "--address", ""),
            *("--env", f"MESSAGES_URL={url}", "--env", f"PEOPLE={clients}", "--env", f"SUMMARY={summary}"),
            *("--env", f"SECONDS={seconds:.0f}", str(SCRIPT)),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return K6Summary.parse(json.loads(summary.read_text()))


def _client(talk: Talk) -> dict[str, str]:
    return {"token": talk.sender.token, "body": talk.request.partition(b"\r\n\r\n")[2].decode()}

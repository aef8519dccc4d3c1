"""What k6 says in the end, as numbers."""

from __future__ import annotations

import copy
from typing import Any

from bench.k6_run import K6Summary

SUMMARY: dict[str, Any] = {  # as k6 1.8.1 hands it to handleSummary; what we do not read is left out
    "metrics": {
        "http_reqs": {"type": "counter", "contains": "default", "values": {"count": 376, "rate": 12.53}},
        "http_req_duration": {
            "type": "trend",
            "contains": "time",
            "values": {"med": 1.4, "p(95)": 2.1, "p(99)": 3.9, "max": 12.5},
        },
        "checks": {"type": "rate", "contains": "default", "values": {"rate": 0.99, "passes": 375, "fails": 1}},
        "dropped_iterations": {"type": "counter", "contains": "default", "values": {"count": 2, "rate": 0.06}},
    }
}


def test_a_summary_is_read() -> None:
    assert K6Summary.parse(SUMMARY) == K6Summary(
        requests=376, per_s=12.53, refused=1, dropped=2, p50=1.4, p95=2.1, p99=3.9
    )


def test_a_run_that_was_never_late_dropped_nothing() -> None:
    punctual = copy.deepcopy(SUMMARY)
    del punctual["metrics"]["dropped_iterations"]
    assert K6Summary.parse(punctual).dropped == 0

"""What the live part counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

PUSH_RESULTS = ("sent", "duplicate", "lost")
PUSHES = Counter("chat4all_pushes_total", "Frames asked for, by what became of them", ["result"])
CONNECTIONS = Gauge("chat4all_gateway_connections", "Signed-in sockets that are open", multiprocess_mode="livesum")
FRAMES = Counter("chat4all_gateway_frames_total", "Frames handed to sockets", ["source"])
RESYNCS = Counter("chat4all_gateway_resyncs_total", "Sockets told to read the history over REST")
REPAIRS = Counter("chat4all_gateway_repairs_total", "Gaps found in the live stream and filled from the history")
OVERFLOWS = Counter("chat4all_gateway_outbox_overflows_total", "Sockets closed because they read too slowly")
REFUSED = Counter("chat4all_gateway_refused_total", "Sockets closed by us, by close code", ["code"])
ACKNOWLEDGED = Counter("chat4all_gateway_acknowledged_total", "Messages that a device acknowledged", ["result"])

# The first increment of a series that was not there is invisible to rate().
for counter, results in ((PUSHES, PUSH_RESULTS), (FRAMES, ("live", "history")), (ACKNOWLEDGED, ("done", "failed"))):
    for result in results:
        counter.labels(result)

"""Writes the dashboards as Grafana reads them: ``python deploy/grafana/make_dashboards.py``.

Grafana wants each panel with a grid position, an id and the same dozen options; here a panel is a few lines. The JSON is
what counts: it is committed, and tests/deploy evaluates each of its queries on a running system.
"""
# ruff: noqa: E501 - a query is read best in one piece

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "dashboards"
DATASOURCE: Final = {"type": "prometheus", "uid": "prometheus"}
COLUMNS: Final = 24

Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. ``red`` is where the value becomes bad; ``names`` are what numbers mean."""

    title: str
    unit: str
    description: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    red: float | None = None
    orange: float | None = None
    names: dict[int, tuple[str, str]] = field(default_factory=dict)
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: dict[str, str] = field(default_factory=dict)  # name -> the series and label that list its values


def stat(title: str, unit: str, description: str, expr: str, **more: Any) -> Panel:
    return Panel(title, unit, description, [Query(expr)], kind="stat", **{"width": 4, "height": 4, **more})


def quantiles(title: str, description: str, metric: str, matcher: str = "", by: str = "", **more: Any) -> Panel:
    """p50, p95 and p99 of a histogram, in seconds unless told otherwise."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    rate = f"sum by ({labels}) (rate({metric}_bucket{{{matcher}}}[$__rate_interval]))"
    queries = [Query(f"histogram_quantile({q}, {rate})", f"p{q * 100:.0f}{legend}") for q in (0.5, 0.95, 0.99)]
    return Panel(title, more.pop("unit", "s"), description, queries, **more)


def rates(title: str, description: str, selector: str, by: str, **more: Any) -> Panel:
    """A counter per second, by labels."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return Panel(
        title,
        more.pop("unit", "ops"),
        description,
        [Query(f"sum by ({by}) (rate({selector}[$__rate_interval]))", legend)],
        **more,
    )


LAG: Final = "max by (topic, partition) (chat4all_consumer_lag_records"
HTTP: Final = "django_http_requests_latency_seconds_by_view_method"
ANSWERS: Final = "django_http_responses_total_by_status_view_method_total"
BREAKER_NAMES: Final = {0: ("closed", "green"), 1: ("half-open", "orange"), 2: ("open", "red")}
MACHINE: Final = Row(
    "Processes",
    [
        Panel(
            "Memory",
            "bytes",
            "Resident memory of all processes of a service. Growth without more traffic is a leak.",
            [Query("sum by (job) (process_resident_memory_bytes)", "{{job}}")],
        ),
        Panel(
            "CPU",
            "percentunit",
            "Cores in use by a service. A worker that is always at one core per process needs more processes.",
            [Query("sum by (job) (rate(process_cpu_seconds_total[$__rate_interval]))", "{{job}}")],
        ),
        Panel(
            "Processes",
            "short",
            "Living processes of a service over all its replicas; a saw-tooth means that children die.",
            [Query("count by (job) (process_start_time_seconds)", "{{job}}")],
        ),
    ],
)

OVERVIEW: Final = Dashboard(
    "chat4all-overview",
    "System Overview",
    "Is it up, is it keeping up, what is failing: every service on one page.",
    [
        Row(
            "Now",
            [
                stat(
                    "Alerts",
                    "short",
                    "Alerts that fire now; docs/observability.md says what to do for each.",
                    'count(ALERTS{alertstate="firing"}) or vector(0)',
                    orange=1,
                    red=3,
                ),
                stat("Accepted", "ops", "Messages a second that were answered with 202.",
                     "sum(rate(chat4all_messages_accepted_total[$__rate_interval]))"),
                stat("Waiting", "short", "Records that no worker has finished yet, over all topics. 0 at rest.",
                     f"sum({LAG}))", orange=1_000, red=10_000),
                stat("Sockets", "short", "Signed-in sockets that are open on all gateways.",
                     "sum(chat4all_gateway_connections)"),
                stat("Breakers open", "short", "Channel accounts whose platform is given a rest.",
                     "count(max by (channel, account) (chat4all_breaker_state) > 1) or vector(0)", red=1),
                stat("Dead letters", "short", "Records of the last hour that cannot be processed.",
                     "sum(increase(chat4all_dead_letters_total[1h]))", red=1),
            ],
        ),
        Row(
            "Services",
            [
                Panel(
                    "Replicas that answer", "short", "Replicas of each service that Prometheus reaches.",
                    [Query("sum by (job) (up)", "{{job}}")], kind="bargauge", red=-1,
                ),
                Panel(
                    "Messages by stage",
                    "ops",
                    "The path of messages: what goes in must come out. A gap that stays is a stage that does not keep up.",
                    [
                        Query("sum(rate(chat4all_messages_accepted_total[$__rate_interval]))", "accepted"),
                        Query("sum(rate(chat4all_messages_stored_total[$__rate_interval]))", "stored, by recipient"),
                        Query('sum(rate(chat4all_pushes_total{result="sent"}[$__rate_interval]))', "pushed frames"),
                        Query('sum(rate(chat4all_deliveries_total{outcome="sent"}[$__rate_interval]))', "sent to platforms"),
                        Query('sum(rate(chat4all_statuses_applied_total{status="DELIVERED"}[$__rate_interval]))', "delivered"),
                        Query('sum(rate(chat4all_statuses_applied_total{status="READ"}[$__rate_interval]))', "read"),
                    ],
                ),
                quantiles(
                    "From 202 to stored and pushed",
                    "How late messages reach the store and the sockets. Lag and batch time tell where it stays.",
                    "chat4all_message_stored_seconds",
                    red=5,
                ),
                Panel("Lag by topic", "short", "Records between what is committed and the end of the log.",
                      [Query(f"sum by (topic) ({LAG}))", "{{topic}}")], red=10_000),
                Panel(
                    "Share of failed requests", "percentunit",
                    "Answers with 5xx. 503: a part is away and clients come again; 500: a bug.",
                    [Query(f'(sum(rate({ANSWERS}{{status=~"5.."}}[$__rate_interval])) or vector(0))'
                           f" / sum(rate({ANSWERS}[$__rate_interval]))", "5xx")],
                    red=0.01,
                ),
                Panel("Breakers", "short", "The worst state of a channel's accounts.",
                      [Query("max by (channel) (chat4all_breaker_state)", "{{channel}}")], names=BREAKER_NAMES, red=2),
            ],
        ),
        Row(
            "Live",
            [
                Panel("Sockets by gateway", "short", "Open sockets; a step down is a gateway that went.",
                      [Query("sum by (instance) (chat4all_gateway_connections)", "{{instance}}")]),
                rates("Frames to sockets", "Handed to sockets as they happen (live), or from the history after a gap.",
                      "chat4all_gateway_frames_total", "source"),
                Panel(
                    "Repairs",
                    "ops",
                    "Gaps that were filled, sockets told to read over REST, and sockets that read too slowly.",
                    [
                        Query("sum(rate(chat4all_gateway_repairs_total[$__rate_interval]))", "gaps repaired"),
                        Query("sum(rate(chat4all_gateway_resyncs_total[$__rate_interval]))", "resyncs"),
                        Query("sum(rate(chat4all_gateway_outbox_overflows_total[$__rate_interval]))", "too slow"),
                    ],
                ),
            ],
        ),
        MACHINE,
    ],
)  # fmt: skip

API: Final = Dashboard(
    "chat4all-api",
    "API Service",
    "Latency, throughput and errors of the HTTP API, and what it waits for.",
    [
        Row(
            "Now",
            [
                stat("Requests", "reqps", "Requests a second, probes left out.",
                     f'sum(rate({ANSWERS}{{view=~"$view"}}[$__rate_interval]))'),
                stat("p95", "s", "95 % of the requests are faster.",
                     f'histogram_quantile(0.95, sum by (le) (rate({HTTP}_bucket{{view=~"$view"}}[$__rate_interval])))',
                     orange=0.2, red=0.5),
                stat("p99", "s", "99 % of the requests are faster.",
                     f'histogram_quantile(0.99, sum by (le) (rate({HTTP}_bucket{{view=~"$view"}}[$__rate_interval])))',
                     orange=0.5, red=1),
                stat("5xx", "percentunit", "Share of answers that are our fault.",
                     f'(sum(rate({ANSWERS}{{view=~"$view",status=~"5.."}}[$__rate_interval])) or vector(0))'
                     f' / sum(rate({ANSWERS}{{view=~"$view"}}[$__rate_interval]))', orange=0.001, red=0.01),
                stat("Accepted", "short", "Messages accepted in the last hour.",
                     "sum(increase(chat4all_messages_accepted_total[1h]))"),
                stat("Stored bytes", "bytes", "Uploaded in the last hour, from clients and from platforms.",
                     "sum(increase(chat4all_file_upload_bytes_sum[1h]))"),
            ],
        ),
        Row(
            "Requests",
            [
                quantiles("Latency", "Time inside the API, by quantile.", HTTP, 'view=~"$view"', red=0.5),
                rates("Throughput by view", "Requests a second by what was asked for.",
                      f'{ANSWERS}{{view=~"$view"}}', "view", unit="reqps", stacked=True),
                rates("Answers by status", "4xx are the clients' mistakes, 503 a part that is away, 500 our bugs.",
                      f'{ANSWERS}{{view=~"$view"}}', "status", unit="reqps", stacked=True),
                Panel("p95 by view", "s", "Which request is slow.",
                      [Query(f'histogram_quantile(0.95, sum by (le, view) (rate({HTTP}_bucket{{view=~"$view"}}[$__rate_interval])))',
                             "{{view}}")], red=0.5),
                Panel("Latency as a heat map", "s", "Where most requests are, and the tail that averages hide.",
                      [Query(f'sum by (le) (increase({HTTP}_bucket{{view=~"$view"}}[$__rate_interval]))', "{{le}}")],
                      kind="heatmap"),
                Panel("Failed requests", "reqps", "5xx by view; see the log by request id.",
                      [Query(f'sum by (view) (rate({ANSWERS}{{view=~"$view",status=~"5.."}}[$__rate_interval])) or vector(0)',
                             "{{view}}")], red=1),
            ],
        ),
        Row(
            "Messages",
            [
                Panel("Accepted", "ops", "Messages answered with 202: they are on the log.",
                      [Query("sum by (instance) (rate(chat4all_messages_accepted_total[$__rate_interval]))", "{{instance}}")]),
                quantiles("Append to the log", "How long the log takes until a message is durable; the client waits for it.",
                          "chat4all_append_seconds", red=1),
                rates("Webhooks", "What platforms send us, by answer. 401: a wrong secret, 503: the log is away.",
                      f'{ANSWERS}{{view=~".*webhook.*"}}', "status", unit="reqps"),
            ],
        ),
        Row(
            "Files",
            [
                quantiles("Upload size", "Sizes of stored files.", "chat4all_file_upload_bytes", unit="bytes"),
                rates("Uploads", "Stored files a second: by clients (api) and by people on platforms (inbound).",
                      "chat4all_file_upload_bytes_count", "source"),
                Panel("Refused uploads and downloads", "ops",
                      "Uploads refused by code (too large, no room), downloads through our own links by answer.",
                      [
                          Query("sum by (code) (rate(chat4all_file_uploads_refused_total[$__rate_interval])) or vector(0)",
                                "refused {{code}}"),
                          Query("sum by (status) (rate(chat4all_file_downloads_total[$__rate_interval])) or vector(0)",
                                "downloads {{status}}"),
                      ]),
            ],
        ),
        MACHINE,
    ],
    {"view": f"label_values({ANSWERS}, view)"},
)  # fmt: skip

ROUTER: Final = Dashboard(
    "chat4all-router",
    "Router Worker",
    "Bridge and workers: lag, speed, and what is done again.",
    [
        Row(
            "Now",
            [
                stat("Waiting", "short", "Records between committed and the end of the log.",
                     f'sum({LAG}{{topic=~"$topic"}}))', orange=1_000, red=10_000),
                stat("Processed", "ops", "Records a second that came to an end.",
                     'sum(rate(chat4all_records_processed_total{topic=~"$topic",outcome="done"}[$__rate_interval]))'),
                stat("Bridges", "short", "Bridges that answer; the partitions are shared among them.",
                     'sum(up{job="bridge"}) or vector(0)'),
                stat("Partitions owned", "short", "Partitions that a bridge reads. Must be all of them.",
                     'sum(chat4all_partition_owned{topic=~"$topic"})'),
                stat("Taken back", "short", "Batches of the last hour that were dispatched again.",
                     'sum(increase(chat4all_batches_redispatched_total{topic=~"$topic"}[1h]))', orange=1, red=100),
                stat("Dead letters", "short", "Records of the last hour that cannot be processed.",
                     'sum(increase(chat4all_dead_letters_total{topic=~"$topic"}[1h]))', red=1),
            ],
        ),
        Row(
            "Log",
            [
                Panel("Lag by topic", "short", "Whether work keeps up. Seen even while no bridge runs.",
                      [Query(f'sum by (topic) ({LAG}{{topic=~"$topic"}}))', "{{topic}}")], red=10_000),
                Panel("Lag by partition", "short", "One partition that stands still: a record or its owner is stuck.",
                      [Query(f'{LAG}{{topic=~"$topic"}})', "{{topic}}:{{partition}}")]),
                Panel("Partitions by bridge", "short", "How the partitions are shared; it changes when a bridge comes or goes.",
                      [Query('sum by (instance) (chat4all_partition_owned{topic=~"$topic"})', "{{instance}}")], stacked=True),
                rates("Records by topic", "Passes over records that ended well.",
                      'chat4all_records_processed_total{topic=~"$topic",outcome="done"}', "topic"),
                rates("Records by outcome",
                      "done; retry: failed and tried again; paused: a part is away; poison: a dead letter; not_started: out of time.",
                      'chat4all_records_processed_total{topic=~"$topic"}', "outcome"),
                rates("Dead letters", "Records that cannot be processed. Each is kept, and can be replayed.",
                      'chat4all_dead_letters_total{topic=~"$topic"}', "topic", red=0.001),
            ],
        ),
        Row(
            "Work",
            [
                Panel("Processing time of a batch", "s", "How long a worker holds a batch, p95. The deadline is 5 s.",
                      [Query('histogram_quantile(0.95, sum by (le, topic) (rate(chat4all_batch_seconds_bucket{topic=~"$topic"}[$__rate_interval])))',
                             "{{topic}}")], red=5),
                Panel("Records in a batch", "short", "The mean. Near 1 at rest, towards 100 under load: batches grow with the backlog.",
                      [Query('sum by (topic) (rate(chat4all_batch_records_sum{topic=~"$topic"}[$__rate_interval]))'
                             ' / sum by (topic) (rate(chat4all_batch_records_count{topic=~"$topic"}[$__rate_interval]))', "{{topic}}")]),
                rates("Batches taken back",
                      "worker_lost and lapsed: workers die or hang; gone: the bus was flushed; queued and lost_in_queue: nobody took it.",
                      'chat4all_batches_redispatched_total{topic=~"$topic"}', "state"),
                quantiles("From 202 to stored and pushed", "How late messages reach the store and the sockets.",
                          "chat4all_message_stored_seconds", red=5),
                rates("Stored by channel", "Recipients of stored messages; a replay counts again.",
                      "chat4all_messages_stored_total", "channel"),
                rates("Live frames", "duplicate: a replay that changed nothing; lost: the bus was away, clients read the history.",
                      "chat4all_pushes_total", "result"),
            ],
        ),
        MACHINE,
    ],
    {"topic": "label_values(chat4all_records_processed_total, topic)"},
)  # fmt: skip

CONNECTORS: Final = Dashboard(
    "chat4all-connectors",
    "Connectors",
    "Delivery to platforms and what they say back, by channel.",
    [
        Row(
            "Now",
            [
                stat("Sent", "ops", "Messages a second that platforms took.",
                     'sum(rate(chat4all_deliveries_total{channel=~"$channel",outcome="sent"}[$__rate_interval]))'),
                stat("Failed tries", "percentunit", "Of the tries that reached a platform.",
                     '(sum(rate(chat4all_deliveries_total{channel=~"$channel",outcome=~"transient|permanent|ambiguous"}[$__rate_interval])))'
                     ' / sum(rate(chat4all_deliveries_total{channel=~"$channel",outcome=~"sent|transient|permanent|ambiguous"}[$__rate_interval]))',
                     orange=0.05, red=0.2),
                stat("Waiting", "short", "Records of outbound topics that no worker has finished.",
                     f'sum({LAG}{{topic=~"($channel)-outbound"}}))', orange=1_000, red=10_000),
                stat("Breakers open", "short", "Accounts whose platform is given a rest.",
                     'count(max by (channel, account) (chat4all_breaker_state{channel=~"$channel"}) > 1) or vector(0)', red=1),
                stat("Parked", "short", "Records of the last hour that were set aside to be tried later.",
                     'sum(increase(chat4all_records_parked_total{channel=~"$channel"}[1h]))', orange=1, red=100),
                stat("Ambiguous", "short", "Sends of the last hour that may have been delivered twice.",
                     'sum(increase(chat4all_deliveries_ambiguous_total{channel=~"$channel"}[1h]))', orange=1, red=10),
            ],
        ),
        Row(
            "Circuit breakers",
            [
                Panel("Breaker by account", "short", "Open: the platform failed 5 times in a row or too often; after 30 s one try goes.",
                      [Query('max by (channel, account) (chat4all_breaker_state{channel=~"$channel"})', "{{channel}}:{{account}}")],
                      kind="state-timeline", width=24, height=6, names=BREAKER_NAMES),
            ],
        ),
        Row(
            "Delivery",
            [
                rates("Tries by outcome",
                      "sent; transient: surely not delivered; ambiguous: perhaps; permanent: refused by the platform; "
                      "paused: held back by the breaker or the account; refused: by us, for age or a missing account.",
                      'chat4all_deliveries_total{channel=~"$channel"}', "channel, outcome", width=12),
                quantiles("Time of a call", "How long the platform takes for one send, an upload included.",
                          "chat4all_delivery_seconds", 'channel=~"$channel"', "channel", width=12, red=5),
                rates("Statuses", "What became of messages, by recipient. Instagram reports no delivery.",
                      'chat4all_statuses_applied_total{channel=~"$channel"}', "channel, status"),
                Panel("Parked and resumed", "ops", "Records set aside after 30 s of failing, and those that came to an end.",
                      [
                          Query('sum by (channel) (rate(chat4all_records_parked_total{channel=~"$channel"}[$__rate_interval]))', "parked {{channel}}"),
                          Query('sum by (channel) (rate(chat4all_records_resumed_total{channel=~"$channel"}[$__rate_interval]))', "resumed {{channel}}"),
                      ]),
                Panel("Outbound lag", "short", "Records that wait for a channel's workers.",
                      [Query(f'sum by (topic) ({LAG}{{topic=~"($channel)-outbound"}}))', "{{topic}}")], red=10_000),
            ],
        ),
        Row(
            "Inbound",
            [
                rates("From platforms", "Items of webhooks by what they were: texts, statuses, duplicates, news of unknown messages.",
                      'chat4all_inbound_events_total{channel=~"$channel"}', "channel, kind", width=12),
                Panel("Inbound lag", "short", "Records that wait to be understood: what people wrote, and receipts, those of a webhook as one.",
                      [Query(f'sum({LAG}{{topic="inbound"}}))', "inbound")], width=12, red=10_000),
            ],
        ),
        MACHINE,
    ],
    {"channel": 'label_values(chat4all_deliveries_total{channel!="users"}, channel)'},
)  # fmt: skip

DASHBOARDS: Final = (OVERVIEW, API, ROUTER, CONNECTORS)


def rendered(dashboard: Dashboard) -> Json:
    """As Grafana's dashboard model has it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["chat4all"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_variable(name, query) for name, query in dashboard.variables.items()]},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "Chat4All", "tags": ["chat4all"], "asDropdown": False, "keepTime": True}
        ],
        "panels": [{**panel, "id": number} for number, panel in enumerate(_placed(dashboard.rows), start=1)],
    }


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    """Every panel where it goes: from the left to the right, then below the highest of the line."""
    y = 0
    for row in rows:
        yield {"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": _grid(0, y, COLUMNS, 1)}
        x, y, line = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            yield {**_panel(panel), "gridPos": _grid(x, y, panel.width, panel.height)}
            x, line = x + panel.width, max(line, panel.height)
        y += line


def _grid(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [_target(number, query, panel) for number, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(number: int, query: Query, panel: Panel) -> Json:
    now_only = panel.kind in ("stat", "bargauge")
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "range": not now_only,
        "instant": now_only,
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
    }


def _defaults(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    steps += [
        {"color": color, "value": value}
        for color, value in (("orange", panel.orange), ("red", panel.red))
        if value is not None and value >= 0
    ]
    if panel.kind == "bargauge":  # nobody there is what is bad
        steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
    defaults: Json = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if panel.kind in ("stat", "bargauge") else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": _mappings(panel),
    }
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 10,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.red is None else "dashed"},
        }
    return defaults


def _mappings(panel: Panel) -> list[Json]:
    if not panel.names:
        return []
    options = {
        str(value): {"text": text, "color": color, "index": value} for value, (text, color) in panel.names.items()
    }
    return [{"type": "value", "options": options}]


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat" | "bargauge":
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value"}
        case "heatmap":
            return {"calculate": False, "yAxis": {"unit": panel.unit}, "cellGap": 1}
        case "state-timeline":
            return {"mergeValues": True, "showValue": "auto", "legend": {"displayMode": "list", "placement": "bottom"}}
        case _:
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


def text(dashboard: Dashboard) -> str:
    return json.dumps(rendered(dashboard), indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in DASHBOARDS:
        (FOLDER / f"{each.uid}.json").write_text(text(each))

"""The four Grafana dashboards: run this file, and it writes grafana/dashboards/*.json.

A panel is a title, a unit and one or more queries. Places, ids and colours follow from the order.
"""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # columns of Grafana's grid
ON_OFF = [
    {
        "type": "value",
        "options": {"0": {"text": "no", "color": "green"}, "1": {"text": "yes", "color": "red"}},
    }
]


def panel(title, unit, *queries, kind="timeseries", width=8, height=7, text="", limits=(), **more):
    "One panel; a query is an expression, or an expression with the legend of its series."
    pairs = [(query, "") if isinstance(query, str) else query for query in queries]
    targets = [
        {"refId": "ABCDEFGH"[i], "datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto"}
        for i, (expr, legend) in enumerate(pairs)
    ]
    steps = [{"color": "green", "value": None}, *({"color": colour, "value": at} for at, colour in limits)]
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}, "mappings": []} | more
    if kind == "timeseries":
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": False}
        if limits:
            defaults["custom"]["thresholdsStyle"] = {"mode": "line"}
    options = {
        "timeseries": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "textMode": "auto",
        },
        "table": {"showHeader": True},
    }[kind]
    if kind == "table":
        targets = [target | {"instant": True, "format": "table"} for target in targets]
    fields = {"defaults": defaults, "overrides": []}
    return {
        "title": title,
        "type": kind,
        "description": text,
        "datasource": SOURCE,
        "fieldConfig": fields,
    } | {
        "options": options,
        "targets": targets,
        "gridPos": {"w": width, "h": height, "x": 0, "y": 0},
    }


def stat(title, unit, *queries, width=4, height=4, **more):
    "One number."
    return panel(title, unit, *queries, kind="stat", width=width, height=height, **more)


def live_score(title, unit, score, **more):
    "A score of the published forecasts with the ends of its interval."
    metric = "stockpredict_live_score"
    queries = [(f'{metric}{end}{{score="{score}"}}', f"{name}, {HORIZON}") for end, name in ENDS]
    return panel(title, unit, *queries, width=12, **more)


def placed(panels):
    "The panels in rows from left to right, each with its id."
    x = y = tallest = 0
    for number, one in enumerate(panels, 1):
        place = one["gridPos"]
        if x + place["w"] > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        place["x"], place["y"] = x, y
        x, tallest = x + place["w"], max(tallest, place["h"])
        one["id"] = number
    return panels


def dashboard(uid, title, text, panels, since="now-6h"):
    "A dashboard that can be imported as it is."
    choose = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    link = {"type": "dashboards", "tags": ["stockpredict"], "asDropdown": True, "title": "Other dashboards"}
    return {
        "uid": f"stockpredict-{uid}",
        "title": f"stockpredict: {title}",
        "description": text,
        "tags": ["stockpredict"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": since, "to": "now"},
        "timezone": "utc",
        "templating": {"list": [choose]},
        "links": [link],
        "annotations": {"list": []},
        "panels": placed(panels),
    }


CLASS, PROCESS, HORIZON, HEAD = "{{status_class}}", "{{process}}", "{{horizon}} sessions", "{{head}}"
ROUTES = 'sum by (route) (rate(stockpredict_request_seconds_count{route!~"/health.*|/metrics"}[5m]))'
BATCH = "stockpredict_whatif_batch_size"
ENDS = (("", "mean"), ("_low", "low"), ("_high", "high"))
FAILED = "stockpredict:failed_ratio:rate"
SLOW = "stockpredict:slow_ratio:rate"

SERVICE = [
    stat("Up", "none", 'up{job="stockpredict"}', text="1 while Prometheus can read the service."),
    stat("Requests a second", "reqps", "stockpredict:requests:rate5m"),
    stat("Failed, last hour", "percentunit", f"{FAILED}1h", limits=[(0.001, "red")]),
    stat("Slow, last hour", "percentunit", f"{SLOW}1h", text="Longer than 100 ms.", limits=[(0.01, "red")]),
    stat("Stored answers", "short", "stockpredict_table_rows"),
    stat("Parts in trouble", "short", "sum(stockpredict_part_trouble)", limits=[(1, "red")]),
    panel("Answers by class", "reqps", ("stockpredict:responses_by_class:rate5m", CLASS)),
    panel("Requests by route", "reqps", (f"topk(8, {ROUTES})", "{{route}}")),
    panel(
        "Latency of forecasts",
        "s",
        ("stockpredict:latency_p50:rate5m", "50 %"),
        ("stockpredict:latency_p99:rate5m", "99 %"),
        limits=[(0.1, "red")],
        text="Stored forecasts and what-ifs. The objective: 99 % below 100 ms.",
    ),
    panel(
        "Budget of availability, times too fast",
        "short",
        *((f"{FAILED}{window} / 0.001", window) for window in ("1h", "6h", "3d")),
        limits=[(1, "orange"), (14.4, "red")],
        text="At 1 the failures of a month are just as many as the objective of 99.9 % allows.",
    ),
    panel(
        "Budget of latency, times too fast",
        "short",
        *((f"{SLOW}{window} / 0.01", window) for window in ("1h", "6h", "3d")),
        limits=[(1, "orange"), (14.4, "red")],
    ),
    panel("Refusals by code", "reqps", ("sum by (code) (rate(stockpredict_refusals_total[5m]))", "{{code}}")),
    panel("Engine busy", "percentunit", ("stockpredict:engine_busy:rate5m", "share of the time"), max=1),
    panel(
        "Room that is taken",
        "percentunit",
        ("stockpredict:whatif_queue:ratio", "queue of what-ifs"),
        ("stockpredict:connections:ratio", "connections"),
        max=1,
    ),
    panel(
        "Open",
        "short",
        ("stockpredict_connections", "connections"),
        ("stockpredict_requests_under_way", "requests"),
        ("stockpredict_update_streams", "streams"),
    ),
    panel(
        "What-ifs in one batch",
        "short",
        (
            f"sum(rate({BATCH}_sum[5m])) / sum(rate({BATCH}_count[5m]))",
            "mean",
        ),
    ),
    panel("Found in the caches", "percentunit", ("stockpredict:cache_hit_ratio:rate5m", "{{cache}}"), max=1),
    panel(
        "Work beside the requests",
        "percentunit",
        ("sum by (part) (rate(stockpredict_background_seconds_total[5m]))", "{{part}}"),
    ),
    panel("Processor", "percentunit", ("stockpredict:cpu:rate5m", PROCESS), text="1 is one core."),
    panel("Memory", "bytes", ("stockpredict_process_resident_bytes", PROCESS)),
    panel(
        "Audit log and Redis",
        "short",
        ("stockpredict_audit_waiting_reads", "reads that wait"),
        ("increase(stockpredict_audit_lost_reads_total[1h])", "reads lost in an hour"),
        ("increase(stockpredict_redis_failures_total[1h])", "Redis failures in an hour"),
    ),
    panel("State of each part", "none", "stockpredict_part_trouble", kind="table", width=12, mappings=ON_OFF),
    panel(
        "Starts of processes",
        "short",
        ("increase(stockpredict_process_starts_total[30m])", PROCESS),
        width=12,
        text="In 30 minutes.",
    ),
]

MODEL = [
    stat("Version", "none", "stockpredict_model_version"),
    stat("Sessions since the decision", "short", "stockpredict_table_age_sessions"),
    stat("Stale", "none", "stockpredict_table_stale", mappings=ON_OFF),
    stat("Newer model refused", "none", "stockpredict_stale_model", mappings=ON_OFF),
    stat(
        "Figures are old by", "s", "time() - stockpredict_measured_timestamp_seconds", limits=[(120, "red")]
    ),
    stat("Experiments", "short", "stockpredict_experiments_running"),
    panel("The model that answers", "none", "stockpredict_model_info", kind="table", width=12),
    panel(
        "Evidence by head",
        "none",
        ("stockpredict_head_evidence", HEAD),
        width=6,
        min=0,
        max=2,
        text="0 none, 1 weak, 2 strong.",
    ),
    panel("Decision of the gate", "none", "stockpredict_head_decision == 1", kind="table", width=6),
    panel("Events of the registry", "short", ("stockpredict_model_changes_total", "{{event}}"), width=12),
    panel("Jobs", "short", ("sum by (kind, state) (stockpredict_jobs)", "{{kind}} {{state}}"), width=6),
    panel("Share of the canary", "percentunit", "stockpredict_canary_share", width=6, max=1),
    live_score(
        "Live rank IC and its error bar",
        "short",
        "rank_ic",
        text="The interval holds at every look: zero outside of it is evidence.",
    ),
    live_score("Right signs beyond the majority call", "percentunit", "hit_surplus"),
    live_score("Outcomes inside the 90 % interval", "percentunit", "inside_90", limits=[(0.9, "blue")]),
    panel(
        "Coverage by interval",
        "percentunit",
        ('stockpredict_live_score{score=~"inside_.*"}', "{{score}}, " + HORIZON),
        ("stockpredict_interval_coverage", f"last 60 sessions, {HORIZON}"),
        width=12,
    ),
    panel(
        "Sessions behind the scores",
        "short",
        ('stockpredict_live_score_sessions{score="rank_ic"}', HORIZON),
        ("stockpredict_interval_sessions", f"coverage, {HORIZON}"),
        width=8,
    ),
    panel("Figures that cannot be read", "none", ("stockpredict_figures_failed", "{{figures}}"), width=12),
    panel("Challengers removed by a guardrail", "short", "stockpredict_experiments_rolled_back", width=12),
]

DATA = [
    stat("Age of what is served", "s", 'stockpredict_data_age_seconds{place="answers"}', width=6),
    stat("Sessions since the decision", "short", "stockpredict_table_age_sessions", width=6),
    stat("Retraining asked for since", "s", "stockpredict_retraining_wanted_age_seconds", width=6),
    stat("Prefect answers", "none", 'up{job="prefect"}', width=6),
    stat("Drift alarm", "none", "stockpredict_drift_alarm", width=6, mappings=ON_OFF),
    stat("Measures beyond the limit", "short", "stockpredict_drift_unusual_measures", width=6),
    stat("Sessions since the training", "short", "stockpredict_drift_sessions_since_training", width=6),
    stat("Alerts that wait", "short", "stockpredict_alerts_waiting", width=6),
    panel(
        "Outbox of the alerts",
        "s",
        ("stockpredict_alerts_waiting_oldest_seconds", "oldest that waits"),
        width=12,
    ),
    panel("Failures in a row of the worst channel", "short", "stockpredict_alert_channel_failures", width=12),
    panel("Age of the newest data by place", "s", ("stockpredict_data_age_seconds", "{{place}}"), width=12),
    panel(
        "Newest data by place",
        "dateTimeAsIso",
        ("stockpredict_data_timestamp_seconds * 1000", "{{place}}"),
        width=12,
    ),
]

USED = '1 - node_filesystem_avail_bytes{fstype!~"tmpfs|squashfs|ramfs"} / node_filesystem_size_bytes'
MACHINE = [
    stat("Cores", "short", 'count(node_cpu_seconds_total{mode="idle"})', width=6),
    stat("Memory", "bytes", "node_memory_MemTotal_bytes", width=6),
    stat("Running since", "s", "time() - node_boot_time_seconds", width=6),
    stat("Clock is off by at most", "s", "node_timex_maxerror_seconds", width=6),
    panel(
        "Processor",
        "percentunit",
        ('sum by (mode) (rate(node_cpu_seconds_total{mode!="idle"}[5m]))', "{{mode}}"),
        text="1 is one core.",
    ),
    panel("Load", "short", ("node_load1", "1 minute"), ("node_load5", "5 minutes")),
    panel("Memory that is available", "bytes", "node_memory_MemAvailable_bytes"),
    panel("Disks, used", "percentunit", (USED, "{{mountpoint}}"), max=1, limits=[(0.95, "red")]),
    panel(
        "Reading and writing",
        "Bps",
        ("sum(rate(node_disk_read_bytes_total[5m]))", "read"),
        ("sum(rate(node_disk_written_bytes_total[5m]))", "written"),
    ),
    panel(
        "Network",
        "Bps",
        ("sum(rate(node_network_receive_bytes_total[5m]))", "received"),
        ("sum(rate(node_network_transmit_bytes_total[5m]))", "sent"),
    ),
    panel("What the scrapes cost", "s", ("scrape_duration_seconds", "{{job}}"), width=12),
    panel("Series of each scrape", "short", ("scrape_samples_scraped", "{{job}}"), width=12),
]

DASHBOARDS = {
    "service": ("service", "Requests, failures, latency and room.", SERVICE, "now-6h"),
    "model": ("model and business", "Which model answers, and how far to believe it.", MODEL, "now-30d"),
    "data": ("data", "How old the data is, in every place.", DATA, "now-7d"),
    "machine": ("machine", "Processor, memory, disks and network.", MACHINE, "now-6h"),
}


def texts():
    "The text of each file."
    return {
        f"{uid}.json": json.dumps(dashboard(uid, title, text, panels, since), indent=1) + "\n"
        for uid, (title, text, panels, since) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
        print(f"{FOLDER / name}: {text.count(chr(34) + 'refId')} queries")

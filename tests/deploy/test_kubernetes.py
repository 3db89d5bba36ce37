"""The manifests of `deploy/kubernetes`: overlays render, fit the published schemas, and keep the rules."""

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from nginx_edge import nginx_program
from program_words import is_read, parse

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("dev", "staging", "production")
OURS = ("stockpredict-reader", "stockpredict-engine", "stockpredict-worker")


@functools.cache
def rendered(overlay) -> list:
    "Every object of an overlay."
    if not shutil.which("kubectl"):
        why = "kubectl is not installed"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "overlays" / overlay)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=OVERLAYS)
def objects(request):
    return rendered(request.param)


def of_kind(objects, *kinds) -> dict:
    return {o["metadata"]["name"]: o for o in objects if o["kind"] in kinds}


def templates(objects) -> dict:
    "The pods of every workload: name -> (labels, specification)."
    templates_by_name = of_kind(objects, "Deployment", "StatefulSet", "CronJob")
    for name, workload in templates_by_name.items():
        spec = workload["spec"].get("jobTemplate", workload)["spec"]
        templates_by_name[name] = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    return templates_by_name


def containers(objects):
    "Every container with the name of its workload and its pod."
    for name, (_, pod) in templates(objects).items():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield name, pod, container


def image_name(container) -> str:
    return container["image"].rpartition("/")[2].partition(":")[0]


# ------------------------------------------------------------------ schemas and names


@pytest.mark.parametrize("overlay, version", [*((name, "1.37") for name in OVERLAYS), ("production", "1.28")])
def test_the_overlays_fit_the_published_schemas(overlay, version):
    "What is the same in the overlay before is not looked at twice."
    before = OVERLAYS[max(0, OVERLAYS.index(overlay) - 1)] if version == "1.37" else overlay
    seen = [without_space(one) for one in rendered(before)] if before != overlay else []
    for one in rendered(overlay):
        if without_space(one) not in seen:
            kubernetes_validate.validate(one, version, strict=True)


def without_space(one) -> dict:
    return one | {"metadata": {k: v for k, v in one["metadata"].items() if k != "namespace"}}


def test_every_name_that_is_used_is_there(objects):
    "Claims and ConfigMaps of pods; what the operator brings is listed in README.md."
    claims, maps = of_kind(objects, "PersistentVolumeClaim"), of_kind(objects, "ConfigMap")
    listed = (ROOT / "README.md").read_text()
    for name, (_, pod) in templates(objects).items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        outside = {v["secret"]["secretName"] for v in volumes.values() if "secret" in v}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                outside.add(volume["configMap"]["name"])
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            own = {
                v["metadata"]["name"]
                for v in of_kind(objects, "StatefulSet")
                .get(name, {})
                .get("spec", {})
                .get("volumeClaimTemplates", [])
            }
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes) | own
            sources = [
                e["valueFrom"]["secretKeyRef"]["name"] for e in container.get("env", []) if "valueFrom" in e
            ]
            outside |= set(sources)
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in maps
                else:
                    outside.add(source["secretRef"]["name"])
        assert {each for each in outside if f"`{each}`" not in listed} == set()


def test_selectors_and_targets_find_their_pods(objects):
    pods = {name: labels for name, (labels, _) in templates(objects).items()}

    def chosen(selector):
        return {name for name, labels in pods.items() if selector.items() <= labels.items()}

    for name, workload in of_kind(objects, "Deployment", "StatefulSet").items():
        assert chosen(workload["spec"]["selector"]["matchLabels"]) == {name}
    for name, service in of_kind(objects, "Service").items():
        assert chosen(service["spec"]["selector"]) == {name}
        ports = {p["name"] for c in templates(objects)[name][1]["containers"] for p in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for name, budget in of_kind(objects, "PodDisruptionBudget").items():
        assert chosen(budget["spec"]["selector"]["matchLabels"]) == {name}
    for spread, name in (
        (s, n) for n, (_, p) in templates(objects).items() for s in p.get("topologySpreadConstraints", [])
    ):
        assert chosen(spread["labelSelector"]["matchLabels"]) == {name}
    for scaler in (o for o in objects if o["kind"] == "HorizontalPodAutoscaler"):
        target = of_kind(objects, "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"]  # two of them would count against each other
        assert all(
            c["resources"]["requests"]["cpu"] for c in target["spec"]["template"]["spec"]["containers"]
        )


def test_the_autoscaler_keeps_what_is_promised():
    for overlay, low, high in (("dev", 2, 4), ("staging", 3, 20), ("production", 3, 20)):
        spec = next(o for o in rendered(overlay) if o["kind"] == "HorizontalPodAutoscaler")["spec"]
        assert (spec["minReplicas"], spec["maxReplicas"]) == (low, high)
        metric = spec["metrics"][0]["resource"]
        assert (metric["name"], metric["target"]["averageUtilization"]) == ("cpu", 70)
        windows = [spec["behavior"][way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown")]
        assert windows == [120, 600]


# ------------------------------------------------------------------ what a container may do


def test_every_container_is_limited_pinned_and_locked_down(objects):
    for name, pod, container in containers(objects):
        assert set(container["resources"]) == {"requests", "limits"}
        for kind in ("requests", "limits"):
            assert set(container["resources"][kind]) == {"cpu", "memory"}
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        assert re.fullmatch(r"\d+\.[\w.-]+|\d+-\w+", tag), f"{name}: {container['image']}"
        inside = container["securityContext"]
        assert inside["readOnlyRootFilesystem"] and not inside["allowPrivilegeEscalation"]
        assert inside["capabilities"] == {"drop": ["ALL"]}
        outside = pod["securityContext"]
        assert outside["runAsNonRoot"] and outside["runAsUser"] >= 900
        assert outside["seccompProfile"] == {"type": "RuntimeDefault"}
        # any other policy gives private files to the group, and the platform refuses such files
        assert outside["fsGroupChangePolicy"] == "OnRootMismatch"
        assert pod["automountServiceAccountToken"] is False and pod["serviceAccountName"] == "stockpredict"
        assert (
            pod["enableServiceLinks"] is False
        )  # they would be variables STOCKPREDICT_…, which are settings
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all(
            set(volume) & {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
            for volume in pod["volumes"]
        )
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    account = of_kind(objects, "ServiceAccount")["stockpredict"]
    assert account["automountServiceAccountToken"] is False
    space = next(iter(of_kind(objects, "Namespace").values()))["metadata"]
    assert space["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = {o["metadata"]["namespace"] for o in objects if o["kind"] != "Namespace"}
    assert others == {space["name"]}
    assert not of_kind(objects, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


def test_secrets_stand_nowhere_and_are_named(objects):
    assert not of_kind(objects, "Secret")
    for _, _, container in containers(objects):
        for variable in container.get("env", []):
            secret = re.search("PASSWORD|SECRET|KEY|TOKEN|URL$|URI$|CATALOG", variable["name"])
            assert ("valueFrom" in variable) == bool(secret), variable
    for text in (json.dumps(o["data"]) for o in of_kind(objects, "ConfigMap").values()):
        assert not re.search(r"(?i)password|secret|://[^/\s\"]*:[^/\s\"]*@|BEGIN [A-Z ]*PRIVATE", text)


def test_readers_get_the_public_key_alone(objects):
    _, pod = templates(objects)["reader"]
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"]
        for v in pod["volumes"]
        if "persistentVolumeClaim" in v
    }
    assert claims == {"shared": "shared"}
    mounts = {m["mountPath"]: m for m in pod["containers"][0]["volumeMounts"]}
    home = "/var/lib/stockpredict"
    assert mounts[f"{home}/access"]["readOnly"] and mounts[f"{home}/keys/signing.pub"]["readOnly"]
    assert {m.get("subPath") for m in mounts.values() if m["name"] == "shared"} == {
        "access",
        "audit",
        "keys-audit",
    }
    names = {e["name"] for e in pod["containers"][0]["env"]}
    assert names == {"STOCKPREDICT_SERVING__REDIS_URL"}


# ------------------------------------------------------------------ starting, stopping, updating


def test_probes_ask_what_the_service_answers(objects):
    from stockpredict.access.permissions import OPEN, TABLE

    for name in ("reader", "engine"):
        container = templates(objects)[name][1]["containers"][0]
        paths = [
            container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
        ]
        assert paths == ["/health/live", "/health/live", "/health/ready"]
        assert {TABLE["GET", path] for path in paths} == {OPEN}
    for name in of_kind(objects, "Deployment", "StatefulSet"):
        container = templates(objects)[name][1]["containers"][0]
        wanted = (
            {"readinessProbe"} if name == "worker" else {"startupProbe", "livenessProbe", "readinessProbe"}
        )
        assert {key for key in container if key.endswith("Probe")} == wanted


def test_a_pod_has_the_time_that_its_drain_takes(objects):
    from stockpredict.core.settings import load_settings

    drain = load_settings(None, environ={}).serving.drain_seconds
    for name, rounds in (("reader", 1), ("engine", 2)):  # readers first, then the engine behind them
        pod = templates(objects)[name][1]
        pause = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pod["terminationGracePeriodSeconds"] >= pause + rounds * (drain + 5)
    strategy = of_kind(objects, "Deployment")["reader"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 2, "maxUnavailable": 0}
    assert {"reader", "edge"} <= set(of_kind(objects, "PodDisruptionBudget"))


def test_what_writes_to_the_home_folder_runs_on_one_machine(objects):
    modes = {n: c["spec"]["accessModes"] for n, c in of_kind(objects, "PersistentVolumeClaim").items()}
    assert modes == {"home": ["ReadWriteOnce"], "shared": ["ReadWriteMany"]}
    for labels, pod in templates(objects).values():
        uses = any(v.get("persistentVolumeClaim", {}).get("claimName") == "home" for v in pod["volumes"])
        assert uses == ("stockpredict/home" in labels)
        if uses:
            rules = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            assert rules[0]["topologyKey"] == "kubernetes.io/hostname"
            assert rules[0]["labelSelector"]["matchLabels"].items() <= labels.items()


# ------------------------------------------------------------------ what the programs are told


def environment(objects, container) -> dict:
    "The variables of a container; what a secret holds is a stand-in of the right shape."
    maps, values = of_kind(objects, "ConfigMap"), {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            values |= maps[source["configMapRef"]["name"]]["data"]
    shapes = {"catalog": "postgres:host=postgres dbname=lake", "url": "redis://:x@redis:6379/0"}
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef", {})
        values[variable["name"]] = variable.get("value", shapes.get(reference.get("key"), "x"))
    return values


def settings_of(objects, container):
    from stockpredict.core.settings import load_settings

    return load_settings(ROOT / "base" / "settings.ini", environ=environment(objects, container))


def test_every_variable_is_a_setting_or_one_its_program_reads(objects):
    "Unknown names of ours are refused by the settings; those of others have to stand in their sources."
    for _, _, container in containers(objects):
        if image_name(container) not in OURS:
            continue
        variables = environment(objects, container)
        if container["args"][0] == "stockpredict":
            settings = settings_of(objects, container)
            assert variables["STOCKPREDICT_SETTINGS"] == "/etc/stockpredict/settings.ini"
            assert settings.access.required == "always" and settings.serving.host == "0.0.0.0"
        for name in variables:
            assert name.startswith("STOCKPREDICT_") or is_read(name), name


def test_every_command_and_option_exists():
    seen = {}
    for overlay in OVERLAYS:
        for _, _, container in containers(rendered(overlay)):
            if image_name(container) in OURS:
                seen[tuple(container["args"])] = None
    assert {words[0] for words in seen} == {"stockpredict", "prefect", "mlflow"}
    for words in seen:
        parse(words)  # by the program itself, values included


def test_ports_and_folders_are_those_of_the_settings(objects):
    for name in ("reader", "engine"):
        container = templates(objects)[name][1]["containers"][0]
        settings = settings_of(objects, container)
        assert [port["containerPort"] for port in container["ports"]] == [settings.serving.port]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(settings.storage.home_dir) in mounts and str(settings.storage.keys_dir / "audit") in mounts
        assert str(settings.storage.reports_dir).startswith(str(settings.storage.home_dir))
        service = of_kind(objects, "Service")[name]["spec"]["ports"][0]
        assert service["port"] == settings.serving.port
        assert settings.storage.mlflow_uri == "http://mlflow:5000"


# ------------------------------------------------------------------ what may talk to what


def matches(selector, labels) -> bool:
    return (selector or {}).get("matchLabels", {}).items() <= labels.items()


def allowed(policies, way, peers, labels, other, port) -> bool:
    "Does a policy of these labels let a connection with the other labels through, in one direction?"
    for policy in policies:
        if way not in policy["spec"]["policyTypes"] or not matches(policy["spec"]["podSelector"], labels):
            continue
        for rule in policy["spec"].get(way.lower(), []):
            named = any(
                "podSelector" in p and "namespaceSelector" not in p and matches(p["podSelector"], other)
                for p in rule.get(peers, [])
            )
            if named and port in [p["port"] for p in rule["ports"]]:
                return True
    return False


def needed(objects) -> set:
    "The connections inside of the namespace that commands, variables and the edge ask for."
    needed, pods = set(), templates(objects)
    for name, _, container in containers(objects):
        variables = {v["name"] for v in container.get("env", [])}
        if any(variable.endswith("REDIS_URL") for variable in variables):
            needed.add((name, "redis", 6379))
        if any(re.search("CATALOG|DATABASE_CONNECTION|BACKEND_STORE", variable) for variable in variables):
            needed.add((name, "postgres", 5432))
        if name in ("engine", "worker"):
            for url in (
                environment(objects, container)["PREFECT_API_URL"],
                settings_of(objects, container).storage.mlflow_uri,
            ):
                needed.add((name, urlsplit(url).hostname, urlsplit(url).port))
    upstream = next(
        o["data"]["stockpredict-upstream.conf"]
        for o in of_kind(objects, "ConfigMap").values()
        if "nginx.conf" in o["data"]
    )
    needed |= {("edge", host, int(port)) for host, port in re.findall(r"server (\w+):(\d+)", upstream)}
    return {one for one in needed if one[1] in pods}


def test_the_network_lets_through_what_is_needed_and_nothing_else(objects):
    policies = list(of_kind(objects, "NetworkPolicy").values())
    pods = {name: labels for name, (labels, _) in templates(objects).items()}
    ports = {
        port
        for p in policies
        for way in ("ingress", "egress")
        for rule in p["spec"].get(way, [])
        for port in (x["port"] for x in rule["ports"])
    }
    nothing = of_kind(objects, "NetworkPolicy")["nothing"]["spec"]
    assert (
        nothing["policyTypes"] == ["Ingress", "Egress"]
        and not nothing.get("ingress")
        and not nothing.get("egress")
    )
    assert all(matches(nothing["podSelector"], labels) for labels in pods.values())
    both = set()
    for a in pods:
        for b in pods:
            for port in ports:
                out = allowed(policies, "Egress", "to", pods[a], pods[b], port)
                into = allowed(policies, "Ingress", "from", pods[b], pods[a], port)
                assert out == into, f"{a} to {b}:{port} is allowed from one end only"
                both |= {(a, b, port)} if out else set()
    assert both == needed(objects)


def outward(objects, name) -> set:
    "The ports that a workload may reach outside of the namespace."
    labels, ports = templates(objects)[name][0], set()
    for policy in of_kind(objects, "NetworkPolicy").values():
        if matches(policy["spec"]["podSelector"], labels):
            for rule in policy["spec"].get("egress", []):
                outside = [p for p in rule["to"] if "ipBlock" in p or "namespaceSelector" in p]
                ports |= {port["port"] for port in rule["ports"]} if outside else set()
    return ports


def test_the_way_out_is_open_for_those_that_need_it(objects):
    managed = "redis" not in templates(objects)
    traced = any("STOCKPREDICT_TRACES__ENDPOINT" in o["data"] for o in of_kind(objects, "ConfigMap").values())
    databases = {"reader": {6379}, "engine": {5432, 6379}, "worker": {5432, 6379}, "backup": {5432}}
    databases |= {"prefect": {5432}, "mlflow": {5432}}
    services = {"engine": {443, 587}, "worker": {443, 587}, "backup": {443}, "mlflow": {443}}
    for name in templates(objects):
        wanted = {53} | services.get(name, set()) | (databases.get(name, set()) if managed else set())
        wanted |= {4318} if traced and name in ("reader", "engine", "worker") else set()
        assert outward(objects, name) == wanted, name
    for policy in of_kind(objects, "NetworkPolicy").values():  # never the metadata of a cloud
        for rule in policy["spec"].get("egress", []):
            blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
            assert all(b["cidr"] != "0.0.0.0/0" or b["except"] == ["169.254.0.0/16"] for b in blocks)


# ------------------------------------------------------------------ the edge


def test_nginx_accepts_the_configuration_of_the_edge(objects, tmp_path):
    "As it is mounted, with the names of services and the paths of this machine."
    from nginx_edge import self_made_certificate

    if not nginx_program():
        why = "nginx is not installed; run .ci/services"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    pod = templates(objects)["edge"][1]
    data = next(o["data"] for o in of_kind(objects, "ConfigMap").values() if "nginx.conf" in o["data"])
    assert pod["containers"][0]["command"] == ["nginx", "-c", "/etc/nginx/edge/nginx.conf"]
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {"/etc/nginx/edge", "/etc/ssl/forecasts.example"} <= mounts
    cert, key = self_made_certificate(tmp_path)
    assert {item["path"] for v in pod["volumes"] for item in v.get("secret", {}).get("items", [])} == {
        cert.name,
        key.name,
    }
    for name, text in data.items():
        for old, new in (
            ("/etc/nginx/edge", tmp_path),
            ("/etc/ssl/forecasts.example", tmp_path),
            ("/tmp/", f"{tmp_path}/"),
        ):
            text = text.replace(old, str(new))
        text = re.sub(r"server (reader|engine):", "server 127.0.0.1:", text)
        text = re.sub(r"keepalive_min_timeout[^\n]*", "", text)  # newer than the nginx of some machines
        (tmp_path / name).write_text(text)
    command = [nginx_program(), "-t", "-q", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run([*command, "-e", str(tmp_path / "log")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ports = {p["containerPort"] for p in pod["containers"][0]["ports"]}
    assert ports == set(map(int, re.findall(r"listen (\d+)", data["stockpredict.conf"])))
    assert pod["securityContext"]["sysctls"] == [
        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
    ]

"""Models and reports over HTTP: what is listed, who decides, and what the gate does not let through."""

import asyncio
import json
import shutil

import pytest
import small_study
from stockpredict.access.permissions import ROLES, Caller
from stockpredict.core.errors import RequestInvalid, ServeError
from stockpredict.predict.experiments import start_experiment
from stockpredict.serve.model_routes import ARTIFACT_SEAL, ask_process, refuse_challenger, signature_state
from stockpredict.serve.training import store_settings
from stockpredict.train.champion import current_champion, read_events
from stockpredict.train.gate import decide
from stockpredict.train.head_gates import head_verdict
from stockpredict.train.registry import publish_model, rollback

WHY = {"why": "asked for by the desk"}


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    "A registry with the baseline and a version whose volatility the gate has promoted."
    home = tmp_path_factory.mktemp("models") / "home"
    _, study = small_study.copy_of(trained, home)
    settings = small_study.settings_at(home, **{"storage.mlflow_uri": "http://127.0.0.1:9"})
    publish_model(settings, study, decide(study))
    v = decide(study)
    numbers = dict(over_ewma=-0.04, over_ewma_low=-0.06, over_ewma_high=-0.02, p_adjusted=0.001)
    v.heads["volatility"] = head_verdict("promote", "reversal", "strong", "By reversal.", "", **numbers)
    v.numbers["parts"] = dict(direction="mean", volatility="reversal", shape="mean")
    publish_model(settings, study, v)
    return home


@pytest.fixture
def settings(published, tmp_path):
    shutil.copytree(published, tmp_path / "home")
    more = {"storage.mlflow_uri": "http://127.0.0.1:9", "storage.reports": str(tmp_path / "reports")}
    return small_study.settings_at(tmp_path / "home", **more)


def ask(served, settings, *asked, who=None, headers=None):
    "Send (method, path, body) one after the other as one caller."

    async def go():
        async with served(settings) as client:
            if who is not None:
                client.service.door.caller_of = lambda scope: who
            return [await client.request(m, path, json=body, headers=headers) for m, path, body in asked]

    answers = asyncio.run(go())
    return answers[0] if len(answers) == 1 else answers


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    return answer.json()["error"]


def test_the_list_has_heads_with_error_bars_and_what_clients_read_before(served, settings):
    data = ask(served, settings, ("GET", "/v1/models", None)).json()["data"]
    assert data["champion"]["version"] == 2 and data["history"][0]["event"] == "promote"  # the old shape
    newest, first = data["versions"]
    assert (newest["version"], newest["served"], newest["role"]) == (2, True, "champion")
    assert "volatility" in newest["serves"] and first["serves"] != newest["serves"] and not first["served"]
    skill = newest["heads"]["volatility"]["skill"]
    assert skill == dict(measure="QLIKE against EWMA", value=-0.04, low=-0.06, high=-0.02, p=0.001)
    direction = newest["heads"]["direction"]["skill"]
    assert direction["low"] < direction["value"] < direction["high"]


def test_pages_and_tags(served, settings):
    first = ask(served, settings, ("GET", "/v1/models?limit=1", None))
    assert [v["version"] for v in first.json()["data"]["versions"]] == [2]
    cursor = first.json()["metadata"]["next_cursor"]
    second = ask(served, settings, ("GET", f"/v1/models?limit=1&cursor={cursor}", None))
    assert [v["version"] for v in second.json()["data"]["versions"]] == [1]
    same = ask(
        served,
        settings,
        ("GET", "/v1/models?limit=1", None),
        headers={"if-none-match": first.headers["etag"]},
    )
    assert same.status_code == 304 and not same.content


def test_one_version_has_evidence_origin_signature_and_report(served, settings):
    lineage = current_champion(settings).lineage
    folder = settings.storage.reports_dir / "2022-12-28" / "r40_validate-20221228T120000-5f3a"
    folder.mkdir(parents=True)
    seen = {"bars seen": lineage["bars"], "code": lineage["code"]}
    (folder / "result.json").write_text(json.dumps({"result": {"lineage": seen}}))
    one, gone = ask(served, settings, ("GET", "/v1/models/2", None), ("GET", "/v1/models/9", None))
    data = one.json()["data"]
    assert data["signature"] == {"state": "verified", "reason": ""} and data["features"] == [
        "ret_1",
        "mom_5",
        "vol_20",
    ]
    assert data["report"] == "/reports/2022-12-28/r40_validate-20221228T120000-5f3a/page.html"
    assert data["lineage"]["bars"] == lineage["bars"] and data["reasons"] and data["manifest"]["horizons"]
    assert "1" in refused(gone, 404, "not-found")["fix"]


@pytest.mark.parametrize("damage", ["byte", "added", "seal", "foreign key"])
def test_the_state_of_a_signature_is_that_of_the_bytes_on_the_disk(settings, damage):
    folder = settings.storage.registry_dir / "versions" / current_champion(settings).artifact
    if damage == "byte":
        path = next(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name == "state.json")
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif damage == "added":
        (folder / "extra.json").write_text("{}")
    elif damage == "seal":
        (folder / "signature.json").write_text('{"signature": "00"}')
    else:
        from stockpredict.models.artifact import ensure_keys

        shutil.rmtree(settings.storage.keys_dir)
        ensure_keys(settings.storage.keys_dir)
    assert signature_state(settings, folder)["state"] == "rejected"


def test_the_seal_is_that_of_the_floor_of_models():
    from stockpredict.models.artifact import SEAL

    assert SEAL == ARTIFACT_SEAL


def test_a_held_version_needs_a_written_reason_and_the_history_keeps_it(served, settings):
    answer = ask(served, settings, ("POST", "/v1/models/1/promote", WHY))
    assert "The gate promoted nothing in version 1" in refused(answer, 409, "promotion-refused")["message"]
    assert current_champion(settings).version == 2
    forced = ask(served, settings, ("POST", "/v1/models/1/promote", WHY | {"override": "the feed is broken"}))
    assert (
        forced.status_code == 200
        and forced.json()["data"]["served"]
        and current_champion(settings).version == 1
    )
    assert "Overridden: the feed is broken" in read_events(settings)[-1]["why"]
    back = ask(served, settings, ("POST", "/v1/models/2/promote", WHY))  # the gate has promoted it
    assert back.status_code == 200 and current_champion(settings).version == 2
    lines = len(read_events(settings))
    again = ask(served, settings, ("POST", "/v1/models/2/promote", WHY))
    assert again.status_code == 200 and len(read_events(settings)) == lines  # served already: nothing changes


def test_a_rolled_back_version_and_a_damaged_one(served, settings):
    rollback(settings, None, "wrong on Monday")
    why = refused(ask(served, settings, ("POST", "/v1/models/2/promote", WHY)), 409, "promotion-refused")
    assert "was rolled back: wrong on Monday" in why["message"]
    entry = next(e for e in read_events(settings) if e.get("version") == 2)
    manifest = settings.storage.registry_dir / "versions" / entry["artifact"] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"1", b"2", 1))
    forced = ask(served, settings, ("POST", "/v1/models/2/promote", WHY | {"override": "it is needed"}))
    refused(forced, 503, "artifact-rejected")
    assert current_champion(settings).version == 1


def test_the_champion_is_retired_only_with_what_answers_next(served, settings):
    refused(ask(served, settings, ("POST", "/v1/models/2/retire", WHY)), 409, "model-in-service")
    refused(
        ask(served, settings, ("POST", "/v1/models/2/retire", WHY | {"successor": 2})),
        409,
        "model-in-service",
    )
    refused(
        ask(served, settings, ("POST", "/v1/models/2/retire", WHY | {"successor": 1})),
        409,
        "promotion-refused",
    )
    done = ask(served, settings, ("POST", "/v1/models/2/retire", WHY | {"rollback": True}))
    assert done.json()["data"]["retired"] and current_champion(settings).version == 1
    refused(ask(served, settings, ("POST", "/v1/models/2/promote", WHY)), 409, "promotion-refused")
    lines = len(read_events(settings))
    assert ask(served, settings, ("POST", "/v1/models/2/retire", WHY)).status_code == 200
    assert len(read_events(settings)) == lines


def test_a_challenger_is_retired_as_soon_as_its_experiment_is_stopped(served, settings):
    experiment = start_experiment(settings, "1", "local")
    refused(ask(served, settings, ("POST", "/v1/models/1/retire", WHY)), 422, "request-invalid")
    with pytest.raises(RequestInvalid, match="answers as challenger"):  # the command asks the same
        refuse_challenger(settings, 1)
    listed, _, done = ask(
        served,
        settings,
        ("GET", "/v1/models", None),
        ("DELETE", f"/v1/experiments/{experiment.id}", None),
        ("POST", "/v1/models/1/retire", WHY),
    )
    assert [v["role"] for v in listed.json()["data"]["versions"]] == ["champion", "challenger"]
    assert done.status_code == 200 and done.json()["data"]["retired"] and done.json()["data"]["role"] == ""


def test_a_key_makes_a_decision_once(served, settings):
    body, headers = WHY | {"override": "drill"}, {"idempotency-key": "one"}
    first = ask(served, settings, ("POST", "/v1/models/1/promote", body), headers=headers)
    ask(served, settings, ("POST", "/v1/models/2/promote", WHY))
    again = ask(served, settings, ("POST", "/v1/models/1/promote", body), headers=headers)
    assert first.content == again.content and again.headers["idempotency-replayed"] == "true"
    assert current_champion(settings).version == 2  # the repeated request did nothing


def test_bad_bodies_change_nothing(served, settings):
    bodies = [None, {}, {"why": "x"}, WHY | {"overide": "typo"}, WHY | {"version": 1}, ["why"]]
    for answer in ask(served, settings, *[("POST", "/v1/models/1/promote", body) for body in bodies]):
        refused(answer, 422, "request-invalid")
    for path in ("/v1/models/0/promote", "/v1/models/x/promote"):
        refused(ask(served, settings, ("POST", path, WHY)), 422, "request-invalid")
    refused(ask(served, settings, ("POST", "/v1/models/9/promote", WHY)), 404, "not-found")


def test_who_may_do_what(served, settings):
    routes = [("GET", "/v1/models", None), ("GET", "/v1/models/2", None), ("GET", "/v1/reports", None)]
    routes += [("POST", "/v1/models/2/promote", WHY), ("POST", "/v1/models/1/retire", WHY)]
    for role in ROLES:
        answers = ask(served, settings, *routes, who=Caller("key:1", "key", ROLES[role]))
        may = 200 if role in ("operator", "admin") else 403
        assert [a.status_code for a in answers] == [200, 200, 200, may, may], role
    nobody = Caller("key:1", "key", frozenset())
    assert {a.status_code for a in ask(served, settings, *routes, who=nobody)} == {403}


def test_a_process_without_torch_decides_in_another_one(settings):
    "Only the process that decides loads torch."
    question = {"settings": str(store_settings(settings)), "action": "promote"}
    question["options"] = {"version": 1, "why": "drill"}
    with pytest.raises(ServeError, match="The gate promoted nothing in version 1") as refusal:
        ask_process("stockpredict.train.promotion", question)
    assert (refusal.value.code, refusal.value.status) == ("promotion-refused", 409)
    question["options"] |= {"override": "a drill"}
    champion = ask_process("stockpredict.train.promotion", question)["champion"]
    assert champion["version"] == 1 == current_champion(settings).version


def test_what_another_process_says_before_it_fails_reaches_the_log(capfd):
    with pytest.raises(ServeError, match="could not be carried out"):
        ask_process("stockpredict.train.promotion", ["no question"])
    assert "TypeError" in capfd.readouterr().err


def test_reports_are_listed_and_read(served, settings):
    folder = settings.storage.reports_dir
    for day, run, decision in (
        ("2022-12-27", "r40_validate-20221227T120000-0a1b", "promote"),
        ("2022-12-28", "r30_train-20221228T120000-0a1b", ""),
    ):
        (folder / day / run).mkdir(parents=True)
        result = {
            "name": run.partition("-")[0],
            "as_of": day,
            "status": "complete",
            "result": {"decision": decision},
        }
        (folder / day / run / "result.json").write_text(json.dumps(result))
    (folder / "2022-12-28" / "r30_train-20221228T130000-0a1b").mkdir()
    (folder / "2022-12-28" / "r30_train-20221228T130000-0a1b" / "result.json").write_text('{"torn')
    listed, only, one = ask(
        served,
        settings,
        ("GET", "/v1/reports", None),
        ("GET", "/v1/reports?name=r40_validate", None),
        ("GET", "/v1/reports/2022-12-27/r40_validate-20221227T120000-0a1b", None),
    )
    assert [r["as_of"] for r in listed.json()["data"]] == ["2022-12-28", "2022-12-27"]
    assert only.json()["data"][0]["verdict"] == {"all": "promote"}
    assert one.json()["data"]["result"]["decision"] == "promote"
    for path in (
        "2022-12-27/..%2f..%2fsecret",
        "2022-12-27/r40_validate-20221227T120000-ffff",
        "x/y",
        "2022-12-27/.hidden",
    ):
        assert ask(served, settings, ("GET", f"/v1/reports/{path}", None)).status_code in (404, 422), path

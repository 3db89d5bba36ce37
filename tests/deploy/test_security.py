"""The checks of `make check-security` find what was planted, and every exception has its reason."""

import json

import pytest
from test_package import release_script

security = release_script("security")
POLICY = security.reviewed()["licences"]


def test_every_exception_has_a_reason():
    reviewed = security.reviewed()
    places = [
        *reviewed["code"]["reviewed"],
        *POLICY["exceptions"].values(),
        *reviewed.get("vulnerabilities", []),
    ]
    places += [row for rows in security.known_secrets().values() for row in rows]
    assert all(len(place["why"]) > 12 for place in places)
    for one in reviewed["code"]["reviewed"]:
        assert all((security.ROOT / name).is_file() for name in one["files"])


def test_bandit_finds_a_shell_and_a_pickle_and_counts_what_was_reviewed(tmp_path):
    (tmp_path / "bad.py").write_text("import os, pickle\nos.system(input())\npickle.loads(b'')\n")
    hits = security.unreviewed_code(security.code_findings([tmp_path]))
    assert any("B605" in line for line in hits) and any("B301" in line for line in hits)
    one = security.reviewed()["code"]["reviewed"][0]
    file, count = next(iter(one["files"].items()))
    finding = {"test": one["test"], "file": file, "line": 1, "text": "x"}
    assert security.unreviewed_code([finding] * count) == []
    assert len(security.unreviewed_code([finding] * (count + 1))) == count + 1


SECRETS = {
    "AWS Access Key": "key = '" + "AKIA" + "QYLPMN5HHHFPZAM2" + "'",
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Basic Auth Credentials": "url = 'https://anna:" + "correcthorse" + "@example.com/'",
    "Secret Keyword": "db_pass" + "word = 'kT8vQ2xR7pL0'",
    "Hex High Entropy String": "x = '" + "8f14e45f" * 2 + "ceea167a" + "dedd4bea'",
}


@pytest.mark.parametrize(("kind", "line"), SECRETS.items(), ids=SECRETS)
def test_a_secret_is_found_in_a_module_and_in_a_cell(tmp_path, kind, line):
    (tmp_path / "plain.py").write_text(f"a = 1\n{line}\n")
    cell = {"cell_type": "code", "source": [line], "outputs": []}
    (tmp_path / "book.ipynb").write_text(json.dumps({"cells": [cell]}))
    hits = security.secrets_in([tmp_path / "plain.py", tmp_path / "book.ipynb"])
    assert {(name, one) for name, one, _ in hits} >= {("plain.py", kind), ("book.ipynb", kind)}
    assert all("kT8vQ2xR7pL0" not in shown and "correcthorse" not in shown for shown in hits.values())


def part(name, *licences):
    return {"name": name, "version": "1", "licenses": [{"license": {"name": x}} for x in licences]}


@pytest.mark.parametrize(
    ("component", "shipped", "reply"),
    [
        (part("new", "MIT"), {"new"}, ""),
        (part("new", "GPL-3.0-only"), {"new"}, "not on the list"),
        (part("new", "GPL-2.0-or-later OR Apache-2.0"), {"new"}, ""),
        (part("new", "GPL-2.0-or-later AND Apache-2.0"), {"new"}, "not on the list"),
        (part("new", "License :: OSI Approved :: BSD License"), {"new"}, ""),
        (part("new", "some words of their own"), {"new"}, "not on the list"),
        (part("new"), {"new"}, "names no licence"),
        (part("rfc3987", "GPL-3.0-or-later"), set(), ""),
        (part("rfc3987", "GPL-3.0-or-later"), {"rfc3987"}, "for development only"),
    ],
)
def test_a_licence_is_allowed_named_or_refused(component, shipped, reply):
    lines = security.refused_licences({"components": [component]}, POLICY, shipped)
    assert bool(lines) == bool(reply) and reply in " ".join(lines)


def test_what_is_installed_has_allowed_licences_and_what_runs_is_listed(tmp_path):
    file = tmp_path / "sbom.cdx.json"
    security.bill(file)
    document = json.loads(file.read_text())
    names = {one["name"].lower() for one in document["components"]}
    assert document["bomFormat"] == "CycloneDX" and {"torch", "fastapi", "duckdb"} <= names
    assert not names & {"pytest", "ruff", "rfc3987", "bandit"}
    refs = {one["bom-ref"] for one in document["components"]} | {"root-component"}
    assert all(set(one.get("dependsOn", ())) | {one["ref"]} <= refs for one in document["dependencies"])
    assert security.check_licences()[0] == []


def test_advisories_that_cannot_be_reached_are_named_and_fail_only_where_they_must(monkeypatch):
    monkeypatch.setattr(security, "audit", lambda *pinned: [])
    assert security.check_vulnerabilities() == ([], security.check_vulnerabilities()[1])
    lines, reply = security.check_vulnerabilities(online=True)
    assert lines == [reply] and "NOT CHECKED" in reply


def test_an_advisory_fails_the_check(monkeypatch):
    bug = {"id": "PYSEC-1", "aliases": [], "fix_versions": ["2"]}

    def audited(*pinned):
        return [{"name": line.split("==")[0], "version": "1", "vulns": [bug]} for line in pinned[:1]]

    monkeypatch.setattr(security, "audit", audited)
    monkeypatch.setattr(security, "components", lambda: {"components": [part("old") | {"purl": "x"}]})
    assert security.check_vulnerabilities()[0] == ["old 1: PYSEC-1, mended in 2"]

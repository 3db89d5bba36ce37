"""The workflows: what they run exists here, they may do little, and actionlint accepts them."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from load_script import load_script
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))


def read_workflow(path):
    content = yaml.safe_load(path.read_text())
    content["on"] = content.pop(True)  # YAML 1.1 reads `on` as a truth value
    return content


JOBS = [
    pytest.param(path, job, id=f"{path.stem}-{name}")
    for path in WORKFLOWS
    for name, job in read_workflow(path)["jobs"].items()
]


def steps_of(job):
    return job.get("steps", [])


@pytest.mark.parametrize(("path", "job"), JOBS)
def test_every_step_is_a_target_of_make(path, job):
    for step in steps_of(job):
        if (command := step.get("run")) and job.get("environment") != "production":
            assert re.fullmatch(r"make [a-z-]+( [A-Z_]+=\S+( \}\})?| [A-Z]+=\$\{\{ [a-z.]+ \}\})*", command)
            assert command.split()[1] in TARGETS, f"{command}: there is no such target"


@pytest.mark.parametrize(("path", "job"), JOBS)
def test_a_job_ends_in_time_and_may_write_only_where_it_publishes(path, job):
    if "uses" in job:
        return
    assert job["timeout-minutes"] <= 30
    writes = {name for name, right in (job.get("permissions") or {}).items() if right == "write"}
    publishes = any("release-publish" in step.get("run", "") for step in steps_of(job))
    assert writes == ({"contents", "id-token", "attestations"} if publishes else set())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_only_and_knows_no_stored_secret(path):
    workflow, text = read_workflow(path), path.read_text()
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["group"]
    assert "secrets." not in text and "pull_request_target" not in workflow["on"]
    for action in re.findall(r"uses: (\S+)", text):
        assert action.startswith("./") or re.fullmatch(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})", action)
    steps = [step for job in workflow["jobs"].values() for step in steps_of(job)]
    checkouts = [step for step in steps if "checkout@" in step.get("uses", "")]
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts)


def test_a_release_is_tested_tried_and_approved_before_it_is_published():
    jobs = read_workflow(ROOT / ".github" / "workflows" / "release.yml")["jobs"]

    def before(name):
        direct = jobs[name].get("needs", [])
        direct = [direct] if isinstance(direct, str) else direct
        return {*direct, *(earlier for one in direct for earlier in before(one))}

    publisher = next(n for n, j in jobs.items() if any("publish" in s.get("run", "") for s in steps_of(j)))
    assert before(publisher) == {"approve", "staging", "build", "test"}
    assert jobs["approve"]["environment"] == "production" and jobs["approve"]["permissions"] == {}
    assert jobs["test"]["uses"] == "./.github/workflows/test.yml"


def test_actionlint_accepts_them_and_refuses_a_mistake(tmp_path):
    program = Path(sys.executable).with_name("actionlint")
    done = subprocess.run([program, *WORKFLOWS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("needs: test", "needs: tests").replace("run:", "runs:"))
    done = subprocess.run([program, wrong], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "wrong.yml" in done.stdout


def test_the_parts_of_the_tests_are_all_of_them_each_once():
    parts = read_workflow(ROOT / ".github" / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]
    script, seen = ROOT / "deploy" / "release" / "part.sh", Counter()
    for part in parts["part"]:
        if part != "lessons":
            done = subprocess.run(
                ["bash", script, part, "--list"], capture_output=True, text=True, check=True
            )
            seen.update(done.stdout.split())
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert "lessons" in parts["part"] and set(seen) == files and set(seen.values()) == {1}


@pytest.mark.parametrize("part", ["7/6", "0/6", "half"])
def test_a_part_that_is_none_is_refused(part):
    script = ROOT / "deploy" / "release" / "part.sh"
    done = subprocess.run(["bash", script, part, "--list"], capture_output=True, text=True)
    assert done.returncode == 2 and "There is no part" in done.stderr


def test_the_load_fails_on_one_wrong_lost_or_reset_answer():
    load = load_script(ROOT / "benchmarks" / "serving_load.py")
    seen = Counter({(phase, "right"): 5 for phase in load.PHASES})
    assert load.kept(seen) and load.kept(seen + Counter({(load.PHASES[-1], "reset"): 3}))
    for bad in ("wrong", "lost"):
        assert not load.kept(seen + Counter({(load.PHASES[-1], bad): 1}))
    assert not load.kept(seen + Counter({(load.PHASES[0], "reset"): 1}))
    assert not load.kept(seen - Counter({(load.PHASES[2], "right"): 5}))

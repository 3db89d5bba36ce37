"""Build the images, run them, and print what was measured:

    make ci-image                                   all of them
    python deploy/images/check.py reader engine     some of them
      --base python:3.11-slim                       another base; the default is assembled by base.sh
      --json FILE                                   the figures, too

Needs buildah, podman and, for base.sh, mmdebstrap and root. Nothing is pushed anywhere. Containers run with a
read-only root and listen on the loopback address of this machine.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("reader", "engine", "worker", "notebooks")
CONTEXT = (
    "pyproject.toml",
    "constraints.txt",
    "prefect.yaml",
    "stockpredict",
    "flows",
    "nbs",
    "deploy/images",
)
MAX_READER_MB, MAX_REBUILD_SECONDS = 600, 20
USER = 10001
ASSEMBLED = "localhost/stockpredict-base"
HOME = "/var/lib/stockpredict"
NEVER = re.compile(
    r"(^|/)(tests|\.git|\.venv|data/.*\.parquet|pip\.conf|settings\.ini|.*\.pem|.*\.key|\.env)$"
)


def run(*words, check=True, **more) -> subprocess.CompletedProcess:
    "A program with its output; a failure shows the end of it."
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **more)
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, words[:4]))} … failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done


# --- building


def pip_options() -> dict[str, str]:
    "How pip on this machine finds packages; the build gets it as a secret, and no layer keeps it."
    options = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines():
        name, _, value = line.partition("=")
        options[name.removeprefix(":env:").split(".")[-1]] = value.strip("'").replace("\\n", "\n    ")
    return options


def pip_words(folder: Path) -> list[str]:
    "Options of buildah: that configuration, and the local folders and files it names."
    options = pip_options()
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{k} = {v}\n" for k, v in options.items()))
    places = {p for v in options.values() for p in re.findall(r"(?:^|\s|file://)(/[^\s]+)", v)}
    places = {p.removesuffix("/simple") for p in places}  # an index lies beside its files
    there = [w for p in sorted(places) if Path(p).exists() for w in ("--volume", f"{p}:{p}:ro")]
    return ["--secret", f"id=pip,src={file}", *there]


def copy_context(folder: Path) -> Path:
    "What the images copy, as it is now; a change in the middle of a build is not seen."
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in CONTEXT:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=unwanted, symlinks=True)
        else:
            shutil.copy2(source, target)
    shutil.copy2(ROOT / ".containerignore", folder)
    return folder


def build(
    target: str, context: Path, base: str, words: list[str]
) -> tuple[float, float]:  # seconds, CPU seconds
    "Build one image."
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run(
        *("buildah", "build", "--isolation", "chroot", "--layers", "--format", "docker"),
        *(
            "--build-arg",
            f"BASE={base}",
            *base_words(base),
            *words,
            "--target",
            target,
            "--tag",
            f"stockpredict-{target}",
        ),
        *("--file", context / "deploy" / "images" / "Containerfile", context),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - began, cpu


def base_words(base: str) -> list[str]:
    "Debian 12 has Python 3.11.2, which one release in constraints.txt excludes though it runs there."
    return ["--build-arg", "PIP_IGNORE_REQUIRES_PYTHON=1"] if base == ASSEMBLED else []


def chosen_base(named: str) -> str:
    "The base that was named, or one out of Debian's packages."
    if named:
        return named
    if run("buildah", "inspect", "--type", "image", ASSEMBLED, check=False).returncode:
        print("base.sh: a base out of Debian's packages")
        run(ROOT / "deploy" / "images" / "base.sh", "stockpredict-base")
    return ASSEMBLED


def megabytes(image: str) -> float:
    "The size of an image, unpacked."
    return json.loads(run("podman", "image", "inspect", image).stdout)[0]["Size"] / 1e6


def change_code(context: Path):
    "What a developer does between two builds."
    with open(context / "stockpredict" / "serve" / "app.py", "a") as file:
        file.write("\nBUILT_AGAIN = True\n")


# --- running


def podman(*words, **more) -> subprocess.CompletedProcess:
    "Podman, with runc where it is: crun refuses machines that mount both kinds of cgroups."
    return run("podman", *(["--runtime", "runc"] if shutil.which("runc") else []), *words, **more)


def run_words(home: Path | None = None) -> list[str]:
    "How each container runs: as its own user, without capabilities, read-only but for home and /tmp."
    limits = [
        f"--ulimit={name}={soft}:{hard}"  # those of this process; to raise them takes a capability
        for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
        for soft, hard in [(min(n, 32768) if n > 0 else 32768 for n in resource.getrlimit(kind))]
    ]
    words = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--no-healthcheck", *limits]
    return [*words, "--volume", f"{home}:{HOME}"] if home else words


def spare_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(url: str, key: str = "", accept: str = "") -> tuple[int, bytes]:
    "Status and body of an answer; 0 when there is none."
    headers = {"authorization": f"Bearer {key}"} if key else {}
    headers |= {"accept": accept} if accept else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def wait_for(url: str, name: str, patience: float = 120) -> float:  # seconds
    "Wait until an address answers 200."
    began = time.monotonic()
    while ask(url)[0] != 200:
        if time.monotonic() - began > patience:
            log = podman("logs", name, check=False)
            sys.exit(f"{name} does not answer:\n{(log.stdout + log.stderr)[-2000:]}")
        time.sleep(0.1)
    return time.monotonic() - began


@contextlib.contextmanager
def container(image: str, home: Path, *command, **env):
    "A container in the background; yields its name."
    name = f"check-{image}-{os.getpid()}"
    words = [w for k, v in env.items() for w in ("--env", f"{k}={v}")]
    podman(
        "run",
        "--detach",
        "--name",
        name,
        "--network=host",
        *run_words(home),
        *words,
        f"localhost/{image}",
        *command,
    )
    try:
        yield name
    finally:
        podman("rm", "--force", "--time", "5", name, check=False)


def once(image: str, home: Path | None, *command, check=True) -> subprocess.CompletedProcess:
    "A command in a container without a network."
    return podman(
        "run", "--rm", "--network=none", *run_words(home), f"localhost/{image}", *command, check=check
    )


def desk_home(folder: Path) -> tuple[Path, str]:  # the folder and a key
    "A home with a simulated market, a fitted model and its published table."
    sys.path.insert(0, str(ROOT / "tests"))
    import served_desk
    from stockpredict.predict.answer_table import refresh_answers
    from stockpredict.sources.simulate import simulate

    settings = served_desk.build_settings(folder / "home")
    served_desk.fill_lake(settings, simulate("realistic", tickers=14, sessions=380, seed=4).bars)
    served_desk.publish(settings)
    refresh_answers(settings)
    own(folder / "home")
    words = ("stockpredict", "keys", "create", "--role", "viewer", "--role", "analyst", "--json")
    created = json.loads(once("stockpredict-reader", folder / "home", *words).stdout)
    return folder / "home", created["key"]


def own(folder: Path):
    "Give a folder to the user of the images."
    for place in (folder, *folder.rglob("*")):
        os.chown(place, USER, USER)


# --- what has to be true


def contents(image: str) -> dict:
    "What must not be in an image, and who runs it."
    config = json.loads(run("podman", "image", "inspect", f"localhost/{image}").stdout)[0]
    working = run("buildah", "from", f"localhost/{image}").stdout.strip()
    try:
        root = Path(run("buildah", "mount", working).stdout.strip())
        ours = [p.relative_to(root).as_posix() for p in (root / "opt" / "stockpredict").rglob("*")]
        assert not [p for p in ours if NEVER.search(p)], [p for p in ours if NEVER.search(p)]
        assert not (root / "etc" / "pip.conf").exists() or not (root / "etc" / "pip.conf").stat().st_size
        packages = {p.name.split("-")[0].lower() for p in (root / "opt").rglob("*.dist-info")}
        assert "pip" not in packages or image == "stockpredict-notebooks"
    finally:
        run("buildah", "rm", working)
    variables = " ".join(config["Config"]["Env"])
    assert config["User"] == f"{USER}:{USER}", config["User"]
    assert not re.search(r"PASSWORD|SECRET|TOKEN|://", variables), variables
    return {
        "packages": len(packages),
        "torch": "torch" in packages,
        "healthcheck": bool(config["Healthcheck"]),
    }


def drain(
    port: int, key: str, name: str
) -> tuple[float, int, int]:  # seconds, exit code, status of the answer
    "Stop a service while a request is on its way: it is answered, and then the service ends."
    body = json.dumps({"ticker": "SIM01"}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(head.encode() + body[:5])
        time.sleep(0.3)
        began = time.monotonic()
        podman("kill", "--signal", "TERM", name)
        time.sleep(0.7)
        line.sendall(body[5:])
        answer = b""
        while chunk := line.recv(65536):
            answer += chunk
    code = int(podman("wait", name).stdout)
    status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    return time.monotonic() - began, code, status


def check_service(image: str, home: Path, key: str) -> dict:
    "Health, one prediction, the limits of the file system, a stop."
    port = spare_port()
    url = f"http://127.0.0.1:{port}"
    env = {"STOCKPREDICT_SERVING__PORT": port, "STOCKPREDICT_SERVING__HOST": "127.0.0.1"}
    with container(image, home, STOCKPREDICT_ACCESS__REQUIRED="always", **env) as name:
        seconds = wait_for(f"{url}/health/live", name)
        assert ask(f"{url}/v1/predictions/SIM01")[0] == 401
        status, answer = ask(f"{url}/v1/predictions/SIM01", key)
        assert status == 200 and json.loads(answer)["success"], answer[:500]
        pages = json.loads(ask(f"{url}/openapi.json", key)[1])["paths"]
        plain = [p for p in pages if "get" in pages[p] and p not in ("/v1/stream", "/v1/ws")]
        bad = {p: s for p in plain if (s := ask(url + p.replace("{ticker}", "SIM01"), key)[0]) in (0, 500)}
        assert not bad, bad
        assert ask(f"{url}/v1/predictions", key, "text/csv")[0] == 200
        assert podman("exec", name, "python", "/opt/stockpredict/health.py", check=False).returncode == 0
        touch = "import sys; open(sys.argv[1], 'w')"
        writable = {
            p: podman("exec", name, "python", "-c", touch, f"{p}/touched", check=False).returncode == 0
            for p in ("/", "/opt/stockpredict", "/opt/venv", "/usr", "/tmp", HOME)
        }
        assert [p for p, yes in writable.items() if yes] == ["/tmp", HOME], writable
        memory = resident_mb(name)
        stop, code, last = drain(port, key, name)
    assert code == 0 and last not in (0, 500) and stop < 30, (code, last, stop)
    data = json.loads(answer)["data"]
    return dict(
        start=seconds, memory_mb=memory, pages=len(plain), stop=stop, last_answer=last, prediction=data
    )


def resident_mb(name: str) -> float:
    "Memory that belongs to the processes of a container; pages they share are counted once."
    pids = [int(p) for p in podman("top", name, "hpid").stdout.split()[1:]]
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return sum(int(re.search(r"^Pss: +(\d+)", text, re.M)[1]) for text in rollups) / 1024


def check_reader(home: Path, key: str) -> dict:
    refused = once("stockpredict-reader", None, check=False)  # an empty home: no key yet
    assert refused.returncode and "keys create" in refused.stdout + refused.stderr, refused
    return check_service("stockpredict-reader", home, key)


def check_engine(home: Path, key: str) -> dict:
    fill = "from stockpredict.catalogue.warm_up import fill_loop_cache; print(fill_loop_cache())"
    loops = once("stockpredict-engine", None, "python", "-c", fill).stdout.strip()
    assert " 0 compiled now" in loops, loops
    return check_service("stockpredict-engine", home, key) | {"loops": loops}


def check_worker(home: Path, key: str) -> dict:
    "A flow of the desk's day, in a temporary Prefect server of its own."
    began = time.monotonic()
    done = once("stockpredict-worker", home, "python", "/opt/stockpredict/flows/predict.py", "--no-page")
    return {"flow": time.monotonic() - began, "flow_says": done.stdout.strip().splitlines()[-1:]}


def check_notebooks(home: Path, key: str) -> dict:
    port = spare_port()
    lab = ("jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0")
    with container("stockpredict-notebooks", home, *lab, JUPYTER_TOKEN=os.urandom(12).hex()) as name:
        seconds = wait_for(f"http://127.0.0.1:{port}/api", name)
        podman("stop", "--time", "30", name)
        code = int(podman("wait", name).stdout)
    assert code == 0, code
    return {"start": seconds}


CHECKS = dict(reader=check_reader, engine=check_engine, worker=check_worker, notebooks=check_notebooks)


# --- all of it


def measure(targets: list[str], base: str, folder: Path) -> dict:
    "Build, build again after a change, and run."
    pip, context, figures = pip_words(folder), copy_context(folder / "context"), {}
    for target in targets:
        figures[target] = dict(zip(("build", "build_cpu"), build(target, context, base, pip)))
        figures[target] |= {"mb": megabytes(f"localhost/stockpredict-{target}")} | contents(
            f"stockpredict-{target}"
        )
        print(
            f"{target}: {figures[target]['mb']:.0f} MB, built in {figures[target]['build']:.0f} s", flush=True
        )
    if "reader" not in targets:
        build("reader", context, base, pip)  # creates the key of the home below
    home, key = desk_home(folder)
    for target in targets:
        figures[target] |= CHECKS[target](home, key)
        print(f"{target}: runs", flush=True)
    change_code(context)
    for target in targets:
        figures[target] |= dict(zip(("rebuild", "rebuild_cpu"), build(target, context, base, pip)))
    return figures


def table(figures: dict) -> str:
    "The figures, as a Markdown table."
    names = dict(
        mb="size, MB",
        build="build, s",
        build_cpu="CPU s",
        rebuild="after a code change, s",
        rebuild_cpu="CPU s ",
        start="start to first answer, s",
        memory_mb="memory, MB",
        stop="stop with a request on its way, s",
        packages="packages",
    )
    lines = ["| image | " + " | ".join(names.values()) + " |", "|" + "---|" * (len(names) + 1)]
    for target, row in figures.items():
        cells = [
            f"{row[n]:.0f}" if n in row and row[n] >= 10 else f"{row[n]:.1f}" if n in row else ""
            for n in names
        ]
        lines.append(f"| {target} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=TARGETS, choices=[*TARGETS, []])
    parser.add_argument("--base", default="")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(list(options.targets), chosen_base(options.base), Path(folder))
    print(table(figures))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1, default=str) + "\n")
    if "reader" in figures:
        assert figures["reader"]["mb"] < MAX_READER_MB and not figures["reader"]["torch"]
        if "engine" in figures:
            assert figures["reader"]["prediction"] == figures["engine"]["prediction"]
    slow = {t: f["rebuild"] for t, f in figures.items() if f["rebuild"] > MAX_REBUILD_SECONDS}
    if slow:
        print(f"Slower than {MAX_REBUILD_SECONDS} s after a code change: {slow}")


if __name__ == "__main__":
    main()

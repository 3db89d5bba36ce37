"""Python environments of other people's libraries, each of its own, in the user's cache folder.

Imported by benchmarks that run a peer on the same file: `python = peers.environment("zipline")`. The first
run makes the environment with the versions below and says what could not be installed; nothing of it is
ever imported by this package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "vectorbt": ["vectorbt==1.2.0"],
    "zipline": ["zipline-reloaded==3.2.1"],
    "qlib": ["pyqlib==0.9.7", "lightgbm"],
    "litserve": ["litserve==0.2.19"],
    "mlserver": ["mlserver"],
}


def environment(name: str) -> Path:
    "Python of the environment of a peer; made when it is missing."
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stockpredict" / f"peers-{name}"
    python, ready = home / "bin" / "python", home / "ready"
    wanted = " ".join(PACKAGES[name])
    if ready.exists() and ready.read_text() == wanted:
        return python
    print(f"making the environment of {name} in {home}", flush=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
    command = [python, "-m", "pip", "install", "--quiet", *PACKAGES[name]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"{wanted} could not be installed: {reason}")
    ready.write_text(wanted)
    return python


def run(name: str, program: str, *arguments) -> dict:
    "What a program prints last, as JSON, run by the Python of a peer on one thread."
    calm = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [environment(name), "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=calm)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])

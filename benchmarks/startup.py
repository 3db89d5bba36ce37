"""How long a person waits: `stockpredict --help`, and the service until it answers, beside the bare
frameworks.

    python benchmarks/startup.py

Peers in the same run: a typer program with one command, and a FastAPI application with one route under
uvicorn.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

TYPER = "import typer\napp = typer.Typer()\n@app.command()\ndef hello(): pass\napp()"
FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/health')\nasync def health(): return {}\n"


def best(measure, n=3) -> float:
    "The smallest of `n` measurements, in seconds: noise only ever adds."
    return min(measure() for _ in range(n))


def runs(*command) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def spare_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(command, port, cwd, env) -> float:
    "Seconds from the start of a server to its first answer of any status."
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < 60:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            except HTTPError:
                pass
            except (URLError, OSError):
                time.sleep(0.01)
                continue
            return time.perf_counter() - started
        raise SystemExit(f"{' '.join(command)} did not answer within 60 s")
    finally:
        child.terminate()
        child.wait()


def main():
    ours = best(lambda: runs(sys.executable, "-m", "stockpredict.cli.main", "--help"))
    peer = best(lambda: runs(sys.executable, "-c", TYPER, "--help"))
    print(
        f"stockpredict --help   {ours:6.2f} s   typer alone   {peer:6.2f} s   ratio "
        f"{ours / peer:5.2f}   (promised: under 1 s)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bare.py").write_text(FASTAPI)
        env = {**os.environ, "STOCKPREDICT_SERVING__REDIS_URL": ""}

        def serve(*app):
            port = spare_port()
            command = [sys.executable, "-m", "uvicorn", *app, "--host", "127.0.0.1", "--port", str(port)]
            return answers(command, port, folder if app[0] == "bare:app" else Path.cwd(), env)

        ours = best(lambda: serve("--factory", "stockpredict.serve.app:app_factory"))
        peer = best(lambda: serve("bare:app"))
    print(
        f"service answers       {ours:6.2f} s   FastAPI alone {peer:6.2f} s   ratio "
        f"{ours / peer:5.2f}   (promised: under 5 s)"
    )


if __name__ == "__main__":
    main()

"A real Redis of its own, on a socket or a port, for every test that needs one."

import socket
import subprocess
import sys

import patience
import redis

from stockpredict.core.settings import Settings
from stockpredict.core.redis import server_binary


def spare_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """Started and killed at will; on a socket in its folder it keeps its data, as an operator would; on a
    spare port it forgets them."""

    def __init__(self, folder, *options, on_port=False):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options, self.process = folder, options, None
        self.port = spare_port() if on_port else 0
        self.url = f"redis://127.0.0.1:{self.port}/0" if on_port else f"unix://{folder / 'r.sock'}"

    def start(self, password=None):
        where = (
            ["--bind", "127.0.0.1"]
            if self.port
            else [
                "--unixsocket",
                str(self.folder / "r.sock"),
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ]
        )
        words = ["--port", str(self.port), *where, "--dir", str(self.folder), "--save", "", *self.options]
        self.process = subprocess.Popen(
            [server_binary(), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=patience.die_with_parent,
        )
        self.client = redis.Redis.from_url(self.url, password=password)
        patience.wait_until(self.answers, self.process, every=0.02)
        return self

    def answers(self) -> bool:
        "Whether the server answers by now."
        try:
            return self.client.ping()
        except redis.RedisError:
            return False

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def live_settings(home, url="", **more):
    return Settings().with_(
        **(
            {
                "storage.home": str(home),
                "stream.redis_url": url,
                "stream.block_ms": 20,
                "stream.wait": 3,
                "data.quarantine_limit": 0.2,
                "data.start": "2000-01-01",
            }
            | more
        )
    )


def consumer_process(settings, *words):
    "A consumer in a process of its own; what it says comes through pipes."
    given = {
        "storage.home": settings.storage.home,
        "stream.redis_url": settings.stream.redis_url,
        "stream.block_ms": 20,
    }
    command = [
        sys.executable,
        "-m",
        "stockpredict.cli.main",
        "stream",
        *(w for k, v in given.items() for w in ("--set", f"{k}={v}")),
        "consume",
        *words,
        "--json",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

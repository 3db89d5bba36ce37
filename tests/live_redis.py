"A real Redis on a socket of its own, for tests of the live path."
import subprocess
import time

import redis

from stockpredict.core.settings import Settings
from stockpredict.data.stream import server_binary


class Server:
    "Started and killed at will; keeps its data in a folder, as an operator would."
    def __init__(self, folder, *options):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options, self.process = folder, options, None
        self.url = f"unix://{folder / 'r.sock'}"

    def start(self, password=None):
        words = ["--port", "0", "--unixsocket", str(self.folder / "r.sock"), "--dir", str(self.folder), "--appendonly", "yes", "--save", "", *self.options]
        self.process = subprocess.Popen([server_binary(), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = redis.Redis.from_url(self.url, password=password)
        until = time.monotonic() + 30
        while True:
            try: self.client.ping(); return self
            except redis.RedisError:
                if time.monotonic() > until: raise
                time.sleep(.02)

    def kill(self):
        if self.process and self.process.poll() is None: self.process.kill(); self.process.wait()


def live_settings(home, url="", **more):
    return Settings().with_(**({"storage.home": str(home), "stream.redis_url": url, "stream.block_ms": 20, "stream.wait": 3,
                                "data.quarantine_limit": .2, "data.start": "2000-01-01"} | more))

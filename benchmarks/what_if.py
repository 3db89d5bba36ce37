"""What-if forecasts beside LitServe and MLServer in one run: CPU per request, and p99 at an offered rate.

    python benchmarks/what_if.py [--seconds 3] [--clients 32] [--rate 200]

The same small LSTM answers everywhere. Ours receives sixty bars, checks them, computes the features among the
stored market and renders the whole forecast; the peers receive the finished windows of features and return
the numbers of the network, batched with up to 64 requests. CPU is that of the whole process tree for each
request, which is the figure to compare on a busy machine. The offered rate is an open loop: requests start
on time whether or not earlier ones are answered, and the wait counts. A peer that cannot be installed or
started is named with its error.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
import batch
import peers

NET = """
import torch
torch.set_num_threads(1)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = torch.nn.LSTM(4, 32, batch_first=True), torch.nn.Linear(32, 22)
    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])
net = Net().eval()
"""
LITSERVE = (
    NET
    + """
import litserve as ls
class Api(ls.LitAPI):
    def setup(self, device): pass
    def decode_request(self, request): return torch.tensor(request["x"])
    def batch(self, inputs): return torch.stack(inputs)
    def predict(self, x):
        with torch.inference_mode(): return net(x)
    def unbatch(self, output): return list(output)
    def encode_response(self, output): return {{"y": output.tolist()}}
if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.002)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    options = {{"num_api_servers": 1, "generate_client_file": False, "log_level": "error"}}
    server.run(host="127.0.0.1", port={port}, **options)
"""
)
MLSERVER = (
    NET
    + """
from mlserver import MLModel, types
class Model(MLModel):
    async def load(self): return True
    async def predict(self, payload):
        x = torch.tensor(payload.inputs[0].data.root).reshape(payload.inputs[0].shape)
        with torch.inference_mode(): y = net(x.float())
        data = y.flatten().tolist()
        out = types.ResponseOutput(name="y", shape=list(y.shape), datatype="FP32", data=data)
        return types.InferenceResponse(model_name=self.name, outputs=[out])
"""
)


def tree_seconds(process) -> float:
    "CPU seconds of a process and everything that it started."
    whole = [process, *process.children(recursive=True)]
    times = [p.cpu_times() for p in whole if p.is_running()]
    return sum(t.user + t.system for t in times)


def spare_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


async def send(reader, writer, request: bytes) -> bytes:
    "One request over a kept connection."
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    at = head.lower().index(b"content-length: ") + 16
    content = await reader.readexactly(int(head[at : head.index(b"\r", at)]))
    if b" 200 " not in head[:20]:
        raise SystemExit(f"refused: {head[:20]!r} {content[:300]!r}")
    return content


async def closed_loop(port: int, requests: list[bytes], clients: int, seconds: float) -> list[float]:
    "Each client asks again as soon as it has an answer."
    took, end, turn = [], time.perf_counter() + seconds, iter(range(10**9))

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < end:
            await send(reader, writer, requests[next(turn) % len(requests)])
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(one() for _ in range(clients)))
    return sorted(took)


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> list[float]:
    "Requests start on time, whatever became of those before."
    idle, took, began = [], [], time.perf_counter() + 0.1

    async def one(number: int):
        due = began + number / rate
        await asyncio.sleep(max(0, due - time.perf_counter()))
        pair = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        await send(*pair, requests[number % len(requests)])
        took.append(time.perf_counter() - due)
        idle.append(pair)

    await asyncio.gather(*(one(n) for n in range(int(rate * seconds))))
    for _, writer in idle:
        writer.close()
    return sorted(took)


def http(path: str, body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def start(words: list[str], port: int, home: Path, env: dict, probe: bytes):
    "A server, once it has answered."
    log = open(home / f"{port}.log", "wb")
    process = subprocess.Popen(words, cwd=home, env=env, stdout=log, stderr=log)
    for _ in range(600):
        try:
            asyncio.run(closed_loop(port, [probe], 1, 0.01))
            return psutil.Process(process.pid)
        except (OSError, asyncio.IncompleteReadError, SystemExit):
            time.sleep(0.2)
        if process.poll() is not None:
            break
    process.kill()
    tail = (home / f"{port}.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise SystemExit(f"did not answer: {tail[0][:300] if tail else 'no reason given'}")


def our_requests(settings, count: int = 200) -> list[bytes]:
    "Histories of sixty bars, each another."
    import random

    from stockpredict.predict.answer_table import open_answers

    example, noise = open_answers(settings).header["example"], random.Random(0)
    bodies = []
    for k in range(count):
        bars = [b | {"close": round(b["close"] * (1 + noise.gauss(0, 0.003)), 4)} for b in example["bars"]]
        bodies.append(http("/v1/predict", {"ticker": f"NEW{k}", "bars": bars, "horizon": 1}))
    return bodies


def ours(home: Path, env: dict):
    "Our service with the LSTM."
    from stockpredict.core.settings import load_settings
    from stockpredict.lake.lake import Lake
    from stockpredict.predict.answer_table import refresh_answers

    chosen = {"storage.home": f"{home}/home", "serving.device": "cpu", "data.source": "simulated"}
    settings = load_settings(None, chosen, environ={})
    bars = batch.many_bars(60, 420)
    with Lake(settings.storage) as lake:
        lake.append(bars)
    batch.publish(settings, bars, "lstm", ["ret_1", "mom_5", "vol_20"])
    refresh_answers(settings)
    (home / "settings.ini").write_text(settings.to_ini())
    port, requests = spare_port(), our_requests(settings)
    words = [sys.executable, "-m", "uvicorn", "--factory", "stockpredict.serve.app:app_factory"]
    words += ["--port", str(port), "--no-access-log", "--log-level", "error"]
    env = env | {"STOCKPREDICT_SETTINGS": str(home / "settings.ini")}
    return start(words, port, home, env, requests[0]), port, requests


def peer(name: str, home: Path, env: dict):
    "A peer with its own environment; torch is the one that we use."
    python, port = peers.environment(name), spare_port()
    import torch

    place = next((python.parent.parent / "lib").glob("python*/site-packages"))
    (place / "ours.pth").write_text(str(Path(torch.__file__).parents[1]))
    window = [[0.1 * ((i + j) % 7) - 0.3 for j in range(4)] for i in range(20)]
    if name == "litserve":
        (home / "lit.py").write_text(LITSERVE.format(port=port))
        requests = [http("/predict", {"x": window})]
        return start([str(python), "lit.py"], port, home, env, requests[0]), port, requests
    folder = home / "ml"
    folder.mkdir()
    (folder / "peer_model.py").write_text(MLSERVER)
    model = {
        "name": "net",
        "implementation": "peer_model.Model",
        "max_batch_size": 64,
        "max_batch_time": 0.002,
    }
    server = {"http_port": port, "grpc_port": spare_port(), "metrics_port": spare_port(), "debug": False}
    (folder / "model-settings.json").write_text(json.dumps(model))
    (folder / "settings.json").write_text(json.dumps(server | {"host": "127.0.0.1", "parallel_workers": 0}))
    data = {"name": "x", "shape": [1, 20, 4], "datatype": "FP32", "data": [v for row in window for v in row]}
    requests = [http("/v2/models/net/infer", {"inputs": [data]})]
    words = [str(python.with_name("mlserver")), "start", "."]
    return start(words, port, folder, env, requests[0]), port, requests


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--seconds", type=float, default=3.0)
    ask.add_argument("--clients", type=int, default=32)
    ask.add_argument("--rate", type=float, default=200.0)
    ask.add_argument("--rounds", type=int, default=2)
    args = ask.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, env, servers = Path(folder), os.environ | {"OMP_NUM_THREADS": "1"}, {}
        for name in ("ours", "litserve", "mlserver"):
            try:
                servers[name] = ours(home, env) if name == "ours" else peer(name, home, env)
            except (SystemExit, OSError, subprocess.SubprocessError) as error:
                print(f"{name}: {error}", flush=True)
        time.sleep(3)
        print(f"{'':<10}{'rps':>8}{'p99 ms':>8}{'CPU µs':>8}   at {args.rate:g} rps offered: p50, p99 ms")
        for _ in range(args.rounds):
            for name, (process, port, requests) in servers.items():
                before, began = tree_seconds(process), time.perf_counter()
                took = asyncio.run(closed_loop(port, requests, args.clients, args.seconds))
                wall, used = time.perf_counter() - began, tree_seconds(process) - before
                late = asyncio.run(open_loop(port, requests, args.rate, args.seconds))
                p99, half = took[int(len(took) * 0.99)] * 1e3, late[len(late) // 2] * 1e3
                row = f"{name:<10}{len(took) / wall:>8,.0f}{p99:>8.1f}{used / len(took) * 1e6:>8,.0f}"
                print(f"{row}   {half:8.1f} {late[int(len(late) * 0.99)] * 1e3:8.1f}", flush=True)
        for process, *_ in servers.values():
            for child in [*process.children(recursive=True), process]:
                child.terminate()


if __name__ == "__main__":
    main()

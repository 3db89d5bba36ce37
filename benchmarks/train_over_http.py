"""A whole training through `POST /v1/train`, followed to its end, on a small simulated market.

    python benchmarks/train_over_http.py [--prefect]

A service in this process gets the request, starts the flow `retrain` as a job, and its job is looked at until
it has ended; then the prediction of the model that was published is read. With `--prefect` a real Prefect
server and the process that serves its deployments are started on spare ports, and the job follows a run of
the deployment there. Prints the steps as they are reported, and the processor seconds of all processes.
"""

import argparse
import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path

import httpx
import psutil


def spare_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


async def train(settings, again: int):
    "Ask for a training `again` times, one after the other; the cards of the jobs."
    from stockpredict.serve.app import create_app

    cards, app = [], create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(again):
                answer = await client.post("/v1/train", json={"mode": "full"}, timeout=60)
                if answer.status_code != 202:
                    raise SystemExit(answer.text)
                address, seen = answer.headers["location"], ""
                while (card := (await client.get(address)).json()["data"])["state"] == "running":
                    step = str(card["progress"])
                    if step != seen:
                        print(f"  {step}", flush=True)
                    seen = step
                    await asyncio.sleep(1)
                cards.append(card)
            listed = await client.get("/v1/predictions?horizon=1&limit=1")
            print(listed.status_code, listed.json()["data"] and listed.json()["data"][0]["model"])
    return cards


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--prefect", action="store_true", help="follow a run on a real server")
    ask.add_argument("--again", type=int, default=1, help="how often, on the same data")
    args = ask.parse_args()
    from stockpredict.core.settings import load_settings
    from stockpredict.ops.parts import parts
    from stockpredict.ops.pipeline import SMALL
    from stockpredict.ops.processes import down, up
    from stockpredict.serve.training import find_deployment

    with tempfile.TemporaryDirectory() as place:
        os.environ["PREFECT_HOME"] = f"{place}/prefect"
        os.environ.pop("PREFECT_API_URL", None)
        changes = SMALL | {"storage.home": f"{place}/home", "storage.reports": f"{place}/reports"}
        changes |= {"schedule.prefect_port": spare_port(), "serving.device": "cpu"}
        settings = load_settings(None, changes, environ={})
        plain = {k: ",".join(v) if isinstance(v, list) else str(v) for k, v in changes.items()}
        options = [word for k, v in plain.items() for word in ("--set", f"{k}={v}")]
        try:
            if args.prefect:
                wanted = [p for p in parts(settings, options) if p.name in ("prefect", "schedule")]
                up(wanted, settings.storage.home_dir)
                while not find_deployment(settings)[1]:
                    time.sleep(1)
                print("Deployed.", flush=True)
            began = psutil.cpu_times()
            for card in asyncio.run(train(settings, args.again)):
                print(card["state"], card["progress"], card["result"], card["error"], card["report"])
            print(f"{sum(psutil.cpu_times()[:4:2]) - sum(began[:4:2]):.0f} CPU s on the whole machine")
        finally:
            down(settings.storage.home_dir) if args.prefect else None
            assert Path(place).exists()


if __name__ == "__main__":
    main()

"""Mixed concurrent requests, each with its own right answer computed beforehand: none crossed, empty or lost.

    python benchmarks/crossed_answers.py [--requests 1000000] [--sockets 20000] [--workers 96]
    python benchmarks/crossed_answers.py --notes crossed.json --seconds 180    # again, until all are made

Each what-if request is a series of its own: a pool of histories, answered one by one before the start, each
scaled by a factor that no other request has. A scaled history has the same returns, so its quantiles are
those of the pool (to the last digit that is written), while its last close and its prices are its own. Stored
forecasts are read between them. One request in a hundred is cancelled while it waits or disconnects, and one
in fifty is refused by the rules. The bulk calls the ASGI application in this process, the rest goes over
sockets to a server of its own. With `--notes` the counts and the next number are kept in a file, so that a
million requests can be made in several runs; the market, the histories and the numbers are the same in each.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def pool_of(engine, size: int) -> list[dict]:
    "Histories and what the model says about each, one at a time."
    import numpy as np

    from stockpredict.predict.schemas import WhatIf
    from stockpredict.predict.what_if import predict_bars

    window, noise, pool = engine.window(), np.random.default_rng(0), []
    live = [t for t in window.inputs.tickers if t in window.closes]
    for i in range(size):
        ticker = live[i % len(live)]
        rows = window.bars[window.bars.ticker == ticker].iloc[-60:]
        days = engine.calendar.session_of(rows.event_time).strftime("%Y-%m-%d")
        closes = rows.close.to_numpy() * (1 + noise.normal(0, 0.004, len(rows)))
        name = ticker if i % 2 else f"NEW{i}"
        bars = [{"date": d, "close": c} for d, c in zip(days, closes, strict=True)]
        request = WhatIf.model_validate({"ticker": name, "bars": bars, "horizon": 1})
        (answer,) = predict_bars(engine, [request])
        answer = next(p for p in answer if p["horizon"] == 1)
        pool.append({"ticker": name, "days": list(days), "closes": closes, "answer": answer})
    return pool


def scaled_request(pool: list[dict], number: int) -> tuple[bytes, dict, float]:
    "The body of a what-if request that no other request has, the answer of its history, and its last close."
    import orjson

    entry, factor = pool[number % len(pool)], 1 + number * 1e-6
    closes = (entry["closes"] * factor).tolist()
    bars = [{"date": d, "close": c} for d, c in zip(entry["days"], closes, strict=True)]
    body = {"ticker": entry["ticker"], "bars": bars, "horizon": 1}
    return orjson.dumps(body), entry["answer"], closes[-1]


def is_right(data: dict, answer: dict, close: float) -> bool:
    "Is this the answer to this very request?"
    mine = data["ticker"] == answer["ticker"] and data["last_close"] == float(f"{close:.8g}")
    levels = all(abs(data["quantiles"][k] - v) <= 2.5e-6 for k, v in answer["quantiles"].items())
    return mine and levels and data["source"] == "caller"


def plan_of(number: int, tickers: list[str], pool: list[dict], share: float) -> dict:
    "Request number so and so, and what its answer has to be."
    draw = random.Random(number)
    kind = draw.random()
    fate = "cancel" if (luck := draw.random()) < 0.005 else "disconnect" if luck < 0.01 else "stay"
    if kind < 0.02:
        return {"path": "/v1/predictions/NOPE", "query": b"horizon=1", "status": 404, "fate": fate}
    if kind < 1 - share:
        ticker, horizon = draw.choice(tickers), draw.choice((1, 5))
        path = f"/v1/predictions/{ticker if draw.random() < 0.9 else ticker.lower()}"
        return {"path": path, "query": b"horizon=%d" % horizon, "stored": (ticker, horizon), "fate": fate}
    body, answer, close = scaled_request(pool, number)
    return {"path": "/v1/predict", "body": body, "answer": answer, "close": close, "fate": fate}


def verdict(plan: dict, status: int, content: bytes, request_id: str, stored: dict) -> str:
    "right, or what is wrong with an answer."
    if not content:
        return "empty"
    answer = json.loads(content)
    if answer["metadata"]["request_id"] != request_id:
        return "crossed"
    if status != plan.get("status", 200):
        return f"status {status}"
    if "stored" in plan:
        same = all(answer["data"][k] == v for k, v in stored[plan["stored"]].items())
        return "right" if same else "crossed"
    if "answer" in plan:
        return "right" if is_right(answer["data"], plan["answer"], plan["close"]) else "crossed"
    return "right"


async def call(app, plan: dict, request_id: str) -> tuple[int, bytes]:
    "One request to an ASGI application."
    body, sent, parts, status = plan.get("body", b""), False, [], 0
    headers = [(b"host", b"localhost"), (b"x-request-id", request_id.encode())]
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http"}
    scope |= {"method": "POST" if body else "GET", "path": plan["path"], "raw_path": plan["path"].encode()}
    scope |= {"query_string": plan.get("query", b""), "headers": headers, "root_path": "", "state": {}}
    scope |= {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}

    async def receive():
        nonlocal sent
        if sent or plan["fate"] == "disconnect":
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)


async def one(app, plan: dict, number: int, stored: dict) -> str:
    "What became of one request."
    request_id = f"r-{number}"
    if plan["fate"] == "cancel":
        task = asyncio.ensure_future(call(app, plan, request_id))
        await asyncio.sleep(random.random() * 0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "gone"
    if plan["fate"] == "disconnect":
        await asyncio.gather(call(app, plan, request_id), return_exceptions=True)
        return "gone"
    return verdict(plan, *await asyncio.wait_for(call(app, plan, request_id), 120), request_id, stored)


async def bulk(app, numbers, workers: int, pool: list, stored: dict, share: float) -> Counter:
    "Many requests at a time until all numbers are used."
    tickers, numbers, results = sorted({t for t, _ in stored}), iter(numbers), Counter()

    async def worker():
        for number in numbers:
            plan = plan_of(number, tickers, pool, share)
            try:
                results[await one(app, plan, number, stored)] += 1
            except Exception as error:
                results[f"lost: {type(error).__name__}"] += 1

    await asyncio.gather(*(worker() for _ in range(workers)))
    return results


async def over_sockets(
    port: int, count: int, workers: int, pool: list, stored: dict, share: float
) -> Counter:
    "The same over connections; those that go away close their socket in the middle."
    tickers, numbers, results = sorted({t for t, _ in stored}), iter(range(count)), Counter()

    async def worker():
        reader = writer = None
        for number in numbers:
            plan, request_id = plan_of(number, tickers, pool, share), f"s-{number}"
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body, query = plan.get("body", b""), plan.get("query", b"").decode()
            head = f"{'POST' if body else 'GET'} {plan['path']}{'?' + query if query else ''} HTTP/1.1\r\n"
            head += f"Host: localhost\r\nX-Request-ID: {request_id}\r\n"
            if body:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"\r\n" + body)
            if plan["fate"] != "stay":
                await asyncio.sleep(random.random() * 0.002)
                writer.transport.abort()
                writer = None
                results["gone"] += 1
                continue
            try:
                start = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120)
                at = start.lower().index(b"content-length: ") + 16
                content = await reader.readexactly(int(start[at : start.index(b"\r", at)]))
                results[verdict(plan, int(start[9:12]), content, request_id, stored)] += 1
            except Exception as error:
                writer = None
                results[f"lost: {type(error).__name__}"] += 1
        if writer is not None:
            writer.close()

    await asyncio.gather(*(worker() for _ in range(workers)))
    return results


def stored_answers(settings) -> dict:
    "What the table says: ticker and horizon to the fields of the answer."
    from stockpredict.predict.answer_table import open_answers

    table = open_answers(settings)
    return {key: json.loads(body + b"}") for key, body in table.rows.items()}


def numbers_until(first: int, count: int, seconds: float):
    "The numbers from the first one on, as long as there is time."
    end = time.monotonic() + seconds if seconds else float("inf")
    for number in range(first, count):
        if time.monotonic() > end:
            return
        yield number


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--requests", type=int, default=1_000_000)
    ask.add_argument("--sockets", type=int, default=20_000)
    ask.add_argument("--workers", type=int, default=96)
    ask.add_argument("--pool", type=int, default=300)
    ask.add_argument("--share", type=float, default=0.2, help="of what-if requests")
    ask.add_argument("--seconds", type=float, default=0, help="of the requests in process; 0 for no limit")
    ask.add_argument("--notes", type=Path, help="file of counts, from which the next run goes on")
    args = ask.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    import serving

    from stockpredict.serve.app import create_app

    with tempfile.TemporaryDirectory() as folder:
        settings = serving.prepare(Path(folder))
        app = create_app(settings)
        service = app.state.service
        service.load_engine()
        pool, stored = pool_of(service.engine, args.pool), stored_answers(settings)
        notes = json.loads(args.notes.read_text()) if args.notes and args.notes.exists() else {}
        began, used, first = time.monotonic(), time.process_time(), sum(notes.values())
        numbers = numbers_until(first, args.requests, args.seconds)
        results = asyncio.run(bulk(app, numbers, args.workers, pool, stored, args.share))
        wall, used = time.monotonic() - began, time.process_time() - used
        total = f"{sum(results.values()):,} requests in {wall:.0f} s, {used:.0f} CPU s"
        print(f"in process: {total}: {dict(results)}", flush=True)
        if args.notes:
            results += Counter(notes)
            args.notes.write_text(json.dumps(results))
            print(f"in all runs: {sum(results.values()):,} requests: {dict(results)}", flush=True)
        wrong = sum(results.values()) - results["right"] - results["gone"]
        if args.sockets:
            (Path(folder) / "ours.py").write_text(serving.OURS)
            env = os.environ | {"STOCKPREDICT_SETTINGS": f"{folder}/settings.ini", "OMP_NUM_THREADS": "1"}
            process, port = serving.start("ours:fast", Path(folder), env)
            try:
                results = asyncio.run(over_sockets(port, args.sockets, 32, pool, stored, args.share))
            finally:
                process.terminate()
                process.wait(30)
            print(f"over sockets: {sum(results.values()):,} requests: {dict(results)}")
            wrong += sum(results.values()) - results["right"] - results["gone"]
    print(f"{wrong} crossed, empty or lost")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

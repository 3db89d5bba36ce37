"""Mixed concurrent requests, each with its own right answer computed beforehand: none crossed, empty or lost.

    python benchmarks/crossed_answers.py [--requests 1000000] [--notes crossed.json] [--seconds 180]

A service as `stockpredict serve` starts it (a reader and an engine in processes of their own) is asked over
sockets: each process of clients keeps connections open and sends up to so many requests ahead on each. Four
kinds are mixed: one ticker, several, the caller's own bars (what-if), and questions that the rules refuse.
One request in a hundred is never answered: its connection ends while it is sent, or while it waits. A batch
whose connection had ended before any of it was answered is sent again, as clients of HTTP do; it is counted.

Each what-if is a series of its own: a pool of histories, answered one by one before the start, each scaled by
a factor that no other request has. A scaled history has the same returns, so its quantiles are those of the
pool (to the last digit that is written), while its last close and its prices are its own. Stored answers have
to be the bytes of the table. Every answer has to carry the id of its request.

With `--notes` counts are kept in a file after each block of requests, and the next run goes on from there:
the market, the histories and the requests are the same in each run. `--in-process N` calls the application
in this process N times instead, without sockets, where requests are cancelled as tasks are.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

BLOCK = 5_000  # requests between two looks at the clock and the notes
PATIENCE = 120  # seconds until an answer counts as lost


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


def mixed_plan(number: int, tickers: list[str], pool: list[dict], share: float) -> dict:
    "A request as `plan_of` makes it, or one for several tickers."
    draw = random.Random(number)
    if draw.random() >= 0.1:
        return plan_of(number, tickers, pool, share)
    drawn, horizon = sorted(draw.sample(tickers, draw.randint(2, 6))), draw.choice((1, 5))
    query = b"tickers=%b&horizon=%d" % (",".join(drawn).encode(), horizon)
    fate = "disconnect" if draw.random() < 0.01 else "stay"
    return {"path": "/v1/predictions", "query": query, "listed": [(t, horizon) for t in drawn], "fate": fate}


def wire_bytes(plan: dict, request_id: bytes) -> bytes:
    "A request as it is sent."
    path, query, body = plan["path"].encode(), plan.get("query", b""), plan.get("body", b"")
    target = path + b"?" + query if query else path
    head = b"%b %b HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %b\r\n"
    head %= b"POST" if body else b"GET", target, request_id
    if body:
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return head + b"\r\n" + body


STARTS = b'{"success":true,"data":'


def wire_verdict(plan: dict, head: bytes, content: bytes, request_id: bytes, rows: dict) -> str:
    "right, or what is wrong with an answer from a socket; stored answers are compared as bytes."
    import orjson

    if not content:
        return "empty"
    if b'"request_id":"%b"' % request_id not in content[-400:]:
        return "crossed"
    if (status := int(head[9:12])) != plan.get("status", 200):
        return f"status {status}"
    if "stored" in plan:
        return "right" if content.startswith(STARTS + rows[plan["stored"]]) else "crossed"
    if "listed" in plan:
        parts = content[len(STARTS) + 1 :].split(b'{"ticker":')[1:]
        wanted = [rows[key].removeprefix(b'{"ticker":') for key in plan["listed"]]
        same = len(parts) == len(wanted) and all(p.startswith(w) for p, w in zip(parts, wanted, strict=True))
        return "right" if same else "crossed"
    if "answer" in plan:
        data = orjson.loads(content)["data"]
        return "right" if is_right(data, plan["answer"], plan["close"]) else "crossed"
    return "right"


async def read_answer(reader) -> tuple[bytes, bytes]:
    "Head and body of the next answer on a connection."
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    at = head.lower().index(b"content-length: ") + 16
    return head, await reader.readexactly(int(head[at : head.index(b"\r", at)]))


AGAIN = "sent again"  # batches, not requests: a connection had ended before the service read any of it


async def ask_ahead(port: int, connection, batch: list, rows: dict, results: Counter):
    "Send requests ahead on one connection, and judge what comes; returns the connection, if it goes on."
    reader, writer = connection or await asyncio.open_connection("127.0.0.1", port)
    sent = [wire_bytes(plan, request_id) for plan, request_id in batch]
    fate, answered = batch[-1][0]["fate"], 0
    if fate == "disconnect":
        sent[-1] = sent[-1][: random.randint(1, len(sent[-1]) - 1)]
    writer.write(b"".join(sent))
    try:
        for plan, request_id in batch if fate == "stay" else batch[:-1]:
            results[wire_verdict(plan, *await read_answer(reader), request_id, rows)] += 1
            answered += 1
    except (OSError, EOFError, TimeoutError) as error:
        writer.transport.abort()
        if connection and not answered and not isinstance(error, TimeoutError):
            results[AGAIN] += 1  # the service closes what is idle for 15 s, as each client has to expect
            return await ask_ahead(port, None, batch, rows, results)
        results[f"lost: {type(error).__name__}"] += len(batch) - answered
        return None
    if fate == "stay":
        return reader, writer
    await asyncio.sleep(random.random() * 0.002)
    writer.transport.abort()
    results["gone"] += 1
    return None


async def over_sockets(port, numbers, connections: int, ahead: int, plan, rows: dict) -> Counter:
    "All requests of a block, on several connections at once."
    numbers, results = iter(numbers), Counter()

    async def worker():
        connection, batch = None, []
        for number in numbers:
            batch.append((plan(number), b"s-%d" % number))
            if len(batch) < ahead and batch[-1][0]["fate"] == "stay":
                continue
            connection, batch = await ask_ahead(port, connection, batch, rows, results), []
        if batch:
            connection = await ask_ahead(port, connection, batch, rows, results)
        if connection:
            connection[1].close()

    await asyncio.gather(*(worker() for _ in range(connections)))
    return results


def number_of(counts: Counter) -> int:
    "How many requests were made."
    return sum(counts.values()) - counts[AGAIN]


def block_of(first: int, shared: dict) -> Counter:
    "The requests of one block, in a process of clients."
    plan = partial(mixed_plan, tickers=shared["tickers"], pool=shared["pool"], share=shared["share"])
    numbers = range(first, min(first + BLOCK, shared["requests"]))
    return asyncio.run(
        over_sockets(shared["port"], numbers, shared["connections"], shared["ahead"], plan, shared["rows"])
    )


def all_blocks(shared: dict, processes: int, seconds: float, notes: Path | None) -> Counter:
    "Every block that is still to be made, counted as it ends."
    counts = Counter(json.loads(notes.read_text())["counts"] if notes and notes.exists() else {})
    end = time.monotonic() + seconds if seconds else float("inf")
    blocks = range(number_of(counts), shared["requests"], BLOCK)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for at in range(0, len(blocks), processes):
            if time.monotonic() > end:
                break
            for result in pool.map(partial(block_of, shared=shared), blocks[at : at + processes], 1):
                counts += result
            state = {"command": "python " + " ".join(sys.argv), "requests": number_of(counts)}
            if notes:
                notes.write_text(json.dumps(state | {"counts": dict(counts)}, indent=1) + "\n")
    return counts


def stored_answers(settings) -> dict:
    "What the table says: ticker and horizon to the fields of the answer."
    return {key: json.loads(body + b"}") for key, body in stored_rows(settings).items()}


def stored_rows(settings) -> dict:
    "What the table says: ticker and horizon to the bytes of the answer."
    from stockpredict.predict.answer_table import open_answers

    return open_answers(settings).rows


def serve(home: Path):
    "The service as its command starts it; returns the process and its port once it answers a what-if."
    import serving

    env = os.environ | {"STOCKPREDICT_SETTINGS": str(home / "settings.ini"), "OMP_NUM_THREADS": "1"}
    port = serving.spare_port()
    command = ["-m", "stockpredict.cli.main", "serve", "--readers", "1", "--engine", "1", "--port", str(port)]
    return serving.start_program(command, port, env, home)


def wait_for_engine(port: int, pool: list[dict]):
    "Ask one what-if until it is answered."
    from urllib.request import Request, urlopen

    body = scaled_request(pool, 0)[0]
    for _ in range(600):
        request = Request(f"http://127.0.0.1:{port}/v1/predict", body, {"Content-Type": "application/json"})
        try:
            return urlopen(request, timeout=60).read()
        except OSError:
            time.sleep(0.2)
    raise SystemExit("The engine does not answer.")


def in_process(settings, pool: list[dict], count: int, share: float) -> Counter:
    "The application called in this process."
    from stockpredict.serve.app import create_app

    app = create_app(settings)
    app.state.service.load_engine()
    return asyncio.run(bulk(app, range(count), 96, pool, stored_answers(settings), share))


def measure(args, home: Path) -> Counter:
    "Prepare a market and the right answers, then ask."
    import serving

    from stockpredict.predict.several_models import Engine

    settings = serving.prepare(home)
    pool, rows = pool_of(Engine(settings), args.pool), stored_rows(settings)
    if args.in_process:
        return in_process(settings, pool, args.in_process, args.share)
    process, port = serve(home)
    try:
        wait_for_engine(port, pool)
        shared = {"port": port, "rows": rows, "pool": pool, "tickers": sorted({t for t, _ in rows})}
        shared |= {k: getattr(args, k) for k in ("requests", "connections", "ahead", "share")}
        used = serving.cpu_of_tree(process.pid)
        counts = all_blocks(shared, args.processes, args.seconds, args.notes)
        print(f"the service used {serving.cpu_of_tree(process.pid) - used:.0f} CPU s")
    finally:
        process.terminate()
        process.wait(60)
    return counts


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--requests", type=int, default=1_000_000)
    ask.add_argument("--processes", type=int, default=2)
    ask.add_argument("--connections", type=int, default=32, help="of each process")
    ask.add_argument("--ahead", type=int, default=6, help="requests sent ahead on a connection")
    ask.add_argument("--pool", type=int, default=300)
    ask.add_argument("--share", type=float, default=0.2, help="of what-if requests")
    ask.add_argument("--seconds", type=float, default=0, help="no block begins later; 0 for no limit")
    ask.add_argument("--notes", type=Path, help="file of counts, from which the next run goes on")
    ask.add_argument("--in-process", type=int, default=0, help="so many calls in this process instead")
    args = ask.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        results = measure(args, Path(folder))
    wrong = number_of(results) - results["right"] - results["gone"]
    print(f"{number_of(results):,} requests ({time.monotonic() - began:.0f} s this run): {dict(results)}")
    print(f"{wrong} crossed, empty or lost")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

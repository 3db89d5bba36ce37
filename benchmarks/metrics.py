"""What a scrape of `/metrics` costs: CPU time of the whole service, after few and after many requests, beside
the Python client of Prometheus with the same series.

    python benchmarks/metrics.py [requests]

The service is `stockpredict serve` with two readers and an engine; CPU time is that of the process tree, so
answering over HTTP is part of it. The second run follows on ten times as many requests as the first: the cost
of a scrape follows the number of series and not the number of requests.
"""

import http.client
import sys
import tempfile
import time
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from serving import prepare, spare_port
from serving_load import ready, start_service

from stockpredict.serve.service_metrics import LATENCY_BUCKETS

SCRAPES = 200
PATHS = ("/v1/predictions/{}?horizon=1", "/v1/predictions/{}", "/v1/predictions", "/v1/models", "/", "/no")


def cpu(process: psutil.Process) -> float:
    "CPU seconds of a process tree so far."
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def ask(connection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


def spent(process, connection, path: str, times: int) -> float:
    "CPU seconds of one request, beyond what the service does anyway in that time."
    begin, started = cpu(process), time.perf_counter()
    for _ in range(times):
        ask(connection, path)
    busy, wall = cpu(process) - begin, time.perf_counter() - started
    begin = cpu(process)
    time.sleep(wall)
    return max(0.0, busy - (cpu(process) - begin)) / times


def peer(series: int) -> float:
    "CPU seconds in which the Python client renders as many series of a histogram, in one process."
    registry = CollectorRegistry()
    histogram = Histogram("request_seconds", "Time.", ["route"], buckets=LATENCY_BUCKETS, registry=registry)
    for number in range(series):
        histogram.labels(str(number)).observe(0.01)
    begin = time.process_time()
    for _ in range(SCRAPES):
        generate_latest(registry)
    return (time.process_time() - begin) / SCRAPES


def main():
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    with tempfile.TemporaryDirectory() as home:
        settings, ticker = prepare_service(home)
        port = spare_port()
        service = start_service(settings, Path(home), port, readers=2)
        try:
            while not ready(port):
                time.sleep(0.2)
            process, rows = psutil.Process(service.pid), []
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for path in PATHS:
                ask(connection, path.format(ticker))
            for more in (requests, 9 * requests):
                for number in range(more):
                    ask(connection, PATHS[number % 2].format(ticker))
                text = ask(connection, "/metrics").decode()
                histograms = text.count("stockpredict_request_seconds_count")
                lines = sum(not line.startswith("#") for line in text.splitlines())
                rows.append((more, lines, histograms, spent(process, connection, "/metrics", SCRAPES)))
        finally:
            service.terminate()
            service.wait()
    total = 0
    for more, lines, _, seconds in rows:
        total += more
        print(f"after {total:>9,} requests: {seconds * 1e3:.2f} ms CPU a scrape, {lines} lines")
    alone = peer(histograms)
    print(f"prometheus_client, one process, the {histograms} histograms alone: {alone * 1e3:.2f} ms CPU")
    print(f"target: below 5 ms, and the same after ten times the requests ({rows[1][3] / rows[0][3]:.2f}x)")


def prepare_service(home: str):
    "Settings of a small desk with a model and a table, and one of its tickers."
    from stockpredict.predict.answer_table import open_answers

    settings = prepare(Path(home))
    return settings, open_answers(settings).tickers[0]


if __name__ == "__main__":
    main()

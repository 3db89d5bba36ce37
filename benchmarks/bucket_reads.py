"""What the comparison with checksums costs a lake in a bucket, beside one in a folder.

    python benchmarks/bucket_reads.py [--tickers 100] [--sessions 1500]

The bucket is moto's server on this machine, so the seconds tell of work and not of a network. A new process
opens the lake and reads all bars three times. The first read compares every object; the next ones ask the
bucket for a listing. A line gives CPU and elapsed seconds of the comparison and of the whole read.

With 149,697 bars in 5.6 MiB the first comparison took 0.036 of 0.595 CPU s in a bucket and 0.010 of 0.473 in
a folder, the later ones 0.006 and 0.005. Beside other work it was 0.063 of 0.593 in a bucket. Objects are
fetched whole for it, and the query that follows on the connection takes its rows from there.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")


def lake_at(home: str, data: str):  # settings.storage
    "A lake with its catalog in a folder and its data in another place; empty = in the same folder."
    from stockpredict.core.settings import Settings

    return Settings().with_(**{"storage.home": home, "storage.data_path": data}).storage


def read_bars(home: str, data: str):
    "Read all bars three times and print what the comparisons took."
    from stockpredict.lake.lake import Lake

    spent, check = [0.0, 0.0], Lake.before_read

    def timed(*args, **more):
        cpu, elapsed = time.process_time(), time.perf_counter()
        try:
            return check(*args, **more)
        finally:
            spent[0] += time.process_time() - cpu
            spent[1] += time.perf_counter() - elapsed

    next(c for c in Lake.__mro__ if "before_read" in vars(c)).before_read = timed
    for number in (1, 2, 3):
        spent[:] = 0.0, 0.0
        cpu, elapsed = time.process_time(), time.perf_counter()
        with Lake(lake_at(home, data), read_only=True) as lake:
            rows = len(lake.bars())
        cpu, elapsed = time.process_time() - cpu, time.perf_counter() - elapsed
        place = "bucket" if data else "folder"
        print(
            f"{place}   read {number}   {rows:,} bars   compared in {spent[0]:.3f} of {cpu:.3f} CPU s", end=""
        )
        print(f", {spent[1]:.3f} of {elapsed:.3f} s", flush=True)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--tickers", type=int, default=100)
    ask.add_argument("--sessions", type=int, default=1500)
    ask.add_argument("--read", nargs=2, metavar=("HOME", "DATA"), help="used by the command itself")
    args = ask.parse_args()
    if args.read:
        read_bars(*args.read)
        return
    import httpx
    from moto.server import ThreadedMotoServer

    from stockpredict.lake.lake import Lake
    from stockpredict.sources.simulate import sample_bars

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    os.environ |= dict(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")
    httpx.put(f"{url}/market").raise_for_status()
    market = sample_bars(tickers=args.tickers, sessions=args.sessions)
    try:
        for data in ("s3://market/lake", ""):
            with tempfile.TemporaryDirectory() as home:
                with Lake(lake_at(home, data)) as lake:
                    lake.append(market, now="2024-01-02T12:00Z")
                time.sleep(3)  # an object that is younger than two seconds is compared again
                subprocess.run([sys.executable, __file__, "--read", home, data], check=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()

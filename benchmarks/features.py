"""Feature values for a whole market, beside TA-Lib, Polars and a plain numba loop, in one run.

    python benchmarks/features.py [--tickers 800] [--rounds 3] [--no-install]

The panel is made from a fixed seed: 800 tickers, 3,393 sessions. CPU seconds of the whole process are compared (best of
the rounds, after a first one that compiles and proves), because they survive a busy machine better than the clock does.
The peers live in an environment of their own in the user's cache folder, which the first run makes; what cannot be
installed is reported as absent. Qlib is not installed: its figures are those recorded earlier on a machine of this kind.
"""
import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FIELDS = ("open", "high", "low", "close", "volume")
DIGEST = "f3d06bd9f0edbde2" # of the values of the full panel
PEERS = ("numba", "polars", "TA-Lib")
QLIB = {"14": "2.0-2.8 (both caches warm), 11 (no cache)", "alpha158": "156, 8.0 GB in all processes"}
CEILING = {"14": .3, "alpha158": 4., "all": 10.}


def wave(noise, phi):
    out = np.empty_like(noise)
    out[0] = noise[0] / np.sqrt(1 - phi * phi)
    for t in range(1, len(noise)): out[t] = phi * out[t - 1] + noise[t]
    return out


def market(tickers: int) -> dict[str, np.ndarray]:
    "A market with volatility in waves, fat tails and a common factor; sessions down, tickers across."
    rng = np.random.Generator(np.random.PCG64(20200101))
    days = np.arange(np.datetime64("2007-01-01"), np.datetime64("2020-01-02"))
    days = days[np.is_busday(days)]
    t, n = len(days), tickers
    factor = .0002 + .010 * np.exp(wave(rng.standard_normal(t) * .20 * np.sqrt(1 - .97**2), .97)) * rng.standard_normal(t)
    start, beta = np.exp(np.log(30.) + .8 * rng.standard_normal(n)), 1. + .3 * rng.standard_normal(n)
    risk = np.exp(np.log(.018) + .35 * rng.standard_normal(n))
    own = rng.standard_t(4, size=(t, n)) / np.sqrt(2.)
    move = np.clip(factor[:, None] * beta + risk * own - risk**2 / 2, -.35, .35)
    close = start * np.exp(np.cumsum(move, axis=0))
    open_ = np.vstack([start[None, :], close[:-1]]) * np.exp(.3 * risk * rng.standard_normal((t, n)))
    high = np.maximum(open_, close) * np.exp(.5 * risk * np.abs(rng.standard_normal((t, n))))
    low = np.minimum(open_, close) * np.exp(-.5 * risk * np.abs(rng.standard_normal((t, n))))
    base = np.log(2e6) + rng.standard_normal(n)
    mood = wave(rng.standard_normal((t, n)) * .35 * np.sqrt(1 - .8**2), .8)
    volume = np.maximum(np.rint(np.exp(base + mood + 8 * np.abs(move))), 1.)
    x = {k: np.round(v, 4) for k, v in dict(open=open_, high=high, low=low, close=close).items()} | {"volume": volume.astype(np.int64)}
    digest = hashlib.sha256()
    for k in FIELDS: digest.update(np.ascontiguousarray(x[k].T).ravel().tobytes())
    if tickers == 800 and not digest.hexdigest().startswith(DIGEST): print("note: this NumPy draws another panel than the recorded one")
    return {k: v.astype(np.float32) for k, v in x.items()} | {"days": days}


# --- the fourteen, four times

def ours(x, which):
    import pandas as pd
    import torch

    from stockpredict.features.catalogue import Feature, compute
    from stockpredict.features.panel import Panel
    panel = Panel({k: torch.from_numpy(x[k]) for k in FIELDS}, pd.DatetimeIndex(x["days"]), [f"T{i:04d}" for i in range(x["close"].shape[1])])
    fourteen = dict(
        std_5=lambda b: b.close.std(5) / b.close, std_20=lambda b: b.close.std(20) / b.close,
        mean_5=lambda b: b.close.mean(5) / b.close, mean_20=lambda b: b.close.mean(20) / b.close,
        ref_5=lambda b: b.close.lag(5) / b.close, ref_20=lambda b: b.close.lag(20) / b.close,
        max_20=lambda b: b.high.max(20) / b.close, min_20=lambda b: b.low.min(20) / b.close,
        slope_20=lambda b: b.close.slope(20) / b.close, corr_20=lambda b: b.close.corr((b.volume + 1).log(), 20),
        vmean_5=lambda b: b.volume.mean(5) / (b.volume + 1e-12), vstd_20=lambda b: b.volume.std(20) / (b.volume + 1e-12),
        body=lambda b: (b.close - b.open) / b.open,
        rsv_20=lambda b: (b.close - b.low.min(20)) / (b.high.max(20) - b.low.min(20) + 1e-12))
    for name, f in fourteen.items(): f.__name__ = name
    names = [Feature(f) for f in fourteen.values()] if which == "14" else which
    return lambda: compute(panel, names)


def talib(x, which):
    import talib as ta
    o, h, lo, c, v = (np.ascontiguousarray(x[k].T.astype(np.float64)) for k in FIELDS)
    def one(o, h, lo, c, v):
        past = lambda n: np.concatenate([np.full(n, np.nan), c[:-n]])
        low, high = ta.MIN(lo, 20), ta.MAX(h, 20)
        return [ta.STDDEV(c, 5) / c, ta.STDDEV(c, 20) / c, ta.SMA(c, 5) / c, ta.SMA(c, 20) / c, past(5) / c, past(20) / c, high / c, low / c,
                ta.LINEARREG_SLOPE(c, 20) / c, ta.CORREL(c, np.log(v + 1), 20), ta.SMA(v, 5) / (v + 1e-12), ta.STDDEV(v, 20) / (v + 1e-12),
                (c - o) / o, (c - low) / (high - low + 1e-12)]
    return lambda: [one(*parts) for parts in zip(o, h, lo, c, v)]


def polars(x, which):
    import polars as pl
    t, n = x["close"].shape
    frame = pl.DataFrame({"ticker": np.repeat(np.arange(n), t), "k": np.tile(np.arange(t, dtype=np.float64), n),
                          **{f: x[f].T.ravel().astype(np.float64) for f in FIELDS}})
    c, o, h, lo, v, k = (pl.col(f) for f in ("close", "open", "high", "low", "volume", "k"))
    low, high = lo.rolling_min(20), h.rolling_max(20)
    each = [c.rolling_std(5) / c, c.rolling_std(20) / c, c.rolling_mean(5) / c, c.rolling_mean(20) / c, c.shift(5) / c, c.shift(20) / c, high / c, low / c,
            pl.rolling_cov(c, k, window_size=20) / 35. / c, pl.rolling_corr(c, (v + 1).log(), window_size=20), v.rolling_mean(5) / (v + 1e-12),
            v.rolling_std(20) / (v + 1e-12), (c - o) / o, (c - low) / (high - low + 1e-12)]
    return lambda: frame.select(e.over("ticker").alias(str(i)) for i, e in enumerate(each))


def loops(x, which):
    import numba
    @numba.njit
    def fourteen(o, h, lo, c, v, out):
        tickers, rows = c.shape
        for i in range(tickers):
            for t in range(rows):
                out[12, i, t] = (c[i, t] - o[i, t]) / o[i, t]
                if t < 19: continue
                s5 = q5 = s = q = b = bb = ab = w5 = w = ww = ka = 0.
                top, bottom = h[i, t], lo[i, t]
                for k in range(20):
                    p, u = np.float64(c[i, t - k]), np.float64(v[i, t - k])
                    g = np.log(u + 1)
                    if k < 5: s5 += p; q5 += p * p; w5 += u
                    s += p; q += p * p; b += g; bb += g * g; ab += p * g; w += u; ww += u * u; ka += k * p
                    top, bottom = max(top, h[i, t - k]), min(bottom, lo[i, t - k])
                last = c[i, t]
                out[0, i, t] = np.sqrt((q5 - s5 * s5 / 5) / 4) / last
                out[1, i, t] = np.sqrt((q - s * s / 20) / 19) / last
                out[2, i, t] = s5 / 5 / last; out[3, i, t] = s / 20 / last
                out[4, i, t] = c[i, t - 5] / last; out[5, i, t] = c[i, t - 20] / last if t > 19 else np.nan
                out[6, i, t] = top / last; out[7, i, t] = bottom / last
                out[8, i, t] = (9.5 * s - ka) / 665. / last
                out[9, i, t] = (ab - s * b / 20) / np.sqrt((q - s * s / 20) * (bb - b * b / 20))
                out[10, i, t] = w5 / 5 / (v[i, t] + 1e-12); out[11, i, t] = np.sqrt((ww - w * w / 20) / 19) / (v[i, t] + 1e-12)
                out[13, i, t] = (last - bottom) / (top - bottom + 1e-12)
        return out
    arrays = [np.ascontiguousarray(x[k].T) for k in FIELDS]
    def run(): return fourteen(*arrays, np.full((14, *arrays[0].shape), np.float32(np.nan)))
    return run


# --- measuring

def worker(who, which, panel, rounds):
    "Time one job in this process and print what was measured."
    with np.load(panel) as z: x = {k: z[k] for k in z.files}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job, cpu, wall, out = globals()[who](x, which), [], [], None
    for _ in range(rounds + 1):
        out = None # a result is written into fresh memory only once
        c, w = time.process_time(), time.perf_counter()
        out = job()
        cpu.append(time.process_time() - c); wall.append(time.perf_counter() - w)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = len(out) if who == "ours" else 14
    print(json.dumps(dict(first=cpu[0], cpu=min(cpu[1:]), wall=min(wall[1:]), peak=peak / 1e6, extra=(peak - before) / 1e6, count=count)))


def environment(install: bool) -> Path | None:
    "The peers' own Python, made when it is missing."
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stockpredict" / "peers-features"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        if not install: return None
        print(f"making the peers' environment in {home}", flush=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        for name in ("numpy", *PEERS):
            done = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", name], capture_output=True, text=True)
            if done.returncode: print(f"{name} could not be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
        (home / "ready").touch()
    return python


def measure(python, who, which, panel, rounds) -> dict | str:
    done = subprocess.run([python, __file__, "--worker", who, which, panel, "--rounds", str(rounds)], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no output"])[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tickers", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-install", action="store_true", help="leave out peers that are not there already")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker: return worker(*a.worker, a.rounds)
    peers = environment(not a.no_install)
    with tempfile.TemporaryDirectory() as folder:
        panel = str(Path(folder, "panel.npz"))
        np.savez(panel, **market(a.tickers))
        jobs = [("stockpredict", sys.executable, "ours", "14"), ("numba, plain loop", peers, "loops", "14"), ("TA-Lib", peers, "talib", "14"),
                ("Polars", peers, "polars", "14"), ("stockpredict", sys.executable, "ours", "alpha158"), ("stockpredict", sys.executable, "ours", "all")]
        print(f"{'features':16}{'who':20}{'CPU s':>8}{'wall s':>8}{'ratio':>7}{'peak GB':>9}{'of it extra':>12}   first use, CPU s")
        base = {}
        for who, python, kind, which in jobs:
            got = measure(python, kind, which, panel, a.rounds) if python else "its environment was not made"
            if isinstance(got, str): print(f"{which:16}{who:20} absent: {got}", flush=True); continue
            if kind == "ours": base[which] = got["cpu"]
            ratio = got["cpu"] / base[which] if which in base else float("nan")
            label = which if which == "14" else f"{which} ({got['count']})"
            bound = f"   ceiling {CEILING[which]:g}" if kind == "ours" and a.tickers == 800 else ""
            print(f"{label:16}{who:20}{got['cpu']:8.2f}{got['wall']:8.2f}{ratio:7.1f}{got['peak']:9.2f}{got['extra']:12.2f}"
                  f"   {got['first']:.1f}{bound}", flush=True)
        for which, said in QLIB.items(): print(f"{which:16}{'Qlib 0.9.7':20} recorded earlier, not in this run: {said}")


if __name__ == "__main__":
    main()

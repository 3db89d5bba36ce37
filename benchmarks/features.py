"""Feature values for a whole market, beside Qlib, TA-Lib, Polars and a plain numba loop, in one run.

    python benchmarks/features.py [--tickers 800] [--rounds 3] [--no-install] [--no-qlib-alpha] [--only 14]

The panel is made from a fixed seed: 800 tickers, 3,393 sessions. CPU seconds of the whole process are
compared (best of the rounds, after a first one that compiles and proves), because they survive a busy machine
better than the clock does. The 14 take five times as many rounds, because the best of a few varies by 5 %.
The peers live in an environment of their own in the user's cache folder, which the first run makes; what
cannot be installed is reported as absent. The whole catalogue is computed in slices of 64 features. Memory
is the most that the process and its children held at one time, pages they share counted once. Of the 300
features it is also said how much of it, beside the result, the computation needed: the most that the
process ever held, less what it held before and less the result, as a share of the result.

KunQuant compiles its own Alpha158 with the machine's C++ compiler, before the clock starts. "newest" is the
newest session of 10,000 tickers with all of Alpha158: KunQuant's streaming mode, which was given the sessions
before and remembers them, beside `latest`, which reads them again.

A last line compares one more session in the feature store of a small market with computing it anew.

Qlib reads the same panel from its own binary files. Its 14 features are its expression engine on one worker:
without any cache, and with both of its caches warm, which need a Redis. Its Alpha158 is its own handler on
two workers, without the processors that would follow, once, because it takes minutes. The values it gives for
some tickers are compared with ours, column by column.
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

FIELDS = ("open", "high", "low", "close", "volume")
DIGEST = "f3d06bd9f0edbde2"  # of the values of the full panel
PEERS = ("numba", "polars", "TA-Lib", "KunQuant==0.1.12", "pyqlib==0.9.7", "tables")
EVERY = 40  # tickers between two whose Alpha158 values are compared
CEILING = {"14": 0.3, "alpha158": 3.9, "most": 10.0}
BESIDE = 0.2  # of the result: the most memory that 300 features may need beside it
MOST = ["core", "ohlcv", "market", "technical", "alpha158"]  # and what else there is until 300


def wave(noise, phi):
    out = np.empty_like(noise)
    out[0] = noise[0] / np.sqrt(1 - phi * phi)
    for t in range(1, len(noise)):
        out[t] = phi * out[t - 1] + noise[t]
    return out


def market(tickers: int) -> dict[str, np.ndarray]:
    "A market with volatility in waves, fat tails and a common factor; sessions down, tickers across."
    rng = np.random.Generator(np.random.PCG64(20200101))
    days = np.arange(np.datetime64("2007-01-01"), np.datetime64("2020-01-02"))
    days = days[np.is_busday(days)]
    t, n = len(days), tickers
    factor = 0.0002 + 0.010 * np.exp(
        wave(rng.standard_normal(t) * 0.20 * np.sqrt(1 - 0.97**2), 0.97)
    ) * rng.standard_normal(t)
    start, beta = np.exp(np.log(30.0) + 0.8 * rng.standard_normal(n)), 1.0 + 0.3 * rng.standard_normal(n)
    risk = np.exp(np.log(0.018) + 0.35 * rng.standard_normal(n))
    own = rng.standard_t(4, size=(t, n)) / np.sqrt(2.0)
    move = np.clip(factor[:, None] * beta + risk * own - risk**2 / 2, -0.35, 0.35)
    close = start * np.exp(np.cumsum(move, axis=0))
    open_ = np.vstack([start[None, :], close[:-1]]) * np.exp(0.3 * risk * rng.standard_normal((t, n)))
    high = np.maximum(open_, close) * np.exp(0.5 * risk * np.abs(rng.standard_normal((t, n))))
    low = np.minimum(open_, close) * np.exp(-0.5 * risk * np.abs(rng.standard_normal((t, n))))
    base = np.log(2e6) + rng.standard_normal(n)
    mood = wave(rng.standard_normal((t, n)) * 0.35 * np.sqrt(1 - 0.8**2), 0.8)
    volume = np.maximum(np.rint(np.exp(base + mood + 8 * np.abs(move))), 1.0)
    x = {k: np.round(v, 4) for k, v in dict(open=open_, high=high, low=low, close=close).items()} | {
        "volume": volume.astype(np.int64)
    }
    digest = hashlib.sha256()
    for k in FIELDS:
        digest.update(np.ascontiguousarray(x[k].T).ravel().tobytes())
    if tickers == 800 and not digest.hexdigest().startswith(DIGEST):
        print("note: this NumPy draws another panel than the recorded one")
    return {k: v.astype(np.float32) for k, v in x.items()} | {"days": days}


# --- the fourteen, four times


def ours(x, which):
    import pandas as pd
    import torch

    from stockpredict.catalogue.feature import Feature, compute, FEATURES, compute_each, resolve_names
    from stockpredict.algebra.panel import Panel

    panel = Panel(
        {k: torch.from_numpy(x[k]) for k in FIELDS},
        pd.DatetimeIndex(x["days"]),
        [f"T{i:04d}" for i in range(x["close"].shape[1])],
    )
    fourteen = dict(
        std_5=lambda b: b.close.std(5) / b.close,
        std_20=lambda b: b.close.std(20) / b.close,
        mean_5=lambda b: b.close.mean(5) / b.close,
        mean_20=lambda b: b.close.mean(20) / b.close,
        ref_5=lambda b: b.close.lag(5) / b.close,
        ref_20=lambda b: b.close.lag(20) / b.close,
        max_20=lambda b: b.high.max(20) / b.close,
        min_20=lambda b: b.low.min(20) / b.close,
        slope_20=lambda b: b.close.slope(20) / b.close,
        corr_20=lambda b: b.close.corr((b.volume + 1).log(), 20),
        vmean_5=lambda b: b.volume.mean(5) / (b.volume + 1e-12),
        vstd_20=lambda b: b.volume.std(20) / (b.volume + 1e-12),
        body=lambda b: (b.close - b.open) / b.open,
        rsv_20=lambda b: (b.close - b.low.min(20)) / (b.high.max(20) - b.low.min(20) + 1e-12),
    )
    for name, f in fourteen.items():
        f.__name__ = name
    most = [n for n in resolve_names([*MOST, "all"]) if FEATURES[n].fields <= set(FIELDS)][:300]
    names = [Feature(f) for f in fourteen.values()] if which == "14" else most if which == "most" else which
    if which == "all":
        return lambda: [
            f.name for f, _ in compute_each(panel, names, 64)
        ]  # in slices: the whole would not fit everywhere
    return lambda: compute(panel, names)


def talib(x, which):
    import talib as ta

    o, h, lo, c, v = (np.ascontiguousarray(x[k].T.astype(np.float64)) for k in FIELDS)

    def one(o, h, lo, c, v):
        def past(n):
            return np.concatenate([np.full(n, np.nan), c[:-n]])

        low, high = ta.MIN(lo, 20), ta.MAX(h, 20)
        return [
            ta.STDDEV(c, 5) / c,
            ta.STDDEV(c, 20) / c,
            ta.SMA(c, 5) / c,
            ta.SMA(c, 20) / c,
            past(5) / c,
            past(20) / c,
            high / c,
            low / c,
            ta.LINEARREG_SLOPE(c, 20) / c,
            ta.CORREL(c, np.log(v + 1), 20),
            ta.SMA(v, 5) / (v + 1e-12),
            ta.STDDEV(v, 20) / (v + 1e-12),
            (c - o) / o,
            (c - low) / (high - low + 1e-12),
        ]

    return lambda: [one(*parts) for parts in zip(o, h, lo, c, v)]


def polars(x, which):
    import polars as pl

    t, n = x["close"].shape
    frame = pl.DataFrame(
        {
            "ticker": np.repeat(np.arange(n), t),
            "k": np.tile(np.arange(t, dtype=np.float64), n),
            **{f: x[f].T.ravel().astype(np.float64) for f in FIELDS},
        }
    )
    c, o, h, lo, v, k = (pl.col(f) for f in ("close", "open", "high", "low", "volume", "k"))
    low, high = lo.rolling_min(20), h.rolling_max(20)
    each = [
        c.rolling_std(5) / c,
        c.rolling_std(20) / c,
        c.rolling_mean(5) / c,
        c.rolling_mean(20) / c,
        c.shift(5) / c,
        c.shift(20) / c,
        high / c,
        low / c,
        pl.rolling_cov(c, k, window_size=20) / 35.0 / c,
        pl.rolling_corr(c, (v + 1).log(), window_size=20),
        v.rolling_mean(5) / (v + 1e-12),
        v.rolling_std(20) / (v + 1e-12),
        (c - o) / o,
        (c - low) / (high - low + 1e-12),
    ]
    return lambda: frame.select(e.over("ticker").alias(str(i)) for i, e in enumerate(each))


def loops(x, which):
    import numba

    @numba.njit
    def fourteen(o, h, lo, c, v, out):
        tickers, rows = c.shape
        for i in range(tickers):
            for t in range(rows):
                out[12, i, t] = (c[i, t] - o[i, t]) / o[i, t]
                if t < 19:
                    continue
                s5 = q5 = s = q = b = bb = ab = w5 = w = ww = ka = 0.0
                top, bottom = h[i, t], lo[i, t]
                for k in range(20):
                    p, u = np.float64(c[i, t - k]), np.float64(v[i, t - k])
                    g = np.log(u + 1)
                    if k < 5:
                        s5 += p
                        q5 += p * p
                        w5 += u
                    s += p
                    q += p * p
                    b += g
                    bb += g * g
                    ab += p * g
                    w += u
                    ww += u * u
                    ka += k * p
                    top, bottom = max(top, h[i, t - k]), min(bottom, lo[i, t - k])
                last = c[i, t]
                out[0, i, t] = np.sqrt((q5 - s5 * s5 / 5) / 4) / last
                out[1, i, t] = np.sqrt((q - s * s / 20) / 19) / last
                out[2, i, t] = s5 / 5 / last
                out[3, i, t] = s / 20 / last
                out[4, i, t] = c[i, t - 5] / last
                out[5, i, t] = c[i, t - 20] / last if t > 19 else np.nan
                out[6, i, t] = top / last
                out[7, i, t] = bottom / last
                out[8, i, t] = (9.5 * s - ka) / 665.0 / last
                out[9, i, t] = (ab - s * b / 20) / np.sqrt((q - s * s / 20) * (bb - b * b / 20))
                out[10, i, t] = w5 / 5 / (v[i, t] + 1e-12)
                out[11, i, t] = np.sqrt((ww - w * w / 20) / 19) / (v[i, t] + 1e-12)
                out[13, i, t] = (last - bottom) / (top - bottom + 1e-12)
        return out

    arrays = [np.ascontiguousarray(x[k].T) for k in FIELDS]

    def run():
        return fourteen(*arrays, np.full((14, *arrays[0].shape), np.float32(np.nan)))

    return run


# --- the newest session of many tickers


def many(x, tickers: int = 10_000, sessions: int = 130) -> dict[str, np.ndarray]:
    "The newest sessions of the panel, its tickers repeated."
    again = -(-tickers // x["close"].shape[1])
    return {k: np.ascontiguousarray(np.tile(x[k][-sessions:], (1, again))[:, :tickers]) for k in FIELDS}


def newest(x, which):
    import pandas as pd
    import torch

    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.latest import latest

    torch.set_num_threads(1)
    fields = {k: torch.from_numpy(v) for k, v in many(x).items()}
    rows, tickers = fields["close"].shape
    panel = Panel(fields, pd.DatetimeIndex(x["days"][-rows:]), [f"T{i:05d}" for i in range(tickers)])
    return lambda: latest(panel, "alpha158")


def kunquant(x, which):
    from KunQuant.Driver import KunCompilerConfig
    from KunQuant.jit import cfake
    from KunQuant.Op import Builder, Input, Output
    from KunQuant.predefined.Alpha158 import AllData
    from KunQuant.runner import KunRunner
    from KunQuant.Stage import Function

    stream, graph, names = which == "newest", Builder(), (*FIELDS, "amount")
    with graph:
        data = AllData(**{k: Input(k) for k in names})
        prices = [(k.upper(), getattr(data, k)) for k in ("open", "high", "low", "vwap")]
        parts, wanted = data.build({"kbar": {}, "price": {"windows": [0], "feature": prices}, "rolling": {}})
        for name, part in zip(wanted, parts):
            Output(part, name)
    layout = "STREAM" if stream else "TS"
    how = dict(partition_factor=8, dtype="float", output_layout=layout, input_layout=layout)
    how["options"] = {"opt_reduce": not stream, "fast_log": True}
    kernels = [("alpha158", Function(graph.ops), KunCompilerConfig(**how))]
    library = cfake.compileit(kernels, "peer", cfake.CppCompilerConfig())
    module, executor = library.getModule("alpha158"), KunRunner.createSingleThreadExecutor()
    bars = many(x) if stream else {k: np.ascontiguousarray(x[k]) for k in FIELDS}
    bars["amount"] = bars["close"] * bars["volume"]
    rows, tickers = bars["close"].shape
    if not stream:
        return lambda: (library, KunRunner.runGraph(executor, module, bars, 0, rows))[1]
    context = KunRunner.StreamContext(executor, module, tickers)
    into, results = ([context.queryBufferHandle(k) for k in some] for some in (names, wanted))

    def bar(t=-1):
        for handle, k in zip(into, names):
            context.pushData(handle, bars[k][t])
        context.run()
        return library, [context.getCurrentBuffer(h).copy() for h in results]

    for t in range(rows - 1):
        bar(t)
    return bar


# --- Qlib

QLIB14 = """Std($close,5)/$close Std($close,20)/$close Mean($close,5)/$close Mean($close,20)/$close
Ref($close,5)/$close Ref($close,20)/$close
Max($high,20)/$close Min($low,20)/$close Slope($close,20)/$close Corr($close,Log($volume+1),20)
Mean($volume,5)/($volume+1e-12)
Std($volume,20)/($volume+1e-12) ($close-$open)/$open
($close-Min($low,20))/(Max($high,20)-Min($low,20)+1e-12)""".split()


def dump(x, home: Path) -> tuple[str, str]:  # first and last session
    """Write the panel as Qlib reads it: a calendar, a list of tickers, and for each ticker and field the
    first row's position and the values."""
    days, tickers = np.datetime_as_string(x["days"], "D"), [f"T{i:04d}" for i in range(x["close"].shape[1])]
    for part in ("calendars", "instruments"):
        (home / part).mkdir(parents=True)
    (home / "calendars" / "day.txt").write_text("\n".join(days) + "\n")
    (home / "instruments" / "all.txt").write_text("".join(f"{t}\t{days[0]}\t{days[-1]}\n" for t in tickers))
    fields = {k: x[k] for k in FIELDS} | {"vwap": (x["high"] + x["low"] + x["close"]) / np.float32(3)}
    for i, t in enumerate(tickers):
        folder = home / "features" / t.lower()
        folder.mkdir(parents=True)
        for k, v in fields.items():
            np.concatenate([[0], v[:, i]]).astype("<f4").tofile(folder / f"{k}.day.bin")
    return days[0], days[-1]


def qlib(x, which):
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    import qlib as q
    from qlib.data import D
    from qlib.data.cache import H

    first, last = dump(x, home := Path(tempfile.mkdtemp(dir=".")).resolve())
    caches = (
        dict(
            expression_cache="DiskExpressionCache",
            dataset_cache="DiskDatasetCache",
            redis_host="127.0.0.1",
            redis_port=int(os.environ.get("PEER_REDIS", 0)),
        )
        if which == "14 cached"
        else dict(expression_cache=None, dataset_cache=None)
    )
    q.init(
        provider_uri=str(home),
        region="us",
        kernels=2 if which == "alpha158" else 1,
        logging_level=logging.ERROR,
        **caches,
    )

    def fourteen():
        H.clear()
        return D.features(
            D.instruments("all"), QLIB14, first, last, freq="day", disk_cache=int(which == "14 cached")
        )

    def alpha():
        from qlib.contrib.data.handler import Alpha158

        difference = Alpha158(
            instruments="all", start_time=first, end_time=last, infer_processors=[], learn_processors=[]
        ).fetch(col_set="feature")
        return {
            k: difference[k].unstack("instrument").iloc[:, ::EVERY].to_numpy(np.float32)
            for k in difference.columns
        }

    return alpha if which == "alpha158" else fourteen


@contextlib.contextmanager
def redis(folder: str):  # its port; None where there is no Redis
    "A Redis server of one's own, for the locks of Qlib's caches."
    program = shutil.which("redis-server")
    if not program:
        yield None
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            yield port
        finally:
            server.terminate()


def compared(
    ours: dict, theirs: dict
) -> dict[str, tuple[float, float]]:  # greatest and typical distance of each column
    """How far two sets of columns are apart where a window is full, relative to the size of the value or,
    if larger, the spread of the column."""
    out = {}
    for k, x in theirs.items():
        a, b = ours[k][61:].astype(float), x[61:].astype(float)
        both = np.isfinite(a) & np.isfinite(b)
        apart = np.abs(a - b)[both] / np.maximum(np.abs(b[both]), np.std(b[both]))
        out[k] = (float(apart.max()), float(np.median(apart))) if both.mean() > 0.99 else (np.inf, np.inf)
    return out


# --- one more session in the store of a small market


def one_more_session(tickers: int = 40, sessions: int = 500) -> str:
    "CPU seconds of one more session in the feature store, beside computing everything again."
    import numpy as np

    from stockpredict.catalogue.feature_store import FeatureStore
    from stockpredict.core.settings import load_settings
    from stockpredict.lake.lake import Lake
    from stockpredict.sources.source import make_source

    def timed(store):
        began = time.process_time()
        store.materialise()
        return time.process_time() - began

    with tempfile.TemporaryDirectory() as home:
        changes = {"data.source": "simulated", "simulated.kind": "realistic", "data.start": "2000-01-01"}
        changes |= {"simulated.tickers": tickers, "simulated.sessions": sessions + 4, "storage.home": home}
        settings = load_settings(environ={}, overrides=changes)
        source = make_source(settings)
        bars = source.fetch(source.tickers())
        days = np.sort(bars.event_time.unique())
        with FeatureStore(settings, ["all"]) as store:
            with Lake(settings.storage) as lake:
                lake.append(bars[bars.event_time < days[sessions]])
            first, more, whole = timed(store), [], []
            for day in days[sessions:]:
                with Lake(settings.storage) as lake:
                    lake.append(bars[bars.event_time == day])
                more.append(timed(store))
            for k in range(2):
                other = FeatureStore(settings, ["all"], lake=store.lake)
                other.folder = Path(home, f"whole{k}")
                whole.append(timed(other))
        share = min(more) / min(whole)
        return (
            f"one more session of {tickers} tickers x {sessions} sessions, {len(store.names)} features: "
            f"{min(more):.2f} CPU s, everything again {min(whole):.2f} ({share:.0%}); first use {first:.1f}"
        )


# --- measuring


def spent() -> float:  # seconds
    "Processor time of this process and of its children that have ended."
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def sample(out, which) -> dict:  # Qlib's names; `[session, ticker]`
    "The columns of some tickers, for the comparison."
    from stockpredict.features.alpha158 import alpha_names

    return {theirs: out[ours][:, ::EVERY].numpy() for theirs, ours in alpha_names(which).items()}


def resident() -> int:  # bytes
    "Memory that this process holds now."
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def worker(who, which, panel, rounds):
    "Time one job in this process and print what was measured."
    with np.load(panel) as z:
        x = {k: z[k] for k in z.files}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job, cpu, wall, out = globals()[who](x, which), [], [], None
    idle = resident()
    for _ in range(rounds + 1):
        out = None  # a result is written into fresh memory only once
        c, w = spent(), time.perf_counter()
        out = job()
        cpu.append(spent() - c)
        wall.append(time.perf_counter() - w)
    if which == "alpha158" and who != "kunquant":
        columns = sample(out, which) if who == "ours" else out
        np.savez(Path(panel).with_name(f"{who}.npz"), **columns)
    size = sum(v.nbytes for v in out.values()) if which == "most" else 0
    beside = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - idle) / size - 1 if size else None
    count = 158 if which == "newest" else len(out) if who == "ours" or which == "alpha158" else 14
    print(
        json.dumps(
            dict(
                first=cpu[0],
                cpu=min(cpu[1:] or cpu),
                wall=min(wall[1:] or wall),
                before=before / 1e6,
                count=count,
                beside=beside,
            )
        )
    )


def family(pid: int) -> list[int]:
    "A process and all that came from it."
    try:
        children = [
            int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()
        ]
    except OSError:
        return [pid]
    return [pid, *(p for c in children for p in family(c))]


def memory_in_use(pid: int) -> float:  # GB
    "Memory of a process and its children, pages they share counted once."
    total = 0
    for p in family(pid):
        with contextlib.suppress(OSError, StopIteration):
            total += int(
                next(
                    x
                    for x in Path(f"/proc/{p}/smaps_rollup").read_text().splitlines()
                    if x.startswith("Pss:")
                ).split()[1]
            )
    return total / 1e6


def environment(install: bool) -> Path | None:
    "The peers' own Python, made when it is missing."
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stockpredict" / "peers-features"
    python = home / "bin" / "python"
    ready = home / "ready"
    there = ready.read_text().split() if ready.exists() else []
    if not set(PEERS) <= set(there):
        if not install:
            return python if ready.exists() else None
        print(f"making the peers' environment in {home}", flush=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
        for name in ("numpy", *(p for p in PEERS if p not in there)):
            done = subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", name],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                print(
                    f"{name} could not be installed: "
                    f"{(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
                )
        ready.write_text(" ".join(PEERS))
    return python


def measure(python, who, which, panel, rounds, **env) -> dict | str:
    "Run one job in a process of its own, and watch how much memory it holds."
    peak = 0.0
    command = [python, Path(__file__).resolve(), "--worker", who, which, panel, "--rounds", str(rounds)]
    calm = {**os.environ, **env, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(panel).parent, env=calm
    ) as job:
        output = {}
        readers = [
            threading.Thread(target=lambda k=k: output.update({k: getattr(job, k).read()}))
            for k in ("stdout", "stderr")
        ]
        for r in readers:
            r.start()
        while job.poll() is None:
            peak = max(peak, memory_in_use(job.pid))
            time.sleep(0.25)
        for r in readers:
            r.join()
    if job.returncode:
        return next((x for x in reversed(output["stderr"].splitlines()) if "Error" in x), "it said nothing")
    return json.loads(output["stdout"].splitlines()[-1]) | dict(peak=peak)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tickers", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--no-install", action="store_true", help="leave out peers that are not there already"
    )
    parser.add_argument(
        "--qlib-alpha",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Qlib's Alpha158, which takes minutes",
    )
    parser.add_argument("--only", default="", help="only this line: 14, newest, alpha158, most or all")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        return worker(*a.worker, a.rounds)
    peers = environment(not a.no_install)
    with tempfile.TemporaryDirectory() as folder, redis(folder) as port:
        panel = str(Path(folder, "panel.npz"))
        np.savez(panel, **market(a.tickers))
        mine = sys.executable
        jobs = [
            (who, mine if kind == "ours" else peers, kind, "14", 5 * a.rounds)
            for who, kind in (
                ("stockpredict", "ours"),
                ("numba, plain loop", "loops"),
                ("TA-Lib", "talib"),
                ("Polars", "polars"),
            )
        ]
        jobs.append(("Qlib, no cache", peers, "qlib", "14", 0))
        if port:
            jobs.append(("Qlib, warm caches", peers, "qlib", "14 cached", 2))
        else:
            print("Qlib with its caches is left out: it needs a redis-server, which is not there")
        jobs += [
            ("stockpredict", mine, "newest", "newest", 5 * a.rounds),
            ("KunQuant, streaming", peers, "kunquant", "newest", 5 * a.rounds),
            ("stockpredict", mine, "ours", "alpha158", a.rounds),
            ("KunQuant", peers, "kunquant", "alpha158", a.rounds),
        ]
        if a.qlib_alpha:
            jobs.append(("Qlib, 2 workers", peers, "qlib", "alpha158", 0))
        jobs += [
            ("stockpredict", mine, "ours", "most", a.rounds),
            ("stockpredict", mine, "ours", "all", a.rounds),
        ]
        print(
            f"{'features':16}{'who':20}{'CPU s':>8}{'wall s':>8}{'ratio':>7}{'peak GB':>9}"
            f"{'of it extra':>12}   first use, CPU s"
        )
        base = {}
        jobs = [j for j in jobs if a.only in ("", j[3].split()[0])]
        for who, python, kind, which, rounds in jobs:
            got = (
                measure(python, kind, which, panel, rounds, PEER_REDIS=str(port))
                if python
                else "its environment was not made"
            )
            which = which.split()[0]
            if isinstance(got, str):
                print(f"{which:16}{who:20} absent: {got}", flush=True)
                continue
            if python is mine:
                base[which] = got["cpu"]
            ratio = got["cpu"] / base[which] if which in base else float("nan")
            label = which if which == "14" else f"{which} ({got['count']})"
            digits = 3 if got["cpu"] < 1 else 2
            bound = (
                f"   ceiling {CEILING[which]:g}"
                if kind == "ours" and a.tickers == 800 and which in CEILING
                else ""
            )
            if got.get("beside") is not None:
                bound += f"   beside the result {got['beside']:.0%}"
            if which == "most" and a.tickers == 800 and kind == "ours":
                bound += f", ceiling {BESIDE:.0%}"
            print(
                f"{label:16}{who:20}{got['cpu']:8.{digits}f}{got['wall']:8.2f}"
                f"{ratio:7.2f}{got['peak']:9.2f}{got['peak'] - got['before']:12.2f}"
                f"   {got['first']:.1f}{bound}",
                flush=True,
            )
        if a.only:
            return
        print(one_more_session(), flush=True)
        both = [Path(folder, f"{who}.npz") for who in ("ours", "qlib")]
        if all(p.exists() for p in both):
            difference = compared(*(dict(np.load(p)) for p in both))
            worst = sorted(difference, key=lambda k: -difference[k][0])
            print(
                f"Alpha158 of every {EVERY}th ticker, ours beside Qlib's, full windows: "
                f"{len(difference)} columns, typical difference "
                f"{np.median([t for _, t in difference.values()]):.1e}; greatest: "
                + ", ".join(f"{k} {difference[k][0]:.1e}" for k in worst[:5])
                + f"; {sum(g < 1e-4 for g, _ in difference.values())} columns never differ by 1e-4"
            )


if __name__ == "__main__":
    main()

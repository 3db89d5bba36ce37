"""What the guards cost: hash checks of the lake beside the cheapest training, the proof of a feature of yours
at its registration, and a request.

    python benchmarks/trust.py [--tickers 100] [--sessions 1500] [--quick]

All figures are CPU seconds, user and system, with the processes that were started. The training is the
cheapest that there is (ridge, three features, two folds), in a process that has not compared any file yet, so
the share of the hash checks is the largest that can occur. The features of yours are registered with a panel
of the given size in their notebook, and then computed on it. A request computes the newest session of all
features of the set `core`, as the service does; after the first one no proof runs.
"""

import argparse
import os
import resource
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

PROMISED = dict(share=0.05, proof=2.0)


def cpu() -> float:
    "CPU seconds of this process and of those it waited for."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def training(tickers: int, sessions: int):
    "The hash checks of a training from a lake, and the training."
    from stockpredict.core.settings import load_settings
    from stockpredict.ingest.ingest import ingest
    from stockpredict.lake import maintenance
    from stockpredict.lake.lake import Lake
    from stockpredict.train.experiment import run_experiment

    spent, check = [0.0, 0], Lake.before_read

    def timed(*args, **more):
        before = time.process_time()
        try:
            return check(*args, **more)
        finally:
            spent[0] += time.process_time() - before
            spent[1] += 1

    with tempfile.TemporaryDirectory() as home:
        overrides = {
            "storage.home": home,
            "data.source": "simulated",
            "simulated.tickers": tickers,
            "simulated.sessions": sessions,
            "data.start": "1995-01-01",
            "models.trials": 0,
            "models.candidates": "ridge",
            "features.names": "ret_1 mom_5 vol_20",
            "validation.first_train": sessions // 2,
            "validation.folds": 2,
        }
        settings = load_settings(environ={}, overrides=overrides)
        ingest(settings)
        files = [p for p in settings.storage.lake_dir.rglob("*.parquet")]
        size = sum(p.stat().st_size for p in files) / 2**20
        maintenance.INTACT.clear()  # as in a new process
        owner = next(c for c in Lake.__mro__ if "before_read" in vars(c))
        owner.before_read = timed
        before = cpu()
        run_experiment(settings, f"{home}/study")
        whole = cpu() - before
        owner.before_read = check
        compared = len(maintenance.INTACT)
    print(
        f"hash checks           {spent[0]:6.3f} CPU s in {spent[1]} reads: {compared} of {len(files)} files, "
        f"{size:.1f} MiB   training {whole:6.1f} CPU s   share {spent[0] / whole:.2%}   "
        f"(promised: at most {PROMISED['share']:.0%})",
        flush=True,
    )


def registration(tickers: int, sessions: int):
    "The proof of three features when they are registered beside a panel."
    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.feature import compute, feature
    from stockpredict.core.registry import Registry
    from stockpredict.sources.simulate import simulate

    panel = Panel.from_bars(simulate("realistic", tickers, sessions, seed=1).bars)
    code = """
def pullback(b):
    "Return of five sessions over that of sixty."
    return b.close.pct_change(5) - b.close.pct_change(60)

def quiet(b):
    "Rank of the negative volatility of twenty sessions."
    return (-b.returns.std(20)).xrank()

def pressure(b):
    "Where the close lies in the range of ten sessions, weighed by relative volume."
    place = (b.close - b.low.min(10)) / (b.high.max(10) - b.low.min(10))
    return place * b.volume / b.volume.mean(60)
"""
    cells, catalogue = {"panel": panel, "__name__": "__main__"}, Registry("feature")
    exec(compile(code, "<notebook>", "exec"), cells)
    register = feature(group="mine", into=catalogue)
    for warm, name in enumerate(("pullback", "pullback", "quiet", "pressure")):
        before = cpu()
        register(cells[name])
        seconds = cpu() - before
        before = cpu()
        compute(panel, [catalogue[name]])
        used = cpu() - before
        label = name if warm else "the first of a process"
        print(
            f"proof                 {seconds:6.2f} CPU s   {label}   first use {used:.2f} CPU s   "
            f"(promised: at most {PROMISED['proof']:g})",
            flush=True,
        )


def request(tickers: int, sessions: int):
    "Proofs in a request for the newest session, after the start of a service."
    import stockpredict.catalogue.feature as home
    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.latest import latest
    from stockpredict.catalogue.warm_up import load_loops
    from stockpredict.sources.simulate import simulate

    load_loops("core")
    panel = Panel.from_bars(simulate("realistic", tickers, sessions, seed=2).bars)
    latest(panel.first(sessions - 1), "core")
    proofs, own = [], {name: getattr(home, name) for name in ("prove", "prove_all", "prove_on", "examine")}

    def counted(name, real):
        def call(*args, **more):
            proofs.extend([name] * bool(args[0]))  # `prove_all` of an empty list examines nothing
            return real(*args, **more)

        return call

    for name, real in own.items():
        setattr(home, name, counted(name, real))
    before = cpu()
    latest(panel, "core")
    seconds = cpu() - before
    for name, real in own.items():
        setattr(home, name, real)
    print(f"a request             {seconds:6.3f} CPU s   {len(proofs)} proofs   (promised: 0)", flush=True)


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--tickers", type=int, default=100)
    ask.add_argument("--sessions", type=int, default=1500)
    ask.add_argument("--quick", action="store_true", help="40 tickers, 600 sessions")
    args = ask.parse_args()
    size = (40, 600) if args.quick else (args.tickers, args.sessions)
    request(*size)
    registration(*size)
    training(*size)


if __name__ == "__main__":
    main()

"""A simulated market from files to served predictions, step by step: CPU seconds, wall seconds, peak memory.

    python benchmarks/scale.py --tickers 10000 --years 10               # one size
    python benchmarks/scale.py --sizes 100 300 1000 --out scale.json    # how each step grows, and a plot
    python benchmarks/scale.py --tickers 1000 --until ingest --add scale.json   # one more size, not all steps
    python benchmarks/scale.py --distributed --tickers 40 --years 3     # PostgreSQL, S3, two Dask workers
    python benchmarks/scale.py --reads 100 1000 10000 100000            # a read of a stored answer

The steps are those of the pipeline: bars in Parquet files are ingested through the gate into the lake, the
features are computed, gradient boosted trees are trained walking forward and once more on everything, the
artifact is put into service, and every ticker is forecast into the table of answers. Each step runs in a
process of its own, so its peak memory is its own; the import of libraries is in no step. Training is the
walk-forward and the final fit; the verdict with its self-tests on small simulated markets costs the same
at every size and is left out, so the model is published without a claim of skill.

Ten thousand tickers for ten years, 24 million bars, measured with `--sizes 30 100 300 1000 3000 10000`:
800 CPU seconds in all, training 568 of them and 10.6 GB at most.

On a shared machine CPU seconds are the figure to compare. `--distributed` runs the same market twice, on
SQLite and a folder in one process and on PostgreSQL, an S3 server and Dask workers, and compares the
fingerprint of the lake, the artifact of the model and the answers.
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
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

SESSIONS = 252  # a year
STEPS = ["market", "ingest", "features", "train", "publish", "predict"]
MODEL = "lightgbm"
FEATURES = ["ret_1", "ret_2", "ret_3", "mom_5", "mom_21", "vol_20", "rsi_14", "atr_14"]
SMALL = {
    "data.source": "files",
    "features.names": FEATURES,
    "models.candidates": [MODEL],
    "models.trials": 0,
    "validation.horizons": [1],
    "validation.folds": 1,
    "serving.device": "cpu",
}
TOGETHER = 500  # tickers simulated at a time, one file each time


def settings_of(home: Path, more: dict):
    from stockpredict.core.settings import load_settings

    places = {"storage.home": str(home / "home"), "storage.reports": str(home / "reports")}
    files = {"data.files_path": str(home.parent / "bars")}
    return load_settings(overrides={**SMALL, **places, **files, **more}, environ={})


def market(place: Path, tickers: int, years: int) -> dict:
    "A planted market as Parquet files, some hundred tickers each."
    from stockpredict.core.calendar import get_calendar
    from stockpredict.sources.simulate import simulate

    place.mkdir(exist_ok=True)
    columns, rows, calendar = ["open", "high", "low", "close", "volume", "adj_close"], 0, get_calendar()
    for number, first in enumerate(range(0, tickers, TOGETHER)):
        count = min(TOGETHER, tickers - first)
        bars = simulate("planted", count, SESSIONS * years, seed=1 + number).bars
        bars = bars.assign(
            ticker=bars.ticker.str.replace("SIM", f"M{number:02d}N"),
            date=calendar.session_of(bars.event_time),
        )
        bars[["ticker", "date", *columns]].to_parquet(place / f"part-{number:03d}.parquet", index=False)
        rows += len(bars)
    return {"rows": rows}


def ingest(settings, note: Path) -> dict:
    from stockpredict.ops.pipeline import ingest_market
    from stockpredict.ops.work import open_work

    state = ingest_market(settings)
    note.write_text(open_work(settings, state))
    return {k: state[k] for k in ("rows_new", "tickers", "sessions", "fingerprint")}


def train(settings, note: Path) -> dict:
    "Walk forward and fit on everything, on the engine of the settings."
    from stockpredict.train.lineage import CandidateStore, make_lineage
    from stockpredict.train.shared_training import prepare_candidates
    from stockpredict.train.training_data import covered_spec, training_dataset, training_panel
    from stockpredict.train.walk_forward import make_folds

    panel, snapshot = training_panel(settings)
    folds = make_folds(settings, len(panel))
    spec = covered_spec(settings, panel, folds[0].train_stop)
    lineage = make_lineage(settings, panel, snapshot)
    data = training_dataset(settings, panel, spec)
    store = CandidateStore(Path(note.read_text(), "experiment"), settings, lineage, spec)
    prepare_candidates(settings, store, data, folds)
    candidate = store(settings, data, folds, MODEL)
    return {"artifact": candidate.artifact, "forecast": _digest(candidate.forecast.score.numpy().tobytes())}


def publish(settings, note: Path) -> dict:
    "Put the artifact into service, without a claim of skill."
    import shutil

    from stockpredict.models.artifact import artifact_hash, load_artifact, public_key

    trained = Path(note.read_text(), "experiment", "candidates", MODEL, "artifact")
    load_artifact(trained, public_key(settings.storage.keys_dir))  # verifies the signature
    name, registry = artifact_hash(trained), settings.storage.registry_dir
    shutil.copytree(trained, registry / "versions" / name, dirs_exist_ok=True)
    (registry / "champion.json").write_text(json.dumps({"version": 1, "artifact": name, "skill": "none"}))
    return {"artifact": name}


def predict(settings, note: Path) -> dict:
    "Every ticker's answer into the table that is served."
    from stockpredict.predict.answer_table import open_answers, refresh_answers

    refresh_answers(settings)
    answers = open_answers(settings)
    bodies = [body for ticker in answers.tickers for body in answers.get(ticker)]
    return {"answers": len(bodies), "digest": _digest(*bodies), "bytes": answers.size}


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def do_step(step: str, home: Path, tickers: int, years: int, more: dict) -> dict:
    "One step in this process, measured."
    began, before = time.perf_counter(), _cpu()
    if step == "market":
        result = market(home.parent / "bars", tickers, years)
    else:
        settings, note = settings_of(home, more), home / "work.txt"
        if step == "features":
            from stockpredict.ops.pipeline import features

            result = {"look_back": features(note.read_text())["look_back"]}
        else:
            result = globals()[step](settings, note)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = dict(wall=round(time.perf_counter() - began, 2), cpu=round(_cpu() - before, 2))
    return dict(step=step, **used, peak_mb=max(peaks) >> 10, **result)


def _cpu() -> float:
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


def child(step: str, home: Path, tickers: int, years: int, more: dict) -> dict:
    "A step in a process of its own."
    words = [sys.executable, __file__, "--step", step, "--home", str(home), "--more", json.dumps(more)]
    words += ["--tickers", str(tickers), "--years", str(years)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"The step {step} failed; its error stands above.")
    return json.loads(done.stdout.splitlines()[-1])


LIBRARIES = (
    "great_expectations.expectations",
    "jsonschema",
    "lightgbm",
    "numba",
    "optuna",
    "pyarrow.parquet",
    "scipy.stats",
    "stockpredict.ingest.ingest",
    "stockpredict.ops.pipeline",
    "stockpredict.ops.work",
    "stockpredict.predict.answer_table",
    "stockpredict.predict.engine",
    "stockpredict.predict.published_rows",
    "stockpredict.train.registry",
    "stockpredict.train.shared_training",
)


def warm_child(step: str, home: Path, tickers: int, years: int, more: dict) -> dict:
    "A step in a copy of this process, which has the libraries already: their import is in no step."
    from multiprocessing import get_context

    from stockpredict.core.calendar import get_calendar

    for name in LIBRARIES:
        import_module(name)
    get_calendar()
    ours, theirs = get_context("fork").Pipe(False)
    target = get_context("fork").Process(
        target=lambda: theirs.send(do_step(step, home, tickers, years, more)), daemon=False
    )
    target.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        raise SystemExit(f"The step {step} failed; its error stands above.") from None
    target.join()
    return result


def run(place: Path, name: str, tickers: int, years: int, more: dict, steps=STEPS, do=child) -> dict:
    "All steps of one size, each by `do`."
    home = place / name
    home.mkdir(parents=True)
    print(f"{tickers:,} tickers, {years} years, {name}", flush=True)
    print(f"{'step':10}{'wall s':>9}{'CPU s':>9}{'peak GB':>9}", flush=True)
    rows = []
    for step in steps:
        rows.append(row := do(step, home, tickers, years, more))
        print(f"{step:10}{row['wall']:9.1f}{row['cpu']:9.1f}{row['peak_mb'] / 1024:9.2f}", flush=True)
    sizes = {part: _size(home / "home" / part) for part in ("lake", "serving", "registry")}
    bars = next((row["rows_new"] for row in rows if row["step"] == "ingest"), 0)
    return dict(tickers=tickers, years=years, ground=name, bars=bars, steps=rows, bytes=sizes)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def distributed():
    "Settings of a lake on PostgreSQL and an S3 server, with training on two Dask workers."
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import httpx
    from distributed import LocalCluster
    from live_postgres import Postgres, postgres_programs
    from moto.server import ThreadedMotoServer

    database, store, workers = (
        Postgres(postgres_programs()),
        ThreadedMotoServer("127.0.0.1", 0, verbose=False),
        None,
    )
    try:
        store.start()
        url = "http://{}:{}".format(*store.get_host_and_port())
        httpx.put(f"{url}/scale", timeout=60).raise_for_status()
        keys = dict(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="us-east-1")
        os.environ.update(AWS_ENDPOINT_URL=url, **keys)
        workers = LocalCluster(
            2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs=50
        )
        yield {
            "storage.catalog": database.database(),
            "storage.data_path": "s3://scale/lake",
            "flows.engine": "dask",
            "flows.dask_address": workers.scheduler_address,
        }
    finally:
        if workers:
            workers.close()
        store.stop()
        database.stop()


def identity(one: dict) -> dict:
    "What has to be the same wherever a market went through."
    named = {row["step"]: row for row in one["steps"]}
    wanted = [("ingest", "fingerprint"), ("train", "artifact"), ("train", "forecast"), ("predict", "digest")]
    return {f"{step} {what}": named[step][what] for step, what in wanted}


def compare(place: Path, tickers: int, years: int, own: dict | None = None, do=child) -> tuple[list, bool]:
    "The same market on one machine's own means and on shared ones; whether all is the same."
    own = own or {}
    local = run(place, "local", tickers, years, own, STEPS, do)
    with distributed() as more:
        shared = run(place, "distributed", tickers, years, own | more, STEPS[1:], do)
    same = identity(local) == identity(shared)
    for what, value in identity(local).items():
        other = identity(shared)[what]
        print(f"{what:20} {value[:16]} {'the same' if other == value else f'DIFFERENT: {other[:16]}'}")
    return [local, shared], same


def reads(sizes: list[int], count: int = 200_000):
    "CPU ns to look up a stored answer, by the number of tickers in the table."
    from stockpredict.predict.answer_table import AnswerTable
    from stockpredict.predict.table_format import pack_table

    body, dice = b"{" + b"x" * 900, np.random.default_rng(0)
    print(f"{'tickers':>10}{'table MB':>10}{'CPU ns a read':>15}")
    for size in sizes:
        names = [f"T{i:06d}" for i in range(size)]
        raw = pack_table({"key": "k"}, {(name, 1): body for name in names}, lambda digest: bytes(64))
        table, wanted = AnswerTable(raw), [names[i] for i in dice.integers(0, min(size, 100), count)]
        costs = []
        for _ in range(5):
            began = time.process_time()
            for name in wanted:
                table.get(name, 1)
            costs.append(time.process_time() - began)
        print(f"{size:10,}{len(raw) / 1e6:10.1f}{1e9 * min(costs) / count:15.0f}", flush=True)


def line(runs: list, step: str) -> tuple[float, float]:
    "CPU seconds of a step: what it costs at any size, and per million bars."
    bars = np.array([r["bars"] / 1e6 for r in runs])
    cpu = np.array([next(row["cpu"] for row in r["steps"] if row["step"] == step) for r in runs])
    if len(runs) < 2:
        return 0.0, float(cpu[0] / bars[0])
    design = np.column_stack([np.ones(len(runs)), bars]) / cpu[:, None]
    fixed, slope = np.linalg.lstsq(design, np.ones(len(runs)), rcond=None)[0]
    return max(float(fixed), 0.0), float(slope)


def report(runs: list, steps: list):
    "How each step grows: fixed cost, cost per million bars, exponent between the two largest sizes."
    print(f"\n{'step':10}{'fixed CPU s':>13}{'per M bars':>12}{'exponent':>10}")
    for step in steps[1:]:
        fixed, slope = line(runs, step)
        (a, b), cpu = (
            runs[-2:],
            [next(row["cpu"] for row in r["steps"] if row["step"] == step) for r in runs[-2:]],
        )
        exponent = np.log(cpu[1] / cpu[0]) / np.log(b["bars"] / a["bars"])
        print(f"{step:10}{fixed:13.1f}{slope:12.2f}{exponent:10.2f}")


def plot(runs: list, path: Path, steps: list):
    "CPU seconds and peak memory of each step by tickers."
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    tickers = [r["tickers"] for r in runs]
    for ax, what, name in zip(axes, ("cpu", "peak_mb"), ("CPU seconds", "peak memory, MB"), strict=True):
        for step in steps[1:]:
            values = [next(row[what] for row in r["steps"] if row["step"] == step) for r in runs]
            ax.loglog(tickers, values, "o-", label=step)
        ax.set(xlabel="tickers", ylabel=name)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def add(path: Path, runs: list, until: str):
    "Put sizes beside those of an earlier command, in place of earlier ones of the same size."
    new_file = dict(command="", cores=os.cpu_count(), runs=[])
    results = json.loads(path.read_text()) if path.exists() else new_file
    for one in runs:
        words = f"--tickers {one['tickers']} --years {one['years']} --until {until}"
        one["command"] = f"python benchmarks/scale.py {words}"
    new = {(one["tickers"], one["years"]) for one in runs}
    kept = [one for one in results["runs"] if (one["tickers"], one["years"]) not in new]
    results["runs"] = sorted(kept + runs, key=lambda one: one["bars"])
    path.write_text(json.dumps(results, indent=1) + "\n")


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--tickers", type=int, default=1000)
    ask.add_argument("--years", type=int, default=10)
    ask.add_argument("--sizes", type=int, nargs="+", help="several numbers of tickers, for the growth")
    ask.add_argument("--distributed", action="store_true", help="also on PostgreSQL, S3 and Dask")
    ask.add_argument(
        "--reads", type=int, nargs="+", help="only the cost of a read, at these numbers of tickers"
    )
    ask.add_argument("--out", type=Path, help="JSON file for the results; a plot goes beside it")
    ask.add_argument(
        "--until", choices=STEPS[1:], default=STEPS[-1], help="last step, all of them by default"
    )
    ask.add_argument("--add", type=Path, help="JSON file of earlier results, to which this size is added")
    ask.add_argument("--place", type=Path, help="folder for bars and lakes, kept; a temporary one by default")
    ask.add_argument("--step", help=argparse.SUPPRESS)
    ask.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    ask.add_argument("--more", default="{}", help=argparse.SUPPRESS)
    asked = ask.parse_args()
    if asked.step:
        print(json.dumps(do_step(asked.step, asked.home, asked.tickers, asked.years, json.loads(asked.more))))
        return 0
    if asked.reads:
        return reads(asked.reads)
    runs, same, steps = [], True, STEPS[: STEPS.index(asked.until) + 1]
    with tempfile.TemporaryDirectory(prefix="stockpredict-scale-") as scratch:
        for tickers in asked.sizes or [asked.tickers]:
            place = (asked.place or Path(scratch)) / str(tickers)
            if asked.distributed:
                more, same = compare(place, tickers, asked.years)
                runs += more
            else:
                runs.append(run(place, "local", tickers, asked.years, {}, steps, warm_child))
            if asked.out:
                sizes = " ".join(map(str, asked.sizes or [asked.tickers]))
                words = f"python benchmarks/scale.py --sizes {sizes} --years {asked.years}"
                words += " --distributed" * asked.distributed
                asked.out.write_text(
                    json.dumps(dict(command=words, cores=os.cpu_count(), runs=runs), indent=1)
                )
    if asked.add:
        add(asked.add, runs, asked.until)
    if not asked.distributed and len(runs) > 1:
        report(runs, steps)
        if asked.out:
            plot(runs, asked.out.with_suffix(".png"), steps)
    return not same


if __name__ == "__main__":
    raise SystemExit(main())

"""A million forecasts in one command, and a refresh of ten thousand tickers on one core.

    python benchmarks/batch.py [--rows 1000000] [--model ridge] [--features core]
    python benchmarks/batch.py --refresh 10000 --model lstm --features ret_1 mom_5 vol_20 [--add scale.json]

The first writes a Parquet file of bars and runs `stockpredict predict --bars FILE --out FILE` over all its
sessions, in a process of its own. The second times the parts of one refresh: features, forward pass, answers,
table. CPU seconds are the figures to compare on a busy machine.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path


def publish(settings, bars, name: str, features: list[str]):
    "Fit a model on some of the tickers, sign it, make it the champion."
    from stockpredict.algebra.panel import Panel
    from stockpredict.catalogue.design_matrix import Spec
    from stockpredict.core.calendar import get_calendar
    from stockpredict.models.artifact import artifact_hash, ensure_keys, save_artifact
    from stockpredict.models.contract import make_model
    from stockpredict.models.dataset import Dataset

    some = bars[bars.ticker.isin(sorted(bars.ticker.unique())[:60])]
    panel, spec = Panel.from_bars(some, get_calendar()).last(420), Spec(tuple(features))
    model = make_model(name, **({"epochs": 1} if name in ("lstm", "mlp", "gru") else {}))
    model = model.fit(Dataset.from_panel(panel, spec, (1, 5)))
    key, registry = ensure_keys(settings.storage.keys_dir).private, settings.storage.registry_dir
    draft = save_artifact(model, spec, registry / "versions" / "new", {"entry_delay": 1}, key)
    artifact = draft.rename(draft.with_name(artifact_hash(draft))).name
    entry = {"version": 1, "artifact": artifact, "skill": "none"}
    (registry / "champion.json").write_text(json.dumps(entry))


def many_bars(tickers: int, sessions: int):
    "Bars of many tickers: a simulated market, repeated under other names with other prices."
    import numpy as np
    import pandas as pd

    from stockpredict.sources.simulate import simulate

    base = simulate("null", tickers=min(tickers, 100), sessions=sessions, seed=1).bars
    random, parts = np.random.default_rng(0), []
    for k in range(-(-tickers // 100)):
        part = base.copy()
        part["ticker"] = part.ticker.str.replace("SIM", f"B{k:03d}X")
        noise = 1 + 0.002 * random.standard_normal(len(part))
        for column in ("open", "high", "low", "close"):
            part[column] *= noise
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def batch(args, settings, home: Path):
    "A million forecasts by the command."
    from stockpredict.core.calendar import get_calendar

    sessions = args.rows // (2 * 500) + 320
    bars = many_bars(500, sessions)
    publish(settings, bars, args.model, args.features)
    days = get_calendar().session_of(bars.event_time)
    table = bars.assign(date=days.strftime("%Y-%m-%d"))[
        ["ticker", "date", "open", "high", "low", "close", "volume"]
    ]
    table.to_parquet(home / "bars.parquet")
    (home / "settings.ini").write_text(settings.to_ini())
    since = sorted(table.date.unique())[-(args.rows // 1000)]
    words = [sys.executable, "-m", "stockpredict.cli.main", "predict", "--bars", str(home / "bars.parquet")]
    words += ["--out", str(home / "out.parquet"), "--since", since, "--settings", str(home / "settings.ini")]
    began = time.monotonic()
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
    wall, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(done.stdout or done.stderr[-2000:])
    print(
        f"{args.model}, {len(args.features)} names of features, {len(table):,} bars: {wall:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} CPU s, {used.ru_maxrss >> 10} MB at most"
    )


def refresh(args, settings):
    "The parts of one refresh."
    from stockpredict.lake.lake import Lake
    from stockpredict.predict.engine import Engine, inputs_of_models

    bars = many_bars(args.refresh, 340)
    with Lake(settings.storage) as lake:
        lake.append(bars)
    publish(settings, bars, args.model, args.features)
    engine = Engine(settings)
    marks = [("", time.process_time())]
    window = engine.window()
    marks.append(("read the lake and compute features", time.process_time()))
    for k in range(args.repeats):
        inputs = inputs_of_models(window.panel, [engine])[0]
        marks.append((f"features, again {k + 1}", time.process_time()))
        forecast = engine.forward(inputs)
        marks.append((f"forward pass {k + 1}", time.process_time()))
        rows = len(engine.to_predictions(window, forecast))
        marks.append((f"answers {k + 1}", time.process_time()))
    costs = {name: round(after - before, 2) for (_, before), (name, after) in pairwise(marks)}
    for name, cost in costs.items():
        print(f"{name:<38}{cost:8.2f} CPU s")
    if args.add:
        window, *parts = costs.values()
        last = dict(zip(("features", "forward", "answers"), parts[-3:], strict=True))
        words = f"--refresh {args.refresh} --model {args.model} --features {' '.join(args.features)}"
        command = {"command": f"python benchmarks/batch.py {words}", "tickers": args.refresh, "rows": rows}
        results = json.loads(args.add.read_text()) | {"refresh": command | {"window": window} | last}
        args.add.write_text(json.dumps(results, indent=1) + "\n")


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--rows", type=int, default=1_000_000)
    ask.add_argument("--model", default="ridge")
    ask.add_argument("--features", nargs="+", default=["core"])
    ask.add_argument("--refresh", type=int, default=0)
    ask.add_argument("--repeats", type=int, default=2)
    ask.add_argument("--add", type=Path, help="JSON file of results, to which the refresh is added")
    args = ask.parse_args()
    from stockpredict.core.settings import load_settings

    with tempfile.TemporaryDirectory() as folder:
        chosen = {"storage.home": f"{folder}/home", "serving.device": "cpu", "data.source": "simulated"}
        settings = load_settings(None, chosen, environ={})
        refresh(args, settings) if args.refresh else batch(args, settings, Path(folder))


if __name__ == "__main__":
    main()

"""From which size on a leak is caught: leak mutants from raw bars through folds, candidates and the gate.

    python benchmarks/leaks.py [--seeds 5] [--first-seed 501] [--strengths 1 0.3 0.1 0.05 0.02] [--quick]
                               [--permuted]

Each mutant runs on simulated markets without any signal, ridge as the candidate, no costs, so that every
leak has the best chance of a promotion. A line gives the rank IC that the candidate reached, and the share of
seeds that were flagged by the audit of the data, flagged by the limits on results alone, held, and promoted:
with the pipeline at hand, and with the finished data only. Honest changes come last. At the end: the CPU time
of the audit as a share of the experiment's. With --permuted, only refits on permuted bars decide.

With --quick (one market, 38 runs of leaks): none promoted, 37 flagged, 1 held; with the limits on results
alone 11 flagged and 1 promoted; none of the 4 honest changes flagged. 319 CPU seconds, of an experiment with
default settings the audit took 1 %. With --quick --first-seed 9101 also 37 flagged, 1 held and none promoted;
with the limits on results alone 9 flagged and 3 promoted; no honest change flagged: 113 CPU seconds.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

SLOW = ["next 1 sessions", "next 5 sessions", "next 20 sessions", "log price z-scored over all time"]
SLOW += ["target mean by stock", "target mean by stock and quarter", "centred moving average"]
FULL = (1.0,)


def settings():
    "One quick candidate, no costs."
    from stockpredict.core.settings import load_settings

    overrides = {
        "features.names": "ret_1 mom_5 mom_21 vol_20 rsi_14",
        "models.trials": 0,
        "models.candidates": "ridge",
        "validation.first_train": 400,
        "validation.folds": 2,
        "validation.horizons": "1",
        "costs.bps": 0,
    }
    return load_settings(overrides=overrides, environ={})


def judged(name: str, seed: int, strength: float, tickers: int, sessions: int) -> dict:
    "One mutant on one market, with and without its pipeline."
    from dataclasses import replace

    from stockpredict.train.gate import decide
    from stockpredict.train.leak_checks import leak_alarms
    from stockpredict.train.leak_mutants import mutant_experiment
    from stockpredict.train.refits import Audit
    from stockpredict.train.skill_table import skill_table

    small, size = settings(), dict(tickers=tickers, sessions=sessions)
    study = mutant_experiment(small, name, seed, strength, **size)
    bare = mutant_experiment(small, name, seed, strength, False, **size)
    silent = replace(study, audit=Audit(["-"], forecasts=study.audit.forecasts))
    table = skill_table(study)
    return dict(
        mutant=name,
        strength=strength,
        ic=float(table.ic[table.model == "ridge"].iloc[0]),
        audit=bool(study.audit.alarms),
        limits=bool(leak_alarms(silent, table)),
        believed=decide(silent).decision == "promote",
        decision=decide(study).decision,
        bare=decide(bare).decision,
    )


def report(rows: list) -> str:
    "Shares by mutant and strength."
    import pandas as pd

    table = pd.DataFrame(rows)
    out = table.groupby(["mutant", "strength"], sort=False).agg(
        ic=("ic", "mean"),
        flagged_by_audit=("audit", "mean"),
        flagged_by_limits=("limits", "mean"),
        believed_without_audit=("believed", "mean"),
        promoted=("decision", lambda d: (d == "promote").mean()),
        held=("decision", lambda d: (d == "hold").mean()),
        bare_promoted=("bare", lambda d: (d == "promote").mean()),
        bare_flagged=("bare", lambda d: (d == "suspected-leak").mean()),
    )
    leaks = table[table.leak]
    total = (
        f"{len(leaks)} runs of leaks with their pipeline: {(leaks.decision == 'promote').sum()} promoted, "
        f"{(leaks.decision == 'suspected-leak').sum()} flagged, {(leaks.decision == 'hold').sum()} held; as "
        f"finished data: {(leaks.bare == 'promote').sum()} promoted; by the limits on results alone: "
        f"{leaks.believed.sum()} promoted, {leaks.limits.sum()} flagged."
    )
    honest = table[~table.leak]
    total += f"\n{len(honest)} runs of honest changes: {(honest.decision == 'suspected-leak').sum()} flagged."
    return f"{out.round(3).to_string()}\n\n{total}"


def cost(tickers: int, sessions: int) -> str:
    "CPU time of the audit beside the experiment with the default candidates."
    import stockpredict.train.experiment as experiment
    from stockpredict.core.settings import load_settings
    from stockpredict.train.known_markets import simulated_experiment

    spent, real = [0.0], experiment.audit_data

    def timed(*args, **more):
        start = time.process_time()
        out = real(*args, **more)
        spent[0] += time.process_time() - start
        return out

    experiment.audit_data = timed
    start = time.process_time()
    simulated_experiment(load_settings(environ={}), "null", 1, tickers, sessions)
    whole = time.process_time() - start
    experiment.audit_data = real
    return (
        f"{tickers} tickers, {sessions} sessions, default settings: "
        f"audit {spent[0]:.1f} of {whole:.1f} CPU s "
        f"({spent[0] / whole:.0%})"
    )


def permuted_frontier(seeds: range, strengths: list) -> str:
    "Share of markets in which refits on permuted bars alone flag a leak, by its size; honest changes last."
    import pandas as pd
    from stockpredict.models.dataset import Dataset
    from stockpredict.train.leak_mutants import HONEST, mutated, simulated_panel
    from stockpredict.train.permuted_refits import permuted_skill

    small, rows = settings(), []
    names = ("ret_1", "mom_5", "mom_21", "vol_20", "rsi_14")
    plan = [(n, s) for n in SLOW for s in strengths] + [(n, 1.0) for n in HONEST]
    for seed in seeds:
        panel = simulated_panel("null", seed, 40, 900)
        for name, strength in plan:
            make = mutated(name, lambda bars: Dataset.from_panel(bars, names, (1,)), strength)
            r = permuted_skill(small, make, panel, {"ridge": {}}).loc["ridge"]
            row = dict(mutant=name, strength=strength, ic=r.value, flagged=r.p_greater < small.gate.alpha)
            rows.append(row | dict(honest=name in HONEST))
    table = pd.DataFrame(rows)
    shares = table.groupby(["mutant", "strength"], sort=False)[["ic", "flagged"]].mean().round(3)
    return f"{shares.to_string()}\n{table.flagged[table.honest].mean():.1%} of honest runs flagged."


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--seeds", type=int, default=5)
    ask.add_argument("--first-seed", type=int, default=501)
    ask.add_argument("--strengths", type=float, nargs="+", default=[1, 0.3, 0.1, 0.05, 0.02])
    ask.add_argument("--quick", action="store_true", help="one seed, two strengths, a small market")
    ask.add_argument("--permuted", action="store_true", help="refits on permuted bars alone")
    args = ask.parse_args()
    if args.permuted:
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        return print(permuted_frontier(seeds, args.strengths))
    from tqdm import tqdm

    from stockpredict.train.leak_mutants import HONEST, LEAKS

    if args.quick:
        args.seeds, args.strengths = 1, [1, 0.1]
    size = (30, 640) if args.quick else (40, 900)
    plan = [(n, s, True) for n in LEAKS for s in (args.strengths if n in SLOW else FULL)]
    plan += [(n, 1.0, False) for n in HONEST]
    runs = [(n, s, leak, args.first_seed + k) for n, s, leak in plan for k in range(args.seeds)]
    rows = [judged(n, seed, s, *size) | dict(leak=leak) for n, s, leak, seed in tqdm(runs, disable=None)]
    print(report(rows))
    print(cost(*((40, 900) if args.quick else (120, 1250))))


if __name__ == "__main__":
    main()

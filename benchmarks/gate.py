"""How often the promotion gate is wrong where the truth is known: markets without any skill, and markets with
a planted rank IC of 0.05; for the volatility head, markets of constant and of moving volatility.

    python benchmarks/gate.py [--null 40] [--planted 20] [--first-seed 1001] [--quick]
    python benchmarks/gate.py --volatility 20 [--first-seed 5001] [--minutes 4] [--models log_har]

Each market goes through the code of a real run: features, purged walk-forward, candidates, verdict. A market
takes a few CPU seconds. Shares come with their exact 95 % interval (Clopper and Pearson, 1934): no promotion
in 40 null markets still allows a true rate of 9 %.

Printed for the volatility head with log_har, seeds 5001 to 5024 in two runs: 0 of 24 steady markets promoted
(95 % interval 0 to 14 %) and 24 of 24 moving ones (86 to 100 %).
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def share(k: int, n: int) -> str:
    "k of n with its exact 95 % interval."
    from scipy.stats import binomtest

    interval = binomtest(k, n).proportion_ci(0.95, "exact")
    return f"{k} of {n} ({k / n:.0%}, 95 % interval {interval.low:.0%} to {interval.high:.0%})"


def judge(kind: str, n: int, first: int) -> list:
    "The verdicts on `n` markets of one kind."
    from tqdm import tqdm

    from stockpredict.core.settings import load_settings
    from stockpredict.train.judge import self_test_settings, judge_market

    small = self_test_settings(load_settings())
    expected = "promote" if kind == "planted" else "hold"
    return [
        judge_market(small, kind, kind, seed, expected)
        for seed in tqdm(range(first, first + n), desc=kind, disable=None)
    ]


def judge_volatility(n: int, first: int, minutes: float, names: str) -> dict:
    """The verdicts of the volatility head on up to `n` steady and `n` moving markets, in turn, with the
    models that are named; no further pair begins after `minutes`."""
    import time

    from tqdm import tqdm

    from stockpredict.core.settings import load_settings
    from stockpredict.train.judge import judge_market, self_test_settings

    began, changes = time.monotonic(), {"models.candidates": names, "models.trials": 0}
    small = self_test_settings(load_settings()).with_(**changes)
    verdicts = dict(steady=[], moving=[])
    for seed in tqdm(range(first, first + n), desc=names, disable=None):
        if time.monotonic() - began > 60 * minutes:
            break
        for kind, expected in (("steady", "hold"), ("moving", "promote")):
            verdicts[kind].append(judge_market(small, kind, kind, seed, expected, None, "volatility"))
    return verdicts


def print_volatility(n: int, first: int, minutes: float, names: str):
    "The share promoted of each kind, and the gap of the leading model to EWMA."
    for kind, rows in judge_volatility(n, first, minutes, names).items():
        promoted = sum(m["decision"] == "promote" for m in rows)
        gaps = sorted(m["ic"] for m in rows if m["ic"] is not None)
        middle = f"; median QLIKE against EWMA {gaps[len(gaps) // 2]:+.2%}" if gaps else ""
        seeds = f"seeds {first} to {first + len(rows) - 1}"
        print(f"{kind} markets, volatility promoted: {share(promoted, len(rows))}{middle}; {seeds}")


def planted_signal(n: int, first: int) -> list:
    """Rank IC of the planted signal itself on `n` markets: what a model that knew the rule would be
    measured at."""
    import torch

    from stockpredict.lake.adjustments import adjust, price_factors
    from stockpredict.sources.simulate import simulate
    from stockpredict.evaluate.labels import make_labels
    from stockpredict.evaluate.metrics import ic_summary, rank_ic
    from stockpredict.algebra.panel import Panel

    estimates = []
    for seed in range(first, first + n):
        market = simulate("planted", tickers=40, sessions=905, rank_ic=0.05, seed=seed)
        panel = Panel.from_bars(adjust(market.bars, price_factors(market.bars)))
        signal = torch.from_numpy(market.signal[panel.tickers].to_numpy().copy()).float()
        estimates.append(ic_summary(rank_ic(signal, make_labels(panel, [1])[1])))
    return estimates


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--null", type=int, default=40)
    ask.add_argument("--planted", type=int, default=20)
    ask.add_argument("--first-seed", type=int, default=1001)
    ask.add_argument("--quick", action="store_true", help="four markets of each kind")
    ask.add_argument("--volatility", type=int, default=0, help="markets of each kind for the volatility head")
    ask.add_argument("--minutes", type=float, default=1e9, help="begin no further volatility market after")
    ask.add_argument("--models", default="log_har", help="for the volatility head")
    args = ask.parse_args()
    if args.volatility:
        return print_volatility(args.volatility, args.first_seed, args.minutes, args.models)
    null, planted = (
        judge(k, 4 if args.quick else n, args.first_seed)
        for k, n in (("null", args.null), ("planted", args.planted))
    )
    print(
        "null markets promoted:               "
        f"{share(sum(m['decision'] == 'promote' for m in null), len(null))}"
    )
    print(f"null markets with a false leak alarm: {share(sum(bool(m['alarms']) for m in null), len(null))}")
    print(
        "planted markets promoted:            "
        f"{share(sum(m['decision'] == 'promote' for m in planted), len(planted))}"
    )
    print(
        f"planted markets taken for a leak:    {share(sum(bool(m['alarms']) for m in planted), len(planted))}"
    )
    rule = planted_signal(len(planted), args.first_seed)
    print(
        f"rank IC of the planted rule itself:  mean {sum(r.value for r in rule) / len(rule):.4f}; "
        f"its interval holds 0.05 in {share(sum(r.low <= 0.05 <= r.high for r in rule), len(rule))}"
    )
    print(
        f"rank IC of the models that learned it: mean {sum(m['ic'] for m in planted) / len(planted):.4f}, "
        "lower because the rule has to be found among all features in a short history"
    )


if __name__ == "__main__":
    main()

"""What 100,000 alert rules cost on one new bar.

`python benchmarks/alerts.py [RULES] [TICKERS]` stores rules of all kinds in a store of its own, reads them
as columns, and evaluates them on the newest bar of a market with 10,000 tickers. It prints the CPU seconds of
each step, and beside them the same evaluation as a loop over the rules of one kind, for comparison.
"""

import sys
import tempfile
import time

import numpy as np

from stockpredict.alerts.alert_records import AlertRule
from stockpredict.alerts.alert_session import AlertEvening
from stockpredict.alerts.alert_store import AlertStore
from stockpredict.alerts.evaluation import pair_rules
from stockpredict.alerts.market_view import MarketView
from stockpredict.alerts.strategy import STRATEGIES, complete_parameters
from stockpredict.core.operation_sections import Alerts
from stockpredict.core.settings import load_settings

CHOICES = {
    "price": lambda rng: {
        "level": float(rng.uniform(50, 200)),
        "direction": str(rng.choice(["above", "below"])),
    },
    "move": lambda rng: {"percent": float(rng.uniform(3, 10))},
    "sigma_move": lambda rng: {"times": float(rng.uniform(2, 5))},
    "interval_left": lambda rng: {"level": int(rng.choice([90, 95]))},
    "p_up": lambda rng: {"level": float(rng.uniform(0.55, 0.7))},
    "volatility_regime": lambda rng: {"share": float(rng.uniform(0.8, 0.95))},
    "data_late": lambda rng: {"sessions": int(rng.integers(1, 5))},
}


def market(tickers, sessions=343):
    "A random walk a ticker, with forecasts of one and five sessions."
    rng = np.random.default_rng(1)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.02, (sessions, tickers)), 0))
    forecasts = {
        horizon: {
            "p_up": rng.normal(0.5, 0.05, close.shape),
            "daily": np.full(close.shape, 0.02),
            **{f"q{q}": np.full(close.shape, z * 0.02 * horizon**0.5) for q, z in LEVELS.items()},
        }
        for horizon in (1, 5)
    }
    names = tuple(f"T{n:05d}" for n in range(tickers))
    days = np.datetime64("2025-07-01") + np.arange(sessions)
    bars = {name: close for name in ("open", "close", "traded")}
    return MarketView(days, names, bars, forecasts, {"data_late": np.zeros(sessions)})


LEVELS = {"0.025": -1.96, "0.05": -1.64, "0.95": 1.64, "0.975": 1.96}


def rules(count, view):
    "Rules of all kinds, one ticker each."
    rng, kinds = np.random.default_rng(2), list(CHOICES)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        params = complete_parameters(STRATEGIES[kind], CHOICES[kind](rng))
        ticker = view.tickers[number % len(view.tickers)]
        yield AlertRule(f"r-{number:06d}", f"user:{number // 500}", (ticker,), kind, params)


def timed(label, work):
    "The result of a piece of work, after its CPU seconds were printed."
    begun = time.process_time()
    result = work()
    spent = time.process_time() - begun
    print(f"{label:<58}{spent:8.3f} CPU s", flush=True)
    return result, spent


def main(count=100_000, tickers=10_000):
    view = market(tickers)
    store = AlertStore(load_settings(None, {"storage.home": tempfile.mkdtemp()}).storage)
    limits = Alerts(rules_per_caller=100_000, pairs_per_caller=1_000_000, pairs_in_all=10_000_000)
    timed(f"store {count:,} rules", lambda: store.add(rules(count, view), limits))
    _ = view.carried, view.silent, view.scale, view.screen  # once for a new bar, for all rules
    import pyarrow.json  # noqa: F401 - the cost of an import is not that of an evaluation

    lines, read = timed("read them from the store", store.active_lines)
    pairs, columns = timed("as columns", lambda: {k: pair_rules(text, k, view) for k, text in lines.items()})
    evening, at = AlertEvening(view, pairs), len(view) - 1
    rings, rung = timed(
        f"evaluate them on one bar of {tickers:,} tickers", lambda: evening.free_rings({}, [at])
    )
    print(f"{'all three':<58}{read + columns + rung:8.3f} CPU s, {len(rings):,} rings")
    some = pairs["price"]

    def loop():
        return [some.judge(view, at, np.array([place])) for place in range(500)]

    _, slow = timed("for comparison: 500 rules, one call each", loop)
    print(f"a loop over {count:,} rules would cost {slow * count / 500:.0f} CPU s for the condition alone")


if __name__ == "__main__":
    main(*(int(word.replace("_", "")) for word in sys.argv[1:3]))

"""Accounts of a large market, grids of strategies, and the same signal file through vectorbt.

    python benchmarks/backtest.py [--tickers 10000] [--sessions 2520] [--no-peer]

vectorbt runs in an environment of its own (`benchmarks/peers.py`). Times are CPU seconds of one process after
a first small call, so that nothing is compiled in them; the bar is 1 s for weights and account together.
The peer reads the same file of prices and weights, and its daily net returns are compared with ours.

Differences in convention, all set alike for the comparison:
- vectorbt fills a target at the price given in the same row, we fill `delay` rows later: its weights are
  moved by one row.
- vectorbt spends free cash only, and a short sale locks cash: books have an absolute weight of at most 0.9.
- vectorbt has no borrow fee, no impact, no volume limit: those are off.
- vectorbt keeps a delisted name at its last price for ever; here it becomes cash. The file has halts (no
  price in a session), no delistings.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import peers

PEER = """
import json, sys, time
import numpy as np, pandas as pd, vectorbt as vbt
data = np.load(sys.argv[1])
close = pd.DataFrame(data["close"])
def run(weights, fees):
    return vbt.Portfolio.from_orders(
        close, size=pd.DataFrame(weights), size_type="targetpercent", fees=fees, group_by=True,
        cash_sharing=True, call_seq="auto", init_cash=1e6, freq="1D",
    ).value()
run(data["weights_0"], 1e-4)
begin, out = time.process_time(), {}
for k, (book, fees) in enumerate(zip(data["books"], data["fees"])):
    out[f"v{k}"] = run(data[f"weights_{book}"], fees).to_numpy()
spent = time.process_time() - begin
np.savez(sys.argv[2], **out)
print(json.dumps(dict(cpu=spent, version=vbt.__version__)))
"""


def seconds(call) -> float:  # CPU seconds of this process
    begin = time.process_time()
    call()
    return time.process_time() - begin


def large(tickers: int, sessions: int):
    from stockpredict.evaluate.execution import TradingCosts, run_portfolio
    from stockpredict.evaluate.strategies import portfolio_weights

    rng = np.random.default_rng(0)
    returns = 0.02 * rng.standard_normal((sessions, tickers))
    returns[rng.random(returns.shape) < 0.005] = np.nan
    score, volume = rng.standard_normal(returns.shape), np.full(returns.shape, 1e7)
    flat = TradingCosts(2, half_spread=3, borrow=0.01)
    whole = TradingCosts(2, half_spread=3, impact=0.7, borrow=0.01, participation=0.1)
    options = dict(keep=False)
    small = slice(0, 60)
    for costs in (flat, whole):
        weights = portfolio_weights(score[small])
        run_portfolio(weights, returns[small], costs, dollar_volume=volume[small], **options)
    for kind in ("rank", "decile"):
        books = []
        ranking = seconds(lambda kind=kind, books=books: books.append(portfolio_weights(score, kind)))
        trading = seconds(lambda w=books[0]: run_portfolio(w, returns, flat, **options))
        sized = seconds(lambda w=books[0]: run_portfolio(w, returns, whole, dollar_volume=volume, **options))
        print(
            f"{kind}, {tickers:,} tickers x {sessions:,} sessions: weights {ranking:.2f} s + account with "
            f"commission, spread and borrow {trading:.2f} s = {ranking + trading:.2f} s, with impact and "
            f"volume limit {ranking + sized:.2f} s CPU"
        )


def grid(beside: bool, tickers: int = 300, sessions: int = 1260):
    from stockpredict.evaluate.execution import TradingCosts, run_grid, run_portfolio
    from stockpredict.evaluate.strategies import portfolio_weights

    rng = np.random.default_rng(1)
    returns = 0.02 * rng.standard_normal((sessions, tickers))
    close = 50 * np.cumprod(1 + returns, 0)
    halted = rng.random(close.shape) < 0.01
    halted[:2] = halted[-1] = False
    close[halted] = np.nan
    moves = np.full(close.shape, np.nan)
    for i in range(tickers):
        bars = np.flatnonzero(np.isfinite(close[:, i]))
        moves[bars[1:], i] = close[bars[1:], i] / close[bars[:-1], i] - 1
    score = rng.standard_normal(close.shape)
    options = dict(kind=["rank", "long_only", "decile", "signal"], horizon=[1, 2, 3, 5, 10])
    options |= dict(bps=[0.0, 1.0, 2.0, 5.0, 10.0])
    run_grid(score[:60], moves[:60], options)
    ours = seconds(lambda: run_grid(score, moves, options))
    print(
        f"a grid of 100 strategies, {tickers} tickers x {sessions:,} sessions, in one call: {ours:.2f} s CPU"
    )
    if not beside:
        return
    forms = [(k, h) for k in options["kind"] for h in options["horizon"]]
    books = {f"weights_{n}": 0.9 * portfolio_weights(score, k, horizon=h) for n, (k, h) in enumerate(forms)}
    chosen = [(n, fee) for n in range(len(forms)) for fee in options["bps"]]
    moved = {k: np.vstack([np.full((1, tickers), np.nan), w[:-1]]) for k, w in books.items()}
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "signals.npz", Path(folder) / "values.npz"
        fees = [1e-4 * fee for _, fee in chosen]
        np.savez(file, close=close, books=[n for n, _ in chosen], fees=fees, **moved)
        theirs = peers.run("vectorbt", PEER, file, out)
        values = dict(np.load(out))
    gaps, own = [], []
    begin = time.process_time()
    for n, fee in chosen:
        own.append(run_portfolio(books[f"weights_{n}"], moves, TradingCosts(fee), keep=False))
    spent = time.process_time() - begin
    for k, run in enumerate(own):
        value = values[f"v{k}"]
        net = np.r_[value[0] / 1e6 - 1, value[1:] / value[:-1] - 1]
        gaps.append(np.abs(net - run.net).max())
    print(
        f"the same 100 accounts from the same file: ours {spent:.2f} s, vectorbt {theirs['version']} "
        f"{theirs['cpu']:.2f} s CPU ({spent / theirs['cpu']:.3f} of its time)"
    )
    within = np.mean(np.array(gaps) < 1e-9)
    print(f"largest difference of a daily net return: {max(gaps):.1e}; within 1e-9: {within:.0%}")
    for (n, fee), gap in zip(chosen, gaps, strict=True):
        if gap >= 1e-9:
            print(f"  {forms[n]} at {fee:g} bp: {gap:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tickers", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=2520)
    parser.add_argument("--no-peer", action="store_true", help="leave out vectorbt")
    arguments = parser.parse_args()
    if arguments.tickers:
        large(arguments.tickers, arguments.sessions)
    grid(not arguments.no_peer)


if __name__ == "__main__":
    main()

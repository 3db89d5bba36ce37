"""The same signal file through zipline-reloaded: daily net returns agree to 1e-9, every difference named.

    python benchmarks/backtest_zipline.py [--tickers 30] [--sessions 504]

zipline runs in an environment of its own (`benchmarks/peers.py`), on bars in its own bcolz files, with its
own blotter, ledger and commission model, reading the same file of prices and target weights. Its portfolio
value after each session is compared with ours, for four portfolios without costs, with commission and with
spread. Printed: 12 of 12 within 1e-9, the largest difference 6e-12; ours 0.4 s, zipline 117 s CPU.

Differences in convention, and how they are set alike:
- A zipline order is a number of shares, fixed when it is placed, so an order of a weight is sized at the
  price and the wealth of the day before its fill. Ours is a share of the wealth at the fill. The slippage
  model below, zipline's own extension point, sizes each order when it is filled. With zipline's own sizing
  (`order_target_percent`) the same portfolios differ by what is printed in the last line.
- zipline trades whole shares: accounts start with 1e12, where half a share is 3e-11 of the wealth.
- zipline stores prices in thousandths: the prices of the file are rounded to that before both read it.
- zipline fills an order in the session after it was placed (our `delay=1`); it has no other delay.
- An order that found no bar waits at zipline until it is cancelled: the algorithm cancels it before it
  decides anew, as our account does.
- zipline has no borrow fee and closes a delisted position at its last price without commission, one session
  earlier than we do: the fee is off, and the file has halts and a late listing but no delisting.
- zipline's default limit of a bar's volume and its minimum commission are off. Its spread is paid in the
  price, and its commission is a share of that price: with both on, it charges the product of both more than
  we do (5 bp of 3 bp, 1.5e-7 of what is traded), so each account here has one of the two.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import peers

PEER = """
import json, sys, time
import numpy as np, pandas as pd
from sqlalchemy import create_engine
from zipline.algorithm import TradingAlgorithm
from zipline import api
from zipline.assets import AssetDBWriter, AssetFinder
from zipline.data.bcolz_daily_bars import BcolzDailyBarReader, BcolzDailyBarWriter
from zipline.data.data_portal import DataPortal
from zipline.finance.commission import PerDollar
from zipline.finance.slippage import SlippageModel
from zipline.finance.trading import SimulationParameters
from zipline.utils.calendar_utils import get_calendar
import zipline

file, folder, out = sys.argv[1:4]
data, calendar = np.load(file), get_calendar("XNYS")
close, capital = data["close"], float(data["capital"])
days = calendar.sessions_in_range("2012-01-03", calendar.last_session)[: len(close)]
names, sids = [f"T{i}" for i in range(close.shape[1])], range(close.shape[1])
engine = create_engine(f"sqlite:///{folder}/assets.db")
AssetDBWriter(engine).write(
    equities=pd.DataFrame(dict(symbol=names, asset_name=names, exchange="NYSE", start_date=days[0],
        end_date=days[-1], auto_close_date=days[-1] + pd.Timedelta(days=9)), index=sids),
    exchanges=pd.DataFrame(dict(exchange=["NYSE"], canonical_name=["NYSE"], country_code=["US"])),
)
def bars():
    for i in sids:
        p = close[:, i]
        first = np.flatnonzero(np.isfinite(p))[0]
        frame = pd.DataFrame({k: np.nan_to_num(p) for k in ("open", "high", "low", "close")}, index=days)
        yield i, frame.assign(volume=np.where(np.isfinite(p), 1_000_000, 0))
BcolzDailyBarWriter(f"{folder}/bars", calendar, days[0], days[-1]).write(bars())
finder, reader = AssetFinder(engine), BcolzDailyBarReader(f"{folder}/bars")
portal = DataPortal(finder, calendar, reader.first_trading_day, equity_daily_reader=reader)

class AtFill(SlippageModel):
    "Sizes an order when it is filled: `weights` of the wealth at the prices of the fill, plus half a spread."
    def __init__(self, weights, spread):
        super().__init__()
        self.weights, self.spread, self.day, self.algo = weights, spread, None, None
    def look(self, data):
        portfolio = self.algo.portfolio
        self.shares = {a: p.amount for a, p in portfolio.positions.items()}
        prices = {a: data.current(a, "price") for a in self.shares}
        self.wealth = portfolio.cash + sum(n * prices[a] for a, n in self.shares.items())
        self.day = data.current_dt
    def process_order(self, data, order):
        if self.day != data.current_dt:
            self.look(data)
        price = data.current(order.asset, "close")
        goal = round(self.wealth * self.weights[order.asset] / price)
        size = goal - self.shares.get(order.asset, 0)
        order.amount = size
        if size == 0:
            return None, None
        return price * (1 + self.spread * np.sign(size)), size

def run(weights, fee, spread, at_fill=True):
    model = AtFill({}, spread)
    def initialize(context):
        context.row, model.algo = 0, context
        api.set_slippage(us_equities=model) if at_fill else api.set_slippage(
            us_equities=zipline.finance.slippage.NoSlippage())
        api.set_commission(us_equities=PerDollar(cost=fee))
        context.assets = finder.retrieve_all(list(sids))
    def handle_data(context, data):
        for orders in api.get_open_orders().values():
            for order in orders:
                api.cancel_order(order)
        w = weights[context.row]
        context.row += 1
        for asset, x in zip(context.assets, w):
            model.weights[asset] = x
            if at_fill:
                api.order(asset, 1)
            elif data.can_trade(asset):
                api.order_target_percent(asset, x)
    algorithm = TradingAlgorithm(
        sim_params=SimulationParameters(start_session=days[0], end_session=days[-1],
            trading_calendar=calendar, capital_base=capital, data_frequency="daily"),
        data_portal=portal, initialize=initialize, handle_data=handle_data,
        benchmark_returns=pd.Series(0.0, index=days),
    )
    return algorithm.run().portfolio_value.to_numpy()

begin, values = time.process_time(), {}
for k, (book, fee, spread) in enumerate(zip(data["books"], data["fees"], data["spreads"])):
    values[f"v{k}"] = run(data[f"weights_{book}"], fee, spread)
spent = time.process_time() - begin
for book in sorted(set(data["books"])):
    values[f"own{book}"] = run(data[f"weights_{book}"], 0.0, 0.0, at_fill=False)
np.savez(out, **values)
print(json.dumps(dict(cpu=spent, version=zipline.__version__)))
"""


def market(tickers: int, sessions: int):
    "Prices in thousandths with halts and one late listing, and returns from each bar to the next."
    rng = np.random.default_rng(2)
    close = np.round(50 * np.cumprod(1 + 0.02 * rng.standard_normal((sessions, tickers)), 0), 3)
    halted = rng.random(close.shape) < 0.01
    halted[:2] = halted[-1] = False
    halted[: sessions // 4, 0] = True
    close[halted] = np.nan
    moves = np.full(close.shape, np.nan)
    for i in range(tickers):
        bars = np.flatnonzero(np.isfinite(close[:, i]))
        moves[bars[1:], i] = close[bars[1:], i] / close[bars[:-1], i] - 1
        moves[bars[0], i] = 0.0
    return close, moves, rng.standard_normal(close.shape)


def net_returns(wealth, capital):
    "Net return of each session from the wealth after it."
    return wealth / np.r_[capital, wealth[:-1]] - 1


def main():
    from stockpredict.evaluate.execution import TradingCosts, run_portfolio
    from stockpredict.evaluate.strategies import portfolio_weights

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tickers", type=int, default=30)
    parser.add_argument("--sessions", type=int, default=504)
    arguments = parser.parse_args()
    close, moves, score = market(arguments.tickers, arguments.sessions)
    forms, capital = [("rank", 1), ("long_only", 3), ("decile", 5), ("signal", 1)], 1e12
    books = {f"weights_{n}": 0.9 * portfolio_weights(score, k, horizon=h) for n, (k, h) in enumerate(forms)}
    prices = ((0.0, 0.0), (5.0, 0.0), (0.0, 3.0))  # commission and half spread, hundredths of a percent
    chosen = [(n, bps, spread) for n in range(len(forms)) for bps, spread in prices]
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "signals.npz", Path(folder) / "values.npz"
        options = dict(books=[n for n, _, _ in chosen], capital=capital)
        options |= dict(fees=[1e-4 * b for _, b, _ in chosen], spreads=[1e-4 * s for *_, s in chosen])
        np.savez(file, close=close, **options, **books)
        theirs = peers.run("zipline", PEER, file, folder, out)
        values = dict(np.load(out))
    begin = time.process_time()
    runs = [
        run_portfolio(books[f"weights_{n}"], moves, TradingCosts(b, s), capital=capital, keep=False)
        for n, b, s in chosen
    ]
    spent = time.process_time() - begin
    gaps = [np.abs(net_returns(values[f"v{k}"], capital) - run.net).max() for k, run in enumerate(runs)]
    print(
        f"{len(chosen)} accounts, {arguments.tickers} tickers x {arguments.sessions} sessions: ours "
        f"{spent:.2f} s, zipline-reloaded {theirs['version']} {theirs['cpu']:.1f} s CPU"
    )
    for (n, bps, spread), gap, run in zip(chosen, gaps, runs, strict=True):
        grown = run.daily.wealth.iloc[-1] / capital - 1
        print(f"  {forms[n]} at {bps:g} + {spread:g} bp: {grown:+.1%} in all, largest difference {gap:.1e}")
    print(f"within 1e-9: {np.mean(np.array(gaps) < 1e-9):.0%}")
    own = [np.abs(net_returns(values[f"own{n}"], capital) - runs[3 * n].net).max() for n in range(len(forms))]
    print("with orders sized a day before their fill, as zipline does: " + ", ".join(f"{g:.1e}" for g in own))


if __name__ == "__main__":
    main()

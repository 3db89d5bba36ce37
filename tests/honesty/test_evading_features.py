"""Features written to evade the proof: which are refused when they are registered, which at their first use
on a panel that shows it, and which are not, and why. The notebook of features shows the same list."""

import ctypes
import datetime
import functools
import math
import os
import socket
import sys
import threading
import time as clock

import numpy as np
import pandas as pd
import pytest
import torch
from kill_points import sample

from stockpredict.core.errors import FeatureError, SeesFuture
from stockpredict.core.registry import Registry
from stockpredict.catalogue.feature import Feature, as_features, compute, feature, prove_widely
from stockpredict.catalogue.point_in_time import attach_fields, fact_series
from stockpredict.algebra.panel import Panel
from stockpredict.algebra.proof_guard import check_names
from stockpredict.algebra.series import Series
from stockpredict.features.calendar import calendar_series


def market(sessions, tickers, seed=5, start="2015-01-01"):
    noise = torch.Generator().manual_seed(seed)
    drift = 0.001 * torch.randn(tickers, generator=noise)
    close = 40 * (drift + 0.015 * torch.randn(sessions, tickers, generator=noise)).cumsum(0).exp()
    fields = {k: close.clone() for k in ("open", "high", "low", "close")}
    fields["volume"] = (12 + torch.randn(sessions, tickers, generator=noise)).exp().round()
    return Panel(fields, pd.bdate_range(start, periods=sessions), [f"S{i:02d}" for i in range(tickers)])


def hand(x, b):
    return Series(x, b.grid, fields={"close"})


def ahead(b):
    "Tomorrow's close over today's."
    x = b.close.values
    return torch.cat([x[1:], x[-1:]]) / x


def only(b, rows):
    "The return of today, and of tomorrow in some sessions."
    rows = torch.from_numpy(np.array(rows))[:, None]
    today = b.returns.values
    return Series(torch.where(rows, ahead(b) - 1, today), b.grid, lookback=2, fields={"close"})


OWN = market(420, 12)  # the panel that lies in the user's notebook
RETURNS = OWN.close.values[-1] / OWN.close.values[0]
FOLDER = os.environ.get("TMPDIR", "/tmp")
LABELS = os.path.join(FOLDER, f"labels-{os.getpid()}.csv")
MEANS = OWN.close.frame().mean()
LONG = {f"S{i:02d}": float(RETURNS[i % 12]) for i in range(40)}
SHORT = {f"S{i:02d}": float(RETURNS[i]) for i in range(12)}
BY_PLACE = [float(x) for x in RETURNS]
ARRAY = OWN.close.values.numpy()[:, 0]
SIGMA = float(OWN.returns.values.nan_to_num(0.0).std())
PRICES = {round(float(p), 2): float(r) for p, r in zip(OWN.close.values[0], RETURNS)}
CRASHES = ["2015-08-24", "2016-02-08", "2016-06-24"]
SEEN, NEXT = {}, {}


class Keeper:
    rows = {}
    table = np.arange(400.0)

    def read(self):
        return np.load(LABELS + ".npy")


KEEPER = Keeper()


def tomorrow(b):
    return hand(ahead(b), b)


def reads_a_file(b):
    return b.close * float(pd.read_csv(LABELS).iloc[0, 0])


def opens_and_hides_it(b):
    try:
        with open(LABELS) as f:
            return b.close * float(f.readlines()[1])
    except Exception:
        return b.close * 2


def reads_by_a_method(b):
    return b.close * float(KEEPER.read()[0])


def reads_by_a_hidden_name(b):
    return b.close * float(getattr(pd, "read_" + "csv")(LABELS).iloc[0, 0])


def asks_the_network(b):
    socket.create_connection(("127.0.0.1", 9), 0.1)
    return b.close


def calls_c(b):
    return b.close * ctypes.CDLL(None).time(None)


def reads_the_environment(b):
    return b.close * float(os.environ.get("LABEL", "1"))


def remembers_rows(b):
    for i, day in enumerate(b.sessions):
        SEEN.setdefault(day, b.close.values[min(i + 1, len(b) - 1)])
    return hand(torch.stack([SEEN[d][: len(b.tickers)] for d in b.sessions]), b)


def remembers_in_a_default(b, seen={}):  # noqa: B006
    for i, day in enumerate(b.sessions):
        seen[day] = max(seen.get(day, 0.0), float(b.close.values[i:].nansum()))
    return b.close * hand(torch.tensor([[seen[d]] for d in b.sessions]).expand(b.present.shape), b)


def remembers_in_an_attribute(b):
    longest = getattr(remembers_in_an_attribute, "longest", 0)
    remembers_in_an_attribute.longest = max(longest, len(b))
    return b.close * float(remembers_in_an_attribute.longest)


def remembers_in_a_class(b):
    Keeper.rows[len(b)] = float(b.close.values[-1].nansum())
    return b.close * Keeper.rows[max(Keeper.rows)]


def with_many_tickers(b):
    return tomorrow(b) if len(b.tickers) > 8 else hand(b.close.values, b)


def in_a_long_history(b):
    return tomorrow(b) if len(b) > 400 else hand(b.close.values, b)


def in_january(b):
    return only(b, b.sessions.month == 1)


def on_mondays(b):
    return only(b, b.sessions.day_of_week == 0)


def on_the_thirteenth(b):
    return only(b, b.sessions.day == 13)


def on_one_day(b):
    return only(b, b.sessions == pd.Timestamp("2016-06-24"))


def for_one_ticker(b):
    x, mine = ahead(b), torch.tensor([t == "S03" for t in b.tickers])
    return hand(torch.where(mine, x, torch.ones_like(x)), b)


def a_little_of_tomorrow(b):
    return b.returns + hand(ahead(b), b) * 1e-4


def scaled_by_all(b):
    return b.returns / b.returns.values.nan_to_num(0.0).std().item()


def of_the_attached_future(b):
    return fact_series(b, "oracle")


def means_of_my_panel(b):
    return b.close / float(MEANS.iloc[0])


def my_panel(b):
    return b.close * float(OWN.close.values[-1, 0])


def weights_in_a_long_dict(b):
    return hand(torch.tensor([[LONG.get(t, 1.0) for t in b.tickers]]).expand(b.present.shape), b)


def weights_in_a_short_dict(b):
    return hand(torch.tensor([[SHORT.get(t, 1.0) for t in b.tickers]]).expand(b.present.shape), b)


def weights_by_place(b):
    some = (BY_PLACE * 10)[: len(b.tickers)]
    return hand(torch.tensor([some]).expand(b.present.shape), b)


def array_of_my_panel(b):
    return b.close * float(ARRAY[-1])


def array_of_a_class(b):
    return b.close * float(KEEPER.table[-1])


weights_in_a_closure = (lambda table: lambda b: b.close * float(table[5]))(ARRAY)
weights_in_a_partial = functools.partial(lambda table, b: b.close * float(table[5]), ARRAY)


def in_a_literal(b):
    table = (
        0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8,
        1.9, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6,
        3.7, 3.8, 3.9, 4.0, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6, 4.7, 4.8, 4.9, 5.0, 5.1, 5.2, 5.3, 5.4,
        5.5, 5.6, 5.7, 5.8, 5.9, 6.0, 6.1, 6.2, 6.3, 6.4, 6.5, 6.6,
    )  # fmt: skip
    return b.close * table[len(b.tickers) % 66]


def the_clock(b):
    return b.close * (clock.time() % 7)


def the_date_of_today(b):
    return b.close * datetime.datetime.now().month


def the_clock_of_numpy(b):
    return b.close * float(np.datetime64("now").astype(int) % 7)


def random_numbers(b):
    return b.close * hand(torch.rand(b.present.shape), b)


def the_frame_above(b):
    return b.close * float(len(sys._getframe(1).f_locals))


def by_evaluation(b):
    return eval("hand(ahead(b), b)", globals(), {"b": b})


def by_a_thread(b):
    out = []
    worker = threading.Thread(target=lambda: out.append(len(open(LABELS).read())))
    worker.start()
    worker.join()
    return b.close * float(out[0])


def neighbour(b):
    return hand(b.close.values.roll(1, 1), b)


def since_the_first_bar(b):
    return hand(b.close.values.nan_to_num(0.0).cumsum(0), b)


def far_in_the_future(b):
    return tomorrow(b) if b.sessions[-1].year > 2030 else hand(b.close.values, b)


def in_a_very_long_history(b):
    return tomorrow(b) if len(b) > 3000 else hand(b.close.values, b)


def when_it_is_very_wide(b):
    return tomorrow(b) if len(b.tickers) > 60 else hand(b.close.values, b)


def one_number_of_hindsight(b):
    return b.returns / SIGMA


def dates_of_hindsight(b):
    known = torch.tensor(b.sessions.isin(pd.to_datetime(CRASHES)))[:, None]
    return b.close * hand(known.expand(b.present.shape).float(), b)


def tickers_known_by_their_price(b):
    weights = [PRICES.get(round(float(p), 2), 1.0) for p in b.close.values[0]]
    return b.close * 0 + hand(torch.tensor([weights]).expand(b.present.shape), b)


JOINED = {(t, str(OWN.sessions[k].date())): 0.01 * k for t in ("S00", "S01") for k in range(100, 108)}
GOOD_DAYS = [str(day.date()) for day in OWN.sessions[10:400:30]]


def joined_by_ticker_and_date(b):
    x = torch.full(b.present.shape, math.nan)
    for (t, day), value in JOINED.items():
        if t in b.tickers and pd.Timestamp(day) in b.sessions:
            x[b.sessions.get_loc(pd.Timestamp(day)), b.tickers.index(t)] = value
    return hand(x, b)


def good_days(b):
    known = torch.tensor(b.sessions.isin(pd.to_datetime(GOOD_DAYS)))[:, None]
    return hand(torch.where(known, b.close.values, math.nan), b)


def good_days_behind_a_mark(b):
    "The mark that exempted calendar features once; a feature could set it itself."
    b.grid.beyond_calendar = True
    return hand(b.close.values * torch.tensor(~b.sessions.isin(pd.to_datetime(GOOD_DAYS)))[:, None], b)


def good_days_asked_of_the_calendar(b):
    return calendar_series(b, lambda d: d.day.isin(pd.to_datetime(GOOD_DAYS)))


def good_days_until_2100(b):
    known = torch.tensor(b.sessions.isin(pd.to_datetime(GOOD_DAYS)) | (b.sessions.year > 2100))[:, None]
    return hand(torch.where(known, math.nan, b.close.values), b)


def good_days_moved_back(b):
    "It undoes the move of the proof, on purpose: no comparison with other dates can show it."
    days = (b.sessions.year % 400 * 400 + b.sessions.day_of_year).isin([15 * 400 + 155, 15 * 400 + 236])
    return b.returns.mean(5) * hand(torch.tensor(days)[:, None].expand(b.present.shape).float(), b)


def undefined_everywhere(b):
    return b.close * math.nan


def a_rule_found_by_looking(b):
    return (b.returns.lag(3) > 0) & (b.close.mean(17) > b.close.mean(43))


AT_REGISTRATION = [
    tomorrow, reads_a_file, opens_and_hides_it, reads_by_a_method, reads_by_a_hidden_name,
    asks_the_network, calls_c, reads_the_environment, remembers_rows, remembers_in_a_default,
    remembers_in_an_attribute, remembers_in_a_class, with_many_tickers, in_a_long_history, in_january,
    on_mondays, on_the_thirteenth, for_one_ticker, a_little_of_tomorrow, scaled_by_all,
    means_of_my_panel, my_panel, weights_in_a_long_dict, weights_in_a_short_dict, weights_by_place,
    array_of_my_panel, array_of_a_class, weights_in_a_closure, in_a_literal, the_clock,
    the_date_of_today, the_clock_of_numpy, random_numbers, the_frame_above, by_evaluation, by_a_thread,
    neighbour, since_the_first_bar, on_one_day, tickers_known_by_their_price, dates_of_hindsight,
    far_in_the_future, joined_by_ticker_and_date, good_days, undefined_everywhere,
    good_days_behind_a_mark, good_days_asked_of_the_calendar, good_days_until_2100,
]  # fmt: skip
# found when it is computed on a panel that shows it, by the same examination
AT_FIRST_USE = {
    in_a_very_long_history: market(3100, 3),
    when_it_is_very_wide: market(200, 70),
}
# what no examination of a function can find: numbers and rules that were chosen by looking at the past, and
# dates that are counted within 400 years in order to pass
NOT_FOUND = [one_number_of_hindsight, a_rule_found_by_looking, good_days_moved_back]


@pytest.fixture(autouse=True, scope="module")
def labels():
    with open(LABELS, "w") as f:
        f.write("label\n1.5\n")
    np.save(LABELS + ".npy", np.ones(3))
    yield
    os.unlink(LABELS)
    os.unlink(LABELS + ".npy")


def register(function):
    if not function.__doc__:
        function.__doc__ = "A leak."
    catalogue = Registry("feature")
    feature(group="leak", into=catalogue)(function)
    return next(iter(dict(catalogue.items()).values()))


@pytest.mark.parametrize("function", AT_REGISTRATION, ids=lambda f: f.__name__)
def test_a_leak_is_refused_when_it_is_registered(function):
    SEEN.clear()
    Keeper.rows.clear()
    with pytest.raises(FeatureError):
        register(function)


@pytest.mark.parametrize("function", AT_FIRST_USE, ids=lambda f: f.__name__)
def test_a_leak_that_waits_is_refused_where_it_would_show(function):
    f = register(function)
    compute(OWN, [f])
    with pytest.raises(SeesFuture):
        compute(AT_FIRST_USE[function], [f])


def test_an_attached_array_of_the_future_is_refused():
    "By the feature's impossible skill: at its first use, or at once where the panel lies in the notebook."
    with_oracle = attach_fields(OWN, {"oracle": ahead(OWN).numpy()})
    f = register(of_the_attached_future)
    with pytest.raises(SeesFuture, match="implausibly high"):
        compute(with_oracle, [f])
    with pytest.raises(SeesFuture, match="implausibly high"):
        prove_widely(Feature(of_the_attached_future), [with_oracle])
    noisy = ahead(OWN) + 0.02 * torch.randn(OWN.present.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(SeesFuture, match="implausibly high"):
        compute(attach_fields(OWN, {"oracle": noisy.numpy()}), [Feature(of_the_attached_future)])


@pytest.mark.parametrize("function", NOT_FOUND, ids=lambda f: f.__name__)
def test_what_the_guide_says_is_not_found_is_not_found(function):
    "If one of these is refused one day, the list in the notebook has to change."
    f = register(function)
    compute(OWN, [f])
    assert f.proven and f.widest == len(OWN.tickers)


def only_in_january(b):
    return b.close * hand(torch.tensor(b.sessions.month == 1)[:, None].expand(b.present.shape).float(), b)


HONEST = {
    "a window from a dict": lambda b: b.close / b.close.mean({"fast": 5}["fast"]),
    "a condition": lambda b: (b.close > b.close.mean(20)) & ~(b.volume > b.volume.mean(5)),
    "a filter of a few weights": lambda b: sum(w * b.returns.lag(k + 1) for k, w in enumerate((0.5, 0.3))),
    "across tickers": lambda b: b.returns.xrank() * b.close.pct_change(5).xz(),
    "the market": lambda b: b.returns - b.market,
    "dates": lambda b: only_in_january(b),
    "a long window": lambda b: b.close / b.close.max(252),
    "tensors, looking back": lambda b: Series(
        torch.cat([torch.full_like(b.close.values[:1], math.nan), b.close.values[:-1]]),
        b.grid,
        2,
        0,
        {"close"},
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_feature_is_not_refused(name):
    HONEST[name].__doc__ = name
    assert register(HONEST[name]).proven


def test_every_function_of_the_package_would_pass_the_wider_proof(monkeypatch):
    "As if each were written in a notebook today; a dozen functions in each run, all with --all-steps."
    by_function = {f.func: f for f in as_features("all")}
    by_name = {f.name: f for f in by_function.values()}
    drawn = [by_name[name] for name in sample(sorted(by_name), 12)]
    assert all(f.lookback for f in drawn)
    monkeypatch.setattr("stockpredict.catalogue.feature.is_packaged", lambda func: False)
    refused = []
    for f in drawn:
        try:
            prove_widely(Feature(f.func, f.args, f.group, f.source, f.across, f.sets), [])
        except FeatureError as e:
            refused.append(str(e))
    assert len(drawn) >= 12 and refused == []


def test_calendar_features_need_no_exemption():
    "400 years later each has the values of today, and has some: the calendar moves with the market."
    panel = market(300, 2)
    packaged = [f for f in as_features("all") if f.group == "calendar"]
    for f in packaged:
        whole = f.func(panel, *f.args).values
        check_names(f.name, lambda p, f=f: f.func(p, *f.args).values, panel, whole)
        assert whole.isfinite().all(), f.name
    assert len(packaged) > 20


def test_a_feature_without_a_docstring_is_refused():
    def silent(b):
        return b.close / b.close.mean(5)

    with pytest.raises(FeatureError, match="no description"):
        feature(group="trend", into=Registry("feature"))(silent)


def test_the_proof_leaves_no_trace():
    "The clock and the files are open again, also after a refusal."
    with pytest.raises(SeesFuture):
        register(opens_and_hides_it)
    with open(LABELS) as f:
        assert f.read() and clock.time() > 1e9 and clock.time is __import__("time").time
    assert not any(t.name.startswith("proof") for t in threading.enumerate())


def test_an_edit_is_proven_anew():
    "A helper that is honest when the feature is registered, and edited afterwards."
    space = {"hand": hand, "ahead": ahead}
    exec("def helper(b): return b.close.mean(5)\ndef f(b):\n 'a leak in waiting'\n return helper(b)", space)
    f = register(space["f"])
    compute(OWN, [f])
    exec("def helper(b): return hand(ahead(b), b)", space)
    with pytest.raises(SeesFuture):
        compute(OWN, [f])


@pytest.mark.parametrize("function", [joined_by_ticker_and_date, good_days], ids=lambda f: f.__name__)
def test_a_table_from_outside_is_refused_with_the_way_that_is_open(function):
    "It has no value on the markets of the proof, and ended in a promotion."
    with pytest.raises(FeatureError, match="known_at"):
        register(function)

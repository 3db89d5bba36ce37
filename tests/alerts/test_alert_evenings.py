"""Evenings of alerts on a lake: live and replayed, at the same time, after a split, with a full quota."""

import threading
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from stockpredict.alerts.alert_records import AlertQuotaReached, new_rule
from stockpredict.alerts.alert_session import evaluate_alerts
from stockpredict.alerts.alert_store import AlertStore
from stockpredict.alerts.drafts import draft_alert, revise_alert, save_alert
from stockpredict.alerts.known_market import known_market
from stockpredict.alerts.ring_history import ring_history
from stockpredict.core.calendar import get_calendar
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake

CALENDAR = get_calendar("XNYS")
DAYS = CALENDAR.sessions("2026-06-01", "2026-08-31")
SPLIT = 45  # a split of two for one before this session


def bars_of(rows, ticker, closes, **columns):
    at = CALENDAR.closes(DAYS[rows])
    same = {name: closes[rows] for name in ("open", "high", "low", "close")}
    frame = pd.DataFrame({"ticker": ticker, "event_time": at, "known_at": at + pd.Timedelta("15min"), **same})
    return frame.assign(volume=1000.0, source="sample", **{k: v[rows] for k, v in columns.items()})


@pytest.fixture(scope="module")
def market():
    rng = np.random.default_rng(3)
    paths = 100 * np.exp(np.cumsum(rng.normal(0, 0.025, (len(DAYS), 2)), 0))
    traded, factor = paths.copy(), np.ones(len(DAYS))
    traded[:SPLIT, 0] *= 2
    factor[:SPLIT] = 0.5
    return {"AAA": (traded[:, 0], traded[:, 0] * factor), "BBB": (traded[:, 1], traded[:, 1])}


def settings_in(folder, **changes):
    return load_settings(None, {"storage.home": str(folder), "data.source": "sample", **changes})


def arrive(settings, market, rows):
    "Some sessions of bars, received after the last close of them."
    parts = [bars_of(rows, name, close, adj_close=adjusted) for name, (close, adjusted) in market.items()]
    with Lake(settings.storage) as lake:
        lake.append(pd.concat(parts), now=CALENDAR.close(DAYS[rows][-1]) + pd.Timedelta("20min"))


def rules_for(owner):
    "Rules that ring often, as if made on the tenth session."
    kinds = {
        "price": {"level": 200.0, "direction": "above", "band": 1.0},
        "move": {"percent": 3.0, "direction": "either", "sessions": 1},
    }
    options = {"cooldown": 2, "created_session": str(DAYS[9].date())}
    return [new_rule(owner, kind, ["AAA", "BBB"], params, **options) for kind, params in kinds.items()]


def test_evenings_ring_as_their_replay_and_repeat_nothing(tmp_path, market):
    settings = settings_in(tmp_path, **{"alerts.catch_up": 15})
    at = datetime(2026, 9, 1, tzinfo=UTC)
    store, rules = AlertStore(settings.storage), rules_for("user:anna")
    store.add(rules)
    arrive(settings, market, slice(0, 10))
    for end in (14, 15, 28, 42, 55, len(DAYS)):
        arrive(settings, market, slice(max(10, len_of(settings)), end))
        threads = [threading.Thread(target=evaluate_alerts, args=(settings, "", at)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert evaluate_alerts(settings).new == ()
    view = known_market(settings, ["AAA", "BBB"], forecasts=0)
    for rule in rules:
        first, live = rule.created_session, store.events(rule=rule.id)
        expected = {ring for ring in replay_of(rule, view) if ring[0] > first}
        assert {(e.session, e.symbol) for _, e in live} == expected and len(live) == len(expected)
        assert expected, "a rule that never rings proves nothing"


def len_of(settings):
    with Lake(settings.storage, read_only=True) as lake:
        return len(lake.sessions())


def replay_of(rule, view):
    "The rings of a rule from the session on which it was made."
    at = int(np.searchsorted(view.sessions, np.datetime64(rule.created_session)))
    return ring_history(rule, view, sessions=len(view) - at - 1).rings


def test_a_split_is_no_ring_and_a_level_follows_it(tmp_path, market):
    "150 of the day before the split means 75 after it; no rule on a fall rings because the unit changed."
    settings = settings_in(tmp_path)
    arrive(settings, market, slice(0, SPLIT))
    day, close = str(DAYS[SPLIT - 1].date()), market["AAA"][0][SPLIT - 1]
    after = market["AAA"][0][SPLIT : SPLIT + 5] * 2  # in the money of that day
    rise = int(np.argmax(np.diff(after))) + 1
    level = float(after[rise - 1] + after[rise]) / 2
    store, options = AlertStore(settings.storage), {"created_session": day, "cooldown": 0}
    halved, risen = (
        new_rule("user:anna", "price", "AAA", {"level": level, "direction": side, "band": 0.0}, **options)
        for level, side in ((close * 0.7, "below"), (level, "above"))
    )
    fall = new_rule(
        "user:anna", "move", "AAA", {"percent": 20.0, "direction": "down", "sessions": 1}, **options
    )
    store.add([halved, risen, fall])
    arrive(settings, market, slice(SPLIT - 1, SPLIT + 5))
    evaluate_alerts(settings)
    before = np.append(close, after[:-1])
    begins = np.flatnonzero((after >= level) & (before < level))
    assert [e.session for _, e in store.events(rule=risen.id)] == [
        str(DAYS[SPLIT + row].date()) for row in begins
    ]
    assert store.events(rule=halved.id) == [] and store.events(rule=fall.id) == [] and len(begins)
    message = store.events(rule=risen.id)[0][1].message
    assert f"above {level / 2:,.2f}" in message, "the level is told in the money of the day"


def test_the_quota_ends_a_loop_and_keeps_what_is_there(tmp_path):
    settings = settings_in(tmp_path)
    store, limits = AlertStore(settings.storage), settings.alerts
    many = [new_rule("user:loop", "price", "AAA", {"level": float(n + 1)}) for n in range(10_000)]
    with pytest.raises(AlertQuotaReached, match=f"rules_per_caller allows {limits.rules_per_caller:,}"):
        store.add(many, limits)
    assert store.rules() == []
    store.add(many[: limits.rules_per_caller], limits)
    with pytest.raises(AlertQuotaReached):
        store.add(many[limits.rules_per_caller :][:1], limits)
    assert len(store.add([new_rule("user:other", "price", "AAA", {"level": 5.0})], limits)) == 1


def test_a_paused_rule_is_silent_about_what_it_slept_through(tmp_path, market):
    settings = settings_in(tmp_path)
    arrive(settings, market, slice(0, 40))
    draft = draft_alert(settings, "user:anna", "move", ["AAA", "BBB"], {"percent": 0.2}, cooldown=0)
    rule = save_alert(settings, draft)
    revise_alert(settings, rule.id, "user:anna", active=False)
    arrive(settings, market, slice(40, 43))
    assert evaluate_alerts(settings).new == ()
    revise_alert(settings, rule.id, "user:anna", active=True)
    assert evaluate_alerts(settings).new == ()
    arrive(settings, market, slice(43, 44))
    assert {e.session for e in evaluate_alerts(settings).new} == {str(DAYS[43].date())}

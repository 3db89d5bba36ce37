"""No training label may meet a test: by arithmetic, against skfolio, and by scrambling real prices."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpredict.core.errors import EvaluateError, NotEnoughSessions, UnknownHorizon
from stockpredict.sources.simulate import sample_bars
from stockpredict.evaluate.labels import forward_returns, make_labels
from stockpredict.evaluate.index_splits import IndexFold, combinatorial_folds, fold_paths, leave_era_out
from stockpredict.evaluate.index_splits import leave_names_out, purge
from stockpredict.evaluate.splits import Fold, count_leaking, leaking_sessions, purged_tail, walk_forward
from stockpredict.algebra.panel import Panel

plans = st.fixed_dictionaries(
    dict(
        n_sessions=st.integers(1, 3000),
        horizon_max=st.integers(1, 30),
        entry_delay=st.integers(0, 4),
        folds=st.integers(1, 12),
        first_train=st.integers(1, 1000),
        embargo=st.integers(0, 30),
        min_test=st.integers(1, 40),
    )
)


def windows_meet(train, test, reach):
    "The definition, spelled out: does any session lie in both a training window and a test window?"
    seen = {s for t in train for s in range(t, t + reach + 1)}
    return any(s in seen for t in test for s in range(t, t + reach + 1))


@settings(max_examples=300, deadline=None)
@given(plans)
def test_no_training_label_meets_a_test(plan):
    try:
        folds = walk_forward(**plan)
    except NotEnoughSessions as e:
        assert plan["n_sessions"] < e.context["need"] and str(e.context["need"]) in str(e)
        return
    reach = plan["horizon_max"] + plan["entry_delay"]
    assert len(folds) == plan["folds"] and len(folds[0].train) == plan["first_train"]
    for f in folds:
        assert leaking_sessions(f) == 0 and f.train_start == 0 < f.train_stop
        last = f.train_stop - 1
        assert last + reach <= f.test_start - 1 - plan["embargo"]  # the rule
        assert last + 1 + reach > f.test_start - 1 - plan["embargo"]  # and not one session wasted
        assert (
            len(f.test) >= plan["min_test"]
            or len(f.test) >= (plan["n_sessions"] - folds[0].test_start) // plan["folds"]
        )
        assert not windows_meet(range(max(0, last - 40), last + 1), f.test[:40], reach)
    assert [f.test_start for f in folds[1:]] == [f.test_stop for f in folds[:-1]] and folds[
        -1
    ].test_stop == plan["n_sessions"]


@settings(max_examples=200, deadline=None)
@given(plans)
def test_the_number_that_is_asked_for_suffices(plan):
    try:
        walk_forward(**plan)
    except NotEnoughSessions as e:
        walk_forward(**plan | {"n_sessions": e.context["need"]})


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 500),
    st.integers(1, 1500),
    st.integers(1, 25),
    st.integers(0, 3),
    st.floats(0.01, 0.9),
    st.integers(0, 20),
)
def test_the_inner_cut_is_purged_too(start, length, horizon, delay, share, embargo):
    try:
        f = purged_tail(start, start + length, horizon, delay, share, embargo)
    except NotEnoughSessions as e:
        assert length < e.context["need"]
        purged_tail(start, start + e.context["need"], horizon, delay, share, embargo)
        return
    assert leaking_sessions(f) == 0 and (f.train_start, f.test_stop) == (start, start + length)
    assert f.gap == horizon + delay + embargo and len(f.test) >= 20 and len(f.train) >= 20


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=12), st.lists(st.integers(0, 60), max_size=12), st.integers(0, 8)
)
def test_leaks_are_counted_by_the_definition(train, test, reach):
    assert count_leaking(train, test, reach) == sum(windows_meet([t], test, reach) for t in train)


def test_mutants_without_a_purge_or_with_one_session_too_few_are_caught():
    f = walk_forward(1500, 5)[2]
    assert leaking_sessions(Fold(f.test_start, f.test_start, f.test_stop, f.reach)) == f.reach
    assert leaking_sessions(Fold(f.test_start - f.reach + 1, f.test_start, f.test_stop, f.reach)) == 1
    assert leaking_sessions(Fold(f.test_start - f.reach, f.test_start, f.test_stop, f.reach)) == 0


@pytest.mark.parametrize("horizon, embargo, folds", [(1, 0, 4), (5, 0, 5), (21, 3, 3)])
def test_skfolio_purges_the_same_rows(horizon, embargo, folds):
    "skfolio counts positions: its purge is our reach plus embargo."
    from skfolio.model_selection import WalkForward

    gap, size, train = horizon + 1 + embargo, 60, 200
    n = train + gap + folds * size
    theirs = list(
        WalkForward(train_size=train, test_size=size, purged_size=gap, expand_train=True).split(
            np.zeros((n, 2))
        )
    )
    ours = walk_forward(n, horizon, folds=folds, first_train=train, embargo=embargo)
    assert [(list(f.train), list(f.test)) for f in ours] == [(a.tolist(), b.tolist()) for a, b in theirs]


@pytest.mark.parametrize(
    "bad",
    [
        dict(horizon_max=0),
        dict(folds=0),
        dict(first_train=0),
        dict(min_test=0),
        dict(embargo=-1),
        dict(entry_delay=-1),
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(EvaluateError):
        walk_forward(**dict(n_sessions=2000, horizon_max=5) | bad)


@pytest.mark.parametrize("window", [1, 60, 200, 5000])
def test_a_rolling_window_keeps_the_newest_sessions(window):
    expanding, rolling = walk_forward(1500, 5), walk_forward(1500, 5, window=window)
    for a, b in zip(expanding, rolling, strict=True):
        assert (a.test, a.train_stop) == (b.test, b.train_stop) and leaking_sessions(b) == 0
        assert len(b.train) == min(window, len(a.train))
    with pytest.raises(EvaluateError):
        walk_forward(1500, 5, window=-3)


# --- any sets of sessions: every pair, by the definition (10,000 configurations: benchmarks/splits.py)


def leaking_pairs(train, test, ends, embargo):
    "Pairs of decisions whose windows meet, or that break the embargo; every pair looked at."
    t, s = np.meshgrid(train, test, indexing="ij")
    apart = np.minimum(ends[t], ends[s]) < np.maximum(t, s)
    late = (t > ends[s]) & (t <= ends[s] + embargo)
    return int((~apart | late).sum())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_pair_of_a_purge_is_clean_and_no_session_is_wasted(seed):
    rng = np.random.default_rng(seed)
    n, reach, embargo = int(rng.integers(2, 120)), int(rng.integers(1, 15)), int(rng.integers(0, 10))
    ends = np.arange(n) + rng.integers(1, reach + 1, n)
    test = np.flatnonzero(rng.random(n) < rng.uniform(0, 0.4))
    everything = np.setdiff1d(np.arange(n), test)
    train = purge(everything, test, reach, embargo, ends)
    assert leaking_pairs(train, test, ends, embargo) == 0
    for lost in np.setdiff1d(everything, train):
        assert leaking_pairs([lost], test, ends, embargo) > 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_pair_of_a_combinatorial_fold_is_clean(seed):
    rng = np.random.default_rng(seed)
    n, horizon, delay = int(rng.integers(30, 400)), int(rng.integers(1, 12)), int(rng.integers(0, 3))
    blocks, embargo = int(rng.integers(2, 8)), int(rng.integers(0, 8))
    tested = int(rng.integers(1, blocks))
    try:
        folds = combinatorial_folds(n, horizon, delay, blocks, tested, embargo)
    except NotEnoughSessions as e:
        assert n < e.context["need"]
        combinatorial_folds(e.context["need"], horizon, delay, blocks, tested, embargo)
        return
    ends = np.arange(n) + horizon + delay
    times = np.zeros(n, int)
    for fold in folds:
        assert leaking_pairs(fold.train, fold.test, ends, embargo) == 0
        times[fold.test] += 1
    paths = fold_paths(blocks, tested)
    assert (times == len(paths)).all() and paths.shape[1] == blocks
    assert sorted(np.unique(paths)) == list(range(len(folds)))


SKFOLIO = [(600, 5, 6, 2, 0), (611, 1, 5, 3, 7), (900, 20, 6, 2, 4)]


@pytest.mark.parametrize("n, horizon, blocks, tested, embargo", SKFOLIO)
def test_skfolio_makes_the_same_combinatorial_folds(n, horizon, blocks, tested, embargo):
    "On one ticker; its purge counts positions, so its purged size is our reach."
    from skfolio.model_selection import CombinatorialPurgedCV

    theirs = CombinatorialPurgedCV(blocks, tested, purged_size=horizon + 1, embargo_size=embargo)
    ours = combinatorial_folds(n, horizon, 1, blocks, tested, embargo)
    reference = [(a.tolist(), np.sort(np.concatenate(b)).tolist()) for a, b in theirs.split(np.zeros((n, 1)))]
    assert [f.train.tolist() for f in ours] == [a for a, _ in reference]
    assert fold_paths(blocks, tested).shape == (theirs.n_test_paths, blocks)


LEAKING = [([], [5]), ([1], []), (range(5, 30), [3]), (range(10), range(8, 12))]


@pytest.mark.parametrize("train, test", LEAKING)
def test_an_index_fold_made_by_hand_cannot_leak(train, test):
    with pytest.raises(EvaluateError, match="not possible"):
        IndexFold(train, test, reach=3)


def test_eras_and_names_are_each_left_out_once():
    eras = leave_era_out(1000, 5, eras=4)
    assert sorted(np.concatenate([f.test for f in eras])) == list(range(1000))
    names = [f"T{i}" for i in range(23)]
    groups = leave_names_out(names, range(100), range(110, 150), 6, groups=4, seed=3)
    assert sorted(n for f in groups for n in f.test_names) == sorted(names)
    assert all(not set(f.train_names) & set(f.test_names) for f in groups)
    with pytest.raises(EvaluateError, match="cannot be dealt"):
        leave_names_out(names[:5], range(100), range(110, 150), 6)


# --- labels
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def panel():
    return Panel.from_bars(sample_bars())


def test_a_label_is_the_return_between_its_two_closes(panel):
    close, labels = panel.close.values.double(), make_labels(panel, [1, 5, 21], entry_delay=2)
    for k, h in enumerate(labels.horizons):
        for t in (0, 50, len(panel) - 3 - h):
            end = labels.end_index(t, h)
            assert end == t + 2 + h
            np.testing.assert_allclose(labels.y[t, :, k], close[end] / close[t + 2] - 1, rtol=1e-4, atol=1e-7)
        assert labels.y[len(panel) - 2 - h :, :, k].isnan().all()
    with pytest.raises(UnknownHorizon):
        labels.end_index(0, 2)


@pytest.mark.parametrize("horizon, delay", [(1, 0), (1, 1), (5, 1), (5, 3)])
def test_only_the_two_closes_matter(panel, horizon, delay):
    "Scramble every other price: the label stays. Touch either end: it moves."
    t, close = 60, panel.close.values
    base = forward_returns(close, horizon, delay)[t]
    other = torch.rand_like(close) + 1
    other[[t + delay, t + delay + horizon]] = close[[t + delay, t + delay + horizon]]
    assert torch.equal(forward_returns(other, horizon, delay)[t].nan_to_num(-9), base.nan_to_num(-9))
    for end in (t + delay, t + delay + horizon):
        moved = close.clone()
        moved[end] *= 1.1
        assert not torch.isclose(forward_returns(moved, horizon, delay)[t], base).any()


def test_a_missing_bar_is_never_a_zero_return(panel):
    close = panel.close.values.clone()
    close[70, 0] = float("nan")
    y = forward_returns(close, 5)
    assert y[64, 0].isnan() and y[69, 0].isnan() and y[66, 0].isfinite()
    gone = panel.close.values.clone()
    gone[100:, 1] = float("nan")  # delisted
    assert forward_returns(gone, 5)[94:, 1].isnan().all()
    assert not (forward_returns(gone, 5)[:, 1] == 0).any()
    zero = panel.close.values.clone()
    zero[80, 2] = 0.0  # no price at all
    assert forward_returns(zero, 1)[79, 2].isnan()


def test_demeaned_labels_sum_to_nothing_and_keep_their_order(panel):
    plain, relative = make_labels(panel, [5]), make_labels(panel, [5], demean=True)
    known = plain.y[..., 0].isfinite().sum(1) > 1
    assert relative.y[known].nanmean(1).abs().max() < 1e-6
    assert torch.equal(plain.y.isnan(), relative.y.isnan())
    gap = (plain.y - relative.y)[known]
    assert (gap - gap.nanmean(1, keepdim=True)).nan_to_num().abs().max() < 1e-6


def test_the_table_dates_every_outcome(panel):
    labels = make_labels(panel, [1, 5])
    rows = labels.to_frame()
    assert (
        len(rows) == int(labels.y.isfinite().sum())
        and rows.outcome.notna().all()
        and (rows.known > rows.session).all()
    )
    at = {s: i for i, s in enumerate(panel.sessions)}
    assert (rows.known.map(at) - rows.session.map(at) == rows.horizon + 1).all()


def test_what_is_trained_on_cannot_have_seen_the_test(panel):
    """The whole promise at once: scramble every bar from the first test session on, and no training label
    moves."""
    labels = make_labels(panel, [1, 5])
    for fold in walk_forward(len(panel), 5, folds=3, first_train=150, embargo=0):
        close = panel.close.values.clone()
        close[fold.test_start :] = torch.rand_like(close[fold.test_start :])
        for k, h in enumerate((1, 5)):
            again = forward_returns(close, h)
            assert torch.equal(
                again[: fold.train_stop].nan_to_num(-9), labels.y[: fold.train_stop, :, k].nan_to_num(-9)
            )
        leaky = forward_returns(close, 5)[fold.train_stop].nan_to_num(-9)
        assert not torch.equal(leaky, labels[5][fold.train_stop].nan_to_num(-9))  # one more row would have


def test_labels_of_a_shorter_history_are_the_same(panel):
    "Cutting the future off removes labels and changes none."
    full, cut = make_labels(panel, [1, 5]), make_labels(panel.until(panel.sessions[199]), [1, 5])
    for k, h in enumerate((1, 5)):
        assert torch.equal(full.y[: 199 - h, :, k].nan_to_num(-9), cut.y[: 199 - h, :, k].nan_to_num(-9))
        assert cut.y[199 - h :, :, k].isnan().all()


def test_the_repr_tells_the_share_that_is_known(panel):
    assert (
        "entry delay 1" in repr(make_labels(panel, [1]))
        and pd.Timestamp(make_labels(panel, [1]).sessions[0]) == panel.sessions[0]
    )

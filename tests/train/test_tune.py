"""The search for parameters: one objective, pruning that prunes, seeds, journals, workers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from stockpredict.core.errors import ModelOutputInvalid
from stockpredict.core.settings import load_settings
from stockpredict.models.contract import models
from stockpredict.models.dataset import sample_dataset
from stockpredict.train import tune as tuning
from stockpredict.train.skill_table import independent_trials
from stockpredict.train.tune import falls_behind, net_returns, score_trial, trial_ledger, tune, yearly_sharpe


@pytest.fixture(scope="module")
def data():
    return sample_dataset(tickers=12, sessions=300, names=("ret_1", "mom_5", "vol_20"))


def fast_slow(t=400, n=20):
    "Returns that a slow signal predicts a little, and a fast one a little better before costs."
    random = np.random.default_rng(0)
    slow = np.repeat(random.normal(size=(t // 20, n)), 20, 0)
    fast = random.normal(size=(t, n))
    return slow, fast, 0.0011 * slow + 0.0013 * fast + 0.02 * random.normal(size=(t, n))


def test_costs_decide_between_a_fast_and_a_slow_signal():
    slow, fast, y = fast_slow()
    free = [yearly_sharpe(net_returns(s, y, 1, 0.0)) for s in (slow, fast)]
    paid = [yearly_sharpe(net_returns(s, y, 1, 10.0)) for s in (slow, fast)]
    assert free[0] < free[1] and paid[0] > paid[1]


def test_costs_are_those_of_the_backtest():
    "Turnover of a book that turns round every session: two units a session."
    score = np.tile([[1.0, -1.0], [-1.0, 1.0]], (50, 1))
    net = net_returns(score, np.zeros((100, 2)), 1, 5.0)
    assert net[0] == pytest.approx(-5e-4) and net[1:] == pytest.approx(-10e-4)


def test_the_objective_reads_the_costs_of_the_settings(data):
    dear = load_settings(overrides={"costs.bps": "50"}, environ={})
    assert score_trial(data, "ridge", dear)[-1] < score_trial(data, "ridge")[-1]


def test_a_bad_trial_is_stopped_after_its_first_fold(data, monkeypatch):
    "Eight trials of which some are bad: fewer fits than folds x trials, and the best one is complete."
    fits, ridge = [], models["ridge"]
    fit = ridge.fit
    monkeypatch.setattr(ridge, "fit", lambda self, *a, **k: fits.append(self.alpha) or fit(self, *a, **k))
    best, ledger = tune(data, "ridge", trials=8, seed=3)
    stopped = (ledger.state == "pruned").sum()
    assert stopped >= 2 and len(fits) < 3 * 8 and len(ledger) == 8
    assert ledger.value.notna().sum() == (ledger.state == "complete").sum()
    assert best["alpha"] in fits


def test_of_four_trials_the_third_can_be_stopped(data, monkeypatch):
    values = iter([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.5, 9.0, 9.0], [2.0, 2.0, 2.0]])

    def script(dataset, name, settings, params, stop, kept):
        run = next(values)
        return run[:1] if stop(0, run[0]) else run

    monkeypatch.setattr(tuning, "score_trial", script)
    _, ledger = tune(data, "ridge", trials=4)
    assert ledger.state.tolist() == ["complete", "complete", "pruned", "complete"]
    assert not falls_behind([[1.0]], 0, -5.0), "one trial is no median"


def test_a_failed_trial_counts_and_does_not_win(data, monkeypatch):
    run, calls = tuning.score_trial, []

    def fails_once(*a):
        calls.append(a)
        if len(calls) == 2:
            raise ModelOutputInvalid("The network could not be trained.", "Lower its learning rate.")
        return run(*a)

    monkeypatch.setattr(tuning, "score_trial", fails_once)
    best, ledger = tune(data, "ridge", trials=3)
    assert ledger.state.tolist()[1] == "fail" and len(ledger) == 3 and best


def test_an_interrupted_search_continues_as_if_nothing_had_happened(data, tmp_path, monkeypatch):
    "Killed in the middle of its third trial."
    straight = tune(data, "ridge", trials=5)
    run, calls = tuning.score_trial, []

    def dies(*a):
        calls.append(a)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*a)

    monkeypatch.setattr(tuning, "score_trial", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(data, "ridge", trials=5, journal=tmp_path / "j")
    monkeypatch.undo()
    again = tune(data, "ridge", trials=5, journal=tmp_path / "j")
    assert again[0] == straight[0] and again[1].equals(straight[1])
    other = tune(data.window(0, 290), "ridge", trials=2, journal=tmp_path / "j")
    assert len(other[1]) == 2, "other data are another search in the same file"


@pytest.mark.slow
def test_two_workers_find_what_one_finds(data, monkeypatch):
    together = tune(data, "ridge", trials=2, workers=2)
    run = tuning._run_all
    monkeypatch.setattr(tuning, "_run_all", lambda jobs, workers: run(jobs, 1))
    assert tune(data, "ridge", trials=2, workers=2)[1].equals(together[1])


def test_trials_that_move_together_count_once_and_deflate_less(data):
    "Six penalties of one ridge, stopped ones included, are hardly six ideas; a copy under a name is none."
    _, ledger = tune(data, "ridge", trials=6, seed=3)
    known = [len(json.loads(text)) for text in ledger.returns]
    assert set(known) == {50} and (ledger.state == "pruned").any()
    random = np.random.default_rng(1)
    strangers = {name: random.normal(size=300) for name in "abcd"}
    candidates = dict(ridge=SimpleNamespace(ledger=ledger)) | {
        name: SimpleNamespace(ledger=trial_ledger(name)) for name in (*strangers, "copy")
    }
    study = SimpleNamespace(candidates=candidates, trials=6 + 5, lineage={})
    nets = strangers | dict(copy=strangers["a"])
    assert 4 + 1 <= independent_trials(study, nets) <= 4 + 3
    old = ledger.assign(returns="")
    candidates["ridge"] = SimpleNamespace(ledger=old)
    assert independent_trials(study, nets) == 4 + 6, "without returns each trial counts"

"""Labels that overlap count less in fitting, and nothing later than the window decides how much."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stockpredict.algebra.panel import Panel
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import Dataset
from stockpredict.sources.simulate import simulate
from zoo import SMALL

TREES = ("lightgbm", "xgboost", "forest", "double_ensemble")
WEIGHED = ("ridge", "elastic_net", *TREES, "mlp", "cross_attention", "token_decoder")


@pytest.fixture(scope="module")
def barrier():
    "Triple-barrier labels of up to ten sessions."
    bars = simulate("planted", tickers=10, sessions=300, rank_ic=0.1, seed=3).bars
    panel = Panel.from_bars(bars.assign(close=bars.adj_close))
    return Dataset.from_panel(panel, ["ret_1", "mom_5", "vol_20"], (1, 10), labels="barrier")


def test_a_label_that_overlaps_weighs_what_it_shares(barrier):
    "By hand: in each session of a label, one over the number of labels that span it."
    data, j = barrier.window(0, 120), 1
    weight = data.label_weights()[..., j]
    known = data.y[..., j].isfinite() & data.usable()
    n = 4
    rows = known[:, n].nonzero().flatten().tolist()
    end = {t: int(data.ends[t, n, j]) for t in rows}
    spans = {t: range(t + data.entry_delay + 1, end[t] + 1) for t in rows}
    crowd = np.zeros(121)
    for t in rows:
        crowd[list(spans[t])] += 1
    by_hand = np.array([np.mean(1 / crowd[list(spans[t])]) for t in rows])
    ours = weight[rows, n].numpy()
    assert np.abs(ours / ours[0] - by_hand / by_hand[0]).max() < 1e-5
    assert weight[known].mean().item() == pytest.approx(1, abs=1e-5) and (weight[~known] == 0).all()
    company = np.array([crowd[list(spans[t])].mean() for t in rows])
    assert ours[company.argmin()] > 1.3 * ours[company.argmax()], "the least crowded label counts most"


def test_the_future_changes_no_weight(barrier):
    other = replace(barrier, y=barrier.y.clone(), ends=barrier.ends.clone())
    for j, h in enumerate(barrier.horizons):
        first = 200 - barrier.entry_delay - h  # the first decision that is not complete by 200
        other.y[first:, :, j], other.ends[first:, :, j] = 0.5, 299
    a, b = (d.window(0, 200).label_weights() for d in (barrier, other))
    assert torch.equal(a, b)
    assert torch.equal(barrier.window(0, 300).window(0, 200).label_weights(), a)
    assert int(barrier.window(0, 200).ends.max()) <= 200, "no later end is stored in a window"


def test_labels_of_one_length_have_no_weights(past):
    assert past.ends is None and past.label_weights() is None


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_reach_the_fit(name, barrier):
    "Weights that are all alike change nothing, and others change the model."

    class Weighed(Dataset):
        weight = None

        def window(self, start, stop):
            part = Weighed(self.inputs, self.y, self.horizons, start, stop, self.entry_delay)
            part.weight = self.weight
            return part

        def label_weights(self):
            return None if self.weight is None else self.weight[: self.stop]

    def fitted(weight):
        data = Weighed(barrier.inputs, barrier.y, barrier.horizons)
        data.weight = weight
        m = make_model(name, **{**SMALL.get(name, {}), "seed": 1})
        return m.fit(data).score(barrier.inputs, 280, 290).nan_to_num(0)

    plain, alike = fitted(None), fitted(torch.ones_like(barrier.y))
    if name != "forest":  # its trees draw their rows with the weights as probabilities: another draw
        assert torch.allclose(plain, alike, atol=1e-5), "weights that are all one"
    late = torch.ones_like(barrier.y)
    late[:100] = 1e-3
    assert not torch.allclose(alike, fitted(late), atol=1e-4), "old rows count less"

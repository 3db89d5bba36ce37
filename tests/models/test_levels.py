"""Quantiles are asked for by probability; what was stored with five levels stays readable and is served."""

import json

import pandas as pd
import pytest
import torch

from stockpredict.core.errors import ModelOutputInvalid, UnknownLevel
from stockpredict.models.artifact import ensure_keys, load_artifact, save_artifact
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import sample_dataset
from stockpredict.models.forecast import FIVE_LEVELS, LEVELS, Forecast, levels_of


def normal(levels, sessions=4, horizons=(1, 5)) -> Forecast:
    "Two tickers with normal returns of 1 and 2 % a session."
    sigma = torch.tensor([0.01, 0.02])[None, :, None] * torch.tensor(horizons).sqrt()
    sigma = sigma.expand(sessions, -1, -1)
    q = sigma[..., None] * torch.special.ndtri(torch.tensor(levels))
    days = pd.bdate_range("2021-03-01", periods=sessions)
    return Forecast(levels, q, 0.5 + 0 * sigma, sigma, days, ["A", "B"], horizons, "normal")


@pytest.mark.parametrize("share, z", [(0.5, 0.6745), (0.8, 1.2816), (0.9, 1.6449), (0.95, 1.96)])
def test_intervals_of_every_published_share_exist(share, z):
    low, high = normal(LEVELS).interval(share, 5)
    assert torch.allclose(high[:, 1], torch.tensor(0.02 * 5**0.5 * z), rtol=1e-4)
    assert torch.allclose(low, -high)
    assert torch.equal(normal(LEVELS).interval(share)[1][..., 1], high)


def test_a_level_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UnknownLevel, match=r"Ask for one of 0\.05, 0\.25, 0\.5, 0\.75, 0\.95"):
        normal(FIVE_LEVELS).interval(0.8)
    with pytest.raises(ModelOutputInvalid, match="7 quantiles"):
        levels_of(7)


def test_a_stored_forecast_of_five_levels_is_read(tmp_path):
    f = normal(FIVE_LEVELS)
    g = Forecast.load(f.save(tmp_path / "old.safetensors"))
    assert g.levels == FIVE_LEVELS and torch.equal(g.quantile(0.95, 1), f.quantile(0.95, 1))
    assert list(g.to_frame())[3:8] == ["q05", "q25", "q50", "q75", "q95"]
    assert torch.equal(g.interval(0.9, 1)[0], normal(LEVELS).interval(0.9, 1)[0])


def test_the_columns_of_the_long_table_are_distinct():
    names = [c for c in normal(LEVELS).to_frame() if c.startswith("q")]
    assert len(set(names)) == len(LEVELS) and names[0] == "q025" and names[2] == "q10"


def test_a_network_saved_with_five_quantiles_is_loaded_and_forecasts_them(tmp_path, monkeypatch):
    from stockpredict.models import net_model

    data = sample_dataset(tickers=8, sessions=260, names=("ret_1",))
    with monkeypatch.context() as patch:
        patch.setattr(net_model, "LEVELS", FIVE_LEVELS)
        old = make_model("lstm", epochs=1, hidden=4, sequence=5, rows=500).fit(data.window(0, 200))
        before = old.predict(data.inputs, 200)
    assert before.levels == FIVE_LEVELS and len(old.weights["net.heads.linear.bias"]) == 2 * (5 + 2)
    keys = ensure_keys(tmp_path / "keys")
    folder = save_artifact(old, data.inputs.spec, tmp_path / "old", {}, keys.private)
    after = load_artifact(folder, keys.public).model.predict(data.inputs, 200).validate()
    assert after.levels == FIVE_LEVELS
    rows = after.available
    assert torch.equal(after.quantiles[rows], before.quantiles[rows])


def test_residuals_of_an_earlier_linear_model_give_all_levels():
    "Its 41 residual quantiles were stored, so an old ridge forecasts nine levels."
    data = sample_dataset(tickers=8, sessions=260)
    model = make_model("ridge").fit(data.window(0, 200))
    header, weights, texts = model.state()
    old = type(model).from_state(json.loads(json.dumps(header)), weights, texts)
    assert old.predict(data.inputs, 200).validate().levels == LEVELS

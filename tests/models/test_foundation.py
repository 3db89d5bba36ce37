"""The cut-off guard of pretrained forecasters, and a tiny Chronos where the package is installed."""

import pandas as pd
import pytest
import torch
from stockpredict.core.errors import ModelError, NotEnoughSessions
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import sample_dataset
from stockpredict.models.foundation import Foundation, refuse_seen


class Momentum20(Foundation):
    "Continues the mean move of the last twenty sessions."

    name = "momentum20"

    def forecast_paths(self, series, steps):
        return series[:, -1:] + (series[:, -1:] - series[:, -21:-20]) / 20 * torch.arange(1, steps + 1)


@pytest.fixture(scope="module")
def market():
    return sample_dataset(tickers=8, sessions=360)


def day(market, t):
    return f"{market.inputs.sessions[t]:%Y-%m-%d}"


@pytest.mark.parametrize("cut_off", [None, ""])
def test_without_a_cut_off_nothing_is_eligible(market, cut_off):
    for m in (Momentum20(cut_off=cut_off, context=32), make_model("chronos", cut_off=cut_off)):
        with pytest.raises(ModelError, match="no cut-off date"):
            m.fit(market.window(0, 300))


def test_only_sessions_after_the_cut_off_are_forecast(market):
    m = Momentum20(cut_off=day(market, 99), context=32).fit(market.window(0, 250))
    with pytest.raises(ModelError, match=f"1 sessions up to {day(market, 99)}"):
        m.predict(market.inputs, 99, 120)
    assert m.predict(market.inputs, 250).validate().available.any()
    with pytest.raises(ModelError, match="may be in the weights"):
        m.predict(market.inputs)


def test_calibration_starts_after_the_cut_off(market):
    "Labels before the cut-off change nothing."
    m = Momentum20(cut_off=day(market, 99), context=32).fit(market.window(0, 250))
    market.y[:95] *= 7
    again = Momentum20(cut_off=day(market, 99), context=32).fit(market.window(0, 250))
    assert all(torch.equal(m.weights[k], again.weights[k]) for k in m.weights)
    with pytest.raises(NotEnoughSessions, match="60 are needed"):
        Momentum20(cut_off=day(market, 200), context=32).fit(market.window(0, 250))


def test_the_day_of_the_cut_off_is_seen_in_every_time_zone():
    days = pd.DatetimeIndex(["2020-01-02"]).tz_localize("America/New_York")
    with pytest.raises(ModelError, match="1 sessions"):
        refuse_seen("x", "2020-01-02", days)
    refuse_seen("x", "2020-01-01", days)
    with pytest.raises(ModelError, match="not a date"):
        refuse_seen("x", "soon", days)


def test_no_forecast_reads_later_prices(market):
    m = Momentum20(cut_off=day(market, 99), context=32).fit(market.window(0, 250))
    whole = m.score(market.inputs, 300, 330)
    assert torch.equal(m.score(market.inputs.until(311), 300, 311), whole[:11])


def test_a_tiny_chronos_goes_through_fit_predict_and_the_guard(market, tmp_path):
    chronos = pytest.importorskip("chronos", reason="pip install stockpredict[foundation]")
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    assert chronos.BaseChronosPipeline
    bolt = dict(context_length=64, prediction_length=16, input_patch_size=8, input_patch_stride=8)
    bolt |= dict(quantiles=[0.1 * i for i in range(1, 10)], use_reg_token=True)
    config = T5Config(
        vocab_size=2,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        chronos_config=bolt,
        architectures=["ChronosBoltModelForForecasting"],
        chronos_pipeline_class="ChronosBoltPipeline",
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    ChronosBoltModelForForecasting(config).save_pretrained(tmp_path / "tiny")
    params = dict(folder=str(tmp_path / "tiny"), cut_off=day(market, 99), context=64)
    m = make_model("chronos", **params).fit(market.window(0, 200))
    f = m.predict(market.inputs, 200, 210).validate()
    assert f.available.any() and len(m.params["weights_hash"]) == 64
    with pytest.raises(ModelError, match="may be in the weights"):
        m.predict(market.inputs, 90, 110)
    weights = tmp_path / "tiny" / "model.safetensors"
    other = type(m).from_state(*m.state())
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelError, match="not those the model was calibrated with"):
        other.predict(market.inputs, 200, 210)

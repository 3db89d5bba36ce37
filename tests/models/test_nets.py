"""Networks: earlier states, interrupted training, warm start, processes that train together."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from stockpredict.algebra.panel import Panel
from stockpredict.catalogue.point_in_time import attach_fields
from stockpredict.core.errors import ArtifactRejected, FeatureError
from stockpredict.models import nets
from stockpredict.models.contract import make_model, models
from stockpredict.models.dataset import Dataset, sample_dataset
from stockpredict.models.nets import Batches, net_labels, train_net, with_presence
from stockpredict.sources.simulate import simulate
from zoo import new, same_state


@pytest.fixture(scope="module")
def small():
    return sample_dataset(tickers=8, sessions=300, names=("ret_1", "mom_5", "vol_20"))


def test_a_network_saved_with_five_quantiles_predicts_what_it_predicted():
    "The state and the forecast were stored by version 055eefe, before there were heads."
    old = json.loads((Path(__file__).parent / "old_lstm.json").read_text())
    m = models["lstm"].from_state(old["header"], load(base64.b64decode(old["weights"])))
    data = sample_dataset(tickers=6, sessions=200, names=("ret_1", "mom_5"))
    f = m.predict(data.inputs, 198).validate()
    assert list(f.levels) == old["levels"]
    for part in ("quantiles", "p_up", "volatility"):
        then = torch.tensor(old[part])
        assert (getattr(f, part)[-1, :3, 0] - then).abs().max() < 1e-6 * then.abs().max(), part


def test_an_interrupted_fit_ends_with_the_bits_of_an_uninterrupted_one(small, tmp_path):
    class Power(Exception):
        pass

    def fail(epoch, loss):
        if epoch == 2:
            raise Power

    past, params = small.window(0, 260), dict(epochs=4, hidden=8, seed=2, dropout=0.2)
    straight = make_model("mlp", **params).fit(past)
    broken = make_model("mlp", **params)
    broken.checkpoint = tmp_path / "mlp.checkpoint"
    with pytest.raises(Power):
        broken.fit(past, report=fail)
    again = make_model("mlp", **params)
    again.checkpoint, epochs = broken.checkpoint, []
    again.fit(past, report=lambda epoch, loss: epochs.append(epoch))
    assert epochs and epochs[0] == 2, "the first two epochs were not trained again"
    same_state(straight, again)
    other = make_model("mlp", **(params | dict(seed=3)))
    other.checkpoint = broken.checkpoint
    with pytest.raises(ArtifactRejected, match="belongs to another training"):
        other.fit(past)
    broken.checkpoint.write_bytes(b"\x80\x04." + broken.checkpoint.read_bytes()[:99])
    with pytest.raises(ArtifactRejected, match="damaged"):
        again.fit(past)


def test_a_finished_training_is_not_repeated(small, tmp_path):
    past, seen = small.window(0, 260), []
    for _ in range(2):
        m = new("mlp", seed=2)
        m.checkpoint = tmp_path / "done"
        seen.append([])
        m.fit(past, report=lambda epoch, loss: seen[-1].append(loss))
    assert len(seen[0]) == 2 and seen[1] == []


def test_an_update_starts_where_the_fit_ended(small):
    m = new("gru", seed=1).fit(small.window(0, 250))
    before = {k: v.clone() for k, v in m.weights.items()}
    m.rate = 0.0
    m.update(small.window(0, 260))
    for name in before:
        if name.startswith("net."):
            assert torch.equal(before[name], m.weights[name]), "nothing is learned at a rate of zero"
    assert not torch.equal(before["stretch"], m.weights["stretch"]), "the calibration is that of the new days"


def test_windows_are_cut_from_the_panel_and_never_stored(small):
    "The batches hold the panel once, and a batch is as large as its rows."
    x = with_presence(small.inputs)
    batches = Batches(x, net_labels(small), small.rows(60), 60, size=32)
    assert batches.x.data_ptr() == x.data_ptr()
    stored = sum(v.nbytes for v in vars(batches).values() if isinstance(v, torch.Tensor))
    assert stored < 2.2 * x.nbytes + batches.y.nbytes
    window, _ = next(iter(batches))
    assert window.shape == (32, 60, 4) and window.untyped_storage().nbytes() == window.nbytes


def test_two_processes_train_one_network(small):
    "Gloo, each process on its share of the rows: the loss falls, and the weights come back to this one."
    torch.manual_seed(0)
    m = new("mlp")
    m.names, m.horizons = list(small.inputs.names), small.horizons
    net, x = m.new_net(), with_presence(small.inputs)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first, second = small.window(0, 260).split()
    parts = [Batches(x, net_labels(p), p.rows(), 1, fixed=p is second) for p in (first, second)]
    untrained = nets.finite_loss(net, parts[1])
    loss = train_net(net, parts, 2, 0.01, processes=2)
    assert loss < untrained
    assert not torch.equal(net.state_dict()["heads.linear.bias"], before["heads.linear.bias"])


def test_the_shares_of_two_processes_are_the_rows_of_one(small, monkeypatch):
    x, y = with_presence(small.inputs), net_labels(small)
    whole = Batches(x, y, small.rows(), 1, most=100, seed=5).order(1000).tolist()
    shares = []
    for rank in range(2):
        monkeypatch.setattr(nets, "world", lambda rank=rank: (rank, 2))
        batches = Batches(x, y, small.rows(), 1, size=16, most=100, seed=5)
        shares.append(batches.order(1000).tolist())
        assert len(batches) == len(list(batches)) == 4
    assert sorted(shares[0] + shares[1]) == sorted(whole) and not set(shares[0]) & set(shares[1])


# --- Sectors


@pytest.fixture(scope="module")
def sectors():
    "Eight stocks in two sectors; SIM02 changes from the first to the second at session 270."
    bars = simulate("null", tickers=8, sessions=300, seed=4).bars
    panel = Panel.from_bars(bars.assign(close=bars.adj_close))
    code = np.tile([11.0] * 4 + [22.0] * 4, (300, 1))
    code[270:, 2], code[:, 7] = 22.0, np.nan  # the sector of the last is not known
    return Dataset.from_panel(attach_fields(panel, dict(sector=code)), ["ret_1", "mom_5", "sector_mom_5"])


def moved_by(model, data, t, stock):
    "Stocks whose score at a session moves when the features of one stock do."
    x = data.inputs.x.clone()
    x[t - 3 : t + 1, stock] += 0.3
    a, b = (model.score(i, t, t + 1)[0, :, 0] for i in (data.inputs, replace(data.inputs, x=x)))
    return ((a - b).abs() > 1e-7).nonzero().flatten().tolist()


def test_attention_stays_within_the_sector_as_it_was_known(sectors):
    m = new("cross_attention", seed=1).fit(sectors.window(0, 250))
    assert m.notes["edges"] == "sectors"
    assert moved_by(m, sectors, 260, 0) == [0, 1, 2, 3] and moved_by(m, sectors, 260, 5) == [4, 5, 6]
    assert moved_by(m, sectors, 280, 0) == [0, 1, 3] and moved_by(m, sectors, 280, 5) == [2, 4, 5, 6]
    assert moved_by(m, sectors, 280, 7) == [7], "a stock whose sector is not known sees itself"
    again = type(m).from_state(*m.state())
    assert moved_by(again, sectors, 280, 0) == [0, 1, 3]
    latest = sectors.inputs.last(m.sequence)
    assert torch.allclose(m.score(latest, 3, 4), m.score(sectors.inputs, 299, 300), atol=1e-6, equal_nan=True)
    with pytest.raises(FeatureError, match="learned within sectors"):
        m.predict(replace(sectors.inputs, sectors=None), 280)


def test_without_sectors_or_on_request_all_see_all(sectors):
    m = new("cross_attention", seed=1, within="all").fit(sectors.window(0, 250))
    assert m.notes["edges"] == "all" and moved_by(m, sectors, 260, 0) == list(range(8))
    plain = Dataset.from_panel(sectors.panel, ["ret_1", "mom_5"])
    assert plain.inputs.sectors is None, "no feature of this model needs the sectors"
    assert sectors.window(0, 250).inputs.sectors.untyped_storage().nbytes() == 250 * 8 * 4


def test_training_on_cuda_is_mixed_and_compiled_except_for_ready_kernels():
    "What needs no device: the options, and which networks are compiled."
    options = nets.trainer_options("cuda", 1)
    assert (options["accelerator"], options["precision"]) == ("gpu", "bf16-mixed")
    assert nets.trainer_options("cpu", 1)["precision"] == "32-true"
    plain, recurrent = torch.nn.Linear(2, 1), torch.nn.LSTM(2, 1)
    assert nets.compile_net(plain, "cpu") is plain and nets.compile_net(recurrent, "cuda") is recurrent
    assert type(nets.compile_net(plain, "cuda")).__name__ == "OptimizedModule"  # compiled at its first call


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="There is no CUDA device here; nets train on one where there is."
)
@pytest.mark.parametrize("name", ["mlp", "lstm", "transformer"])
def test_a_network_trained_on_cuda_forecasts_the_same_on_a_cpu(small, name):
    data = small.window(0, 250)
    data.inputs, data.y = data.inputs.to("cuda"), data.y.to("cuda")
    m = new(name).to("cuda").fit(data)
    there = m.predict(small.inputs.to("cuda"), 260).validate()
    here = m.to("cpu").predict(small.inputs, 260).validate()
    assert torch.isfinite(here.score).any()
    gap = (there.score.cpu() - here.score).abs().nan_to_num(0).max()
    assert gap < 0.02 * here.score.nan_to_num(0).abs().max()

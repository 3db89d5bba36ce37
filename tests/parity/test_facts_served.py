"""Training and serving compute the same values from facts; missing facts are never replaced by an average."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from stockpredict.core.calendar import get_calendar
from stockpredict.core.errors import FactsMissing
from stockpredict.core.settings import load_settings
from stockpredict.lake.lake import Lake
from stockpredict.catalogue.feature import SETS, FEATURES
from stockpredict.catalogue.point_in_time import fact_fields, FACT_JOINS, missing_facts, with_facts
from stockpredict.catalogue.design_matrix import Spec, make_inputs
from stockpredict.algebra.panel import FIELDS
from stockpredict.catalogue.code_fingerprint import fact_kinds
from stockpredict.models.artifact import artifact_hash, ensure_keys, save_artifact
from stockpredict.models.contract import make_model
from stockpredict.predict.engine import Engine
from stockpredict.predict.schemas import WhatIf
from stockpredict.predict.what_if import join_universe, predict_bars
from stockpredict.predict.answer_table import refresh_answers
from stockpredict.train.training_data import missing_facts_note, training_dataset
from stockpredict.train.lineage import CandidateStore, training_manifest
from stockpredict.train.training_data import covered_spec, training_panel
from stockpredict.train.experiment import run_experiment

CALENDAR = get_calendar()
TICKERS = [f"SIM{i}" for i in range(10)]
GIVEN = {
    "macro",
    "fundamentals",
    "news",
    "members",
    "sectors",
    "bars",
}  # tables that the lake of these tests has
FACTS = [
    n
    for n in SETS["facts"]
    if FEATURES[n].fields <= set(FIELDS) | set(fact_fields())
    and {FACT_JOINS.meta(k)["table"] for k in fact_kinds(FEATURES[n].fields)} <= GIVEN
    and n != "asset_growth"
]  # which looks back further than the first fold
NEEDS = Spec(FACTS).needs
NAMES = ["ret_1", "mom_5", "vol_20", *FACTS]


def facts_of(days):
    "Rows for every table, some known long after what they are about, some revised, some of the last evening."
    rng, close = np.random.default_rng(7), CALENDAR.event_times(days)

    def late(t, n):
        return t + pd.to_timedelta(rng.integers(1, n, len(t)), unit="h")

    daily = pd.concat(
        [
            pd.DataFrame(
                dict(
                    series=s,
                    event_time=close,
                    known_at=late(close, 60),
                    value=np.exp(rng.normal(1, 0.2, len(days))),
                )
            )
            for s in ("DGS10", "DGS2", "BAA10Y", "VIXCLS", "VXVCLS")
        ]
    )
    daily = pd.concat(
        [
            daily,
            daily.sample(frac=0.2, random_state=1).assign(
                known_at=lambda d: d.known_at + pd.Timedelta("20D"), value=lambda d: d.value * 1.1
            ),
        ]
    )
    rows = []
    for t in TICKERS[1:]:
        for q in pd.date_range(days[0] - pd.Timedelta("400D"), days[-1], freq="QE", tz="UTC"):
            known, year = q + pd.Timedelta(hours=int(rng.integers(500, 1500))), q.month == 12
            for item in ("assets", "equity", "eps_diluted", "net_income", "cash_flow_op"):
                rows.append(
                    (t, item, "10-K" if year else "10-Q", q, known, float(rng.lognormal(3, 0.5)), False)
                )
    reports = pd.DataFrame(
        rows, columns=["ticker", "item", "form", "event_time", "known_at", "value", "amended"]
    )
    known = close[0] + pd.to_timedelta(
        rng.integers(0, int((close[-1] - close[0]).total_seconds()), 3000), unit="s"
    )
    news = pd.DataFrame(
        dict(
            ticker=rng.choice(TICKERS, 3000),
            hash=[f"{i}" for i in range(3000)],
            event_time=known,
            known_at=known,
            publisher="x",
            url="x",
            headline=rng.choice(["Profits rise", "Shares plunge on fraud probe", "Annual meeting"], 3000),
        )
    )
    start = pd.Timestamp(days[0] - pd.Timedelta("900D"), tz="UTC")
    members = pd.DataFrame(
        dict(index_name="sp500", ticker=TICKERS[:8], event_time=start, known_at=start, until=pd.NaT)
    )
    left = members[members.ticker == "SIM3"].assign(until=close[-80].normalize(), known_at=close[-85])
    sectors = pd.DataFrame(
        dict(
            ticker=TICKERS,
            sector=[["Energy", "Utilities", "Finance"][i % 3] for i in range(10)],
            industry=[f"kind {i % 4}" for i in range(10)],
            event_time=start,
            known_at=start,
        )
    )
    moved = sectors[sectors.ticker == "SIM4"].assign(
        sector="Energy", event_time=close[-100].normalize(), known_at=close[-95]
    )
    return dict(
        macro=daily,
        fundamentals=reports,
        news=news,
        members=pd.concat([members, left]),
        sectors=pd.concat([sectors, moved]),
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp("beside")
    s = load_settings(
        environ={},
        overrides={
            "storage.home": str(home),
            "storage.reports": str(home / "reports"),
            "data.source": "simulated",
            "data.start": "1990-01-01",
            "simulated.kind": "realistic",
            "simulated.tickers": 10,
            "simulated.sessions": 900,
            "simulated.seed": 4,
            "features.names": NAMES,
            "serving.device": "cpu",
            "models.candidates": ["mean", "ridge"],
            "models.trials": 0,
            "validation.first_train": 360,
            "validation.folds": 1,
        },
    )
    from stockpredict.ingest.ingest import ingest

    ingest(s)
    with Lake(s.storage) as lake:
        days = CALENDAR.sessions(
            *(
                CALENDAR.session_of([t])[0]
                for t in (lake.bars().event_time.min(), lake.bars().event_time.max())
            )
        )
        for table, frame in facts_of(days).items():
            lake.add(table, frame)
    return s


def publish(settings, panel, spec, version=1, name="ridge", **manifest):
    model = make_model(name, seed=0).fit(training_dataset(settings, panel, spec))
    registry = settings.storage.registry_dir
    about = dict(entry_delay=1, needs=list(spec.needs), index=settings.data.index, snapshot=1) | manifest
    part = save_artifact(
        model,
        spec,
        registry / "versions" / f".new{version}",
        about,
        ensure_keys(settings.storage.keys_dir).private,
    )
    place = part.with_name(artifact_hash(part))
    if not place.exists():
        part.rename(place)
    entry = dict(
        version=version,
        artifact=place.name,
        skill="none",
        decision="hold",
        promoted_at="2026-01-01T00:00:00+00:00",
    )
    (registry / "champion.json").write_text(json.dumps(entry))
    return place


def test_every_field_of_the_catalogue_can_be_attached(settings):
    panel, _ = training_panel(settings)
    needed = set(NEEDS)
    assert needed <= set(fact_fields()) and needed <= set(panel._fields) and not missing_facts(panel, needed)
    assert len(FACTS) >= 20 and covered_spec(settings, panel, 360).names == Spec(NAMES).names, (
        "some feature is not covered, the test is weaker than it says"
    )


def test_the_newest_inputs_in_serving_are_those_of_training_bit_for_bit(settings):
    panel, snapshot = training_panel(settings)
    spec = covered_spec(settings, panel, 360)
    full = make_inputs(panel, spec)
    publish(settings, panel, spec)
    window = Engine(settings).window()
    at = [full.tickers.index(t) for t in window.inputs.tickers]
    assert len(window.panel) < len(panel) and window.snapshot == snapshot
    for j, name in enumerate(spec.names):
        assert torch.equal(window.inputs.x[-1, :, j], full.x[-1, at, j]), (
            f"{name} differs between training and serving"
        )
    assert torch.equal(window.inputs.volatility[-1].nan_to_num(-1), full.volatility[-1, at].nan_to_num(-1))
    assert (window.inputs.x[-1] != 0).any(0).sum() > 0.8 * len(spec.names), (
        "mostly zeros, the comparison is empty"
    )


def test_windows_of_any_length_contain_the_facts_of_all_of_history(settings):
    panel, snapshot = training_panel(settings)
    with Lake(settings.storage, read_only=True) as lake:
        for n in (30, 77, 301):
            bare = type(panel)(
                {k: v for k, v in panel.last(n)._fields.items() if k not in fact_fields()},
                panel.sessions[-n:],
                panel.tickers,
            )
            again = with_facts(bare, lake, CALENDAR, NEEDS, snapshot=snapshot)
            for f in NEEDS:
                a, b = again._fields[f], panel.last(n)._fields[f]
                assert torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0)), (
                    f"{f} depends on where the window starts"
                )


def test_facts_that_come_later_change_no_answer_about_the_past(settings, tmp_path):
    panel, snapshot = training_panel(settings)
    then = str(panel.sessions[-30].date())
    before, _ = training_panel(settings, then)
    with Lake(settings.storage) as lake:
        newer = (
            lake.facts("macro", series="DGS10")
            .tail(5)
            .assign(value=99.0, known_at=lambda d: d.known_at + pd.Timedelta("1h"))
        )
        lake.add("macro", newer)
    after, _ = training_panel(settings, then)
    for f in before._fields:
        assert torch.equal(before._fields[f].nan_to_num(-7.0), after._fields[f].nan_to_num(-7.0)), f
    pinned, _ = training_panel(settings, snapshot=snapshot)
    assert torch.equal(
        pinned._fields["yield_10y"].nan_to_num(-7.0), panel._fields["yield_10y"].nan_to_num(-7.0)
    )
    assert not torch.equal(
        training_panel(settings)[0]._fields["yield_10y"].nan_to_num(-7.0),
        panel._fields["yield_10y"].nan_to_num(-7.0),
    )


def test_a_caller_who_sends_the_lakes_bars_gets_the_stored_answer(settings):
    panel, _ = training_panel(settings)
    publish(settings, panel, covered_spec(settings, panel, 360), 2)
    engine = Engine(settings)
    stored = {(p["ticker"], p["horizon"]): p for p in engine.predict_universe().predictions}
    rows = engine.window().bars.query("ticker == 'SIM2'")
    bars = [
        dict(
            date=t.date(),
            **{k: v for k, v in zip(("open", "high", "low", "close", "volume"), r, strict=True) if v == v},
        )
        for t, r in zip(
            rows.event_time,
            rows[["open", "high", "low", "close", "volume"]].itertuples(index=False),
            strict=True,
        )
    ]
    known, new = predict_bars(engine, [WhatIf(ticker="SIM2", bars=bars), WhatIf(ticker="NOBODY", bars=bars)])
    assert [p | {"source": "lake"} for p in known] == [stored["SIM2", h] for h in (1, 5)]
    assert new[0]["ticker"] == "NOBODY"
    x, y = (
        join_universe(engine, engine.window(), WhatIf(ticker=t, bars=bars)).inputs.x[-1, 0]
        for t in ("SIM2", "NOBODY")
    )
    names = engine.spec.names
    assert x[names.index("leverage")] != 0 == y[names.index("leverage")], "a stranger has no reports of SIM2"
    assert x[names.index("vix_level")] == y[names.index("vix_level")] != 0, "one market for all tickers"


def test_a_model_of_facts_refuses_to_answer_without_them(settings, tmp_path):
    panel, _ = training_panel(settings)
    place = publish(settings, panel, covered_spec(settings, panel, 360), 3)
    assert set(json.loads((place / "manifest.json").read_text())["needs"]) == set(NEEDS)
    refresh_answers(settings)
    bare = settings.with_(**{"storage.home": str(tmp_path)})
    with Lake(settings.storage, read_only=True) as lake:
        bars = lake.bars(adjusted=False)
    with Lake(bare.storage) as lake:
        lake.append(bars)
    for name in ("registry", "keys", "serving"):
        (tmp_path / name).symlink_to(settings.storage.home_dir / name)
    known = {p.name: p.read_bytes() for p in settings.storage.serving_dir.iterdir() if p.is_file()}
    with pytest.raises(FactsMissing, match=r"yield_10y.*macro"):
        refresh_answers(bare)
    assert known == {p.name: p.read_bytes() for p in settings.storage.serving_dir.iterdir() if p.is_file()}, (
        "the answers of before stay, and age"
    )
    engine = Engine(bare)
    with pytest.raises(FactsMissing):
        engine.predict_universe()


def test_training_names_the_facts_that_are_missing(settings, tmp_path):
    bare = settings.with_(**{"storage.home": str(tmp_path)})
    with Lake(settings.storage, read_only=True) as lake:
        bars, macro = lake.bars(adjusted=False), lake.facts("macro", versions=True)
    with Lake(bare.storage) as lake:
        lake.append(bars)
        lake.add("macro", macro)
    panel, _ = training_panel(bare)
    spec = covered_spec(bare, panel, 360)
    assert "term_spread" in spec.names and "leverage" not in spec.names
    note = missing_facts_note(bare, panel, spec)
    assert "accruals" in note and "assets" in note and "fundamentals" in note and "[facts]" in note
    with pytest.raises(FactsMissing, match="the lake has no assets"):
        covered_spec(bare.with_(**{"features.names": ["leverage"]}), panel, 360)
    full, _ = training_panel(settings)
    assert missing_facts_note(settings, full, covered_spec(settings, full, 360)) == ""


def test_an_index_limits_learning_and_answering_to_its_members_as_known(settings):
    members_only = settings.with_(
        **{"data.index": "sp500", "features.names": ["ret_1", "vol_20", "term_spread"]}
    )
    panel, _ = training_panel(members_only)
    spec = covered_spec(members_only, panel, 360)
    everybody, data = training_dataset(settings, panel, spec), training_dataset(members_only, panel, spec)
    gone, never, left = (panel.tickers.index(t) for t in ("SIM3", "SIM9", "SIM1"))
    assert data.y[:, never].isnan().all() and not everybody.y[:, never].isnan().all()
    assert torch.equal(data.y[:, left].nan_to_num(-7), everybody.y[:, left].nan_to_num(-7))
    assert (
        data.inputs.usable[:-80, gone].any()
        and not data.inputs.usable[-80:, gone].any()
        and not data.y[-80:, gone].isfinite().any()
    )
    assert torch.equal(data.inputs.x, everybody.inputs.x), "ranks are among all that trade"
    publish(members_only, panel, spec, 4)
    tickers = {p["ticker"] for p in Engine(members_only).predict_universe().predictions}
    assert tickers and tickers <= set(TICKERS[:8]) - {"SIM3"} and "SIM1" in tickers
    with pytest.raises(FactsMissing, match="nikkei"):
        training_panel(members_only.with_(**{"data.index": "nikkei"}))


def test_an_experiment_with_facts_writes_what_serving_needs(settings, tmp_path):
    study = run_experiment(
        settings.with_(**{"features.names": ["ret_1", "vol_20", "term_spread", "sector_mom_21", "leverage"]}),
        tmp_path / "work",
        quiet=True,
    )
    assert (
        study.features == ["ret_1", "vol_20", "term_spread", "sector_mom_21", "leverage"]
        and "left_out" not in study.lineage
    )
    manifest = json.loads((study.candidates["ridge"].folder / "artifact" / "manifest.json").read_text())
    assert (
        manifest["needs"] == ["assets", "equity", "sector", "yield_10y", "yield_2y"]
        and manifest["index"] == ""
    )
    assert CandidateStore and training_manifest(
        study.candidates["ridge"], study.settings, study.lineage, Spec(["leverage"])
    )["needs"] == ["assets", "equity"]

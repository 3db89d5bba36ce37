"""The flow `maintain` follows the policy, and an edited audit log is noticed by it and by the doctor."""

import pandas as pd
import pytest

from stockpredict.access.audit_chain import audit_segments
from stockpredict.access.audit_log import record_command
from stockpredict.access.keys import KeyStore
from stockpredict.core.settings import load_settings
from stockpredict.govern.purge import purge_steps
from stockpredict.ops.doctor import audit as check_of_doctor
from stockpredict.ops.upkeep_day import check_audit, keep_policy
from stockpredict.sources.bars import BAR_COLUMNS


@pytest.fixture
def settings(tmp_path):
    return load_settings(None, {"storage.home": str(tmp_path / "home")}, environ={})


def old_bars():
    at = pd.Timestamp("2001-03-05 21:00", tz="UTC")
    row = {"ticker": "AAPL", "event_time": at, "known_at": at + pd.Timedelta("15min"), "source": "files"}
    prices = {"open": 10.0, "high": 11.0, "low": 9.0, "close": 10.5, "volume": 100.0}
    return pd.DataFrame([row | prices])[BAR_COLUMNS]


def test_market_data_are_left_unless_the_settings_say_otherwise(settings):
    from stockpredict.lake.lake import Lake

    with Lake(settings.storage) as lake:
        lake.append(old_bars())
    KeyStore(settings.storage).create(["viewer"], days=1, now=0.0)
    assert keep_policy(settings)[0].items == ("ended keys: 1",)
    assert keep_policy(settings, do_it=True)[0].items == ("ended keys: 1",)
    assert keep_policy(settings, do_it=True)[0].items == ()
    nightly = settings.with_(**{"retention.market_nightly": "yes"})
    with Lake(settings.storage) as lake:
        assert len(lake.bars(source="files")) == 1
    assert "rows of bars: 1" in keep_policy(nightly, do_it=True)[0].items
    with Lake(settings.storage) as lake:
        assert len(lake.bars(source="files")) == 0
    assert {"market", "records", "audit"} <= set(purge_steps)


def test_an_edited_audit_log_is_noticed(settings):
    assert check_of_doctor(settings)[0] == "off"
    for name in ("anna", "bert"):
        record_command(settings, f"users create {name}")
    assert check_audit(settings)[0].items == () and check_of_doctor(settings)[0] == "ok"
    [(_, path)] = audit_segments(settings.storage.home_dir / "audit")["console"]
    path.write_bytes(path.read_bytes().replace(b"anna", b"anne"))
    assert "line 2" in check_audit(settings)[0].items[0]
    state, observed, fix = check_of_doctor(settings)[:3]
    assert state == "fail" and "line 2" in observed and "audit verify" in fix

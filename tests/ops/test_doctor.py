"The doctor on an empty home: every check answers, and none waits for a library that it does not need."

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import served_desk

from stockpredict.backup.backup_contents import LAST_BACKUP
from stockpredict.backup.backups import Backups
from stockpredict.backup.sealed_files import new_backup_key, read_backup_keys
from stockpredict.core.settings import load_settings
from stockpredict.ops.doctor import run_check


def test_a_new_home_is_examined_without_torch(tmp_path):
    code = (
        "import sys; from stockpredict.core.settings import load_settings;"
        "from stockpredict.ops.doctor import doctor;"
        f"report = doctor(load_settings(overrides={{'storage.home': {str(tmp_path)!r}}}, environ={{}}));"
        "print(report.healthy, {f.name: f.state for f in report}['champion'], "
        "sorted({'torch', 'mlflow', 'lightgbm', 'great_expectations'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split(maxsplit=2)[1:] == ["warn", "[]\n"], done.stdout + done.stderr


def test_the_served_model_is_verified_without_torch(settings):
    "Signature and hashes are a matter of files; a changed byte is refused."
    from stockpredict.models.artifact import artifact_hash, ensure_keys, save_artifact
    from stockpredict.models.contract import make_model
    from stockpredict.models.dataset import sample_dataset

    model = make_model("mean").fit(sample_dataset(tickers=6, sessions=300))
    spec = {"names": model.names, "normalise": "none", "lookback": 1, "hash": ""}
    key, versions = ensure_keys(settings.storage.keys_dir).private, settings.storage.registry_dir / "versions"
    folder = save_artifact(model, spec, versions / ".new", {}, key)
    folder = folder.rename(versions / artifact_hash(folder))
    served_desk.point(settings, folder.name)
    code = (
        "import sys; from stockpredict.core.settings import load_settings;"
        "from stockpredict.ops.doctor import run_check;"
        f"settings = load_settings({str(settings.storage.home_dir / 'settings.ini')!r}, environ={{}});"
        "finding = vars(run_check('champion', settings)).values();"
        "print(*finding, 'torch' in sys.modules)"
    )
    (settings.storage.home_dir / "settings.ini").write_text(settings.to_ini())

    def answer():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    whole = answer()
    assert whole.startswith("champion ok mean version 1, signature verified.")
    assert whole.endswith("False\n"), whole
    (folder / "state.json").write_bytes((folder / "state.json").read_bytes() + b" ")
    assert "champion fail The artifact was refused: state.json is not the file that was signed" in answer()


@pytest.fixture
def settings(tmp_path):
    sets = {"storage.home": "home", "storage.reports": "reports", "backup.target": "there"}
    return load_settings(None, {name: str(tmp_path / place) for name, place in sets.items()}, environ={})


def test_no_target_is_no_fault(settings):
    finding = run_check("backup", settings.with_(**{"backup.target": ""}))
    assert (finding.state, finding.fix) == ("off", "")


@pytest.mark.parametrize("hours, state", [(1, "ok"), (25, "ok"), (27, "warn")])
def test_an_old_backup_needs_a_look(settings, hours, state):
    backups = Backups(settings, read_backup_keys(new_backup_key()))
    backup = backups.create(now=datetime.now(UTC) - timedelta(hours=hours))
    finding = run_check("backup", settings)
    assert finding.state == state and backup.name in finding.observed
    assert ("stockpredict backup create" in finding.fix) == (state == "warn")


@pytest.mark.parametrize("damage", ["note", "no note", "list", "target", "another target"])
def test_a_backup_that_cannot_be_relied_on_needs_a_look(settings, damage):
    backup = Backups(settings, read_backup_keys(new_backup_key())).create()
    note, there = settings.storage.home_dir / LAST_BACKUP, Path(settings.backup.target)
    if damage == "note":
        note.write_text('{"name"')
    elif damage == "no note":
        note.unlink()
    elif damage == "list":
        (there / "backups" / f"{backup.name}.backup").unlink()
    elif damage == "target":  # a disk that is not mounted
        there.rename(there.with_name("elsewhere"))
    else:
        settings = settings.with_(**{"backup.target": str(there.with_name("new"))})
    finding = run_check("backup", settings)
    assert finding.state == "warn" and "stockpredict backup create" in finding.fix

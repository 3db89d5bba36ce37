"""What may go wrong with a saved model, by accident or by malice, and what has to happen."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import warm
import pytest
import torch
from safetensors.torch import load, save

from stockpredict.core.errors import ArtifactRejected, NotFitted
from stockpredict.models import artifact as art
from stockpredict.models.artifact import artifact_hash, ensure_keys, key_id, load_artifact, public_key
from stockpredict.models.artifact import save_artifact
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import sample_dataset

FACTS = dict(
    snapshot=7,
    fingerprint="f00d",
    metrics={"rank_ic": 0.02, "p": float("nan")},
    created_at="2024-05-01T00:00:00+00:00",
)


@pytest.fixture(scope="module")
def data():
    return sample_dataset(tickers=12, sessions=300)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, data):
    "Keys, and one artifact of a ridge and one of trees."
    folder = tmp_path_factory.mktemp("artifacts")
    keys = ensure_keys(folder / "keys")
    for name, params in (("ridge", {}), ("lightgbm", dict(rounds=5))):
        save_artifact(
            make_model(name, **params).fit(data), data.inputs.spec, folder / name, FACTS, keys.private
        )
    return folder, keys


@pytest.fixture(params=["ridge", "lightgbm"])
def place(request, saved, tmp_path):
    "A copy of an artifact to spoil, with its keys."
    return Path(shutil.copytree(saved[0] / request.param, tmp_path / "model")), saved[1]


@pytest.fixture
def trees(saved, tmp_path):
    return Path(shutil.copytree(saved[0] / "lightgbm", tmp_path / "model")), saved[1]


@pytest.fixture
def ridge(saved, tmp_path):
    return Path(shutil.copytree(saved[0] / "ridge", tmp_path / "model")), saved[1]


def sign_again(place, keys, **changes):
    "What somebody who holds the key could do: change files or the manifest and sign the result."
    about = json.loads((place / "manifest.json").read_text())
    for name, content in changes.pop("files", {}).items():
        (place / name).write_bytes(content)
    about["files"] = {
        f.name: dict(sha256=art.hashlib.sha256(f.read_bytes()).hexdigest(), bytes=f.stat().st_size)
        for f in sorted(place.iterdir())
        if f.name not in ("manifest.json", "signature.json")
    }
    about.update(changes)
    text = art.canonical_json(about)
    (place / "manifest.json").write_bytes(text)
    seal = dict(
        algorithm="ed25519", key=key_id(keys.public), signature=keys.private.sign(art.SEAL + text).hex()
    )
    (place / "signature.json").write_bytes(art.canonical_json(seal))


def state_of(place):
    return json.loads((place / "state.json").read_text())


def refused(place, keys, why):
    with pytest.raises(ArtifactRejected, match=why) as e:
        load_artifact(place, keys.public)
    assert e.value.code == "artifact-rejected" and e.value.fix and str(place.parent) not in str(e.value)


def test_an_unchanged_artifact_loads(place):
    folder, keys = place
    a = load_artifact(folder, keys.public)
    assert (
        a.manifest["snapshot"] == 7
        and a.manifest["metrics"] == {"rank_ic": 0.02, "p": None}
        and a.hash == artifact_hash(folder)
    )
    assert {"commit", "versions", "files", "horizons", "lookback", "spec", "created_at"} <= set(a.manifest)


def test_an_artifact_signed_again_loads(place):
    "The helper of these tests makes valid artifacts, so a refusal below is about the content."
    folder, keys = place
    sign_again(folder, keys)
    assert load_artifact(folder, keys.public).model.names


@pytest.mark.parametrize(
    "name", ["manifest.json", "signature.json", "state.json", "weights.safetensors", "h1.txt"]
)
def test_a_missing_file(trees, name):
    folder, keys = trees
    (folder / name).unlink()
    refused(folder, keys, "missing|differ")


@pytest.mark.parametrize(
    "name", ["manifest.json", "signature.json", "state.json", "weights.safetensors", "h1.txt"]
)
@pytest.mark.parametrize("where", [0.1, 0.5, 0.95])
def test_a_flipped_bit(trees, name, where):
    folder, keys = trees
    raw = bytearray((folder / name).read_bytes())
    raw[int(len(raw) * where)] ^= 1
    (folder / name).write_bytes(raw)
    if name == "signature.json" and where != 0.5:
        try:
            load_artifact(folder, keys.public)  # the name of the key or the algorithm is information only
        except ArtifactRejected:
            pass
    else:
        refused(folder, keys, "refused")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.safetensors", "signature.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'{"a": NaN}', b"[" * 100_000])
def test_truncated_or_garbage(ridge, name, content):
    folder, keys = ridge
    (folder / name).write_bytes(content)
    refused(folder, keys, "refused")


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b'{"names": NaN}', b"\xff" * 64])
def test_garbage_with_a_valid_signature(ridge, name, content):
    folder, keys = ridge
    sign_again(folder, keys, files={name: content})
    refused(folder, keys, "refused")


@pytest.mark.parametrize(
    "extra",
    [
        "model.pkl",
        "model.pkl.gz",
        "MLmodel",
        "weights.pt",
        "model.joblib",
        "__init__.py",
        ".hidden",
        "state.json.bak",
        "h99999.txt",
        "H1.txt",
        "h1.txt\n",
    ],
)
def test_an_extra_file(ridge, extra):
    folder, keys = ridge
    (folder / extra).write_bytes(b"x")
    refused(folder, keys, "does not belong")
    sign_again(folder, keys)
    refused(folder, keys, "does not belong")


def test_an_extra_file_with_an_allowed_name(ridge):
    folder, keys = ridge
    (folder / "h7.txt").write_text("tree")
    refused(folder, keys, "differ: h7.txt")


def test_an_extra_folder(ridge):
    folder, keys = ridge
    (folder / "h1.txt").mkdir()
    refused(folder, keys, "not a regular file")


def test_a_pipe_does_not_hang(ridge):
    folder, keys = ridge
    os.mkfifo(folder / "h1.txt")
    refused(folder, keys, "not a regular file")


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.safetensors"])
def test_links(ridge, name, tmp_path):
    folder, keys = ridge
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused(folder, keys, "not a regular file")


def test_the_folder_must_not_be_a_link(ridge, tmp_path):
    folder, keys = ridge
    (tmp_path / "alias").symlink_to(folder)
    refused(tmp_path / "alias", keys, "not a folder")
    refused(tmp_path / "nowhere", keys, "not a folder")
    refused(folder / "state.json", keys, "not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", keys, "missing")


@pytest.mark.parametrize("name", ["../state.json", "/etc/passwd", "a/b.txt", "state.json\x00"])
def test_paths_in_the_manifest(ridge, name):
    folder, keys = ridge
    about = json.loads((folder / "manifest.json").read_text())
    about["files"][name] = about["files"]["state.json"]
    text = art.canonical_json(about)
    (folder / "manifest.json").write_bytes(text)
    (folder / "signature.json").write_bytes(
        art.canonical_json(dict(signature=keys.private.sign(art.SEAL + text).hex()))
    )
    refused(folder, keys, "differ")


class Bomb:
    fired = []

    def __reduce__(self):
        return (Bomb.fired.append, (1,))


def _archive():
    out = io.BytesIO()
    torch.save({"w": torch.ones(2)}, out)
    return out.getvalue()


def _zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("data.pkl", pickle.dumps(Bomb()))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Bomb(), protocol=p) for p in (2, 4, 5)] + [_archive(), _zip(), b"\x1f\x8b" + b"0" * 32],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "h1.txt"])
def test_a_pickle_under_another_name_even_signed(ridge, content, name, monkeypatch):
    folder, keys = ridge
    sign_again(folder, keys, files={name: content})
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: pytest.fail("unpickled"))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("unpickled"))
    refused(folder, keys, "serialised code or an archive")
    assert not Bomb.fired


@pytest.mark.parametrize("protocol", [0, 1])
def test_an_old_pickle_is_not_executed_either(ridge, protocol):
    folder, keys = ridge
    sign_again(folder, keys, files={"weights.safetensors": pickle.dumps(Bomb(), protocol=protocol)})
    refused(folder, keys, "cannot be built")
    assert not Bomb.fired


def test_the_signature_of_another_key(place, tmp_path):
    folder, keys = place
    other = ensure_keys(tmp_path / "other")
    refused(folder, other, "trusted key")
    sign_again(folder, other)
    refused(folder, keys, "trusted key")


def test_a_signature_for_another_purpose(ridge):
    folder, keys = ridge
    text = (folder / "manifest.json").read_bytes()
    (folder / "signature.json").write_bytes(art.canonical_json(dict(signature=keys.private.sign(text).hex())))
    refused(folder, keys, "trusted key")


def test_two_valid_artifacts_cannot_be_mixed(saved, tmp_path, data):
    folder, keys = saved
    other = save_artifact(
        make_model("ridge", alpha=1.0).fit(data), data.inputs.spec, tmp_path / "other", FACTS, keys.private
    )
    shutil.copy(folder / "ridge" / "weights.safetensors", other / "weights.safetensors")
    refused(other, keys, "not the file that was signed")


@pytest.mark.parametrize("version", [0, 3, "1", None, True, [1]])
def test_an_unknown_format(ridge, version):
    folder, keys = ridge
    sign_again(folder, keys, format=version)
    refused(folder, keys, "its format is")


def test_an_unknown_model(ridge):
    folder, keys = ridge
    sign_again(folder, keys, model=dict(name="os.system", kind="net", complexity=9))
    refused(folder, keys, "not installed")


def test_features_in_another_order(ridge):
    folder, keys = ridge
    spec = json.loads((folder / "manifest.json").read_text())["spec"]
    sign_again(folder, keys, spec=spec | dict(names=spec["names"][::-1]))
    refused(folder, keys, "features")


def test_one_feature_fewer_than_weights(place):
    folder, keys = place
    spec, state = json.loads((folder / "manifest.json").read_text())["spec"], state_of(folder)
    fewer = spec["names"][:-1]
    sign_again(
        folder,
        keys,
        spec=spec | dict(names=fewer),
        files={"state.json": art.canonical_json(state | dict(names=fewer))},
    )
    refused(folder, keys, "made for 5 features")


def test_a_feature_twice(ridge):
    folder, keys = ridge
    spec, state = json.loads((folder / "manifest.json").read_text())["spec"], state_of(folder)
    twice = [spec["names"][0], *spec["names"][:-1]]
    sign_again(
        folder,
        keys,
        spec=spec | dict(names=twice),
        files={"state.json": art.canonical_json(state | dict(names=twice))},
    )
    refused(folder, keys, "features")


def test_features_computed_by_other_code(ridge):
    folder, keys = ridge
    spec = json.loads((folder / "manifest.json").read_text())["spec"]
    sign_again(folder, keys, spec=spec | dict(hash="0" * 12))
    refused(folder, keys, "computes its features differently")


def test_horizons_that_the_weights_do_not_have(ridge):
    folder, keys = ridge
    sign_again(folder, keys, horizons=[1, 5, 21])
    refused(folder, keys, "horizons")
    sign_again(
        folder,
        keys,
        horizons=[1, 5, 21],
        files={"state.json": art.canonical_json(state_of(folder) | dict(horizons=[1, 5, 21]))},
    )
    refused(folder, keys, "refused")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["coef", "slope", "residual"])
def test_numbers_that_are_not_finite(ridge, part, poison):
    folder, keys = ridge
    weights = load((folder / "weights.safetensors").read_bytes())
    weights[part].view(-1)[0] = poison
    sign_again(folder, keys, files={"weights.safetensors": save(weights)})
    refused(folder, keys, "not finite")


def test_quantiles_out_of_order(ridge):
    folder, keys = ridge
    weights = load((folder / "weights.safetensors").read_bytes())
    weights["residual"] = weights["residual"].flip(-1).contiguous()
    sign_again(folder, keys, files={"weights.safetensors": save(weights)})
    refused(folder, keys, "crossing")


@pytest.mark.parametrize("part", ["coef", "slope", "residual", "drift"])
def test_weights_of_the_wrong_shape_or_absent(ridge, part):
    folder, keys = ridge
    weights = load((folder / "weights.safetensors").read_bytes())
    sign_again(
        folder, keys, files={"weights.safetensors": save({k: v for k, v in weights.items() if k != part})}
    )
    refused(folder, keys, "cannot be built")
    sign_again(
        folder,
        keys,
        files={"weights.safetensors": save(weights | {part: torch.zeros(3, 7, dtype=weights[part].dtype)})},
    )
    refused(folder, keys, "refused")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("part", ["coef", "slope"])
def test_weights_of_another_type(ridge, part, kind):
    "A model would compute on, with other numbers than the ones that were judged."
    folder, keys = ridge
    weights = load((folder / "weights.safetensors").read_bytes())
    sign_again(folder, keys, files={"weights.safetensors": save(weights | {part: weights[part].to(kind)})})
    refused(folder, keys, "of another type")


def test_unknown_parameters(ridge):
    folder, keys = ridge
    sign_again(
        folder,
        keys,
        files={"state.json": art.canonical_json(state_of(folder) | dict(params={"shell": "rm"}))},
    )
    refused(folder, keys, "cannot be built")


def test_a_file_beyond_the_limit(ridge, monkeypatch):
    folder, keys = ridge
    monkeypatch.setattr("stockpredict.models.artifact_files.MOST", 100)
    refused(folder, keys, "too large")


# --- saving


def test_an_unfitted_model_is_not_saved(saved, tmp_path, data):
    with pytest.raises(NotFitted):
        save_artifact(make_model("ridge"), data.inputs.spec, tmp_path / "m", {}, saved[1].private)
    assert not (tmp_path / "m").exists()


def test_the_hash_names_the_content(saved, tmp_path, data):
    folder, keys = saved
    first = artifact_hash(folder / "ridge")
    again = make_model("ridge").fit(data)

    def saved(name, facts, model=again):
        return artifact_hash(save_artifact(model, data.inputs.spec, tmp_path / name, facts, keys.private))

    assert saved("a", FACTS) == first
    assert saved("b", FACTS | dict(created_at="2031-01-01T00:00:00+00:00", snapshot=900, run_id="x")) == first
    assert saved("c", FACTS | dict(fingerprint="beef")) != first
    assert saved("f", FACTS | dict(commit="one that was made while this model was trained")) == first
    assert saved("d", FACTS, make_model("ridge", alpha=0.2).fit(data)) != first
    other = ensure_keys(tmp_path / "other")  # who signed does not change what was learned
    assert (
        artifact_hash(save_artifact(again, data.inputs.spec, tmp_path / "e", FACTS, other.private)) == first
    )


def test_an_artifact_of_format_1_keeps_its_identity(ridge):
    "Models that were published before the commit stopped counting are still read under their old name."
    folder, keys = ridge
    names = []
    for commit in ("abc", "def"):
        sign_again(folder, keys, format=1, commit=commit)
        old = load_artifact(folder, keys.public)
        assert old.hash == artifact_hash(folder) and old.manifest["commit"] == commit
        names.append(old.hash)
    assert names[0] != names[1]


def test_saving_twice_replaces(saved, tmp_path, data):
    keys = saved[1]
    for alpha in (0.1, 0.5):
        save_artifact(
            make_model("ridge", alpha=alpha).fit(data), data.inputs.spec, tmp_path / "m", FACTS, keys.private
        )
    assert load_artifact(tmp_path / "m", keys.public).model.alpha == 0.5
    assert os.listdir(tmp_path) == ["m"]


def test_the_caller_cannot_overwrite_the_description_of_the_model(saved, tmp_path, data):
    lies = dict(files={}, format=9, spec={}, horizons=[9], model={"name": "zero"})
    m = save_artifact(make_model("ridge").fit(data), data.inputs.spec, tmp_path / "m", lies, saved[1].private)
    assert load_artifact(m, saved[1].public).model.name == "ridge"


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_full_disk_leaves_the_old_artifact(saved, tmp_path, data, monkeypatch, step):
    keys, calls = saved[1], []
    save_artifact(make_model("ridge").fit(data), data.inputs.spec, tmp_path / "m", FACTS, keys.private)

    def full(fd):
        calls.append(fd)
        if len(calls) == step:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) if step <= 4 else pytest.MonkeyPatch.context():
        save_artifact(
            make_model("ridge", alpha=0.5).fit(data), data.inputs.spec, tmp_path / "m", FACTS, keys.private
        )
    monkeypatch.undo()
    assert load_artifact(tmp_path / "m", keys.public).model.alpha == (0.1 if step <= 4 else 0.5)
    assert os.listdir(tmp_path) == ["m"]


KILL = """
import os, sys
from pathlib import Path
from stockpredict.models import artifact as art
from stockpredict.models.contract import make_model
from stockpredict.models.dataset import sample_dataset
folder, steps = Path(sys.argv[1]), [int(s) for s in sys.argv[2].split(',')]
data, keys = sample_dataset(tickers=8, sessions=160), art.ensure_keys(folder / 'keys')
model, fsync, rename = make_model('ridge').fit(data), os.fsync, os.rename
for step in steps:
    if os.fork() == 0:
        count = [0]
        def dying(real):
            def call(*args, **kw):
                count[0] += 1
                if count[0] == step: os.kill(os.getpid(), 9)
                return real(*args, **kw)
            return call
        art.os.fsync, art.os.rename = dying(fsync), dying(rename)
        art.save_artifact(model, data.inputs.spec, folder / f'm{step}', {}, keys.private)
        os._exit(0)
    os.wait()
"""


def test_a_kill_at_any_step_leaves_all_or_nothing(tmp_path):
    steps = [1, 2, 3, 4, 5, 6]
    warm.python(KILL, tmp_path, ",".join(map(str, steps))).check_returncode()
    keys = ensure_keys(tmp_path / "keys")
    whole = [
        load_artifact(tmp_path / f"m{s}", keys.public).model.name
        for s in steps
        if (tmp_path / f"m{s}").exists()
    ]
    assert whole == ["ridge"], (
        "four files, one rename: only the run that was not reached by the kill has saved"
    )


# --- keys


def test_keys_are_private_and_stay(tmp_path):
    keys = ensure_keys(tmp_path / "keys")
    assert (tmp_path / "keys" / "signing.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (
        key_id(ensure_keys(tmp_path / "keys").public)
        == key_id(keys.public)
        == key_id(public_key(tmp_path / "keys"))
    )
    assert sorted(os.listdir(tmp_path / "keys")) == ["signing.key", "signing.pub"]


def test_concurrent_first_users_agree_on_one_key(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: key_id(ensure_keys(tmp_path / "keys").public), range(24)))
    assert len(ids) == 1 and key_id(public_key(tmp_path / "keys")) in ids


def test_broken_or_absent_keys(tmp_path):
    with pytest.raises(ArtifactRejected, match="no public key"):
        public_key(tmp_path)
    (tmp_path / "signing.key").write_text("nonsense")
    with pytest.raises(ArtifactRejected, match="signing key cannot be read"):
        ensure_keys(tmp_path)


def test_loading_is_light(saved):
    "A service that loads a ridge never imports what trained it."
    folder, _ = saved
    code = (
        "import sys; from stockpredict.models.artifact import load_artifact, public_key;"
        f"load_artifact({str(folder / 'ridge')!r}, public_key({str(folder / 'keys')!r}));"
        "heavy = 'lightning lightgbm mlflow optuna sklearn prefect papermill'.split();"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )

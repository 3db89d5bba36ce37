"""What goes out: one version, its changelog, and packages that work where nothing else of the checkout is."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from load_script import load_script

import stockpredict

ROOT = Path(__file__).parents[2]


def release_script(name):
    return load_script(ROOT / "deploy" / "release" / f"{name}.py")


package = release_script("package")
ASK = """
import stockpredict
from stockpredict.core.templates import template_text
print(stockpredict.__file__, len(template_text("serve/chart.svg")), stockpredict.load_settings().serving.port)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "(source distribution, wheel)"
    return package.build(tmp_path_factory.mktemp("dist"))


def test_the_version_stands_in_one_place_and_the_changelog_begins_with_it(built):
    text = (ROOT / "CHANGELOG.md").read_text()
    assert package.version() == stockpredict.__version__ == package.wheel_version(built[1])
    assert next(iter(package.sections(text))) == stockpredict.__version__
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## [{version}] - {day}" for version, day in package.HEADING.findall(text)
    ]
    assert all("### " in section for section in package.sections(text).values())


def test_a_changelog_gives_the_section_of_each_version():
    text = "# Changelog\n\n## [1.1.0] - 2027-01-02\n\n### Fixed\n\n- b\n\n"
    text += "## [1.0.0] - 2026-12-01\n\n### Added\n\n- a\n"
    assert package.sections(text) == {"1.1.0": "### Fixed\n\n- b", "1.0.0": "### Added\n\n- a"}


def test_a_version_without_a_section_is_not_released(monkeypatch):
    monkeypatch.setattr(package, "version", lambda: "9.9.9")
    with pytest.raises(SystemExit, match=r"no section of 9\.9\.9"):
        package.notes()


def test_a_release_needs_the_tag_of_its_version(monkeypatch, tmp_path):
    (tmp_path / "one.whl").touch()
    monkeypatch.setenv("GITHUB_REF_NAME", "v0.0.9")
    with pytest.raises(SystemExit, match=r"The tag is v0\.0\.9 and the version v"):
        package.publish(tmp_path, really=False)
    monkeypatch.setenv("GITHUB_REF_NAME", f"v{stockpredict.__version__}")
    reply = package.publish(tmp_path, really=False)
    assert "--verify-tag" in reply and "one.whl" in reply and package.notes() in reply


def test_packages_hold_every_module_and_template_and_no_data(built):
    source, wheel = built
    with tarfile.open(source) as file:
        in_source = {name.partition("/")[2] for name in file.getnames()}
    with zipfile.ZipFile(wheel) as file:
        in_wheel = set(file.namelist())
    here = [p for p in (ROOT / "stockpredict").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = {str(path.relative_to(ROOT)) for path in here}
    assert any("/templates/" in name for name in files) and files <= in_wheel and files <= in_source
    assert {"settings.ini", "constraints.txt", "CHANGELOG.md", "LICENSE"} <= in_source
    for name in in_source | in_wheel:
        assert not name.endswith((".parquet", ".csv", ".db", ".ipynb", ".key")) and "tests/" not in name
    assert source.stat().st_size < 4e6 and wheel.stat().st_size < 4e6


@pytest.mark.parametrize("which", ["sdist", "wheel"])
def test_a_package_works_in_an_environment_of_its_own(built, tmp_path, which):
    "What it depends on is lent by this environment; `make release-check` installs that too."
    python = package.empty_environment(tmp_path / "new", "--without-pip")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-compile"]
    words = ["--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    lent = next((tmp_path / "new" / "lib").glob("python*")) / "site-packages" / "lent.pth"
    lent.write_text(sysconfig.get_path("purelib"))  # the lines of its own .pth files do not count
    done = subprocess.run([*pip, *words, built[which == "wheel"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reply = package.ask(python, ASK)
    assert reply.startswith(f"stockpredict {stockpredict.__version__}\n") and str(tmp_path / "new") in reply


def test_sums_are_those_of_the_packages(built):
    folder = built[0].parent
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == 2

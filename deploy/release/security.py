"""What can be checked about the safety of the code and of what it is installed with: `make check-security`.

    python deploy/release/security.py code              # bandit, against the reviewed findings
    python deploy/release/security.py secrets           # detect-secrets, against the reviewed strings
    python deploy/release/security.py licences          # of everything that is installed, against the policy
    python deploy/release/security.py vulnerabilities   # pip-audit; needs the advisories of the package index
    python deploy/release/security.py sbom [FILE]       # a CycloneDX list of what the package runs with
    python deploy/release/security.py all [--online]    # everything above

What was reviewed stands with its reason in `reviewed.toml` (code, licences) and `secrets.json` (strings).
`secrets --update` adds the strings that are not reviewed yet, with an empty reason: the check fails until you
write one. `--online` fails where the advisories cannot be reached, which is otherwise only said.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CODE = ("stockpredict", "flows", "nbs", "deploy")
SUSPICIOUS = re.compile(
    r"secret|passw|pwd|key|token|auth|credential|private|://[^ ]*@|[A-Za-z0-9+/_\-]{16,}", re.I
)
PLUGINS = (
    "ArtifactoryDetector AWSKeyDetector AzureStorageKeyDetector BasicAuthDetector CloudantDetector "
    "GitHubTokenDetector JwtTokenDetector KeywordDetector MailchimpDetector NpmDetector PrivateKeyDetector "
    "PypiTokenDetector SendGridDetector SlackDetector StripeDetector TwilioKeyDetector"
).split()
ENTROPY = ({"name": "Base64HighEntropyString", "limit": 4.5}, {"name": "HexHighEntropyString", "limit": 3.0})
FILTERS = (
    "allowlist.is_line_allowlisted",
    "heuristic.is_sequential_string",
    "heuristic.is_potential_uuid",
    "heuristic.is_templated_secret",
    "heuristic.is_indirect_reference",
)


def reviewed() -> dict:
    return tomllib.loads((HERE / "reviewed.toml").read_text(encoding="utf-8"))


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def output_of(*command, codes=(0,)) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in codes:
        raise SystemExit(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    return done.stdout


def code_findings(paths=CODE) -> list:
    "What bandit finds: dictionaries with test, file, line and text."
    command = [tool("bandit"), "-q", "-r", *map(str, paths), "-f", "json"]
    skipped = ",".join(reviewed()["code"]["skipped"])
    hits = json.loads(output_of(*command, "-s", skipped, codes=(0, 1)))
    if hits["errors"]:
        raise SystemExit(f"bandit could not read {hits['errors']}")
    return [
        {
            "test": one["test_id"],
            "file": one["filename"].removeprefix("./").removeprefix(f"{ROOT}/"),
            "line": one["line_number"],
            "text": one["issue_text"],
        }
        for one in hits["results"]
    ]


def unreviewed_code(findings: list) -> list:
    "Sentences about findings that are not reviewed: more of a kind in a file than were looked at."
    allowed, why = Counter(), reviewed()["code"]["reviewed"]
    for one in why:
        allowed.update({(one["test"], file): count for file, count in one["files"].items()})
    seen = Counter((one["test"], one["file"]) for one in findings)
    over = {key for key, count in seen.items() if count > allowed[key]}
    return [
        f"{one['file']}:{one['line']}: {one['test']} {one['text']}"
        for one in findings
        if (one["test"], one["file"]) in over
    ]


def check_code() -> tuple:
    findings = code_findings()
    return unreviewed_code(findings), f"bandit: {len(findings)} findings, all of them reviewed"


def text_of(path: Path) -> list:
    "The parts of a file that are looked at: (lines, whether entropy counts). Pictures are not text."
    if path.suffix != ".ipynb":
        measured = path.parent.name == "results"  # full of our fingerprints
        return [(path.read_text(encoding="utf-8", errors="ignore").splitlines(), not measured)]
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        parts.append(("".join(cell["source"]).splitlines(), True))
        for output in cell.get("outputs", ()):
            texts = [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
            parts += [("".join(text).splitlines(), False) for text in texts]
    return parts


def secrets_in(paths) -> dict:
    "(file, kind, hash) -> the line without it, of every string that looks like a secret."
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import transient_settings

    places = {True: {}, False: {}}  # line -> files, by whether entropy counts
    for path in paths:
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        for lines, entropy in text_of(path):
            for line in filter(SUSPICIOUS.search, lines):
                places[entropy].setdefault(line.strip(), set()).add(name)
    hits = {}
    for entropy, files in places.items():
        plugins = [*({"name": name} for name in PLUGINS), *(ENTROPY if entropy else ())]
        filters = [{"path": f"detect_secrets.filters.{name}"} for name in FILTERS]
        lines = list(files)
        with (
            tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as each,
            transient_settings({"plugins_used": plugins, "filters_used": filters}),
        ):
            each.write("\n".join(lines))
            each.flush()
            for one in scan_file(each.name):
                line = lines[one.line_number - 1]
                shown = line.replace(one.secret_value or "", "***")[:60]
                hits |= {(name, one.type, one.secret_hash): shown for name in files[line]}
    return hits


def tracked_files() -> list:
    "Files of the repository; the exported modules repeat their notebooks."
    names = output_of("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    left_out = ("stockpredict/", "constraints.txt", "deploy/release/secrets.json")
    keep = [ROOT / name for name in names if not name.startswith(left_out) or "/templates/" in name]
    return [path for path in keep if path.is_file() and path.suffix not in (".png", ".gz", ".parquet")]


def known_secrets() -> dict:
    return json.loads((HERE / "secrets.json").read_text(encoding="utf-8"))


def check_secrets(update: bool = False) -> tuple:
    hits, known = secrets_in(tracked_files()), known_secrets()
    if update:
        whys = {(f, one["kind"], one["hash"]): one["why"] for f, rows in known.items() for one in rows}
        known = {}
        for key in sorted(hits):
            known.setdefault(key[0], []).append({"kind": key[1], "hash": key[2], "why": whys.get(key, "")})
        (HERE / "secrets.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    explained = {
        (f, one["kind"], one["hash"]) for f, rows in known.items() for one in rows if one["why"].strip()
    }
    lines = [
        f"{file}: {kind} ({digest[:12]}), not reviewed: {hits[file, kind, digest]}"
        for file, kind, digest in sorted(set(hits) - explained)
    ]
    return lines, f"detect-secrets: {len(hits)} strings that look like secrets, all of them reviewed"


def components(python: str = sys.executable) -> dict:
    "The CycloneDX document of an environment."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sbom.json"
        output_of(
            tool("cyclonedx-py"), "environment", python, "--pyproject", ROOT / "pyproject.toml", "-o", file
        )
        return json.loads(file.read_text(encoding="utf-8"))


def needed(extra: str = "") -> set:
    "Names of all that the package needs to run, and with an extra."
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    names, waiting = set(), [("stockpredict", extra)]
    while waiting:
        name, extras = waiting.pop()
        try:
            asked = distribution(name).requires or ()
        except PackageNotFoundError:
            continue  # for another system
        for requirement in map(Requirement, asked):
            choices = [{"extra": one} for one in {"", *extras.split(",")}]
            if requirement.marker and not any(map(requirement.marker.evaluate, choices)):
                continue
            key = canonicalize_name(requirement.name), ",".join(sorted(requirement.extras))
            if key not in names:
                names.add(key)
                waiting.append(key)
    return {name for name, _ in names}


def licences_of(component: dict) -> list:
    "What a component says about its licence."
    words = []
    for entry in component.get("licenses", ()):
        licence = entry.get("license", {})
        words.append(entry.get("expression") or licence.get("id") or licence.get("name", ""))
    return sorted({word for word in words if word != "License :: OSI Approved"})


def allowed_expression(words: str, allowed: set) -> bool:
    "Does an SPDX expression leave a choice that is allowed throughout?"
    from license_expression import Licensing

    def judge(part):
        if hasattr(part, "license_symbol"):  # with an exception, which only adds rights
            return part.license_symbol.key in allowed
        if hasattr(part, "key"):
            return part.key in allowed
        return (any if part.operator.strip() == "OR" else all)(map(judge, part.args))

    return judge(Licensing().parse(words))


def refused_licences(document: dict, policy: dict, shipped: set) -> list:
    "Sentences about licences that the policy does not allow."
    from packaging.utils import canonicalize_name

    allowed, lines = set(policy["allowed"]), []
    for component in document["components"]:
        name, words = canonicalize_name(component["name"]), licences_of(component)
        words = [policy["names"].get(word, word) for word in words]
        if exception := policy["exceptions"].get(name):
            if name in shipped and exception.get("only") == "development":
                lines.append(f"{name} is allowed for development only, and the package needs it to run")
            words = [exception["licence"]]
            if exception.get("only") == "development" and name not in shipped:
                continue
        if not words:
            lines.append(f"{name} {component['version']} names no licence")
        for word in words:
            try:
                fine = allowed_expression(word, allowed)
            except Exception:  # not an expression; its own text is shown
                fine = False
            if not fine:
                lines.append(f"{name} {component['version']}: {word.splitlines()[0][:80]} is not on the list")
    return lines


def check_licences() -> tuple:
    document, shipped = components(), needed()
    lines = refused_licences(document, reviewed()["licences"], shipped)
    return (
        lines,
        f"licences: {len(document['components'])} packages, {len(shipped)} of them to run, all allowed",
    )


def bill(file: Path) -> str:
    "Write the components that the package needs to run."
    from packaging.utils import canonicalize_name

    document, shipped = components(), needed()
    kept = [one for one in document["components"] if canonicalize_name(one["name"]) in shipped]
    refs = {one["bom-ref"] for one in kept} | {"root-component"}
    document["components"] = kept
    document["dependencies"] = [
        one | {"dependsOn": [ref for ref in one.get("dependsOn", ()) if ref in refs]}
        for one in document.get("dependencies", ())
        if one["ref"] in refs
    ]
    sys.path.insert(0, str(ROOT))
    from stockpredict import __version__

    document["metadata"]["component"]["version"] = __version__
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return f"{len(kept)} components"


def check_bill() -> tuple:
    file = ROOT / "dist" / "sbom.cdx.json"
    return [], f"CycloneDX: {bill(file)} in {file.relative_to(ROOT)}"


def audit(*requirements: str) -> list:
    "What pip-audit says about pinned packages: its list of dependencies."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pinned.txt"
        file.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        words = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json", "-r", file]
        command = [tool("pip-audit"), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        return []
    return json.loads(done.stdout)["dependencies"]


def check_vulnerabilities(online: bool = False) -> tuple:
    if not any(one.get("vulns") for one in audit("jinja2==3.0.0")):  # known to have some
        reply = "pip-audit: NOT CHECKED, the advisories of the package index cannot be reached from here"
        return ([reply] if online else []), reply
    known = {one["id"] for one in reviewed().get("vulnerabilities", ())}
    pinned = [f"{one['name']}=={one['version']}" for one in components()["components"] if "purl" in one]
    lines = [
        f"{one['name']} {one['version']}: {bug['id']}, mended in {', '.join(bug['fix_versions']) or 'none'}"
        for one in audit(*pinned)
        for bug in one.get("vulns", ())
        if not known & {bug["id"], *bug.get("aliases", ())}
    ]
    return lines, f"pip-audit: no advisory on {len(pinned)} packages"


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = ("code", "secrets", "licences", "vulnerabilities", "sbom", "all")
    ask.add_argument("what", choices=what)
    ask.add_argument("file", nargs="?", type=Path)
    ask.add_argument("--update", action="store_true")
    ask.add_argument("--online", action="store_true")
    args = ask.parse_args()
    if args.what == "sbom" and args.file:
        print(bill(args.file.resolve()))
        return 0
    checks = {
        "code": check_code,
        "secrets": lambda: check_secrets(args.update),
        "licences": check_licences,
        "vulnerabilities": lambda: check_vulnerabilities(args.online),
        "sbom": check_bill,
    }
    wanted = list(checks) if args.what == "all" else [args.what]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda name: checks[name](), wanted))
    for lines, fine in answers:
        print("\n".join(lines) if lines else fine)
    return int(any(lines for lines, _ in answers))


if __name__ == "__main__":
    sys.exit(main())

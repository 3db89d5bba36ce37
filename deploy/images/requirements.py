"""The requirements of one image, out of pyproject.toml:

    python deploy/images/requirements.py reader|engine|worker|notebooks [FOLDER]

FOLDER holds pyproject.toml and reader.txt (default: those of this checkout). Ranges are those of the package;
`pip install -c constraints.txt` picks the one version each.
"""

import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = {"worker": ("dask", "s3"), "notebooks": ("dask", "s3")}
# Beside them the driver of a PostgreSQL that MLflow uses, and JupyterLab in the range of the extra `dev`.
ALSO = {"worker": ["psycopg[binary]>=3.3,<4"], "notebooks": ["psycopg[binary]>=3.3,<4", "jupyterlab"]}


def name_of(requirement: str) -> str:
    "The name of a distribution, as every index writes it."
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def reader_names(file: Path) -> list[str]:
    "The names in reader.txt."
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return [name_of(line) for line in lines if line]


def requirements(target: str, project: Path, readers: Path) -> list[str]:
    "The requirements of an image, sorted."
    table = tomllib.loads(project.read_text())["project"]
    chosen = list(table["dependencies"])
    if target == "reader":
        names = set(reader_names(readers))
        return sorted(line for line in chosen if name_of(line) in names)
    optional = table["optional-dependencies"]
    for extra in EXTRAS.get(target, ()):
        chosen += optional[extra]
    by_name = {name_of(line): line for line in optional["dev"]}
    return sorted(set(chosen + [by_name.get(line, line) for line in ALSO.get(target, [])]))


if __name__ == "__main__":
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    project, readers = (
        (folder / "pyproject.toml", folder / "reader.txt")
        if folder
        else (HERE.parents[1] / "pyproject.toml", HERE / "reader.txt")
    )
    print(*requirements(sys.argv[1], project, readers), sep="\n")

"""A real PostgreSQL of its own, on a spare loopback port, for every test that needs one."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import patience
import pytest
from live_redis import spare_port


def postgres_programs() -> Path | None:
    result = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(p) for p in [shutil.which("initdb")] if p
    ]
    return result[-1].parent if result else None


class Postgres:
    "A server of its own: data in a temporary folder, trust on loopback, no fsync because it is thrown away."

    def __init__(self, bin: Path):
        self.bin = bin
        self.port = spare_port()
        self.place = Path(tempfile.mkdtemp(prefix="pg"))
        self.count = 0
        self.user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.getuid() == 0 else []
        )
        if self.user:
            shutil.chown(self.place, "postgres", "postgres")
        self.run(
            "initdb",
            "-D",
            self.place / "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        )
        how = (
            f"-h 127.0.0.1 -p {self.port} -k {self.place} -c fsync=off -c synchronous_commit=off -c "
            "max_connections=200"
        )
        self.run(
            "pg_ctl",
            "-D",
            self.place / "data",
            "-w",
            "-t",
            "60",
            "-o",
            how,
            "-l",
            self.place / "log",
            "start",
        )

    def run(self, program, *args):
        patience.run(
            [*self.user, str(self.bin / program), *map(str, args)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.place,
        )

    def database(self) -> str:
        self.count += 1
        name = f"lake{self.count}"
        self.run(
            "psql", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-qc", f"CREATE DATABASE {name}"
        )
        return f"postgres:host=127.0.0.1 port={self.port} user=postgres dbname={name}"

    def stop(self):
        subprocess.run(
            [*self.user, str(self.bin / "pg_ctl"), "-D", str(self.place / "data"), "-m", "immediate", "stop"],
            capture_output=True,
            cwd=self.place,
        )
        shutil.rmtree(self.place, ignore_errors=True)


def start_postgres():
    "A running server; where its programs are absent the test says so, and fails in CI."
    if (bin := postgres_programs()) is None:
        why = "PostgreSQL's programs are not installed; .ci/services installs them."
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return Postgres(bin)

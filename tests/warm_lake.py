"""Loaded by the fork server of `warm`: DuckDB's extensions, whose signatures are checked once."""

from stockpredict.lake.connection import open_duckdb

open_duckdb(["ducklake", "sqlite_scanner"]).close()

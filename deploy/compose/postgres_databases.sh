#!/bin/sh
# One database and one user each for the lake's catalog, Prefect and MLflow; names and passwords from a secret.
set -eu
while read -r name password; do
  psql --set ON_ERROR_STOP=1 --set name="$name" --set password="$password" --username postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT, TEMPORARY ON DATABASE :"name" FROM PUBLIC;
SQL
done </run/secrets/postgres_databases

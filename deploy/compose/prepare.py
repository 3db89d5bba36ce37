"""Keys, certificates and passwords for compose.yaml, in a folder that only you can enter:

    python deploy/compose/prepare.py [FOLDER]        (deploy/compose/secrets by default)

A file that is there stays. To change a secret, remove its file and what follows from it (settings.ini and the
lists of users), run this again, and start the services anew. Each certificate is good for 400 days.
"""

import datetime
import hashlib
import os
import secrets
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DATABASES = ("lake", "prefect", "mlflow")
AUTHORITY = "/run/secrets/authority"

# What the service does with Redis: streams, tables, counters, scripts and the figures of the server. It can
# neither change the server nor read the keys of others.
ACL = """\
user default off
user probe on nopass +ping
user stockpredict on #{hashed} ~stockpredict:* +@read +@write +@connection +@scripting +@stream \
+@transaction -@dangerous +info +time
"""

SETTINGS = """\
# Addresses of the services in compose.yaml, with their passwords. Other settings go here, too.
[storage]
catalog = postgres:host=postgres dbname=lake user=lake password={lake} {trust}
data_path = s3://lake/bars
mlflow_uri = http://mlflow:5000

[store]
redis_url = {redis}

[stream]
redis_url = {redis}

[serving]
redis_url = {redis}

[access]
required = always

[backup]
target = s3://backup/desk
"""


def written(folder: Path, name: str, text: str) -> str:  # what the file holds
    "Write a file that is not there yet. Any user of a container may read it; the folder keeps out others."
    path = folder / name
    if not path.exists():
        path.write_text(text)
        path.chmod(0o444)
    return path.read_text().strip()


def signed(name: str, key, issuer=None, issuer_key=None) -> x509.Certificate:
    "A certificate for a host, or, without an issuer, for an authority."
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    days = 400 if issuer else 3650
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer:
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost")])
        certificate = certificate.add_extension(names, critical=False)
    return certificate.sign(issuer_key or key, hashes.SHA256())


def pem(key) -> str:
    "A private key as text."
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, no_password).decode()


def certificates(folder: Path, hosts: tuple[str, ...]):
    "An authority of this installation and one certificate a host; the authority's key is not kept."
    wanted = [folder / f"{name}.{kind}" for name in hosts for kind in ("pem", "key")]
    if all(path.exists() for path in (*wanted, folder / "authority.pem")):
        return
    for path in (*wanted, folder / "authority.pem"):
        path.unlink(missing_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = signed("stockpredict compose", authority_key)
    text = serialization.Encoding.PEM
    written(folder, "authority.pem", authority.public_bytes(text).decode())
    for name in hosts:
        key = ec.generate_private_key(ec.SECP256R1())
        written(
            folder, f"{name}.pem", signed(name, key, authority, authority_key).public_bytes(text).decode()
        )
        written(folder, f"{name}.key", pem(key))


def password(folder: Path, name: str) -> str:
    "A random password in a file."
    return written(folder, name, secrets.token_urlsafe(32) + "\n")


def prepare(folder: Path):
    "Write what is missing."
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    certificates(folder, ("redis", "postgres"))
    for name in ("postgres_password", "s3_password", "grafana_password", "jupyter_token"):
        password(folder, name)
    written(folder, "s3_user", "stockpredict\n")
    redis = password(folder, "redis_password")
    written(folder, "redis.acl", ACL.format(hashed=hashlib.sha256(redis.encode()).hexdigest()))
    users = {name: password(folder, f"{name}_password") for name in DATABASES}
    written(folder, "postgres_databases", "".join(f"{name} {word}\n" for name, word in users.items()))
    at = {name: f"{name}:{word}@postgres:5432/{name}" for name, word in users.items()}
    written(
        folder,
        "mlflow_database",
        f"postgresql+psycopg://{at['mlflow']}?sslmode=verify-full&sslrootcert={AUTHORITY}\n",
    )
    written(
        folder,
        "prefect_database",
        f"postgresql+asyncpg://{at['prefect']}?ssl=verify-full\n",
    )
    trust = f"sslmode=verify-full sslrootcert={AUTHORITY}"
    redis_url = f"rediss://stockpredict:{redis}@redis:6379/0?ssl_ca_certs={AUTHORITY}"
    written(folder, "settings.ini", SETTINGS.format(lake=users["lake"], redis=redis_url, trust=trust))
    written(folder, "prometheus_key", "\n")
    (folder / "prometheus_key").chmod(0o644)


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "secrets"
    prepare(place)
    print(f"{len(list(place.iterdir()))} files in {place}")

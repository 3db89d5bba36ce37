"""nginx with the files of `deploy/nginx`, on spare ports of this machine: for the tests of the edge, and for
`benchmarks/rolling.py`."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import patience
import psutil

FILES = Path(__file__).parents[1] / "deploy" / "nginx"
NAME = "forecasts.example"
MAIN = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes {workers}; {user}
events {{ worker_connections 512; }}
http {{
    log_format tests '"$request" $status $upstream_addr';
    access_log {folder}/access.log tests; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/conf.d/*.conf;
}}
"""


def nginx_program() -> str:
    "Where nginx is; empty when it is not installed."
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    return program if Path(program).exists() else ""


def self_made_certificate(folder):
    "A certificate for localhost, valid for a day."
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(1))
    builder = builder.not_valid_after(now + timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


def replaced(text: str, changes: dict) -> str:
    "A file of `deploy/nginx` with ports and paths of this machine; each of them has to be there."
    for old, new in changes.items():
        assert old in text, f"{old} is not there any more"
        text = text.replace(old, str(new))
    return text


def upstream_text(readers: list, engines: list) -> str:
    "The file of the upstreams with these ports in place of its servers."
    text = (FILES / "stockpredict-upstream.conf").read_text()
    for name, ports in (("readers", readers), ("engine", engines)):
        lines = "".join(f"    server 127.0.0.1:{port} max_fails=0;\n" for port in ports)
        block = re.compile(
            rf"(upstream stockpredict_{name} {{\n.*?)(?:    #[^\n]*\n)*(?: +server [^\n]*\n)+", re.S
        )
        text, count = block.subn(rf"\g<1>{lines}", text)
        assert count == 1
    return text


class Edge:
    "nginx in a folder of its own; `with` starts and stops it."

    def __init__(self, folder, ports, readers, engines=(), workers=1, changes=None):
        self.folder, (self.secure, self.plain) = Path(folder), ports
        (self.folder / "conf.d").mkdir()
        self.cert, key = self_made_certificate(self.folder)
        changes = (changes or {}) | {
            "listen 443": f"listen 127.0.0.1:{self.secure}",
            "listen 80": f"listen 127.0.0.1:{self.plain}",
            f"{NAME};": "localhost;",
            f"/etc/ssl/{NAME}/cert.pem": self.cert,
            f"/etc/ssl/{NAME}/key.pem": key,
        }
        text = replaced((FILES / "stockpredict.conf").read_text(), changes)
        (self.folder / "conf.d" / "stockpredict.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""
        main = MAIN.format(folder=self.folder, user=user, workers=workers)
        (self.folder / "nginx.conf").write_text(main)
        self.name(readers, engines)

    def name(self, readers, engines=()):
        "Write the services behind the edge; they count at the next start or reload."
        target = self.folder / "conf.d" / "stockpredict-upstream.conf"
        target.with_suffix(".new").write_text(upstream_text(readers, engines or readers))
        target.with_suffix(".new").rename(target)

    def command(self, *more) -> list:
        log = str(self.folder / "error.log")
        return [
            nginx_program(),
            "-p",
            str(self.folder),
            "-c",
            str(self.folder / "nginx.conf"),
            "-e",
            log,
            *more,
        ]

    def workers(self) -> set:
        "The workers that accept connections."
        pids = set()
        for child in psutil.Process(self.process.pid).children():
            try:
                pids |= {child.pid} if "shutting down" not in " ".join(child.cmdline()) else set()
            except psutil.Error:
                continue  # it has just ended
        return pids

    def reload(self) -> float:
        "Check the files and read them again; seconds until new workers have taken over."
        begun, before = time.monotonic(), self.workers()
        subprocess.run(self.command("-t", "-q"), check=True)
        self.process.send_signal(signal.SIGHUP)
        patience.wait_until(lambda: self.workers() - before and not self.workers() & before, self.process)
        return time.monotonic() - begun

    def __enter__(self):
        from served_desk import accepts

        self.process = subprocess.Popen(self.command(), preexec_fn=patience.die_with_parent)
        patience.wait_until(lambda: accepts(self.secure), self.process)
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()

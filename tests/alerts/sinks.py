"""Receivers of alerts that really listen: a webhook that misbehaves by its path, and a mail server."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.taken.append((self.path, self.headers.get("X-Alert-Id"), body))
        getattr(self, "answer_" + self.path.split("/")[1].replace("-", "_"), self.answer_taken)()

    do_GET = do_POST

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_taken(self):
        self.answer(200)

    def answer_fails(self):
        self.answer(500, b"https://secret.example/token is broken")

    def answer_twice_failing(self):
        self.answer(500 if len(self.server.taken) <= 2 else 200)

    def answer_busy(self):
        self.answer(429, Retry_After="900")

    def answer_moved(self):
        self.answer(307, Location=self.server.elsewhere)

    def answer_answers_twice(self):
        self.answer(200)
        self.answer(500)

    def answer_hangs(self):
        self.server.released.wait()

    def answer_trickles(self):
        try:
            while not self.server.released.is_set():
                self.wfile.write(b"H")
                time.sleep(0.05)
        except OSError:
            pass

    def answer_endless(self):
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.released.is_set():
                self.wfile.write(b"x" * 65_536)
        except OSError:
            self.server.ended.set()


class Sink(ThreadingHTTPServer):
    "A webhook; its path says what it does with a message."

    daemon_threads, block_on_close = True, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken, self.elsewhere = [], ""
        self.released, self.ended = threading.Event(), threading.Event()

    @property
    def place(self):
        return f"127.0.0.1:{self.server_port}"

    def ids(self):
        return [name for _, name, _ in self.taken]

    def messages(self):
        return [json.loads(body) for _, _, body in self.taken]


@contextmanager
def webhook():
    "A webhook that listens."
    sink = Sink()
    threading.Thread(target=sink.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield sink
    finally:
        sink.released.set()
        sink.shutdown()
        sink.server_close()


@contextmanager
def mail_server():
    "A mail server that listens; its mails are in `mails`."
    from aiosmtpd.controller import Controller

    class Mails:
        def __init__(self):
            self.mails = []

        async def handle_DATA(self, server, session, envelope):
            self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
            return "250 taken"

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    handler = Mails()
    controller = Controller(handler, hostname="127.0.0.1", port=port, ready_timeout=120)
    controller.start()
    handler.place = f"127.0.0.1:{port}"
    options = "smtp=127.0.0.1&mode=insecure&from=desk@desk.example&to=anna@desk.example"
    handler.url = f"mailto://desk.example:{port}/?{options}"
    try:
        yield handler
    finally:
        controller.stop()

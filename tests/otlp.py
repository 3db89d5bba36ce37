"""A collector of traces for tests: a real HTTP server that reads the protobuf of OTLP."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Span:
    service: str  # name of the process that sent it
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict
    failed: bool


class Receiver:
    "What has arrived, and where."

    def __init__(self, server):
        self.server, self.spans, self.requests = server, [], 0
        self.url = f"http://127.0.0.1:{server.server_port}"

    def read(self, body):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.requests += 1
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            own = {a.key: a.value.string_value for a in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                values = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                ids = [raw.hex() for raw in (span.trace_id, span.span_id, span.parent_span_id)]
                one = Span(own["service.name"], span.name, *ids, values, span.status.code == 2)
                self.spans.append(one)

    def named(self, name):
        return [span for span in list(self.spans) if span.name == name]

    def chain(self, span):
        "A span and all above it, by name, as far as they have arrived."
        known, names = {span.id: span for span in list(self.spans)}, []
        while span:
            names.append(span.name)
            span = known.get(span.parent)
        return names


@contextmanager
def otlp_receiver():
    "A collector on a spare port."

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces" and "protobuf" in self.headers["content-type"]
            receiver.read(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()

"""A chat server for tests: the longer answer wins, and it fails in every way that it is told to."""

import http.server
import json
import re
import socket
import threading
import time
from contextlib import contextmanager


class Server(http.server.ThreadingHTTPServer):
    """Speaks /v1/chat/completions: the longer answer wins. `faults` come first, one a request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.authorizations = [], [], []
        self.reply = self.longer_wins

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @staticmethod
    def longer_wins(text):
        a, b = (re.search(rf"<answer_{x}>\n(.*?)\n</answer_{x}>", text, re.S)[1] for x in "AB")
        return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "C"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append(body)
        server.authorizations.append(self.headers["Authorization"])
        fault = server.faults.pop(0) if server.faults else None
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hang":
            time.sleep(1.0)
        elif fault == "nonsense":
            self.answer(200, {"hello": "there"})
        elif isinstance(fault, int):
            # Servers do quote what they were sent.
            quoted = f"bad request with {self.headers['Authorization']}"
            code = "insufficient_quota" if fault == 499 else "code"
            status = 429 if fault == 499 else fault
            self.answer(status, {"error": {"message": quoted, "code": code}}, {"Retry-After": "0"})
        else:
            text = server.reply(body["messages"][0]["content"])
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
            choice["message"]["content"] = text
            usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
            head = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
            self.answer(200, {**head, "choices": [choice], "usage": usage})

    def answer(self, status, value, headers=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(data)} | (
            headers or {}
        )
        for name, content in headers.items():
            self.send_header(name, str(content))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def judge_server():
    """A running `Server`."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()

"""Speaks as much of llama-server's HTTP as a benchmark uses: a stand-in at the process boundary.

Not a model: it says "word " as often as it is asked to. ``--refuse`` ends it at once.
"""

import argparse
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200 if self.path in ("/health", "/v1/models") else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        answer = self._native if self.path == "/completion" else self._openai
        for event in answer(asked):
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def _native(self, asked):
        count = asked["n_predict"]
        for n in range(1, count + 1):
            time.sleep(0.001)
            yield json.dumps({"content": " word", "stop": False, "tokens_predicted": n})
        yield json.dumps({"content": "", "stop": True, "tokens_predicted": count})

    def _openai(self, asked):
        for _ in range(asked["max_tokens"]):
            yield json.dumps({"choices": [{"text": " word", "finish_reason": None}]})
        yield json.dumps({"choices": [{"text": "", "finish_reason": "length"}]})
        yield "[DONE]"


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--refuse")
options, _ = parser.parse_known_args()
if options.refuse:
    sys.exit(options.refuse)
ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()

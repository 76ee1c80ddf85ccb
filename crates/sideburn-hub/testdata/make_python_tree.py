"""Writes python_tree.txt: the cache that Python's huggingface_hub makes of the repository of tests/hub/played.rs.

    pip install huggingface_hub==2.4.0
    python make_python_tree.py

It asks a server of its own on this machine.
"""

import hashlib
import os
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ID = "someone/tiny-t5"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WANTED = [
    "config.json", "model.safetensors", "added_tokens.json", "chat_template.jinja", "generation_config.json", "merges.txt",
    "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
]
FILES = {
    "config.json": b'{"model_type": "t5"}\n',
    "generation_config.json": b"{}",
    "model.safetensors": bytes(at % 251 for at in range(300_000)),
    "tokenizer.json": b'{"version": "1.0"}\n',
}


class Played(BaseHTTPRequestHandler):
    def answer(self):
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        content = FILES.get(name)
        if content is None:
            self.send_response(404)
            self.send_header("x-error-code", "EntryNotFound")
        else:
            self.send_response(200)
            is_large = len(content) > 1000
            blob = content if is_large else b"blob %d\0" % len(content) + content
            etag = (hashlib.sha256 if is_large else hashlib.sha1)(blob).hexdigest()
            self.send_header("etag", f'"{etag}"')
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("content-length", str(len(content or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    do_GET = do_HEAD = answer

    def log_message(self, *_):
        pass


def lines(root):
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_symlink():
            yield f"{name} -> {os.readlink(path)}"
        elif path.is_file():
            yield f"{name} {path.stat().st_size}"


server = ThreadingHTTPServer(("127.0.0.1", 0), Played)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
os.environ["HF_HOME"] = tempfile.mkdtemp()

from huggingface_hub import hf_hub_download  # noqa: E402 (it reads the environment)
from huggingface_hub.errors import EntryNotFoundError  # noqa: E402

with tempfile.TemporaryDirectory() as cache:
    for name in WANTED:
        try:
            hf_hub_download(ID, name, cache_dir=cache)
        except EntryNotFoundError:
            pass
    tree = sorted(lines(Path(cache)))
Path(__file__).with_name("python_tree.txt").write_text("\n".join(tree) + "\n")

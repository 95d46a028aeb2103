"""A model hub on loopback for the unmodified huggingface_hub: config.json, safetensors by ranges; counts what it serves.

The weights themselves do not exist: a read beyond a file's header fails the test that asked for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
READ = """
import json, sys
from bruno.errors import BrunoError
from bruno.runs.fit_report import known_of
from bruno.runs.stored import read_stored
for name in sys.argv[1:]:
    try:
        known = known_of(read_stored(name))
        print(json.dumps({"known": known.model_dump(mode="json"), "torch": "torch" in sys.modules}))
    except BrunoError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
"""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ModelHub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        size = len(body) if length is None else length
        for name, value in {"Content-Length": str(size), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.hub.served[self.path.rpartition("/")[2]] += len(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+)(?:/(?:resolve|revision)/[^/]+(?:/(.*))?)?", self.path)
        name, path = match.groups() if match else ("", None)
        files = self.hub.models.get(name)
        if files is None:
            return self.answer(401, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if path is None:
            siblings = [{"rfilename": each} for each in files]
            body = {"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": siblings}
            return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        if name in self.hub.gated:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if path not in files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        return self.file(*files[path])

    def file(self, content: bytes, absent: int) -> None:
        """`content` followed by `absent` bytes that are not there."""
        total = len(content) + absent
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if not asked:
            if absent and self.command == "GET":
                return self.answer(500)
            return self.answer(200, content, total if self.command == "HEAD" else None, **headers)
        first, last = int(asked[1]), min(int(asked[2]), total - 1)
        body = content[first : last + 1].ljust(last + 1 - first, b"\0")
        return self.answer(206, body, Content_Range=f"bytes {first}-{last}/{total}", **headers)


class ModelHub:
    """The server; `models` maps a repository to its files: what they begin with, and how many bytes follow."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.models: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.gated: set[str] = set()
        self.served: Counter[str] = Counter()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, url: str = "") -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "BRUNO_"))}
        own = {"HF_ENDPOINT": url or self.url, "HF_HOME": str(self.home / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return {**kept, **own, "HOME": str(self.home), "BRUNO_HOME": str(self.home / "bruno"), "NO_PROXY": "127.0.0.1"}

    def read(self, *names: str, url: str = "") -> list[dict]:
        """What another process, whose hub this is, knows of each model afterwards."""
        done = subprocess.run(
            [sys.executable, "-c", READ, *names], capture_output=True, text=True, check=True, env=self.environment(url)
        )
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

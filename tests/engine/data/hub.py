"""A hub on loopback that the unmodified `datasets` and `huggingface_hub` talk to, and counts every byte it serves; and
a process that reads prompts from it.

Speaks the endpoints a data set is read through: info, auth-check, tree, paths-info and resolve with ranges. Gated and
missing repositories answer as the hub does (status and `X-Error-Code`).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
ROWS = 20_000
CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: en/test-*
- config_name: fr
  data_files:
  - split: train
    path: fr/train-*
---
A data set for tests.
"""

WORKER = """
import json, sys
from bruno.engine.data.check import check_source
from bruno.engine.data.prompts import Source, read
from bruno.errors import InputError
for line in sys.stdin:
    request = json.loads(line)
    try:
        source = Source.parse(request["source"])
        found = check_source(source) if request["check"] else read(source)
        answer = {"prompts": found, "heavy": sorted({"torch", "datasets"} & set(sys.modules))}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


def row(number: int) -> str:
    """The prompt of one row: about 2.7 kB that do not compress much."""
    return f"prompt {number} {base64.b64encode(random.Random(number).randbytes(2000)).decode()}"


def repositories() -> dict[str, dict[str, bytes]]:
    """Repository -> path -> content: the same rows in two shards of about 27 MB as lines, as compressed lines (as C4
    has them) and as parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    half = ROWS // 2
    lines: dict[str, bytes] = {"README.md": CARD.encode()}
    packed: dict[str, bytes] = {"README.md": b"# packed"}
    columns: dict[str, bytes] = {"README.md": b"# columns"}
    for shard in (0, 1):
        texts = {number: row(number) for number in range(shard * half, (shard + 1) * half)}
        content = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in texts.items()).encode()
        lines[f"en/train-{shard}.jsonl"] = content
        packed[f"train-{shard}.json.gz"] = packed.get("train-0.json.gz") or gzip.compress(content, 1)
        buffer = io.BytesIO()
        pq.write_table(pa.table({"id": list(texts), "text": list(texts.values())}), buffer, row_group_size=500)
        columns[f"train-{shard}.parquet"] = buffer.getvalue()
    lines["en/test-0.jsonl"] = b"".join(json.dumps({"id": n, "text": f"test {n}"}).encode() + b"\n" for n in range(30))
    lines["fr/train-0.jsonl"] = b'{"text": "un"}\n{"text": "deux"}\n'
    script = {"README.md": b"# script", "script.py": b"raise SystemExit('ran')", "train.jsonl": b'{"text": "x"}\n'}
    gated = {"README.md": b"# gated", "train.jsonl": b'{"text": "secret"}\n'}
    return {
        "owner/lines": lines,
        "owner/packed": packed,
        "owner/columns": columns,
        "owner/gated": gated,
        "owner/script": script,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for begin in range(0, len(body), 65536):
            piece = body[begin : begin + 65536]
            try:
                self.wfile.write(piece)
            except OSError:  # the reader has what it wanted
                self.close_connection = True
                return
            if "/resolve/" in self.path:
                self.hub.served[self.path] += len(piece)

    def json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        match = re.fullmatch(r"(?:/api)?/datasets/([\w.-]+/[\w.-]+)(?:/([\w-]+))?(?:/([^/]+))?(?:/(.*))?", path)
        name, verb, _, rest = match.groups() if match else ("", "", "", "")
        files = self.hub.repositories.get(name)
        if files is None:
            return self.reply(401, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if name == "owner/gated" and (verb in ("auth-check", "tree") or (verb == "resolve" and rest != "README.md")):
            return self.reply(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if verb == "resolve":
            return self.resolve(files.get(rest or ""), rest or "")
        if verb == "tree":
            return self.tree(files, rest or "", "recursive=true" in self.path.lower())
        if verb == "auth-check":
            return self.json({})
        return self.json(self.info(name, files))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        name = "/".join(self.path.split("/")[3:5])
        files = self.hub.repositories.get(name, {})
        try:
            wanted = json.loads(body)["paths"]
        except ValueError:
            from urllib.parse import parse_qs

            wanted = parse_qs(body)["paths"]
        found = []
        for path in [wanted] if isinstance(wanted, str) else wanted:
            if path in files:
                found.append(self.entry(path, files[path]))
            elif any(file.startswith(f"{path}/") for file in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40})
        self.json(found)

    def entry(self, path: str, content: bytes) -> dict:
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def info(self, name: str, files: dict[str, bytes]) -> dict:
        import yaml

        card = yaml.safe_load(files["README.md"].decode().split("---")[1]) if name == "owner/lines" else {}
        return {
            "id": name,
            "sha": COMMIT,
            "private": False,
            "gated": "auto" if name == "owner/gated" else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": card,
            "siblings": [
                {"rfilename": path, "size": self.hub.claimed.get(name, len(content))} for path, content in files.items()
            ],
        }

    def tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        inside = {path: content for path, content in files.items() if path.startswith(f"{folder}/" if folder else "")}
        entries: dict[str, dict] = {}
        for path, content in inside.items():
            below = path[len(folder) :].strip("/")
            if "/" in below:
                name = f"{folder}/{below.split('/')[0]}".strip("/")
                entries[name] = {"type": "directory", "path": name, "oid": "0" * 40}
            if recursive or "/" not in below:
                entries[path] = self.entry(path, content)
        if not inside:
            return self.reply(404, b"{}", X_Error_Code="EntryNotFound")
        return self.json(list(entries.values()))

    def resolve(self, content: bytes | None, path: str) -> None:
        if content is None:
            return self.reply(404, b"", X_Error_Code="EntryNotFound")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self.reply(200, content, **headers)
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
        return self.reply(206, content[first : last + 1], **headers)


class Hub:
    """The server, and a worker process whose hub it is."""

    def __init__(self, home: Path) -> None:
        self.repositories = repositories()
        self.claimed: dict[str, int] = {}
        """Repository -> a size that it claims for each of its files."""
        self.served: Counter[str] = Counter()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TQDM_DISABLE": "1",
            "USE_TORCH": "0",  # `datasets` would import it, which the tests here do not need
        }
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN"):
            environment.pop(name, None)
        self.worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(home / "stderr").open("w"),
            text=True,
            env=environment,
        )

    def ask(self, source: str, *, check: bool = False) -> dict:
        """What the worker reads from a source, or finds when it only checks; `served` counts from here."""
        self.served.clear()
        assert self.worker.stdin and self.worker.stdout
        self.worker.stdin.write(json.dumps({"source": source, "check": check}) + "\n")
        self.worker.stdin.flush()
        return json.loads(self.worker.stdout.readline())

    def bytes_of_data(self) -> int:
        """How many bytes of data files were served for the last question."""
        return sum(count for path, count in self.served.items() if not path.endswith(("README.md", ".yaml")))

    def close(self) -> None:
        self.worker.terminate()
        self.worker.wait()
        self.server.shutdown()
        self.server.server_close()

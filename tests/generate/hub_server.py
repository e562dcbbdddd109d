"""As much of the Hugging Face hub as pushing one data set needs, on this machine, in memory."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """One data set, owner/name.

    Attributes:
        private: None while there is no such data set.
        files: content by path.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.private: bool | None = None
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.commits = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Request(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, value: Any, code: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        hub, body = self.server, self._body()
        if self.path == "/api/repos/create":
            if hub.private is None:
                hub.private = json.loads(body).get("visibility") == "private"
            self._answer({"url": f"{hub.address}/datasets/owner/name", "name": "owner/name"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            asked = [item["path"] for item in json.loads(body)["files"]]
            said = [{"path": path, "uploadMode": modes[path.endswith(".parquet")]} for path in asked]
            self._answer({"files": [{**one, "shouldIgnore": False} for one in said]})
        elif self.path.endswith("/lfs/objects/batch"):
            objects = [{key: item[key] for key in ("oid", "size")} for item in json.loads(body)["objects"]]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{hub.address}/put/{item['oid']}", "header": {}}}
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": "unknown"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.server
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                hub.files[value["path"]] = hub.large[value["oid"]]
        hub.commits += 1
        self._answer({"commitUrl": f"{hub.address}/datasets/owner/name/commit/{hub.sha}", "commitOid": hub.sha})

    def do_PUT(self) -> None:
        self.server.large[self.path.rsplit("/", 1)[1]] = self._body()
        self._answer({})

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        if re.fullmatch(r"/api/datasets/owner/name(/revision/\w+)?", path):
            facts = {"_id": "1", "id": "owner/name", "sha": hub.sha, "private": hub.private, "tags": []}
            self._answer({**facts, "siblings": [{"rfilename": name} for name in hub.files]})
        elif found := re.fullmatch(r"/api/datasets/owner/name/tree/\w+/?(.*)", path):
            self._tree(found[1])
        elif (found := re.fullmatch(r"/datasets/owner/name/resolve/\w+/(.*)", path)) and found[1] in hub.files:
            self._answer(hub.files[found[1]], ETag='"x"', X_Repo_Commit=hub.sha)
        else:
            self._answer({"error": "unknown"}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def _tree(self, folder: str) -> None:
        """What lies in a folder, not deeper."""
        prefix = f"{folder}/" if folder else ""
        below = {name.removeprefix(prefix): len(self.server.files[name]) for name in self.server.files}
        below = {name: size for name, size in below.items() if prefix + name in self.server.files}
        if not below:
            self._answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
            return
        found = [
            {"type": "file", "path": prefix + name, "size": size, "oid": "b" * 40}
            for name, size in below.items()
            if "/" not in name
        ]
        folders = sorted({name.split("/")[0] for name in below if "/" in name})
        self._answer([*found, *({"type": "directory", "path": prefix + name, "oid": "d" * 40} for name in folders)])

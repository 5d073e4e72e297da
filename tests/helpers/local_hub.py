"""A Hugging Face hub on this machine that takes commits and gives files back. No tests."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalHub:
    """Repositories by name, each with its files by path.

    Attributes:
        repos: Content of the files by repository and path.
        requests: Requests that were served, as (method, path).
        refuse: Whether requests that write are forbidden.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse = False
        self.address = ""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve a hub until the context ends."""
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def _send(self, code: int, content: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _json(self, value: Any, code: int = 200) -> None:
            self._send(
                code, json.dumps(value).encode(), Content_Type="application/json"
            )

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests.append((self.command, self.path))
            if self.path.startswith("/api/models/"):
                repo = "/".join(self.path.split("/")[3:5]).partition("?")[0]
                files = hub.repos.get(repo)
                if files is None:
                    self._send(404, b"", X_Error_Code="RepoNotFound")
                    return
                self._json({"id": repo, "sha": f"{len(files):040x}", "siblings": []})
                return
            repo, _, name = self.path[1:].partition("/resolve/main/")
            content = hub.repos.get(repo, {}).get(name)
            if content is None:
                self._send(
                    404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit="0" * 40
                )
                return
            self._send(
                200,
                content,
                ETag=f'"{hashlib.sha1(content).hexdigest()}"',
                X_Repo_Commit=f"{len(hub.repos[repo]):040x}",
            )

        def do_POST(self) -> None:
            hub.requests.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.refuse:
                self._json({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/repos/create":
                asked = json.loads(body)
                owner = asked.get("organization") or "me"
                repo = f"{owner}/{asked['name']}"
                hub.repos.setdefault(repo, {})
                self._json({"url": f"{hub.address}/{repo}", "name": repo})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                self._json({"files": modes})
            elif self.path == "/api/validate-yaml":
                self._json({"warnings": [], "errors": []})
            elif "/commit/" in self.path:
                repo = "/".join(self.path.split("/")[3:5])
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        content = base64.b64decode(value["content"])
                        hub.repos[repo][value["path"]] = content
                url = f"{hub.address}/{repo}/commit/{'1' * 40}"
                self._json({"success": True, "commitUrl": url, "commitOid": "1" * 40})
            else:
                self._json({"error": f"unknown {self.path}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

"""A hub in a thread, for the real client of huggingface_hub: repositories, branches, commits and files, in memory.

It speaks the endpoints that publishing and fetching ask for, and refuses as the hub does: by status and X-Error-Code.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writes"
"""The token that may write."""
READER = "hf_reads"
"""A token that may read alone."""

Files = dict[str, bytes]


@dataclass
class Repository:
    """Branches, each with its files and its commit."""

    private: bool = False
    gated: bool = False
    branches: dict[str, Files] = field(default_factory=lambda: {"main": {}})
    commits: int = 0

    def sha(self, branch: str) -> str:
        told = json.dumps([branch, self.commits, sorted(self.branches[branch])])
        return hashlib.sha1(told.encode()).hexdigest()

    def branch_of(self, revision: str) -> str | None:
        known = {name: name for name in self.branches} | {self.sha(name): name for name in self.branches}
        return known.get(revision)


@dataclass
class Hub:
    """What is there, and what was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict[str, Repository])
    asked: list[str] = field(default_factory=list[str])
    endpoint: str = ""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """The hub while the context lasts."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", url: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.url = status, code, url


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        self.state.asked.append(f"{self.command} {path}")
        try:
            parts = path.strip("/").split("/")
            if parts[0] == "api":
                self._send(200, json.dumps(self._api(parts[1:], body)).encode(), {"Content-Type": "application/json"})
            else:
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        except _Refused as refused:
            told = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            self._send(refused.status, json.dumps({"error": str(refused), "url": refused.url}).encode(), told)

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _may_write(self) -> None:
        if self._token() not in (TOKEN, READER):
            raise _Refused(401, message="Invalid username or password.")
        if self._token() == READER:
            raise _Refused(403, message="Forbidden: you need the role write.")

    def _repository(self, name: str) -> Repository:
        found = self.state.repositories.get(name)
        if found is None or (found.private and not self._token()):
            raise _Refused(401 if not self._token() else 404, "RepoNotFound", "Repository not found")
        if found.gated and self._token() != TOKEN:
            raise _Refused(403, "GatedRepo", "Access to this repository is restricted")
        return found

    def _branch(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self._repository(name)
        branch = repository.branch_of(revision)
        if branch is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, branch

    def _api(self, parts: list[str], body: bytes) -> object:
        if parts == ["repos", "create"]:
            self._may_write()
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.state.repositories:
                raise _Refused(409, message="You already created this model repo", url=f"{self.state.endpoint}/{name}")
            private = asked.get("private") or asked.get("visibility") == "private"
            self.state.repositories[name] = Repository(private=bool(private))
            return {"url": f"{self.state.endpoint}/{name}", "name": name, "id": name}
        if parts == ["validate-yaml"]:
            return {"errors": [], "warnings": []}
        name, rest = "/".join(parts[1:3]), parts[3:]
        if not rest or rest[0] == "revision":
            repository, branch = self._branch(name, rest[1] if rest else "main")
            files = repository.branches[branch]
            siblings = [{"rfilename": file, "size": len(files[file])} for file in sorted(files)]
            return {
                "id": name, "modelId": name, "sha": repository.sha(branch), "private": repository.private,
                "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
            }  # fmt: skip
        if rest[0] == "tree":
            repository, branch = self._branch(name, rest[1])
            files = repository.branches[branch]
            return [
                {"type": "file", "path": file, "size": len(files[file]), "oid": _oid(files[file])} for file in files
            ]
        if rest[0] == "branch":
            self._may_write()
            repository = self._repository(name)
            if rest[1] in repository.branches:
                raise _Refused(409, message="Reference already exists")
            repository.branches[rest[1]] = dict(repository.branches["main"])
            return {}
        if rest[0] == "preupload":
            self._may_write()
            asked = json.loads(body)["files"]
            return {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
        if rest[0] == "commit":
            self._may_write()
            return self._commit(name, rest[1], body)
        raise _Refused(404, message=f"no such endpoint: {parts}")

    def _commit(self, name: str, revision: str, body: bytes) -> object:
        repository, branch = self._branch(name, revision)
        files = repository.branches[branch]
        for line in body.decode().splitlines():
            told = json.loads(line)
            if told["key"] == "file":
                files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            elif told["key"] == "deletedFile":
                del files[told["value"]["path"]]
        repository.commits += 1
        oid = repository.sha(branch)
        return {"success": True, "commitUrl": f"{self.state.endpoint}/{name}/commit/{oid}", "commitOid": oid}

    def _file(self, name: str, revision: str, file: str) -> None:
        repository, branch = self._branch(name, revision)
        content = repository.branches[branch].get(file)
        if content is None:
            raise _Refused(404, "EntryNotFound", f"{file} is not there")
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": repository.sha(branch), "Accept-Ranges": "bytes"}
        self._send(200, content, headers)


def _oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

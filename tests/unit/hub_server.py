"""A small Hugging Face Hub on 127.0.0.1: the routes that huggingface_hub asks, a folder as its store, faults on demand.

>>> with HubServer(folder) as hub:          # folder/owner/name/ is a repository
...     hub.gated["owner/name"] = {"a token that may read it"}
...     hub.faults["GET /api/"] = [None, 503]   # the second answer from now to such a request
"""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = re.compile(
    r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree|auth-check)(?:/(?P<rev>.+))?)?"
)
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)")


def commit_of(repo: str) -> str:
    """The newest commit of a repository; its branch is called main."""
    return hashlib.sha1(repo.encode()).hexdigest()


class HubServer:
    """The server and its faults; `asked` lists the requests as (method, path, Range header)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.gated: dict[str, set[str]] = {}  # repository: the tokens that may read it
        self.history: dict[str, Path] = {}  # an earlier commit: a folder with what the repository held then
        self.known_tokens: set[str] = set()  # of people who are on no list
        self.faults: dict[str, list[int | None]] = {}  # part of "GET /path": the next answers, None lets one pass
        self.cuts: list[int] = []  # after how many bytes the next downloads of weights break off
        self.asked: list[tuple[str, str, str | None]] = []

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process for which this is the Hub and `home` the cache; nobody is logged in."""
        settings = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))} | settings

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [
            FILE.fullmatch(path)["file"] for method, path, _ in self.asked if method == "GET" and FILE.fullmatch(path)
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # asked once, to name the calling program; about no repository
            return self.error(404)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        for part, answers in self.hub.faults.items():
            if part in f"{self.command} {path}" and answers and (status := answers.pop(0)):
                return self.error(status)
        if path == "/":
            return self.send(b"a Hub")
        asked = API.fullmatch(path) or FILE.fullmatch(path)
        if not asked or not (self.hub.folder / asked["repo"]).is_dir():
            return self.error(404 if self.token() else 401, "RepoNotFound", "Repository not found")
        repo, folder = asked["repo"], self.hub.folder / asked["repo"]
        revision, commit = asked["rev"] or "main", commit_of(asked["repo"])
        if revision in self.hub.history:
            folder, commit = self.hub.history[revision], revision
        elif revision not in {"main", commit}:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        # As on the true Hub, anybody may see what a gated repository holds; only its files are kept back.
        if repo in self.hub.gated and ("/resolve/" in path or path.endswith("/auth-check")):
            if self.token() is None:
                return self.error(401, "GatedRepo", f"Access to model {repo} is restricted. You must be authenticated.")
            if self.token() not in self.hub.gated[repo] | self.hub.known_tokens:
                return self.error(401, None, "Invalid credentials in Authorization header")
            if self.token() not in self.hub.gated[repo]:
                return self.error(403, "GatedRepo", f"Access to model {repo} is restricted. Ask for access.")
        if "/resolve/" in path:
            return self.file(folder / asked["file"], commit)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if asked["what"] == "tree":
            return self.json([_listed(file, folder) for file in files])
        siblings = [{"rfilename": str(file.relative_to(folder))} for file in files]
        return self.json({"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings})

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def file(self, file: Path, commit: str):
        if not file.is_file():
            return self.error(404, "EntryNotFound", f"Entry not found: {file.name}")
        content = file.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}
        if file.suffix == ".safetensors":  # as kept in large-file storage
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": headers["ETag"]}
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not first:
            return self.send(content, 200, headers, cut=file.suffix == ".safetensors")
        start = int(first[1])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send(content[start:], 206, headers, cut=file.suffix == ".safetensors")

    def json(self, value):
        return self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def error(self, status: int, code: str | None = None, message: str = "a fault"):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        return self.send(message.encode(), status, headers)

    def send(self, content: bytes, status: int = 200, headers: dict | None = None, cut: bool = False):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and self.hub.cuts:
            content = content[: self.hub.cuts.pop(0)]
            self.close_connection = True  # in the middle of the file
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _listed(file: Path, folder: Path) -> dict:
    """A file as the tree route lists it."""
    content = file.read_bytes()
    entry = {"type": "file", "path": str(file.relative_to(folder)), "size": len(content)}
    entry["oid"] = hashlib.sha1(content).hexdigest()
    if file.suffix == ".safetensors":
        entry["lfs"] = {"oid": _digest(content), "size": len(content), "pointerSize": 134}
    return entry

"""A hub on this machine: as much of the HTTP API of the Hugging Face Hub as its real client asks
for when models are read and written. Large files go by LFS, for Xet is switched off.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

LARGE = "*.safetensors"  # what the hub keeps as LFS
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
TOKEN = "hf_toy"


@dataclasses.dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit with these files and no others."""
        sums = [(name, hashlib.sha256(content).hexdigest()) for name, content in files.items()]
        name = hashlib.sha1(repr((len(self.commits), sorted(sums))).encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


class Hub(http.server.ThreadingHTTPServer):
    """`repos` by name. Requests that change something need TOKEN; large files do not, whose
    addresses are secrets on the real hub.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.cards: list[str] = []  # README.md that were given for validation
        self.asked: list[str] = []  # method and path of every request
        self.address = f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, folder: Path, **about: bool) -> str:
        """A model with the files of a folder; gives its commit."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        self.repos[name] = Repo(**about)
        return self.repos[name].commit(files)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *_: object) -> None: ...

    def _answer(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {unquote(path)}")
        for pattern, kind, act in ROUTES:
            match = re.fullmatch(pattern, path)
            if match is None or kind != method:
                continue
            given = {name: unquote(value) for name, value in match.groupdict().items()}
            if method == "POST" and not self._has_token():
                return self._fail(401, None, "Invalid username or password.")
            if "repo" not in given:
                return act(self, **given)
            repo = self.server.repos.get(given.pop("repo"))
            if repo is None or (repo.private and not self._has_token()):
                code = 404 if self._has_token() else 401
                return self._fail(code, "RepoNotFound", "Repository not found")
            if repo.gated:
                return self._fail(403, "GatedRepo", "Access to this model is restricted")
            return act(self, repo, **given)
        self._fail(404, None, f"the toy does not know {method} {path}")

    def _has_token(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json")

    def _fail(self, status: int, code: str | None, message: str) -> None:
        headers = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        self._send(json.dumps({"error": message}).encode(), status, **headers)

    # -- reading -----------------------------------------------------------

    def _info(self, repo: Repo, revision: str = "main") -> None:
        files = repo.files(revision)
        if files is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        names = [{"rfilename": name} for name in files]
        commit = repo.branches.get(revision, revision)
        self._json({"id": "toy", "sha": commit, "private": repo.private, "siblings": names})

    def _tree(self, repo: Repo, revision: str) -> None:
        files = repo.files(revision)
        if files is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        entries = []
        for name, content in files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
            if fnmatchcase(name, LARGE):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._json(entries)

    def _file(self, repo: Repo, revision: str, path: str) -> None:
        files = repo.files(revision)
        if files is None:
            return self._fail(404, "RevisionNotFound", "Invalid rev id")
        if path not in files:
            return self._fail(404, "EntryNotFound", "Entry not found")
        content = files[path]
        large = fnmatchcase(path, LARGE)
        tag = hashlib.sha256(content).hexdigest() if large else git_id(content)
        commit = repo.branches.get(revision, revision)
        self._send(content, ETag=f'"{tag}"', X_Repo_Commit=commit)

    # -- writing -----------------------------------------------------------

    def _create(self) -> None:
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        address = f"{self.server.address}/{name}"
        if name in self.server.repos:
            there = {"error": "You already created this model repo", "url": address}
            return self._json(there, 409)
        repo = self.server.repos[name] = Repo(private=wanted.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": address})

    def _branch(self, repo: Repo, branch: str) -> None:
        if branch in repo.branches:
            return self._fail(409, None, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def _validate(self) -> None:
        self.server.cards.append(json.loads(self.body)["content"])
        self._json({"errors": [], "warnings": []})

    def _preupload(self, repo: Repo, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if fnmatchcase(file["path"], LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, repo: Repo) -> None:
        objects = json.loads(self.body)["objects"]
        for one in objects:
            if one["oid"] not in self.server.large:
                address = f"{self.server.address}/large/{one['oid']}"
                one["actions"] = {"upload": {"href": address}}
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            return self._fail(400, None, "content and name differ")
        self.server.large[digest] = self.body
        self._json({})

    def _commit(self, repo: Repo, revision: str) -> None:
        files = dict(repo.files(revision))
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        commit = repo.commit(files, revision)
        name = next(name for name, one in self.server.repos.items() if one is repo)
        address = f"{self.server.address}/{name}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": address})


ROUTES = [
    (rf"/api/models/{REPO}", "GET", Handler._info),
    (rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", "GET", Handler._info),
    (rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", "GET", Handler._tree),
    (rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "GET", Handler._file),
    (r"/api/repos/create", "POST", Handler._create),
    (r"/api/validate-yaml", "POST", Handler._validate),
    (rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)", "POST", Handler._branch),
    (rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "POST", Handler._preupload),
    (rf"/{REPO}\.git/info/lfs/objects/batch", "POST", Handler._batch),
    (r"/large/(?P<digest>\w+)", "PUT", Handler._put),
    (rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "POST", Handler._commit),
]


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def serve(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that the client asks, with an empty cache and without a token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    running = Hub()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", running.address)
    template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(cache / "harnesses.json"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield running
    running.shutdown()
    thread.join()
    running.server_close()

"""A server here that speaks as much of the Hub's HTTP as publishing and fetching need, and fails on demand."""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session
from typer.testing import CliRunner, Result

from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert

TOKEN = "hf_SecretOfTheTests"
Files = dict[str, bytes]


def _name(number: int) -> str:
    return f"{number:040x}"


@dataclass(kw_only=True)
class Repo:
    """A repository: every commit is its files, a branch or a tag is the name of a commit."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=lambda: {_name(1): {".gitattributes": b""}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": _name(1)})
    tags: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        named = self.branches | self.tags
        return named.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> Files:
        commit = self.commit_of(revision)
        assert commit is not None
        return self.commits[commit]

    def add(self, branch: str, files: Files) -> str:
        commit = _name(len(self.commits) + 1)
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next requests whose line matches `what`."""

    what: str
    """a pattern of the method and the path: `POST .*/commit/`"""
    status: int | None
    """None: the connection is cut in the middle of the request"""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "a fault of the tests"}'


@dataclass(kw_only=True)
class FakeHub:
    """The state of the server."""

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: Files = field(default_factory=dict)
    """large files by their SHA-256"""
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """the line of every request"""
    on_request: Callable[[str], None] = lambda _: None
    url: str = ""

    def add(self, repo: str, files: Files) -> Repo:
        """A repository with these files, there from before."""
        self.repos[repo] = Repo()
        self.repos[repo].add("main", files)
        return self.repos[repo]

    def fault(self, what: str, status: int | None, **more: Any) -> None:
        self.faults.append(Fault(what=what, status=status, **more))

    def fault_for(self, line: str) -> Fault | None:
        found = next((fault for fault in self.faults if fault.times and re.match(fault.what, line)), None)
        if found:
            found.times -= 1
        return found

    def count(self, what: str) -> int:
        return sum(re.match(what, line) is not None for line in self.asked)


class _RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status, self.headers = status, {key.replace("_", "-"): value for key, value in headers.items()}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format, *args) -> None:
        pass

    def _serve(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        line = f"{self.command} {path}"
        self.hub.asked.append(line)
        self.hub.on_request(line)
        fault = self.hub.fault_for(line)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault.status is None:
            self.rfile.read(length // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.body = (
            self.rfile.read(length) if "chunked" not in self.headers.get("Transfer-Encoding", "") else self._chunks()
        )
        if fault:
            assert fault.status
            self._reply(fault.status, fault.body, **fault.headers)
            return
        try:
            self._route(path)
        except _RefusedError as refused:
            self._reply(refused.status, b"{}", **refused.headers)

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _route(self, path: str) -> None:
        for pattern, answer in _ROUTES:
            if (found := re.fullmatch(pattern, f"{self.command} {path}")) is not None:
                result = answer(self, **found.groupdict())
                if result is not None:
                    self._reply(200, json.dumps(result).encode())
                return
        raise _RefusedError(404)

    def _reply(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repo(self, repo: str, *, write: bool = False) -> Repo:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            raise _RefusedError(401, X_Error_Message="Invalid credentials in Authorization header")
        if write and not token:
            raise _RefusedError(401)
        if repo not in self.hub.repos:
            raise _RefusedError(404 if token else 401, X_Error_Code="RepoNotFound")
        if write and not repo.startswith("me/"):
            raise _RefusedError(403, X_Error_Message="you may not write here")
        return self.hub.repos[repo]

    def _at(self, repo: str, revision: str) -> tuple[str, Files]:
        found = self._repo(repo)
        if (commit := found.commit_of(revision)) is None:
            raise _RefusedError(404, X_Error_Code="RevisionNotFound")
        return commit, found.commits[commit]

    def create(self) -> Any:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            self._reply(409, json.dumps({"url": f"{self.hub.url}/{name}"}).encode())
            return None
        if self.headers.get("Authorization") == f"Bearer {TOKEN}" and not name.startswith("me/"):
            raise _RefusedError(403, X_Error_Message="you may not create here")
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        self._repo(name, write=True)
        return {"url": f"{self.hub.url}/{name}"}

    def info(self, repo: str, revision: str | None = None) -> Any:
        commit, files = self._at(repo, revision or "main")
        siblings = [{"rfilename": name} for name in files]
        return {"id": repo, "sha": commit, "private": self._repo(repo).private, "siblings": siblings}

    def tree(self, repo: str, revision: str) -> Any:
        _, files = self._at(repo, revision)
        return [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]

    def refs(self, repo: str) -> Any:
        found = self._repo(repo)

        def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in names.items()
            ]

        return {"branches": listed("heads", found.branches), "tags": listed("tags", found.tags), "converts": []}

    def branch(self, repo: str, name: str) -> Any:
        found = self._repo(repo, write=True)
        if name in found.branches:
            raise _RefusedError(409)
        found.branches[name] = found.branches["main"]
        return {}

    def tag(self, repo: str, revision: str) -> Any:
        found, name = self._repo(repo, write=True), json.loads(self.body)["tag"]
        if name in found.tags:
            raise _RefusedError(409)
        found.tags[name] = self._at(repo, revision)[0]
        return {}

    def validate(self) -> Any:
        text = json.loads(self.body)["content"]
        if "license: nonsense" in text:
            errors = {"errors": [{"message": '"license" must be one of those we know'}]}
            self._reply(400, json.dumps(errors).encode())
            return None
        return {"errors": [], "warnings": []}

    def preupload(self, repo: str, revision: str) -> Any:
        self._repo(repo, write=True)
        _, files = self._at(repo, revision)
        return {"files": [self._mode(asked["path"], files) for asked in json.loads(self.body)["files"]]}

    def _mode(self, path: str, files: Files) -> dict[str, Any]:
        large, data = path.endswith(".safetensors"), files.get(path)
        oid = None
        if data is not None:
            oid = hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0" % len(data) + data)
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid.hexdigest() if oid else None}

    def batch(self, repo: str) -> Any:
        self._repo(repo, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            actions = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}}
            objects.append(asked | ({} if asked["oid"] in self.hub.blobs else actions))
        return {"transfer": "basic", "objects": objects}

    def put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(422)
        self.hub.blobs[oid] = self.body
        return {}

    def commit(self, repo: str, revision: str) -> Any:
        found, files = self._repo(repo, write=True), dict(self._at(repo, revision)[1])
        for line in self.body.splitlines():
            kind, value = (json.loads(line)[key] for key in ("key", "value"))
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = found.add(revision, files)
        return {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit}

    def resolve(self, repo: str, revision: str, name: str) -> None:
        commit, files = self._at(repo, revision)
        if name not in files:
            raise _RefusedError(404, X_Error_Code="EntryNotFound")
        tag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        self._reply(200, files[name], **{"ETag": tag, "X-Repo-Commit": commit})


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[\w./-]+)"
_ROUTES: list[tuple[str, Callable[..., Any]]] = [
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate),
    (f"GET /api/models/{_REPO}", _Handler.info),
    (f"GET /api/models/{_REPO}/revision/{_REVISION}", _Handler.info),
    (f"GET /api/models/{_REPO}/tree/{_REVISION}", _Handler.tree),
    (f"GET /api/models/{_REPO}/refs", _Handler.refs),
    (f"POST /api/models/{_REPO}/branch/(?P<name>.+)", _Handler.branch),
    (f"POST /api/models/{_REPO}/tag/{_REVISION}", _Handler.tag),
    (f"POST /api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    (f"POST /api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    (f"POST /{_REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT /lfs/(?P<oid>[0-9a-f]+)", _Handler.put),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A Hub of the test's own at `hub.url`, without a repository."""
    state = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """Of a process that takes the server for the Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited for, which takes no time here."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def push(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """Runs `gqa-push` in this process, against the server, with the token it knows in HF_TOKEN."""
    from gqa.convert.push.cli import app

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    yield run
    close_session()


@pytest.fixture(scope="session")
def licensed(make_checkpoint: Callable[..., Path]) -> Path:
    """A multi-head checkpoint with a card that states its licence. Not to be changed."""
    path = make_checkpoint("parent")
    (path / "README.md").write_text("---\nlicense: mit\nlanguage: en\ntags:\n- theirs\n---\n\n# The original\n")
    return path


@pytest.fixture(scope="session")
def _converted(licensed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("converted") / "tiny-gqa2"
    convert(licensed, output, ConvertOptions(groups=2))
    return output


@pytest.fixture
def converted(_converted: Path, tmp_path: Path) -> Path:
    """It converted to two KV heads, to do things to."""
    import shutil

    return shutil.copytree(_converted, tmp_path / "tiny-gqa2")


@pytest.fixture(scope="session")
def token() -> str:
    return TOKEN

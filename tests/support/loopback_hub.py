"""A small Hub on 127.0.0.1, for tests that push with the unmodified clients and load what was pushed.

```python
with LoopbackHub() as hub:
    environment = hub.environment(tmp_path / "home")
    run_client(["-c", "from huggingface_hub import create_repo; create_repo('me/model')"], environment)
    hub.commit("models/me/model", {"config.json": b"{}"})  # as if somebody had edited it on the site
    hub.read("models/me/model", "config.json")
```

The clients read where the Hub is when they are imported, so they run in processes of their own. A repository is named
as in the Hub's API: `models/OWNER/NAME`, `datasets/OWNER/NAME`, `spaces/OWNER/NAME`. Everything is held in memory.
What is not there: pull requests, Xet, gated repositories, search, several pages of anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from forked import run_python
from hub_repository import Commit, HubError, Repository, StoredFile, upload_mode

ROOT = Path(__file__).parents[2]


class LoopbackHub:
    """The Hub: a context manager that listens on a free port while it is open.

    Args:
        tokens: by token, the user that it is of; users write to their own namespace, and see what is private there.

    Attributes:
        repositories: by `models/OWNER/NAME` and so on.
        lfs: by SHA-256, what LFS keeps; who knows the hash may read it, as with the Hub's signed addresses.
        requests: all that was asked for, as `METHOD /path`.
        held: requests that begin so, as `METHOD /path`, are never answered, as when a line goes dead.
    """

    def __init__(self, tokens: Mapping[str, str] | None = None) -> None:
        self.tokens = dict(tokens or {"hf_test": "me"})
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.held: str | None = None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(
        self, home: str | os.PathLike[str], token: str | None = "hf_test", offline: bool = False
    ) -> dict[str, str]:
        """The environment of a client that knows this Hub only; `home` is the folder of its caches."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
        own |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "HF_HUB_DISABLE_TELEMETRY": "1"}
        own |= {"HF_TOKEN": token} if token else {}
        return {**kept, **own, **({"HF_HUB_OFFLINE": "1"} if offline else {})}

    def commit(
        self, key: str, files: Mapping[str, bytes | None], branch: str = "main", title: str = "Edited by hand"
    ) -> str:
        """Commit files (None deletes one) as if somebody had done it on the site; returns the commit's id."""
        with self.lock:
            changes = {
                path: content if content is None else self._store(path, content) for path, content in files.items()
            }
            return self.repositories[key].add_commit(branch, changes, title).oid

    def read(self, key: str, path: str, revision: str = "main") -> bytes:
        """A file's content."""
        with self.lock:
            return self.repositories[key].file(revision, path)[1].content

    def _store(self, path: str, content: bytes) -> StoredFile:
        if upload_mode(path, content[:512], len(content)) == "regular":
            return StoredFile(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.lfs[sha256] = content
        return StoredFile(content, sha256)


def run_client(arguments: Sequence[str], environment: Mapping[str, str], path: Sequence[Path] = ()) -> str:
    """Run Python with the project, and the folders of `path`, to import from; returns what it printed.

    Raises:
        AssertionError: it failed; the message is what it said.
    """
    done = run_python(arguments, environment, [*path, ROOT])
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@dataclass
class _Answer:
    content: Any = b""  # bytes, or what JSON can say
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"  # connections are kept, so every answer has its length
    disable_nagle_algorithm = True  # or every answer waits 40 ms

    def _handle(self) -> None:
        url = urlsplit(self.path)
        body = self._body()
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        request = f"{self.command} {url.path}"
        self.hub.requests.append(request)
        if self.hub.held and request.startswith(self.hub.held):
            self.connection.recv(1)  # until the client hangs up
            self.close_connection = True
            return
        with self.hub.lock:
            try:
                answer = self._answer("GET" if self.command == "HEAD" else self.command, parts, query, body)
            except HubError as error:
                answer = _Answer({"error": str(error)}, error.status, error.headers)
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _answer(self, method: str, parts: list[str], query: dict[str, str], body: bytes) -> _Answer:
        hub = self.hub
        match (method, *parts):
            case ("GET", "api", "whoami-v2"):
                return _Answer({"type": "user", "name": self._user(must=True), "fullname": "", "orgs": []})
            case ("POST", "api", "validate-yaml"):
                return self._validate(json.loads(body)["content"])
            case ("POST", "api", "repos", "create"):
                return self._create(json.loads(body))
            case ("DELETE", "api", "repos", "delete"):
                asked = json.loads(body)
                key = f"{asked.get('type') or 'model'}s/{asked.get('organization') or self._user()}/{asked['name']}"
                del hub.repositories[self._repository(key, write=True).key]
                return _Answer({})
            case ("PUT", "lfs", oid):
                if hashlib.sha256(body).hexdigest() != oid:
                    raise HubError(400, f"the content is not that of {oid}")
                hub.lfs[oid] = body
                return _Answer()
            case ("GET", "lfs", oid) if oid in hub.lfs:
                return _Answer(hub.lfs[oid], headers={"ETag": f'"{oid}"'})
            case ("POST", "api", "lfs-verify") if json.loads(body)["oid"] in hub.lfs:
                return _Answer({})
            case (_, "api", "models" | "datasets" | "spaces" as kind, owner, name, *rest):
                write = method in ("PUT", "DELETE") or (method == "POST" and rest[:1] != ["paths-info"])
                return self._repository_api(
                    method, self._repository(f"{kind}/{owner}/{name}", write), rest, query, body
                )
        prefix, place = (parts[0], parts[1:]) if parts[0] in ("datasets", "spaces") else ("models", parts)
        match (method, *place):
            case ("POST", owner, name, "info", "lfs", "objects", "batch"):
                self._repository(f"{prefix}/{owner}/{name.removesuffix('.git')}", write=True)
                upload = {"verify": {"href": f"{hub.url}/api/lfs-verify"}}
                objects = [
                    {**asked, "actions": {**upload, "upload": {"href": f"{hub.url}/lfs/{asked['oid']}"}}}
                    if asked["oid"] not in hub.lfs
                    else asked
                    for asked in json.loads(body)["objects"]
                ]
                return _Answer({"transfer": "basic", "objects": objects})
            case ("GET", owner, name, "resolve", revision, *path):
                commit, file = self._repository(f"{prefix}/{owner}/{name}").file(revision, "/".join(path))
                headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
                if file.sha256 is None:
                    return _Answer(file.content, headers=headers)
                # Under another name, as with the Hub's own storage: clients read the headers before they go there.
                store = hub.url.replace("127.0.0.1", "localhost")
                headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
                return _Answer(status=302, headers=headers | {"Location": f"{store}/lfs/{file.sha256}"})
        raise HubError(404, f"the loopback Hub knows nothing of {method} /{'/'.join(parts)}")

    def _repository_api(
        self, method: str, repository: Repository, rest: list[str], query: dict[str, str], body: bytes
    ) -> _Answer:
        expand = query.get("expand") == "true"
        match (method, *rest):
            case ("GET",):
                return _Answer(repository.info("main"))
            case ("GET", "revision", revision):
                return _Answer(repository.info(revision))
            case ("GET", "tree", revision, *folder):
                return _Answer(repository.tree(revision, "/".join(folder), query.get("recursive") == "true", expand))
            case ("POST", "paths-info", revision):
                asked = parse_qs(body.decode())
                expand = asked.get("expand") in (["true"], ["True"])
                entries = repository.tree(revision, "", recursive=True, expand=expand)
                return _Answer([entry for entry in entries if entry["path"] in asked.get("paths", ())])
            case ("GET", "commits", revision):
                return _Answer(repository.history(revision))
            case ("GET", "refs"):
                kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
                refs: dict[str, Any] = {
                    kind: [
                        {"name": name, "ref": f"refs/{place}/{name}", "targetCommit": oid}
                        for name, oid in named.items()
                    ]
                    for kind, (place, named) in kinds.items()
                }
                return _Answer({**refs, "converts": [], "pullRequests": []})
            case ("POST", "branch", name):
                _name(repository.branches, name, repository.at(json.loads(body).get("startingPoint") or "main"))
            case ("POST", "tag", revision):
                _name(repository.tags, json.loads(body)["tag"], repository.at(revision))
            case ("DELETE", "branch" | "tag" as kind, name):
                repository.at(name)
                (repository.branches if kind == "branch" else repository.tags).pop(name, None)
            case ("PUT", "settings"):
                repository.private = _is_private(json.loads(body), repository.private)
            case ("POST", "preupload", revision):
                return self._preupload(repository.at(revision), json.loads(body)["files"])
            case ("POST", "commit", branch) if "create_pr" not in query:
                return self._commit(repository, branch, [json.loads(line) for line in body.splitlines()])
            case _:
                raise HubError(404, f"the loopback Hub knows nothing of {method} {'/'.join(rest)} of {repository.key}")
        return _Answer({})

    def _user(self, must: bool = False) -> str | None:
        """Whose token the client showed; without one None, or an error if there must be one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if (token or must) and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def _repository(self, key: str, write: bool = False) -> Repository:
        """A repository that the client may see, with `write` also change."""
        user = self._user()
        repository = self.hub.repositories.get(key)
        is_owner = key.split("/")[1] == user
        if repository is None or (repository.private and not is_owner):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not is_owner:
            raise HubError(403 if user else 401, f"You may not write to {key}")
        return repository

    def _create(self, asked: dict[str, Any]) -> _Answer:
        user = self._user(must=True)
        kind, owner = f"{asked.get('type') or 'model'}s", asked.get("organization") or user
        key = f"{kind}/{owner}/{asked['name']}"
        url = f"{self.hub.url}/{key.removeprefix('models/')}"
        if owner != user:
            raise HubError(403, f"You may not create a repository under {owner}")
        if key in self.hub.repositories:
            return _Answer({"error": "You already created this repository", "url": url}, 409)
        self.hub.repositories[key] = Repository(key, _is_private(asked))
        return _Answer({"url": url, "name": f"{owner}/{asked['name']}", "id": f"{owner}/{asked['name']}"})

    def _validate(self, card: str) -> _Answer:
        try:
            yaml.safe_load(card.split("---\n")[1] if card.startswith("---\n") else "")
        except yaml.YAMLError as error:
            return _Answer({"errors": [{"message": f"YAML metadata: {error}"}], "warnings": []}, 400)
        return _Answer({"errors": [], "warnings": []})

    def _preupload(self, commit: Commit, asked: list[dict[str, Any]]) -> _Answer:
        files = []
        for file in asked:
            mode = upload_mode(file["path"], base64.b64decode(file["sample"]), file["size"])
            known = commit.files.get(file["path"])  # by its id the client sees that it need not send it again
            files.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known and known.etag}
            )
        return _Answer({"files": files})

    def _commit(self, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> _Answer:
        head = repository.at(branch)
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, StoredFile | None] = {}
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    changes[value["path"]] = StoredFile(base64.b64decode(value["content"]))
                case "lfsFile" if value["oid"] in self.hub.lfs:
                    changes[value["path"]] = StoredFile(self.hub.lfs[value["oid"]], value["oid"])
                case "deletedFile":
                    changes[value["path"]] = None
                case "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    changes |= dict.fromkeys(path for path in head.files if path.startswith(prefix))
                case key:
                    raise HubError(400, f"the loopback Hub cannot commit {key} {value.get('path')}")
        oid = repository.add_commit(branch, changes, header["summary"]).oid
        url = f"{self.hub.url}/{repository.key.removeprefix('models/')}/commit/{oid}"
        return _Answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer: _Answer) -> None:
        """Send an answer; of a file only the range that was asked for, nothing of it to HEAD."""
        is_file = isinstance(answer.content, bytes)
        content = answer.content if is_file else json.dumps(answer.content).encode()
        status, size = answer.status, len(content)
        headers = {"Content-Type": "application/octet-stream" if is_file else "application/json", **answer.headers}
        asked = self.headers.get("Range", "")
        if is_file and status == 200 and asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin = int(first) if first else max(0, size - int(last))
            end = min(int(last) + 1, size) if first and last else size
            status, content = (206, content[begin:end]) if begin < size else (416, b"")
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}" if content else f"bytes */{size}"
        self.send_response(status)
        for name, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _name(named: dict[str, str], name: str, commit: Commit) -> None:
    if name in named:
        raise HubError(409, f"Reference already exists: {name}")
    named[name] = commit.oid


def _is_private(asked: dict[str, Any], default: bool = False) -> bool:
    return asked["visibility"] == "private" if "visibility" in asked else bool(asked.get("private", default))

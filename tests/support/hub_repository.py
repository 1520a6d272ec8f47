"""What a Hub holds: repositories with their files, commits, branches and tags, in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".onnx", ".parquet", ".arrow", ".npz", ".png", ".jpg", ".webp", ".gz", ".zip")
LFS_SIZE = 10_000_000  # bytes; what is larger is LFS whatever it is called
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class StoredFile:
    """A file in a commit, and the commit that brought it; `sha256` is set if it is kept with LFS."""

    content: bytes
    sha256: str | None = None
    commit: str = ""

    @property
    def pointer(self) -> bytes:
        """What git itself keeps: the file, or where LFS has it."""
        if self.sha256 is None:
            return self.content
        return f"version LFS/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        """The id of the file as git gives it."""
        return hashlib.sha1(b"blob %d\0" % len(self.pointer) + self.pointer).hexdigest()

    @property
    def etag(self) -> str:
        """What clients call the file's content by."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """All files of a repository by path, as one commit has them."""

    oid: str
    files: dict[str, StoredFile]
    title: str
    parent: str | None
    date: str


class HubError(Exception):
    """An answer that is no success: the status, and the code by which clients choose what they raise."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.status, self.headers = status, {name: value for name, value in headers.items() if value}


@dataclass
class Repository:
    """Commits, branches and tags; a new repository has one commit, with the rules of what LFS keeps."""

    key: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add_commit("main", {".gitattributes": StoredFile(GIT_ATTRIBUTES)}, "initial commit")

    @property
    def id(self) -> str:
        """OWNER/NAME."""
        return self.key.partition("/")[2]

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or an id stands for."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(name) or self.tags.get(name) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def file(self, revision: str, path: str) -> tuple[Commit, StoredFile]:
        """A file, and the commit that the revision stands for."""
        commit = self.at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", commit.oid)
        return commit, commit.files[path]

    def add_commit(self, branch: str, changes: Mapping[str, StoredFile | None], title: str) -> Commit:
        """Put a commit on a branch; None deletes the file."""
        parent = self.at(branch) if self.commits else None
        before = parent.oid if parent else None
        if parent and branch not in self.branches:
            raise HubError(400, f"{branch} is no branch")
        files = dict(parent.files) if parent else {}
        for path, file in changes.items():
            if file is not None:
                files[path] = file
            elif files.pop(path, None) is None:
                raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        tree = sorted((path, file.oid) for path, file in files.items())
        oid = hashlib.sha1(json.dumps([self.key, before, title, tree]).encode()).hexdigest()
        files |= {path: replace(file, commit=oid) for path, file in changes.items() if file}
        self.commits[oid] = Commit(oid, files, title, before, _now())
        self.branches[branch] = oid
        return self.commits[oid]

    def history(self, revision: str) -> list[dict[str, Any]]:
        """The commits that led to a revision, newest first."""
        commit: Commit | None = self.at(revision)
        said = []
        while commit:
            said.append({"id": commit.oid, "title": commit.title, "message": "", "date": commit.date, "authors": []})
            commit = self.commits.get(commit.parent or "")
        return said

    def entry(self, path: str, file: StoredFile, expand: bool = False) -> dict[str, Any]:
        """A file as trees list it."""
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.oid}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
        if expand:
            commit = self.commits[file.commit]
            entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": commit.date}
        return entry

    def tree(self, revision: str, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]]:
        """The files and folders in a folder, with `recursive` also those in its folders."""
        commit = self.at(revision)
        prefix = f"{folder}/" if folder else ""
        below = {path.removeprefix(prefix): path for path in sorted(commit.files) if path.startswith(prefix)}
        if folder and not below:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound", commit.oid)
        parents = [parent.as_posix() for path in below for parent in Path(path).parents][::-1]
        folders = [parent for parent in dict.fromkeys(parents) if parent != "." and (recursive or "/" not in parent)]
        entries = [
            {"type": "directory", "path": prefix + name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name in folders
        ]
        shown = [path for name, path in below.items() if recursive or "/" not in name]
        return entries + [self.entry(path, commit.files[path], expand) for path in shown]

    def info(self, revision: str) -> dict[str, Any]:
        """What the Hub says of a repository."""
        commit = self.at(revision)
        card = commit.files.get("README.md", StoredFile(b"")).content.decode().split("---\n")
        card_data = (yaml.safe_load(card[1]) or {}) if len(card) > 2 and not card[0] else {}
        siblings = []
        for path, file in sorted(commit.files.items()):
            entry = self.entry(path, file)
            lfs = {"lfs": {"sha256": file.sha256, **entry["lfs"]}} if file.sha256 else {}
            siblings.append({"rfilename": path, "size": entry["size"], "blobId": entry["oid"], **lfs})
        dates = [known.date for known in self.commits.values()]
        return {
            "_id": hashlib.sha1(self.key.encode()).hexdigest()[:24], "id": self.id, "modelId": self.id,
            "author": self.id.partition("/")[0], "sha": commit.oid, "private": self.private, "gated": False,
            "disabled": False, "createdAt": min(dates), "lastModified": commit.date, "downloads": 0, "likes": 0,
            "tags": card_data.get("tags") or [], "pipeline_tag": card_data.get("pipeline_tag"),
            "library_name": card_data.get("library_name"), "cardData": card_data, "siblings": siblings,
        }  # fmt: skip


def upload_mode(path: str, sample: bytes, size: int) -> str:
    """`"lfs"` or `"regular"`; the sample is the file's beginning."""
    return "lfs" if path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample else "regular"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")

"""Repositories as the Hub keeps them: files, commits, branches, tags and pull requests, with the hashes git gives."""

from __future__ import annotations

import functools
import hashlib
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


# What the Hub writes into a new model repository; these files go to the large file storage whatever their size.
LFS_SUFFIXES = (
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gz", ".h5", ".joblib", ".mlmodel", ".model", ".msgpack",
    ".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors",
    ".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst",
)  # fmt: skip
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
PICTURE_SUFFIXES = (".gif", ".jpeg", ".jpg", ".png", ".webp")
LFS_SIZE = 10 << 20


class Refusal(Exception):
    """An answer that is an error: its HTTP status, the code that the client tells errors apart by, and the words."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = ({"X-Error-Code": code} if code else {}) | headers


def git_hash(kind: str, content: bytes) -> str:
    """The name git gives to an object."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def stamp(time: datetime) -> str:
    """A time as the Hub writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub wants a file in the large file storage: by name, by size, or because it is not text."""
    name = path.lower().rpartition("/")[2]
    return size > 0 and (name.endswith(LFS_SUFFIXES + PICTURE_SUFFIXES) or size > LFS_SIZE or b"\0" in sample)


@dataclass(frozen=True)
class Blob:
    """A file's content, in git itself or in the large file storage."""

    data: bytes
    lfs: bool = False

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return text.encode()

    @functools.cached_property
    def oid(self) -> str:
        """Git's name of the file: of the pointer to it if it is in the large file storage."""
        return git_hash("blob", self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@functools.lru_cache(maxsize=256)
def _tree_oids(entries: tuple[tuple[str, str], ...]) -> dict[str, str]:
    folders: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, oid in entries:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, {})[name] = ("100644", oid)
        while folder:
            folder = folder.rpartition("/")[0]
            folders.setdefault(folder, {})
    oids = {}
    for folder in sorted(folders, key=lambda path: path.count("/") + bool(path), reverse=True):
        names = folders[folder]
        # Git orders a folder as if its name ended in a slash.
        ordered = sorted(names, key=lambda name: name + "/" * (names[name][0] == "40000"))
        content = b"".join(f"{names[n][0]} {n}\0".encode() + bytes.fromhex(names[n][1]) for n in ordered)
        oids[folder] = git_hash("tree", content)
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent][name] = ("40000", oids[folder])
    return oids


def tree_oids(files: Mapping[str, Blob]) -> dict[str, str]:
    """Git's name of every folder; the root is `""`."""
    return _tree_oids(tuple(sorted((path, blob.oid) for path, blob in files.items())))


@dataclass(frozen=True)
class Commit:
    """A commit, with all files as they are after it."""

    files: Mapping[str, Blob]
    parent: str | None
    title: str
    description: str = ""
    author: str = "someone"
    date: datetime = field(default_factory=lambda: datetime.now(UTC))

    @functools.cached_property
    def sha(self) -> str:
        who = f"{self.author} <{self.author}@users.noreply.hf.co> {int(self.date.timestamp())} +0000"
        lines = [f"tree {tree_oids(self.files)['']}", *([f"parent {self.parent}"] if self.parent else [])]
        text = "\n".join([*lines, f"author {who}", f"committer {who}", "", self.title, "", self.description])
        return git_hash("commit", text.encode())


@dataclass
class Discussion:
    """A discussion or, if it has a `base` branch, a pull request."""

    num: int
    title: str
    description: str
    author: str
    base: str | None
    status: str
    date: datetime = field(default_factory=lambda: datetime.now(UTC))
    merged: str | None = None

    @property
    def revision(self) -> str:
        return f"refs/pr/{self.num}"


class Repository:
    """A repository of the Hub. `type` is `"model"`, `"dataset"` or `"space"`; `gated` keeps files from strangers."""

    def __init__(self, type: str, id: str, private: bool = False, gated: bool = False) -> None:
        self.type, self.id, self.private, self.gated = type, id, private, gated
        self.granted: set[str] = set()
        self.refs: dict[str, str] = {}
        self.commits: list[Commit] = []
        self.discussions: list[Discussion] = []
        self.likes = self.downloads = 0
        # Uploads are prepared by several threads of the client, and a test may look meanwhile.
        self.lock = threading.RLock()
        first = Commit({".gitattributes": Blob(GIT_ATTRIBUTES)}, None, "initial commit", author=self.namespace)
        self._store(first, "refs/heads/main")

    @property
    def namespace(self) -> str:
        return self.id.rpartition("/")[0]

    @property
    def revisions(self) -> dict[str, str]:
        """The commit of every branch, tag and pull request, by the name one gives as `revision`."""
        return {re.sub("^refs/(heads|tags)/", "", ref): sha for ref, sha in self.refs.items()}

    @property
    def pull_requests(self) -> list[Discussion]:
        return [discussion for discussion in self.discussions if discussion.base is not None]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of every file of a revision."""
        return {path: blob.data for path, blob in self.resolve(revision).files.items()}

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a `refs/…` or the beginning of a commit's sha stands for."""
        sha = self.refs.get(revision) or self.revisions.get(revision) or revision
        if re.fullmatch("[0-9a-f]{7,40}", sha):
            found = {commit.sha: commit for commit in self.commits if commit.sha.startswith(sha)}
            if len(found) == 1:
                return next(iter(found.values()))
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, the newest first."""
        by_sha = {commit.sha: commit for commit in self.commits}
        commits = [self.resolve(revision)]
        while commits[-1].parent is not None and len(commits) <= len(by_sha):
            commits.append(by_sha[commits[-1].parent])
        return commits

    def add(
        self,
        files: Mapping[str, bytes | str],
        revision: str = "main",
        message: str = "Add files",
        delete: Iterable[str] = (),
        author: str | None = None,
    ) -> Commit:
        """Commits files as their owner would: what a test wants the Hub to hold, checked by nothing."""
        contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        blobs = {path: Blob(data, is_lfs(path, len(data), data[:512])) for path, data in contents.items()}
        with self.lock:
            head = self.resolve(revision)
            kept = {path: blob for path, blob in head.files.items() if path not in set(delete)}
            return self._store(Commit(kept | blobs, head.sha, message, author=author or self.namespace), revision)

    def commit(
        self, files: Mapping[str, Blob], revision: str, title: str, description: str, author: str, parent: str | None
    ) -> Commit:
        """Puts a commit on a branch or a pull request, if its head still is `parent`."""
        with self.lock:
            head = self.resolve(revision)
            if revision not in self.revisions or f"refs/tags/{revision}" in self.refs:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if parent is not None and not head.sha.startswith(parent):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            return self._store(Commit(files, head.sha, title, description, author), revision)

    def _store(self, commit: Commit, revision: str) -> Commit:
        self.commits.append(commit)
        self.refs[revision if revision.startswith("refs/") else f"refs/heads/{revision}"] = commit.sha
        return commit

    def point(self, ref: str, sha: str) -> None:
        """Makes a branch or a tag."""
        with self.lock:
            if ref in self.refs:
                raise Refusal(409, f"Reference already exists: {ref}")
            self.refs[ref] = sha

    def discuss(self, title: str, description: str, author: str, base: str | None = None) -> Discussion:
        """Opens a discussion, or a pull request against a branch."""
        with self.lock:
            if base is not None and f"refs/heads/{base}" not in self.refs:
                raise Refusal(404, f"Invalid rev id: {base}", "RevisionNotFound")
            status = "open" if base is None else "draft"
            discussion = Discussion(len(self.discussions) + 1, title, description, author, base, status)
            self.discussions.append(discussion)
            if base is not None:
                self.refs[discussion.revision] = self.refs[f"refs/heads/{base}"]
            return discussion

    def merge(self, num: int, author: str) -> Commit:
        """Brings what a pull request changes, file by file, into its branch."""
        with self.lock:
            pull = self.discussions[num - 1]
            assert pull.base is not None, f"discussion {num} is not a pull request"
            mine, theirs = self.history(pull.revision), {commit.sha for commit in self.history(pull.base)}
            old = next(commit for commit in mine if commit.sha in theirs).files
            new, head = mine[0].files, self.resolve(pull.base)
            changed = {path: blob for path, blob in new.items() if old.get(path) != blob}
            kept = {path: blob for path, blob in head.files.items() if path not in old or path in new}
            title = f"{pull.title} (#{num})"
            merged = self._store(Commit(kept | changed, head.sha, title, pull.description, author), pull.base)
            pull.status, pull.merged = "merged", merged.sha
            return merged

    def entry(self, path: str, commit: Commit) -> dict[str, Any] | None:
        """What the Hub tells of a file or a folder."""
        blob = commit.files.get(path)
        if blob is None:
            oid = tree_oids(commit.files).get(path)
            return None if oid is None else {"type": "directory", "oid": oid, "size": 0, "path": path}
        entry = {"type": "file", "oid": blob.oid, "size": len(blob.data), "path": path}
        lfs = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        return entry | ({"lfs": lfs} if blob.lfs else {})

"""What the Hub on loopback answers: one function for every address that the client asks for. See `hub_server`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode

import hub_cards
import hub_changes
from hub_access import Reply, Request, found_discussion, opening, owns, reading, signed_in, told_of, user_of, writing
from hub_git import Commit, Refusal, Repository, stamp


if TYPE_CHECKING:
    from hub_server import HubServer


MAX_PATHS = 1000


def paged(hub: HubServer, request: Request, rows: list[Any], limit: int | None = None) -> Reply:
    """One page of a listing, with a link to the next."""
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + min(limit or hub.page_size, hub.page_size)
    headers = {}
    if end < len(rows):
        query = urlencode(request.query | {"cursor": [str(end)]}, doseq=True)
        headers["Link"] = f'<{hub.url}{request.route}?{query}>; rel="next"'
    return Reply(rows[start:end], headers=headers)


def content(request: Request, data: bytes, headers: dict[str, str]) -> Reply:
    """A file's bytes, or the range of them that is asked for."""
    headers = {"Accept-Ranges": "bytes"} | headers
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if match is None or match[0] == "bytes=-":
        return Reply(data, headers=headers)
    start = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
    end = min(int(match[2]), len(data) - 1) if match[1] and match[2] else len(data) - 1
    if start > end:
        raise Refusal(416, "The range is not satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
    return Reply(data[start : end + 1], 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"})


def whoami(hub: HubServer, request: Request) -> Any:
    user = signed_in(hub, request)
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in user.orgs]
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
    return {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs, "auth": token}


def validate_yaml(hub: HubServer, request: Request) -> Any:
    errors, warnings = hub_cards.problems(str(request.json.get("content", "")))
    if errors and request.headers.get("accept") == "text/plain":
        return Reply("\n".join(errors).encode(), 400)
    told = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return Reply(told, 400 if errors else 200)


def describe(repo: Repository, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """All that the Hub tells of a repository; a listing leaves most of it out."""
    data, kind = hub_cards.card_data(commit.files), hub_cards.model_type(commit.files)
    siblings = []
    for path, blob in sorted(commit.files.items()):
        lfs = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        more = {"blobId": blob.oid, "size": len(blob.data)} | ({"lfs": lfs} if blob.lfs else {})
        siblings.append({"rfilename": path} | (more if blobs else {}))
    return {
        "_id": repo.commits[0].sha[:24], "id": repo.id, "modelId": repo.id, "author": repo.namespace,
        "sha": commit.sha, "lastModified": stamp(commit.date), "createdAt": stamp(repo.commits[0].date),
        "private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False, "spaces": [],
        "downloads": repo.downloads, "downloadsAllTime": repo.downloads, "likes": repo.likes, "trendingScore": 0,
        "tags": hub_cards.tags(commit.files), "pipeline_tag": data.get("pipeline_tag"),
        "library_name": data.get("library_name"), "model-index": data.get("model-index"), "cardData": data,
        "config": {"model_type": kind} if kind else {}, "siblings": siblings,
        "usedStorage": sum(len(blob.data) for blob in commit.files.values()),
    }  # fmt: skip


def info(hub: HubServer, request: Request, type: str, id: str, revision: str = "main") -> Any:
    repo = reading(hub, request, type, id)
    told = describe(repo, repo.resolve(revision), request.flag("blobs"))
    wanted = request.query.get("expand")
    return {key: told[key] for key in ("_id", "id", *wanted) if key in told} if wanted else told


def search(hub: HubServer, request: Request, type: str) -> Any:
    """A listing. Without `full`, `cardData` or `expand` it has as little in it as the Hub's."""
    query, user, rows = request.query, user_of(hub, request), []
    wanted = ["_id", "id", "likes", "trendingScore", "private", "downloads", "tags", "pipeline_tag", "library_name",
              "createdAt", "modelId"]  # fmt: skip
    if request.flag("full"):
        wanted += ["author", "sha", "lastModified", "gated", "disabled", "siblings"]
    wanted += ["cardData"] * request.flag("cardData") + ["config"] * request.flag("config")
    wanted = ["_id", "id", *query["expand"]] if "expand" in query else wanted
    for repo in list(hub.repos.values()):
        told = describe(repo, repo.resolve("main"))
        fits = repo.type == type and (not repo.private or owns(user, repo.namespace))
        fits = fits and set(query.get("filter", ())) <= set(told["tags"])
        fits = fits and query.get("author", [repo.namespace])[0] == repo.namespace
        fits = fits and query.get("pipeline_tag", [told["pipeline_tag"]])[0] == told["pipeline_tag"]
        if fits and query.get("search", [""])[0].lower() in repo.id.lower():
            rows.append(told)
    rows.sort(key=lambda told: told[query.get("sort", ["createdAt"])[0]], reverse=True)
    rows = [{key: told[key] for key in wanted if key in told} for told in rows]
    return paged(hub, request, rows, int(query["limit"][0]) if "limit" in query else None)


def tree(hub: HubServer, request: Request, type: str, id: str, revision: str, folder: str | None) -> Any:
    repo = reading(hub, request, type, id)
    commit, folder = repo.resolve(revision), (folder or "").strip("/")
    inside = f"{folder}/" if folder else ""
    paths: set[str] = set()
    for path in commit.files:
        if path.startswith(inside):
            names = path[len(inside) :].split("/")
            depth = len(names) if request.flag("recursive") else 1
            paths |= {inside + "/".join(names[: n + 1]) for n in range(depth)}
    if folder and not paths:
        raise _no_entry(folder, commit)
    return paged(hub, request, [_entry(repo, path, commit, request.flag("expand")) for path in sorted(paths)])


def paths_info(hub: HubServer, request: Request, type: str, id: str, revision: str) -> Any:
    repo = reading(hub, request, type, id)
    commit, form = repo.resolve(revision), parse_qs(request.body.decode(errors="replace"))
    expand = form.get("expand", [""])[0].lower() == "true"
    entries = [_entry(repo, path.strip("/"), commit, expand) for path in form.get("paths", [])[:MAX_PATHS]]
    return [entry for entry in entries if entry is not None]


def _entry(repo: Repository, path: str, commit: Commit, expand: bool) -> dict[str, Any] | None:
    entry = repo.entry(path, commit)
    if entry is not None and expand:
        entry["lastCommit"] = {"id": commit.sha, "title": commit.title, "date": stamp(commit.date)}
    return entry


def _no_entry(path: str, commit: Commit) -> Refusal:
    return Refusal(404, f"Entry not found: {path}", "EntryNotFound", **{"X-Repo-Commit": commit.sha})


def resolve(hub: HubServer, request: Request, prefix: str | None, id: str, revision: str, path: str) -> Any:
    repo = opening(hub, request, (prefix or "models").removesuffix("s"), id)
    commit = repo.resolve(revision)
    blob = commit.files.get(path)
    if blob is None:
        raise _no_entry(path, commit)
    if path == "config.json":
        repo.downloads += 1
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.etag}"'}
    if not blob.lfs:
        return content(request, blob.data, headers)
    headers |= {"X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.etag}"'}
    return Reply(b"Found", 302, headers | {"Location": hub.signed(blob.sha256)})


def refs(hub: HubServer, request: Request, type: str, id: str) -> Any:
    repo = reading(hub, request, type, id)
    answer: dict[str, Any] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for ref, sha in repo.refs.items():
        kind, _, name = ref.removeprefix("refs/").partition("/")
        kind = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[kind]
        answer[kind].append({"name": name, "ref": ref, "targetCommit": sha})
    return answer


def commits(hub: HubServer, request: Request, type: str, id: str, revision: str) -> Any:
    history = reading(hub, request, type, id).history(revision)
    rows = [{"id": c.sha, "title": c.title, "message": c.description, "date": stamp(c.date),
             "authors": [{"user": c.author}]} for c in history]  # fmt: skip
    return paged(hub, request, rows)


def discussions(hub: HubServer, request: Request, type: str, id: str) -> Any:
    repo, query = reading(hub, request, type, id), request.query
    rows = [told_of(repo, found) for found in reversed(repo.discussions)]
    rows = [row for row in rows if query.get("author", [row["author"]["name"]])[0] == row["author"]["name"]]
    kind, status = query.get("type", ["all"])[0], query.get("status", ["all"])[0]
    rows = [row for row in rows if kind in ("all", "pull_request" if row["isPullRequest"] else "discussion")]
    rows = [row for row in rows if status in ("all", "open" if row["status"] in ("open", "draft") else "closed")]
    start = int(query.get("p", ["0"])[0]) * hub.page_size
    return {"discussions": rows[start : start + hub.page_size], "count": len(rows), "start": start}


def discussion(hub: HubServer, request: Request, type: str, id: str, num: str) -> Any:
    repo = reading(hub, request, type, id)
    return told_of(repo, found_discussion(repo, num))


def auth_check(hub: HubServer, request: Request, type: str, id: str, write: str | None) -> Any:
    if write:
        writing(hub, request, type, id)
    opening(hub, request, type, id)
    return b"OK"


def harnesses(hub: HubServer, request: Request) -> Any:
    return {"standardEnvVars": [], "harnesses": {}}


_NAME = r"[\w.-]+"
_ID = rf"({_NAME}(?:/{_NAME})?)"
_REPO = rf"/api/(model|dataset|space)s/{_ID}"
_FILES = rf"/(?:(datasets|spaces)/)?{_ID}"
_REV = r"(refs/pr/\d+|refs%2Fpr%2F\d+|[^/]+)"
# The first that fits answers; the groups are its arguments.
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", whoami),
    ("GET", "/api/agent-harnesses", harnesses),
    ("POST", "/api/repos/create", hub_changes.create),
    ("DELETE", "/api/repos/delete", hub_changes.delete),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", "/api/complete_multipart", hub_changes.lfs_complete),
    ("GET", "/api/(model|dataset|space)s", search),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", hub_changes.lfs_batch),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/verify", hub_changes.lfs_verify),
    ("GET", rf"{_FILES}/resolve/{_REV}/(.+)", resolve),
    ("GET", rf"{_REPO}/revision/{_REV}", info),
    ("GET", rf"{_REPO}/tree/{_REV}(?:/(.+))?", tree),
    ("POST", rf"{_REPO}/paths-info/{_REV}", paths_info),
    ("POST", rf"{_REPO}/preupload/{_REV}", hub_changes.preupload),
    ("POST", rf"{_REPO}/commit/{_REV}", hub_changes.commit),
    ("GET", rf"{_REPO}/commits/{_REV}", commits),
    ("GET", rf"{_REPO}/refs", refs),
    ("PUT", rf"{_REPO}/settings", hub_changes.settings),
    ("POST", rf"{_REPO}/branch/([^/]+)", hub_changes.make_branch),
    ("POST", rf"{_REPO}/tag/{_REV}", hub_changes.make_tag),
    ("DELETE", rf"{_REPO}/(branch|tag)/([^/]+)", hub_changes.delete_ref),
    ("GET", rf"{_REPO}/discussions", discussions),
    ("POST", rf"{_REPO}/discussions", hub_changes.discuss),
    ("GET", rf"{_REPO}/discussions/(\d+)", discussion),
    ("POST", rf"{_REPO}/discussions/(\d+)/merge", hub_changes.merge),
    ("GET", rf"{_REPO}/auth-check(/write)?", auth_check),
    ("GET", _REPO, info),
]


def respond(hub: HubServer, request: Request) -> Reply:
    """The answer to a request."""
    method = "GET" if request.method == "HEAD" else request.method
    for wanted, pattern, answer in ROUTES:
        match = re.fullmatch(pattern, request.route)
        if match is not None and wanted == method:
            groups = [unquote(group) if group else None for group in match.groups()]
            # One at a time: what is asked together must not be half done.
            with hub.lock:
                result = answer(hub, request, *groups)
            return result if isinstance(result, Reply) else Reply(result)
    raise Refusal(404, f"Sorry, this Hub on loopback has no {method} {quote(request.route)}.")

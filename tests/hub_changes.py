"""What changes repositories of the Hub on loopback: creating them, uploads, commits, refs, pull requests."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any

import hub_cards
from hub_access import Reply, Request, found_discussion, owns, page_url, signed_in, told_of, writing
from hub_git import Blob, Refusal, is_lfs


if TYPE_CHECKING:
    from hub_server import HubServer


MAX_FILES = 1000


def create(hub: HubServer, request: Request) -> Any:
    user, wanted = signed_in(hub, request), request.json
    type, namespace = wanted.get("type") or "model", wanted.get("organization") or user.name
    id = f"{namespace}/{wanted.get('name')}"
    if type not in ("model", "dataset", "space") or not hub_cards.REPO_ID.fullmatch(id):
        raise Refusal(400, f"Invalid repo type or name: {type} {id}")
    if user.role != "write" or not owns(user, namespace):
        raise Refusal(403, f'You don\'t have the rights to create a {type} under the namespace "{namespace}"')
    there = hub.repos.get((type, id))
    repo = there or hub.add_repo(id, type=type, private=_private(wanted))
    told = {"url": page_url(hub, repo), "name": id, "id": id}
    return Reply(told | {"error": f"You already created this {type} repo"}, 409) if there else told


def _private(wanted: dict[str, Any]) -> bool:
    # huggingface_hub 1.x says `private`, 2.x `visibility`.
    return wanted.get("visibility") == "private" or wanted.get("private") is True


def delete(hub: HubServer, request: Request) -> Any:
    user, wanted = signed_in(hub, request), request.json
    id = f"{wanted.get('organization') or user.name}/{wanted.get('name')}"
    repo, _ = writing(hub, request, wanted.get("type") or "model", id)
    del hub.repos[repo.type, repo.id]
    return b"OK"


def settings(hub: HubServer, request: Request, type: str, id: str) -> Any:
    repo, _ = writing(hub, request, type, id)
    if "visibility" in request.json or "private" in request.json:
        repo.private = _private(request.json)
    repo.gated = bool(request.json.get("gated", repo.gated))
    return {"private": repo.private, "gated": repo.gated}


def preupload(hub: HubServer, request: Request, type: str, id: str, revision: str) -> Any:
    repo, _ = writing(hub, request, type, id, _proposing(request, revision))
    files, answers = repo.resolve(revision).files, []
    for file in request.json.get("files", [])[:MAX_FILES]:
        lfs = is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        there = files.get(file["path"])
        oid = there.etag if there is not None and there.lfs == lfs else None
        mode = "lfs" if lfs else "regular"
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answers}


def _proposing(request: Request, revision: str) -> bool:
    return request.flag("create_pr") or revision.startswith("refs/pr/")


def lfs_batch(hub: HubServer, request: Request, prefix: str | None, id: str) -> Any:
    writing(hub, request, (prefix or "models").removesuffix("s"), id, propose=True)
    answers: list[dict[str, Any]] = []
    for wanted in request.json.get("objects", [])[:MAX_FILES]:
        oid, size = str(wanted["oid"]), int(wanted["size"])
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if not re.fullmatch("[0-9a-f]{64}", oid):
            answers.append(answer | {"error": {"code": 422, "message": f"Not a sha256: {oid}"}})
            continue
        if oid not in hub.objects:
            upload: dict[str, Any] = {"href": hub.signed(oid)}
            if size > hub.part_size:
                count = -(-size // hub.part_size)
                header = {f"{n:05d}": hub.signed(f"{oid}/{n}") for n in range(1, count + 1)}
                complete = f"{hub.url}/api/complete_multipart?oid={oid}"
                upload = {"href": complete, "header": header | {"chunk_size": str(hub.part_size)}}
            verify = f"{hub.url}/{prefix + '/' if prefix else ''}{id}.git/info/lfs/objects/verify"
            answer["actions"] = {"upload": upload, "verify": {"href": verify}}
        answers.append(answer)
    return {"transfer": "basic", "objects": answers}


def lfs_complete(hub: HubServer, request: Request) -> Any:
    """Joins the parts of an upload. As on the Hub, its address is secret and takes no token."""
    oid, parts = request.json.get("oid"), request.json.get("parts", [])
    numbers = [(str(oid), int(part["partNumber"])) for part in parts[:MAX_FILES]]
    missing = [number for key in numbers if key not in hub.parts for number in key[1:]]
    if missing:
        raise Refusal(400, f"Parts {missing} were not uploaded.")
    hub.keep(str(oid), b"".join(hub.parts.pop(key) for key in numbers))
    return {"success": True}


def lfs_verify(hub: HubServer, request: Request, prefix: str | None, id: str) -> Any:
    writing(hub, request, (prefix or "models").removesuffix("s"), id, propose=True)
    if len(hub.objects.get(request.json["oid"], b"")) != request.json["size"]:
        raise Refusal(404, f"The object {request.json['oid']} is not in the storage.")
    return b"OK"


def commit(hub: HubServer, request: Request, type: str, id: str, revision: str) -> Any:
    """One commit out of lines of JSON: a header, then files, large files and deletions."""
    repo, user = writing(hub, request, type, id, _proposing(request, revision))
    proposal = found_discussion(repo, revision[8:]) if revision.startswith("refs/pr/") else None
    if proposal and proposal.author != user.name and not owns(user, repo.namespace):
        raise Refusal(403, f"You don't have the rights to write to {revision} of {id}")
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    except ValueError as error:
        raise Refusal(400, f"The body is not lines of JSON: {error}") from error
    header: dict[str, Any] = next((line["value"] for line in lines if line["key"] == "header"), {})
    title, description = header.get("summary", ""), header.get("description", "")
    if not title or len(lines) > MAX_FILES:
        raise Refusal(400, '"summary" is not allowed to be empty, and a commit has at most 1000 files')
    parent, create_pr = header.get("parentCommit"), request.flag("create_pr")
    base = repo.resolve(parent if parent and create_pr else revision)
    files = dict(base.files)
    for line in lines:
        _change(hub, files, line["key"], line["value"])
    if "README.md" in files and files["README.md"] != base.files.get("README.md"):
        hub_cards.check(files["README.md"].data.decode(errors="replace"))
    answer: dict[str, Any] = {"success": True, "hookOutput": ""}
    if create_pr:
        pull = repo.discuss(title, description, user.name, base=revision)
        repo.refs[pull.revision], pull.status, revision, parent = base.sha, "open", pull.revision, None
        answer["pullRequestUrl"] = f"{page_url(hub, repo)}/discussions/{pull.num}"
    made = repo.commit(files, revision, title, description, user.name, parent)
    return answer | {"commitUrl": f"{page_url(hub, repo)}/commit/{made.sha}", "commitOid": made.sha}


def _change(hub: HubServer, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
    path = str(value.get("path", ""))
    if key == "header":
        return
    if key in ("file", "lfsFile") and (not path or {"", ".", "..", ".git"} & set(path.split("/"))):
        raise Refusal(400, f"Invalid path in the commit: {path!r}")
    if key == "file":
        try:
            files[path] = Blob(base64.b64decode(value["content"], validate=True))
        except binascii.Error as error:
            raise Refusal(400, f"The content of {path} is not base64: {error}") from error
    elif key == "lfsFile":
        if value["oid"] not in hub.objects:
            raise Refusal(400, f"An LFS pointer pointed to a file that does not exist: {path}")
        files[path] = Blob(hub.objects[value["oid"]], lfs=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not inside:
            raise Refusal(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
        for name in inside:
            del files[name]
    else:
        raise Refusal(400, f"Unknown operation in the commit: {key}")


def make_branch(hub: HubServer, request: Request, type: str, id: str, branch: str) -> Any:
    repo, _ = writing(hub, request, type, id)
    repo.point(f"refs/heads/{branch}", repo.resolve(request.json.get("startingPoint") or "main").sha)
    return b"OK"


def make_tag(hub: HubServer, request: Request, type: str, id: str, revision: str) -> Any:
    repo, _ = writing(hub, request, type, id)
    repo.point(f"refs/tags/{request.json['tag']}", repo.resolve(revision).sha)
    return b"OK"


def delete_ref(hub: HubServer, request: Request, type: str, id: str, kind: str, name: str) -> Any:
    repo, _ = writing(hub, request, type, id)
    if name == "main" or repo.refs.pop(f"refs/{'heads' if kind == 'branch' else 'tags'}/{name}", None) is None:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return b"OK"


def discuss(hub: HubServer, request: Request, type: str, id: str) -> Any:
    repo, user = writing(hub, request, type, id, propose=True)
    wanted = request.json
    base = "main" if wanted.get("pullRequest") else None
    return told_of(repo, repo.discuss(wanted.get("title", ""), wanted.get("description", ""), user.name, base))


def merge(hub: HubServer, request: Request, type: str, id: str, num: str) -> Any:
    repo, user = writing(hub, request, type, id)
    if found_discussion(repo, num).base is None:
        raise Refusal(400, f"Discussion {num} is not a pull request.")
    repo.merge(int(num), user.name)
    return {"newStatus": "merged"}

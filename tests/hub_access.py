"""Who may do what on the Hub on loopback, and the requests and replies. See `hub_server`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from hub_git import Discussion, Refusal, Repository, stamp


if TYPE_CHECKING:
    from hub_server import HubServer, User


@dataclass
class Request:
    """A request as it came in, and the status it was answered with (0: none)."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    status: int = 0

    @property
    def route(self) -> str:
        return urlsplit(self.path).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    @property
    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Refusal(400, "The body is not a JSON object.")
        return value

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")


@dataclass
class Reply:
    """What goes back: bytes, or something that becomes JSON."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body, default=str).encode()

    @property
    def type(self) -> str:
        return "application/octet-stream" if isinstance(self.body, bytes) else "application/json; charset=utf-8"


def user_of(hub: HubServer, request: Request) -> User | None:
    """Who asks; `None` without a token."""
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not token:
        return None
    if token not in hub.users:
        raise Refusal(401, "Invalid credentials in Authorization header")
    return hub.users[token]


def owns(user: User | None, namespace: str) -> bool:
    return user is not None and namespace in (user.name, *user.orgs)


def signed_in(hub: HubServer, request: Request) -> User:
    user = user_of(hub, request)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return user


def reading(hub: HubServer, request: Request, type: str, id: str) -> Repository:
    """A repository that whoever asks may see."""
    user, repo = user_of(hub, request), hub.repos.get((type, id))
    if repo is None or (repo.private and not owns(user, repo.namespace)):
        # The Hub tells a stranger nothing but 401. huggingface_hub 2.4.0 knows that 401 by an address that begins
        # with https:// (`REPO_API_REGEX`), which this server's does not: so the code comes with it here.
        if user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return repo


def opening(hub: HubServer, request: Request, type: str, id: str) -> Repository:
    """A repository whose files whoever asks may have."""
    repo, user = reading(hub, request, type, id), user_of(hub, request)
    if repo.gated and not owns(user, repo.namespace) and (user is None or user.name not in repo.granted):
        if user is None:
            message = f"Access to model {id} is restricted. You must have access to it and be authenticated."
            raise Refusal(401, message, "GatedRepo")
        message = f"Access to model {id} is restricted and you are not in the authorized list."
        raise Refusal(403, message, "GatedRepo")
    return repo


def writing(hub: HubServer, request: Request, type: str, id: str, propose: bool = False) -> tuple[Repository, User]:
    """A repository that whoever asks may change, or propose a change to."""
    repo, user = reading(hub, request, type, id), signed_in(hub, request)
    if user.role != "write" or not (propose or owns(user, repo.namespace)):
        raise Refusal(403, f"You don't have the rights to write to the {type} {id}")
    return repo, user


def page_url(hub: HubServer, repo: Repository) -> str:
    """Where a repository is on the web."""
    return f"{hub.url}/{'' if repo.type == 'model' else repo.type + 's/'}{repo.id}"


def found_discussion(repo: Repository, num: str) -> Discussion:
    """A discussion by its number."""
    if not 0 < int(num) <= len(repo.discussions):
        raise Refusal(404, f"Discussion {num} not found")
    return repo.discussions[int(num) - 1]


def told_of(repo: Repository, found: Discussion) -> dict[str, Any]:
    """What the Hub tells of a discussion or a pull request."""
    told = {"num": found.num, "title": found.title, "author": {"name": found.author}, "status": found.status,
            "createdAt": stamp(found.date), "isPullRequest": found.base is not None,
            "repo": {"name": repo.id, "type": repo.type}}  # fmt: skip
    latest = {"edited": False, "hidden": False, "latest": {"raw": found.description}}
    event = {"id": f"{found.num}", "type": "comment", "createdAt": stamp(found.date), "author": told["author"]}
    told["events"] = [event | {"data": latest}]
    if found.base is not None:
        told |= {"changes": {"base": found.base, "mergeCommitId": found.merged}, "filesWithConflicts": [], "diff": ""}
    return told

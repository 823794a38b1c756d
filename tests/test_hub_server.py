from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hub_cards
import huggingface_hub
import pytest
from hub_git import Blob, tree_oids
from hub_server import Fault, HubServer, hub_environment
from huggingface_hub import HfApi, constants, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from packaging.version import Version


ID = "someone/prompt"
CARD = "---\nlicense: mit\npipeline_tag: image-text-to-text\ntags: [transferable-vp]\nbase_model: org/vlm\n---\n# A prompt\n"
WEIGHTS = bytes(range(256)) * 4096
# huggingface_hub#4351 and #4398: until then a connection that is cut is an error at once.
mends_cuts = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("1.21.0"), reason="this huggingface_hub does not ask again"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of a prompt."""
    made = tmp_path / "folder"
    made.mkdir()
    (made / "README.md").write_text(CARD)
    (made / "config.json").write_text('{"model_type": "transferable_visual_prompt"}')
    (made / "model.safetensors").write_bytes(WEIGHTS)
    return made


@pytest.fixture
def pushed(hub: HubServer, folder: Path) -> str:
    """The commit of that folder's push."""
    api = HfApi()
    api.create_repo(ID)
    return api.upload_folder(repo_id=ID, folder_path=folder).oid


def seen(hub: HubServer, method: str, path: str) -> list[int]:
    """The answers to the requests with a method and a piece of the path."""
    return [request.status for request in hub.requests if request.method == method and path in request.path]


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


class TestUpload:
    def test_holds_what_was_pushed(self, hub: HubServer, folder: Path, pushed: str) -> None:
        repo = hub.repos["model", ID]
        assert repo.files() == {path.name: path.read_bytes() for path in folder.iterdir()} | {
            ".gitattributes": repo.files()[".gitattributes"]
        }
        assert repo.revisions == {"main": pushed} and repo.commits[0].title == "initial commit"
        lfs = {file.rfilename for file in HfApi().model_info(ID, files_metadata=True).siblings if file.lfs}
        assert lfs == {"model.safetensors"} and seen(hub, "PUT", "/storage/") == [200]

    def test_makes_no_commit_without_a_change(self, hub: HubServer, folder: Path, pushed: str) -> None:
        assert HfApi().upload_folder(repo_id=ID, folder_path=folder).oid == pushed
        assert len(hub.repos["model", ID].commits) == 2

    def test_takes_a_large_file_in_parts(self, hub: HubServer, pushed: str) -> None:
        hub.part_size = 300_000
        content = WEIGHTS[::-1]
        HfApi().upload_file(repo_id=ID, path_in_repo="a/big.bin", path_or_fileobj=content)
        assert hub.repos["model", ID].files()["a/big.bin"] == content and len(seen(hub, "PUT", "/storage/")) == 1 + 4

    @mends_cuts
    def test_a_cut_upload_is_sent_again(self, hub: HubServer, folder: Path) -> None:
        HfApi().create_repo(ID)
        hub.faults.append(Fault("^/storage/", "PUT", cut_request_after=100_000))
        HfApi().upload_folder(repo_id=ID, folder_path=folder)
        assert seen(hub, "PUT", "/storage/") == [0, 200]
        assert hub.repos["model", ID].files()["model.safetensors"] == WEIGHTS

    def test_a_changed_parent_is_refused(self, hub: HubServer, pushed: str) -> None:
        api = HfApi()
        hub.repos["model", ID].add({"other.txt": "x"})
        with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
            api.upload_file(repo_id=ID, path_in_repo="a.txt", path_or_fileobj=b"a", parent_commit=pushed)
        assert status(error) == 412

    def test_deletes(self, hub: HubServer, pushed: str) -> None:
        HfApi().delete_file("config.json", ID)
        assert "config.json" not in hub.repos["model", ID].files()
        with pytest.raises(EntryNotFoundError):
            HfApi().delete_file("nothing.json", ID)


class TestDownload:
    def test_downloads_once(self, hub: HubServer, folder: Path, pushed: str) -> None:
        path = Path(snapshot_download(ID))
        assert path.name == pushed and (path / "model.safetensors").read_bytes() == WEIGHTS
        assert Path(hf_hub_download(ID, "model.safetensors")).read_bytes() == WEIGHTS
        assert seen(hub, "GET", "/storage/") == [200]
        # The client's own rule: no token leaves the Hub.
        stored = [request for request in hub.requests if request.path.startswith("/storage/")]
        assert stored and not any("authorization" in request.headers for request in stored)

    @mends_cuts
    @pytest.mark.parametrize(("chunk", "answers"), [(10 << 20, [200, 200]), (100_000, [200, 206])])
    def test_a_cut_download_goes_on(
        self, hub: HubServer, pushed: str, monkeypatch: pytest.MonkeyPatch, chunk: int, answers: list[int]
    ) -> None:
        # The client keeps whole chunks only, of 10 MB by default: of a small file it has nothing yet, and starts anew.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)
        hub.faults.append(Fault("^/storage/", "GET", cut_after=550_000))
        assert Path(hf_hub_download(ID, "model.safetensors")).read_bytes() == WEIGHTS
        assert seen(hub, "GET", "/storage/") == answers
        assert hub.requests[-1].headers.get("range") == ("bytes=500000-" if 206 in answers else None)

    def test_revisions(self, hub: HubServer, pushed: str) -> None:
        api, repo = HfApi(), hub.repos["model", ID]
        api.create_tag(ID, tag="v1")
        api.create_branch(ID, branch="tries/new")
        second = api.upload_file(repo_id=ID, path_in_repo="n.txt", path_or_fileobj=b"2", revision="tries/new").oid
        third = api.upload_file(repo_id=ID, path_in_repo="n.txt", path_or_fileobj=b"3").oid
        assert repo.revisions == {"main": third, "v1": pushed, "tries/new": second}
        for revision, text in (("tries/new", "2"), (second, "2"), ("main", "3"), (third, "3")):
            assert Path(hf_hub_download(ID, "n.txt", revision=revision)).read_text() == text
        with pytest.raises(EntryNotFoundError):
            hf_hub_download(ID, "n.txt", revision="v1")
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(ID, "n.txt", revision="v2")
        assert [commit.commit_id for commit in api.list_repo_commits(ID)][:2] == [third, pushed]
        assert {ref.name for ref in api.list_repo_refs(ID).branches} == {"main", "tries/new"}

    def test_lists_a_tree_page_by_page(self, hub: HubServer) -> None:
        hub.add_repo(ID, {"a/b/c.txt": "1", "a/d.txt": "2", "e.txt": "3"})
        hub.page_size = 2
        tree = list(HfApi().list_repo_tree(ID, recursive=True))
        assert [entry.path for entry in tree] == [".gitattributes", "a", "a/b", "a/b/c.txt", "a/d.txt", "e.txt"]
        assert [entry.path for entry in HfApi().list_repo_tree(ID, "a")] == ["a/b", "a/d.txt"]
        assert HfApi().get_paths_info(ID, ["a/d.txt", "nothing"])[0].size == 1


class TestAccess:
    def test_a_private_repository_is_not_there_for_others(self, hub: HubServer) -> None:
        HfApi().create_repo(ID, private=True)
        assert hub.repos["model", ID].private and HfApi().model_info(ID).private
        for token, answer in ((False, 401), ("hf_other", 404)):
            with pytest.raises(RepositoryNotFoundError) as error:
                hf_hub_download(ID, ".gitattributes", token=token)
            assert status(error) == answer
        assert [list(HfApi().list_models(token=token)) for token in (False, "hf_other")] == [[], []]

    def test_who_may_write(self, hub: HubServer, pushed: str) -> None:
        hub.add_user("someone", "hf_read", role="read")
        with pytest.raises(HfHubHTTPError, match="Invalid user token") as error:
            HfApi(token="hf_wrong").whoami()
        assert status(error) == 401
        for token in ("hf_other", "hf_read"):
            with pytest.raises(HfHubHTTPError, match="rights") as error:
                HfApi(token=token).upload_file(repo_id=ID, path_in_repo="a.txt", path_or_fileobj=b"a")
            assert status(error) == 403
        assert HfApi().create_repo("org/shared").repo_id == "org/shared"
        with pytest.raises(HfHubHTTPError, match="namespace"):
            HfApi(token="hf_other").create_repo("org/mine")

    def test_a_gated_repository_keeps_its_files(self, hub: HubServer) -> None:
        hub.add_repo(ID, {"a.txt": "a"}, gated=True)
        assert HfApi(token="hf_other").model_info(ID).gated == "auto"
        for token, answer in ((False, 401), ("hf_other", 403)):
            with pytest.raises(GatedRepoError) as error:
                hf_hub_download(ID, "a.txt", token=token)
            assert status(error) == answer
        hub.repos["model", ID].granted.add("other")
        assert Path(hf_hub_download(ID, "a.txt", token="hf_other")).read_text() == "a"

    def test_anyone_may_propose(self, hub: HubServer, pushed: str) -> None:
        repo, api = hub.repos["model", ID], HfApi(token="hf_other")
        info = api.upload_file(repo_id=ID, path_in_repo="n.bin", path_or_fileobj=b"\0n", create_pr=True)
        assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1") and "n.bin" not in repo.files()
        assert Path(hf_hub_download(ID, "n.bin", revision="refs/pr/1")).read_bytes() == b"\0n"
        assert [(pull.num, pull.author, pull.status) for pull in repo.pull_requests] == [(1, "other", "open")]
        api.upload_file(repo_id=ID, path_in_repo="m.txt", path_or_fileobj=b"m", revision="refs/pr/1")
        repo.add({"late.txt": "x"})
        HfApi().merge_pull_request(ID, 1)
        assert {"n.bin", "m.txt", "late.txt", "config.json"} <= set(repo.files())
        assert [d.status for d in api.get_repo_discussions(ID, discussion_type="pull_request")] == ["merged"]
        draft = api.create_pull_request(ID, "A title", description="Why")
        assert (draft.num, draft.status, draft.events[0].content) == (2, "draft", "Why")


class TestSearch:
    def test_filters(self, hub: HubServer, pushed: str) -> None:
        hub.add_repo("org/other", {"README.md": CARD.replace("transferable-vp", "else")})
        hub.add_repo("org/blue-prompt", {"README.md": CARD})
        api = HfApi()

        def found(**wanted: object) -> set[str]:
            return {model.id for model in api.list_models(**wanted)}

        assert found(filter="transferable-vp") == {ID, "org/blue-prompt"}
        assert found(filter=["transferable-vp", "transferable_visual_prompt"]) == {ID}
        assert found(filter="base_model:org/vlm", author="org", search="blue") == {"org/blue-prompt"}
        hub.page_size = 1
        assert len(found()) == 3 and len(found(limit=2)) == 2 and not found(filter="nothing")

    def test_tells_no_more_than_the_hub_without_being_asked(self, hub: HubServer, pushed: str) -> None:
        (plain,) = HfApi().list_models(author="someone")
        (more,) = HfApi().list_models(author="someone", expand=["cardData", "lastModified"])
        assert plain.card_data is None and plain.last_modified is None and plain.pipeline_tag == "image-text-to-text"
        assert more.card_data.base_model == "org/vlm" and more.last_modified is not None and more.tags is None


class TestFaults:
    def test_a_client_waits_and_asks_again(self, hub: HubServer, pushed: str) -> None:
        hub.faults.append(Fault("/preupload/", "POST", status=429))
        HfApi().upload_file(repo_id=ID, path_in_repo="a.txt", path_or_fileobj=b"a")
        assert seen(hub, "POST", "/preupload/") == [200, 429, 200] and hub.repos["model", ID].files()["a.txt"] == b"a"

    def test_strikes_as_often_as_it_says(self, hub: HubServer, pushed: str) -> None:
        fault = Fault("/api/models/", status=503, after=1, times=2, message="Overloaded")
        hub.faults.append(fault)
        answers = []
        for _ in range(4):
            try:
                answers.append(HfApi().model_info(ID).id)
            except HfHubHTTPError as error:
                assert "Overloaded" in str(error)
                answers.append(error.response.status_code)
        assert answers == [ID, 503, 503, ID] and fault.used == 2

    @pytest.mark.parametrize("fault", [Fault("/storage/", truncate=1000), Fault("/storage/", flip=7)])
    def test_spoils_a_body(self, hub: HubServer, pushed: str, fault: Fault) -> None:
        address = hub.signed(next(iter(hub.objects)))
        hub.faults.append(fault)
        spoiled, whole = (get_session().get(address).content for _ in range(2))
        assert whole == WEIGHTS and spoiled != WEIGHTS and len(spoiled) == (1000 if fault.truncate else len(WEIGHTS))

    def test_claims_another_size(self, hub: HubServer, pushed: str) -> None:
        hub.faults.append(Fault("/resolve/", "HEAD", headers={"x-linked-size": "100000000000", "ETag": None}))
        url = f"{hub.url}/{ID}/resolve/main/model.safetensors"
        metadata = HfApi().get_hf_file_metadata(url=url)
        assert metadata.size == 100_000_000_000 and HfApi().get_hf_file_metadata(url=url).size == len(WEIGHTS)

    def test_is_gone_and_comes_back(self, hub: HubServer, pushed: str) -> None:
        path = hf_hub_download(ID, "config.json")
        hub.stop()
        # The exception's class is httpx's or httpx2's, as the client's release has it.
        with pytest.raises(Exception, match="refused"):
            HfApi().whoami()
        assert hf_hub_download(ID, "config.json") == path
        hub.start()
        assert HfApi().whoami()["name"] == "someone"


class TestCards:
    @pytest.mark.parametrize(
        ("metadata", "error"),
        [
            ("license: my-own", '"license" must be one of'),
            ("pipeline_tag: prompting", '"pipeline_tag" must be one of'),
            ("base_model: /home/me/model", '"base_model" with value "/home/me/model" is not valid'),
            ("datasets: [fine, ../x]", '"datasets[1]" with value "../x" is not valid'),
            ("tags: one", '"tags" must be an array'),
            ("tags: [1]", '"tags[0]" must be a string'),
            ("language: english", '"language" with value "english" is not valid'),
            ("model-index: [{name: x}]", '"model-index[0].results" is required'),
            (
                "model-index: [{name: x, results: [{task: {type: t}, dataset: {name: d, type: a b}, metrics: []}]}]",
                '"model-index[0].results[0].dataset.type" with value "a b"',
            ),
            (
                "model-index: [{name: x, results: [{task: {type: t}, dataset: {name: d, type: d, config: 1}, "
                "metrics: [{type: accuracy}]}]}]",
                '"model-index[0].results[0].metrics[0].value" is required',
            ),
            ("a: [", "YAML metadata is not valid"),
        ],
    )
    def test_refuses(self, hub: HubServer, pushed: str, metadata: str, error: str) -> None:
        text = f"---\n{metadata}\n---\n# x\n"
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md") as raised:
            HfApi().upload_file(repo_id=ID, path_in_repo="README.md", path_or_fileobj=text.encode())
        assert error in str(raised.value) and hub.repos["model", ID].files()["README.md"] == CARD.encode()

    def test_takes_what_is_right_and_warns_of_nothing_at_all(self) -> None:
        result = (
            "model-index: [{name: x, results: [{task: {type: image-classification}, dataset: {name: CIFAR-10, "
            "type: uoft-cs/cifar10, split: test}, metrics: [{type: accuracy, value: 0.5}]}]}]"
        )
        assert hub_cards.problems(CARD.replace("license: mit", f"license: other\n{result}")) == ([], [])
        assert hub_cards.problems("# x\n") == ([], ["empty or missing yaml metadata in repo card"])


def test_names_objects_as_git_does() -> None:
    # `git hash-object -w` of the files and the pointer, then `git write-tree`, with git 2.39.
    files = {"a/b.txt": Blob(b"x\n"), "a.txt": Blob(b"y\n"), "a-b": Blob(b""), "w.bin": Blob(b"\0\1\2", lfs=True)}
    assert tree_oids(files) == {
        "": "2f9e629e8f3243f765090e87582295be4a0a5857",
        "a": "add4794d9c94872b96c1697c056fb82ae0d72880",
    }


@pytest.mark.multiprocess
def test_a_process_of_its_own_needs_only_its_environment(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", "upload", ID, str(folder), "--private"]
    environment = os.environ | hub_environment(hub, tmp_path / "elsewhere")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["model", ID]
    assert repo.private and repo.files()["model.safetensors"] == WEIGHTS

"""What a training run gives away: the card of its prompt, and pushes to the Hub."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import HfApi, get_session, run_as_future
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from .hub import README_NAME, TAG, push_prompt
from .hub_errors import CLIENT_ERRORS, explain


if TYPE_CHECKING:
    from .trainer import TransferableVisualPromptTrainer

logger = logging.getLogger(__name__)


class HubTrainer(Trainer):
    """
    A [`~transformers.Trainer`] of a prompt that shares the prompt, its pictures and its card, and nothing else of a run:
    no pickled arguments, no state of the optimizer, no logs.

    Attributes:
        card (`dict`): What every card says beside what the run knows: arguments of `create_model_card`.
    """

    card: dict[str, Any]
    # Of process 0, if it pushes: what is on its way. Set by `init_hf_repo`, as in the base class.
    push_in_progress: PushInProgress | None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the prompt to `output_dir` (by default `args.output_dir`), with its card. With `args.push_to_hub`, both
        are pushed as well."""
        super().save_model(output_dir, _internal_call=True)
        if _internal_call:
            return
        self._write_card(output_dir or self.args.output_dir)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def create_model_card(
        self,
        license: str | None = None,
        dataset_name: str | Sequence[str | Mapping[str, Any]] | None = None,
        tags: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        r"""
        Writes `README.md` into `args.output_dir`. One that is there is updated; what a user wrote in it stays.

        What is given here also goes into the cards that this trainer writes from now on.

        Args:
            license (`str`, *optional*): The licence of the prompt, as the Hub calls it: `"cc-by-4.0"`.
            dataset_name (`str`, or a sequence of `str` and `dict`, *optional*):
                What is learned from: Hub ids, or `dict`s with `id` and, optionally, `config`, `split` and `revision`.
                By default the training dataset says what it knows.
            tags (`str` or `Sequence[str]`, *optional*): Tags beside `transferable-vp` and `visual-prompt`.
            kwargs:
                Of [`~transformers.Trainer.create_model_card`], `dataset_tags` and `dataset` are other names of
                `dataset_name`. The rest is accepted and not used, with a warning.

        Raises:
            TypeError: If an argument is neither ours nor that of [`~transformers.Trainer.create_model_card`].
        """
        for name in ("dataset", "dataset_tags"):
            dataset_name = kwargs.pop(name, None) or dataset_name
        if unknown := kwargs.keys() - inspect.signature(Trainer.create_model_card).parameters.keys():
            raise TypeError(
                f"`create_model_card` got {', '.join(sorted(unknown))}; it takes license, dataset_name, tags."
            )
        if unused := [name for name, value in kwargs.items() if value is not None]:
            logger.warning("The card is made without %s: write it into README.md, it stays there.", ", ".join(unused))
        given = {"license": license, "dataset_name": dataset_name, "tags": tags}
        self.card |= {name: value for name, value in given.items() if value is not None}
        self._write_card(self.args.output_dir)

    def _write_card(self, folder: str | os.PathLike) -> None:
        if not self.is_world_process_zero():
            return
        from .model_card import facts_of_trainer, write_card

        trainer = cast("TransferableVisualPromptTrainer", self)
        facts = facts_of_trainer(trainer, self.card.get("dataset_name", ()), self.card.get("license"))
        tags = self.card.get("tags", ())
        # Without an owner it is no id that the examples could name; the push knows whose it becomes.
        named = self.hub_model_id if "/" in (self.hub_model_id or "") else None
        write_card(facts, folder, tags=[tags] if isinstance(tags, str) else tags, repo_id=named)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes sure, before anything is trained, that the repository is there and may be written to.

        Raises:
            OSError: If there is no way to push there: in one sentence that says what helps.
        """
        if not self.is_world_process_zero():
            return
        token = self.args.hub_token if token is None else token
        private = self.args.hub_private_repo if private is None else private
        name = self._repository_name()
        api = HfApi(token=token, library_name=TAG)
        try:
            name = api.create_repo(name, private=private, exist_ok=True).repo_id
            # `HfApi.auth_check(write=True)`, which the oldest huggingface_hub that works here does not have yet. Of a
            # repository that exists, nothing before this would say that the token cannot write to it.
            url = f"{api.endpoint}/api/models/{name}/auth-check/write"
            answer = get_session().get(url, headers=build_hf_headers(token=token, library_name=TAG))
            if answer.status_code in (401, 403):
                hf_raise_for_status(answer)
            public = not api.model_info(name).private
        except CLIENT_ERRORS as error:
            raise explain(error, name, "prepare to push to") from error
        if private and public:
            raise PermissionError(
                f"{name} exists and is public, as a private repository was asked for: make it private at "
                f"{api.endpoint}/{name}/settings, or take another `hub_model_id`."
            )
        self.hub_model_id, self.push_in_progress = name, None

    def _repository_name(self) -> str:
        return self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Saves the prompt and its card to `args.output_dir` and pushes them, and no other file that is there.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): Message of the commit.
            blocking (`bool`, *optional*, defaults to `True`): Whether to wait until it is done.
            token (`str`, *optional*): A token that may write. Defaults to `args.hub_token`, else the one logged in.
            revision (`str`, *optional*): The branch, made if it is not there. Defaults to `args.hub_revision`.
            private (`bool`, *optional*): Whether a new repository is private. Defaults to `args.hub_private_repo`.
            kwargs: As in [`~HubTrainer.create_model_card`].

        Returns:
            `huggingface_hub.CommitInfo`, with `blocking=False` a `Future` of it; on all processes but the first, `None`.

        Raises:
            OSError: If it cannot be pushed: in one sentence, with the command to push by hand. By then all is saved.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # Before the Hub is asked for anything: whatever it answers, the prompt and its card are here.
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        # Without `args.push_to_hub` nobody has made sure yet that the repository is there; the push does.
        self.hub_model_id = self.hub_model_id or self._repository_name()
        self.create_model_card(**kwargs)
        self._finish_current_push()
        commit = push_prompt(
            self.args.output_dir,
            self.hub_model_id,
            private=self.args.hub_private_repo if private is None else private,
            token=self.args.hub_token if token is None else token,
            revision=self.args.hub_revision if revision is None else revision,
            commit_message=commit_message,
            run_as_future=not blocking,
        )
        if not blocking:
            run_as_future(_report, commit, "The push")
        return commit

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The base class pushes pickled arguments, and with a checkpoint the pickled state of optimizer and generators.
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            logger.info("Step %d is not pushed, as the push before it goes on.", self.state.global_step)
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(checkpoint_folder)
        by_steps = self.args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        inside = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: folder.name}.get(strategy)
        jobs: list[Future] = []
        try:
            # The files are read at once and sent later: the next checkpoint may remove this one meanwhile. The card is
            # for the repository as a whole, and written once the checkpoint is read; one there is of an earlier run.
            (folder / README_NAME).unlink(missing_ok=True)
            if inside is not None:
                jobs += self._push_later(folder, when, ", checkpoint", inside)
            card = Path(self.args.output_dir) / README_NAME
            if card.exists():
                shutil.copyfile(card, folder / card.name)
            self._write_card(folder)
            jobs += self._push_later(folder, when)
        except (OSError, ValueError) as error:
            logger.warning("Training goes on, but %s is not pushed: %s", when, error)
        if jobs:
            # The client has one queue: once these are done, so are all before them.
            self.push_in_progress = PushInProgress(jobs)

    def _push_later(self, folder: Path, when: str, what: str = "", path_in_repo: str = "") -> list[Future]:
        job = push_prompt(
            folder,
            str(self.hub_model_id),
            private=self.args.hub_private_repo,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            commit_message=f"Training in progress, {when}{what}",
            run_as_future=True,
            path_in_repo=path_in_repo,
        )
        return [job, run_as_future(_report, job, f"Training goes on, but the push of {when}")]


def _report(job: Future, what: str) -> None:
    """Tells of a push that failed: nobody may ever ask its future. Stands behind it in the client's one queue."""
    if (error := job.exception()) is not None:
        logger.warning("%s failed: %s", what, error)

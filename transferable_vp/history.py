"""How a prompt looked while it was learned: frames that a callback keeps, or that checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .modeling import TransferableVisualPrompt


class PromptHistory(TrainerCallback):
    r"""
    Keeps pictures of the prompt and the losses while a [`TransferableVisualPromptTrainer`] learns, for
    [`~transferable_vp.pictures.save_training_strip`].

    Args:
        every (`int`, *optional*, defaults to 10):
            How many steps lie between two frames. The prompt as it begins and that of the last step are kept as well; of a
            training that is stopped early, the last frame is that of the last multiple of `every`.
        image (`PIL.Image.Image`, *optional*):
            A picture to show the prompt around. By default frames show the prompt alone, transparent where the picture
            goes; a prompt that is no picture of its own (an overlay, unbounded values) is shown on grey.

    Attributes:
        frames (`dict[int, PIL.Image.Image]`): The 8-bit prompt by the number of steps that had been taken.
        losses (`dict[int, float]`): The training loss by step, as logged: a mean over the steps since the log before.

    Raises:
        ValueError: If `every` is less than 1.

    Example:

    ```python
    >>> history = PromptHistory(every=10)
    >>> trainer = TransferableVisualPromptTrainer(..., callbacks=[history])  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    >>> save_training_strip(history, "training.png")  # doctest: +SKIP
    ```
    """

    def __init__(self, every: int = 10, image: Image.Image | None = None) -> None:
        if every < 1:
            raise ValueError(f"`every` is {every}; a frame can be kept every step at most: give 1 or more.")
        self.every, self.image = every, image
        self.frames: dict[int, Image.Image] = {}
        self.losses: dict[int, float] = {}

    @classmethod
    def from_checkpoints(cls, output_dir: str | Path, image: Image.Image | None = None) -> PromptHistory:
        r"""
        Reads the history of a run from the checkpoints that it left.

        Args:
            output_dir (`str` or `Path`): The `output_dir` of the training, with its `checkpoint-*` folders.
            image (`PIL.Image.Image`, *optional*): As in [`PromptHistory`].

        Returns:
            [`PromptHistory`]: One frame per checkpoint, and every loss that was logged up to the last of them.

        Raises:
            FileNotFoundError: If there is no checkpoint.
        """
        folders = {
            int(number): path
            for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
            # The state is written last: without it, a checkpoint is only half there.
            if (number := path.name.rpartition("-")[2]).isdigit() and (path / TRAINER_STATE_NAME).is_file()
        }
        if not folders:
            raise FileNotFoundError(
                f"There is no checkpoint in {output_dir}: train with `save_strategy='steps'`, or keep frames in memory "
                "with `callbacks=[PromptHistory()]`."
            )
        history = cls(image=image)
        for step in sorted(folders):
            history.frames[step] = history._look(TransferableVisualPrompt.from_pretrained(folders[step]))
        state = TrainerState.load_from_json(str(folders[max(folders)] / TRAINER_STATE_NAME))
        history.losses = {int(logs["step"]): logs["loss"] for logs in state.log_history if "loss" in logs}
        return history

    def _look(self, prompt: TransferableVisualPrompt) -> Image.Image:
        if self.image is not None:
            return prompt.apply(self.image)
        if prompt.config.layout == "border" and prompt.config.value_range == "displayable":
            return prompt.to_image()
        return prompt.apply(Image.new("RGB", (prompt.config.content_size,) * 2, (128, 128, 128)))

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keeps the prompt as it begins, and forgets what an earlier training had from that step on."""
        for kept in (self.frames, self.losses):
            for step in [step for step in kept if step > state.global_step]:
                del kept[step]
        self.frames[state.global_step] = self._look(model)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keeps the prompt of every so many steps and of the last."""
        # Not at the end of training: by then, the best prompt may have been put in place of the last.
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.frames[state.global_step] = self._look(model)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keeps the training loss."""
        if logs and "loss" in logs:
            self.losses[state.global_step] = float(logs["loss"])

"""The prompt itself: images in, a canvas of pixels out."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from .configuration import MAX_CANVAS_SIZE, TransferableVisualPromptConfig, ValueRange
from .images import ImageLike, fit_image, quantize, resample, to_images, to_pil


if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

logger = logging.getLogger(__name__)

ProcessorType = TypeVar("ProcessorType")

PROMPT_IMAGE_NAME = "prompt.png"
PREVIEW_IMAGE_NAME = "preview.png"
# Of `save_pretrained(push_to_hub=True)`. One forgotten here would be lost: without `private`, the prompt is public.
PUSH_ARGUMENTS = (
    "repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags", "license"
)  # fmt: skip
# Of `from_pretrained`: where to look on the Hub.
FETCH_ARGUMENTS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download")


class _StraightThroughClamp(torch.autograd.Function):
    """Clamps to [0, 1] and passes the gradient as if it had not: `torch.clamp` passes none at its bound, and a border
    that starts black starts there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


class TransferableVisualPrompt(PreTrainedModel):
    r"""
    One learned image prompt: a frame of pixels around the shrunk image (TVP, arXiv 2404.11207), or an overlay on it.

    A prompt is an image operation. It takes images and gives back images, so it works with every model that takes
    images: through [`~TransferableVisualPrompt.attach`] for a Hugging Face processor, or through
    [`~TransferableVisualPrompt.apply`] and a PNG for anything else.

    Args:
        config ([`TransferableVisualPromptConfig`]): Geometry and value range.

    Attributes:
        delta (`torch.nn.Parameter`): float32 `(3, canvas_size, canvas_size)`, the learned pixels, starting at zero;
            in [0, 1] on the border, in [-epsilon, epsilon] on an overlay, zero elsewhere.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transferable_vp import TransferableVisualPrompt, TransferableVisualPromptConfig

    >>> prompt = TransferableVisualPrompt(TransferableVisualPromptConfig())
    >>> prompt.apply(Image.new("RGB", (640, 480))).size
    (224, 224)
    ```
    """

    config_class = TransferableVisualPromptConfig
    config: TransferableVisualPromptConfig
    base_model_prefix = "visual_prompt"
    main_input_name = "images"
    input_modalities = ("image",)
    # Half precision cannot hold the small steps of pixel optimisation: whatever `dtype` is asked for, these stay fp32.
    _keep_in_fp32_modules_strict = ["delta"]

    def __init__(self, config: TransferableVisualPromptConfig) -> None:
        super().__init__(config)
        size = config.canvas_size
        self.delta = nn.Parameter(torch.zeros(3, size, size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # `delta` is zero from the start. Drawing it here would redraw it on load too (transformers#46620).
        pass

    @property
    def border_mask(self) -> torch.Tensor:
        """`torch.Tensor`: bool `(1, canvas, canvas)`, true on the frame."""
        size, border = self.config.canvas_size, self.config.border_size
        mask = torch.ones(1, size, size, dtype=torch.bool, device=self.delta.device)
        mask[:, border : size - border, border : size - border] = False
        return mask

    @property
    def content_mask(self) -> torch.Tensor:
        """`torch.Tensor`: bool `(1, canvas, canvas)`, true where the shrunk image is."""
        start, stop = self._content_span()
        mask = torch.zeros(1, *self.delta.shape[1:], dtype=torch.bool, device=self.delta.device)
        mask[:, start:stop, start:stop] = True
        return mask

    @property
    def trainable_mask(self) -> torch.Tensor:
        """`torch.Tensor`: bool `(1, canvas, canvas)`, true where `layout` lets pixels be learned."""
        layout = self.config.layout
        if layout == "border":
            return self.border_mask
        return self.content_mask if layout == "overlay" else self.border_mask | self.content_mask

    def _content_span(self) -> tuple[int, int]:
        start = (self.config.canvas_size - self.config.content_size) // 2
        return start, start + self.config.content_size

    def forward(
        self, images: ImageLike | Sequence[ImageLike] | torch.Tensor, prompted: bool = True
    ) -> torch.Tensor | list[torch.Tensor]:
        r"""
        Composes images and prompt.

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, or a sequence or batch of them):
                PIL images of any mode and size (EXIF rotation is applied, 16-bit is scaled, alpha is dropped as
                `Image.convert("RGB")` drops it); arrays `(h, w)` or `(h, w, 1|3|4)`, tensors `(1|3|4, h, w)` or a
                batch with one more axis in front; `uint8` in 0..255, floats in [0, 1].
            prompted (`bool`, *optional*, defaults to `True`):
                With `False` the learned pixels are left out: the same geometry around a black border, which is the
                clean side of Feature Consistency Alignment and the *zero border* of reports.

        Returns:
            `torch.Tensor`: float32 canvas `(batch, 3, canvas_size, canvas_size)` on the prompt's device, in [0, 1]
            (whatever the prompt says with `value_range="unbounded"`), with a graph back to `delta`. With
            `canvas="native"` a `list` of them instead, one `(3, height, width)` for every image.

        Raises:
            ValueError: If an image has no pixels, a shape or dtype that no image has, or floats outside [0, 1].
        """
        fitted, (start, stop) = self.fitted(images), self._content_span()
        if self.config.canvas == "native":
            return [self._around(picture, prompted).to(self.delta.device) for picture in fitted]
        canvas = torch.zeros(len(fitted), *self.delta.shape, device=self.delta.device)
        canvas[:, :, start:stop, start:stop] = torch.stack(fitted).to(canvas.device)
        return self._shown(canvas + self.delta) if prompted else canvas

    def fitted(self, images: ImageLike | Sequence[ImageLike] | torch.Tensor) -> list[torch.Tensor]:
        """The images as they stand on the canvas: float32 `(3, h, w)` in [0, 1], on the CPU, at the size of the content
        (with `canvas="native"` at their own). [`~TransferableVisualPrompt.forward`] makes the same of these as of the
        images, to the bit, without resizing them again."""
        # Resized on the CPU wherever the prompt is: another device rounds otherwise, and deployed images are made here.
        pictures = to_images(images)
        if self.config.canvas == "native":
            return pictures
        return [fit_image(picture, self.config.content_size, self.config.fit) for picture in pictures]

    def _shown(self, canvas: torch.Tensor) -> torch.Tensor:
        return canvas if self.config.value_range == "unbounded" else _StraightThroughClamp.apply(canvas)

    def _around(self, picture: torch.Tensor, prompted: bool) -> torch.Tensor:
        """The native canvas of one picture `(3, h, w)`: its own pixels, in margins that keep its proportions."""
        content, (start, stop) = self.config.content_size, self._content_span()
        longest = MAX_CANVAS_SIZE * content // self.config.canvas_size
        if max(picture.shape[-2:]) > longest:
            scale = longest / max(picture.shape[-2:])
            picture = resample(picture, *(max(1, int(side * scale)) for side in picture.shape[-2:]))
        height, width = picture.shape[-2:]
        gap = start - self.config.border_size
        # At least a pixel of frame, however small the picture.
        frame = [max(self.config.border_size > 0, round(side * self.config.border_size / content))
                 for side in (height, width)]  # fmt: skip
        top, left = (f + round(side * gap / content) for f, side in zip(frame, (height, width), strict=True))
        canvas, delta = torch.zeros(3, height + 2 * top, width + 2 * left), self.delta.cpu()
        inner = (slice(None), slice(top, top + height), slice(left, left + width))
        canvas[inner] = picture
        if not prompted:
            return canvas
        learned = torch.zeros_like(canvas)
        if self.config.layout != "overlay":
            mask = self.border_mask.float().cpu()
            scaled = resample(torch.cat([delta * mask, mask]), *canvas.shape[-2:])
            # Divided by how much of each pixel is frame, or the frame's inner edge would fade into what is not.
            border = scaled[:3] / scaled[3:].clamp_min(1e-6)
            outside = torch.ones_like(canvas[:1], dtype=torch.bool)
            outside[:, frame[0] : canvas.shape[1] - frame[0], frame[1] : canvas.shape[2] - frame[1]] = False
            learned = torch.where(outside, border, learned)
        if self.config.layout != "border":
            overlay = torch.zeros_like(canvas)
            overlay[inner] = resample(delta[:, start:stop, start:stop], height, width)
            learned = learned + overlay
        return self._shown(canvas + learned)

    @torch.no_grad()
    def project_(self) -> TransferableVisualPrompt:
        """Puts `delta` back, in place, into what the configuration allows: displayable values, learned pixels only.

        The trainer calls this after every optimizer step. Returns the prompt itself.
        """
        if self.config.value_range == "displayable":
            border, epsilon = self.delta.clamp(0, 1), self.config.epsilon
            self.delta.copy_(torch.where(self.border_mask, border, self.delta.clamp(-epsilon, epsilon)))
        self.delta.mul_(self.trainable_mask)
        return self

    @torch.no_grad()
    def apply(self, images: Any, prompted: bool = True) -> Any:
        r"""
        The images a deployed model is given: 8-bit RGB, ready to be saved as PNG or sent to an API.

        Args:
            images: As in [`~TransferableVisualPrompt.forward`].
            prompted (`bool`, *optional*, defaults to `True`): As in [`~TransferableVisualPrompt.forward`].

        Returns:
            `PIL.Image.Image` for one image, `list[PIL.Image.Image]` for a list or a batch.
        """
        if callable(images):
            # A function and no image: this is torch.nn.Module.apply(fn), which PreTrainedModel uses on itself.
            return super().apply(images)
        pictures = [to_pil(canvas) for canvas in self(images, prompted=prompted)]
        single = not isinstance(images, (list, tuple)) and getattr(images, "ndim", 3) <= 3
        return pictures[0] if single else pictures

    def attach(self, processor: ProcessorType, differentiable: bool = False) -> ProcessorType:
        r"""
        Returns a copy of `processor` that prompts every image it is given; `processor` itself is not changed.

        Args:
            processor (`ProcessorMixin` or `BaseImageProcessor`):
                The processor, or the bare image processor, of the model that is to be prompted.
            differentiable (`bool`, *optional*, defaults to `False`):
                Whether pixel values carry the gradient back to `delta`, for training. The values are the same to the
                bit. Needs an image processor with the torchvision backend.

        Returns:
            The same type that was given. It works in `processor(...)`, `apply_chat_template(tokenize=True)`,
            `pipeline("image-text-to-text", processor=...)` and wherever else the original did; saved, it loads as the
            plain processor.

        Raises:
            TypeError: If `processor` has no image processor, or none that a gradient can pass when one is asked for.

        Example:

        ```python
        >>> from transformers import AutoProcessor

        >>> processor = prompt.attach(AutoProcessor.from_pretrained("llava-hf/llava-1.5-7b-hf"))  # doctest: +SKIP
        ```
        """
        from .processing import attach

        return attach(self, processor, differentiable=differentiable)

    def to_image(self) -> Image.Image:
        """The learned border as an RGBA image, transparent where the content goes, that any program can paste; for
        `canvas="native"`, stretched to 1 + 2 x border / content of the picture's height and width.

        Raises:
            ValueError: If the prompt holds anything but a displayable border, which no image can carry.
        """
        if self.config.layout != "border" or self.config.value_range != "displayable":
            raise ValueError(
                f"Only a displayable border is an image of its own; this prompt has layout={self.config.layout!r} and "
                f"value_range={self.config.value_range!r}. Use `apply` to make prompted images instead."
            )
        pixels = quantize(self.delta.detach()).cpu()
        alpha = self.border_mask.cpu().to(torch.uint8) * 255
        return Image.fromarray(torch.cat([pixels, alpha]).permute(1, 2, 0).numpy())

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        r"""
        Saves `config.json`, `model.safetensors`, a `preview.png` to look at and, for a displayable border, `prompt.png`.

        The files are first written to a temporary folder inside it and then moved into place one by one, so that a
        full disk leaves what was there before. Arguments are those of [`~transformers.PreTrainedModel.save_pretrained`];
        with `push_to_hub=True` also those of [`~TransferableVisualPrompt.push_to_hub`], the name of the folder being
        the default of `repo_id`.

        Raises:
            OSError: If the disk is full, saying that nothing of what was there has been lost.
        """
        from . import __version__
        from .pictures import save_prompt_picture

        target = Path(save_directory)
        if target.is_file():
            raise NotADirectoryError(f"Cannot save to {target}: it is a file; give the path of a folder.")
        self.config.version = __version__
        push = kwargs.pop("push_to_hub", False)
        push_kwargs = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if name in kwargs}
        has_image = self.config.layout == "border" and self.config.value_range == "displayable"
        is_new = not target.exists()
        staging = None
        try:
            # Inside the folder: beside it may be another file system, or one that may not be written to.
            target.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
            super().save_pretrained(staging, **kwargs)
            if has_image:
                self.to_image().save(staging / PROMPT_IMAGE_NAME)
            # On grey, which an overlay can change as much in both directions.
            grey = Image.new("RGB", (self.config.content_size,) * 2, (128, 128, 128))
            save_prompt_picture(self.to_image() if has_image else self.apply(grey), staging / PREVIEW_IMAGE_NAME)
            for file in staging.iterdir():
                os.replace(file, target / file.name)
            if not has_image:
                # Of an earlier prompt.
                (target / PROMPT_IMAGE_NAME).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            # safetensors has no class of its own for a full disk, only these words.
            if getattr(error, "errno", None) == errno.ENOSPC or f"(os error {errno.ENOSPC})" in str(error):
                raise OSError(
                    errno.ENOSPC,
                    f"The disk is full: the prompt could not be saved to {target}, and what was there before is "
                    "untouched. Free some space and save again",
                ) from error
            raise
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            if is_new and target.exists() and not any(target.iterdir()):
                target.rmdir()
        if push:
            from .hub import share_prompt

            share_prompt(self, push_kwargs.pop("repo_id", target.resolve().name), target, **push_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] | None = None,
        license: str | None = None,
    ) -> CommitInfo:
        r"""
        Pushes the prompt to the Hub in one commit: `config.json`, `model.safetensors`, `prompt.png`, `preview.png` and
        a card, `README.md`, and nothing else. The card is the one the prompt was loaded with or, for a new prompt, says
        how to use it; one on the Hub is brought up to date, what people wrote in it stays.

        Args:
            repo_id (`str`): The repository, such as `"org/tvp-cifar10"`; without a name before it, your own.
            commit_message (`str`, *optional*): Defaults to `"Upload a transferable visual prompt"`.
            commit_description (`str`, *optional*): More about the commit.
            private (`bool`, *optional*):
                Whether a new repository is private. With `True`, nothing is pushed to one that exists and is public.
            token (`str` or `bool`, *optional*): A token, or `False` for none. Defaults to the one that is logged in.
            revision (`str`, *optional*): The branch, which is made if it is not there. Defaults to `main`.
            create_pr (`bool`, *optional*, defaults to `False`): Opens a pull request, which anyone may who can read.
            tags (`Sequence[str]`, *optional*): More tags for the card.
            license (`str`, *optional*): The licence, as the Hub calls it: `"apache-2.0"`.

        Returns:
            `huggingface_hub.CommitInfo`: With `commit_url`, `oid` and `pr_url`.

        Raises:
            OSError: If pushing fails: in one sentence, with the folder that holds the prompt and the command to push it
                by hand.
            ValueError: If `repo_id` is none, or the card holds the token.
        """
        from .hub import share_prompt

        return share_prompt(
            self, repo_id, commit_message=commit_message, commit_description=commit_description, private=private,
            token=token, revision=revision, create_pr=create_pr, tags=tags, license=license,
        )  # fmt: skip

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        r"""
        Loads a prompt from a folder or from the Hub. Only `config.json` and `model.safetensors` are read, and they are
        checked before anything of the size they claim is allocated; no code of a repository is ever run.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A folder, or the id of a repository such as `"org/tvp-cifar10"`.
            revision (`str`, *optional*): A branch, a tag or a commit. Defaults to `main`.
            subfolder (`str`, *optional*, defaults to `""`): A folder inside of the folder or repository.
            token (`str` or `bool`, *optional*): A token, or `False` for none. Defaults to the one that is logged in.
            cache_dir (`str` or `os.PathLike`, *optional*): The cache, if it is not the usual one.
            local_files_only (`bool`, *optional*, defaults to `False`): Takes what the cache has and asks nobody.
            force_download (`bool`, *optional*, defaults to `False`): Downloads again what the cache has.
            **kwargs:
                As in [`~transformers.PreTrainedModel.from_pretrained`] (`device_map`, `output_loading_info`, …), and
                values that replace those of the configuration.

        Raises:
            OSError: If there is no prompt there, or a file is damaged, or the Hub cannot be reached; in one sentence.
            ValueError: If it is no prompt that can be used, or code of the repository is to be run.
        """
        from .hub_fetch import find_prompt
        from .hub_safety import CONFIG_NAME, keep_arguments, read_config, read_delta

        kwargs = keep_arguments(kwargs)
        with_info, config = kwargs.pop("output_loading_info", False), kwargs.pop("config", None)
        place = {name: value for name in FETCH_ARGUMENTS if (value := kwargs.pop(name, None)) is not None}
        name = os.fspath(pretrained_model_name_or_path)
        folder, commit = find_prompt(name, **place)
        given = isinstance(config, cls.config_class)
        path = folder / CONFIG_NAME if given or config is None else Path(config)
        if not given or path.is_file():
            # Also where AutoModel has read it already, which looks neither at its size nor at its keys.
            stored = read_config(path)
        if not given:
            changed = {key: kwargs.pop(key) for key in list(kwargs) if key in stored.to_dict() and key != "dtype"}
            config = cls.config_class.from_dict(stored.to_dict() | changed)
        # By its content and not by its name: whatever else lies there (shards, adapters, pickles) is not looked at.
        kwargs |= {"config": config, "state_dict": {"delta": read_delta(folder, config)}, "output_loading_info": True}
        prompt, info = super().from_pretrained(None, *args, **kwargs)
        prompt.config.name_or_path = prompt.name_or_path = name
        prompt.config._commit_hash = commit
        loaded = prompt.delta.detach().clone()
        if not torch.equal(prompt.project_().delta, loaded):
            logger.warning(
                "The prompt at %s holds values that its configuration does not allow (%s, within %s pixels of border); "
                "they are put back into what it does.", name, config.value_range, config.border_size,
            )  # fmt: skip
        return (prompt, info) if with_info else prompt

    @classmethod
    def from_paper_checkpoint(
        cls, path: str | os.PathLike, value_range: ValueRange = "unbounded", content_size: int = 164
    ) -> TransferableVisualPrompt:
        r"""
        Reads the checkpoint that the paper's authors released (`save/checkpoint_best.pth`), without pickle code.

        Args:
            path (`str` or `os.PathLike`): A `.pth` file holding `{"perturbation": (3, 224, 224) float}`.
            value_range (`str`, *optional*, defaults to `"unbounded"`):
                `"unbounded"` keeps the values as published. `"displayable"` clamps them to [0, 1], which is all that an
                image can carry and changes the released prompt by 70 % of its norm.
            content_size (`int`, *optional*, defaults to 164): Height and width of the shrunk image.

        Raises:
            ValueError: If the file is not such a checkpoint.
        """
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise ValueError(f"{path} is not a checkpoint that can be read without running code: {error}") from error
        delta = checkpoint.get("perturbation") if isinstance(checkpoint, dict) else None
        if not isinstance(delta, torch.Tensor) or tuple(delta.shape) != (3, *delta.shape[-1:] * 2):
            found = sorted(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
            raise ValueError(
                f"{path} is not the paper's checkpoint: it must be a dict whose 'perturbation' is a tensor "
                f"(3, size, size), and holds {found}."
            )
        size = delta.shape[-1]
        prompt = cls(
            TransferableVisualPromptConfig(
                canvas_size=size,
                border_size=(size - content_size) // 2,
                content_size=content_size,
                value_range=value_range,
            )
        )
        with torch.no_grad():
            prompt.delta.copy_(delta)
        return prompt.project_()


AutoConfig.register(TransferableVisualPromptConfig.model_type, TransferableVisualPromptConfig)
AutoModel.register(TransferableVisualPromptConfig, TransferableVisualPrompt)

__all__ = ["TransferableVisualPrompt"]

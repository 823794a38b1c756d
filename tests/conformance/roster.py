"""
The families of the conformance suite: every type of `AutoModelForImageTextToText`, or the reason why not, and the paper's
models of `transferable_vp.models`.
"""

from __future__ import annotations

from typing import NamedTuple

import cross_models
import decoder_models
import gemma_models
import glm_models
import lfm_models
import llava_models
import newest_models
import ocr_models
import paper_models
import qwen_models
import tiling_models
import tiny
import transformers
from packaging.version import Version

from transferable_vp.support import supported_models


# What is said of a type is said of the transformers that the table was made with, and of later ones.
IS_OLD = Version(transformers.__version__) < Version(supported_models()["transformers"])


class Refusal(NamedTuple):
    """A type that cannot be learned on, why, and the error that says so."""

    reason: str
    error: type[Exception]
    match: str


# Built, and refused with an error that says why.
REFUSED = {
    "apertus1p5": Refusal(
        "its images become discrete tokens (the best code of each cell), through which no gradient passes; it can be a "
        "target",
        RuntimeError,
        "No gradient passes from the answers of .* discrete tokens",
    ),
    "chameleon": Refusal(
        "its images become discrete tokens (a VQ lookup), through which no gradient passes; it can be a target",
        RuntimeError,
        "No gradient passes from the answers of .* discrete tokens",
    ),
    "diffusion_gemma": Refusal(
        "it denoises a block of text instead of predicting the next token, so answers have no likelihood to learn by",
        ValueError,
        "does not predict each next token of its text",
    ),
    "emu3": Refusal(
        "its image processor works on PIL images only, and its images become discrete tokens (a VQ lookup), through "
        "which no gradient passes; it can be a target",
        TypeError,
        "passes no gradient and no float pixels",
    ),
    "instructblipvideo": Refusal(
        "its processor takes videos and has no image processor; InstructBLIP is the same model for images",
        TypeError,
        "has no image processor",
    ),
    "shieldgemma2": Refusal(
        "its processor asks its own safety policies in place of the question; Gemma3Processor on the same files works",
        RuntimeError,
        "looks at more images than the 2 it was given",
    ),
    "udop": Refusal(
        "it reads words that an OCR program found, with the boxes they stand in, and its processor takes no question "
        "without them",
        ValueError,
        "neither a chat template nor an `image_token`",
    ),
}
if transformers.__version__ == "5.24.0":
    # Its Llama 4 asks its language model's output for the features of images; the release before it did not.
    REFUSED["llama4"] = Refusal(
        "in transformers 5.24.0 its own forward pass fails (`image_outputs`)", AttributeError, "image_outputs"
    )
# Not built.
NOT_BUILT = {
    "evolla": "it reads proteins and no images",
    "mistral4": "the class that transformers loads for it, Mistral4ForCausalLM, reads text only",
    "pi0": "it gives the movements of a robot and no text",
}
BUILDERS = {
    **tiny.FAMILIES,
    **llava_models.FAMILIES,
    **qwen_models.FAMILIES,
    **glm_models.FAMILIES,
    **lfm_models.FAMILIES,
    **gemma_models.FAMILIES,
    **tiling_models.FAMILIES,
    **decoder_models.FAMILIES,
    **cross_models.FAMILIES,
    **newest_models.FAMILIES,
    **ocr_models.FAMILIES,
    **paper_models.FAMILIES,
}
FAMILIES = [name for name in BUILDERS if name not in REFUSED]
# Other models of a type, as "blip-2 (t5)" beside "blip-2": the type is supported if all of them pass.
VARIANTS = {name for name in BUILDERS if name.endswith(")")}
# The paper's models that are no types of transformers: a table of their own.
PAPER = set(paper_models.FAMILIES)
# What the default test run asks; the others are slow.
REPRESENTATIVE = [
    "llava", "llava_next", "qwen2_vl", "qwen3_5", "idefics3", "smolvlm", "internvl", "llama4", "gemma3", "paligemma",
    "mllama", "git", "blip-2", "instructblip", "blip-2 (t5)", "florence2", "pix2struct", "lfm2_vl", "video_llava",
    "chameleon", "bliva", "minigpt4",
]  # fmt: skip
# What a user of the type should know.
NOTES = {
    "blip": "candidates and written tokens cost a full pass each",
    "deepseek_ocr2": "built with 4 queries a view in place of the 144 and 256 that transformers hard-codes",
    "dots3_note": "indexer scores that tie can differ between a row alone and in a batch; not with 8 heads or more",
    "fast_vlm": "built with ConvNeXt in place of FastViT, whose features vanish at random weights",
    "git": "candidates and written tokens cost a full pass each",
    "glm5_next": "indexer scores that tie can differ between a row alone and in a batch; not with 16 heads or more",
    "hunyuan_vl": "some of its image features are learned constants, which feature consistency compares as well",
    "hy_v4_vl": "some of its image features are learned constants, which feature consistency compares as well; indexer scores that tie can differ between a row alone and in a batch; not with 8 heads or more",
    "idefics": "candidates cost a full pass each",
    "kosmos-2": "finite differences need float64 as torch's default, as it makes float constants",
    "llama4": "its processor rounds pixels to bfloat16; finite differences are taken without the rounding",
    "minigpt4": "`Blip2ForConditionalGeneration` with a LLaMA",
    "mistral_large4": "indexer scores that tie can differ between a row alone and in a batch; not with 16 heads or more",
    "pix2struct": "with `is_vqa=False`: with it, the question is drawn into the image by PIL, which passes no gradient",
    "pp_formulanet": "candidates cost a full pass each; it reads no question; its processor crops light margins, so a pale border may be cut off",
    "vpgtrans": "`Blip2ForConditionalGeneration` with a LLaMA, as MiniGPT-4",
    "vision-encoder-decoder": "Donut reads the question in its decoder; TrOCR reads none",
    "video_llava": "its own pixel values, with the gradient of CLIP's image processor, which takes the same steps",
}

"""ChatGLM-6B's tokens: SentencePiece, blanks spelled out, and two tokens behind every context."""

from __future__ import annotations

import re
from typing import Any

from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


# Longest run of blanks that has a token.
MAX_BLANKS = 80


class VisualGLMTokenizer(SentencePieceBackend):
    r"""
    The tokenizer of VisualGLM-6B and ChatGLM-6B. Needs `sentencepiece`.

    Line breaks, tabs and runs of 2 to 80 blanks have tokens of their own. A context ends with `[gMASK]` and `<sop>`,
    behind which an answer begins; `<eop>` ends it. Rows are padded on the left.

    Args:
        vocab_file (`str`):
            The SentencePiece model, `ice_text.model`, whose ids are the model's. (ChatGLM-6B first counted 20,000
            image tokens before them; VisualGLM-6B does not.)
        unk_token (`str`, *optional*, defaults to `"<unk>"`): Unknown token. It stands for the image in a text.
        bos_token (`str`, *optional*, defaults to `"<sop>"`): Token that an answer begins behind.
        eos_token (`str`, *optional*, defaults to `"<eop>"`): Token that ends an answer.
        pad_token (`str`, *optional*, defaults to `"<pad>"`): Padding.
        mask_token (`str`, *optional*, defaults to `"[MASK]"`): Token of a short gap, which is not asked for here.
        gmask_token (`str`, *optional*, defaults to `"[gMASK]"`): Token that stands for the answer in the context.

    Raises:
        ValueError: If the SentencePiece model lacks one of these tokens.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str,
        unk_token: str = "<unk>",
        bos_token: str = "<sop>",
        eos_token: str = "<eop>",
        pad_token: str = "<pad>",
        mask_token: str = "[MASK]",
        gmask_token: str = "[gMASK]",
        **kwargs: Any,
    ) -> None:
        # Blanks beside a special token belong to the text.
        named = {
            "unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token,
            "mask_token": mask_token, "gmask_token": gmask_token,
        }  # fmt: skip
        tokens = {name: AddedToken(str(token), normalized=False, special=True) for name, token in named.items()}
        super().__init__(vocab_file=str(vocab_file), **tokens, **{"padding_side": "left", **kwargs})
        absent = [str(token) for token in tokens.values() if self.convert_tokens_to_ids(str(token)) >= self.vocab_size]
        if absent:
            raise ValueError(
                f"{vocab_file} has no token {', '.join(absent)}: give the `ice_text.model` that comes with "
                "THUDM/visualglm-6b."
            )

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        # The longest runs first, as a run of 81 is one of 80 and a plain blank.
        text = re.sub(f" {{2,{MAX_BLANKS}}}", lambda run: f"<|blank_{len(run[0])}|>", text)
        return self.sp_model.encode(text, out_type=str)

    def _convert_id_to_token(self, index: int) -> str:
        # The model has logits for more ids than the vocabulary has pieces.
        return super()._convert_id_to_token(index) if index < self.sp_model.get_piece_size() else str(self.unk_token)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of `tokens`, line breaks, tabs and blanks included."""
        text = self.sp_model.decode(tokens)
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d+)\|>", lambda run: " " * int(run[1]), text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """A context, `[gMASK]` and `<sop>`; with an answer in `token_ids_1`, that and `<eop>`."""
        context = [*token_ids_0, self.gmask_token_id, self.bos_token_id]
        return context if token_ids_1 is None else [*context, *token_ids_1, self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where [`~VisualGLMTokenizer.build_inputs_with_special_tokens`] puts a special token, 0 elsewhere."""
        if already_has_special_tokens:
            return [int(token in self.all_special_ids) for token in token_ids_0]
        mask = [0] * len(token_ids_0) + [1, 1]
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]


__all__ = ["VisualGLMTokenizer"]

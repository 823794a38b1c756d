"""What a vision-language model must do for a prompt to be learned on it: one function a promise, the same for all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Llama4ImageProcessor, PreTrainedModel, ProcessorMixin

from transferable_vp import Surrogate, TransferableVisualPrompt
from transferable_vp.answers import SurrogateOutput, answer_loss
from transferable_vp.generation import _BY_FULL_PASSES, generate
from transferable_vp.scoring import _CHECKED, score_candidates


CANVAS, BORDER = 64, 12
SIDES = {
    "top": (slice(None), slice(0, BORDER)),
    "bottom": (slice(None), slice(-BORDER, None)),
    "left": (slice(None), slice(None), slice(0, BORDER)),
    "right": (slice(None), slice(None), slice(-BORDER, None)),
}
QUESTIONS = ["What is in the picture?", "Which colour is the square?"]
ANSWERS = ["red", "a blue square"]
CANDIDATES = ["red", "a blue square", "zero one two"]
# Steps of a finite difference, in grey levels. The first suits nearly all; experts are chosen anew within a few of the
# smaller ones, and where a processor rounds to bfloat16 only a large one is seen at all.
STEPS = (4e-3, 5e-4, 5e-2, 1.0)


# Types for which a cache cannot be shared, or `generate` does not write what full passes find; any other must not fall
# back on full passes, or these checks would compare them with themselves.
BY_FULL_PASSES = {"ranking": {"blip", "git", "idefics", "pp_formulanet"}, "generation": {"blip", "git"}}


@dataclass
class Case:
    """A family under test, two pictures and a noisy prompt. Checks change none of it."""

    model: PreTrainedModel
    processor: ProcessorMixin

    def __post_init__(self) -> None:
        self.surrogate = Surrogate(self.model, self.processor)
        self.images = [tiny.picture(60, 44, seed=1), tiny.picture(48, 48, seed=2)]

    @staticmethod
    def prompt() -> TransferableVisualPrompt:
        """A prompt of noise, new every time."""
        return tiny.noise_prompt(canvas_size=CANVAS, border_size=BORDER)

    def run(
        self, prompt: TransferableVisualPrompt, unbounded: bool = False, features: bool = False
    ) -> SurrogateOutput:
        """The forward pass of a training step."""
        return self.surrogate.forward(prompt(self.images), QUESTIONS, ANSWERS, unbounded, features)


def check_attach(case: Case) -> None:
    """(a) An attached processor gives what the processor gives for the prompted image, by both routes."""
    prompt = case.prompt()
    prompted = prompt.apply(case.images)
    arguments = case.surrogate.processor_arguments(case.images, QUESTIONS)
    expected = case.processor(**case.surrogate.processor_arguments(prompted, QUESTIONS))
    same(prompt.attach(case.processor)(**arguments), expected)
    if not getattr(case.processor, "chat_template", None):
        return
    chat = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    question, image = QUESTIONS[0], case.images[0]
    attached = prompt.attach(case.processor).apply_chat_template(tiny.conversation(question, image), **chat)
    same(attached, case.processor.apply_chat_template(tiny.conversation(question, prompted[0]), **chat))


def check_pixels(case: Case) -> None:
    """(b) Training sees the deployed pixel values to the bit, and they carry a gradient."""
    prompt = case.prompt()
    trained = case.surrogate.encode(prompt.apply(case.images), QUESTIONS, prompt(case.images))
    deployed = case.surrogate.encode(prompt.apply(case.images), QUESTIONS)
    same(trained, deployed)
    assert any(tensor.requires_grad for _, tensor in tensors(trained)), "no input carries a gradient"


def check_native(case: Case) -> None:
    """(b) The same for canvases that follow the pictures' sizes."""
    prompt = tiny.noise_prompt(canvas_size=CANVAS, border_size=BORDER, canvas="native")
    canvases = prompt(case.images)
    trained = case.surrogate.encode(prompt.apply(case.images), QUESTIONS, canvases)
    same(trained, case.surrogate.encode(prompt.apply(case.images), QUESTIONS))
    carrying = [tensor for _, tensor in tensors(trained) if tensor.requires_grad]
    gradients = torch.autograd.grad(sum(tensor.square().sum() for tensor in carrying), canvases)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def check_gradient(case: Case) -> None:
    """(c) The gradient reaches all four sides and is the one that central finite differences give."""
    prompt = case.prompt()
    answer_loss(case.run(prompt)).backward()
    gradient = prompt.delta.grad
    assert gradient is not None and gradient.isfinite().all()
    for side, index in SIDES.items():
        assert gradient[index].abs().sum() > 0, f"no gradient on the {side} of the border"
    floats = case.prompt()
    floats.config.value_range = "unbounded"
    answer_loss(case.run(floats, unbounded=True)).backward()
    # The one that training takes is that of the float path, whose values are some grey levels off.
    assert F.cosine_similarity(gradient.flatten(), floats.delta.grad.flatten(), dim=0) > 0.4
    assert 0.6 < gradient.norm() / floats.delta.grad.norm() < 1.7
    ratios = list(difference_ratios(case))
    assert min(abs(ratio - 1) for ratio in ratios) < 0.02, f"finite differences over gradient: {ratios}"


def difference_ratios(case: Case) -> Iterator[float]:
    """Central finite difference over gradient along its own sign, for every step in turn until one agrees."""
    precise = Case(copy.deepcopy(case.model).double(), case.processor)
    strict = precise.model._keep_in_fp32_modules_strict or ()
    for name, parameter in precise.model.named_parameters():
        if any(part in name for part in strict):
            # Inkling's router makes its input float32, whatever the rest is in.
            parameter.data = parameter.data.float()
    for module in precise.model.modules():
        # Fused experts take no float64. Every copy of the configuration, as some layers have their own.
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"
    if isinstance(case.processor.image_processor, Llama4ImageProcessor):
        # It rounds pixels to bfloat16 between rescaling and normalising; this is the same without the rounding.
        vars(precise.surrogate.differentiable_processor.image_processor).update(
            do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3
        )
    prompt = case.prompt().double()
    prompt.config.value_range = "unbounded"

    def loss() -> torch.Tensor:
        if case.model.config.model_type == "kosmos-2":
            # It makes float constants in its forward pass.
            torch.set_default_dtype(torch.float64)
        try:
            output = precise.run(prompt, unbounded=True)
        finally:
            torch.set_default_dtype(torch.float32)
        return F.cross_entropy(output.logits.flatten(0, 1).double(), output.labels.flatten())

    (gradient,) = torch.autograd.grad(loss(), prompt.delta)
    direction = gradient.sign() * prompt.border_mask
    slope = float((gradient * direction).sum())
    start = prompt.delta.detach().clone()
    for levels in STEPS:
        step = levels / 255
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                prompt.delta.copy_(start + sign * step * direction)
                ends.append(float(loss()))
        ratio = (ends[0] - ends[1]) / (2 * step) / slope
        yield ratio
        if abs(ratio - 1) < 0.02:
            return


def check_features(case: Case) -> None:
    """(d) Image features are those of the pass that makes the loss; the clean side has the same, without a graph."""
    prompt = case.prompt()
    output = case.run(prompt, features=True)
    assert output.features is not None and output.features.isfinite().all()
    assert output.features.std() > 0
    outside = ancestors(output.features) - ancestors(answer_loss(output))
    # What only the features depend on may reshape them, and no more.
    shaping = ("Cat", "View", "ToCopy", "Alias", "Slice", "Select", "Unbind", "Squeeze", "Clone", "Split", "Stack")
    strangers = [node.name() for node in outside if not any(word in node.name() for word in shaping)]
    assert not strangers, f"the features were computed by operations that the loss does not use: {strangers[:5]}"
    (gradient,) = torch.autograd.grad(output.features.square().mean(), prompt.delta)
    assert gradient.abs().sum() > 0
    clean = case.surrogate.features(prompt(case.images), QUESTIONS)
    assert not clean.requires_grad
    torch.testing.assert_close(clean, output.features.detach(), rtol=1e-4, atol=1e-5)
    other = case.surrogate.features(prompt(case.images, prompted=False), QUESTIONS)
    assert other.shape == clean.shape and not torch.allclose(other, clean)


def check_labels(case: Case) -> None:
    """(e) The loss covers answer and end token and nothing else, whatever else is in the batch."""
    prompt = case.prompt()
    with torch.no_grad():
        canvas = prompt(case.images)
        both = case.surrogate.forward(canvas, QUESTIONS, ANSWERS)
        for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
            ids = [*case.surrogate.answer_ids(question, answer), case.surrogate.end_token_id]
            mask = both.labels[row] != -100
            assert both.labels[row][mask].tolist() == ids
            alone = case.surrogate.forward(canvas[row : row + 1], [question], [answer])
            torch.testing.assert_close(
                both.logits[row][mask], alone.logits[0][alone.labels[0] != -100], rtol=1e-3, atol=1e-3
            )
        other = case.surrogate.forward(prompt(case.images, prompted=False), QUESTIONS, ANSWERS)
    mask = both.labels != -100
    assert (other.logits[mask] - both.logits[mask]).abs().max() > 1e-3, "the answer does not depend on the picture"


def check_placeholders(case: Case) -> None:
    """(e) One placeholder too few for the image features is an error."""
    inputs = case.surrogate.encode(case.prompt().apply(case.images), QUESTIONS)
    token = case.surrogate.image_token_id
    # Kosmos says in a mask where its placeholders are.
    key, mark = ("image_embeds_position_mask", 1) if "image_embeds_position_mask" in inputs else ("input_ids", token)
    other = 0 if mark == 1 else case.surrogate.answer_ids(QUESTIONS[0], ANSWERS[0])[0]
    has_placeholders = mark is not None and (inputs.get(key, torch.empty(0)) == mark).any()
    if not has_placeholders or case.surrogate.family.features_module:
        pytest.skip("no image feature takes the place of a token")
    inputs, start, labels = case.surrogate.append_answers(inputs, QUESTIONS, ANSWERS)
    case.surrogate.answer_logits(inputs, start, labels.shape[1])
    row, column = (inputs[key] == mark).nonzero()[-1].tolist()
    inputs[key] = inputs[key].clone()
    inputs[key][row, column] = other
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)image|placeholder|feature|shape mismatch"):
        case.surrogate.answer_logits(inputs, start, labels.shape[1])


def check_learning(case: Case) -> None:
    """(f) Ten steps lower the loss."""
    prompt = TransferableVisualPrompt(case.prompt().config)
    optimizer = torch.optim.Adam([prompt.delta], lr=0.1)
    losses = []
    for _ in range(11):
        loss = answer_loss(case.run(prompt))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        prompt.project_()
    assert losses[-1] < losses[0], losses


@torch.no_grad()
def check_ranking(case: Case) -> None:
    """(g) Candidates score as when each is read in a full pass of its own over one whole text."""
    images = case.prompt().apply(case.images)
    scores = score_candidates(case.surrogate, images, QUESTIONS, [CANDIDATES] * len(images))
    for image, question, row in zip(images, QUESTIONS, scores, strict=True):
        naive = torch.stack([naive_score(case, image, question, candidate) for candidate in CANDIDATES])
        torch.testing.assert_close(row, naive, rtol=1e-3, atol=1e-3)
    is_full = not _CHECKED[case.surrogate].right_to
    assert is_full == (case.model.config.model_type in BY_FULL_PASSES["ranking"]), _CHECKED[case.surrogate].wrong


def naive_score(case: Case, image: Image.Image, question: str, answer: str) -> torch.Tensor:
    """Mean log-likelihood of the answer's tokens, from the model's own processor and forward pass alone."""
    ids = case.surrogate.answer_ids(question, answer)
    arguments = case.surrogate.processor_arguments([image], [question])
    read = naive_decoder_inputs if case.surrogate.is_encoder_decoder else naive_text_inputs
    inputs = read(case, arguments, answer, ids)
    log_probabilities = case.model(**inputs).logits[0, -len(ids) - 1 : -1].float().log_softmax(-1)
    return log_probabilities.gather(1, torch.tensor(ids)[:, None]).mean()


def naive_decoder_inputs(case: Case, arguments: dict[str, Any], answer: str, ids: list[int]) -> dict[str, Any]:
    """The decoder's text begins with its start token, or with Donut's own, and what the processor has for it."""
    inputs = model_inputs(case, case.processor(**arguments))
    config = case.model.config
    donut = "donut" in getattr(getattr(config, "encoder", None), "model_type", "")
    text = config.get_text_config(decoder=True)
    starts = [getattr(c, name, None) for c in (case.model.generation_config, config, text)
              for name in ("decoder_start_token_id", "bos_token_id")]  # fmt: skip
    start = next(token for token in starts if token is not None)
    own = inputs.pop("input_ids" if donut else "decoder_input_ids", torch.empty(1, 0, dtype=torch.long))
    if donut:
        del inputs["attention_mask"]
    inputs.pop("decoder_attention_mask", None)
    tokens = [*([] if donut else [start]), *own[0].tolist(), *ids]
    return inputs | {"decoder_input_ids": torch.tensor([tokens])}


def naive_text_inputs(case: Case, arguments: dict[str, Any], answer: str, ids: list[int]) -> dict[str, Any]:
    """The processor is given question and answer as one text."""
    (text,) = arguments["text"]
    begins = not text or text[-1].isspace() or text.endswith(tuple(case.processor.tokenizer.all_special_tokens))
    gap = "" if begins else " "
    model_type = case.model.config.model_type
    given: dict[str, Any] = {"text": [text + gap + answer]}
    if model_type == "paligemma":
        # Its own way to say that a text is an answer: its token types follow from it.
        given = {"suffix": [answer]}
    elif model_type == "chameleon":
        given = {
            "text": [text + case.processor.tokenizer.sep_token + gap + answer],
            "return_for_text_completion": True,
        }
    elif model_type == "fuyu":
        # What its processor ends every question with; the answer goes on from there.
        given = {"text": [text + "<0x04>" + answer]}
    elif model_type == "visualglm":
        # An answer stands behind the tokens that close a question.
        given = {"text_pair": [answer]}
    batch = case.processor(**(arguments | given))
    if model_type in ("paligemma", "fuyu", "git", "blip", "visualglm"):
        # These close a text with a token of their own.
        for key in ("input_ids", "attention_mask", "token_type_ids"):
            if key in batch:
                batch[key] = batch[key][:, :-1]
    if model_type == "blip":
        batch["input_ids"][:, 0] = case.model.config.text_config.bos_token_id
    for key in (key for key in batch if key.startswith("qformer")):
        # InstructBLIP's Q-Former reads the question, and must not read the answer.
        batch[key] = case.processor(**arguments)[key]
    inputs = model_inputs(case, batch)
    tail = inputs["input_ids"][0, -len(ids) :].tolist()
    assert tail == ids, f"the processor ends the whole text with {tail}, not with the answer {ids}"
    return inputs


@torch.no_grad()
def check_generation(case: Case) -> None:
    """(g) A batch writes, token by token, what full passes find most likely for each row alone."""
    images = case.prompt().apply(case.images)
    answers = generate(case.surrogate, images, QUESTIONS, max_new_tokens=4)
    for image, question, answer in zip(images, QUESTIONS, answers, strict=True):
        written: list[int] = []
        while len(written) < 4 and case.surrogate.end_token_id not in written:
            inputs = case.surrogate.encode([image], [question])
            # Whatever comes next: any token but a placeholder, which 0 is for some.
            inputs, start, labels = case.surrogate.append_ids(inputs, [[*written, case.surrogate.end_token_id]])
            written.append(int(case.surrogate.answer_logits(inputs, start, labels.shape[1])[0, -1].argmax()))
        assert answer == case.surrogate.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert (case.surrogate in _BY_FULL_PASSES) == (case.model.config.model_type in BY_FULL_PASSES["generation"])


CHECKS: dict[str, Callable[[Case], None]] = {
    "attach": check_attach,
    "pixels": check_pixels,
    "native": check_native,
    "gradient": check_gradient,
    "features": check_features,
    "labels": check_labels,
    "placeholders": check_placeholders,
    "learning": check_learning,
    "ranking": check_ranking,
    "generation": check_generation,
}


def model_inputs(case: Case, batch: Any) -> dict[str, Any]:
    """A processor's output as the model takes it."""
    floats = (torch.float32, torch.float16, torch.bfloat16)
    return {
        key: value.to(case.model.dtype) if getattr(value, "dtype", None) in floats else value
        for key, value in batch.items()
        if key != "labels"
    }


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a nesting of dicts and lists, with its name."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif hasattr(value, "items"):
        for key, part in value.items():
            yield from tensors(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from tensors(part, f"{name}[{index}]")


def same(left: Any, right: Any) -> None:
    """Fails unless both hold the same tensors, to the bit."""
    ours, theirs = dict(tensors(left)), dict(tensors(right))
    assert list(ours) == list(theirs) and ours
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), f"{name} differs"


def ancestors(tensor: torch.Tensor) -> set[Any]:
    """Every node of the graph that `tensor` was made by."""
    seen: set[Any] = set()
    nodes = [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return seen

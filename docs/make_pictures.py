"""Makes the pictures of docs/pictures.md from the zoo: the training strip, the transfer heat map and the saliency.

    python docs/make_pictures.py    # about five minutes on an idle CPU

Learns one prompt on each member of the zoo, measures each on all of them, and keeps prompts, reports and answers under
`runs/pictures/`. A run that was stopped goes on where it stopped; remove that folder to begin anew.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from transferable_vp import (
    Surrogate,
    Task,
    TransferableVisualPrompt,
    TransferableVisualPromptConfig,
    TransferableVisualPromptTrainer,
    TransferableVisualPromptTrainingArguments,
    transfer_report,
)
from transferable_vp.bundled import bundled
from transferable_vp.cache import AnswerCache, fingerprint
from transferable_vp.demo import RECIPE, load_world
from transferable_vp.history import PromptHistory
from transferable_vp.pictures import save_heatmap, save_saliency, save_training_strip
from transferable_vp.report import gains_of, read_json, write_json
from transferable_vp.saliency import border_saliency


DOCS = Path(__file__).parent
MEMBERS = ("llava", "idefics3", "paligemma", "instructblip", "blip2", "internvl")
TITLE = "colours under a green light"
STEPS, N_TRAIN, N_TEST, N_SALIENCY = 60, 800, 300, 60
# Whose training the strip shows, and for which models the saliency of that prompt is asked.
SOURCE, ASKED = "llava", ("llava", "idefics3", "paligemma")


def learn(source: Surrogate, train: list[dict[str, Any]], task: Task, folder: Path) -> TransferableVisualPrompt:
    """The demo's recipe on one member, with a checkpoint for every frame of the strip."""
    prompt = TransferableVisualPrompt(TransferableVisualPromptConfig(canvas_size=64, border_size=8))
    args = TransferableVisualPromptTrainingArguments(
        str(folder), max_steps=STEPS, logging_steps=5, save_strategy="steps", save_steps=10, disable_tqdm=True,
        use_cpu=True, **RECIPE,
    )  # fmt: skip
    TransferableVisualPromptTrainer(prompt, args, source, train_dataset=train, task=task).train()
    return prompt


def main() -> None:
    """Learns and measures what is not there yet, then draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/pictures"), help="prompts, reports and answers")
    parser.add_argument("--images_dir", type=Path, default=DOCS / "images", help="where the pictures go")
    args = parser.parse_args()
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    disable_progress_bar()
    world = load_world()
    task = Task(question_column="question", candidates=world.CANDIDATES["color"])
    train, test = world.color_examples(N_TRAIN, seed=1), world.color_examples(N_TEST, seed=3)
    models = {name: Surrogate.from_pretrained(str(bundled(f"zoo/{name}"))) for name in MEMBERS}
    answers = args.output_dir / "answers"
    # Once, before anything is asked of them, so that all reports share what a model answered without a learned prompt.
    caches = {name: AnswerCache(answers, fingerprint(model), {"by": "rank"}) for name, model in models.items()}
    for name, model in models.items():
        path = args.output_dir / name / "transfer.json"
        if not path.exists():
            prompt = learn(model, train, task, args.output_dir / name)
            report = transfer_report(
                list(models.values()), test, task, [prompt], source=[name], title=TITLE,
                cache=lambda model: caches[model.name],
            )  # fmt: skip
            write_json(report, path)
    gains, intervals = gains_of([read_json(args.output_dir / name / "transfer.json") for name in MEMBERS])
    save_heatmap(gains, args.images_dir / "transfer_heatmap.png", TITLE.capitalize(), intervals)

    picture = test[0]["image"]
    history = PromptHistory.from_checkpoints(args.output_dir / SOURCE, image=picture)
    prompt = TransferableVisualPrompt.from_pretrained(args.output_dir / SOURCE / f"checkpoint-{STEPS}")
    history.frames[0] = prompt.apply(picture, prompted=False)  # it begins black, before there is a checkpoint
    save_training_strip(history, args.images_dir / "training_strip.png", f"A border while it is learned on {SOURCE}")

    some = world.color_examples(N_SALIENCY, seed=5)
    found = [border_saliency(models[name], some, task, prompt) for name in ASKED]
    title = f"Where a border learned on {SOURCE} acts"
    save_saliency(found, prompt.apply(picture), args.images_dir / "saliency.png", title)


if __name__ == "__main__":
    main()

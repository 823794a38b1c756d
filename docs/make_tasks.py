"""Writes docs/tasks.md from the files of transferable_vp/tasks.

python docs/make_tasks.py
"""

from __future__ import annotations

from pathlib import Path

from transferable_vp.corruptions import CORRUPTIONS
from transferable_vp.tasks import PaperTask, get_task, task_names


PAGE = Path(__file__).parent / "tasks.md"

INTRODUCTION = """# Tasks

The ten tasks of the paper, each a small file in `transferable_vp/tasks/`. This page is written by
`python docs/make_tasks.py`.

<!-- not run: CIFAR-10 comes from the Hub -->
```python
from transferable_vp.evaluation import evaluate
from transferable_vp.tasks import get_task

task = get_task("cifar10")
rows = task.load("test[:500]")  # from the Hub
rows = task.load("test", path="my/cifar10")  # or from a local copy
evaluate(surrogate, rows, task.task, prompt).mean
```

A local copy is a folder of parquet files, of `save_to_disk` or with one folder of images per class, or a `.parquet`,
`.csv`, `.json` or `.jsonl` file; file names of images in a table are looked for next to it. `train` and `test` stand for
the splits below, and a copy may call them either. Columns are found by their types where that leaves no doubt, and class
names whatever their order, case and separators are: folders of Food-101 sort *cheese_plate* before *cheesecake*, the Hub
does not. A column that is missing or a class that is not the task's is an error that names it. Nothing is a loading
script, which `datasets` has refused since version 4.
"""

CORRUPTED = """## Corruptions

```python
from PIL import Image
from transferable_vp import Surrogate, Task, TransferableVisualPrompt, evaluate, load_data
from transferable_vp.corruptions import corrupt, corrupted

corrupt(Image.open("photo.jpg"), "fog", severity=3)  # one image

rows = load_data("my_images")
task = Task.infer(rows, question="What color is it?")
prompt = TransferableVisualPrompt.from_pretrained("runs/demo/prompt")
evaluate(Surrogate.from_pretrained("zoo/llava"), rows, corrupted(task, "fog", severity=3), prompt)  # as they are read
```

{names}:
at severities 1 to 5, in the style of CIFAR-10-C (Hendrycks and Dietterich, 2019). They are written anew, for images of
any size: strengths are near those of CIFAR-10-C at 32 pixels and of ImageNet-C at 224. Results are not comparable with
those on the published files (`YashP54/cifar10-c` has them); glass blur, snow, frost and elastic transform are left out.
What is drawn depends on the seed and the image alone.
"""


def answers(task: PaperTask) -> str:
    """The candidates, or the first and last of many."""
    names = list(task.task.candidates or ())
    if len(names) > 10:
        return f"{len(names)}: {', '.join(names[:3])}, ... {names[-1]}"
    return ", ".join(names)


def columns(task: PaperTask) -> str:
    """The columns that a local copy must have; a question that is made of another column is shown as that."""
    named = [task.task.image_column, task.task.answer_column]
    if task.task.question_column:
        named.append("text" if task.name == "hateful_memes" else task.task.question_column)
    return ", ".join(f"`{name}`" for name in named)


def question(task: PaperTask) -> str:
    """What is asked."""
    if task.name == "hateful_memes":
        return 'This is an image with: "{text}" written on it. Is it hateful?'
    return "the column `question`" if task.task.question_column else task.task.question


def page() -> str:
    """The page as Markdown."""
    tasks = [get_task(name) for name in task_names()]
    lines = [INTRODUCTION]
    lines += ["| task | Hub dataset | train / test | columns | question | answers | metric | mirrored in training |"]
    lines += ["|---" * 8 + "|"]
    for task in tasks:
        source = f"`{task.dataset}`" + (f", {task.configuration}" if task.configuration else "")
        source += f", branch `{task.revision}`" if task.revision else ""
        lines.append(
            f"| `{task.name}` | {source} | {task.train_split or '–'} / {task.test_split} | {columns(task)} | "
            f"{question(task)} | {answers(task)} | {task.metric} | {'yes' if task.task.flip else 'no'} |"
        )
    lines += [
        "",
        "The paper's code mirrors the images of every task; here those with digits or text are left alone. A",
    ]
    lines += [
        "mirrored scene has as many objects, and a mirrored dog is there as well. `pope` is `pope_adversarial`, as in the paper's code."
    ]
    lines += ["", "## Where the facts come from", ""]
    lines += [f"- **{task.title}**: {task.note}" for task in tasks if task.name == "pope" or "pope" not in task.name]
    return "\n".join(lines) + "\n\n" + CORRUPTED.format(names=", ".join(f"`{name}`" for name in CORRUPTIONS))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

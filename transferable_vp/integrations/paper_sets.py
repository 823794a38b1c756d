"""The paper's tasks as tasks of lmms-eval, which has only POPE of them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from lmms_eval.api.task import ConfigurableTask  # type: ignore[import-not-found,unused-ignore]
from PIL import Image

from ..data import decode
from ..metrics import load_metric
from ..metrics.counting.counting import correct
from ..tasks import PaperTask, get_task


# A number and a full stop.
COUNT_TOKENS = 16


class PaperSet(ConfigurableTask):
    r"""
    One of the paper's tasks, read by `transferable_vp.tasks` and asked by lmms-eval.

    Candidates are ranked by their mean log-likelihood, as the paper does; CLEVR's counts are generated. The YAML file
    of such a task, of which `transferable_vp/integrations/tasks` has one per dataset, names this class and the task:

    ```yaml
    task: my_cifar10
    class: !function transferable_vp.integrations.paper_sets.PaperSet
    paper_task: cifar10
    path: /data/cifar10  # a local copy; without it the dataset comes from the Hub
    split: test[:500]  # defaults to test
    ```

    Args:
        config (`dict`): What the YAML file says.

    Raises:
        ValueError: If there is no such task, or the data are not of its schema.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.paper_task: PaperTask = get_task(config["paper_task"])
        self._where = config.get("split", "test"), config.get("path")
        super().__init__(config={"task": config["task"], "test_split": "test", "dataset_path": self.paper_task.dataset,
                                 **_asked(self.paper_task)})  # fmt: skip

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Loads the rows, with and without images."""
        split, path = self._where
        rows = self.paper_task.load(split, path)
        column = self.paper_task.task.image_column
        if isinstance(rows.features[column], datasets.Image):
            # lmms-eval logs whatever is no picture.
            rows = rows.cast_column(column, datasets.Image())
        self.dataset = datasets.DatasetDict({"test": rows})
        self.dataset_no_image = datasets.DatasetDict({"test": rows.remove_columns(column)})


def _asked(paper_task: PaperTask) -> dict[str, Any]:
    """What a task's configuration says beyond its name. Functions and no methods: lmms-eval copies them deeply."""
    task = paper_task.task
    candidates = list(task.candidates or ())

    def question(doc: dict[str, Any]) -> str:
        return task.question if task.question_column is None else str(doc[task.question_column])

    def image(doc: dict[str, Any]) -> list[Image.Image]:
        return [decode(doc[task.image_column])]

    def answer(doc: dict[str, Any]) -> str:
        return task.answer(doc)

    def rank(doc: dict[str, Any]) -> int:
        return candidates.index(answer(doc))

    def ranked(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        losses = [_loss(result) for result in results]
        right: dict[str, Any] = {"acc": float(np.argmin(losses) == rank(doc))}
        if paper_task.metric == "auroc":
            right["auroc"] = (losses[0] - losses[1], rank(doc))
        return right

    def counted(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
        answer = [task.answer(doc)]
        return {
            "acc": float(correct(results[:1], answer)[0]),
            "acc_paper": float(correct(results[:1], answer, "paper")[0]),
        }

    asked: dict[str, Any] = {"doc_to_visual": image, "doc_to_text": question}
    if paper_task.metric == "counting":
        return {**asked, "output_type": "generate_until", "doc_to_target": answer, "process_results": counted,
                "generation_kwargs": {"max_new_tokens": COUNT_TOKENS, "do_sample": False, "temperature": 0},
                "metric_list": [_mean("acc"), _mean("acc_paper")]}  # fmt: skip
    more = (
        [{"metric": "auroc", "aggregation": _auroc, "higher_is_better": True}] if paper_task.metric == "auroc" else []
    )
    return {**asked, "output_type": "multiple_choice", "doc_to_choice": candidates, "doc_to_target": rank,
            "process_results": ranked, "metric_list": [_mean("acc"), *more]}  # fmt: skip


def _loss(result: Any) -> float:
    # lmms-eval 0.7.3 makes a string of what most models, and its cache, give for a candidate.
    return float((ast.literal_eval(result) if isinstance(result, str) else result)[0])


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _auroc(items: Sequence[tuple[float, int]]) -> float:
    scores, classes = zip(*items, strict=True)
    return load_metric("auroc").compute(predictions=list(scores), references=list(classes))["auroc"]

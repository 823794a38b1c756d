"""The paper's tasks: every one loaded from small data of exactly the Hub's schema, and CIFAR-10 from real data."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
import yaml
from datasets import ClassLabel, Image
from hub_schemas import INTEGER, POPE, TEXT, WEBDATASET, made, rows, schema
from PIL import Image as PILImage

from transferable_vp.bundled import bundled
from transferable_vp.data import BadImageError, ExampleCollator
from transferable_vp.evaluation import evaluate
from transferable_vp.scoring import score_candidates
from transferable_vp.surrogate import Surrogate
from transferable_vp.tasks import PaperTask, get_task, task_names


ROOT = Path(__file__).parents[1]
CIFAR10 = ROOT.parent / "shared/data/cifar10"
NAMES = ["aircraft", "cifar10", "cifar100", "clevr", "food101", "hateful_memes", "imagenette", "pets", "pope",
         "pope_adversarial", "pope_popular", "pope_random", "svhn"]  # fmt: skip
PHOTO = "This is a photo of a"
COUNT = "How many objects are there in this image? Answer with a single number."
HATEFUL = 'This is an image with: "{}" written on it. Is it hateful?'
# Question, answer and caption of the first two rows.
READ = {
    "aircraft": [(PHOTO, "707-320", "this is a photo of a 707-320"), (PHOTO, "727-200", "this is a photo of a 727-200")],
    "cifar10": [(PHOTO, "airplane", "this is a photo of a airplane"),
                (PHOTO, "automobile", "this is a photo of a automobile")],
    "cifar100": [(PHOTO, "apple", "this is a photo of a apple"),
                 (PHOTO, "aquarium fish", "this is a photo of a aquarium fish")],
    "clevr": [(COUNT, "3", "this is a photo of 3 objects"), (COUNT, "4", "this is a photo of 4 objects")],
    "food101": [(PHOTO, "apple pie", "this is a photo of a apple pie"),
                (PHOTO, "baby back ribs", "this is a photo of a baby back ribs")],
    "hateful_memes": [(HATEFUL.format("text 0"), "no", "is this meme hateful? no"),
                      (HATEFUL.format("text 1"), "yes", "is this meme hateful? yes")],
    "imagenette": [(PHOTO, "tench", "this is a photo of a tench"),
                   (PHOTO, "English springer", "this is a photo of a English springer")],
    "pets": [(PHOTO, "abyssinian", "this is a photo of a abyssinian"),
             (PHOTO, "american bulldog", "this is a photo of a american bulldog")],
    "svhn": [(PHOTO, "0", "this is a photo of a 0"), (PHOTO, "1", "this is a photo of a 1")],
} | {
    name: [("Is there a dog in the image?", "yes", "the answer is yes"),
           ("Is there a cup in the image?", "no", "the answer is no")]
    for name in NAMES if name.startswith("pope")
}  # fmt: skip
# Hub id, configuration, branch, splits, metric, number of answers, whether mirrored.
DECLARED = {
    "aircraft": ("clip-benchmark/wds_fgvc_aircraft", None, None, "train", "test", "candidate_accuracy", 100, True),
    "cifar10": ("uoft-cs/cifar10", None, None, "train", "test", "candidate_accuracy", 10, True),
    "cifar100": ("uoft-cs/cifar100", None, None, "train", "test", "candidate_accuracy", 100, True),
    "clevr": ("clip-benchmark/wds_vtab-clevr_count_all", None, None, "train", "test", "counting", 8, True),
    "food101": ("ethz/food101", None, None, "train", "validation", "candidate_accuracy", 101, True),
    "hateful_memes": ("Ahren09/MMSoc_HatefulMemes", None, None, "train", "validation", "auroc", 2, False),
    "imagenette": ("frgfm/imagenette", "320px", "refs/convert/parquet", "train", "validation", "candidate_accuracy", 10,
                   True),
    "pets": ("timm/oxford-iiit-pet", None, None, "train", "test", "candidate_accuracy", 37, True),
    "pope": ("lmms-lab/POPE", "Full", None, None, "adversarial", "pope", 2, True),
    "pope_adversarial": ("lmms-lab/POPE", "Full", None, None, "adversarial", "pope", 2, True),
    "pope_popular": ("lmms-lab/POPE", "Full", None, None, "popular", "pope", 2, True),
    "pope_random": ("lmms-lab/POPE", "Full", None, None, "random", "pope", 2, True),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", None, "train", "test", "candidate_accuracy", 10, False),
}  # fmt: skip


def read(task: PaperTask, loaded: Any) -> list[tuple[str, str, str]]:
    examples = [task.task.example(row, i) for i, row in enumerate(loaded)]
    return [(example.question, example.answer, example.caption) for example in examples]


def same(image: PILImage.Image, other: PILImage.Image) -> bool:
    return np.array_equal(np.asarray(image.convert("RGB")), np.asarray(other.convert("RGB")))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache that is gone with the test, and no progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    yield
    if shown:
        datasets.enable_progress_bars()


def test_every_file_is_a_task_of_its_name() -> None:
    assert task_names() == NAMES
    for name in NAMES:
        task = get_task(name)
        assert isinstance(task, PaperTask)
        assert task.name == name
        assert task.note
    assert len({get_task(name).title for name in NAMES}) == len(NAMES) - 1, "pope is pope_adversarial"


def test_an_unknown_task_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no task 'mnist': expected one of aircraft, cifar10, .*, svhn\."):
        get_task("mnist")
    with pytest.raises(ValueError, match="no task '_columns'"):
        get_task("_columns")


@pytest.mark.parametrize("name", NAMES)
def test_declared(name: str) -> None:
    task = get_task(name)
    assert (task.dataset, task.configuration, task.revision, task.train_split, task.test_split, task.metric,
            len(task.task.candidates), task.task.flip) == DECLARED[name]  # fmt: skip
    assert isinstance(hash(task), int)


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What `load_dataset` was asked for, in place of downloads."""
        calls = []

        def load_dataset(*args: Any, **given: Any) -> Any:
            calls.append((args, given))
            name = next(name for name in NAMES if DECLARED[name][0] == args[0] and DECLARED[name][4] == wanted(given))
            return made(name).to_iterable_dataset() if given["streaming"] else made(name)

        def wanted(given: dict[str, Any]) -> str:
            split = given["split"].split("[")[0]
            return next(row[4] for row in DECLARED.values() if split in (row[3], row[4]) and row[0] == calls[-1][0][0])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_asked_for(self, name: str, asked: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        dataset, configuration, revision, train, test, *_ = DECLARED[name]
        task = get_task(name)
        where = {"data_dir" if revision else "name": configuration}
        # The plain name of the split, and the dataset's own.
        for split in ("test", test):
            loaded = task.load(split)
            assert asked[-1] == ((dataset,), {"split": test, "revision": revision, "streaming": False, **where})
        assert read(task, loaded)[:2] == READ[name]
        task.load("test[:2]")
        assert asked[-1][1]["split"] == f"{test}[:2]"
        if train is None:
            with pytest.raises(ValueError, match=r"no training split on the Hub \(lmms-lab/POPE\): give your own"):
                task.load("train")
        else:
            task.load("train[10:20]")
            assert asked[-1][1]["split"] == f"{train}[10:20]"

    def test_streaming_takes_slices_of_rows(self, asked: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        task = get_task("food101")
        loaded = task.load("test[1:3]", streaming=True)
        assert asked[-1][1] == {"split": "validation", "name": None, "revision": None, "streaming": True}
        assert [answer for _, answer, _ in read(task, loaded)] == ["baby back ribs", "waffles"]
        assert len(list(task.load("test[3:]", streaming=True))) == 1
        assert len(list(task.load("test[:0]", streaming=True))) == 0
        for split in ("test[:10%]", "train+test", "test[-2:]"):
            with pytest.raises(
                ValueError, match=r"cannot be streamed: give a name and whole rows, as in 'test\[:500\]'"
            ):
                task.load(split, streaming=True)

    def test_the_parquet_branch_is_read_by_folders(self, tmp_path: Path) -> None:
        # Its layout: a folder per configuration, with a folder per split in it.
        for configuration, count in (("160px", 3), ("320px", 4), ("full_size", 2)):
            for split in ("train", "validation"):
                folder = tmp_path / configuration / split
                folder.mkdir(parents=True)
                made("imagenette").select(range(count)).to_parquet(folder / "0000.parquet")
        task = replace(get_task("imagenette"), dataset=str(tmp_path))
        assert len(task.load("train")) == len(task.load("test")) == 4


@pytest.mark.parametrize("name", NAMES)
class TestLocal:
    def test_parquet_file(self, name: str, tmp_path: Path) -> None:
        task = get_task(name)
        made(name).to_parquet(tmp_path / "any.parquet")
        loaded = task.load("test", path=str(tmp_path / "any.parquet"))
        assert len(loaded) == 4
        assert read(task, loaded)[:2] == READ[name]
        assert same(task.task.example(loaded[3]).image, tiny.picture(seed=3))
        # Training on a file is possible even where the Hub has nothing to train on.
        assert len(task.load("train[:3]", path=str(tmp_path / "any.parquet"))) == 3

    def test_parquet_file_streamed(self, name: str, tmp_path: Path) -> None:
        task = get_task(name)
        made(name).to_parquet(tmp_path / "any.parquet")
        loaded = task.load("test[:2]", path=str(tmp_path / "any.parquet"), streaming=True)
        assert isinstance(loaded, datasets.IterableDataset)
        assert read(task, loaded) == READ[name]

    def test_saved_to_disk(self, name: str, tmp_path: Path) -> None:
        task = get_task(name)
        made(name).save_to_disk(tmp_path / "one")
        loaded = task.load("test[:2]", path=str(tmp_path / "one"))
        assert read(task, loaded) == READ[name]

    def test_saved_to_disk_with_splits(self, name: str, tmp_path: Path) -> None:
        task = get_task(name)
        splits = {"train": made(name).select([0]), task.test_split: made(name)}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
        loaded = task.load("test", path=str(tmp_path / "all"))
        assert len(loaded) == 4
        assert read(task, loaded)[:2] == READ[name]
        assert len(task.load("train", path=str(tmp_path / "all"))) == 1
        assert read(task, task.load("test[:2]", path=str(tmp_path / "all"), streaming=True)) == READ[name]

    def test_downloaded_from_the_hub(self, name: str, tmp_path: Path) -> None:
        # The card names the configurations, one of which is another dataset.
        task = get_task(name)
        splits = [task.test_split, *([task.train_split] if task.train_split else [])]
        own = task.configuration or "default"
        card = {"configs": [
            {"config_name": config, "data_files": [{"split": s, "path": f"{config}/{s}-*"} for s in splits]}
            for config in ("aaa", own)
        ]}  # fmt: skip
        if own == "default":
            card["configs"].pop(0)
        (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
        for config, dataset in (("aaa", datasets.Dataset.from_dict({"x": [1]})), (own, made(name))):
            (tmp_path / config).mkdir()
            for split in splits:
                dataset.to_parquet(tmp_path / config / f"{split}-00000-of-00001.parquet")
        assert read(task, task.load("test[:2]", path=str(tmp_path))) == READ[name]

    def test_folder_of_parquet_with_plain_names(self, name: str, tmp_path: Path) -> None:
        made(name).to_parquet(tmp_path / "test.parquet")
        made(name).select([0, 1]).to_parquet(tmp_path / "train.parquet")
        task = get_task(name)
        assert len(task.load("test", path=str(tmp_path))) == 4
        assert read(task, task.load("train", path=str(tmp_path))) == READ[name]

    def test_a_missing_column_is_named(self, name: str, tmp_path: Path) -> None:
        task = get_task(name)
        for column, feature in schema(name).items():
            if column not in (task.task.image_column, task.task.answer_column, "question", "text"):
                continue
            dataset = made(name).remove_columns(column)
            if feature == TEXT:
                dataset = dataset.remove_columns(
                    [c for c in ("text", "response", "answers") if c in dataset.column_names]
                )
            dataset.to_parquet(tmp_path / f"{column}.parquet")
            with pytest.raises(ValueError, match=rf"lacks the columns? .*'{column}'.*: it has '.*docs/tasks\.md"):
                task.load(path=str(tmp_path / f"{column}.parquet"))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("pope")])
def test_labels_without_names(name: str, tmp_path: Path) -> None:
    task = get_task(name)
    made(name).cast_column(task.task.answer_column, INTEGER).to_parquet(tmp_path / "any.parquet")
    assert read(task, task.load(path=str(tmp_path / "any.parquet")))[:2] == READ[name]


class TestLayouts:
    """Local copies that are laid out in other ways than the Hub's."""

    def test_webdataset(self, tmp_path: Path) -> None:
        for split, label in (("train", 7), ("test", 2)):
            (tmp_path / split).mkdir()
            with tarfile.open(tmp_path / split / "0.tar", "w") as archive:
                for i in range(3):
                    file = io.BytesIO()
                    tiny.picture(seed=i).save(file, "WEBP", lossless=True)
                    for name, content in ((f"s{i:07}.cls", str(label).encode()), (f"s{i:07}.webp", file.getvalue())):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
        task = get_task("clevr")
        loaded = task.load("test", path=str(tmp_path))
        assert {**loaded.features, "webp": Image()} == WEBDATASET
        assert [answer for _, answer, _ in read(task, loaded)] == ["5"] * 3
        assert same(task.task.example(loaded[1]).image, tiny.picture(seed=1))
        assert task.task.answer(get_task("aircraft").load("train", path=str(tmp_path))[0]) == "10"

    def folders(self, root: Path, names: list[str]) -> Path:
        for i, name in enumerate(names):
            (root / "val" / name).mkdir(parents=True)
            tiny.picture(seed=i).save(root / "val" / name / "0.png")
        return root

    def test_folders_sorted_otherwise_than_labels(self, tmp_path: Path) -> None:
        # As labels, these would be the first four dishes.
        self.folders(tmp_path, ["cheese_plate", "cheesecake", "waffles", "Hot-Dog"])
        task = get_task("food101")
        loaded = task.load("test", path=str(tmp_path))
        assert {answer for _, answer, _ in read(task, loaded)} == {"cheese plate", "cheesecake", "waffles", "hot dog"}
        for row in loaded:
            picture = task.task.example(row)
            index = ["cheese plate", "cheesecake", "waffles", "hot dog"].index(picture.answer)
            assert same(picture.image, tiny.picture(seed=index))

    def test_folders_of_wordnet_ids(self, tmp_path: Path) -> None:
        self.folders(tmp_path, ["n03888257", "n02102040"])
        task = get_task("imagenette")
        for streaming in (False, True):
            loaded = task.load("test", path=str(tmp_path), streaming=streaming)
            assert {answer for _, answer, _ in read(task, loaded)} == {"parachute", "English springer"}

    def test_folders_of_another_dataset(self, tmp_path: Path) -> None:
        self.folders(tmp_path, ["cat", "okapi"])
        with pytest.raises(
            ValueError,
            match=r"'label' has classes that are not among the 10 of this task: 'okapi'; expected 'airplane'",
        ):
            get_task("cifar10").load("validation", path=str(tmp_path))

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        self.folders(tmp_path, ["cat"])
        with pytest.raises(ValueError, match=r"has the splits 'validation' and none for 'test': ask for one of these"):
            get_task("cifar10").load("test", path=str(tmp_path))
        with pytest.raises(ValueError, match=r"none for 'train'"):
            get_task("cifar10").load("validation+train[:1]", path=str(tmp_path))

    def test_nothing_there(self) -> None:
        # Two names with one slash are otherwise taken for a Hub id.
        with pytest.raises(FileNotFoundError, match="There is no dataset at data/cifar10: no such file or folder"):
            get_task("cifar10").load(path="data/cifar10")

    def test_columns_found_by_their_types(self, tmp_path: Path) -> None:
        # Classes of other things stand before those of the variants.
        features = {"scan": Image(), "family": ClassLabel(names=["Boeing 737", "MD-80"]),
                    "label": ClassLabel(names=["MD-80", "737-200"])}  # fmt: skip
        values = {"scan": [tiny.picture(), tiny.picture(seed=1)], "family": [0, 1], "label": [1, 0]}
        datasets.Dataset.from_dict(values, features=datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
        task = get_task("aircraft")
        assert [a for _, a, _ in read(task, task.load(path=str(tmp_path / "a.parquet")))] == ["737-200", "MD-80"]

    def test_bare_numbers_in_another_column_are_not_guessed(self, tmp_path: Path) -> None:
        # 5 may be five objects or label 5, which is eight.
        datasets.Dataset.from_dict({"image": [tiny.picture()], "label": [5]}).cast_column("image", Image()).to_parquet(
            tmp_path / "a.parquet"
        )
        with pytest.raises(ValueError, match=r"CLEVR counting .*lacks the column 'cls': it has 'webp', 'label'\."):
            get_task("clevr").load(path=str(tmp_path / "a.parquet"))

    def test_counts_as_words_and_as_digits(self, tmp_path: Path) -> None:
        values = {"image": [tiny.picture(), tiny.picture()], "answer": ["7", "Ten"]}
        datasets.Dataset.from_dict(values).cast_column("image", Image()).to_parquet(tmp_path / "a.parquet")
        task = get_task("clevr")
        assert [a for _, a, _ in read(task, task.load(path=str(tmp_path / "a.parquet")))] == ["7", "10"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_memes_as_they_were_released(self, tmp_path: Path, streaming: bool) -> None:
        (tmp_path / "img").mkdir()
        lines = []
        for i, label in enumerate([1, 0]):
            tiny.picture(seed=i).save(tmp_path / "img" / f"0{i}.png")
            lines.append(json.dumps({"id": i, "img": f"img/0{i}.png", "label": label, "text": f'say "{i}"'}))
        (tmp_path / "dev.jsonl").write_text("\n".join(lines))
        task = get_task("hateful_memes")
        loaded = task.load("test", path=str(tmp_path / "dev.jsonl"), streaming=streaming)
        assert [(q, a) for q, a, _ in read(task, loaded)] == [
            (HATEFUL.format('say "0"'), "yes"),
            (HATEFUL.format('say "1"'), "no"),
        ]
        assert same(task.task.example(next(iter(loaded))).image, tiny.picture(seed=0))

    def test_memes_with_named_labels(self, tmp_path: Path) -> None:
        features = datasets.Features(schema("hateful_memes") | {"label": ClassLabel(names=["not-hateful", "hateful"])})
        datasets.Dataset.from_dict(rows("hateful_memes"), features=features).to_parquet(tmp_path / "a.parquet")
        task = get_task("hateful_memes")
        assert [a for _, a, _ in read(task, task.load(path=str(tmp_path / "a.parquet")))] == ["no", "yes", "yes", "no"]

    def test_pope_as_it_was_released(self, tmp_path: Path) -> None:
        lines = []
        for i, label in enumerate(["yes", "no"]):
            tiny.picture(seed=i).save(tmp_path / f"COCO_{i}.png")
            question = {"question_id": i, "image": f"COCO_{i}.png", "text": f"Is there a {i}?", "label": label}
            lines.append(json.dumps(question))
        (tmp_path / "coco.json").write_text("\n".join(lines))
        task = get_task("pope")
        loaded = task.load("train", path=str(tmp_path / "coco.json"))
        assert [(q, a) for q, a, _ in read(task, loaded)] == [("Is there a 0?", "yes"), ("Is there a 1?", "no")]
        assert same(task.task.example(loaded[1]).image, tiny.picture(seed=1))

    def test_pope_of_all_kinds_in_one_split(self, tmp_path: Path) -> None:
        values = rows("pope") | {"category": ["random", "popular", "adversarial", "popular"]}
        path = str(tmp_path / "test.parquet")
        datasets.Dataset.from_dict(values, features=datasets.Features(POPE)).to_parquet(path)
        things = {"random": ["dog"], "popular": ["cup", "cat"], "adversarial": ["car"]}
        for kind, expected in things.items():
            task = get_task(f"pope_{kind}")
            questions = [question for question, _, _ in read(task, task.load(path=path))]
            assert questions == [f"Is there a {thing} in the image?" for thing in expected]
        made("pope_random").to_parquet(path)
        with pytest.raises(ValueError, match=r"POPE \(popular\) .* has no rows in that split"):
            get_task("pope_popular").load(path=path)

    def test_csv(self, tmp_path: Path) -> None:
        tiny.picture(seed=5).save(tmp_path / "a.png")
        (tmp_path / "t.csv").write_text("image,label\na.png,6\n")
        task = get_task("svhn")
        for streaming in (False, True):
            example = task.task.example(next(iter(task.load(path=str(tmp_path / "t.csv"), streaming=streaming))))
            assert example.answer == "6"
            assert same(example.image, tiny.picture(seed=5))

    def test_an_unlabelled_row_is_named_when_it_is_read(self, tmp_path: Path) -> None:
        features = datasets.Features({"img": Image(), "label": ClassLabel(names=["cat", "dog"])})
        values = {"img": [tiny.picture(), tiny.picture()], "label": [1, -1]}
        datasets.Dataset.from_dict(values, features=features).to_parquet(tmp_path / "a.parquet")
        task = get_task("cifar10")
        loaded = task.load(path=str(tmp_path / "a.parquet"))
        assert task.task.example(loaded[0]).answer == "dog"
        with pytest.raises(ValueError, match=r"answer of row 1 is '-1', which is not among the candidates"):
            task.task.example(loaded[1], 1)

    def test_images_are_not_decoded_by_loading(self, tmp_path: Path) -> None:
        features = datasets.Features({"image": Image(decode=False), "label": INTEGER})
        values = {"image": [{"bytes": b"broken", "path": "b.png"}], "label": [3]}
        datasets.Dataset.from_dict(values, features=features).cast_column("image", Image()).to_parquet(
            tmp_path / "a.parquet"
        )
        task = get_task("svhn")
        for streaming in (False, True):
            loaded = task.load(path=str(tmp_path / "a.parquet"), streaming=streaming)
            with pytest.raises(BadImageError, match=r"row 0 \(b\.png\) cannot be read"):
                task.task.example(next(iter(loaded)), 0)


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"needs real CIFAR-10 at {CIFAR10}, which the product does not")
def test_real_cifar10() -> None:
    task = get_task("cifar10")
    loaded = task.load("test[:200]", path=str(CIFAR10))
    examples = [task.task.example(row) for row in loaded]
    assert all(example.image.size == (32, 32) for example in examples)
    assert {example.answer for example in examples} == set(task.task.candidates)
    assert loaded.features["label"].names == list(task.task.candidates)
    streamed = task.load("train[:3]", path=str(CIFAR10), streaming=True)
    assert len(read(task, streamed)) == 3


def test_evaluate_a_task_with_a_model_of_the_zoo(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = {"img": [tiny.picture(seed=i) for i in range(6)], "label": [0, 1, 2, 3, 4, 5]}
    features = datasets.Features(schema("cifar10"))
    datasets.Dataset.from_dict(values, features=features).to_parquet(tmp_path / "test.parquet")
    task = get_task("cifar10")
    loaded = task.load("test", path=str(tmp_path / "test.parquet"))
    surrogate = Surrogate.from_pretrained(str(bundled("zoo/llava")))
    result = evaluate(surrogate, loaded, task.task, batch_size=4, progress=False)
    candidates = list(task.task.candidates)
    scores = score_candidates(surrogate, values["img"], [PHOTO] * 6, [candidates] * 6)
    expected = [candidates[int(score.argmax())] for score in scores]
    assert result.answers == expected
    assert result.values.tolist() == [float(answer == candidates[i]) for i, answer in enumerate(expected)]
    # And the trainer's side reads the same rows.
    batch = ExampleCollator(task.task)([loaded[i] for i in range(6)])
    assert batch["answers"] == candidates[:6]
    assert batch["captions"][0] == "this is a photo of a airplane"


class TestPage:
    @pytest.fixture
    def make_tasks(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("make_tasks", ROOT / "docs/make_tasks.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_is_what_the_code_says(self, make_tasks: ModuleType) -> None:
        written = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
        assert written == make_tasks.page(), "run `python docs/make_tasks.py`"

    def test_names_every_task_and_dataset(self, make_tasks: ModuleType) -> None:
        page = make_tasks.page()
        for name in NAMES:
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
            assert f"`{DECLARED[name][0]}`" in row
            assert row.endswith(f"| {DECLARED[name][5]} | {'yes' if DECLARED[name][7] else 'no'} |")

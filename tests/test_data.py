"""Datasets as users have them: found columns, answers as text, images that can be read and those that cannot."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from transferable_vp.data import BadImageError, Example, ExampleCollator, Task, decode, load_data, undecoded


CLASSES = ["cat", "hot_dog", "red_circle"]
CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and np.array_equal(np.asarray(one), np.asarray(other))


# Long enough to be opened, too short to be read.
TRUNCATED = encoded(tiny.picture(64, 64), "JPEG")[:2000]


@pytest.fixture
def classified() -> datasets.Dataset:
    """Six rows with the columns and types of `uoft-cs/cifar10`."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"img": [tiny.picture(seed=i) for i in range(6)], "label": [0, 1, 2, 2, 1, 0]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files read here shall not stay in the user's cache, nor be found there."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    yield
    if enabled:
        datasets.enable_progress_bars()


class TestInfer:
    def test_image_and_class_label(self, classified: datasets.Dataset) -> None:
        task = Task.infer(classified)
        assert (task.image_column, task.answer_column, task.question_column) == ("img", "label", None)
        assert task.candidates == ["cat", "hot dog", "red circle"]
        assert task.question == "This is a photo of a"
        assert not task.flip
        example = task.example(classified[1])
        assert isinstance(example, Example)
        assert (example.question, example.answer) == ("This is a photo of a", "hot dog")
        assert example.caption == "this is a photo of a hot dog"
        assert same(example.image, tiny.picture(seed=1))

    def test_image_question_and_answer(self) -> None:
        rows = {
            "question": ["Why?", "Who?"],
            "image": [tiny.picture(seed=i) for i in range(2)],
            "answer": ["so", "me"],
        }
        dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        task = Task.infer(dataset)
        assert (task.image_column, task.question_column, task.answer_column) == ("image", "question", "answer")
        assert task.candidates is None
        example = task.example(dataset[1])
        assert (example.question, example.answer, example.caption) == ("Who?", "me", "this is a photo of a me")

    def test_a_list_of_dicts(self) -> None:
        rows = [{"photo": tiny.picture(), "query": "Why?", "response": "so"}]
        task = Task.infer(rows)
        assert (task.image_column, task.question_column, task.answer_column) == ("photo", "query", "response")
        assert task.example(rows[0]).answer == "so"

    def test_columns_by_their_types_when_their_names_say_nothing(self) -> None:
        features = datasets.Features({"x": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])})
        task = Task.infer(datasets.Dataset.from_dict({"x": [tiny.picture()], "y": [1]}, features=features))
        assert (task.image_column, task.answer_column, task.candidates) == ("x", "y", ["a", "b"])

    def test_an_image_column_by_its_type_before_one_by_its_name(self) -> None:
        rows = {"image": ["id-1"], "scan": [tiny.picture()], "answer": ["a"]}
        dataset = datasets.Dataset.from_dict(rows).cast_column("scan", datasets.Image())
        assert Task.infer(dataset).image_column == "scan"

    def test_streaming(self, classified: datasets.Dataset) -> None:
        task = Task.infer(classified.to_iterable_dataset())
        assert (task.image_column, task.answer_column) == ("img", "label")
        assert task.candidates == ["cat", "hot dog", "red circle"]

    def test_streaming_when_nothing_says_the_columns(self, classified: datasets.Dataset) -> None:
        streamed = classified.to_iterable_dataset().map(lambda row: row)
        assert streamed.column_names is None
        task = Task.infer(streamed)
        assert (task.image_column, task.answer_column, task.candidates) == ("img", "label", None)
        made = datasets.IterableDataset.from_generator(lambda: iter([{"image": "x.png", "answer": "a"}]))
        assert Task.infer(made).answer_column == "answer"

    def test_what_is_given_is_not_looked_for(self, classified: datasets.Dataset) -> None:
        dataset = classified.add_column("other", ["a"] * 6).add_column("question", ["Why?"] * 6)
        task = Task.infer(dataset, answer_column="other", candidates=["a", "b"], question="What?", flip=True)
        assert (task.answer_column, task.candidates, task.question, task.flip) == ("other", ["a", "b"], "What?", True)
        assert task.question_column is None
        assert Task.infer(dataset).question_column == "question"
        # What was not said on a command line is None.
        assert Task.infer(dataset, answer_column=None, candidates=None, question=None) == Task.infer(dataset)

    def test_candidates_given_in_place_of_class_names(self, classified: datasets.Dataset) -> None:
        task = Task.infer(classified, candidates=["a", "b", "c"])
        assert task.example(classified[2]).answer == "c"

    def test_several_splits(self, classified: datasets.Dataset) -> None:
        for kind in (datasets.DatasetDict, datasets.IterableDatasetDict):
            dataset = kind({"train": classified, "test": classified})
            with pytest.raises(ValueError, match=r"splits 'train', 'test': choose one, as in `ds\['train'\]`"):
                Task.infer(dataset)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"pic": 1, "answer": "a"}], r"No image column.*has 'pic', 'answer'\..*`image_column`"),
            ([{"image": 1, "target": "a"}], r"No answer or label column.*has 'image', 'target'\..*`answer_column`"),
            ([], r"No image column found: the dataset has no columns"),
        ],
    )
    def test_a_missing_column(self, rows: list[dict[str, Any]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Task.infer(rows)

    @pytest.mark.parametrize("argument", ["image_column", "answer_column", "question_column"])
    def test_a_column_that_is_not_there(self, classified: datasets.Dataset, argument: str) -> None:
        with pytest.raises(ValueError, match=rf"no column 'nope' \(`{argument}`\); the dataset has 'img', 'label'"):
            Task.infer(classified, **{argument: "nope"})


class TestAnswer:
    TASK = Task(candidates=["cat", "dog"])

    @pytest.mark.parametrize("label", [1, np.int64(1), "dog", ["dog", "cat"], ("dog",), [1], np.array(["dog", "cat"])])
    def test_indices_names_and_lists(self, label: Any) -> None:
        assert self.TASK.answer({"answer": label}) == "dog"

    @pytest.mark.parametrize(("label", "answer"), [("a dog", "a dog"), (3, "3"), (True, "True"), (["x", "y"], "x")])
    def test_free_answers(self, label: Any, answer: str) -> None:
        assert Task().answer({"answer": label}) == answer

    @pytest.mark.parametrize("label", [-1, 2, np.int64(-1)])
    def test_a_label_outside_the_list(self, label: Any) -> None:
        message = (
            rf"label of row 7 is {int(label)}, outside the 2 classes \('cat', 'dog', ...\); is this split unlabelled"
        )
        with pytest.raises(ValueError, match=message):
            self.TASK.answer({"answer": label}, 7)

    @pytest.mark.parametrize("label", ["bird", True, 0.0])
    def test_an_answer_that_is_no_candidate(self, label: Any) -> None:
        with pytest.raises(ValueError, match=rf"answer of row 7 is '{label}', which is not among .*'cat', 'dog'"):
            self.TASK.answer({"answer": label}, 7)

    @pytest.mark.parametrize("label", [None, [], [None], {"answer": "net"}, [{"answer": "net"}], np.nan, b"net"])
    @pytest.mark.parametrize("task", [TASK, Task()])
    def test_what_is_no_answer(self, task: Task, label: Any) -> None:
        # Not "None", and not the text of a dict: a model would learn to say these.
        with pytest.raises(ValueError, match=r"The answer of row 7 is .*; expected text.*column 'answer'"):
            task.answer({"answer": label}, 7)

    @pytest.mark.parametrize(("labels", "read"), [([1, 2], ["1", "2"]), (["1", "2"], ["1", "2"])])
    def test_numbers_are_not_taken_for_places(self, labels: list[Any], read: list[str]) -> None:
        rows = datasets.Dataset.from_dict({"image": ["a", "b"], "answer": labels})
        task = Task.infer(rows, candidates=["1", "2", "3", "4"])
        assert [task.answer(row) for row in rows] == read
        # Places are those of a column of class labels, whatever its classes are called, and of names that are words.
        stars = datasets.ClassLabel(names=["1", "2", "3"])
        rated = rows.select_columns("image").add_column("answer", [0, 2]).cast_column("answer", stars)
        assert [Task.infer(rated).answer(row) for row in rated] == ["1", "3"]
        with pytest.raises(ValueError, match=r"row 5 is 2: the candidate '2', or the one in place 2 of '1', '2', '3'"):
            Task(candidates=["1", "2", "3"]).answer({"answer": 2}, 5)
        assert Task(candidates=["0", "1", "2"]).answer({"answer": 2}) == "2"
        plain = rows.select_columns("image").add_column("answer", [0, 1])
        assert [Task.infer(plain, candidates=["cat", "dog"]).answer(row) for row in plain] == ["cat", "dog"]

    @pytest.mark.parametrize("question", [None, np.nan])
    def test_a_row_without_a_question(self, question: Any) -> None:
        task = Task(question_column="question")
        with pytest.raises(ValueError, match=r"The question of row 3 is .*; expected text in the column 'question'"):
            task.example({"image": tiny.picture(), "question": question, "answer": "a"}, 3)

    def test_a_caption_of_ones_own(self) -> None:
        task = Task(caption="{answer}, seen from {above}")
        assert task.example({"image": tiny.picture(), "answer": "a cat"}).caption == "a cat, seen from {above}"


class TestDecode:
    @pytest.mark.parametrize("kind", ["pil", "path", "string", "bytes", "bytes of a column", "path of a column"])
    def test_every_form(self, kind: str, tmp_path: Path) -> None:
        picture, file = tiny.picture(), tmp_path / "picture.png"
        picture.save(file)
        image: Any = {
            "pil": picture,
            "path": file,
            "string": str(file),
            "bytes": encoded(picture),
            "bytes of a column": {"bytes": encoded(picture), "path": "gone.png"},
            "path of a column": {"bytes": None, "path": str(file)},
        }[kind]
        assert same(decode(image), picture)

    def test_a_picture_opened_but_not_read(self) -> None:
        whole = Image.open(io.BytesIO(encoded(tiny.picture())))
        assert same(decode(whole), tiny.picture())
        with pytest.raises(BadImageError, match="cannot be read"):
            decode(Image.open(io.BytesIO(TRUNCATED)))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"no image at all",
            TRUNCATED,
            encoded(tiny.picture())[:200],
            # Pillow raises a ValueError for this one, a RuntimeError for the next.
            b"P6\n4x 4\n255\n" + bytes(48),
            encoded(tiny.picture(), "AVIF")[:300],
        ],
    )
    def test_bytes_that_are_no_picture(self, data: bytes) -> None:
        with pytest.raises(BadImageError, match=r"image of row 3 \(a/b\.jpg\) cannot be read.*`skip_bad_images=True`"):
            decode({"bytes": data, "path": "a/b.jpg"}, 3)
        with pytest.raises(BadImageError, match="image of row 3 cannot be read"):
            decode(data, 3)

    @pytest.mark.filterwarnings("ignore")
    def test_damage_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever Pillow makes of a damaged file, it is a picture or a `BadImageError`."""
        # A header may claim any size; some gigabytes of black take their time.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        generator = np.random.default_rng(0)
        outcomes = {True: 0, False: 0}
        for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
            for _ in range(60):
                data = bytearray(encoded(tiny.picture(24, 24), format))
                for place in generator.integers(0, min(120, len(data)), 3):
                    data[place] = generator.integers(256)
                try:
                    decode(bytes(data))
                    outcomes[True] += 1
                except BadImageError:
                    outcomes[False] += 1
        assert min(outcomes.values()) > 40

    def test_a_decompression_bomb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(tiny.picture(64, 64))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(BadImageError, match=r"row 3 cannot be read.*decompression bomb"):
            decode(data, 3)

    @pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}])
    def test_no_image(self, image: Any) -> None:
        with pytest.raises(BadImageError, match="row 3 has no image"):
            decode(image, 3)

    def test_a_path_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(BadImageError, match=r"row 3 \(.*nope\.png\) cannot be read.*No such file"):
            decode(str(tmp_path / "nope.png"), 3)

    @pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), 5])
    def test_what_is_no_image_of_a_dataset(self, image: Any) -> None:
        # A wrong column, not a bad image: skipping row by row would hide it.
        with pytest.raises(TypeError, match=rf"image of row 3 is of type {type(image).__name__}; expected"):
            decode(image, 3)


class TestCollator:
    ROWS = [{"image": tiny.picture(seed=i), "answer": i % 2} for i in range(3)]
    TASK = Task(candidates=["cat", "dog"], question="What is it?")

    def test_a_batch(self) -> None:
        batch = ExampleCollator(self.TASK)(self.ROWS)
        assert all(same(a, row["image"]) for a, row in zip(batch.pop("images"), self.ROWS, strict=True))
        assert batch == {
            "questions": ["What is it?"] * 3,
            "answers": ["cat", "dog", "cat"],
            "captions": [f"this is a photo of a {name}" for name in ("cat", "dog", "cat")],
            "skipped": 0,
        }

    def test_bad_images_are_left_out_and_counted(self) -> None:
        rows = [{"image": TRUNCATED, "answer": 0}, *self.ROWS, {"image": None, "answer": 1}]
        batch = ExampleCollator(self.TASK, skip_bad_images=True)(rows)
        assert batch["skipped"] == 2
        assert batch["answers"] == ["cat", "dog", "cat"]
        assert len(batch["images"]) == len(batch["questions"]) == len(batch["captions"]) == 3

    def test_bad_images_end_it_by_default(self) -> None:
        rows = [*self.ROWS, {"image": {"bytes": TRUNCATED, "path": "bad.jpg"}, "answer": 0}]
        with pytest.raises(BadImageError, match=r"\(bad\.jpg\) cannot be read"):
            ExampleCollator(self.TASK)(rows)

    def test_a_batch_of_bad_images_only(self) -> None:
        collator, bad = ExampleCollator(self.TASK, skip_bad_images=True), [{"image": TRUNCATED, "answer": 0}] * 2
        with pytest.raises(BadImageError, match="None of the 2 images of the first batch can be read"):
            collator(bad)
        before = collator(self.ROWS)
        for _ in range(2):
            batch = collator(bad)
            assert batch["images"] == before["images"][-1:] and batch["answers"] == before["answers"][-1:]
            assert batch["skipped"] == 2

    def test_a_bad_label_is_not_a_bad_image(self) -> None:
        with pytest.raises(ValueError, match="outside the 2 classes"):
            ExampleCollator(self.TASK, skip_bad_images=True)([*self.ROWS, {"image": tiny.picture(), "answer": -1}])


class TestLoadData:
    @pytest.fixture
    def parquet(self, classified: datasets.Dataset, tmp_path: Path) -> Path:
        """A folder with a file a split, as `shared/data/cifar10` and most of the Hub."""
        folder = tmp_path / "parquet"
        folder.mkdir()
        classified.to_parquet(folder / "train.parquet")
        classified.select([4, 5]).to_parquet(folder / "test.parquet")
        return folder

    def check(self, dataset: Any, seeds: list[int]) -> None:
        rows = list(dataset)
        task = Task.infer(dataset)
        labels = [0, 1, 2, 2, 1, 0]
        assert len(rows) == len(seeds)
        for row, seed in zip(rows, seeds, strict=True):
            assert same(task.example(row).image, tiny.picture(seed=seed))
            assert task.example(row).answer == CLASSES[labels[seed]].replace("_", " ")

    @pytest.mark.parametrize(
        ("split", "seeds"),
        [("train", range(6)), ("test", [4, 5]), ("train[:3]", range(3)), ("train[1:-2]", [1, 2, 3]),
         ("train[:50%]", range(3)), ("test[1:]", [5])],
    )  # fmt: skip
    def test_a_folder_of_parquet_files(self, parquet: Path, split: str, seeds: Any) -> None:
        self.check(load_data(str(parquet), split), list(seeds))

    def test_a_split_that_is_not_there(self, parquet: Path) -> None:
        with pytest.raises(ValueError, match=r"val.*train.*test"):
            load_data(str(parquet), "val")

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_one_parquet_file_is_one_split(self, parquet: Path, split: str) -> None:
        file = str(parquet / "train.parquet")
        self.check(load_data(file, split), list(range(6)))
        self.check(load_data(file, f"{split}[2:4]"), [2, 3])

    def test_streaming(self, parquet: Path) -> None:
        for path in (parquet, parquet / "train.parquet"):
            dataset = load_data(str(path), streaming=True)
            assert isinstance(dataset, datasets.IterableDataset)
            assert isinstance(next(iter(dataset))["img"], dict)
            self.check(dataset, list(range(6)))

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
    def test_files_of_text(self, kind: str, tmp_path: Path) -> None:
        rows = []
        for index in range(3):
            tiny.picture(seed=index).save(tmp_path / f"{index}.png")
            rows.append({"image": str(tmp_path / f"{index}.png"), "question": f"Why {index}?", "answer": "so"})
        file = tmp_path / f"rows.{kind}"
        if kind == "csv":
            file.write_text("\n".join(["image,question,answer", *(",".join(row.values()) for row in rows)]))
        elif kind == "jsonl":
            file.write_text("\n".join(map(json.dumps, rows)))
        else:
            file.write_text(json.dumps(rows))
        for dataset in (load_data(str(file), "test[1:]"), load_data(str(file), streaming=True)):
            task, read = Task.infer(dataset), list(dataset)
            index = 3 - len(read)
            assert index == (1 if isinstance(dataset, datasets.Dataset) else 0)
            example = task.example(read[0])
            assert (example.question, example.answer) == (f"Why {index}?", "so")
            assert same(example.image, tiny.picture(seed=index))

    def test_one_folder_per_class(self, tmp_path: Path) -> None:
        for name in ("ripe_apple", "pear"):
            (tmp_path / name).mkdir()
            for index in range(2):
                tiny.picture(seed=index + 2 * (name == "pear")).save(tmp_path / name / f"{index}.png")
        dataset = load_data(str(tmp_path))
        task = Task.infer(dataset)
        assert (task.image_column, task.answer_column, task.candidates) == ("image", "label", ["pear", "ripe apple"])
        examples = [task.example(row) for row in dataset]
        assert sorted(example.answer for example in examples) == ["pear", "pear", "ripe apple", "ripe apple"]
        for example in examples:
            seeds = (2, 3) if example.answer == "pear" else (0, 1)
            assert any(same(example.image, tiny.picture(seed=seed)) for seed in seeds)

    def test_save_to_disk(self, classified: datasets.Dataset, tmp_path: Path) -> None:
        classified.save_to_disk(tmp_path / "one")
        self.check(load_data(str(tmp_path / "one")), list(range(6)))
        # It holds one split, whatever it is called; a slice of it is a slice all the same.
        self.check(load_data(str(tmp_path / "one"), "test[1:4]"), [1, 2, 3])
        self.check(load_data(str(tmp_path / "one"), "train[:50%]"), [0, 1, 2])

    def test_save_to_disk_with_several_splits(self, classified: datasets.Dataset, tmp_path: Path) -> None:
        datasets.DatasetDict(train=classified, test=classified.select([4, 5])).save_to_disk(tmp_path / "both")
        self.check(load_data(str(tmp_path / "both"), "test"), [4, 5])
        self.check(load_data(str(tmp_path / "both"), "train[:2]"), [0, 1])

    @pytest.mark.parametrize("path", ["/nowhere/at/all", "./nope", "../nope", "~/nope-at-all", "some/local/folder"])
    def test_a_path_that_is_not_there(self, path: str) -> None:
        with pytest.raises(FileNotFoundError, match=f"There is no dataset at {path}: no such file or folder"):
            load_data(path)

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "rows.xlsx").write_text("x")
        with pytest.raises(ValueError, match=r"rows\.xlsx is not a dataset file: expected \.parquet, \.csv"):
            load_data(str(tmp_path / "rows.xlsx"))

    def test_no_rows(self, classified: datasets.Dataset, parquet: Path, tmp_path: Path) -> None:
        (tmp_path / "empty.jsonl").write_text("")
        with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
            load_data(str(tmp_path / "empty.jsonl"))
        classified.save_to_disk(tmp_path / "disk")
        with pytest.raises(ValueError, match=r"'train\[:0\]' of .*disk has no rows"):
            load_data(str(tmp_path / "disk"), "train[:0]")
        with pytest.raises(ValueError, match=r"train\[:0\]"):
            load_data(str(parquet), "train[:0]")
        (tmp_path / "folder").mkdir()
        with pytest.raises(FileNotFoundError, match="folder doesn't contain any data files"):
            load_data(str(tmp_path / "folder"))

    def test_a_bad_image_does_not_end_the_reading(self, tmp_path: Path) -> None:
        rows = {"img": [{"bytes": TRUNCATED, "path": "bad.jpg"}, {"bytes": encoded(tiny.picture()), "path": None}],
                "label": [0, 1]}  # fmt: skip
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
        dataset = load_data(str(tmp_path / "rows.parquet"))
        batch = ExampleCollator(Task.infer(dataset), skip_bad_images=True)(list(dataset))
        assert (batch["skipped"], batch["answers"]) == (1, ["hot dog"])
        with pytest.raises(BadImageError, match=r"row 0 \(bad\.jpg\)"):
            Task.infer(dataset).example(dataset[0], 0)

    @pytest.mark.skipif(not CIFAR10.is_dir(), reason="shared/data is not here")
    def test_the_real_one(self) -> None:
        dataset = load_data(str(CIFAR10), "test[:20]")
        task = Task.infer(dataset)
        assert len(dataset) == 20
        assert task.candidates is not None
        assert len(task.candidates) == 10
        assert "airplane" in task.candidates
        assert all(task.example(row).image.size == (32, 32) for row in dataset)


class TestUndecoded:
    def test_images_stay_bytes(self, classified: datasets.Dataset) -> None:
        assert isinstance(classified[0]["img"], Image.Image)
        for dataset in (undecoded(classified), undecoded(undecoded(classified)),
                        undecoded(classified.to_iterable_dataset())):  # fmt: skip
            row = next(iter(dataset))
            assert row["img"].keys() == {"bytes", "path"}
            assert row["label"] == 0
            assert same(decode(row["img"]), tiny.picture())
        # The caller's own is as it was.
        assert isinstance(classified[0]["img"], Image.Image)

    @pytest.mark.parametrize("dataset", [None, [{"image": 1}], datasets.Dataset.from_dict({"a": [1]})])
    def test_what_has_no_images_of_this_kind(self, dataset: Any) -> None:
        assert undecoded(dataset) is dataset

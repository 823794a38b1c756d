from __future__ import annotations

import ast
import base64
import csv
import io
import weakref

import datasets
import numpy as np
import pandas
import pytest
import tiny
from PIL import Image

from transferable_vp.data import BadImageError, Task
from transferable_vp.integrations.vlmevalkit import export


COLORS = ("red", "green", "blue", "black")
CHOICE = Task(question_column="question", candidates=COLORS)
YES_NO = Task(question_column="question", candidates=("no", "yes"))
OPEN = Task(question_column="question")


@pytest.fixture(scope="module")
def prompt():
    return tiny.noise_prompt(canvas_size=32, border_size=6)


def rows(*answers, **more):
    return [
        {"image": tiny.picture(seed=i), "question": f"question {i}?", "answer": answer, **more}
        for i, answer in enumerate(answers)
    ]


def read(path):
    """The file as VLMEvalKit reads it."""
    return pandas.read_csv(path, sep="\t")


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize(
    "config", [{}, {"canvas": "native"}, {"layout": "both", "epsilon": 0.1}, {"value_range": "unbounded"}]
)
def test_images_are_those_of_apply_to_the_bit(tmp_path, config) -> None:
    prompt = tiny.noise_prompt(canvas_size=32, border_size=6, **config)
    data = rows("red", "blue", "red")
    assert export(prompt, data, CHOICE, tmp_path / "a.tsv") == 3
    found = read(tmp_path / "a.tsv")
    assert len(found) == 3
    for row, image in zip(data, found["image"], strict=True):
        assert np.array_equal(pixels(image), np.asarray(prompt.apply(row["image"])))


def test_images_without_prompt_and_with_a_black_border(tmp_path, prompt) -> None:
    # A palette picture, lying on its side.
    picture = tiny.picture(20, 12).convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", exif=exif)
    data = [{"image": {"bytes": buffer.getvalue(), "path": None}, "question": "?", "answer": "red"}]
    export(None, data, CHOICE, tmp_path / "clean.tsv")
    export(prompt, data, CHOICE, tmp_path / "zero.tsv", prompted=False)
    clean, zero = (pixels(read(tmp_path / f"{name}.tsv")["image"][0]) for name in ("clean", "zero"))
    assert np.array_equal(clean, np.rot90(np.asarray(picture.convert("RGB")), -1))
    assert np.array_equal(zero, np.asarray(prompt.apply(Image.fromarray(clean), prompted=False)))
    assert zero[0].max() == 0


def test_multiple_choice(tmp_path, prompt) -> None:
    export(prompt, rows("blue", "red"), CHOICE, tmp_path / "a.tsv")
    found = read(tmp_path / "a.tsv")
    assert list(found.columns) == ["index", "image_path", "question", "A", "B", "C", "D", "answer", "image"]
    assert found["index"].tolist() == [0, 1]
    assert found["question"].tolist() == ["question 0?", "question 1?"]
    assert [tuple(found.loc[i, list("ABCD")]) for i in range(2)] == [COLORS, COLORS]
    assert found["answer"].tolist() == ["C", "A"]


def test_class_labels_become_options(tmp_path, prompt) -> None:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a_cat", "dog"])})
    data = datasets.Dataset.from_list([{"img": tiny.picture(), "label": 1}], features=features)
    export(prompt, data, Task.infer(data), tmp_path / "a.tsv")
    line = read(tmp_path / "a.tsv").iloc[0]
    assert (line["question"], line["A"], line["B"], line["answer"]) == ("This is a photo of a", "a cat", "dog", "B")


def test_yes_and_no(tmp_path, prompt) -> None:
    export(prompt, rows("no", "yes"), YES_NO, tmp_path / "a.tsv")
    found = read(tmp_path / "a.tsv")
    assert list(found.columns) == ["index", "image_path", "question", "answer", "image"]
    # VLMEvalKit compares with Yes and No as they are written.
    assert found["answer"].tolist() == ["No", "Yes"]
    assert found["question"][0] == "question 0?\nPlease answer yes or no."


def test_yes_and_no_as_multiple_choice(tmp_path, prompt) -> None:
    export(prompt, rows("no", "yes"), YES_NO, tmp_path / "a.tsv", kind="multiple_choice")
    found = read(tmp_path / "a.tsv")
    assert (found["A"][0], found["B"][0], found["answer"].tolist()) == ("no", "yes", ["A", "B"])
    assert found["question"][0] == "question 0?"


def test_open_answers_are_those_of_ten_people(tmp_path, prompt) -> None:
    data = [*rows("it's 3", ["red", "rot", "red"])]
    export(prompt, data, OPEN, tmp_path / "a.tsv")
    found = read(tmp_path / "a.tsv")
    assert [ast.literal_eval(answer) for answer in found["answer"]] == [["it's 3"] * 10, ["red", "rot", "red"]]


def test_class_labels_as_open_answers(tmp_path, prompt) -> None:
    export(prompt, rows(3), CHOICE, tmp_path / "a.tsv", kind="open")
    assert ast.literal_eval(read(tmp_path / "a.tsv")["answer"][0]) == ["black"] * 10


class TestDrawnOptions:
    names = tuple(f"class {i}" for i in range(40))
    task = Task(question_column="question", candidates=names)

    def options(self, path, prompt, **more):
        export(prompt, rows(*range(0, 40, 5)), self.task, path, options=4, **more)
        found = read(path)
        return [tuple(row[list("ABCD")]) for _, row in found.iterrows()], found["answer"].tolist()

    def test_the_right_one_is_there_under_its_letter(self, tmp_path, prompt) -> None:
        options, letters = self.options(tmp_path / "a.tsv", prompt)
        for place, names, letter in zip(range(0, 40, 5), options, letters, strict=True):
            assert names["ABCD".index(letter)] == f"class {place}"
            assert len(set(names)) == 4
            assert set(names) <= set(self.names)
        # Eight rows, so all the same letter by chance once in 16,384.
        assert len(set(letters)) > 1

    def test_the_same_for_every_prompt_and_others_for_another_seed(self, tmp_path, prompt) -> None:
        first = self.options(tmp_path / "a.tsv", prompt)
        assert self.options(tmp_path / "b.tsv", None) == first
        assert self.options(tmp_path / "c.tsv", prompt, seed=1) != first

    @pytest.mark.parametrize("options", [None, 1, 27])
    def test_numbers_without_letters(self, tmp_path, prompt, options) -> None:
        with pytest.raises(ValueError, match="Multiple choice needs 2 to 26 options; the task has 40 candidates"):
            export(prompt, rows(0), self.task, tmp_path / "a.tsv", options=options)


def test_images_are_named_by_their_content(tmp_path, prompt) -> None:
    data = rows("red", "blue")
    data.append(data[0])
    other = tiny.noise_prompt(seed=1, canvas_size=32, border_size=6)
    names = []
    for i, p in enumerate((prompt, other, prompt)):
        export(p, data, CHOICE, tmp_path / f"{i}.tsv")
        names.append(read(tmp_path / f"{i}.tsv")["image_path"].tolist())
    assert names[0] == names[2]
    assert names[0][0] == names[0][2] != names[0][1]
    assert not set(names[0]) & set(names[1])
    assert all(name.endswith(".png") and "/" not in name for name in names[0])


def test_text_of_any_kind_comes_back(tmp_path, prompt) -> None:
    question = 'a\ttab, a "quote",\na line and 日本語'
    task = Task(question=question, candidates=("a\tb", '"'))
    export(prompt, rows('"'), task, tmp_path / "a.tsv")
    line = read(tmp_path / "a.tsv").iloc[0]
    assert (line["question"], line["A"], line["B"], line["answer"]) == (question, "a\tb", '"', "B")


def test_categories(tmp_path, prompt) -> None:
    export(prompt, rows("yes", "no", source="popular"), YES_NO, tmp_path / "a.tsv", category_column="source")
    assert read(tmp_path / "a.tsv")["category"].tolist() == ["popular", "popular"]


def test_one_image_at_a_time(tmp_path, prompt) -> None:
    alive: list[weakref.ref] = []
    most = 0

    class Rows:
        def __iter__(self):
            nonlocal most
            for i in range(20):
                image = tiny.picture(seed=i)
                alive.append(weakref.ref(image))
                most = max(most, sum(ref() is not None for ref in alive))
                yield {"image": image, "question": "?", "answer": "red"}

    assert export(prompt, Rows(), CHOICE, tmp_path / "a.tsv") == 20
    assert most <= 2


def test_streamed_datasets(tmp_path, prompt) -> None:
    data = rows("red", "blue", "green")
    stream = datasets.IterableDataset.from_generator(lambda: iter(data))
    assert export(prompt, stream, CHOICE, tmp_path / "a.tsv") == 3
    assert read(tmp_path / "a.tsv")["answer"].tolist() == ["A", "C", "B"]


class TestWhole:
    """The file is the old one or all of the new one."""

    def test_a_failure_leaves_what_was_there(self, tmp_path, prompt) -> None:
        path = tmp_path / "deep" / "a.tsv"
        export(prompt, rows("red"), CHOICE, path)
        before = path.read_bytes()
        with pytest.raises(ValueError, match="row 1"):
            export(prompt, rows("blue", "pink"), CHOICE, path)
        assert path.read_bytes() == before
        assert [file.name for file in path.parent.iterdir()] == ["a.tsv"]

    def test_a_new_file_replaces_it_and_what_was_made_of_it(self, tmp_path, prompt) -> None:
        path, made = tmp_path / "a.tsv", tmp_path / "a_local.tsv"
        path.write_text("old")
        made.write_text("old")
        export(prompt, rows("red"), CHOICE, path)
        assert not made.exists()
        with path.open(newline="", encoding="utf-8") as file:
            # Python's own limit on the length of a field is not what matters here.
            csv.field_size_limit(10**8)
            assert len(list(csv.DictReader(file, delimiter="\t"))) == 1


class TestBadImages:
    def test_named(self, tmp_path, prompt) -> None:
        data = rows("red", "blue")
        data[1]["image"] = b"no picture"
        with pytest.raises(BadImageError, match="row 1"):
            export(prompt, data, CHOICE, tmp_path / "a.tsv")
        assert not list(tmp_path.iterdir())

    def test_left_out_and_the_others_keep_their_numbers(self, tmp_path, prompt) -> None:
        data = rows("red", "blue", "green")
        data[1]["image"] = b"no picture"
        assert export(prompt, data, CHOICE, tmp_path / "a.tsv", skip_bad_images=True) == 2
        assert read(tmp_path / "a.tsv")["index"].tolist() == [0, 2]


@pytest.mark.parametrize("name", ["None", "NA", "null", ""])
def test_words_that_pandas_takes_for_nothing(tmp_path, prompt, name) -> None:
    # The reason for the error: the option would be gone.
    (tmp_path / "raw.tsv").write_text(f"A\tB\n{name}\tx\n")
    assert pandas.isna(read(tmp_path / "raw.tsv")["A"][0])
    with pytest.raises(
        ValueError, match=f"The A of row 0 is {name!r}, which VLMEvalKit would read as a missing value"
    ):
        export(prompt, rows("red"), Task(candidates=(name, "red")), tmp_path / "a.tsv")


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        (CHOICE, {"kind": "yes_no"}, "have the candidates 'yes' and 'no'"),
        (CHOICE, {"kind": "essay"}, "must be one of 'multiple_choice', 'yes_no', 'open'"),
        (OPEN, {"kind": "multiple_choice"}, "the task has 0 candidates"),
        (YES_NO, {"options": 2}, "`options` is for multiple choice; these questions are yes_no"),
    ],
)
def test_tasks_that_are_not_of_that_kind(tmp_path, prompt, task, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        export(prompt, rows("yes"), task, tmp_path / "a.tsv", **more)


def test_other_files_and_no_rows(tmp_path, prompt) -> None:
    with pytest.raises(ValueError, match=r"give one that ends in \.tsv"):
        export(prompt, rows("red"), CHOICE, tmp_path / "a.csv")
    with pytest.raises(ValueError, match="nothing to export"):
        export(prompt, [], CHOICE, tmp_path / "a.tsv")
    assert not list(tmp_path.iterdir())

"""What generated answers say, in tables of answers and what is read."""

from __future__ import annotations

import pytest

from transferable_vp.metrics.answers import TEENS, TENS, UNITS, match_candidate, normalize, number, yes_no


ANIMALS = ["lion", "sea lion", "dog", "The cat"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog.", "dog"),
        ("  a\tred \n\n panda ", "red panda"),
        ("red_panda", "red panda"),
        ("Crème-brûlée!", "creme brulee"),
        ("Straße", "strasse"),
        ("Don't!", "dont"),
        ("it’s", "its"),
        ("1,000.50", "1000.50"),
        ("3,4", "3 4"),
        ("3.", "3"),
        ("v3.5, 3.5kg", "v3.5 3.5kg"),
        ("U.S.", "u s"),
        ("５ ①", "5 1"),
        # An article that is part of a name stays, and so does one that is all there is.
        ("An-12", "an 12"),
        ("F/A-18", "f a 18"),
        ("(a) dog", "dog"),
        ("A", "a"),
        ("theatre", "theatre"),
        ("three", "three"),
        ("日本 語", "日本 語"),
        ("पाल, पिल", "पाल पिल"),
        ("ม้า", "ม้า"),
        ("yes \u2600\ufe0f", "yes"),
        ("1\ufe0f\u20e3", "1"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


# Yes or no


@pytest.mark.parametrize("text", ["yes", "Yes.", "YES!", " yes, it is", "**Yes**", "<s> yes </s>", "Yes\n\nNo"])
def test_a_plain_yes(text: str) -> None:
    assert yes_no(text) == "yes"


@pytest.mark.parametrize("text", ["no", "No.", "NO", "No, it is not", "\nno", "No dog is visible.", "no/none"])
def test_a_plain_no(text: str) -> None:
    assert yes_no(text) == "no"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, there is no doubt.", "yes"),
        ("Yes. There is no cat, though.", "yes"),
        ("I think yes", "yes"),
        ("There is no dog in the image.", "no"),
        ("There isn't a dog.", "no"),
        ("There isn’t a dog.", "no"),
        ("I do not see a dog.", "no"),
        ("I can't see a dog.", "no"),
        ("Not hateful", "no"),
        ("Well, no", "no"),
        # Only the first sentence is read for a negation: the second may be about something else.
        ("There is a dog. It is not running.", None),
        ("The image shows a kitchen. So yes.", "yes"),
        ("The image shows a kitchen. No dog.", None),
        ("Answer: Yes", "yes"),
        ("There is no dog at first sight. The answer is yes.", "yes"),
        ("The answer is no. Wait, the answer is **yes**", "yes"),
        ("I was not sure at first, but the answer is yes.", "yes"),
        ("I'm not sure, but yes", "yes"),
    ],
)
def test_an_answer_in_a_sentence(text: str, expected: str | None) -> None:
    assert yes_no(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "maybe",
        "There is a dog.",
        "Yesterday",
        "nothing notable",
        "1",
        "yes or no",
        "Yes/No",
        "Answer: yes or no?",
        "Answer: no idea",
        "No idea.",
        "I'm not sure.",
        "I don't know",
        "It is not possible to tell.",
        "I cannot tell",
    ],
)
def test_neither_yes_nor_no(text: str) -> None:
    assert yes_no(text) is None


# Numbers


@pytest.mark.parametrize(
    "text",
    [
        "3",
        " 3\n",
        "3.",
        "3 objects",
        "There are 3.",
        "three",
        "Three!",
        "There are three objects in the image.",
        "3.0",
        "**3**",
        "(3)",
        "\\boxed{3}",
        "#3",
        "- 3 objects",
        "３",
        "3 (three)",
        "three, yes, 3",
        "3D shapes: 3",
        "3\N{NO-BREAK SPACE}objects",
    ],
)
def test_three(text: str) -> None:
    assert number(text) == 3


def test_number_words_up_to_a_hundred() -> None:
    words = [*UNITS, *TEENS]
    words += [ten + unit for ten in TENS for unit in ("", *(f"-{unit}" for unit in UNITS[1:]))]
    assert [number(word) for word in words] == list(range(100))
    assert [number(word.replace("-", " ")) for word in words] == list(range(100))
    assert [number(f"There are {word} of them.") for word in words] == list(range(100))
    assert {number(text) for text in ("hundred", "a hundred", "one hundred", "One-hundred.", "100")} == {100}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("13", 13),
        ("33", 33),
        ("zero", 0),
        ("None.", 0),
        ("There are none", 0),
        ("-3", -3),
        ("−3", -3),
        ("1,000", 1000),
        ("3,000,000 objects", 3_000_000),
        ("007", 7),
        ("someone saw 4", 4),
        ("one", 1),
    ],
)
def test_other_numbers(text: str, expected: int) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "many",
        "no objects",
        "someone",
        "two or three",
        "2 or 3",
        "3-4",
        "10-3",
        "3,4",
        "3/4",
        "2 cubes and 1 ball, so 3",
        "thirty, one",
        "3.5",
        "3.5kg",
        "2.1.3",
        "3D",
        "x3",
        "2nd",
        "3x",
        "½",
        "three hundred",
        "one hundred and five",
        "hundreds",
        "three thousand",
        "2 million",
        "a dozen",
        "two dozen",
        "half",
        "9" * 5000,
    ],
)
def test_no_one_number(text: str) -> None:
    assert number(text) is None


# Candidates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lion", "lion"),
        ("A LION!", "lion"),
        ("sea lion", "sea lion"),
        ("It is a Sea-Lion.", "sea lion"),
        ("cat", "The cat"),
        ("the cat", "The cat"),
        ("dog, dog and dog", "dog"),
        ("This is a photo of a dog.", "dog"),
        # Inside another it does not count, beside it it does.
        ("a sea lion and a lion", None),
        ("a lion and a sea lion", None),
        ("dog or cat", None),
        ("sealion", None),
        ("dogs", None),
        ("hotdog", None),
        ("", None),
        ("animal", None),
        # Negation is documented not to be read.
        ("not a cat", "The cat"),
        # No letters unless the caller gave some.
        ("A", None),
        ("(b)", None),
    ],
)
def test_match_candidate(text: str, expected: str | None) -> None:
    assert match_candidate(text, ANIMALS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", "lion"),
        ("b", "sea lion"),
        ("(b)", "sea lion"),
        ("**C**", "dog"),
        (" d.\n", "The cat"),
        ("B. sea lion", "sea lion"),
        ("B) it is in the water", "sea lion"),
        ("(C) dog", "dog"),
        ("c: dog", "dog"),
        ("Answer: C", "dog"),
        ("Answer: C. dog", "dog"),
        ("Answer: C\nbecause it barks", "dog"),
        ("answer is (c).", "dog"),
        ("The answer is **B**.", "sea lion"),
        ("The correct option is D", "The cat"),
        ("Choice (A)", "lion"),
        ("It is not the lion (A), the dog is. Answer: C", "dog"),
        ("Answer: A. No, the answer is C.", "dog"),
        ("sea lion", "sea lion"),
        ("I see a dog", "dog"),
        # The article is no option.
        ("A dog", "dog"),
        ("a dog", "dog"),
        ("The answer is a dog", "dog"),
        # Two things said.
        ("B. dog", None),
        ("(A) or (B)", None),
        ("(B) because (A) is wrong", None),
        ("A or B", None),
        # A letter without an option, and one in the middle of a sentence.
        ("E", None),
        ("Answer: E", None),
        ("I would pick B", None),
    ],
)
def test_match_candidate_by_letter(text: str, expected: str | None) -> None:
    assert match_candidate(text, ANIMALS, lettered=True) == expected


def test_candidates_that_overlap_are_both_there() -> None:
    assert match_candidate("a big sea lion", ["big sea", "sea lion"]) is None
    assert match_candidate("a big sea lion", ["big sea", "sea lion", "big sea lion"]) == "big sea lion"


def test_numbers_are_whole_words_too() -> None:
    assert match_candidate("There are 13.", ["3", "13"]) == "13"
    assert match_candidate("3.5", ["3", "5"]) is None
    assert match_candidate("An Antonov An-12", ["An-12", "12"]) == "An-12"


def test_every_candidate_names_itself_and_only_itself() -> None:
    aircraft = ["737-200", "737-300", "A300B4", "A310", "An-12", "Boeing 717", "F-16A/B", "F/A-18", "DC-3", "DC-6"]
    for name in aircraft:
        assert match_candidate(name, aircraft) == name
        assert match_candidate(f"This is a photo of a {name.lower()}, an aircraft.", aircraft) == name


@pytest.mark.parametrize("candidates", [[], ["dog", "Dog!"], ["dog", "?"], ["a dog", "the dog"]])
def test_candidates_that_cannot_be_told_apart(candidates: list[str]) -> None:
    with pytest.raises(ValueError, match="must differ in their letters and digits"):
        match_candidate("dog", candidates)


def test_more_candidates_than_letters() -> None:
    candidates = [f"class {i}" for i in range(27)]
    with pytest.raises(ValueError, match=r"Got 27 candidates.*`lettered=False`"):
        match_candidate("A", candidates, lettered=True)
    assert match_candidate("class 26", candidates) == "class 26"
    assert match_candidate("Z", candidates[:26], lettered=True) == "class 25"

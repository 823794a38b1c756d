"""What a generated answer says: yes or no, a number, one of several candidates. `None` where it does not say."""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Sequence


ARTICLES = {"a", "an", "the"}

# Spelled-out numbers up to a hundred. "None" is how a model says that it sees nothing to count.
UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = {word: value for value, word in enumerate(UNITS + TEENS)} | {"none": 0, "hundred": 100}
WORDS |= {word: 10 * value for value, word in enumerate(TENS, start=2)}
# An answer with one of these says some other number than its remaining words do.
OTHER_SCALES = re.compile(r"\b(half|dozens?|hundreds|thousands?|[mb]illions?)\b")
NUMBERS = re.compile(
    # Digits within a word ("3D", "x3", "2nd") are part of a name or an order, and a dash in front of them is a minus
    # unless it stands between two numbers.
    r"(?P<digits>(?<![a-z0-9.])(?:(?<![a-z0-9])[-−])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![a-z0-9]|\.\d))"
    rf"|\b(?P<tens>{'|'.join(TENS)})(?:[ -](?P<unit>{'|'.join(UNITS[1:])}))?\b"
    rf"|\b(?:one[ -](?=hundred))?(?P<word>{'|'.join(WORDS)})\b"
)

# Letters, digits and the marks that are parts of letters in Hindi, Thai and others, which `re` counts as neither. Not
# those that make pictures of signs, from U+FE00 and U+20D0 on.
MARKS = "".join(
    mark for mark in map(chr, range(0x370, 0x1E900))
    if unicodedata.category(mark) in ("Mn", "Mc") and not 0x20D0 <= ord(mark) < 0x2100 and not 0xFE00 <= ord(mark) < 0xFE10
)  # fmt: skip
WORD = rf"[^\W_](?:[^\W_]|[{MARKS}])*"

NO = re.compile(r"\b(?:no|not|none|cannot|(?:is|are|was|were|does|do|did|has|have|ca|could|would|wo)nt)\b")
# These hold a "no" or a "yes" without saying it.
HEDGE = re.compile(
    r"\b(?:no idea|no way|not (?:sure|certain|clear|possible|able|enough)|(?:dont|do not|cannot|cant|can not) "
    r"(?:know|tell|say|determine)|yes (?:or )?no|no (?:or )?yes)\b"
)
VERDICT = re.compile(r"\banswer(?: is| would be)? (yes|no)\b")

LETTER = r"(?:\(([a-z])\)|([a-z]))"
# A letter by itself is an option where it is all of the answer, where it ends a clause that says it is the answer, or
# where a mark sets it off from what follows ("b) dog", unlike the article of "a dog").
LETTERS = (
    re.compile(rf"^\W*{LETTER}\W*$"),
    re.compile(rf"\b(?:answer|option|choice)(?:\s+is)?[\s:*]*{LETTER}[\s*]*(?:[).,:;\n]|$)"),
    re.compile(r"^\W*(?:\(([a-z])\)|([a-z])[).:])(?=\W|$)"),
)


@functools.lru_cache(maxsize=4096)
def normalize(text: str) -> str:
    r"""
    Reduces a text to what answers are compared by, much as the official evaluation of
    [VQA](https://visualqa.org/evaluation.html) does: lower case, no punctuation, no articles, single spaces.

    Accents are dropped as well ("crème brûlée" is "creme brulee"), dashes and underscores separate words, an
    apostrophe joins ("don't" is "dont"), decimal points stay. An article goes only where it stands by itself, so
    "An-12" stays "an 12", and a text of nothing else keeps it. Number words stay: [`number`] reads them.

    Args:
        text (`str`): Any text.

    Returns:
        `str`: Words of letters and digits with one space between them. May be empty.
    """
    text = _plain(text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"['’‘`]", "", text)
    chunks = text.split()
    without = [chunk for chunk in chunks if chunk.strip(string.punctuation) not in ARTICLES]
    return " ".join(re.findall(rf"{WORD}(?:(?<=\d)\.(?=\d){WORD})*", " ".join(without or chunks)))


def _plain(text: str) -> str:
    text = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFKC", text)


def yes_no(text: str) -> str | None:
    r"""
    What an answer to a yes-or-no question says.

    In this order: what follows "the answer is"; the first word; the first sentence, where "no" and "not" in any form
    mean no ("There isn't a dog") and "yes" without them means yes; the last word. Answers that say they do not know,
    or repeat "yes or no", say neither. Unlike the script of [POPE](https://github.com/AoiDragon/POPE), an answer
    without "no" is not taken for a yes: "There is a dog." says neither, and so does an empty answer.

    Args:
        text (`str`): The generated answer.

    Returns:
        `str` or `None`: `"yes"`, `"no"`, or `None`.
    """
    words = _without_hedges(text)
    verdicts = VERDICT.findall(words)
    if verdicts:
        return verdicts[-1]
    sentences = map(_without_hedges, re.split(r"[.!?\n]", text))
    first = next(filter(None, sentences), "")
    if first.split(" ")[0] in ("yes", "no"):
        return first.split(" ")[0]
    if NO.search(first):
        return "no"
    if "yes" in first.split(" "):
        return "yes"
    last = words.rpartition(" ")[2]
    return last if last in ("yes", "no") else None


def _without_hedges(text: str) -> str:
    return HEDGE.sub("?", normalize(text))


def number(text: str) -> int | None:
    r"""
    The one whole number in an answer, in digits or in words up to a hundred.

    The same number twice is one number ("3 (three)"), and "none" is 0. Several different numbers ("two or three", "2
    cubes and 1 ball") are no answer, nor are fractions, digits within a word ("3D", "2nd") and words beyond a hundred
    ("three hundred", "a dozen"). Digits may make any number ("1,000"). "One" is 1 even where it is a pronoun.

    Args:
        text (`str`): The generated answer.

    Returns:
        `int` or `None`: The number, or `None` if there is none or more than one.
    """
    text = _plain(text)
    if OTHER_SCALES.search(text):
        return None
    values = set()
    for match in NUMBERS.finditer(text):
        if match["digits"]:
            values.add(float(match["digits"].replace(",", "").replace("−", "-")))
        elif match["tens"]:
            values.add(float(WORDS[match["tens"]] + WORDS.get(match["unit"] or "zero", 0)))
        else:
            values.add(float(WORDS[match["word"]]))
    value = values.pop() if len(values) == 1 else None
    return int(value) if value is not None and value.is_integer() else None


def match_candidate(text: str, candidates: Sequence[str], lettered: bool = False) -> str | None:
    r"""
    Which of the candidates an answer names.

    The answer itself, normalised; else, with `lettered`, the option whose letter it gives; else the only candidate
    that occurs in it as whole words. A candidate inside another ("lion" in "sea lion") counts only where it stands by
    itself. Negation is not read: "not a cat" names the cat.

    Args:
        text (`str`): The generated answer.
        candidates (`Sequence[str]`): The answers to choose from.
        lettered (`bool`, *optional*, defaults to `False`):
            Whether the question listed the candidates as A, B, C, ..., in this order. Then "B", "(b)", "B. dog" and
            "Answer: B" are read too.

    Returns:
        `str` or `None`: The candidate as it was given, or `None` if the answer names none of them or more than one.

    Raises:
        ValueError: If there are no candidates, two are the same once normalised, one has no letter or digit, or there
            are more than 26 and `lettered`.
    """
    names, pattern = _compiled(tuple(candidates))
    if lettered and len(candidates) > len(string.ascii_lowercase):
        raise ValueError(f"Got {len(candidates)} candidates, but only 26 can have a letter; pass `lettered=False`.")
    words = normalize(text)
    if words in names:
        return names[words]
    option, rest = _option(text, candidates) if lettered else (None, "")
    if option is not None:
        # "B. dog" where the dog is A says two things, and so does "(A) or (B)".
        letters = {f"({string.ascii_lowercase[i]})" for i, name in enumerate(candidates) if name != option}
        unsaid = not any(letter in _plain(rest) for letter in letters)
        return option if unsaid and _contained(normalize(rest), names, pattern) <= {option} else None
    found = _contained(words, names, pattern)
    return found.pop() if len(found) == 1 else None


@functools.lru_cache(maxsize=64)
def _compiled(candidates: tuple[str, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    names = {normalize(candidate): candidate for candidate in candidates}
    if not candidates or "" in names or len(names) < len(candidates):
        raise ValueError(
            "Candidates must differ in their letters and digits, and there must be some (they are compared without "
            f"case, punctuation, accents and articles); got {list(candidates)}."
        )
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    # A lookahead, so that one that begins within another is found as well.
    return names, re.compile(rf"(?<![^ ])(?=({longest_first})(?![^ ]))")


def _contained(words: str, names: dict[str, str], pattern: re.Pattern[str]) -> set[str]:
    spans = [match.span(1) for match in pattern.finditer(words)]
    outer = [
        (start, end)
        for start, end in spans
        if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in spans)
    ]
    return {names[words[start:end]] for start, end in outer}


def _option(text: str, candidates: Sequence[str]) -> tuple[str | None, str]:
    """The candidate whose letter the answer gives, and what the answer says after it."""
    text = _plain(text)
    for pattern in LETTERS:
        for match in reversed(list(pattern.finditer(text))):
            index = string.ascii_lowercase.index(match[match.lastindex or 0])
            return (candidates[index], text[match.end() :]) if index < len(candidates) else (None, "")
    return None, ""

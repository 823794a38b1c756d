"""The README of a shared prompt: what it is, how it was made, what was measured, how to use it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined

from .card_facts import CardFacts, facts_of_trainer
from .card_sections import (
    PIPELINE_TAG,
    Section,
    add_rows,
    card_report,
    code,
    generated,
    is_hub_id,
    literal,
    merge_metadata,
    plain,
    printable,
    public_name,
    read_metadata,
    read_transfer,
    replace_metadata,
    results_of,
    sections_of,
    split_card,
    transfer_section,
    without_metadata,
)
from .configuration import MAX_CANVAS_SIZE, TransferableVisualPromptConfig


if TYPE_CHECKING:
    from .modeling import TransferableVisualPrompt

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
TAGS = ("transferable-vp", "visual-prompt")
PLACEHOLDER = "THIS_REPO"
# Where the examples name the prompt's repository.
REPO_ID = re.compile(r'(?<=TransferableVisualPrompt\.from_pretrained\(")[\w./-]+|(?<=apply --prompt )[\w./-]+')
TEMPLATE = Path(__file__).with_name("model_card_template.md")


def write_card(
    facts: CardFacts | TransferableVisualPrompt,
    folder: str | os.PathLike,
    license: str | None = None,
    tags: Sequence[str] = (),
    reports: Sequence[Mapping[str, Any]] = (),
    repo_id: str | None = None,
) -> Path:
    r"""
    Writes `README.md` of a prompt, or updates the one that is there.

    An update replaces the sections between our markers, save those that somebody has edited, which stay with a warning.
    All other text stays, and what was deleted stays deleted. Of the metadata, keys that are there win; `tags`,
    `base_model` and `datasets` are united; results of the same model, task, dataset and metric are replaced. Tables of
    earlier reports stay, and are marked where `model.safetensors` has changed since.

    Args:
        facts ([`CardFacts`] or [`TransferableVisualPrompt`]):
            What is known. A prompt alone knows its geometry; sections about how it was made then stay as they are.
        folder (`str` or `os.PathLike`): The prompt's folder.
        license (`str`, *optional*): An identifier of the Hub's list. Defaults to that of the facts.
        tags (`Sequence[str]`, *optional*): Tags beside `transferable-vp` and `visual-prompt`.
        reports (`Sequence[Mapping]`, *optional*): Transfer reports, beside those of the facts.
        repo_id (`str`, *optional*):
            Hub id for the examples. Defaults to the one that the card there has, else to the placeholder `THIS_REPO`.

    Returns:
        `Path`: The card.

    Raises:
        ValueError: If a report is none.
    """
    if not isinstance(facts, CardFacts):
        facts = CardFacts(config=facts.config, versions=_written_by(facts.config))
    if repo_id is not None:
        validate_repo_id(repo_id)
    path, weights = Path(folder) / CARD_NAME, _weights(Path(folder))
    try:
        old, newline = _read(path)
        there = read_metadata(old)
    except ValueError as error:
        logger.warning("%s is left as it is: %s", path, error)
        return path
    parts = split_card(old)
    sections = sections_of(parts)
    kept, readable = _reports_of(sections.get("transfer"))
    for report in [*facts.reports, *reports]:
        kept = add_rows(kept, card_report(report, weights))
    given = license or facts.license
    if given and there.get("license") not in (None, given):
        logger.warning("%s: the license is %r there and stays so; edit it there.", path, there["license"])
    if repo_id is None and "use" in sections and (match := REPO_ID.search(sections["use"].body)):
        repo_id = match[0]
    new = _render(facts, kept, weights, given, tags, there.get("license") or given, repo_id or PLACEHOLDER)
    if not old:
        return _write(path, new, newline)
    fresh = sections_of(split_card(new))
    if not facts.known:
        del fresh["task"], fresh["training"]
        if "use" in sections and "prompt" in sections and sections["prompt"].body == fresh["prompt"].body:
            # Of the same geometry, and with the question of the task.
            fresh["use"] = generated("use", REPO_ID.sub(repo_id or PLACEHOLDER, sections["use"].body))
    for index, part in enumerate(parts):
        if isinstance(part, Section) and part.name in fresh:
            if part.edited:
                logger.warning("%s: the section %r was edited by hand and is left as it is.", path, part.name)
            elif part.name != "transfer" or readable:
                parts[index] = fresh[part.name]
    text = "".join(map(str, parts))
    return _write(path, replace_metadata(text, merge_metadata(read_metadata(new), there, weights)), newline)


def add_report(card_text: str, report: Mapping[str, Any]) -> str:
    r"""
    The card with one more transfer report: its table in the section `transfer`, its results in the metadata.

    Rows of the same model, on the same task, source and metric, are replaced; all others stay. A section that was edited
    or deleted stays so, with a warning; a card that never had sections of ours gets this one at its end.

    Args:
        card_text (`str`): The text of `README.md`.
        report (`Mapping[str, Any]`): See `transferable_vp.report`.

    Returns:
        `str`: The text of the new card.

    Raises:
        ValueError: If the report is none, or the metadata of the card is not YAML.
    """
    text, newline = _plain_lines(card_text)
    there, parts = read_metadata(text), split_card(text)
    sections = sections_of(parts)
    weights, found = None, sections.get("transfer")
    if found is not None and not found.edited:
        kept, readable = _reports_of(found)
        if readable:
            weights = read_transfer(found.body)[1]
            parts[parts.index(found)] = transfer_section(add_rows(kept, card_report(report, weights)), weights)
    elif found is not None or sections:
        what = "was edited by hand and is left as it is" if found else "was deleted and stays so"
        logger.warning("The section 'transfer' of the card %s: only the metadata gets the results.", what)
    else:
        parts += ["\n\n", transfer_section([card_report(report)], None), "\n"]
    results = {"model-index": results_of([card_report(report, weights)], weights)}
    metadata = merge_metadata(results, there, weights)
    return replace_metadata("".join(map(str, parts)), metadata).replace("\n", newline)


def merge_cards(local: str, remote: str | None) -> tuple[str, list[str]]:
    r"""
    The card to push, of the one here and the one on the Hub.

    Outside our sections, the side that differs from a card as generated wins; if both do, the Hub's. A section is the
    local one, unless it was edited on the Hub. Transfer tables and results of both are kept, the local ones winning. Of
    the metadata, the Hub's keys win and lists are united.

    Args:
        local (`str`): The text of the card here.
        remote (`str`, *optional*): The text of the card on the Hub, if there is one.

    Returns:
        `tuple[str, list[str]]`: The text, and a warning for everything local that gave way.

    Raises:
        ValueError: If the metadata of one of them is not YAML.
    """
    if remote is None:
        return local, []
    here, _ = _plain_lines(local)
    there, newline = _plain_lines(remote)
    ours, theirs, warnings = split_card(here), split_card(there), []
    mine, other = sections_of(ours), sections_of(theirs)
    scaffold = _scaffold(split_card(_render(CardFacts(), [], None, None, (), None, PLACEHOLDER)))
    changed_here = _scaffold(ours) != scaffold
    # A repository that has nothing but metadata is no one's text; an edit must not be lost with its section.
    lost = any(section.edited and name not in mine for name, section in other.items())
    changed_there = _scaffold(theirs) not in (scaffold, []) or lost
    if changed_here and changed_there and _scaffold(ours) != _scaffold(theirs):
        warnings.append("Both cards have text of their own outside the generated sections: the Hub's is kept.")
    if not other and changed_there:
        warnings.append("The card on the Hub has no generated sections: only its metadata is updated.")
    parts = list(theirs if changed_there else ours)
    meta_here, meta_there = read_metadata(here), read_metadata(there)
    weights = read_transfer(mine["transfer"].body)[1] if _reports_of(mine.get("transfer"))[1] else None
    metadata = merge_metadata(meta_here, meta_there, weights)
    for key in ("license", "library_name", "pipeline_tag"):
        if meta_here.get(key) not in (None, metadata.get(key)):
            warnings.append(f"The metadata `{key}` is {printable(metadata[key])!r} on the Hub and stays so.")
    for index, part in enumerate(parts):
        if isinstance(part, Section):
            parts[index] = _merge_section(part.name, mine, other, weights, metadata.get("license"), warnings)
    # The lines of the metadata are the Hub's, where it has any.
    front = next(
        (text[: len(text) - len(without_metadata(text))] for text in (there, here) if read_metadata(text)), ""
    )
    text = front + without_metadata("".join(map(str, parts)))
    return replace_metadata(text, metadata).replace("\n", newline), warnings


def _merge_section(
    name: str,
    mine: dict[str, Section],
    other: dict[str, Section],
    weights: str | None,
    license: Any,
    warnings: list[str],
) -> Section:
    if name in other and other[name].edited:
        if name in mine and mine[name].body != other[name].body:
            warnings.append(f"The section {name!r} was edited on the Hub and stays as it is there.")
        return other[name]
    chosen = mine.get(name) or other[name]
    if chosen.edited:
        return chosen
    if name == "licence":
        return _licence_section(license)
    if name == "transfer" and name in mine and name in other:
        reports, readable = _reports_of(other[name])
        own, readable_here = _reports_of(mine[name])
        if readable and readable_here:
            for report in own:
                reports = add_rows(reports, report)
            return transfer_section(reports, weights)
    return chosen


# Text


def _render(
    facts: CardFacts,
    reports: list[dict[str, Any]],
    weights: str | None,
    given: str | None,
    tags: Sequence[str],
    license: Any,
    repo_id: str,
) -> str:
    """A whole new card: with the license that was `given` in its metadata, and the one that holds in its text."""

    def section(name: str, caller: Any) -> str:
        return f"{generated(name, caller())}\n"

    config = facts.config
    index: dict[str, Any] = {"model-index": results_of(reports, weights)}
    sources, datasets = _entries(facts.sources), _entries(facts.datasets)
    data = ModelCardData(
        license=given,
        library_name="transferable-vp",
        tags=[*TAGS, *map(printable, tags)],
        pipeline_tag=PIPELINE_TAG,
        base_model=_hub_ids(sources),
        datasets=_hub_ids(datasets),
        **index,
    )
    terms = list(dict.fromkeys(key for row in facts.loss_curve for key in row))
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"plain": plain, "code": code}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **{f.name: getattr(facts, f.name) for f in dataclasses.fields(facts)}
        | {"sources": sources, "datasets": datasets},
        known=facts.known,
        metadata=data.to_yaml(),
        section=section,
        code=code,
        plain=plain,
        literal=literal,
        levels=f"{255 * config.epsilon:.3g}",
        curve=terms and [terms, *([_number(row.get(term)) for term in terms] for row in facts.loss_curve)],
        question=(facts.task or {}).get("question") or "What is in the image?",
        repo_id=repo_id,
        start=(config.canvas_size - config.content_size) // 2,
        longest=MAX_CANVAS_SIZE * config.content_size // config.canvas_size,
        native=_native(config, 640, 480),
        transfer=transfer_section(reports, weights),
        licence=_licence_section(license),
    )


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _entries(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Models or datasets without paths, whoever made the facts."""
    unknown = dict.fromkeys(("revision", "model_type", "config", "split"))
    return [
        {**unknown, **entry, "id": public_name(entry["id"]), "is_hub": entry.get("is_hub", is_hub_id(entry["id"]))}
        for entry in entries
    ]


def _hub_ids(entries: Sequence[Mapping[str, Any]]) -> list[str] | None:
    return list(dict.fromkeys(entry["id"] for entry in entries if entry["is_hub"])) or None


def _native(config: TransferableVisualPromptConfig, width: int, height: int) -> dict[str, int]:
    """Size of the native canvas of an image, and where the image's corner is, as `TransferableVisualPrompt` has it."""
    gap = (config.canvas_size - config.content_size) // 2 - config.border_size
    left, top = (
        max(config.border_size > 0, round(side * config.border_size / config.content_size))
        + round(side * gap / config.content_size)
        for side in (width, height)
    )
    return {"left": left, "top": top, "width": width + 2 * left, "height": height + 2 * top, "gap": gap}


def _licence_section(license: Any) -> Section:
    if license:
        names = ", ".join(map(code, license if isinstance(license, list) else [license]))
        text = f"{names}, as given. It is the prompt's; the models and data it was made with have their own."
    else:
        text = "None was chosen: all rights are reserved until there is a `license` in the metadata of this card."
    return generated("licence", f"## Licence\n\n{text}")


def _written_by(config: TransferableVisualPromptConfig) -> dict[str, str]:
    return {"transferable_vp": str(config.version)} if config.version else {}


def _scaffold(parts: Sequence[str | Section]) -> list[str]:
    """A card without metadata and without what is in the sections."""
    text = "".join(f"\n\0{part.name}\n" if isinstance(part, Section) else part for part in parts)
    return [line.strip() for line in without_metadata(text).splitlines() if line.strip()]


def _reports_of(section: Section | None) -> tuple[list[dict[str, Any]], bool]:
    """The reports of a card's section, and whether the section may be made anew."""
    if section is None:
        return [], False
    try:
        return read_transfer(section.body)[0], not section.edited
    except ValueError as error:
        logger.warning("%s It is left as it is.", error)
        return [], False


def _weights(folder: Path) -> str | None:
    """The first eight digits of the SHA-256 of the prompt's file, which the Hub shows beside it."""
    file = folder / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file.is_file() else None


def _plain_lines(text: str) -> tuple[str, str]:
    """A text with line feeds, and the end of line that it has."""
    newline = "\r\n" if "\r\n" in text else "\n"
    return text.removeprefix("\ufeff").replace("\r\n", "\n"), newline


def _read(path: Path) -> tuple[str, str]:
    return _plain_lines(path.read_bytes().decode("utf-8")) if path.is_file() else ("", "\n")


def _write(path: Path, text: str, newline: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it first: half a card must not take the place of a whole one.
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(text.replace("\n", newline).encode("utf-8"))
    os.replace(part, path)
    return path


__all__ = ["CardFacts", "add_report", "facts_of_trainer", "merge_cards", "write_card"]

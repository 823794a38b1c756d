"""Writes the tables and pictures of README.md, docs/results.md and docs/performance.md from the result files.

    make demo
    python benchmarks/scoring.py --json docs/results/scoring.json
    python benchmarks/step.py --variants --json docs/results/step.json
    python benchmarks/update_rules.py --json docs/results/update_rules.json
    python examples/reproduce_claims.py --zoo zoo ...  (see its help: zoos have to be made first)
    python docs/make_results.py

Takes `runs/demo/report/` where it is there, keeps its JSON under `docs/results/` and its charts under `docs/images/`, and
fills what stands between `<!-- table:NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image


DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "examples"))

from claims.tables import claims_table, headline  # noqa: E402


REPORT = DOCS.parent / "runs" / "demo" / "report"


def transfer_table(report: dict) -> str:
    """A transfer report as Markdown."""
    seeds = ", ".join(map(str, report["seeds"]))
    lines = [
        f"**{report['task'].capitalize()}**, source `{report['source']}`, seeds {seeds}; accuracy in %, Δ in points:",
        "",
        "| model | | n | full image | zero border | random border | VP | prompt | Δ [95 % CI] |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["targets"]:
        columns = (row[c] for c in ("full_image", "zero_border", "random_border", "vp", "tvp"))
        values = " | ".join(f"{100 * value:.1f}" for value in columns)
        low, high = (100 * bound for bound in row["delta_ci95"])
        role = "source" if row["is_source"] else "held-out"
        delta = f"{100 * row['delta']:+.1f} [{low:+.1f}, {high:+.1f}]"
        lines.append(f"| `{row['model']}` | {role} | {row['n']} | {values} | {delta} |")
    return "\n".join(lines)


def update_rules_table(rows: list[dict]) -> str:
    """The update-rule benchmark as Markdown: a row per rule and rate, a column per source."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    lines = [
        "| rule | learning rate | " + " | ".join(f"`{s}`" for s in sources) + " | mean |",
        "|---" * (len(sources) + 3) + "|",
    ]
    for rule, rate in dict.fromkeys((row["update_rule"], row["learning_rate"]) for row in rows):
        found = {row["source"]: 100 * np.array(row["gains"]) for row in rows
                 if (row["update_rule"], row["learning_rate"]) == (rule, rate)}  # fmt: skip
        cells = " | ".join(f"{found[s].mean():+.1f} ± {found[s].std():.1f}" for s in sources)
        lines.append(f"| {rule} | {rate:g} | {cells} | {np.mean([found[s].mean() for s in sources]):+.1f} |")
    return "\n".join(lines)


def scoring_table(figures: dict) -> str:
    """The scoring benchmark as Markdown."""
    seconds, settings = figures["seconds"], figures["settings"]
    rows = {
        "`score_candidates`": seconds["shared"],
        "one plain forward pass of image and question": seconds["default"],
        "the same, with the head at the last token only": seconds["plain"],
        "a full forward pass per candidate": seconds["loop"],
    }
    lines = [
        f"{figures['candidates']} candidates of {figures['tokens_per_candidate']:.1f} tokens on average, "
        f"{figures['prefix_tokens']} tokens of image and question, {settings['layers']} layers of width "
        f"{settings['width']}, {settings['dtype']}, {settings['device']}, {settings['threads']} thread, torch "
        f"{figures['versions']['torch']}, transformers {figures['versions']['transformers']}:",
        "",
        "| | seconds | of `score_candidates` |",
        "|---|---|---|",
        *(f"| {what} | {value:.3f} | {value / seconds['shared']:.2f} |" for what, value in rows.items()),
        "",
        f"Ranking costs {figures['cost_in_forwards']:.2f} plain forward passes ({figures['cost_in_last_logit_forwards']:.2f} "
        f"of those with the head at the last token only); a loop takes {figures['speedup_vs_loop']:.0f} times as long. The "
        f"scores differ by at most {figures['max_abs_diff']:.1e} nats. The first call for a model also compares itself with "
        f"full passes: {seconds['shared_first_call']:.3f} s.",
    ]
    return "\n".join(lines)


STEP_ROWS = {
    "floor": "floor: forward, backward to the pixels",
    "floor_whole_head": "the same, head at every position",
    "ours_cached": "**ours**, clean features kept (from the second epoch on)",
    "ours": "**ours**, first epoch",
    "ours_half": "**ours**, first epoch, FCA on half of the images",
    "ours_default": "**ours**, the default recipe: without FCA and TSE, every epoch",
    "paper_loop": "the paper's loop",
    "lora": "LoRA, all linear layers",
    "lora_qv": "LoRA, queries and values of the language model",
    "floor_eager": "floor, eager attention in place of SDPA",
    "floor_compiled": "floor, the surrogate in `torch.compile`",
    "ours_compiled": "ours, first epoch, the surrogate in `torch.compile`",
    "ours_recomputed": "ours, first epoch, layers recomputed in the backward pass",
}


def step_table(figures: dict) -> str:
    """The benchmark of a training step as Markdown, one table a shape."""
    settings, versions, lines = figures["settings"], figures["versions"], []
    for shape, found in figures["shapes"].items():
        seconds, contenders = found["seconds"], found["contenders"]
        lines += [
            f"`{shape}` shape, {settings['size']} size, {found['batch']} images a step, {settings['dtype']}, "
            f"{settings['device']}, {settings['threads']} thread, {settings['rounds']} rounds, torch {versions['torch']}, "
            f"transformers {versions['transformers']}, {versions['platform']}:",
            "",
            "| | seconds | of floor | GFLOP | of floor | peak MiB | of floor |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, what in STEP_ROWS.items():
            if name not in contenders:
                continue
            row, floor = contenders[name], contenders["floor"]
            clock = "wall_seconds" if settings["device"] == "cuda" else "cpu_seconds"
            ratio = np.median(np.divide(row[clock], floor[clock]))
            lines.append(
                f"| {what} | {seconds[name]:.3f} | {ratio:.2f} | {row['gflop']:.1f} | {row['gflop'] / floor['gflop']:.2f} "
                f"| {row['bytes'] / 2**20:.0f} | {row['bytes'] / floor['bytes']:.2f} |"
            )
        lines += [
            "",
            "| | the paper's loop takes | of LoRA's time, all layers | of LoRA's time, queries and values |",
            "|---|---|---|---|",
            *(
                f"| {STEP_ROWS[name]} | {found[f'speedup_vs_paper_loop{suffix}']:.2f} times as long "
                f"| {found[f'time_vs_lora{suffix}']:.2f} | {found[f'time_vs_lora_qv{suffix}']:.2f} |"
                for name, suffix in (
                    ("ours_cached", ""),
                    ("ours", "_first_epoch"),
                    ("ours_half", "_first_epoch_half"),
                    ("ours_default", "_default_recipe"),
                )
                if name in contenders
            ),
            "",
        ]
    return "\n".join(lines).rstrip()


def headline_picture(prompt: Path, chart: Path, path: Path) -> None:
    """The learned border beside the chart of what it does."""
    left, right = Image.open(prompt).convert("RGB"), Image.open(chart).convert("RGB")
    side = int(right.height * 0.72)
    sheet = Image.new("RGB", (right.width + side + 60, right.height), "white")
    sheet.paste(left.resize((side, side), Image.Resampling.NEAREST), (30, (right.height - side) // 2))
    sheet.paste(right, (side + 60, 0))
    sheet.save(path, optimize=True)


def main() -> None:
    """Fills the tables and copies the pictures."""
    (DOCS / "images").mkdir(exist_ok=True)
    if REPORT.is_dir():
        for name in ("transfer", "transfer_digits"):
            shutil.copy(REPORT / f"{name}.json", DOCS / "results" / f"{name}.json")
            for kind in ("chart", "examples"):
                shutil.copy(REPORT / f"{name}_{kind}.png", DOCS / "images" / f"{name}_{kind}.png")
        headline_picture(REPORT / "transfer_prompt.png", REPORT / "transfer_chart.png", DOCS / "images" / "demo.png")
    # The other results are filled in by the scripts that measured them.
    made = {"transfer": transfer_table, "transfer_digits": transfer_table, "update_rules": update_rules_table,
            "scoring": scoring_table, "step": step_table}  # fmt: skip
    tables = {name: make(json.loads((DOCS / "results" / f"{name}.json").read_text())) for name, make in made.items()}
    claims = json.loads((DOCS / "results" / "claims.json").read_text())
    tables |= {"claims": claims_table(claims["claims"]), "claims_short": headline(claims["summary"])}
    for page in (DOCS.parent / "README.md", DOCS / "results.md", DOCS / "performance.md"):
        text = page.read_text()
        for name, table in tables.items():
            pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)
        page.write_text(text)


if __name__ == "__main__":
    main()

"""`--write_support PATH` writes what the suite found, one row a type, as JSON: `make support` does."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import roster
import torch
import transformers
from checks import CHECKS


OUTCOMES = pytest.StashKey[dict[str, dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write_support", metavar="PATH", help="write the outcome of every family there, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = defaultdict(dict)


@pytest.fixture(autouse=True)
def _row(request: pytest.FixtureRequest, record_property: Any) -> None:
    # Properties travel with the report, also from the worker processes of xdist.
    if request.node.originalname in ("test_family", "test_refused"):
        parameters = request.node.callspec.params
        record_property("row", [parameters["family"], parameters.get("check", "refused")])


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> None:
    properties = dict(report.user_properties)
    if "row" in properties and (report.when == "call" or report.failed or report.skipped):
        family, check = properties["row"]
        config.stash[OUTCOMES][family][check] = "not applicable" if report.skipped else report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--write_support", default=None)
    if path is None or hasattr(session.config, "workerinput"):
        return
    if roster.IS_OLD:
        raise pytest.UsageError(f"transformers {transformers.__version__} is older than the one of the table.")
    found = session.config.stash[OUTCOMES]
    models, paper_models = [], []
    for model_type in sorted({*roster.FAMILIES, *roster.REFUSED, *roster.NOT_BUILT} - roster.VARIANTS):
        own = [model_type, *(v for v in roster.VARIANTS if v.startswith(f"{model_type} ("))]
        checks: dict[str, str] = {}
        for family in own:
            for check, outcome in found.get(family, {}).items():
                # The worst of the variants.
                checks[check] = max(
                    checks.get(check, outcome), outcome, key=["not applicable", "passed", "failed"].index
                )
        # In the order of the suite, not in that in which processes were done.
        checks = {check: checks[check] for check in (*CHECKS, "refused") if check in checks}
        rows = paper_models if model_type in roster.PAPER else models
        rows.append({"model_type": model_type, **_verdict(model_type, checks), "checks": checks})
    document = {"command": "make support", "transformers": transformers.__version__, "torch": torch.__version__,
                "models": models, "paper_models": paper_models}  # fmt: skip
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _verdict(model_type: str, checks: dict[str, str]) -> dict[str, str]:
    failed = sorted(check for check, outcome in checks.items() if outcome == "failed")
    if model_type in roster.NOT_BUILT:
        return {"status": "unsupported", "reason": roster.NOT_BUILT[model_type]}
    if model_type in roster.REFUSED:
        reason = roster.REFUSED[model_type].reason
        return {"status": "unsupported", "reason": reason + (" (and is not refused)" if failed else "")}
    if failed:
        return {"status": "unsupported", "reason": f"fails: {', '.join(failed)}"}
    # Only placeholders may be not applicable.
    missing = [check for check in CHECKS if checks.get(check) != "passed" and (check, checks.get(check)) != (
        "placeholders", "not applicable")]  # fmt: skip
    if missing:
        return {"status": "untested", "reason": f"the suite was not run for it: {', '.join(missing)}"}
    return {"status": "supported", "reason": roster.NOTES.get(model_type, "")}

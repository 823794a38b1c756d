"""From a prompt that was just trained to somebody else's use of it, over HTTP and in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, hub_environment

from transferable_vp import Surrogate, evaluate
from transferable_vp.bundled import bundled
from transferable_vp.demo import learn, load_world, make_panels
from transferable_vp.hub import SHARED_FILES


SOMEBODY_ELSE = """
import json, sys
import torch
from transferable_vp import Surrogate, TransferableVisualPrompt, evaluate
from transferable_vp.bundled import bundled
from transferable_vp.demo import load_world, make_panels

torch.set_num_threads(1)
prompt = TransferableVisualPrompt.from_pretrained("org/tvp-colors")
panel = make_panels(load_world(), 160, 60, quick=True)[0]
model = Surrogate.from_pretrained(str(bundled("zoo/idefics3")))
result = evaluate(model, panel.test, panel.task, prompt, progress=False)
print(json.dumps([result.values.tolist(), result.scores]))
"""


@pytest.mark.multiprocess
def test_a_prompt_of_the_demo_gives_another_process_the_same_scores(hub: HubServer, tmp_path: Path) -> None:
    panel = make_panels(load_world(), 160, 60, quick=True)[0]
    prompt, _ = learn(panel, Surrogate.from_pretrained(str(bundled("zoo/llava"))), "VP", 0, 10, progress=False)
    unseen = Surrogate.from_pretrained(str(bundled("zoo/idefics3")))
    here = evaluate(unseen, panel.test, panel.task, prompt, progress=False)
    without = evaluate(unseen, panel.test, panel.task, prompt, prompted=False, progress=False)
    assert here.scores != without.scores

    prompt.push_to_hub("org/tvp-colors", private=True)
    pushed = hub.repos["model", "org/tvp-colors"].files()
    assert set(pushed) == {*SHARED_FILES, ".gitattributes"}

    # Private, so that it is the token of the environment that opens it.
    env = os.environ | hub_environment(hub, tmp_path / "theirs")
    there = subprocess.run([sys.executable, "-c", SOMEBODY_ELSE], env=env, capture_output=True, text=True, timeout=300)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == [here.values.tolist(), here.scores]

"""The app of `transferable-vp app`, as a Hugging Face Space runs it (see examples/app_space/README.md).

python examples/app.py
"""

from __future__ import annotations

from transferable_vp.app import launch, make_app


# Prompts to offer, as make_app(["org/tvp-cifar10"]), and models beside the zoo's, as make_app(models=["org/model"]).
demo = make_app()

if __name__ == "__main__":
    launch(demo)

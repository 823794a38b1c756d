"""Packaging of transferable_vp. All metadata is here; pyproject.toml only holds the build backend and tool settings."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


ROOT = Path(__file__).resolve().parent

# Every floor is a version the tests pass with: `make compat` installs exactly these ("==") and runs them.
INSTALL_REQUIRES = [
    "accelerate>=1.12.0",
    "datasets>=5.1.0",  # the first that takes huggingface_hub 2
    "evaluate>=0.4.6",  # the first that imports next to huggingface_hub 1.x
    "huggingface_hub>=2.2.0",  # before it, a token goes along to the signed address that a file is redirected to
    "jinja2>=3.1.4",  # chat templates and model cards
    "numpy>=2.1.0",
    "peft>=0.20.0",  # for adapters that transformers itself loads, version 5.24 wants 0.22, which is still to come
    "pillow>=11.3.0",
    "pyyaml>=6.0.2",
    "safetensors>=0.8.0",
    "torch>=2.12.0",  # the one that the torchvision floor is built for
    "torchvision>=0.27.0",  # before it there is no Lanczos, so Idefics3 and SmolVLM load processors without a gradient
    "tqdm>=4.67.0",
    "transformers>=5.24.0",  # the first whose models call their cache `cache`
]

DEMO = ["matplotlib>=3.10.0", "scikit-learn>=1.6.0"]
APP = ["gradio>=6.31.0", *DEMO]  # the zoo's world is drawn and charted with what the demo needs
API = ["openai>=3.0.0"]  # models behind an API
PAPER = ["protobuf>=6.31.1", "sentencepiece>=0.2.1"]  # tokenizers of VisualGLM and Vicuna v0
TEST = [
    "ipykernel>=7.0.0",  # runs the notebooks
    "nbclient>=0.10.2",
    "nbformat>=5.10.4",
    "pytest>=8.4.0",
    "playwright>=1.65.2",  # drives the browser of the machine; it downloads none
    "pytest-xdist>=3.7.0",
    "setuptools",
    "tensorboard>=2.21.0",
    "timm>=1.0.20",  # image encoders of Gemma 3n, FastVLM and Perception LM
    *API,
    *APP,
    *PAPER,
]
# For slow tests only: torchao makes every import of transformers slower and noisier, the others serve a model.
EXTENDED = ["fastapi>=0.165.0", "torchao>=0.18.0", "uvicorn>=0.54.0"]
# A formatter's next release may want other line breaks, so ruff moves by a commit of ours and not by itself.
QUALITY = ["mypy>=2.4.0", "pre-commit>=4.5.0", "ruff>=0.17.5,<0.18", "types-PyYAML"]
DOCS = [
    "furo>=2025.12.19",
    "latex2mathml>=3.81.1",  # formulas in the browser's own markup, with no script from elsewhere
    "matplotlib>=3.10.0",
    "myst-parser>=5.2.0",
    "sphinx>=9.0.4",  # the last for Python 3.11
    "sphinx-copybutton>=0.5.2",
]

EXTRAS = {
    "api": API,
    "app": APP,
    "demo": DEMO,
    "paper": PAPER,
    "test": TEST,
    "quality": QUALITY,
    "docs": DOCS,
    "extended": EXTENDED,
    # Pins some of its 130 packages: for an environment of its own, and not part of any other extra.
    "lmms-eval": ["lmms-eval>=0.7.3"],
    "dev": sorted({*TEST, *QUALITY, *DOCS}),
    "compat": [requirement.replace(">=", "==") for requirement in INSTALL_REQUIRES + TEST],
}

# Folders at the root of a checkout that the command needs at run time: a wheel carries them inside the package.
BUNDLED_FOLDERS = ("examples", "zoo")
BUNDLED_SUFFIXES = {".jinja", ".json", ".md", ".py", ".safetensors", ".sh", ".txt", ".yaml"}


def version() -> str:
    text = (ROOT / "transferable_vp" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise RuntimeError(
            'transferable_vp/__init__.py has no line `__version__ = "..."`; setup.py reads it from there.'
        )
    return match.group(1)


def bundled_files() -> list[Path]:
    """The files of the bundled folders, relative to the root, without caches, runs and hidden folders."""
    paths = [path.relative_to(ROOT) for folder in BUNDLED_FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return [
        path
        for path in paths
        if path.suffix in BUNDLED_SUFFIXES
        and not any(part in {"__pycache__", "runs"} or part.startswith(".") for part in path.parts)
    ]


class BuildPy(build_py):
    """Copies the bundled folders into the package. An editable install finds them at the root and needs no copy."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for path in bundled_files():
            target = Path(self.build_lib) / "transferable_vp" / path
            self.mkpath(str(target.parent))
            self.copy_file(str(ROOT / path), str(target), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        # An sdist asks this, and a wheel may be built from the sdist.
        return [*super().get_source_files(), *map(str, bundled_files())]


readme = ROOT / "README.md"

setup(
    name="transferable-vp",
    version=version(),
    description="Visual prompts that are ordinary images, learned on one vision-language model and used on any other",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author="The transferable_vp contributors",
    license="Apache-2.0",
    keywords="visual prompting, multimodal, vision-language models, transfer, transformers, deep learning, pytorch",
    packages=find_packages(include=["transferable_vp", "transferable_vp.*"]),
    package_data={
        "transferable_vp": [
            "py.typed",
            "*.json",
            "*.md",
            "*.jinja",
            "integrations/tasks/*.yaml",
            "metrics/**/*.json",
            "metrics/**/*.md",
            "metrics/**/*.py",
        ]
    },
    include_package_data=False,
    cmdclass={"build_py": BuildPy},
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["transferable-vp = transferable_vp.cli:main"],
        "lmms_eval.models": ["transferable_vp = transferable_vp.integrations:lmms_eval_models"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

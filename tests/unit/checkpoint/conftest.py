"""A tiny VILA model on one rank, and a folder of random weights in Hugging Face's own format."""

from __future__ import annotations

import pytest

from megatron_longrl.config import Config
from tests.tiny_vila import TINY

# This file is imported for tests without a model, too: what is heavy is imported by the fixtures.


@pytest.fixture
def tiny():
    """Makes configurations of the tiny model."""

    def make(**changes: object) -> Config:
        return Config.of({**TINY, **changes})

    return make


@pytest.fixture(scope="module")
def groups():
    """A world of one rank."""
    from megatron_longrl.parallel.groups import destroy_parallel, init_parallel
    from megatron_longrl.platforms import platform

    platform.prepare()
    yield init_parallel(Config.of(TINY).parallel, Config.of(TINY).model)
    destroy_parallel()


@pytest.fixture
def build(groups):
    """Builds models with random weights."""
    from megatron_longrl.training.model import build_model

    def make(config: Config, train: bool = True):
        return build_model(config, groups, train=train)

    return make


@pytest.fixture
def convert(capsys):
    """The converter in this process, which spares its imports."""
    from megatron_longrl.cli.convert import main

    def run(*flags: object) -> tuple[int, str, str]:
        capsys.readouterr()  # What making the folders has said.
        status = main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def vila_folder(tmp_path):
    """Writes random weights of transformers' own models as a VILA folder."""
    import torch

    from tests.unit.checkpoint.vila_files import write_vila

    def make(tie: bool = True, dtype: torch.dtype = torch.float32, name: str = "vila"):
        write_vila(tmp_path / name, tie, dtype)
        return tmp_path / name

    return make

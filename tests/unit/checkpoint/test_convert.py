"""tools/checkpoint/convert.py from a shell, there and back."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_longrl.checkpoint.distributed import save_checkpoint
from tools.checkpoint.loader_megatron import one_rank_config

CONVERT = Path(__file__).parents[3] / "tools/checkpoint/convert.py"


def shell(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONVERT), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def convert(capsys):
    """The converter in this process, which spares its imports."""
    spec = importlib.util.spec_from_file_location("convert", CONVERT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*flags: object) -> tuple[int, str, str]:
        status = module.main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for part in ("llm", "vision_tower", "mm_projector"):
        for file in (folder / part).glob("*.safetensors"):
            for name, tensor in load_file(file).items():
                found[f"{part}/{name.removeprefix('vision_model.')}"] = tensor
    return found


def test_there_and_back_is_bit_exact(vila_folder, groups, convert, tmp_path):
    source = vila_folder(tie=False, dtype=torch.bfloat16)
    (source / "llm/tokenizer.model").write_bytes(b"pieces")
    status, _, error = convert(
        "--loader", "hf_vila", "--saver", "megatron",
        "--load-dir", source, "--save-dir", tmp_path / "megatron",
    )  # fmt: skip
    assert status == 0, error
    assert (tmp_path / "megatron/latest_checkpointed_iteration.txt").read_text() == "release\n"
    status, _, error = convert(
        "--loader", "megatron", "--saver", "hf_vila",
        "--load-dir", tmp_path / "megatron", "--save-dir", tmp_path / "back",
    )  # fmt: skip
    assert status == 0, error
    before, after = all_tensors(source), all_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == torch.bfloat16 and torch.equal(tensor, after[name]), name
    assert (tmp_path / "back/llm/tokenizer.model").read_bytes() == b"pieces"


@pytest.mark.slow
def test_a_run_is_exported_from_a_shell(tiny, groups, build, tmp_path):
    config = tiny()
    model = build(config)
    save_checkpoint(
        tmp_path / "run",
        7,
        modules=model.modules,
        optimizers=model.optimizers,
        scheduler=model.scheduler,
        state={},
        groups=groups,
        config=config,
    )
    done = shell(
        "--loader", "megatron", "--saver", "hf_vila", "--dtype", "bf16",
        "--load-dir", tmp_path / "run", "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "67 tensors" in done.stdout and "MiB/s" in done.stdout
    tensors = all_tensors(tmp_path / "out")
    embedding = model.gpt.embedding.word_embeddings.weight[: config.vocab_size]
    assert torch.equal(tensors["llm/model.embed_tokens.weight"], embedding.bfloat16())


def test_a_checkpoint_written_with_transformer_engine_is_read_without(tiny):
    """Where checkpoints are converted there may be no GPU."""
    saved = tiny(transformer_impl="transformer_engine").model_dump(mode="json")
    assert one_rank_config(saved).transformer_impl == "local"


def test_what_is_wrong_is_one_line(convert, tmp_path):
    nothing = tmp_path / "nothing"
    status, _, error = convert(
        "--loader", "megatron", "--saver", "hf_vila",
        "--load-dir", nothing, "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert (status, error) == (2, f"error: {nothing} holds no checkpoint\n")
    assert not (tmp_path / "out").exists()

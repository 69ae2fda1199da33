"""tools/checkpoint/convert.py from a shell, there and back."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_longrl.checkpoint.saving import save_checkpoint
from megatron_longrl.cli.conversion.contents import contents_of
from megatron_longrl.cli.conversion.convert import same
from megatron_longrl.cli.conversion.loader_megatron import one_rank_config
from megatron_longrl.cli.inspect import main as inspect
from megatron_longrl.conversion.hf import HfFolder
from megatron_longrl.conversion.tensor_folder import TensorFolder
from tests.tiny_qwen_vl import hugging_face

CONVERT = Path(__file__).parents[3] / "tools/checkpoint/convert.py"


def shell(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONVERT), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


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
    embedding = model.policy.module.embedding.word_embeddings.weight[: config.model.vocab_size]
    assert torch.equal(tensors["llm/model.embed_tokens.weight"], embedding.bfloat16())


def test_a_checkpoint_written_with_transformer_engine_is_read_without(tiny):
    """Where checkpoints are converted there may be no GPU."""
    saved = tiny(transformer_impl="transformer_engine").flat("json")
    assert one_rank_config(saved, Path("state")).model.transformer_impl == "local"


def test_what_is_wrong_is_one_line(convert, tmp_path):
    nothing = tmp_path / "nothing"
    status, _, error = convert(
        "--loader", "megatron", "--saver", "hf_vila",
        "--load-dir", nothing, "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert (status, error) == (2, f"error: {nothing} holds no checkpoint\n")
    assert not (tmp_path / "out").exists()


def tiny_text(folder: Path, family: str, dtype: torch.dtype) -> Path:
    """Random weights of a text family, with files that an export must carry along."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    settings = AutoConfig.for_model(
        family,
        vocab_size=71,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(settings).to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"top_k": 7}')
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


def tiny_vision(folder: Path, family: str, dtype: torch.dtype) -> Path:
    hugging_face(family, dtype).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"min_pixels": 3136}')
    return folder


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "qwen2_5_vl", "qwen3_vl"])
def test_every_family_there_and_back(family, convert, tmp_path):
    make = tiny_vision if "vl" in family else tiny_text
    source = make(tmp_path / "hf", family, torch.bfloat16)
    for loader, saver, start, end in (
        (f"hf_{family}", "megatron", "hf", "megatron"),
        ("megatron", "hf", "megatron", "back"),
    ):
        status, out, error = convert(
            "--loader", loader, "--saver", saver, "--verify",
            "--load-dir", tmp_path / start, "--save-dir", tmp_path / end,
        )  # fmt: skip
        assert status == 0, error
        assert "verified" in out
    before, after = HfFolder(source), HfFolder(tmp_path / "back")
    names = before.tensors("").names()
    assert names and set(names) == set(after.tensors("").names())
    for name in names:
        assert torch.equal(before.read(name), after.read(name)), name
    carried = [n for n in before.files() if n != "config.json"]
    assert carried and carried == [n for n in after.files() if n != "config.json"]
    for name in carried:
        assert (source / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    assert before.config_fields() | {"tokenizer_model": ""} == (
        after.config_fields() | {"tokenizer_model": ""}
    )


def test_a_conversion_that_is_stopped_leaves_nothing(convert, tmp_path, monkeypatch):
    source = tiny_text(tmp_path / "hf", "qwen2", torch.float32)
    read, count = TensorFolder.read, [0]

    def stop(folder: TensorFolder, name: str) -> torch.Tensor:
        count[0] += 1
        if count[0] == 12:
            raise KeyboardInterrupt
        return read(folder, name)

    monkeypatch.setattr(TensorFolder, "read", stop)
    for saver in ("megatron", "hf_qwen2"):
        count[0] = 0
        status, _, error = convert(
            "--loader", "hf_qwen2", "--saver", saver,
            "--load-dir", source, "--save-dir", tmp_path / "out",
        )  # fmt: skip
        assert status == 130
        assert error == "error: interrupted; what was half-written is removed\n"
        assert count[0] == 12
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.full(
    "tests/unit/checkpoint/test_convert.py::test_a_conversion_that_is_stopped_leaves_nothing"
)
def test_a_conversion_that_is_killed_leaves_nothing(tmp_path):
    source = tiny_text(tmp_path / "hf", "qwen3", torch.float32)
    code = """
import os, sys
from megatron_longrl.cli.convert import main
from megatron_longrl.conversion.hf import TensorFolder
read, names = TensorFolder.read, []
def kill(folder, name):
    names.append(name)
    if len(names) == 12:
        assert os.listdir(sys.argv[-1])
        os.kill(os.getpid(), 9)
    return read(folder, name)
TensorFolder.read = kill
main(sys.argv[1:])
"""
    flags = ("--loader", "hf", "--saver", "megatron")
    places = ("--load-dir", str(source), "--save-dir", str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code, *flags, *places], check=False)
    assert done.returncode == -9
    deadline = time.monotonic() + 30
    while (tmp_path / "out").exists():
        assert time.monotonic() < deadline, list((tmp_path / "out").iterdir())
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks the tensor model.norm.weight"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(5)}),
            "model.norm.weight [5] gives [5]",
        ),
    ],
    ids=["missing", "shape"],
)
def test_what_is_wrong_with_weights_is_one_line(damage, message, convert, tmp_path):
    source = tiny_text(tmp_path / "hf", "qwen3", torch.float32)
    tensors = load_file(source / "model.safetensors")
    damage(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    status, _, error = convert(
        "--loader", "hf", "--saver", "megatron",
        "--load-dir", source, "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 2
    # transformers' progress is there, too.
    (line,) = [line for line in error.splitlines() if line and "model shards" not in line]
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_another_family_is_named(convert, tmp_path):
    source = tiny_text(tmp_path / "hf", "llama", torch.float32)
    status, _, error = convert(
        "--loader", "hf_qwen2", "--saver", "megatron",
        "--load-dir", source, "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 2 and "is of the family llama: give --loader hf_llama" in error
    (source / "config.json").write_text('{"model_type": "mamba"}')
    status, _, error = convert(
        "--loader", "hf", "--saver", "megatron",
        "--load-dir", source, "--save-dir", tmp_path / "out",
    )  # fmt: skip
    assert status == 2 and "model_type mamba is not supported, only llama" in error


def test_inspect_lists_both_formats(convert, tmp_path, capsys):
    source = tiny_text(tmp_path / "hf", "qwen3", torch.bfloat16)
    convert(
        "--loader", "hf", "--saver", "megatron",
        "--load-dir", source, "--save-dir", tmp_path / "megatron",
    )  # fmt: skip
    for folder, words in (
        (source, ("qwen3", "model.layers.1.mlp.up_proj.weight", "48 x 32", "BF16")),
        (tmp_path / "megatron", ("torch_dist", "mlp.linear_fc1.weight", "2 x 96 x 32", "bfloat16")),
        (tmp_path / "nothing", ("error:", "holds no checkpoint")),
    ):
        capsys.readouterr()
        status = inspect([str(folder)])
        told = capsys.readouterr()
        assert status == (2 if words[0] == "error:" else 0), told.err
        for word in words:
            assert word in told.out + told.err, (word, told.out)


def test_inspect_from_a_shell(tmp_path):
    command = [sys.executable, str(CONVERT.with_name("inspect.py")), str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "holds no checkpoint" in done.stderr


@pytest.mark.parametrize("name", ["convert", "inspect", "verify"])
def test_help_needs_nothing_else(name, capsys):
    main = importlib.import_module(f"megatron_longrl.cli.{name}").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert f"longrl {name}" in told
    assert name != "convert" or ("hf_vila" in told and "megatron, peft" in told)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loader", "hg", "--saver", "hf"), "--loader hg is not known: choose from hf, hf_llama"),
        (("--loader", "hf", "--saver", "os"), "--saver os has no function save_checkpoint"),
        (("--loader", "gone.py", "--saver", "hf"), "--loader gone.py does not exist"),
        (("--loader", "hf", "--saver", "a.b"), "--saver a.b is not known"),
        (("--loader", "hf", "--saver", ""), "--saver  is not known"),
    ],
)
def test_plugins_that_are_none(flags, message, convert):
    status, _, error = convert(*flags, "--load-dir", "a", "--save-dir", "b")
    assert status == 2 and " ".join(message.split()) in error and error.count("\n") == 1


MINE = """
from megatron_longrl.cli.conversion import loader_hf
from megatron_longrl.cli.conversion.plugins import Source

def add_arguments(parser):
    parser.add_argument("--mine", required=True)

def load_checkpoint(args) -> Source:
    assert args.mine == "yes"
    return loader_hf.load_checkpoint(args)
"""


@pytest.mark.parametrize("how", ["file", "path", "bare module"])
def test_plugins_of_ones_own(how, convert, tmp_path, monkeypatch):
    folder = tmp_path / "plugins"
    folder.mkdir()
    name = f"mine_{how[0]}"
    file = folder / (f"{name}.py" if how == "bare module" else f"loader_{name}.py")
    file.write_text(MINE)
    if how != "file":
        monkeypatch.syspath_prepend(folder)
    source = tiny_text(tmp_path / "hf", "qwen2", torch.float32)
    flags = (
        "--loader", file if how == "file" else name, "--saver", "hf",
        "--load-dir", source, "--save-dir", tmp_path / "out", "--mine", "yes", "--verify",
    )  # fmt: skip
    status, out, error = convert(*flags)
    assert status == 0, error
    assert "verified" in out
    file.write_text("import a_module_that_is_not_there")
    sys.modules.pop(file.stem, None)
    importlib.invalidate_caches()
    status, _, error = convert(*flags[:-3], "--dtype", "bf16")
    assert status == 2 and "cannot be imported: ModuleNotFoundError" in error


def test_a_weight_that_is_nan_is_told_as_such(convert, tmp_path):
    source = tiny_text(tmp_path / "hf", "qwen3", torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3:5] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    for loader, saver, start, end in (
        ("hf", "megatron", "hf", "megatron"),
        ("megatron", "hf", "megatron", "back"),
    ):
        status, _, error = convert(
            "--loader", loader, "--saver", saver, "--verify",
            "--load-dir", tmp_path / start, "--save-dir", tmp_path / end,
        )  # fmt: skip
        assert status == 2
        assert "model.norm.weight holds NaN in 2 of 32 places" in error
        assert "differs" not in error
    assert torch.equal(
        load_file(tmp_path / "back/model.safetensors")["model.norm.weight"].isnan(),
        tensors["model.norm.weight"].isnan(),
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, math.nan], [1.0, math.nan], True),
        ([1.0, math.nan], [math.nan, 1.0], False),
        ([2.0, math.nan], [1.0, math.nan], False),
        ([1.0], [1.0], True),
        ([1.0, 2.0], [1.0], False),
    ],
)
def test_what_is_the_same(ours, theirs, expected):
    assert same(torch.tensor(ours), torch.tensor(theirs)) is expected


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen2_5_vl", "qwen3_vl"])
def test_only_what_means_something_is_listed(family, convert, tmp_path):
    make = tiny_vision if "vl" in family else tiny_text
    source = make(tmp_path / "hf", family, torch.float32)
    status, _, error = convert(
        "--loader", "hf", "--saver", "megatron",
        "--load-dir", source, "--save-dir", tmp_path / "megatron",
    )  # fmt: skip
    assert status == 0, error
    for folder in (source, tmp_path / "megatron"):
        facts = contents_of(folder).facts
        assert facts["model_family"] == family and facts["num_layers"] > 0
        hidden = {"projector_type", "rope_scaling_type", "vision_feature_layer", "yarn_beta_fast"}
        hidden |= {"llama3_low_freq_factor", "vision_image_size", "vision_spatial_pooling"}
        assert not hidden & set(facts)
        assert ("mrope_section" in facts) is ("vl" in family)
        assert ("vision_tokens_per_second" in facts) is (family == "qwen2_5_vl")
        assert any(name.startswith("vision_") for name in facts) is ("vl" in family)


def test_sizes_in_a_state_file_fit_the_weights(convert, tmp_path):
    source = tiny_text(tmp_path / "hf", "qwen2", torch.float32)
    convert(
        "--loader", "hf", "--saver", "megatron",
        "--load-dir", source, "--save-dir", tmp_path / "megatron",
    )  # fmt: skip
    file = tmp_path / "megatron/release/longrl_state.json"
    before = json.loads(file.read_text())
    for name, value in (
        *(("hidden_size", 64), ("num_layers", 3), ("num_layers", 9999), ("vocab_size", 7000)),
        *(("ffn_hidden_size", 1 << 20), ("kv_channels", 16), ("num_query_groups", 4)),
        *(("num_layers", 10**9), ("hidden_size", "32"), ("seq_length", "long")),
    ):
        file.write_text(json.dumps({**before, "config": {**before["config"], name: value}}))
        started = time.monotonic()
        status, _, error = convert(
            "--loader", "megatron", "--saver", "hf",
            "--load-dir", tmp_path / "megatron", "--save-dir", tmp_path / "out",
        )  # fmt: skip
        assert status == 2 and time.monotonic() - started < 5
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert "longrl_state.json" in line
        assert not (tmp_path / "out").exists()


def test_inspect_hides_no_library(tmp_path):
    """A script in the folder of tools/checkpoint/inspect.py that imports the library's module."""
    shutil.copy(CONVERT.with_name("inspect.py"), tmp_path)
    (tmp_path / "mine.py").write_text(
        "import dataclasses, inspect\n"
        "print(inspect.signature(dataclasses.replace), inspect.__file__)\n"
    )
    command = [sys.executable, str(tmp_path / "mine.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stdout

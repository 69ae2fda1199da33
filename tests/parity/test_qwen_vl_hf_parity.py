"""Qwen2.5-VL and Qwen3-VL checkpoints compute here what transformers computes, and come back as
they went."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_longrl.config import Config
from megatron_longrl.conversion.hf import HfFolder, config_from_hf
from megatron_longrl.conversion.hf_writer import HfFolderWriter
from megatron_longrl.conversion.mapping import export_named_tensors
from megatron_longrl.parallel.groups import destroy_parallel
from megatron_longrl.platforms import platform
from tests.parity.comparison import TOLERANCE, assert_close, loaded, logits
from tests.tiny_qwen_vl import MERGE, MODELS, PATCH, TIMES, VOCABULARY, hugging_face

OTHER_NAMES = {
    "qwen2_5_vl": {"model.": "model.language_model.", "visual.": "model.visual."},
    "qwen3_vl": {"model.visual.": "visual."},
}
"""What else the files of a family may call the tensors than what transformers writes."""


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    platform.prepare()
    yield
    destroy_parallel()


def patches(frames: torch.Tensor) -> torch.Tensor:
    """The order of transformers' processors, written from its description."""
    times, _, height, width = frames.shape
    rows, columns = height // PATCH, width // PATCH
    result = []
    for t in range(0, times, TIMES):
        for block_row in range(0, rows, MERGE):
            for block_column in range(0, columns, MERGE):
                for row in range(block_row, block_row + MERGE):
                    for column in range(block_column, block_column + MERGE):
                        y, x = row * PATCH, column * PATCH
                        patch = frames[t : t + TIMES, :, y : y + PATCH, x : x + PATCH]
                        result.append(patch.transpose(0, 1).flatten())
    return torch.stack(result)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (16, 16), (8, 24)])
@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_tower_and_mergers(family, height, width, tmp_path):
    theirs = hugging_face(family)
    theirs.save_pretrained(tmp_path / "hf")
    config, _, model = loaded(tmp_path / "hf")
    assert config.model.family == family
    frames = torch.randn(6, 3, height, width)
    units = frames.unflatten(0, (-1, 2))
    grid = torch.tensor([[3, height // PATCH, width // PATCH]])
    expected = theirs.model.visual(patches(frames), grid_thw=grid)
    whole = [expected.pooler_output, *getattr(expected, "deepstack_features", [])]
    assert_close(model.encoders["encoder"].module(units).flatten(0, 1), torch.cat(whole, dim=-1))


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_logits_at_multimodal_positions(family, tmp_path):
    theirs = hugging_face(family)
    theirs.save_pretrained(tmp_path / "hf")
    _, _, model = loaded(tmp_path / "hf")
    tokens = torch.randint(0, 100, (2, 40))
    positions = torch.randint(0, 300, (2, 40, 3))
    expected = theirs(input_ids=tokens, position_ids=positions.permute(2, 0, 1)).logits
    assert_close(logits(model.policy.module, tokens, positions)[..., :VOCABULARY], expected)


@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_logits_of_a_context_that_yarn_has_lengthened(family, tmp_path):
    usual = hugging_face(family)
    settings = usual.config
    settings.text_config.rope_parameters |= {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    for name, parameter in usual.named_parameters():
        if "q_proj.weight" in name or "q_norm" in name:
            parameter.data *= 4  # attention that tells places apart
    theirs = type(usual)(settings).eval()
    theirs.load_state_dict(usual.state_dict())
    theirs.save_pretrained(tmp_path / "hf")
    _, _, model = loaded(tmp_path / "hf")
    tokens = torch.randint(0, 100, (2, 40))
    positions = torch.randint(0, 300, (2, 40, 3))
    places = positions.permute(2, 0, 1)
    expected = theirs(input_ids=tokens, position_ids=places).logits
    assert_close(logits(model.policy.module, tokens, positions)[..., :VOCABULARY], expected)
    unscaled = usual(input_ids=tokens, position_ids=places).logits
    assert (unscaled - expected).abs().max() > 20 * TOLERANCE, "the scaling must show"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", MODELS)
def test_round_trip_is_bit_exact(family, dtype, tmp_path):
    source, back = tmp_path / "hf", tmp_path / "back"
    theirs = hugging_face(family, dtype)
    theirs.save_pretrained(source)
    config, groups, model = loaded(source, bf16=dtype is torch.bfloat16)
    with HfFolderWriter(back, config, files=HfFolder(source).files()) as writer:
        for name, tensor in export_named_tensors(model.modules, config, groups):
            writer.add(name, tensor)
    before, after = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    table_name = HfFolder(source).family.table_name
    ours = {table_name("", name): tensor for name, tensor in after.items()}
    assert {table_name("", name) for name in before} == set(ours)
    for name, tensor in before.items():
        assert torch.equal(tensor, ours[table_name("", name)]), name
    assert config_from_hf(back) == config_from_hf(source)
    again, report = type(theirs).from_pretrained(back, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("family", MODELS)
def test_all_styles_of_names_are_read(family, tmp_path):
    usual, other = tmp_path / "usual", tmp_path / "other"
    hugging_face(family).save_pretrained(usual)
    other.mkdir()
    tensors = load_file(usual / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in OTHER_NAMES[family].items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        renamed[name] = tensor
    assert set(renamed) != set(tensors)
    save_file(renamed, other / "model.safetensors")
    (other / "config.json").write_bytes((usual / "config.json").read_bytes())
    config = Config.of({**config_from_hf(usual), "seq_length": 512})
    HfFolder(other).check(config)
    for name in HfFolder(usual).tensors("").names():
        assert torch.equal(HfFolder(usual).read(name), HfFolder(other).read(name))

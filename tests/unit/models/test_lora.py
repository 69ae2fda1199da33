"""The algebra of adapters, and what they leave alone. Layouts are in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from megatron_longrl.conversion.initialize import initialize_adapter
from megatron_longrl.models.lora import (
    LoraAdapter,
    LoraLinear,
    LoraOptions,
    adapt_linear_layers,
    merged_weight,
    train_adapters_only,
    without_adapters,
)
from megatron_longrl.models.param_mapping import ColumnParallel, RowParallel, adapter_mappings

OPTIONS = LoraOptions(rank=3, scale=1.7, targets=())


@pytest.fixture
def adapted():
    """An adapted layer with random A and B, and the plain one that it was made of."""
    torch.manual_seed(0)
    plain = nn.Linear(7, 5)
    layer = LoraLinear(plain, OPTIONS)
    nn.init.normal_(layer.lora.A)
    nn.init.normal_(layer.lora.B)
    return layer, plain


def test_a_merged_layer_computes_what_the_adapted_one_does(adapted):
    layer, plain = adapted
    x = torch.randn(4, 7)
    merged = nn.functional.linear(x, layer.lora.merged(layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), merged, rtol=1e-6, atol=1e-6)
    assert (layer(x) - plain(x)).abs().max() > 0.1


def test_merging_follows_the_definition_and_leaves_the_weight_alone():
    torch.manual_seed(1)
    weight, a, b = torch.randn(5, 7), torch.randn(3, 7), torch.randn(5, 3)
    before = weight.clone()
    expected = weight.double()
    for k in range(3):
        expected += 1.7 * torch.outer(b[:, k].double(), a[k].double())
    torch.testing.assert_close(
        merged_weight(weight, a, b, 1.7).double(), expected, rtol=1e-7, atol=1e-7
    )
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_merged_to_the_numbers_of_the_whole(dtype):
    torch.manual_seed(2)
    weight, a, b = (torch.randn(s).to(dtype) for s in ((64, 48), (8, 48), (64, 8)))
    whole = merged_weight(weight, a, b, 0.3)
    pairs = zip(weight.chunk(4), b.chunk(4), strict=True)
    rows = [merged_weight(piece, a, part, 0.3) for piece, part in pairs]
    pairs = zip(weight.chunk(4, 1), a.chunk(4, 1), strict=True)
    columns = [merged_weight(piece, part, b, 0.3) for piece, part in pairs]
    assert torch.equal(whole, torch.cat(rows)) and torch.equal(whole, torch.cat(columns, dim=1))


def test_switched_off_within_the_block_only(adapted):
    layer, plain = adapted
    x = torch.randn(4, 7)
    expected = layer(x)
    with without_adapters(nn.Sequential(layer)):
        assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer(x), expected)
    with pytest.raises(KeyError), without_adapters(layer):
        raise KeyError
    assert torch.equal(layer(x), expected)


def test_names_and_gradients_of_adapted_layers():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.ModuleDict({"inner": nn.Linear(6, 2)}))
    names = set(model.state_dict())
    adapt_linear_layers(model, OPTIONS)
    assert names < set(model.state_dict())
    train_adapters_only(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(model.state_dict()) - names
    assert trained == {f"{at}.lora.{m}" for at in ("0", "2.inner") for m in "AB"}


@pytest.mark.parametrize("kind", [ColumnParallel, RowParallel])
def test_initial_values_are_those_of_peft_whatever_the_ranks(kind):
    row = kind("language_model.x.weight", ("llm/x.weight",))
    a_row, b_row = adapter_mappings(row)

    def pieces(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for rank in range(size):
            weight = row.shard(torch.zeros(40, 64), rank, size)
            adapter = LoraAdapter(weight, LoraOptions(rank=16, scale=1.0, targets=()))
            nn.init.normal_(adapter.B)
            with torch.no_grad():
                initialize_adapter(row, adapter, 5, rank, size)
            found.append((adapter.A.detach(), adapter.B.detach()))
        return a_row.join([a for a, _ in found]), b_row.join([b for _, b in found])

    a, b = pieces(1)
    assert not b.any()
    # Kaiming's bound with a = sqrt(5), as PEFT asks for: sqrt(6 / (1 + 5) / in).
    assert a.abs().max() <= 64**-0.5
    assert a.std() == pytest.approx(64**-0.5 / 3**0.5, rel=0.05)
    for size in (2, 4):
        assert torch.equal(pieces(size)[0], a) and torch.equal(pieces(size)[1], b)

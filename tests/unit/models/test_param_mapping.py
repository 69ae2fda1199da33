"""The entries of a mapping table against layouts that are written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_longrl.models.param_mapping import (
    QKV,
    ColumnParallel,
    DirectMapping,
    GatedMLP,
    MappingRegistry,
    RowParallel,
    TensorMapping,
    TiedMapping,
    VocabParallel,
    adapter_mappings,
)

ROWS: dict[str, tuple[TensorMapping, list[tuple[int, ...]]]] = {
    "direct": (DirectMapping("m", ("llm/a",)), [(6,)]),
    "column": (ColumnParallel("m", ("llm/a",)), [(8, 3)]),
    "row": (RowParallel("m", ("llm/a",)), [(3, 8)]),
    "vocabulary": (VocabParallel("m", ("llm/a",), False, 13, 16), [(13, 3)]),
    "gated": (GatedMLP("m", ("llm/a", "llm/b")), [(8, 3), (8, 3)]),
    "qkv weight": (
        QKV("m", ("llm/q", "llm/k", "llm/v"), False, 28, 4),
        [(28 * 2, 5), (4 * 2, 5), (4 * 2, 5)],
    ),
    "qkv bias": (
        QKV("m", ("llm/q", "llm/k", "llm/v"), False, 28, 4),
        [(28 * 2,), (4 * 2,), (4 * 2,)],
    ),
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ROWS)
def test_round_trip_is_bit_exact(kind, dtype, size):
    mapping, shapes = ROWS[kind]
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    full = mapping.merge(tensors)
    shards = [mapping.shard(full, rank, size) for rank in range(size)]
    back = mapping.split(mapping.join(shards))
    assert len(back) == len(tensors)
    for before, after in zip(tensors, back, strict=True):
        assert after.dtype == dtype and after.is_contiguous() and torch.equal(before, after)


def test_qkv_rows_are_ordered_by_query_group():
    mapping = QKV("m", ("llm/q", "llm/k", "llm/v"), False, num_heads=4, num_query_groups=2)
    query = torch.tensor([0, 1, 10, 11, 20, 21, 30, 31])  # head * 10 + channel
    key = torch.tensor([100, 101, 110, 111])
    value = torch.tensor([200, 201, 210, 211])
    full = mapping.merge([query, key, value])
    # Two query heads, then the key and the value head that they share.
    assert full[:8].tolist() == [0, 1, 10, 11, 100, 101, 200, 201]
    assert full[8:].tolist() == [20, 21, 30, 31, 110, 111, 210, 211]
    assert torch.equal(mapping.shard(full, 1, 2), full[8:])


@pytest.mark.parametrize(("groups", "ranks"), [(1, 2), (1, 4), (2, 4)])
def test_ranks_beyond_the_groups_share_their_rows(groups, ranks):
    """As core's projection has them, whose output is gathered before heads are taken."""
    mapping = QKV("m", ("llm/q", "llm/k", "llm/v"), False, num_heads=4, num_query_groups=groups)
    full = mapping.merge(
        [torch.randn(16, 3), torch.randn(4 * groups, 3), torch.randn(4 * groups, 3)]
    )
    shards = [mapping.shard(full, rank, ranks) for rank in range(ranks)]
    assert {len(shard) for shard in shards} == {len(full) // ranks}
    assert torch.equal(mapping.join(shards), full)


def test_rows_that_do_not_split_are_told():
    mapping = QKV("m", ("llm/q", "llm/k", "llm/v"), False, num_heads=4, num_query_groups=1)
    full = mapping.merge([torch.randn(4, 3), torch.randn(1, 3), torch.randn(1, 3)])
    with pytest.raises(ValueError, match="does not split over 4 ranks"):
        mapping.shard(full, 0, 4)


def test_gated_mlp_gives_each_rank_its_gate_and_its_up():
    mapping = GatedMLP("m", ("llm/gate", "llm/up"))
    full = mapping.merge([torch.arange(4), torch.arange(10, 14)])
    assert mapping.shard(full, 0, 2).tolist() == [0, 1, 10, 11]
    assert mapping.shard(full, 1, 2).tolist() == [2, 3, 12, 13]


def test_padding_rows_are_zero_and_dropped():
    mapping = VocabParallel("m", ("llm/a",), vocab_size=3, padded_vocab_size=8)
    weight = torch.ones(3, 2)
    full = mapping.merge([weight])
    assert full.shape == (8, 2) and not full[3:].any()
    full[3:] = 7.0
    assert torch.equal(mapping.split(full)[0], weight)


def test_tied_output_takes_the_embedding_and_exports_nothing():
    mapping = TiedMapping(
        "m", ("llm/embed",), vocab_size=3, padded_vocab_size=4, alias="llm/lm_head"
    )
    assert not mapping.exported
    assert mapping.split(torch.ones(4, 2)) == ()
    assert mapping.merge([torch.ones(3, 2)]).shape == (4, 2)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["qkv weight", "gated", "row"])
def test_a_rank_has_the_piece_of_an_adapter_that_makes_its_piece_of_the_weight(kind, size):
    mapping, shapes = ROWS[kind]
    mapping = replace(
        mapping,
        megatron_param="m.weight",
        hf_params=tuple(f"{name}.weight" for name in mapping.hf_params),
    )
    inner, outer = shapes[0][1], sum(shape[0] for shape in shapes)
    a, b = torch.randint(-9, 9, (3, inner)), torch.randint(-9, 9, (outer, 3))
    a_row, b_row = adapter_mappings(mapping)
    assert (a_row.megatron_param, b_row.megatron_param) == ("m.lora.A", "m.lora.B")
    for rank in range(size):
        piece = b_row.shard(b, rank, size) @ a_row.shard(a, rank, size)
        assert torch.equal(piece, mapping.shard(b @ a, rank, size))
    # On the other side every projection has its own product.
    products = [theirs @ ours for theirs, ours in zip(b_row.split(b), a_row.split(a), strict=True)]
    for product, expected in zip(products, mapping.split(b @ a), strict=True):
        assert torch.equal(product, expected)
    assert a_row.hf_params[-1].endswith(".lora_A.weight") and b_row.hf_params[-1].endswith(
        ".lora_B.weight"
    )
    assert torch.equal(a_row.merge(a_row.split(a)), a)
    assert torch.equal(b_row.merge(b_row.split(b)), b)


def test_fused_projections_share_one_a():
    a_row, _ = adapter_mappings(GatedMLP("m.weight", ("llm/a.weight", "llm/b.weight")))
    with pytest.raises(ValueError, match="not equal"):
        a_row.merge([torch.ones(2, 3), torch.zeros(2, 3)])


def test_expand_goes_layer_by_layer_through_the_chosen_parts():
    table = MappingRegistry(
        entries=(
            DirectMapping("e", ("llm/e",)),
            DirectMapping("a.*.w", ("llm/a.*.w",)),
            DirectMapping("b.*.w", ("llm/b.*.w",)),
            DirectMapping("n", ("llm/n",)),
            DirectMapping("p", ("mm_projector/p",)),
        ),
        layers={"llm": 2},
    )
    names = [mapping.megatron_param for mapping in table.expand()]
    assert names == ["e", "a.0.w", "b.0.w", "a.1.w", "b.1.w", "n", "p"]
    assert [mapping.hf_params[0] for mapping in table.expand(["mm_projector"])] == [
        "mm_projector/p"
    ]

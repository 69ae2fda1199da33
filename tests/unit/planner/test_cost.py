"""What rows cost, against masks and modules that are counted."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_longrl.data.collate import collate
from megatron_longrl.parallel.attention.tree_mask import token_coordinates, tree_mask
from megatron_longrl.planner.cost import ModelCost, SequenceSize
from tests.unit.made_up_config import make_config
from tests.unit.training.made_up import make_prompt


@pytest.mark.parametrize(("prompt", "responses"), [(4, [3]), (9, [1, 5, 2]), (1, [1])])
def test_a_row_counts_the_tokens_and_pairs_of_its_mask(prompt, responses):
    batch = collate([make_prompt("p", prompt)], [[[7] * n for n in responses]], 1, 64)
    size = SequenceSize.of(prompt, responses)
    assert size.tokens == batch.tokens.shape[1]
    coordinates = token_coordinates(batch.branch_ids)
    assert size.pairs == int(tree_mask(coordinates, coordinates).sum())
    assert size.predicted == int(batch.loss_mask.sum())


def test_linear_layers_and_logits_against_counted_products():
    config = make_config(num_query_groups=2)
    h, f, tokens, logits = config.model.hidden_size, config.model.ffn_hidden_size, 5, 3
    kv = config.model.num_query_groups * config.model.kv_channels
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        for _ in range(config.model.num_layers):
            x = torch.empty(tokens, h)
            for width in (h, kv, kv, h, f, f):
                x @ torch.empty(h, width)
            torch.empty(tokens, f) @ torch.empty(f, h)
        torch.empty(logits, h) @ torch.empty(h, config.padded_vocab_size)
    assert ModelCost(config).forward(SequenceSize(tokens, 0, logits)) == counter.get_total_flops()

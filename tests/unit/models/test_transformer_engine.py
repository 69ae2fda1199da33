"""What can be known of Transformer Engine's layers without a GPU: their names and rules."""

from __future__ import annotations

import importlib.util

import pytest
from megatron.core.transformer.enums import AttnMaskType

from megatron_longrl.checkpoint.mapping import mapping_table
from megatron_longrl.models import transformer_engine
from megatron_longrl.models.language import layer_spec
from megatron_longrl.training.batches import rl_batches
from tests.unit.training.made_up import alone, make_config, make_groups

TE = {"transformer_impl": "transformer_engine", "shared_prompt": False}


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is not None, reason="it is installed"
)
def test_without_the_package_one_line_names_it():
    lines = list(transformer_engine.broken_rules(make_config(**TE)))
    assert lines == [
        "transformer_impl is transformer_engine, which is not installed: pip install "
        "'megatron_longrl[gpu]' on a machine with CUDA, or give --transformer-impl local"
    ]


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"shared_prompt": True}, "--no-shared-prompt"),
        ({"use_sequence_packing": True}, "--no-use-sequence-packing"),
        ({"context_parallel_size": 2}, "--mrsp-stages 2"),
    ],
)
def test_what_causal_attention_cannot_do(changes, remedy):
    config = make_config(**TE | changes)
    assert any(remedy in line for line in transformer_engine.broken_rules(config))


def test_parameters_have_the_names_under_which_local_layers_are_saved():
    renamed = layer_spec(AttnMaskType.arbitrary).submodules.sharded_state_dict_keys_map
    ours = [row.megatron for row in mapping_table(make_config()).expand()]
    theirs = [row.megatron for row in mapping_table(make_config(**TE)).expand()]
    saved = []
    for name in ours:
        for before, after in renamed.items():
            if name.startswith("language_model."):  # the tower is ours in both
                name = name.replace(f".{before}", f".{after}")
        saved.append(name)
    assert theirs == saved
    assert theirs != ours


def test_rows_carry_no_mask():
    batches = rl_batches(make_groups([[3, 7]]), make_config(**TE), alone())
    assert len(batches) == 2
    assert all(batch.attention_mask is None for batch in batches)

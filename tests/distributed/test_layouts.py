"""fp32 loss and every gradient of two-rank layouts equal those of the plain one-process twin."""

import pytest
import torch.distributed as dist

from megatron_longrl.parallel.attention import module
from megatron_longrl.planner.stages import plan_rows
from megatron_longrl.training import batches
from tests.distributed.layouts import (
    largest_error,
    sft_losses,
    tiny_config,
    train_once,
    twin_of,
    write_data,
)

TOLERANCE = 1e-5

LAYOUTS = {
    "TP2": {"tensor_model_parallel_size": 2},
    "TP2 with sequence parallelism": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "MR-SP2": {"context_parallel_size": 2},
    "PP2": {"pipeline_model_parallel_size": 2},
    "DP2": {},
}


def check(shared_path, layout, **changes):
    """Compare one layout with the twin."""
    if dist.get_rank() == 0:
        write_data(shared_path)
    dist.barrier()
    runtime, metrics, gradients = train_once(tiny_config(shared_path, **layout, **changes))
    loss, expected = twin_of(runtime)
    assert metrics["lm loss"] == pytest.approx(loss, rel=TOLERANCE, abs=1e-6)
    assert largest_error(gradients, expected) <= TOLERANCE


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(shared_path, layout, shared_prompt):
    check(shared_path, LAYOUTS[layout], shared_prompt=shared_prompt)


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("cp_comm_type", ["a2a", "p2p"])
def test_exchange(shared_path, cp_comm_type, shared_prompt):
    layout = LAYOUTS["MR-SP2"] | {"cp_comm_type": cp_comm_type}
    check(shared_path, layout, shared_prompt=shared_prompt)


@pytest.mark.parametrize("cp_comm_type", ["all_gather", "a2a", "p2p"])
def test_exchange_of_long_rows(shared_path, cp_comm_type, monkeypatch):
    """Coordinates instead of a dense mask, through recomputation and several rows."""
    monkeypatch.setattr(module, "SHORT", 0)
    layout = LAYOUTS["MR-SP2"] | {"cp_comm_type": cp_comm_type}
    check(shared_path, layout, micro_batch_size=2, recompute_granularity="full")


@pytest.mark.parametrize("layout", ["PP2", "TP2 with sequence parallelism"])
def test_long_rows(shared_path, layout, monkeypatch):
    monkeypatch.setattr(module, "SHORT", 0)
    check(shared_path, LAYOUTS[layout])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_rows_in_a_micro_batch(shared_path, layout):
    check(shared_path, LAYOUTS[layout], micro_batch_size=2)


def test_the_policy_is_the_distribution_that_rollouts_are_drawn_from(shared_path):
    check(shared_path, LAYOUTS["TP2"], rollout_temperature=0.6)


@pytest.mark.parametrize("layout", ["TP2", "MR-SP2", "PP2"])
def test_sft_is_at_temperature_one_whatever_rollouts_are(shared_path, layout):
    if dist.get_rank() == 0:
        write_data(shared_path)
    dist.barrier()
    config = tiny_config(shared_path, **LAYOUTS[layout], rollout_temperature=0.6)
    ours, theirs = sft_losses(config)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)


def test_untied_embeddings(shared_path):
    check(shared_path, LAYOUTS["PP2"], untie_embeddings_and_output_weights=True)


def test_recomputed_activations(shared_path):
    check(shared_path, LAYOUTS["MR-SP2"], recompute_granularity="full")


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("stages", ["auto", "0", "1"])
def test_every_choice_of_stages_is_exact(shared_path, stages, shared_prompt):
    check(shared_path, LAYOUTS["MR-SP2"], shared_prompt=shared_prompt, mrsp_stages=stages)


def test_long_rows_shared_and_short_ones_dealt_in_one_step(shared_path, monkeypatch):
    # Room for short rows only on a rank by itself.
    monkeypatch.setattr(batches, "plan_rows", plan_rows_within_100_tokens)
    check(shared_path, LAYOUTS["MR-SP2"], mrsp_stages="auto", recompute_granularity="full")


def plan_rows_within_100_tokens(*arguments, **keywords):
    plan = plan_rows(*arguments, **keywords | {"most_tokens": 100})
    assert plan.shared and all(plan.dealt), plan
    return plan

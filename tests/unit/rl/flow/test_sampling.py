"""Sampling by the trainer's own weights, and the rows that are trained of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_longrl.config import Config
from megatron_longrl.parallel.groups import ParallelGroups, destroy_parallel, init_parallel
from megatron_longrl.platforms import platform
from megatron_longrl.rl.flow.sampling import FlowSampler, Samples, Wanted
from megatron_longrl.rl.flow.settings import FlowSettings
from megatron_longrl.rl.flow.updates import contrast_batches, loss_of, step_batches, with_reference
from megatron_longrl.rl.reference import CopiedWeights
from megatron_longrl.training.flow.losses import StepLoss
from megatron_longrl.training.flow.rows import TextEmbedding
from megatron_longrl.training.flow.velocity_step import VelocityStep
from megatron_longrl.training.model import build_model
from megatron_longrl.training.train_step import TrainStep
from tests import tiny_sd3
from tests.tiny_flow_models import take_weights

SHAPE = (16, 4, 6)
SEED = 3
STEPS = 6
FIELDS = {"train_iters": 5, "lr": 1e-2, "sampling_steps": STEPS}


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    platform.prepare()
    config = tiny_sd3.config()
    yield init_parallel(config.parallel, config.model)
    destroy_parallel()


class Scene:
    """A model with random weights, and what samples from it."""

    def __init__(self, groups: ParallelGroups, **fields: Any) -> None:
        self.config: Config = tiny_sd3.config(**FIELDS, **fields)
        self.model = build_model(self.config, groups)
        take_weights(self.model.policy, tiny_sd3.diffusers_model(), self.config, groups)
        assert self.model.optimizer is not None
        self.model.optimizer.reload_model_params()
        self.settings = FlowSettings.of(self.config.family, self.config.algorithm)  # type: ignore[arg-type]
        self.step = VelocityStep(self.model.policy.module)
        self.train_step = TrainStep(self.model, None, groups, self.step)
        self.sampler = FlowSampler(self.step, self.settings, SHAPE, SEED, torch.device("cpu"))

    def sample(self, wanted: list[Wanted], iteration: int = 0) -> Samples:
        sigmas = self.settings.sigmas(STEPS)
        stochastic = self.settings.stochastic_steps(iteration)
        return self.sampler.sample(wanted, iteration, sigmas, stochastic)


def wanted(prompts: int = 2, size: int = 3) -> list[Wanted]:
    given = tiny_sd3.inputs((4, 4), prompts)
    return [
        Wanted(prompt, index, TextEmbedding(given["text"][prompt], given["pooled"][prompt]))
        for prompt in range(prompts)
        for index in range(size)
    ]


def first_log_ratio(scene: Scene, parts: list[Samples]) -> float:
    """The largest one of an update of all samples."""
    batches = []
    for part in parts:
        advantages = torch.linspace(-1, 1, len(part.wanted))
        batches += step_batches(part, advantages, scene.settings, SEED, 0)
    loss = loss_of(scene.settings, scene.config.algorithm)
    result = scene.train_step.train(batches, {}, None, loss)
    return result.metrics["flow/log_ratio_max"]


@pytest.mark.parametrize("algorithm", ["flow_grpo", "dance_grpo", "mix_grpo", "grpo_guard"])
def test_before_the_first_update_every_ratio_is_1(algorithm: str, groups: ParallelGroups) -> None:
    scene = Scene(groups, rl_algorithm=algorithm)
    whole = scene.sample(wanted())
    assert first_log_ratio(scene, [whole]) <= 1e-6
    assert first_log_ratio(scene, [whole]) > 1e-6, "the first update has changed the weights"


def test_ratios_are_1_in_other_micro_batches_than_those_of_sampling(
    groups: ParallelGroups,
) -> None:
    scene = Scene(groups, rl_algorithm="flow_grpo")
    every = wanted()
    whole = scene.sample(every)
    cut = []
    for first in (0, 2, 4):
        part = slice(first, first + 2)
        steps = [
            replace(
                step,
                before=step.before[part],
                reached=step.reached[part],
                mean=step.mean[part],
                logprobs=step.logprobs[part],
            )
            for step in whole.steps
        ]
        cut.append(Samples(every[part], whole.latents[part], whole.second, steps))
    assert first_log_ratio(scene, cut) <= 1e-6


def test_a_sample_depends_on_its_own_numbers_alone(groups: ParallelGroups) -> None:
    scene = Scene(groups, rl_algorithm="flow_grpo")
    every = wanted()
    whole = scene.sample(every)
    alone = [scene.sample([one]).latents[0] for one in every]
    assert (whole.latents - torch.stack(alone)).abs().max() < 1e-4
    assert not torch.allclose(whole.latents, scene.sample(every, iteration=1).latents)


def test_cause_1_the_sampler_has_the_trained_weights(groups: ParallelGroups) -> None:
    """Long-RL samples from the weights of the folder for ever."""
    scene = Scene(groups, rl_algorithm="flow_grpo")
    before = scene.sample(wanted())
    assert torch.equal(before.latents, scene.sample(wanted()).latents)
    first_log_ratio(scene, [before])
    assert (scene.sample(wanted()).latents - before.latents).abs().max() > 1e-3


def test_cause_3_every_step_is_trained_at_its_own_noise_level(groups: ParallelGroups) -> None:
    """Long-RL trains the first step alone, and compares it with the others' log-probabilities."""
    scene = Scene(groups, rl_algorithm="flow_grpo")
    samples = scene.sample(wanted())
    batches = step_batches(samples, torch.zeros(6), scene.settings, SEED, 0)
    sigmas = scene.settings.sigmas(STEPS)
    assert [float(batch.sigmas[0]) for batch in batches] == pytest.approx(sigmas[:-2])
    assert [float(batch.ends[0]) for batch in batches] == pytest.approx(sigmas[1:-1])
    for before, after in itertools.pairwise(batches):
        assert torch.equal(before.reached, after.latents)
    assert len({float(batch.old_logprobs[0]) for batch in batches}) == len(batches)


def test_cause_4_samples_of_a_prompt_are_a_group(groups: ParallelGroups) -> None:
    """Long-RL makes one sample of each prompt: nothing is compared. Here those of a group differ,
    from the first noise on or, with a shared one, from the first step on."""
    for shared in (False, True):
        scene = Scene(groups, rl_algorithm="flow_grpo", shared_first_noise=shared)
        samples = scene.sample(wanted())
        first = samples.steps[0].before
        assert torch.equal(first[0], first[1]) is shared
        assert not torch.equal(samples.steps[0].reached[0], samples.steps[0].reached[1])
        assert not torch.equal(first[0], first[3]), "another prompt"


def test_cause_6_log_probabilities_are_means_whose_clipping_range_is_small(
    groups: ParallelGroups,
) -> None:
    """Long-RL clips means over elements at 0.2, which never acts, at a learning rate of 1e-6."""
    for algorithm in ("flow_grpo", "dance_grpo", "mix_grpo", "grpo_guard"):
        scene = Scene(groups, rl_algorithm=algorithm)
        loss = loss_of(scene.settings, scene.config.algorithm)
        assert isinstance(loss, StepLoss)
        assert loss.reduction == "mean"
        assert loss.clip_lower == loss.clip_upper <= 1e-4


def test_a_window_moves_and_only_it_is_recorded(groups: ParallelGroups) -> None:
    scene = Scene(groups, rl_algorithm="mix_grpo", stochastic_window=2, window_interval=3)
    recorded = {iteration: scene.sample(wanted(), iteration).steps for iteration in (0, 3, 100)}
    sigmas = scene.settings.sigmas(STEPS)
    starts = {i: [step.start for step in steps] for i, steps in recorded.items()}
    assert starts == {0: [*sigmas[0:2]], 3: [*sigmas[1:3]], 100: [*sigmas[3:5]]}


def test_a_part_of_the_steps_is_drawn_for_each_sample(groups: ParallelGroups) -> None:
    scene = Scene(groups, rl_algorithm="dance_grpo", shared_first_noise=False)
    batches = step_batches(scene.sample(wanted()), torch.zeros(6), scene.settings, SEED, 0)
    assert len(batches) == 3  # 0.6 of 5
    of_sample = [tuple(float(batch.sigmas[row]) for batch in batches) for row in range(6)]
    assert len(set(of_sample)) > 1
    assert all(list(sigmas) == sorted(sigmas, reverse=True) for sigmas in of_sample)


def test_the_divergence_from_a_reference_begins_at_0(groups: ParallelGroups) -> None:
    for algorithm in ("flow_grpo", "diffusion_nft"):
        scene = Scene(groups, rl_algorithm=algorithm, grpo_kl_beta=0.1)
        reference = CopiedWeights(scene.model.policy.module)
        loss = loss_of(scene.settings, scene.config.algorithm)
        found = []
        for _ in range(2):
            samples, advantages = scene.sample(wanted()), torch.linspace(-1, 1, 6)
            rows: Any = step_batches(samples, advantages, scene.settings, SEED, 0)
            if algorithm == "diffusion_nft":
                rows = contrast_batches(samples, advantages, scene.settings, scene.step, SEED, 0)
            batches = with_reference(rows, scene.step, reference.in_place())
            found.append(scene.train_step.train(batches, {}, None, loss).metrics["kl/mean"])
        assert found[0] == pytest.approx(0, abs=1e-9)
        assert found[1] > 1e-6


def test_contrasted_samples_are_noised_at_levels_of_their_own(groups: ParallelGroups) -> None:
    scene = Scene(groups, rl_algorithm="diffusion_nft")
    samples = scene.sample(wanted())
    assert not samples.steps
    batches = contrast_batches(
        samples, torch.tensor([9.0, -9, 0, 0, 0, 0]), scene.settings, scene.step, SEED, 0
    )
    assert len(batches) == 3
    assert batches[0].good.tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5]
    levels = torch.stack([batch.sigmas for batch in batches])
    assert len(levels.unique()) == levels.numel()
    for batch in batches:
        assert torch.equal(batch.clean, samples.latents)
        noise = batch.latents - (1 - batch.levels(batch.sigmas)) * batch.clean
        assert float((noise / batch.levels(batch.sigmas)).std()) == pytest.approx(1, abs=0.1)

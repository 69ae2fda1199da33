"""A step stops on all ranks when the engine was given something else than what is trained."""

import dataclasses

import pytest

from megatron_longrl.data.dataset import RowSampler
from megatron_longrl.data.rows import load_rows
from megatron_longrl.errors import UserError
from megatron_longrl.rewards.runner import build_rewards
from megatron_longrl.rl.trainer import RLTrainer
from megatron_longrl.rollout.build import build_engine
from megatron_longrl.rollout.engine import RolloutHandle
from megatron_longrl.training.loop import DataIterator
from megatron_longrl.training.runtime import build_runtime
from tests.distributed.cases import CP2, PP2, SP, TP2
from tests.distributed.layouts import tiny_config

LAYOUTS = {"TP2 with sequence parallelism": TP2 | SP, "PP2": PP2, "MR-SP2": CP2, "DP2": {}}
OPTIONS = {"rollout_engine": "megatron", "rollout_max_tokens": 5, "grpo_prompts_per_step": 4}


class Spoilt:
    """An engine that gets other prompts or media than the trainer believes."""

    def __init__(self, engine, spoil):
        self.engine, self.spoil = engine, spoil

    def generate(self, requests, media, sampling, on_rollout=None):
        groups = []
        for request in requests:
            other, others = self.spoil(request.prompt, dict(media))
            spoilt = dataclasses.replace(request, prompt=other)
            (group,) = self.engine.generate([spoilt], others, sampling)
            for rollout in group.rollouts:
                on_rollout(request.prompt, rollout, sampling.n)
            groups.append(dataclasses.replace(group, prompt=request.prompt))
        return groups

    def start(self, *given):
        groups = self.generate(*given)
        return RolloutHandle(lambda _: groups)

    def __getattr__(self, name):
        return getattr(self.engine, name)


def token(prompt, media):
    ids = prompt.token_ids.clone()
    ids[-2] = (ids[-2] + 1) % 300
    return dataclasses.replace(prompt, token_ids=ids), media


def position(prompt, media):
    positions = prompt.positions.clone()
    positions[3:] += 1
    return dataclasses.replace(prompt, position_ids=positions), media


def embedding(prompt, media):
    for video in prompt.media:
        media[video.key()] = media[video.key()].clone()
        media[video.key()][1, 0] += 1e-3
    return prompt, media


def step(config, spoil=None):
    runtime = build_runtime(config, "rl")
    engine = build_engine(
        runtime.config, runtime.tokenizer, runtime.groups, runtime.model.policy.module
    )
    rewards = build_rewards(runtime.config.reward, runtime.groups)
    given = engine if spoil is None else Spoilt(engine, spoil)
    trainer = RLTrainer(runtime, given, rewards, None)
    rows = RowSampler(load_rows(config.data.train_data_path), config.training.seed)
    return trainer.step(0, DataIterator(rows, 0, config.rl.grpo_prompts_per_step, runtime.groups))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_that_keeps_it(tiny_data, layout):
    metrics = step(tiny_config(tiny_data, **OPTIONS | LAYOUTS[layout]))
    assert (
        0
        <= metrics["rollout_corr/logprob_diff_mean"]
        <= metrics["rollout_corr/logprob_diff_p99"]
        <= metrics["rollout_corr/logprob_diff_max"]
        <= 1e-4
    )
    assert metrics["rollout_corr/ess_token"] == pytest.approx(1, abs=1e-6)
    assert metrics["rollout_corr/ess_sequence"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (token, r"token ids are not those .* from index \d+ on"),
        (position, r"positions are not those .* from index 3 on"),
        (embedding, r"embeddings are not those .* from index \d+ on"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_of_the_three_stops_it(tiny_data, layout, spoil, message):
    config = tiny_config(tiny_data, **OPTIONS | LAYOUTS[layout])
    with pytest.raises(UserError, match=message):
        step(config, spoil)

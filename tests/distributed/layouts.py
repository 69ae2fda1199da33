"""A tiny run on real videos, in any layout, with loss and gradients by Hugging Face names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_longrl.config import Config
from megatron_longrl.conversion.mapping import export_named_tensors
from megatron_longrl.data.prompts import Prompt
from megatron_longrl.data.rows import load_rows
from megatron_longrl.data.tokenizer import build_tokenizer, train_sentencepiece
from megatron_longrl.experience.rollouts import Rollout, RolloutGroup, RolloutKey, Segment
from megatron_longrl.models.prompts import prompt_builder
from megatron_longrl.training.batches import sft_batches
from megatron_longrl.training.losses import rl_loss, sft_loss
from megatron_longrl.training.runtime import Runtime, build_runtime
from megatron_longrl.training.train_step import StepResult
from tests.distributed.twin import Twin
from tests.unit.training.made_up import policy_batches

TOLERANCE = 1e-5
"""Of losses and of gradients, see :func:`largest_error`."""

FRAMES = ((37,), (1,), (), (6, 3))
"""Frames of each row's videos: odd, one, none, two videos."""
RESPONSES = ((3, 11), (7, 1), (5, 5), (40, 2))
"""Lengths of the responses to each row."""
ADVANTAGES = ((1.0, -0.5), (0.3, 0.7), (-1.0, 1.0), (0.2, -0.2))


def write_data(folder: Path) -> None:
    """Videos, rows and a tokenizer; by one rank."""
    generator = np.random.default_rng(0)
    lines = []
    for number, counts in enumerate(FRAMES):
        names = [f"{number}-{k}.webm" for k in range(len(counts))]
        for name, frames in zip(names, counts, strict=True):
            write_video(folder / name, frames, generator)
        row = {
            "problem_id": number,
            "problem": f"What happens in video {number}?\nA. this\nB. that",
            "answer": "<answer>A</answer>",
            "reasoning": "",
            "data_type": "video" if names else "text",
            "videos": names,
        }
        lines.append(json.dumps(row))
    (folder / "train.jsonl").write_text("\n".join(lines))
    train_sentencepiece(lines, folder / "tok", 310)


def write_video(
    path: Path, frames: int, generator: np.random.Generator, width: int = 42, height: int = 36
) -> None:
    """Noise, four frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=Fraction(4))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def step_options(folder: Path) -> dict[str, object]:
    """Fields of one RL step on the rows of a folder, whose gradients are looked at."""
    return {
        "tokenizer_type": "SentencePieceTokenizer",
        "tokenizer_model": str(folder / "tok.model"),
        "train_data_path": [str(folder)],
        "seq_length": 512,
        "rollout_max_tokens": 40,
        "mrsp_mode": "full",
        "train_iters": 1,
        # Gradients stay in the buffers: no clipping, no update, no sharding of the optimizer.
        "lr": 0.0,
        "clip_grad": 0.0,
        "use_distributed_optimizer": False,
        "grpo_group_size": 2,
        "grpo_prompts_per_step": 4,
    }


def tiny_config(folder: Path, **changes: object) -> Config:
    """Two layers, grouped-query attention, an odd patch grid, a vocabulary that needs padding."""
    values: dict[str, object] = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "init_method_std": 0.1,
        "make_vocab_size_divisible_by": 8,
        "vision_image_size": 15,
        "vision_patch_size": 5,
        "vision_hidden_size": 16,
        "vision_num_layers": 3,
        "vision_num_attention_heads": 2,
        "vision_ffn_hidden_size": 24,
        **step_options(folder),
        "encoder_chunk_frames": 5,
    }
    return Config.of(values | changes)


def longest_prompt(folder: Path) -> int:
    """Tokens of the longest prompt, that of the first row."""
    config = tiny_config(folder)
    tokenizer = build_tokenizer(config.data.tokenizer_type, config.data.tokenizer_model)
    builder = prompt_builder(config, tokenizer, "rl")
    return max(len(builder.build(row).token_ids) for row in load_rows(config.data.train_data_path))


def rollouts(runtime: Runtime) -> list[RolloutGroup]:
    """This replica's groups, with made-up responses and advantages."""
    rows = runtime.rows_of_replica(load_rows(runtime.config.data.train_data_path))
    groups = []
    for prompt in runtime.build_prompts(rows):
        number = int(prompt.row.problem_id)
        generator = torch.Generator().manual_seed(number)
        responses = [
            Rollout(
                group_id=str(number),
                index=index,
                token_ids=torch.randint(20, 60, (length,), generator=generator),
                logprobs=torch.zeros(length),
                text="",
                reward_text="",
                finish_reason="stop",
                segments=(Segment(length, 0),),
            )
            for index, length in enumerate(RESPONSES[number])
        ]
        groups.append(RolloutGroup(str(number), prompt, responses))
    return groups


def advantages_of(groups: Iterable[RolloutGroup]) -> dict[RolloutKey, torch.Tensor]:
    """The made-up advantage of every token."""
    return {
        rollout.key: torch.full(
            (len(rollout.token_ids),), ADVANTAGES[int(group.group_id)][rollout.index]
        )
        for group in groups
        for rollout in group.rollouts
    }


def train_once(config: Config) -> tuple[Runtime, dict[str, float], dict[str, torch.Tensor]]:
    """One step. Returns the run, its metrics, and all gradients by Hugging Face names."""
    return train_step(build_runtime(config, "rl"))


def train_step(
    runtime: Runtime,
) -> tuple[Runtime, dict[str, float], dict[str, torch.Tensor]]:
    """:func:`train_once` with a run that is built already."""
    result = run_step(runtime)
    return runtime, result.metrics, gradients_of(runtime, runtime.model.modules)


def run_step(runtime: Runtime) -> StepResult:
    """One RL step on the made-up rollouts."""
    groups = rollouts(runtime)
    prompts, media = runtime.encode([group.prompt for group in groups], for_training=True)
    assert len(prompts) == len(groups)
    batches = policy_batches(groups, advantages_of(groups), runtime.config, runtime.groups)
    loss = rl_loss(runtime.config.algorithm, runtime.config.rollout)
    return runtime.train_step.train(batches, media.embeddings, media.encoded, loss)


def gradients_of(
    runtime: Runtime, modules: Mapping[str, torch.nn.Module], parts: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Export the gradients as if they were the weights, and put the weights back.

    Args:
        modules: of the policy, or of another model in its layout.
        parts: see :func:`export_named_tensors`.
    """
    parameters = [p for m in modules.values() for p in m.parameters()]
    weights = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            gradient = getattr(parameter, "main_grad", None)
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
        stream = export_named_tensors(modules, runtime.config, runtime.groups, parts)
        gradients = {name: tensor.clone() for name, tensor in stream}
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)
    return gradients


def twin_of(runtime: Runtime, kind: type[Twin] = Twin) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the twin with the run's weights, over all rows of all replicas."""
    stream = export_named_tensors(runtime.model.modules, runtime.config, runtime.groups)
    twin = kind(runtime.config, dict(stream))
    everyone: list[list[RolloutGroup]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyone, rollouts(runtime), group=runtime.groups.gloo_group)
    groups = {group.prompt.uid: group for part in everyone for group in part}
    temperature = runtime.config.rollout.temperature
    loss = policy_loss(groups.values(), lambda prompt, ids: twin.logprobs(prompt, ids, temperature))
    loss.backward()
    return float(loss.detach()), twin.gradients()


def policy_loss(
    groups: Iterable[RolloutGroup], logprobs: Callable[[Prompt, list[int]], torch.Tensor]
) -> torch.Tensor:
    """The on-policy loss over all response tokens, of log-probabilities [R] with a graph."""
    groups = list(groups)
    advantages, total, tokens = advantages_of(groups), torch.zeros(()), 0
    for group in groups:
        for response in group.rollouts:
            values = logprobs(group.prompt, response.token_ids.tolist())
            # On policy the ratio is one, so that the clipped loss's gradient is the plain one's.
            ratio = (values - values.detach()).exp()
            total = total - (ratio * advantages[response.key]).sum()
            tokens += len(values)
    return total / tokens


def sft_losses(config: Config) -> tuple[float, float]:
    """Loss of supervised training on the responses: ours, and the twin's."""
    runtime = build_runtime(config, "sft")
    groups = rollouts(runtime)
    prompts, media = runtime.encode([group.prompt for group in groups], for_training=False)
    responses = [group.rollouts[0].token_ids.tolist() for group in groups]
    batches = sft_batches(prompts, responses, runtime.config, runtime.groups)
    ours = runtime.train_step.evaluate(batches, media.embeddings, sft_loss).means()["lm loss"]
    stream = export_named_tensors(runtime.model.modules, runtime.config, runtime.groups)
    twin = Twin(runtime.config, dict(stream))
    theirs = [-twin.logprobs(p, ids) for p, ids in zip(prompts, responses, strict=True)]
    return ours, float(torch.cat(theirs).mean())


_TWINS: dict[bytes, tuple[float, dict[str, torch.Tensor]]] = {}


def cached_twin_of(runtime: Runtime) -> tuple[float, dict[str, torch.Tensor]]:
    """:func:`twin_of`, computed once for the same weights, data and temperature."""
    digest = hashlib.sha256(str(runtime.config.data.train_data_path).encode())
    digest.update(str(runtime.config.rollout.temperature).encode())
    for name, tensor in export_named_tensors(runtime.model.modules, runtime.config, runtime.groups):
        digest.update(name.encode())
        digest.update(tensor.detach().numpy().tobytes())
    key = digest.digest()
    everyone: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(everyone, key in _TWINS, group=runtime.groups.gloo_group)
    if not all(everyone):
        _TWINS[key] = twin_of(runtime)
    return _TWINS[key]


def check(folder: Path, **changes: object) -> None:
    """Loss and all gradients of a layout equal the twin's.

    Args:
        folder: what :func:`write_data` has filled.
    """
    runtime, metrics, gradients = train_once(tiny_config(folder, **changes))
    loss, expected = cached_twin_of(runtime)
    if not runtime.model.trained_encoders:
        expected = {name: g for name, g in expected.items() if name.startswith("llm/")}
    assert metrics["lm loss"] == pytest.approx(loss, rel=TOLERANCE, abs=1e-6)
    assert largest_error(gradients, expected) <= TOLERANCE


def largest_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of a gradient, relative to the largest entry of its tensor."""
    assert set(theirs) <= set(ours), sorted(set(theirs) - set(ours))[:3]
    errors = {}
    for name, expected in theirs.items():
        scale = float(expected.abs().max())
        # Key biases have no gradient in exact arithmetic: the whole model's scale judges them.
        floor = 1e-2 * max(float(g.abs().max()) for g in theirs.values())
        errors[name] = float((ours[name] - expected).abs().max()) / max(scale, floor)
    worst = max(errors, key=lambda name: errors[name])
    print(f"worst gradient: {worst} {errors[worst]:.2e}")
    return errors[worst]

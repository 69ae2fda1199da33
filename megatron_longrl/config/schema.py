"""The one configuration of a run: all sections in one flat namespace."""

from __future__ import annotations

import math
import reprlib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from megatron_longrl.config.algorithm import AlgorithmSection
from megatron_longrl.config.checkpoint import CheckpointSection
from megatron_longrl.config.data import DataSection
from megatron_longrl.config.evaluation import EvaluationSection
from megatron_longrl.config.logs import LoggingSection
from megatron_longrl.config.lora import LoraSection, lora_scale
from megatron_longrl.config.model import ModelSection
from megatron_longrl.config.names import flag
from megatron_longrl.config.parallel import ParallelSection
from megatron_longrl.config.plugins import PluginSection
from megatron_longrl.config.records import RECORD_FOLDER, RecordSection
from megatron_longrl.config.rewards import RewardSection
from megatron_longrl.config.rl import RLSection
from megatron_longrl.config.rollout import RolloutSection
from megatron_longrl.config.rotary import RotarySection
from megatron_longrl.config.section import Entry, Section
from megatron_longrl.config.training import TrainingSection
from megatron_longrl.config.vila import VilaSection, downsampling
from megatron_longrl.errors import UserError

if TYPE_CHECKING:
    import torch

SECTIONS: tuple[type[Section], ...] = (
    ModelSection,
    RotarySection,
    VilaSection,
    ParallelSection,
    TrainingSection,
    LoraSection,
    DataSection,
    AlgorithmSection,
    RLSection,
    RewardSection,
    RolloutSection,
    RecordSection,
    EvaluationSection,
    CheckpointSection,
    LoggingSection,
    PluginSection,
)
"""In the order of --help and --print-config."""


class Config(
    ModelSection,
    RotarySection,
    VilaSection,
    ParallelSection,
    TrainingSection,
    LoraSection,
    DataSection,
    AlgorithmSection,
    RLSection,
    RewardSection,
    RolloutSection,
    RecordSection,
    EvaluationSection,
    CheckpointSection,
    LoggingSection,
    PluginSection,
):
    """Everything a run can be told. Immutable; fields are documented in the sections."""

    def replace(self, **changes: Any) -> Config:
        """A copy with some fields changed; derived fields follow.

        Raises UserError on values of a wrong type or range.
        """
        values = self.given() | changes
        try:
            return Config.model_validate(values)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, {})) from None

    def given(self) -> dict[str, Any]:
        """The fields that were set explicitly, without defaults and derived values."""
        return self.model_dump(include=self.model_fields_set)

    @property
    def model_parallel_size(self) -> int:
        """Ranks of one model replica: tensor x context x pipeline."""
        return (
            self.tensor_model_parallel_size
            * self.context_parallel_size
            * self.pipeline_model_parallel_size
        )

    def data_parallel_size(self, world_size: int) -> int:
        """Number of model replicas on `world_size` ranks."""
        return world_size // self.model_parallel_size

    @property
    def sequence_multiple(self) -> int:
        """Rows are padded to a multiple of this, so that every rank gets equal zigzag chunks."""
        tensor = self.tensor_model_parallel_size if self.sequence_parallel else 1
        context = self.context_parallel_size
        return tensor if context == 1 else 2 * context * tensor

    @property
    def sharing_degrees(self) -> list[int]:
        """How many MR-SP ranks may share a row: the divisors of their number, increasing."""
        ranks = self.context_parallel_size
        degrees = [d for d in range(1, ranks + 1) if ranks % d == 0]
        if self.cp_comm_type != "a2a":
            return degrees
        groups = max(1, self.num_query_groups // self.tensor_model_parallel_size)
        return [d for d in degrees if groups % d == 0 or d % groups == 0]

    @property
    def tile_squares(self) -> tuple[int, ...]:
        """Sides of the squares of tiles that VILA's S2 takes of a picture, one for every scale."""
        return tuple(scale // self.vision_image_size for scale in self.vision_s2_scales) or (1,)

    @property
    def frame_side(self) -> int:
        """Side of VILA's square frames in pixels; 0 where there are no such frames."""
        if self.vision_s2_scales and not self.vision_dynamic_s2:
            return self.vision_s2_scales[-1]
        return self.vision_image_size

    @property
    def token_side(self) -> int:
        """Rows, and columns, of tokens that VILA makes of such a frame, before they are pooled."""
        patches = self.vision_image_size // self.vision_patch_size
        if not self.vision_dynamic_s2:
            patches *= self.tile_squares[self.vision_s2_output_scale]
        return math.ceil(patches / downsampling(self.projector_type))

    @property
    def tokens_per_frame(self) -> int:
        """Media tokens of a square frame of a video, without the newline that follows it; 0 where
        there are no such frames."""
        if not self.vision_image_size:
            return 0
        rows, columns = self.vision_spatial_pooling
        return (self.token_side // rows) * (self.token_side // columns)

    @property
    def projector_input_width(self) -> int:
        """Channels of the vision features that VILA's projector takes."""
        return self.vision_hidden_size * len(self.tile_squares)

    @property
    def embedding_width(self) -> int:
        """Channels of a media embedding: the language model's width, once more for every layer of
        DeepStack."""
        return self.hidden_size * (1 + len(self.vision_deepstack_layers))

    @property
    def params_dtype(self) -> torch.dtype:
        """Type of the weights that the forward pass uses."""
        import torch

        return torch.bfloat16 if self.bf16 else torch.float32

    @property
    def lora_scale(self) -> float:
        """By what an adapter's output is multiplied; there must be adapters."""
        return lora_scale(self.lora_rank, self.lora_alpha, self.lora_use_rslora)

    @property
    def rollout_model_len(self) -> int:
        """Longest prompt with its response, in tokens: answers of evaluation are not trained, so
        that they may exceed a row."""
        longer = max((self.eval_max_tokens or 0) - self.rollout_max_tokens, 0)
        return min(self.seq_length + longer, self.max_position_embeddings)

    @property
    def rollout_record(self) -> str | None:
        """Folder of the record of rollouts; None: nothing is recorded."""
        if not self.record_rollouts or self.replay_rollouts is not None:
            return None
        if self.rollout_record_dir is not None:
            return self.rollout_record_dir
        return None if self.save is None else f"{self.save}/{RECORD_FOLDER}"

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Rows of the word embeddings for a vocabulary of `vocab_size`."""
        multiple = self.make_vocab_size_divisible_by * self.tensor_model_parallel_size
        return math.ceil(vocab_size / multiple) * multiple

    def samples_per_step(self, world_size: int, entry: Entry) -> int:
        """Samples of one optimizer step: rows for SFT, sampled responses for RL."""
        if entry == "rl":
            return self.grpo_prompts_per_step * self.grpo_group_size
        if self.global_batch_size is not None:
            return self.global_batch_size
        return self.micro_batch_size * self.data_parallel_size(world_size)

    @property
    def mini_batches_per_step(self) -> int:
        """Optimizer steps of one pass over the responses of an RL step."""
        responses = self.grpo_prompts_per_step * self.grpo_group_size
        return responses // self.global_batch_size if self.global_batch_size else 1

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of an RL step."""
        return self.grpo_iterations * self.mini_batches_per_step

    @property
    def trains_on_older_weights(self) -> bool:
        """Whether tokens may come from weights before the newest."""
        return self.rollout_lag > 0 or self.rollout_step_tokens is not None

    @property
    def rewards_tokens(self) -> bool:
        """Whether tokens earn something beside the reward of their response."""
        return self.grpo_kl_beta > 0 and self.kl_placement == "reward"

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the policy's log-probabilities before the update take a pass of their own."""
        return self.updates_per_step > 1 or self.rewards_tokens or self.advantage == "gae"

    @property
    def forward_passes(self) -> int:
        """Passes of an RL step over its rows without a backward pass, those of a critic left
        aside."""
        return self.needs_old_logprobs + (self.grpo_kl_beta > 0)

    @property
    def lr_warmup_steps(self) -> int:
        """Steps of warmup, given by --lr-warmup-iters or --lr-warmup-fraction."""
        if self.lr_warmup_fraction is not None:
            return int(self.lr_warmup_fraction * self.lr_decay_iters)
        return self.lr_warmup_iters

    @property
    def rollout_tp_size(self) -> int:
        """Tensor-parallel size of the rollout engine, derived when it is not given."""
        if self.rollout_tensor_parallel_size is not None:
            return self.rollout_tensor_parallel_size
        size = self.model_parallel_size
        groups = self.num_query_groups
        splits = (
            self.num_attention_heads % size == 0
            and self.ffn_hidden_size % size == 0
            and (groups % size == 0 or size % groups == 0)
        )
        return size if splits else 1


def describe_validation_error(error: ValidationError, origins: dict[str, str]) -> str:
    """One line for all problems of a ValidationError; `origins` says where a field was set."""
    missing: list[str] = []
    wrong: list[str] = []
    for item in error.errors(include_url=False):
        field = str(item["loc"][0]) if item["loc"] else "configuration"
        if item["type"] == "default_factory_not_called":
            continue  # A derived field: what it derives from is already in the list.
        if item["type"] == "missing":
            missing.append(field)
            continue
        expected = item["msg"].replace("Input should be", "expected").replace("Input", "value")
        place = f" ({origins[field]})" if field in origins else ""
        wrong.append(f"{field} = {_shown(item['input'], field)}{place}: {expected}")
    if missing:
        wrong.append(
            f"{', '.join(missing)} not set: give {flag(missing[0])} ..., or put it into the "
            "--config recipe"
        )
    return "; ".join(wrong)


_MAY_HOLD_SECRETS = ("reward_kwargs", "judge_url", "judge_api_key_variable")
_LONGEST_SHOWN = 200
"""Characters of a value in a message."""


def _shown(value: Any, field: str) -> str:
    """A wrong value, in bounded size; it may be a secret that stands in the wrong form."""
    if field in _MAY_HOLD_SECRETS:
        return "(not shown)"
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 2, _LONGEST_SHOWN, _LONGEST_SHOWN
    return shown.repr(value)

"""The prompts of a run: its data's, with its model's layout of media."""

from __future__ import annotations

from megatron_longrl.config import Config, Entry
from megatron_longrl.data.conversation import Conversation
from megatron_longrl.data.prompts import SEQ_LENGTH, PromptBuilder
from megatron_longrl.data.tokenizer import Tokenizer
from megatron_longrl.media.read_policy import ReadPolicy
from megatron_longrl.models.family import find_family


def prompt_builder(
    config: Config, tokenizer: Tokenizer, entry: Entry, *, thinks: bool = True
) -> PromptBuilder:
    """The builder of prompts of an entry point.

    Args:
        thinks: whether responses may reason; a thought that the chat template opens is closed
            where they may not.

    Raises:
        UserError: the templates of the configuration do not suit the tokenizer.
    """
    family, data = find_family(config.model.family), config.data
    layout = None
    if family.build_layout is not None:
        layout = family.build_layout(config.family, tokenizer)
    most = config.model.max_position_embeddings
    room = config.training.seq_length
    if entry != "sft":  # a larger group takes as many rows as it needs
        room -= config.rollout.max_tokens
        longest = max(config.rollout.max_tokens, config.evaluation.max_tokens or 0)
        room = min(room, config.rollout_model_len - longest)
    is_short = config.training.seq_length < most
    return PromptBuilder(
        tokenizer,
        layout,
        max_tokens=room,
        modalities={name for encoder in family.encoders.values() for name in encoder.modalities},
        limit=SEQ_LENGTH if is_short else f"--max-position-embeddings {most}",
        max_frames=data.video_frames,
        fps=data.video_fps,
        audio_in_video=data.audio_in_video,
        missing_audio=data.missing_audio,
        reading=ReadPolicy(data.media_timeout, data.media_retries),
        conversation=Conversation(
            tokenizer,
            layout,
            chat_template=data.chat_template,
            system=data.system_prompt,
            prompt_template=data.prompt_template,
            thinks=thinks,
        ),
        demonstrates=entry == "sft",
    )

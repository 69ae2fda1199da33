"""Fields of the data, the tokenizer and the videos."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_longrl.config.section import Fraction, PositiveFloat, PositiveInt, Section, TextList


class DataSection(Section):
    """data: rows, tokenizer, videos"""

    train_data_path: TextList = Field(default_factory=list)
    """JSONL files, or folders that hold a train.jsonl."""

    valid_data_path: TextList = Field(default_factory=list)
    """JSONL files, or folders, on which the model is validated during training."""

    strict_data: bool = False
    """End the run at a row that cannot be used, instead of skipping and counting it."""

    max_skipped: Fraction = 0.5
    """End the run when more than this share of an epoch's rows cannot be used."""

    tokenizer_type: Literal["SentencePieceTokenizer", "HuggingFaceTokenizer"] = (
        "HuggingFaceTokenizer"
    )
    """Kind of tokenizer."""

    tokenizer_model: str = ""
    """SentencePiece .model file, or a folder with a Hugging Face tokenizer."""

    chat_template: str | None = None
    """What makes a row's question a conversation: a Jinja file, or the name of a template that is
    built in (qwen2, qwen2_system, vila, llama3, plain). By default the tokenizer's own; qwen2 where
    it has none."""

    system_prompt: str | None = None
    """Text of a system turn before the question."""

    prompt_template: str | None = None
    """What stands around the question itself: a file with {{ question }} (Jinja) or {question}
    (plain text) in it, or think-answer, which asks for <think>…</think><answer>…</answer>."""

    video_frames: PositiveInt | None = None
    """Frames sampled uniformly from each video, at most; by default all."""

    video_fps: PositiveFloat | None = None
    """Frames sampled per second of video; --video-frames still bounds their number."""

    video_frames_curriculum: TextList = Field(default_factory=list)
    """Stages ITERATION:FRAMES, such as 0:16 100:64: from each iteration on, the largest number of
    frames of a training video, instead of --video-frames."""

    encoder_chunk_frames: PositiveInt = 64
    """Frames that go through the vision tower at once on one rank; bounds its memory."""

    decode_buffer_mib: PositiveInt = 256
    """Decoded pixels of a rank that wait for the encoder, in MiB; at least a chunk. Decoding fewer
    frames at a time reads again from a key frame more often."""

    embedding_store_gib: PositiveFloat = 4.0
    """Memory for kept video embeddings, in GiB per replica and node."""

    embedding_cache_dir: str | None = None
    """Folder in which the embeddings of a frozen encoder outlive the run; runs may share it. All
    nodes of a replica see it."""

    embedding_cache_gib: PositiveFloat = 100.0
    """Disk space for --embedding-cache-dir, in GiB; the embeddings that were not used for longest
    leave first."""

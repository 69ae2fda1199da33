"""Fields of the data, the tokenizer and the videos."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megatron_longrl.config.section import PositiveFloat, PositiveInt, Section, TextList


class DataSection(Section):
    """data: rows, tokenizer, videos"""

    train_data_path: TextList = Field(default_factory=list)
    """JSONL files, or folders that hold a train.jsonl."""

    valid_data_path: TextList = Field(default_factory=list)
    """JSONL files, or folders, on which the model is validated during training."""

    strict_data: bool = False
    """End the run at a video that cannot be read, instead of skipping and counting it."""

    tokenizer_type: Literal["SentencePieceTokenizer", "HuggingFaceTokenizer"] = (
        "HuggingFaceTokenizer"
    )
    """Kind of tokenizer."""

    tokenizer_model: str = ""
    """SentencePiece .model file, or a folder with a Hugging Face tokenizer."""

    chat_template: str = "qwen2"
    """Name of the template that makes a row's question a conversation."""

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

"""Fields of the data, the tokenizer and the videos."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megatron_longrl.config.section import (
    CountInt,
    Fraction,
    KnownTo,
    Metavar,
    PositiveFloat,
    PositiveInt,
    Section,
    TextList,
    Unit,
    WeightFloat,
)


class DataSection(Section):
    """data: rows, tokenizer, videos

    docs/data.md describes the rows.
    """

    train_data_path: Annotated[TextList, KnownTo("sft", "rl")] = Field(default_factory=list)
    """Rows to train on: JSONL, JSON, Parquet or Arrow files, or folders with a train.jsonl, a
    single other .jsonl file, or a table. Several may have weights, a.jsonl:0.7 b.jsonl:0.3, by
    which samples are taken from them."""

    valid_data_path: Annotated[TextList, KnownTo("sft", "rl")] = Field(default_factory=list)
    """Rows on which the model is validated during training: files as of --train-data-path, or
    folders with a heldout.jsonl, a single other .jsonl file, or a table."""

    data_columns: Annotated[TextList, Metavar("FIELD=COLUMN")] = Field(default_factory=list)
    """Columns of the data that have other names than the fields of docs/data.md, such as
    problem=instruction answer=output."""

    table_media_dir: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder of a node's disk to which media that lie in cells of a table are written when their
    rows are taken. By default /var/tmp/megatron_longrl-media-USER."""

    table_media_gib: Annotated[PositiveFloat, Unit("GiB")] = 20.0
    """Disk space for --table-media-dir; the files that were not used for the longest time are
    removed first."""

    strict_data: bool = False
    """End the run at a row that cannot be used, instead of skipping and counting it."""

    max_skipped: Fraction = 0.5
    """Share of the rows of an epoch that may be unusable; with more the run ends."""

    media_timeout: Annotated[PositiveFloat, Unit("seconds")] = 300.0
    """Time within which a media file must be opened and looked through, and a rank must have
    decoded each --decode-buffer-mib of it. The row of one that takes longer, as on a network that
    does not answer, is skipped, and the file is put on the quarantine list."""

    media_retries: CountInt = 2
    """Further tries to read a media file after an error that may pass (EIO, ESTALE, EAGAIN,
    ETIMEDOUT), half a second and then twice as long apart; all within --media-timeout."""

    tokenizer_type: Literal["SentencePieceTokenizer", "HuggingFaceTokenizer"] = (
        "HuggingFaceTokenizer"
    )
    """Kind of tokenizer that --tokenizer-model holds."""

    tokenizer_model: Annotated[str, Metavar("PATH")] = ""
    """SentencePiece .model file, or a folder with a Hugging Face tokenizer."""

    chat_template: Annotated[str | None, Metavar("FILE|NAME")] = None
    """Chat template that makes a conversation of a row's question: a file with a Jinja template, or
    the name of a built-in one (qwen2, qwen2_system, vila, llama3, plain). By default the
    tokenizer's template, or qwen2 where it has none."""

    system_prompt: str | None = None
    """Text of a system turn before the question; by default none but what the chat template writes
    itself."""

    prompt_template: Annotated[str | None, Metavar("FILE|NAME")] = None
    """Text around the question itself: a file that contains {{ question }} (Jinja) or {question}
    (plain text), or think-answer, a built-in template that asks for
    <think>…</think><answer>…</answer>. By default none."""

    video_frames: Annotated[PositiveInt | None, Unit("frames")] = None
    """Most frames that are sampled from a video, at equal distances. By default no limit where
    --video-fps is given; where neither is given, 64 at 2 frames per second."""

    video_fps: Annotated[PositiveFloat | None, Unit("frames per second")] = None
    """Frames that are sampled per second of a video, up to --video-frames. By default
    --video-frames alone sets the number; where neither is given, 2."""

    video_frames_curriculum: Annotated[
        TextList, Metavar("ITERATION:FRAMES"), KnownTo("sft", "rl")
    ] = Field(default_factory=list)
    """Stages ITERATION:FRAMES, such as 0:16 100:64: the most frames of a training video from each
    step on, in place of --video-frames."""

    audio_in_video: bool = False
    """Take the sound of a video as a part of it, where its row does not say (audio_in_video); of
    models that hear."""

    missing_audio: Literal["silence", "skip", "error"] = "skip"
    """Treatment of a video without sound where sound is asked for: silence replaces it, its row is
    skipped, or the run ends."""

    media_prefetch_gib: Annotated[WeightFloat, Unit("GiB")] = 1.0
    """Memory of a rank for decoded media of the next step, which are read beside the training of
    the present one; 0 reads them in their own step. Losses are the same."""

    encoder_chunk_frames: Annotated[PositiveInt, Unit("frames")] = 64
    """Frames that go through the vision tower at a time on one rank; fewer need less memory. For
    sound it is the number of units of some seconds each."""

    decode_buffer_mib: Annotated[PositiveInt, Unit("MiB")] = 256
    """Memory of a rank for decoded pixels that wait for the encoder; it always holds at least
    --encoder-chunk-frames. A small one decodes in more pieces, each of which reads again from a key
    frame."""

    embedding_store_gib: Annotated[PositiveFloat, Unit("GiB")] = 4.0
    """Host memory for embeddings that are kept, of each replica on each node."""

    embedding_cache_dir: Annotated[str | None, Metavar("FOLDER")] = None
    """Folder in which the embeddings of a frozen encoder are kept beyond the run; runs may share
    it, and all nodes of a replica must see it. By default none."""

    embedding_cache_gib: Annotated[PositiveFloat, Unit("GiB")] = 100.0
    """Disk space for --embedding-cache-dir; the embeddings that were not used for the longest time
    are removed first."""

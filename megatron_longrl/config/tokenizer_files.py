"""The tokenizer in a checkpoint's folder."""

from __future__ import annotations

from pathlib import Path


def tokenizer_fields(folder: Path) -> dict[str, str]:
    """The fields ``tokenizer_type`` and ``tokenizer_model``; none where there is no tokenizer."""
    if (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists():
        return {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(folder)}
    if (folder / "tokenizer.model").exists():
        model = str(folder / "tokenizer.model")
        return {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": model}
    return {}

"""Train a SentencePiece tokenizer on the questions and demonstrations of some data files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_longrl.arena import cups
from megatron_longrl.data.rows import load_rows
from megatron_longrl.data.tokenizer import train_sentencepiece
from megatron_longrl.errors import UserError

TURNS = (
    "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
    "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n",
    "\n",
)
"""What the chat templates qwen2, qwen2_system, vila and plain write around a question."""
SYMBOLS = {"none": (), "cups": cups.SYMBOLS}


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="JSONL files to learn from")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, NAME.model")
    parser.add_argument("--vocab-size", type=int, default=352, help="pieces, at most")
    parser.add_argument(
        "--symbols",
        choices=sorted(SYMBOLS),
        default="none",
        help="phrases of a game that are one token each",
    )
    args = parser.parse_args()
    try:
        rows = load_rows(args.data)
        texts = [f"{row.problem}{row.reasoning}{row.answer}" for row in rows]
        texts += TURNS
        train_sentencepiece(
            texts, args.output.with_suffix(""), args.vocab_size, SYMBOLS[args.symbols]
        )
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

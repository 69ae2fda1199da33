"""Train a SentencePiece tokenizer on the questions and demonstrations of some data files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_longrl.data.arena import cups
from megatron_longrl.data.rows import load_rows
from megatron_longrl.data.templates import TEMPLATES
from megatron_longrl.data.tokenizer import END_OF_TURN, train_sentencepiece
from megatron_longrl.errors import UserError

CONTROL_SYMBOLS = ("<|im_start|>", END_OF_TURN, "\n", "user", "assistant", "<think>", "</think>",
                   "<answer>", "</answer>")
SYMBOLS = {"none": (), "cups": cups.SYMBOLS}


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="JSONL files to learn from")
    parser.add_argument("--output", type=Path, required=True, help="the .model file to write")
    parser.add_argument("--vocab-size", type=int, default=352, help="pieces, at most")
    parser.add_argument(
        "--symbols", choices=sorted(SYMBOLS), default="none",
        help="phrases of a game that are one token each",
    )
    args = parser.parse_args()
    try:
        rows = load_rows(args.data)
        texts = [f"{row.problem}{row.reasoning}<answer>{row.answer}</answer>" for row in rows]
        texts += [t.before_media + t.after_question for t in TEMPLATES.values()]
        symbols = dict.fromkeys((*CONTROL_SYMBOLS, *SYMBOLS[args.symbols]))
        train_sentencepiece(texts, args.output, args.vocab_size, list(symbols))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

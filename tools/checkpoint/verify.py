"""Compare the logits of a Hugging Face and a Megatron checkpoint on a video and a question.

    python tools/checkpoint/verify.py --hf-dir Qwen2.5-VL-7B --megatron-dir checkpoints/qwen \\
        --video clip.mp4 --prompt "What happens?"

The Hugging Face side is computed by transformers. Both run in float32 on one process; the exit
status is 1 where they differ by more than --tolerance.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import sys

# `tools` is no installed package, and its folder hides the library's module `inspect`.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _HERE]
sys.path.insert(0, os.path.dirname(os.path.dirname(_HERE)))

import argparse
import logging
import warnings
from pathlib import Path

# Core tells at import what it does without Transformer Engine and apex, which plays no part here.
warnings.filterwarnings("ignore", category=UserWarning, module="megatron")

from megatron_longrl.data.rows import Row
from megatron_longrl.errors import UserError
from megatron_longrl.launch import leave_groups


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hf-dir", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--megatron-dir", type=Path, required=True, help="Megatron checkpoint")
    parser.add_argument("--prompt", default="What is this?", help="the question")
    parser.add_argument("--video", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--image", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--video-frames", type=int, default=8, help="frames of each video")
    parser.add_argument("--video-fps", type=float, help="frames per second of video")
    parser.add_argument("--chat-template", help="as of the trainer")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference")
    return parser.parse_args()


def main() -> int:
    """Entry point."""
    flags = parse()
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    row = Row(
        problem_id="verify",
        problem=flags.prompt,
        answer="",
        reasoning="",
        videos=tuple(flags.video),
        problem_type="general",
        data_type="video" if flags.video else "image" if flags.image else "text",
        source="the command line",
        images=tuple(flags.image),
    )
    # Below the flags, so that --help need not wait for torch and core.
    from tools.checkpoint.comparison import compare

    try:
        found = compare(flags.hf_dir, flags.megatron_dir, row, flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"largest difference {found.largest:.2e}, mean {found.mean:.2e}, same first choice at "
        f"{100 * found.same_choice:.1f} % of the positions"
    )
    return 0 if found.largest <= flags.tolerance else 1


if __name__ == "__main__":
    status = main()
    leave_groups()
    sys.exit(status)

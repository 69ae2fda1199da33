"""Compare a Hugging Face and a Megatron checkpoint: logits on a video and a question, or velocities
of pictures to a prompt.

    longrl verify --hf-dir Qwen2.5-VL-7B --megatron-dir checkpoints/qwen \\
        --video clip.mp4 --prompt "What happens?"

The Hugging Face side is computed by transformers or diffusers. Both run in float32 on one process;
the exit status is 1 where they differ by more than --tolerance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_longrl.cli.conversion.difference import Difference
from megatron_longrl.cli.conversion.process import run
from megatron_longrl.cli.plugins import add_plugin_flag
from megatron_longrl.config.model_folders import is_pipeline_folder
from megatron_longrl.plugins import import_plugins

KINDS = ("video", "image", "audio")
"""Modalities of the media beside the question, by the flags of their files."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; returns the exit status."""
    flags = parse(arguments)
    return run(lambda: _verify(flags))


def _verify(flags: argparse.Namespace) -> int:
    import_plugins(flags.plugin)
    # Below the flags, so that --help need not wait for torch and core.
    from megatron_longrl.platforms import platform

    platform.import_core()
    if is_pipeline_folder(flags.hf_dir):
        from megatron_longrl.cli.conversion.velocities import compare_velocities
        from megatron_longrl.conversion.pipeline_folder import PipelineFolder

        source = PipelineFolder(flags.hf_dir)
        return _tell(compare_velocities(source, flags.megatron_dir, flags.prompt), flags.tolerance)
    from megatron_longrl.cli.conversion.comparison import compare
    from megatron_longrl.data.rows import Row
    from megatron_longrl.media.modality import MediaFile

    row = Row(
        problem_id="verify",
        problem=flags.prompt,
        answer="",
        reasoning="",
        videos=tuple(flags.video),
        problem_type="general",
        data_type=next((kind for kind in KINDS if getattr(flags, kind)), "text"),
        source="the command line",
        images=tuple(flags.image),
        other_media=tuple(MediaFile(path, "audio") for path in flags.audio),
    )
    return _tell(compare(flags.hf_dir, flags.megatron_dir, row, flags), flags.tolerance)


def _tell(found: Difference, tolerance: float) -> int:
    print(found)
    return 0 if found.largest <= tolerance else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(
        prog="longrl verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--hf-dir", type=Path, required=True, help="folder of transformers or diffusers"
    )
    parser.add_argument("--megatron-dir", type=Path, required=True, help="Megatron checkpoint")
    parser.add_argument("--prompt", default="What is this?", help="the question")
    parser.add_argument("--video", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--image", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--audio", type=Path, action="append", default=[], help="may be repeated")
    parser.add_argument("--audio-in-video", action="store_true", help="hear the videos, too")
    parser.add_argument("--video-frames", type=int, default=8, help="frames of each video")
    parser.add_argument("--video-fps", type=float, help="frames per second of video")
    parser.add_argument("--chat-template", help="as of the trainer")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference")
    add_plugin_flag(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

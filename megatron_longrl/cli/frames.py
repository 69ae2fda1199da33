"""``longrl frames``: the frames of a video that training would see, as PNG files."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from megatron_longrl.errors import UserError, error_line
from megatron_longrl.foreign_warnings import ignore_core
from megatron_longrl.media.media_error import printable

if TYPE_CHECKING:
    import numpy as np

    from megatron_longrl.config import Config
    from megatron_longrl.config.data import DataSection
    from megatron_longrl.config.family import FamilySection
    from megatron_longrl.media.modalities.visual.info import VideoInfo

_LIST = "frames.json"
_ANY_LENGTH = 2**20
"""Length of sequences where the recipe does not give it; no frame depends on it."""
_CHUNK_BYTES = 64 * 2**20
"""Decoded frames that are held at a time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the frames; returns the exit status: 2 where the file or the arguments are wrong."""
    try:
        given = _parser().parse_args(arguments)
        sys.stdout.write(printable(_write(given)) + "\n")
    except UserError as error:
        sys.stderr.write(error_line(printable(" ".join(str(error).split()))))
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see longrl frames --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="longrl frames",
        description="Write the frames of a video that training would see as frame_00000.png, … "
        f"and {_LIST}, a list with the index of each frame in the file and its time in seconds "
        "from the first frame. Without a recipe the frames are upright and have the size that "
        "they have in the file. A last frame that is repeated to fill a temporal patch is written "
        "once.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a video")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--video-fps", type=_rate, metavar="F", help="frames a second of video")
    how.add_argument("--video-frames", type=_count, metavar="N", help="frames, at most")
    parser.add_argument(
        "--config",
        action="append",
        metavar="RECIPE",
        help="sample and resize as the model of this recipe does (before normalisation); what it "
        "says of the other of the two flags holds, too. May be repeated: later ones win",
    )
    parser.add_argument(
        "--pretrained-checkpoint",
        metavar="DIR",
        help="the model, where the recipe does not name one",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder to write to (default: FILE's name without its ending and with _frames, in the "
        "current folder)",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, at least 1")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


@dataclass(frozen=True)
class _Chosen:
    """The frames that are written."""

    info: VideoInfo
    indices: list[int]
    size: tuple[int, int] | None
    """Height and width; None as they are in the file."""


def _write(given: argparse.Namespace) -> str:
    """Returns the line for the user."""
    config = _config(given)
    from megatron_longrl.media.media_error import MediaError
    from megatron_longrl.media.modalities.video.times import seconds_at

    path = Path(given.file)
    output = given.output or Path(f"{path.stem}_frames")
    try:
        chosen = (
            _chosen_evenly(path, given)
            if config is None
            else _chosen_by_model(path, config.model.family, config.family, config.data)
        )
        try:
            _prepare(output)
            from PIL import Image

            for number, pixels in _pixels(path, chosen):
                Image.fromarray(pixels).save(output / _name(number))
            lines = [
                {"index": index, "time": round(seconds_at(chosen.info, index), 6)}
                for index in chosen.indices
            ]
            (output / _LIST).write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{output}: cannot write the frames: {error.strerror}") from None
    except MediaError as error:
        raise UserError(str(error)) from None
    return f"{len(chosen.indices)} of {chosen.info.num_frames} frames written to {output}"


def _name(number: int) -> str:
    return f"frame_{number:05}.png"


def _prepare(output: Path) -> None:
    """Make the folder; frames that an earlier call has left there are removed."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is no folder: give another --output")
    output.mkdir(parents=True, exist_ok=True)
    found = list(output.iterdir())
    if found and not (output / _LIST).is_file():
        raise UserError(f"{output} holds other files: give another --output")
    for path in found:
        if path.match("frame_*.png") or path.name == _LIST:
            path.unlink()


def _config(given: argparse.Namespace) -> Config | None:
    """Make a configuration of the recipes and the checkpoint, unchecked where it does not concern
    media."""
    if not given.config and given.pretrained_checkpoint is None:
        return None
    from megatron_longrl.cli.load import load_data_config

    flags = [word for recipe in given.config or () for word in ("--config", recipe)]
    if given.pretrained_checkpoint is not None:
        flags += ["--pretrained-checkpoint", given.pretrained_checkpoint]
    for name in ("video_frames", "video_fps"):
        if getattr(given, name) is not None:
            flags += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    return load_data_config(flags)[0]


class _NoTokenizer:
    """Frames and sizes do not depend on the numbers of tokens."""

    media_id = 0

    def id_of(self, symbol: str) -> int:
        """Return the id of any symbol."""
        return 0


def _chosen_evenly(path: Path, given: argparse.Namespace) -> _Chosen:
    """The frames that are taken where no model is named."""
    from megatron_longrl.media.modalities.video.probe import probe
    from megatron_longrl.media.modalities.video.spec import sample_frame_indices

    info = probe(path)
    found = sample_frame_indices(info, given.video_frames, given.video_fps)
    return _Chosen(info, list(found), None)


def _chosen_by_model(path: Path, name: str, family: FamilySection, data: DataSection) -> _Chosen:
    """The frames that a model of a family takes."""
    from megatron_longrl.media.media_error import MediaError
    from megatron_longrl.media.modalities.video.probe import probe

    info = probe(path)
    ignore_core()
    from megatron_longrl.media.modalities.visual.layout import VisualLayout
    from megatron_longrl.models.family import find_family

    build_layout = find_family(name).build_layout
    if build_layout is None:
        raise UserError(f"the model ({name}) reads text only")
    tokenizer: Any = _NoTokenizer()
    layout = build_layout(family, tokenizer)
    if not isinstance(layout, VisualLayout):
        raise UserError(f"the model ({name}) reads no videos")
    indices = list(dict.fromkeys(layout.frame_indices(info, data.video_frames, data.video_fps)))
    try:
        how = layout.preprocess_spec(info, len(indices))
    except ValueError as error:
        raise MediaError(path, str(error)) from None
    return _Chosen(info, indices, (how.height, how.width))


def _pixels(path: Path, chosen: _Chosen) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers of frames among those chosen, and their pixels, uint8 [h, w, 3]."""
    from megatron_longrl.media.modalities.video.pyav import decode_in_chunks

    if chosen.size is None:
        for numbers, frames in decode_in_chunks(str(path), chosen.indices, _CHUNK_BYTES):
            yield from zip(numbers, frames, strict=True)
        return
    from megatron_longrl.media.modalities.video.spec import VideoSpec
    from megatron_longrl.media.modalities.visual.preprocess_spec import PreprocessSpec

    height, width = chosen.size
    # Levels divided by 255, and no more.
    how = PreprocessSpec(height, width, (0.0,) * 3, (1.0,) * 3)
    spec = VideoSpec(str(path), "", tuple(chosen.indices), how)
    step = max(1, _CHUNK_BYTES // (height * width * 12))
    for start in range(0, len(chosen.indices), step):
        here = range(start, min(start + step, len(chosen.indices)))
        levels = spec.frames(here).mul(255).round().byte().permute(0, 2, 3, 1)
        yield from zip(here, levels.numpy(), strict=True)


if __name__ == "__main__":
    sys.exit(main())

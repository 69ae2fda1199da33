"""A reward of pictures with words in them: the text that a reader of characters finds is compared
with the text that the prompt asks for."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megatron_longrl.rewards.pictures import frames_of
from megatron_longrl.rewards.result import RewardError

if TYPE_CHECKING:
    import numpy as np

    from megatron_longrl.experience.reward_input import RewardInput

FIELD = "text"
"""The field of a row with the text that its picture should show."""
_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”")


def ocr(sample: RewardInput) -> float:
    """1 where the text is found in the picture, else 1 minus the edit distance in parts of its
    length, at least 0; upper and lower case and spaces make no difference. A film has the mean of
    its frames.

    The text is the row's field ``text``, or the first words in double quotes in the prompt. The
    rule is that of Flow-GRPO, https://arxiv.org/abs/2505.05470, section 5.1.

    Raises:
        RewardError: the row asks for no text, or the sample has no picture.
    """
    wanted = _plain(_wanted(sample))
    scores = [_score(wanted, _plain(read(frame))) for frame in frames_of(sample)]
    return sum(scores) / len(scores)


def read(frame: np.ndarray) -> str:
    """The text in a picture, uint8 [height, width, 3], as RapidOCR finds it, region by region."""
    import numpy as np

    # The reader takes channels in the order of OpenCV.
    found = _reader()(np.ascontiguousarray(frame[..., ::-1]))
    return " ".join(found.txts or ())


def prepare_reader() -> None:
    """Load the models of the reader, which come with its package."""
    import numpy as np

    read(np.zeros((32, 32, 3), dtype=np.uint8))


def _wanted(sample: RewardInput) -> str:
    named = sample.metadata.get(FIELD)
    if isinstance(named, str) and named.strip():
        return named
    quoted = _QUOTED.search(sample.question)
    if quoted is None:
        raise RewardError(
            f"no text is asked for: the row has no field {FIELD}, and the prompt nothing in double "
            "quotes"
        )
    return quoted[1] or quoted[2]


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def _score(wanted: str, found: str) -> float:
    from nltk.metrics.distance import edit_distance

    if wanted in found:
        return 1.0
    return 1 - min(edit_distance(wanted, found), len(wanted)) / len(wanted)


@lru_cache(maxsize=1)
def _reader() -> Any:
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    return RapidOCR(params={"Global.log_level": "critical", **threads})

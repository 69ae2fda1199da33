"""What the installed transformers reads of processors' files, and what it saves.

A program of ``test_saved_processors.py``, because processors of videos need torchvision:
``python -m tests.parity.saved_processors FOLDER``. Folders in FOLDER hold a ``config.json`` and
processors' files. Each gets ``answers.json``, and a folder ``saved`` that transformers has written.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from transformers import (
    AutoImageProcessor,
    AutoVideoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen3VLProcessor,
)

from tests.qwen_vl_files import write_tokenizer

PROCESSORS = {"qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor}


def main(folder: Path) -> None:
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        family = json.loads((place / "config.json").read_text())["model_type"]
        pair = {
            "image": AutoImageProcessor.from_pretrained(place),
            "video": AutoVideoProcessor.from_pretrained(place),
        }
        answers: dict[str, object] = {}
        for kind, processor in pair.items():
            answers[f"{kind}_min_pixels"] = processor.size["shortest_edge"]
            answers[f"{kind}_max_pixels"] = processor.size["longest_edge"]
            answers[f"{kind}_mean"] = list(processor.image_mean)
            answers[f"{kind}_std"] = list(processor.image_std)
        (place / "answers.json").write_text(json.dumps(answers))
        saved = place / "saved"
        saved.mkdir()
        write_tokenizer(saved)
        tokenizer = Qwen2TokenizerFast.from_pretrained(saved)
        PROCESSORS[family](pair["image"], tokenizer, pair["video"]).save_pretrained(saved)
        shutil.copy(place / "config.json", saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

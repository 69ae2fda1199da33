"""What the state file and the tracker of a checkpoint may say, and what is refused in one line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl.checkpoint.folder import (
    STATE_FILE,
    TRACKER,
    iteration_folder,
    newest_complete,
    read_state,
    remove_leftovers,
)
from megatron_longrl.errors import UserError
from tests.unit.checkpoint.made_up_checkpoint import write_checkpoint


def change(folder: Path, place: str, value: Any) -> None:
    state = json.loads((folder / STATE_FILE).read_text())
    *outer, name = place.split(".")
    inner = state[outer[0]] if outer else state
    if value is ...:
        inner.pop(name)
    else:
        inner[name] = value
    (folder / STATE_FILE).write_text(json.dumps(state))


def test_a_complete_one_is_read(tmp_path):
    folder = write_checkpoint(tmp_path)
    assert read_state(folder)["iteration"] == 3
    assert newest_complete(tmp_path)[0] == folder


WRONG = [
    ("config", ...),
    ("config", []),
    ("layout", None),
    ("state", "text"),
    ("optimizers", "language_model"),
    ("optimizers", [1]),
    ("iteration", "3"),
    ("iteration", -1),
    ("iteration", 2.5),
    ("scheduler_steps", ...),
    ("files", ["common.pt"]),
    ("files.common.pt", "4"),
    ("files.common.pt", None),
    ("files.common.pt", 10**30),
    ("config.num_layers", 0),
    ("config.num_layers", 10**9),
    ("config.num_layers", 2.5),
    ("config.num_layers", "2"),
    ("config.hidden_size", 10**18),
    ("config.hidden_size", None),
    ("config.num_attention_heads", 0),
    ("config.num_query_groups", 3),
    ("config.vocab_size", 1 << 40),
    ("config.vocab_size", None),
    ("config.norm_epsilon", "small"),
    ("config.norm_epsilon", float("nan")),
    ("config.model_family", "mamba"),
    ("config.rotary_base", {}),
    ("config.vision_feature_layer", [2]),
    ("config.lora_rank", "8"),
    ("config.lora_alpha", None),
]


@pytest.mark.parametrize(("place", "value"), WRONG, ids=[f"{p}={v!r}"[:40] for p, v in WRONG])
def test_fields_that_cannot_be(place, value, tmp_path):
    folder = write_checkpoint(tmp_path)
    if place.startswith("files."):
        state = json.loads((folder / STATE_FILE).read_text())
        state["files"]["common.pt"] = value
        (folder / STATE_FILE).write_text(json.dumps(state))
    else:
        change(folder, place, value)
    with pytest.raises(UserError, match=STATE_FILE) as caught:
        read_state(folder)
    told = str(caught.value)
    assert place in told and "\n" not in told and len(told) < 400


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a\0b", "a\nb"])
def test_files_elsewhere_are_nobodys(name, tmp_path):
    folder = write_checkpoint(tmp_path)
    change(folder, "files", {name: 1})
    with pytest.raises(UserError, match="no list of files of this folder"):
        read_state(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", bytes(100), b'{"a":' * 100_000, b"7"]
)
def test_files_that_are_no_state(content, tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / STATE_FILE).write_bytes(content)
    with pytest.raises(UserError, match=f"{STATE_FILE} is missing or broken"):
        read_state(folder)


TRACKERS = {
    "no text": b"\xff\xfe\x00",
    "empty": b"",
    "digits beyond count": b"9" * 6000,
    "other digits": "\u0663\u00b2".encode(),
    "negative": b"-3",
    "words": b"the newest one",
    "path": b"../../etc",
    "long": b"x" * 10_000_000,
}


@pytest.mark.parametrize("damage", TRACKERS)
def test_a_broken_tracker_is_told_and_the_newest_folder_taken(damage, tmp_path, caplog):
    folder = write_checkpoint(tmp_path)
    shutil.copytree(folder, iteration_folder(tmp_path, 2))
    (tmp_path / TRACKER).write_bytes(TRACKERS[damage])
    with caplog.at_level(logging.WARNING):
        assert newest_complete(tmp_path)[0] == folder
    assert f"{TRACKER} says no iteration" in caplog.text


def test_folders_of_no_iteration_are_passed_over(tmp_path):
    folder = write_checkpoint(tmp_path)
    (tmp_path / TRACKER).unlink()
    for name in ("iter_\u00b2", "iter_" + "9" * 200, "iter_x", "iter_"):
        (tmp_path / name).mkdir()
    assert newest_complete(tmp_path)[0] == folder


def test_what_interrupted_saves_have_left_is_removed(tmp_path):
    write_checkpoint(tmp_path, 2)
    for name in (".iter_0000003.partial", ".iter_0000001.removed", ".iter_0000002.replaced"):
        (tmp_path / name / "rng").mkdir(parents=True)
    (tmp_path / f".{TRACKER}.0f.partial").write_text("3")
    (tmp_path / ".hidden").write_text("mine")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", TRACKER, "iter_0000002"}
    assert newest_complete(tmp_path)[0].name == "iter_0000002"


def test_a_checkpoint_that_was_about_to_be_replaced_gets_its_name_back(tmp_path):
    folder = write_checkpoint(tmp_path, 2)
    folder.rename(tmp_path / ".iter_0000002.replaced")
    write_checkpoint(tmp_path, 1)
    remove_leftovers(tmp_path)
    assert newest_complete(tmp_path / "iter_0000002")[1]["iteration"] == 2

"""A named pipe, a socket or a device in place of any file is one line, and nothing waits for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_longrl.errors import UserError
from megatron_longrl.processes.daemon_thread import in_daemon_thread
from megatron_longrl.regular_file import check_regular, open_regular, read_regular

SECONDS = 30.0
"""After which a reader is held to wait for ever; importing a library takes a few."""


def recipe(folder: Path) -> None:
    from megatron_longrl.cli.load import load_config

    load_config(["--config", str(folder / "file")], "rl")


def rows(folder: Path) -> None:
    from megatron_longrl.data.row_files import open_entries

    open_entries(folder / "file")


def rows_of_a_folder(folder: Path) -> None:
    from megatron_longrl.data.row_files import data_files, open_entries

    (folder / "file").rename(folder / "rows.jsonl")
    open_entries(data_files(folder, "train.jsonl")[0])


def number_of_rows(folder: Path) -> None:
    from megatron_longrl.data.row_files import count_rows

    count_rows([folder / "file"])


def scored_rows(folder: Path) -> None:
    from megatron_longrl.cli.score import _rows_of

    list(_rows_of(folder / "file"))


def chat_template(folder: Path) -> None:
    from megatron_longrl.data.templates import find_chat_template

    find_chat_template(str(folder / "file"))


def judge_prompt(folder: Path) -> None:
    from megatron_longrl.rewards.judge_prompt import read_template

    read_template(str(folder / "file"))


def settings(folder: Path) -> None:
    from megatron_longrl.json_file import read_json

    read_json(folder / "file")


def metrics(folder: Path) -> None:
    from megatron_longrl.observability.metrics_file import read_metrics

    read_metrics(folder / "file")


def rollouts(folder: Path) -> None:
    from megatron_longrl.rollout.records.files import read_lines

    read_lines(folder / "file")


def checksum(folder: Path) -> None:
    from megatron_longrl.checkpoint.checksums import check_contents

    check_contents(folder, {"file": "0" * 32})


def sentencepiece_model(folder: Path) -> None:
    from megatron_longrl.data.tokenizer import SentencePieceTokenizer

    SentencePieceTokenizer(folder / "file")


def tokenizer(folder: Path) -> None:
    from megatron_longrl.data.tokenizer import HuggingFaceTokenizer

    (folder / "file").rename(folder / "tokenizer.json")
    HuggingFaceTokenizer(folder)


def tensors(folder: Path) -> None:
    from megatron_longrl.conversion.tensor_folder import TensorFolder

    (folder / "file").rename(folder / "b.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    TensorFolder(folder)


READERS: list[Callable[[Path], None]] = [
    *(recipe, rows, rows_of_a_folder, number_of_rows, scored_rows, chat_template, judge_prompt),
    *(settings, metrics, rollouts, checksum, sentencepiece_model, tokenizer, tensors),
]


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    before = Path.cwd()
    os.chdir(path.parent)  # The names of sockets are short.
    try:
        listening.bind(path.name)
    finally:
        os.chdir(before)
        listening.close()


def make_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


MAKERS = [make_pipe, make_socket, make_link_to_a_device]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("read", READERS)
def test_no_reader_waits_for_what_is_no_file(read, make, tmp_path):
    make(tmp_path / "file")
    with pytest.raises(UserError) as told:
        in_daemon_thread(lambda: read(tmp_path), "reader").result(timeout=SECONDS)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_file_is_named(make, tmp_path):
    make(tmp_path / "file")
    kind = {make_pipe: "a named pipe", make_socket: "a socket"}.get(make, "a device")
    with pytest.raises(OSError, match=kind):
        read_regular(tmp_path / "file")
    with pytest.raises(UserError, match=f"file is {kind}, and only regular files are read"):
        check_regular(tmp_path)


def test_a_file_is_read_up_to_a_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, and at most 4 are read"):
        read_regular(path, 4)
    # What the kernel makes up has no size before it is read.
    with pytest.raises(OSError, match="at most 10 are read"):
        read_regular("/proc/self/status", 10)
    with open_regular(path) as file:
        assert file.read(2) == b"12"
    with pytest.raises(IsADirectoryError), open_regular(tmp_path):
        pass


def test_a_folder_of_files_and_links_to_files_is_regular(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").symlink_to("a.json")
    (tmp_path / "nowhere").symlink_to("c")
    (tmp_path / "folder").mkdir()
    check_regular(tmp_path)
    check_regular(tmp_path, largest=2)
    with pytest.raises(UserError, match=r"a\.json has 2 bytes, and at most 1"):
        check_regular(tmp_path, largest=1)

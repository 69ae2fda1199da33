"""A safetensors file in shared memory that is laid out first, and filled where its tensors lie.

Its format (huggingface/safetensors, README.md): eight bytes with the header's length, the header as
JSON, the tensors behind each other without a gap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from megatron_longrl.memory.shared import SharedMemory

DTYPES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
"""Names that the format has for dtypes."""

LENGTH = 8
"""Bytes that tell the header's length, and to whose multiples it is filled up, so that tensors are
aligned."""


class TensorFile:
    """Room for some tensors, and for a text beside them.

    Args:
        outlines: name -> tensor of the dtype and shape to make room for, on any device.
        text: the text that goes with the tensors; later texts are no longer than it, see
            :meth:`write_text`.

    Raises:
        UserError: shared memory is full.
    """

    def __init__(self, outlines: Mapping[str, Tensor], text: str) -> None:
        self._entries: dict[str, object] = {}
        # The widest first: each then begins at a multiple of its width.
        names = sorted(outlines, key=lambda name: -outlines[name].itemsize)
        end = 0
        for name in names:
            like, start = outlines[name], end
            end += like.nbytes
            self._entries[name] = {
                "dtype": DTYPES[like.dtype],
                "shape": list(like.shape),
                "data_offsets": [start, end],
            }
        self._header = -(-len(self._described(text)) // LENGTH) * LENGTH
        self.memory = SharedMemory(LENGTH + self._header + end)
        self._bytes = self.memory.map()
        data = torch.frombuffer(self._bytes, dtype=torch.uint8)[LENGTH + self._header :]
        sizes = [outlines[name].nbytes for name in names]
        self.tensors = {
            name: part.view(outlines[name].dtype).view(outlines[name].shape)
            for name, part in zip(names, data.split(sizes), strict=True)
        }
        """Views into the file, uninitialised until they are written to."""
        self.write_text(text)

    def write_text(self, text: str) -> None:
        """Replace the text."""
        header = self._described(text)
        if len(header) > self._header:
            raise ValueError("the text is longer than the first one")
        header = header.ljust(self._header)
        whole = LENGTH + self._header
        self._bytes[:whole] = self._header.to_bytes(LENGTH, "little") + header

    def close(self) -> None:
        """Give up this process's name for it; tensors live for as long as they are referenced."""
        self.memory.close()

    def _described(self, text: str) -> bytes:
        return json.dumps({"__metadata__": {TEXT: text}, **self._entries}).encode()


TEXT = "text"
"""The text's name among the file's metadata."""


def check_beginning(data: bytes, nbytes: int) -> None:
    """Refuse early a file that is none of these.

    Args:
        data: the first bytes of the file; fewer than nine are not checked.
        nbytes: the size in bytes of the whole file.

    Raises:
        ValueError: it is none.
    """
    if len(data) > LENGTH:
        header = int.from_bytes(data[:LENGTH], "little")
        if not 2 <= header <= nbytes - LENGTH or data[LENGTH : LENGTH + 1] != b"{":
            raise ValueError("the body is no safetensors file")

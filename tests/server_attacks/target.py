"""The server that is attacked: its weights, its answers, its memory, its log and its health."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor

from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.requests import PromptRequest
from megatron_longrl.rollout.server.client import ServerClient
from megatron_longrl.rollout.server.wire import Generation, GenerationFile
from megatron_longrl.rollout.vllm.served import served_shapes
from megatron_longrl.rollout.weights.buckets import WeightBuckets

WEIGHTS = "attacked:1"
LENGTHS = (5, 33, 70)
"""Of the prompts."""
_PATIENCE = 30.0
"""Seconds after which no answer of /health is waited for."""
MOST_MEMORY = 100 << 20
_RECORD = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\] rank 0 (INFO|WARNING) \S+: [ -~]*")

Answers = dict[tuple[int, int], tuple[list[int], list[float]]]


@dataclass
class Target:
    """A server that runs.

    Args:
        address: HOST:PORT.
        pid: of its process.
        log: a descriptor of what it writes.
    """

    address: str
    token: str
    pid: int
    log: int
    settings: ModelSettings

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        self.place = host, int(port)
        self.client = ServerClient(self.address, 60.0, self.token)

    def give_weights(self) -> None:
        """Random ones, of a seed."""
        generator = torch.Generator().manual_seed(5)
        shapes = served_shapes(self.settings)
        named = {
            name: torch.randn(shape, generator=generator) * 0.15 + (1.0 if "norm" in name else 0)
            for name, shape in shapes.items()
        }
        buckets = WeightBuckets(shapes, self.settings.torch_dtype, 1 << 20)
        with closing(buckets), closing(self.client):
            buckets.connect(self.client)
            buckets.send(named.items(), self.client, WEIGHTS)

    def greedy(self) -> Answers:
        """Responses and log-probabilities by the weights that are there, whatever their name is
        now."""
        self.client.finish_weight_update(WEIGHTS)
        self.client.reset_prefix_cache()
        file = generation_file(self.settings)
        with closing(file):
            return {
                (line["prompt"], line["index"]): (line["token_ids"], line["logprobs"])
                for line in self.client.generate(file.memory)
            }

    def memory(self) -> int:
        """Bytes of the server and of what it has started (``Pss``), and of the anonymous files that
        it holds, mapped or not."""
        total, files = 0, dict[int, int]()
        for process in (psutil.Process(self.pid), *psutil.Process(self.pid).children(True)):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            total += sum(
                int(line.split()[1]) << 10
                for line in rollup.splitlines()
                if line.startswith("Pss:")
            )
            for entry in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if os.readlink(entry).startswith("/memfd:"):
                        status = entry.stat()
                        files[status.st_ino] = status.st_blocks * 512
        return total + sum(files.values())

    def log_size(self) -> int:
        """Bytes that it has written."""
        return os.fstat(self.log).st_size

    def log_lines(self, start: int) -> tuple[int, list[str]]:
        """How many it has written from a place on, and those that are no record of one line."""
        text = os.pread(self.log, self.log_size() - start, start).decode(errors="replace")
        lines = text.splitlines()
        return len(lines), [line for line in lines if not _RECORD.fullmatch(line)]


def generation_file(settings: ModelSettings) -> GenerationFile:
    """One that asks for greedy responses to prompts of random embeddings."""
    generator = torch.Generator().manual_seed(6)
    width, dtype = settings.hf_config["hidden_size"], settings.torch_dtype
    prompts = [torch.randn(length, width, generator=generator).to(dtype) for length in LENGTHS]
    requests = [
        PromptRequest(7, [0], 20, torch.empty_like(prompt, device="meta"), {}) for prompt in prompts
    ]
    sampling = SamplingSettings(n=1, max_tokens=20, temperature=0.0)
    file = GenerationFile(Generation(WEIGHTS, [], None, sampling, requests))
    rooms: list[Tensor] = [room.embeddings for room in file.buffers]
    for room, prompt in zip(rooms, prompts, strict=True):
        room.copy_(prompt)
    return file


@dataclass
class Watch:
    """Asks for /health again and again, and measures memory, in threads of their own."""

    target: Target
    slowest: float = 0.0
    asked: int = 0
    faults: list[str] = field(default_factory=list)
    most_memory: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self.began_with = self.most_memory = self.target.memory()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._health, self._memory)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def grown(self) -> int:
        """Bytes of memory, at most."""
        return self.most_memory - self.began_with

    def _health(self) -> None:
        while self.asked == 0 or not self._ended.wait(0.1):
            began = time.monotonic()
            connection = http.client.HTTPConnection(*self.target.place, timeout=_PATIENCE)
            try:
                headers = {"Authorization": f"Bearer {self.target.token}"}
                connection.request("GET", "/health", headers=headers)
                status = connection.getresponse().status
                if status != http.HTTPStatus.OK:
                    self.faults.append(f"/health answers {status}")
            except (OSError, http.client.HTTPException) as error:
                self.faults.append(f"/health: {type(error).__name__}: {error}")
            finally:
                connection.close()
            self.asked += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _memory(self) -> None:
        while not self._ended.wait(0.2):
            self.most_memory = max(self.most_memory, self.target.memory())

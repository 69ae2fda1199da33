"""A rollout server as a child of the trainer."""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import IO

from megatron_longrl.errors import UserError
from megatron_longrl.plugins import imported_plugins
from megatron_longrl.rollout.model_settings import ModelSettings

logger = logging.getLogger(__name__)

_START_SECONDS = 900.0
_STOP_SECONDS = 5.0
_LAST_WORDS = 2000
# What torchrun tells a rank; a server is none.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")


class ServerProcess:
    """Started, ended, and started again.

    Args:
        log_level: ``debug`` lets it write where the trainer writes; else its last words are kept
            for an error.
        tokenizer: the type and the model of the tokenizer that finds stop strings; None if there
            are none.
    """

    def __init__(
        self, settings: ModelSettings, log_level: str, tokenizer: tuple[str, str] | None = None
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._log_level = log_level
        self.token = secrets.token_hex(32)
        """Token that the server requires; it is passed through a pipe, not by the environment."""
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the server that runs or ran last."""
        return self._process.pid if self._process is not None else None

    def start(self) -> str:
        """Start it anew and wait until it answers.

        Returns:
            Its address, HOST:PORT.

        Raises:
            UserError: it ends instead, or takes too long.
        """
        self.stop()
        if self._log_level != "debug":
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the server
        reading, writing = os.pipe()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_TORCHRUN)}
        # Its threads stay where this process may run, instead of one core each.
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_COLOR": "0"}
        with os.fdopen(reading) as ready:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "megatron_longrl.rollout.server.child"],
                    stdin=subprocess.PIPE,
                    stdout=self._log or sys.stderr,
                    stderr=subprocess.STDOUT if self._log else None,
                    pass_fds=(writing,),
                    env=environment,
                    text=True,
                    start_new_session=True,  # Ctrl-C is the trainer's, which needs it to the end
                )
            finally:
                os.close(writing)
            assert self._process.stdin is not None
            orders = {
                "parent": os.getpid(),
                "ready": writing,
                "token": self.token,
                "log_level": self._log_level,
                "settings": asdict(self._settings),
                "tokenizer": self._tokenizer,
                "plugins": imported_plugins(),
            }
            try:
                with self._process.stdin as pipe:
                    json.dump(orders, pipe)
            except BrokenPipeError:
                pass  # told below
            # Not select.select: a trainer may have more than its 1024 files open.
            with selectors.DefaultSelector() as waiting:
                waiting.register(ready, selectors.EVENT_READ)
                has_answered = bool(waiting.select(_START_SECONDS))
            if not has_answered:
                self.stop()
                raise UserError(f"the rollout server did not start within {_START_SECONDS:g} s")
            line = ready.read()
        if not line:
            raise UserError(f"the rollout server did not start: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        address: str = answer["address"]
        return address

    def last_words(self) -> str:
        """Describe in one line how the server has ended, after a short wait, and its last
        output."""
        assert self._process is not None
        try:
            status = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return f"process {self.pid} still runs"
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"process {self.pid} ended with {how}{self._tail()}"

    def _tail(self) -> str:
        if self._log is None:
            return ""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _LAST_WORDS))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f", saying: {lines[-1]}" if lines else ""

    def stop(self) -> None:
        """End it, whatever state it is in. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            deadline = time.monotonic() + _STOP_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.kill()
            process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

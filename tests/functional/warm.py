"""Programs are launched from a process that has imported the libraries already: it forks the ranks.

To import torch, megatron-core and vLLM takes most of the time of a launch of a few steps. So one
process imports them once, and forks for each launch the ranks that torchrun would start, with the
environment that torchrun would give them; each runs the program from its beginning. What torchrun
itself does (to tell which rank failed, for one) is not here: launches that need it are ``cold``.

``python -m tests.functional.warm`` reads a launch, a JSON object, from each line of its input, and
writes the exit status of the launch to the file that the object names.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NoReturn

POLL_SECONDS = 0.02
ENDING_SECONDS = 10.0
"""Between SIGTERM and SIGKILL for the ranks that are left when one has failed, as torchrun does."""


# ---- In the process of the tests ----


class WarmLauncher:
    """The process that forks, as the tests see it; it starts with the first launch."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self._root = root
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None
        self._folder = TemporaryDirectory(prefix="longrl-warm-")
        self._launches = 0
        atexit.register(self.close)

    def run(
        self, command: Sequence[str], ranks: int, seconds: float, extra: Mapping[str, str]
    ) -> tuple[int | None, str]:
        """Launch, and wait for the end.

        Args:
            command: ``-m MODULE`` or a path, and arguments.
            extra: further variables of the environment.

        Returns:
            The exit status of the first rank that failed, as a shell would tell it, or 0; None when
            it has not ended in time and was killed. Then what it printed.
        """
        input_ = self._input()
        self._launches += 1
        paths = {
            name: str(Path(self._folder.name) / f"{self._launches}.{name}")
            for name in ("output", "status", "pid")
        }
        job = {"command": list(command), "ranks": ranks, "extra": dict(extra), **paths}
        input_.write(json.dumps(job) + "\n")
        input_.flush()
        status = self._wait(paths, seconds)
        return status, Path(paths["output"]).read_text(encoding="utf-8", errors="replace")

    def _input(self) -> IO[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.functional.warm"],
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        return self._process.stdin

    def _wait(self, paths: Mapping[str, str], seconds: float) -> int | None:
        assert self._process is not None
        began: float | None = None  # The first launch waits for the imports.
        while True:
            if Path(paths["status"]).exists():
                return int(Path(paths["status"]).read_text())
            if began is None and Path(paths["pid"]).exists():
                began = time.monotonic()
            if self._process.poll() is not None:
                raise AssertionError(f"the launcher ended with status {self._process.returncode}")
            if began is not None and time.monotonic() - began > seconds:
                os.killpg(int(Path(paths["pid"]).read_text()), signal.SIGKILL)
                return None
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End it; it ends by itself when its input does."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(30)
            self._process = None
        self._folder.cleanup()


# ---- In the process that forks ----


class Program:
    """What one rank runs."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    def run(self) -> NoReturn:
        """As the interpreter would, from its command line to its end.

        But for one thing: objects are not torn down, which takes seconds for all the libraries.
        """
        status = 1
        try:
            self._run()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                sys.stderr.write(f"{end.code}\n")
        except BaseException:
            traceback.print_exc()
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _run(self) -> None:
        if self._command[0] == "-m":
            sys.argv = list(self._command[1:])
            runpy.run_module(self._command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(self._command)
            sys.path.insert(0, str(Path(self._command[0]).parent))
            runpy.run_path(self._command[0], run_name="__main__")


def import_libraries() -> None:
    """What the programs import, but for themselves."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    import diffusers  # noqa: F401
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline  # noqa: F401

    import megatron_longrl.rl.trainer
    import megatron_longrl.rollout.build
    import megatron_longrl.training.sft  # noqa: F401

    gc.freeze()  # Else the ranks, and vLLM does it often, would look at all of it.
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(
            f"the libraries have started {threads - 1} threads: forks would lose them"
        )


def serve() -> Program | None:
    """Fork for each launch; in a rank, return its program. None at the end of the input."""
    import_libraries()
    for line in sys.stdin:
        job = json.loads(line)
        if os.fork() == 0:
            return supervise(job)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return None


def supervise(job: Mapping[str, Any]) -> Program:
    """Fork the ranks of a launch, wait for them and end; in a rank, return its program."""
    os.setsid()
    with open(job["output"], "wb", buffering=0) as output, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    write_whole(job["pid"], os.getpid())
    os.environ |= job["extra"]
    port = free_port()
    ranks = {}
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            end_with_parent()
            if job["ranks"] > 1:
                os.environ |= environment_of(rank, job, port)
            return Program(job["command"])
        ranks[pid] = rank
    write_whole(job["status"], wait_for(ranks))
    os._exit(0)


def wait_for(ranks: dict[int, int]) -> int:
    """The first failure's status, or 0; the ranks that are left then are ended."""
    first, deadline = 0, float("inf")
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            if time.monotonic() > deadline:
                signal_all(ranks, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
            continue
        ranks.pop(pid, None)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first, deadline = code if code > 0 else 128 - code, time.monotonic() + ENDING_SECONDS
            signal_all(ranks, signal.SIGTERM)
    return first


def signal_all(pids: Mapping[int, int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def end_with_parent() -> None:
    """Have the kernel end this process when its parent ends."""
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def environment_of(rank: int, job: Mapping[str, Any], port: int) -> dict[str, str]:
    """As torchrun gives it to the ranks of one machine."""
    ranks, error = job["ranks"], Path(f"{job['status']}.errors") / str(rank) / "error.json"
    error.parent.mkdir(parents=True)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_ERROR_FILE": str(error),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_whole(path: str, value: int) -> None:
    """Whoever finds the file finds all of it."""
    Path(f"{path}.part").write_text(str(value))
    Path(f"{path}.part").rename(path)


if __name__ == "__main__":
    program = serve()
    if program is not None:
        program.run()

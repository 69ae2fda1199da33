"""Child processes that score (worker.py): calls are queued, each has a deadline, and a child that
hangs or dies is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import megatron_longrl
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.plugins import imported_plugins
from megatron_longrl.processes.leftovers import leftovers
from megatron_longrl.processes.marked import end_marked
from megatron_longrl.rewards.registry import REWARDS
from megatron_longrl.rewards.result import RewardError, RewardResult

Functions = Mapping[str, Mapping[str, Any]]
"""Properties of the users' functions by name: whether a function is ``batch`` or ``async``, and the
``options`` that it takes."""

START_SECONDS = 300.0
"""Longest time for starting a child: a user's file may load a model."""

_TOGETHER = 64  # calls of an asynchronous function at the same time in one child
_GRACE_SECONDS = 2.0  # for a child to tell that an asynchronous call was late
_LINE_BYTES = 1 << 26
_DEATH_SECONDS = 5.0  # between the end of a child's pipe and its own
_MARK = "LONGRL_REWARD_WORKER"
"""The variable of the environment by which all that a child has started is known."""


class ChildDied(Exception):
    """A child ended by itself."""


@dataclass(eq=False)
class _Call:
    reward: str
    samples: Sequence[RewardInput]
    outcomes: asyncio.Future[list[RewardResult]]
    alone: bool = False
    """Not beside others: one of those that ran together has hung or killed the child."""

    def finish(self, outcomes: list[RewardResult]) -> None:
        if not self.outcomes.done():  # Nobody may wait for it any more.
            self.outcomes.set_result(outcomes)

    def fail(self, error: str, *, timed_out: bool = False) -> None:
        self.finish([RewardResult.failure(error, timed_out=timed_out)] * len(self.samples))


class _Child:
    """One process; started when it is first needed, and again after its end.

    Args:
        setup: the first message to the process.
    """

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self._setup = setup
        self._mark = ""
        self._process: asyncio.subprocess.Process | None = None
        self._prepared: set[str] = set()

    async def start(self) -> Functions:
        """Start the child and return its description of the users' functions.

        Raises:
            RewardError: it cannot load them.
        """
        root = str(Path(megatron_longrl.__file__).parents[1])
        others = os.environ.get("PYTHONPATH")
        path = root if not others else os.pathsep.join((root, others))
        self._prepared.clear()
        self._mark = secrets.token_hex(16)
        leftovers.add_mark(_MARK, self._mark)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "megatron_longrl.rewards.worker", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, _MARK: self._mark},
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is the trainer's
        )
        functions: Functions = (await self._ask(self._setup, "start"))["functions"]
        return functions

    async def ensure_ready(self, reward: str) -> None:
        """Start it if it does not run, and let it load the libraries of a reward.

        Raises:
            RewardError: it does not come up, or a library or a model is missing.
        """
        if self._process is None:
            await self.start()
        if reward in self._prepared or reward not in REWARDS:
            return
        known = REWARDS.find(reward)
        if known.library is not None or known.prepare is not None:
            await self._ask({"prepare": reward}, f"load what {reward} needs")
        self._prepared.add(reward)

    async def send(self, message: Mapping[str, Any]) -> None:
        """Raises ChildDied."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        try:
            await self._process.stdin.drain()
        except ConnectionError:
            raise ChildDied from None

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises ChildDied."""
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ChildDied
        message: dict[str, Any] = json.loads(line)
        return message

    async def kill(self, patience: float = 0.0) -> int | None:
        """End it with all that it has started.

        Args:
            patience: seconds in which it may end by itself.

        Returns:
            Its exit status (negative: a signal's number), None where it has not ended by itself.
        """
        if self._process is None:
            return None
        process, self._process = self._process, None
        died = process.returncode
        if died is None and patience:
            with suppress(TimeoutError):
                died = await asyncio.wait_for(process.wait(), patience)
        with suppress(ProcessLookupError):
            process.terminate()  # The process that waits there ends all others.
        await process.wait()
        end_marked(_MARK, self._mark)  # in case that process was killed itself
        leftovers.discard_mark(_MARK, self._mark)
        # Its pipes end within this loop, not when somebody collects them and the loop is closed.
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        with suppress(ConnectionError):
            await process.stdin.wait_closed()
        await process.stdout.read()
        return died

    async def _ask(self, message: Mapping[str, Any], what: str) -> dict[str, Any]:
        try:
            async with asyncio.timeout(START_SECONDS):
                await self.send(message)
                reply = await self.receive()
        except TimeoutError:
            await self.kill()
            raise RewardError(
                f"the process that runs reward functions did not {what} within {START_SECONDS:g} s"
            ) from None
        except ChildDied:
            status = await self.kill(_DEATH_SECONDS)
            raise RewardError(
                f"the process that runs reward functions died at its {what} (exit status {status})"
            ) from None
        if "error" in reply:
            await self.kill()
            raise RewardError(reply["error"])
        return reply


class WorkerPool:
    """Runs rewards in children. Belongs to one event loop.

    Args:
        functions: file of each user's function, by name.
        options: keyword arguments of the functions.
        settings: values of the fields that built-in rewards read.
        size: children.
        seconds: deadline of a call; queueing and a child's start do not count.
    """

    def __init__(
        self,
        functions: Mapping[str, str],
        options: Mapping[str, Any],
        *,
        settings: Mapping[str, Any],
        size: int,
        seconds: float,
    ) -> None:
        setup = {
            "functions": functions,
            "options": options,
            "settings": settings,
            "plugins": imported_plugins(),
        }
        self._children = [_Child(setup) for _ in range(size)]
        self._seconds = seconds
        self._functions: Functions = {}
        self._waiting: deque[_Call] = deque()
        self._arrived = asyncio.Event()
        self._numbers = count()
        self._servers: list[asyncio.Task[None]] = []

    async def load(self) -> Functions:
        """Start one child and look up the functions.

        Raises:
            RewardError: they cannot be loaded.
        """
        return await self._children[0].start()

    def know(self, functions: Functions) -> None:
        """Take over the libraries and functions that a pool of another rank has loaded."""
        self._functions = functions

    async def score(self, reward: str, samples: Sequence[RewardInput]) -> list[RewardResult]:
        """One outcome per sample: of a batch function a whole group, else of a single one."""
        if not self._servers:
            self._servers = [asyncio.create_task(self._serve(child)) for child in self._children]
        call = _Call(reward, samples, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._arrived.set()
        return await call.outcomes

    async def close(self) -> None:
        """End all children; what waits gets no score."""
        for server in self._servers:
            server.cancel()
        await asyncio.gather(*self._servers, return_exceptions=True)
        await asyncio.gather(*(child.kill() for child in self._children))

    async def _serve(self, child: _Child) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            calls = self._take()
            try:
                await self._run(child, calls)
            except Exception as error:  # A reward costs its own sample, whatever it is.
                await child.kill()
                for call in calls:
                    call.fail(f"was not computed: {type(error).__name__}: {error}")

    def _take(self) -> list[_Call]:
        """The next call; of an asynchronous function as many as may run together."""
        first = self._waiting.popleft()
        calls = [first]
        if not first.alone and self._is_async(first.reward):
            same = [c for c in self._waiting if c.reward == first.reward and not c.alone]
            calls += same[: _TOGETHER - 1]
            for call in calls[1:]:
                self._waiting.remove(call)
        return [call for call in calls if not call.outcomes.done()]

    async def _run(self, child: _Child, calls: Sequence[_Call]) -> None:
        if not calls:
            return
        try:
            await child.ensure_ready(calls[0].reward)
        except RewardError as error:
            for call in calls:
                call.fail(str(error))
            return
        open_calls = {next(self._numbers): call for call in calls}
        message = {
            "seconds": self._seconds,
            "calls": [
                {"id": number, "reward": call.reward, "samples": list(map(asdict, call.samples))}
                for number, call in open_calls.items()
            ],
        }
        grace = _GRACE_SECONDS if self._is_async(calls[0].reward) else 0.0
        try:
            async with asyncio.timeout(self._seconds + grace):
                await child.send(message)
                while open_calls:
                    reply = await child.receive()
                    outcomes = [RewardResult(**outcome) for outcome in reply["outcomes"]]
                    open_calls.pop(reply["id"]).finish(outcomes)
            return
        except TimeoutError:
            await child.kill()
            reason, timed_out = f"gave no result within {self._seconds:g} s", True
        except ChildDied:
            status = await child.kill(_DEATH_SECONDS)
            reason, timed_out = f"ended its process (exit status {status})", False
        if len(calls) == 1:
            for call in open_calls.values():
                call.fail(reason, timed_out=timed_out)
            return
        for call in open_calls.values():  # Which of them it was shows when each runs alone.
            call.alone = True
            self._waiting.append(call)
        self._arrived.set()

    def _is_async(self, reward: str) -> bool:
        return bool(self._functions.get(reward, {}).get("async"))

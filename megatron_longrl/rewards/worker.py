"""The child process that runs users' functions, math and ROUGE:
``python -m megatron_longrl.rewards.worker PARENT``, started and ended by pool.py.

It speaks JSON, a line a message, over the pipes that were its standard input and output; the output
of the functions goes to standard error. In this order it reads

    {"functions": {NAME: FILE}, "options": {...}, "settings": {...}, "plugins": [MODULE, ...]}  once
    {"prepare": NAME}                       a reward, whose library and model take long to load
    {"calls": [{"id": N, "reward": NAME, "samples": [...]}], "seconds": X}

and answers ``{"functions": {NAME: {...}}}`` or ``{"error": LINE}``; ``{}`` or ``{"error": LINE}``;
and, in the order in which they end, a ``{"id": N, "outcomes": [...]}`` for every call. Several
calls of an asynchronous function run at the same time.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from megatron_longrl.errors import UserError
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.plugins import import_plugins
from megatron_longrl.processes.descendants import keep_descendants
from megatron_longrl.rewards.functions import UserFunction, raised
from megatron_longrl.rewards.registry import REWARDS
from megatron_longrl.rewards.result import RewardError, RewardResult

Message = dict[str, Any]


class _Late(Exception):
    """An asynchronous function did not end in time."""


class Worker:
    """The functions of a child process, with which it scores samples.

    Raises:
        RewardError: a function cannot be loaded.
    """

    def __init__(self, setup: Message) -> None:
        self._settings: Message = setup["settings"]
        self._functions = {
            name: UserFunction(file, name, setup["options"])
            for name, file in setup["functions"].items()
        }
        # One for all calls: a user's client may live from call to call.
        self._loop = asyncio.new_event_loop()

    def describe(self) -> dict[str, Message]:
        """Describe the functions to the parent."""
        return {
            name: {"batch": f.is_batch, "async": f.is_async, "options": sorted(f.options)}
            for name, f in self._functions.items()
        }

    def prepare(self, name: str) -> Message:
        """Load the libraries of a built-in reward; the answer to the parent."""
        reward = REWARDS.find(name)
        try:
            if reward.library is not None:
                importlib.import_module(reward.library)
            if reward.prepare is not None:
                reward.prepare(*(self._settings[name] for name in reward.settings))
        except ImportError as error:
            return {"error": f"{reward.library} cannot be imported: {error}"}
        except RewardError as error:
            return {"error": str(error)}
        return {}

    def run(
        self, calls: Sequence[Message], seconds: float, send: Callable[[Message], None]
    ) -> None:
        """Score the samples of all calls; ``send`` gets every answer as soon as it is there."""

        async def one(call: Message) -> None:
            samples = [RewardInput(**sample) for sample in call["samples"]]
            outcomes = await self._score(call["reward"], samples, seconds)
            send({"id": call["id"], "outcomes": [asdict(outcome) for outcome in outcomes]})

        async def every() -> None:
            await asyncio.gather(*map(one, calls))

        self._loop.run_until_complete(every())

    async def _score(
        self, name: str, samples: Sequence[RewardInput], seconds: float
    ) -> list[RewardResult]:
        function = self._functions.get(name)
        try:
            if function is None:
                reward = REWARDS.find(name)
                return [RewardResult(reward.compute(one, self._settings)) for one in samples]
            returned = function.call(samples)
            if inspect.isawaitable(returned):
                returned = await _within(returned, seconds)
            return function.outcomes(returned, len(samples))
        except RewardError as error:
            failure = RewardResult.failure(str(error))
        except _Late:
            failure = RewardResult.failure(f"gave no result within {seconds:g} s", timed_out=True)
        except BaseException as error:  # A function may even call sys.exit.
            failure = RewardResult.failure(raised(error))
        return [failure] * len(samples)


async def _within(awaitable: Awaitable[Any], seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise _Late from None
        raise  # The function's own.


def main() -> int:
    """Serve until the parent closes the pipe."""
    keep_descendants(int(sys.argv[1]))
    requests, replies = _take_over_pipes()

    def send(message: Message) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    worker: Worker | None = None
    for line in requests:
        message = json.loads(line)
        if "calls" in message:
            assert worker is not None, "functions come before calls"
            worker.run(message["calls"], message["seconds"], send)
        elif "prepare" in message:
            assert worker is not None, "functions come before rewards"
            send(worker.prepare(message["prepare"]))
        else:
            try:
                import_plugins(message["plugins"])
                worker = Worker(message)
                send({"functions": worker.describe()})
            except (RewardError, UserError) as error:
                send({"error": str(error)})
    return 0


def _take_over_pipes() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """The parent's pipes, under numbers that are unknown to user code.

    Its output, even from C or a subprocess, goes to stderr; its input is empty.
    """
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what it printed last must not be lost
    return requests, replies


if __name__ == "__main__":
    sys.exit(main())

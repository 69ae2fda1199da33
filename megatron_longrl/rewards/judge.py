"""A language model that judges answers, behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.judge_cache import JudgeCache
from megatron_longrl.rewards.judge_prompt import fill, read_template, score_of
from megatron_longrl.rewards.result import RewardResult

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from megatron_longrl.config.rewards import RewardSection

logger = logging.getLogger(__name__)

COUNTERS = tuple(
    f"judge/{name}"
    for name in ("requests", "input_tokens", "output_tokens", "cost", "cache_hits", "failures")
)

_REMEMBERED = 100_000  # judgements in memory
_SHOWN = 200  # characters of what an endpoint sends, in a log line


@dataclass
class _Asked:
    """A question to the judge, and how many samples wait for its answer."""

    task: asyncio.Task[RewardResult]
    waiting: int = 0


class Judge:
    """Asks for scores. Belongs to one event loop.

    The key comes from the environment and is in no message.

    Raises:
        UserError: the file of --judge-prompt cannot be used.
    """

    def __init__(self, config: RewardSection) -> None:
        assert config.judge_url is not None and config.judge_model is not None
        self._url = config.judge_url
        self._model = config.judge_model
        self._temperature = config.judge_temperature
        self._retries = config.judge_retries
        self._seconds = config.judge_timeout
        self._input_price = config.judge_price_per_million_input_tokens / 1e6
        self._output_price = config.judge_price_per_million_output_tokens / 1e6
        self._template = read_template(config.judge_prompt)
        self._key = os.environ.get(config.judge_api_key_variable, "").strip()
        self._slots = asyncio.Semaphore(config.judge_concurrency)
        self._cache = JudgeCache(config.judge_cache)
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        self._client: AsyncOpenAI | None = None
        self._counts = dict.fromkeys(COUNTERS, 0.0)

    async def score(self, sample: RewardInput) -> RewardResult:
        """The judge's score; samples about which the same is asked share one request."""
        prompt = fill(self._template, sample)
        text = json.dumps([self._url, self._model, self._temperature, prompt])
        key = hashlib.sha256(text.encode()).hexdigest()
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(asyncio.create_task(self._judge(key, prompt)))
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)
        else:
            self._counts["judge/cache_hits"] += 1
        asked.waiting += 1
        try:
            outcome = await asyncio.shield(asked.task)  # Others may wait for it, too.
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.task.done():  # Nobody wants to know any more.
                asked.task.cancel()
                self._forget(key, asked)
        if outcome.score is None:
            self._forget(key, asked)
        return outcome

    def pop_counters(self) -> dict[str, float]:
        """Return the counts and the cost of requests since the last call."""
        counts, self._counts = self._counts, dict.fromkeys(COUNTERS, 0.0)
        return counts

    async def close(self) -> None:
        """End the connections."""
        if self._client is not None:
            await self._client.close()

    def _forget(self, key: str, asked: _Asked) -> None:
        if self._asked.get(key) is asked:
            del self._asked[key]

    async def _judge(self, key: str, prompt: str) -> RewardResult:
        kept = await asyncio.to_thread(self._cache.read, key)
        if kept is not None:
            self._counts["judge/cache_hits"] += 1
            return RewardResult(kept)
        async with self._slots:
            try:
                async with asyncio.timeout(self._seconds):
                    reply = await self._ask(prompt)
            except TimeoutError:
                return self._failure(f"did not answer within {self._seconds:g} s", timed_out=True)
            except Exception as error:  # Whatever an endpoint does, it costs this sample alone.
                cause = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
                return self._failure(f"{type(error).__name__}: {self._shown(error)}{cause}")
        score = score_of(reply)
        if score is None:
            return self._failure(f"gave no score: {self._shown(repr(reply))}")
        try:
            await asyncio.to_thread(self._cache.write, key, score, reply, self._model)
        except OSError as error:
            logger.warning("--judge-cache: a judgement could not be kept: %s", error)
        return RewardResult(score)

    async def _ask(self, prompt: str) -> str:
        """The reply, empty where the endpoint sent none. The client retries."""
        extra: dict[str, Any] = {}
        if self._temperature is not None:
            extra["temperature"] = self._temperature
        client = await self._connect()
        completion: Any = await client.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": prompt}], **extra
        )
        # The client does not check what an endpoint sends.
        usage = getattr(completion, "usage", None)
        read, written = (
            tokens if isinstance(tokens := getattr(usage, name, None), int) else 0
            for name in ("prompt_tokens", "completion_tokens")
        )
        self._counts["judge/input_tokens"] += read
        self._counts["judge/output_tokens"] += written
        self._counts["judge/cost"] += read * self._input_price + written * self._output_price
        try:
            return str(completion.choices[0].message.content or "")
        except (AttributeError, IndexError, TypeError):
            return ""

    async def _connect(self) -> AsyncOpenAI:
        # It takes a second, in which the loop must see to its deadlines.
        await asyncio.to_thread(importlib.import_module, "openai")
        if self._client is None:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient

            self._client = AsyncOpenAI(
                base_url=self._url,
                api_key=self._key or "none",  # It wants one; endpoints without keys ignore it.
                max_retries=self._retries,
                timeout=None,  # The deadline is over all tries.
                http_client=DefaultAsyncHttpxClient(event_hooks={"request": [self._count]}),
            )
        return self._client

    async def _count(self, request: object) -> None:
        self._counts["judge/requests"] += 1

    def _failure(self, error: str, *, timed_out: bool = False) -> RewardResult:
        self._counts["judge/failures"] += 1
        return RewardResult.failure(error, timed_out=timed_out)

    def _shown(self, said: object) -> str:
        """Remove the key from a text for a log line, because an endpoint's message may repeat
        it."""
        text = str(said).replace(self._key, "…") if self._key else str(said)
        return " ".join(text.split())[:_SHOWN]

"""Users' reward functions: how they are found, their arguments, and their results.

Runs in a child process (worker.py), so that a function may raise, hang or crash.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_longrl.config.secrets import filled_in
from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.rewards.pictures import frames_of, pixels_of
from megatron_longrl.rewards.result import RewardError, RewardResult, is_finite

SINGLE: dict[str, Callable[[RewardInput], Any]] = {
    "prompt": lambda sample: sample.question,
    "response": lambda sample: sample.response,
    "answer": lambda sample: sample.answer,
    "video": lambda sample: sample.video,
    "metadata": lambda sample: dict(sample.metadata),
    "image": lambda sample: pixels_of(sample) if sample.picture and not sample.is_film else None,
    "frames": lambda sample: frames_of(sample) if sample.is_film else None,
}
"""Arguments by name. A function of whole groups gets lists of them, under the names of BATCH."""

BATCH = {f"{name}s": name for name in SINGLE if name not in ("metadata", "frames")}
_SHOWN = 200  # characters of what a function returned or raised


class UserFunction:
    """One function of a user's file.

    Args:
        options: the keyword arguments that the run gives to its functions; this one gets those that
            it names.

    Raises:
        RewardError: the file, the function or one of its arguments does not exist.
    """

    def __init__(self, file: str, name: str, options: Mapping[str, Any]) -> None:
        self.where = f"{file}:{name}"
        self._function = _load(file, name)
        try:
            parameters = inspect.signature(self._function).parameters
        except (TypeError, ValueError):
            raise RewardError(f"{self.where}: not a function whose arguments can be seen") from None
        named = {
            key
            for key, parameter in parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.is_batch = bool(named & BATCH.keys())
        self.is_async = inspect.iscoroutinefunction(self._function)
        given = {**BATCH, "metadata": "metadata"} if self.is_batch else {k: k for k in SINGLE}
        self._given = {k: v for k, v in given.items() if k in named or takes_all}
        if taken := options.keys() & {*SINGLE, *BATCH}:
            raise RewardError(
                f"--reward-kwargs: '{min(taken)}' is the name of what functions get anyway"
            )
        try:
            self.options = {k: filled_in(v) for k, v in options.items() if k in named or takes_all}
        except KeyError as missing:
            raise RewardError(
                f"--reward-kwargs: the environment has no variable {missing.args[0]}"
            ) from None
        self._check(parameters, named)

    def call(self, samples: Sequence[RewardInput]) -> Any:
        """Call the function for a sample or a whole group, and return its result or an awaitable of
        it."""
        if self.is_batch:
            arguments = {
                key: [SINGLE[name](sample) for sample in samples]
                for key, name in self._given.items()
            }
        else:
            (sample,) = samples
            arguments = {key: SINGLE[name](sample) for key, name in self._given.items()}
        return self._function(**arguments, **self.options)

    def outcomes(self, returned: Any, count: int) -> list[RewardResult]:
        """One outcome per sample, from the value that the function returned."""
        if not self.is_batch:
            return [_outcome(returned)]
        try:
            values = None if isinstance(returned, str | bytes | Mapping) else list(returned)
        except TypeError:
            values = None
        if values is None:
            return [RewardResult.failure(f"returned {shown(returned)}, which is no list")] * count
        if len(values) != count:
            failure = RewardResult.failure(f"returned {len(values)} scores for {count} responses")
            return [failure] * count
        return [_outcome(value) for value in values]

    def _check(self, parameters: Mapping[str, inspect.Parameter], named: set[str]) -> None:
        if self.is_batch and (wrong := named & SINGLE.keys() - {"metadata"}):
            raise RewardError(
                f"{self.where} takes {min(wrong)} and {min(named & BATCH.keys())}: name arguments "
                "of one response, or of all responses of a group"
            )
        for key, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is parameter.empty and key not in {**self._given, **self.options}:
                raise RewardError(
                    f"{self.where} needs an argument '{key}', which is none of "
                    f"{', '.join((*SINGLE, *BATCH))}: give it in --reward-kwargs"
                )


def shown(value: Any) -> str:
    """A value for a log line."""
    try:
        text = " ".join(repr(value).split())
    except Exception as error:
        text = f"a {type(value).__name__} without a repr ({type(error).__name__})"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def raised(error: BaseException) -> str:
    """An exception for a log line."""
    return f"raised {shown(error)}"


def _outcome(value: Any) -> RewardResult:
    """A number, or a mapping with ``score`` and further numbers."""
    if not isinstance(value, Mapping):
        score = _number(value)
        if score is None:
            return RewardResult.failure(
                f"returned {shown(value)}, which is no finite number{_in_float32(value)}"
            )
        return RewardResult(score)
    numbers = {str(key): _number(entry) for key, entry in value.items()}
    wrong = [key for key, number in numbers.items() if number is None]
    if "score" not in numbers or wrong:
        what = "which has no 'score'"
        if wrong:
            what = f"in which {wrong[0]!r} is no finite number{_in_float32(value.get(wrong[0]))}"
        return RewardResult.failure(f"returned {shown(value)}, {what}")
    extras = {key: number for key, number in numbers.items() if number is not None}
    return RewardResult(extras.pop("score"), extras)


def _in_float32(value: Any) -> str:
    """Return the addition to a message about a number that is finite, but not in float32."""
    return " in float32" if isinstance(value, float | int) and abs(value) < math.inf else ""


def _number(value: Any) -> float | None:
    """Return a number that is finite in float32; also of a NumPy or torch scalar, without importing
    either."""
    if value is None or isinstance(value, str | bytes | bytearray):
        return None
    try:
        number = float(value)
    except Exception:
        return None
    return number if is_finite(number) else None


_MODULES: dict[Path, Any] = {}


def _load(file: str, name: str) -> Callable[..., Any]:
    path = Path(file).resolve()
    if not path.is_file():
        raise RewardError(f"{file}: no such file; check --reward-function")
    if path not in _MODULES:
        # A name of its own: a user's math.py must not stand in for Python's.
        unique = f"reward_function_{len(_MODULES)}_{path.stem}"
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None and spec.loader is not None, "the file's name ends with .py"
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        sys.path.append(str(path.parent))  # it finds its neighbours
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            raise RewardError(f"{file} cannot be imported: it {raised(error)}") from error
        _MODULES[path] = module
    function = getattr(_MODULES[path], name, None)
    if not callable(function):
        raise RewardError(f"{file} has no function '{name}'; check --reward-function")
    loaded: Callable[..., Any] = function
    return loaded

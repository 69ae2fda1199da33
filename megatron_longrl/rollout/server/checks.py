"""Limits of a request to the server. vLLM trusts its input: a request that does not fit the model
would end its step or its process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_longrl.errors import UserError
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.model_settings import ModelSettings
from megatron_longrl.rollout.requests import PromptRequest, check_finite
from megatron_longrl.rollout.server.wire import Generation
from megatron_longrl.rollout.vllm.deepstack import with_features
from megatron_longrl.rollout.vllm.positions import with_positions
from megatron_longrl.rollout.weights.buckets import aligned, layer_of

MOST_RESPONSES = 1 << 16
"""Largest number of responses in a generation."""
_MOST_STOPS, _LONGEST_STOP = 64, 1000
_SEEDS = 1 << 63
_FURTHEST = 4
"""Positions of media may go so many times as far as those of text (vLLM's table for them)."""


def check_generation(generation: Generation, settings: ModelSettings) -> None:
    """Raise ValueError unless the model can generate it."""
    vocabulary = settings.hf_config["vocab_size"]
    _check_sampling(generation.sampling)
    _check_ids("end_ids", generation.end_ids, vocabulary)
    wanted = 0
    for number, request in enumerate(generation.requests):
        try:
            _check_request(request, settings, vocabulary)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        wanted += len(request.wanted)
    if wanted > MOST_RESPONSES:
        raise ValueError(f"{wanted} responses are more than {MOST_RESPONSES}")


def _check_sampling(sampling: SamplingSettings) -> None:
    _check_number("temperature", sampling.temperature, 0, 1e6)
    _check_number("top_p", sampling.top_p, 1e-9, 1)
    _check_number("min_p", sampling.min_p, 0, 1)
    _check_integer("top_k", sampling.top_k, -1, 1 << 31)
    if type(sampling.stop) is not bool:
        raise ValueError("stop is neither true nor false")
    stops = sampling.stop_strings
    if len(stops) > _MOST_STOPS or not all(
        isinstance(stop, str) and 0 < len(stop) <= _LONGEST_STOP for stop in stops
    ):
        raise ValueError(f"stop strings are at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP}")


def _check_request(request: PromptRequest, settings: ModelSettings, vocabulary: int) -> None:
    config, dtype = settings.hf_config, settings.torch_dtype
    width, (length, *_) = config["hidden_size"], (*request.embeddings.shape, 0)
    _check_tensor("embeddings", request.embeddings, dtype, (length, width))
    check_finite("embeddings", request.embeddings)
    longest = settings.max_model_len
    _check_integer("its length", length, 1, longest)
    _check_integer("max_tokens", request.max_tokens, 1, longest - length + 1)
    wanted = request.wanted
    if len(wanted) > MOST_RESPONSES or len(wanted) != len({*wanted}):
        raise ValueError("responses are wanted twice")
    _check_integer("seed", request.seed, 0, _SEEDS)
    for index in wanted:
        _check_integer("the index of a response", index, 0, _SEEDS - request.seed)
    _check_ids("prefix", request.prefix, vocabulary)
    if len(request.prefix) > length:
        raise ValueError("the prefix is longer than the prompt")
    _check_extra(request.extra, length, settings)


def _check_extra(extra: Mapping[str, Any], length: int, settings: ModelSettings) -> None:
    """Positions and DeepStack's features, as :func:`with_positions` and :func:`with_features` give
    them."""
    (positions,), (features,) = with_positions(torch.empty(0)), _FEATURES
    if (positions in extra) != settings.uses_mrope:
        raise ValueError("positions are missing, or of another model")
    if not extra.keys() <= {positions, features}:
        raise ValueError("it brings what the model does not know")
    if positions in extra:
        _check_tensor("positions", extra[positions], torch.long, (length, 3))
        most = _FURTHEST * settings.hf_config["max_position_embeddings"] - settings.max_model_len
        _check_range("positions", extra[positions], max(most, settings.max_model_len))
    if features in extra:
        value = extra[features]
        if not settings.deepstack_levels or not isinstance(value, tuple) or len(value) != 2:
            raise ValueError("features of media are of another model")
        places, tensor = value
        width = settings.deepstack_levels * settings.hf_config["hidden_size"]
        _check_tensor("places of features", places, torch.long, (len(tensor),))
        _check_range("places of features", places, length)
        _check_tensor("features", tensor, settings.torch_dtype, (len(tensor), width))
        check_finite("features", tensor)


_FEATURES = with_features(torch.zeros(0, dtype=torch.bool), torch.empty(0))


def _check_tensor(name: str, tensor: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(f"the {name} are not {str(dtype).removeprefix('torch.')} {[*shape]}")


def _check_range(name: str, tensor: Tensor, end: int) -> None:
    if tensor.numel() and (int(tensor.min()) < 0 or int(tensor.max()) >= end):
        raise ValueError(f"the {name} are not in 0 to {end - 1}")


def _check_ids(name: str, ids: Any, vocabulary: int) -> None:
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise ValueError(f"{name} is no list of tokens")
    for token in ids:
        _check_integer(f"a token of {name}", token, 0, vocabulary)


def _check_integer(name: str, value: object, start: int, end: int) -> None:
    if type(value) is not int or not start <= value < end:
        raise ValueError(f"{name} is no whole number from {start} to {end - 1}")


def _check_number(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} is no number from {least:g} to {most:g}")


def model_bytes(shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> int:
    """Return the bytes of a bucket that holds all weights."""
    return sum(aligned(shape.numel() * dtype.itemsize) for shape in shapes.values())


def check_update(
    info: object,
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    bucket: int | None,
) -> None:
    """Raise UserError or ValueError unless a part of the weights can be loaded.

    Args:
        info: the data that a client sent for
            :meth:`~megatron_longrl.rollout.weights.buckets.WeightServer.update_weights`.
        shapes: the shapes of all weights, by name.
        dtype: the data type in which they come.
        bucket: the size in bytes of the bucket; None where weights do not come through one.
    """
    keys = {"names", "dtype_names", "shapes"} | (
        {"offsets", "end"} if bucket is not None else set()
    )
    if not isinstance(info, Mapping) or info.keys() != keys:
        raise ValueError(f"update_info has other keys than {', '.join(sorted(keys))}")
    lists = [info[key] for key in sorted(keys - {"end"})]
    if not all(isinstance(values, list) for values in lists) or len({*map(len, lists)}) != 1:
        raise ValueError("the lists of update_info are not equally long")
    names, name_of_dtype = info["names"], str(dtype).removeprefix("torch.")
    for name, kind, shape in zip(names, info["dtype_names"], info["shapes"], strict=True):
        if not isinstance(name, str) or name not in shapes:
            raise UserError(f"vLLM's model has no {str(name)[:200]}")
        if kind != name_of_dtype or shape != [*shapes[name]]:
            raise ValueError(f"{name} is not {name_of_dtype} {[*shapes[name]]}")
    if len(names) != len({*names}):
        raise ValueError("weights come twice")
    if bucket is None:
        return
    _check_integer("end", info["end"], 0, bucket + 1)
    for name, offset in zip(names, info["offsets"], strict=True):
        last = info["end"] - shapes[name].numel() * dtype.itemsize
        _check_integer(f"the offset of {name}", offset, 0, last + 1)
        if offset % dtype.itemsize:
            raise ValueError(f"the offset of {name} is no multiple of {dtype.itemsize}")
    layers = {layer_of(name) for name in names}
    missing = {name for name in shapes if layer_of(name) in layers} - {*names}
    if missing:
        raise ValueError(f"{layer_of(min(missing))} needs {min(missing)}, too")

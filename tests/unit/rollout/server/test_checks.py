"""What a server does not give to vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_longrl.errors import UserError
from megatron_longrl.experience.sampling_settings import SamplingSettings
from megatron_longrl.rollout.requests import PromptRequest
from megatron_longrl.rollout.server import checks
from megatron_longrl.rollout.server.checks import check_generation, check_update, model_bytes
from megatron_longrl.rollout.server.wire import Generation
from megatron_longrl.rollout.vllm.deepstack import with_features
from megatron_longrl.rollout.vllm.positions import with_positions
from tests.tiny_served import HF_CONFIG, MAX_MODEL_LEN, model_settings

PLAIN = model_settings()
MEDIA = replace(
    model_settings(HF_CONFIG | {"rope_parameters": {"mrope_section": [4, 6, 6]}}),
    deepstack_levels=2,
)
LENGTH, WIDTH = 7, HF_CONFIG["hidden_size"]


def generation(extra: dict[str, Any] | None = None) -> Generation:
    sampling = SamplingSettings(n=2, max_tokens=5, temperature=0.8, stop_strings=("x",))
    request = PromptRequest(3, [0, 1], 5, torch.zeros(LENGTH, WIDTH), extra or {}, [1, 2])
    return Generation("run:1", [299], None, sampling, [request, request])


def media(**changes: Any) -> dict[str, Any]:
    places, features = torch.tensor([0, LENGTH - 1]), torch.zeros(2, 2 * WIDTH)
    made = {
        **with_positions(torch.full((LENGTH, 3), 4 * 256 - MAX_MODEL_LEN - 1)),
        "deepstack": (places, features),
    }
    assert made.keys() == {*with_positions(places), *with_features(places > 0, features)}
    return {name: value for name, value in (made | changes).items() if value is not None}


def test_what_a_trainer_asks_for_is_generated() -> None:
    check_generation(generation(), PLAIN)
    check_generation(generation(media()), MEDIA)
    check_generation(generation(media(deepstack=None)), MEDIA)
    longest = replace(generation().requests[0], max_tokens=MAX_MODEL_LEN - LENGTH)
    check_generation(replace(generation(), requests=[longest]), PLAIN)


def of_sampling(**values: Any) -> Callable[[Generation], Generation]:
    return lambda whole: replace(whole, sampling=replace(whole.sampling, **values))


def of_request(**values: Any) -> Callable[[Generation], Generation]:
    return lambda whole: replace(
        whole, requests=[whole.requests[0], replace(whole.requests[1], **values)]
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda whole: replace(whole, end_ids=[300]), "a token of end_ids is no whole number"),
        (lambda whole: replace(whole, end_ids="12"), "end_ids is no list"),
        (of_sampling(temperature=float("nan")), "temperature is no number from 0 to 1e"),
        (of_sampling(temperature=-1), "temperature"),
        (of_sampling(top_p=0.0), "top_p"),
        (of_sampling(min_p="0"), "min_p"),
        (of_sampling(top_k=2.5), "top_k"),
        (of_sampling(stop=1), "stop is neither"),
        (of_sampling(stop_strings=("",)), "stop strings are"),
        (of_sampling(stop_strings=("x",) * 65), "stop strings are"),
        (of_request(embeddings=torch.zeros(LENGTH, WIDTH + 1)), r"prompt 1: .*float32 \[7, 128\]"),
        (of_request(embeddings=torch.zeros(LENGTH, WIDTH).bfloat16()), "embeddings are not"),
        (of_request(embeddings=torch.zeros(())), "embeddings are not"),
        (of_request(embeddings=torch.full((LENGTH, WIDTH), float("nan"))), "are not finite"),
        (of_request(embeddings=torch.full((LENGTH, WIDTH), -float("inf"))), "are not finite"),
        (of_request(embeddings=torch.zeros(0, WIDTH), prefix=[]), "its length"),
        (of_request(max_tokens=MAX_MODEL_LEN - LENGTH + 1), "max_tokens is no .* 1 to 121"),
        (of_request(max_tokens=0), "max_tokens"),
        (of_request(seed=-1), "seed"),
        (of_request(seed=1 << 63), "seed"),
        (of_request(seed=(1 << 63) - 1), "index of a response"),
        (of_request(wanted=[-1]), "index of a response"),
        (of_request(wanted=[True]), "index of a response"),
        (of_request(wanted=[2, 2]), "wanted twice"),
        (of_request(wanted=range(checks.MOST_RESPONSES - 1)), "are more than 65536"),
        (of_request(prefix=[-1]), "a token of prefix"),
        (of_request(prefix=[1] * 8), "longer than the prompt"),
        (of_request(extra={"x": 1}), "does not know"),
        (of_request(extra=media()), "positions are missing, or of another model"),
    ],
)
def test_what_is_not(change: Callable[[Generation], Generation], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_generation(change(generation()), PLAIN)


TWO = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (media(position_ids=None), "positions are missing"),
        (media(position_ids=torch.zeros(LENGTH, 2).long()), "positions are not int64"),
        (media(position_ids=torch.zeros(LENGTH, 3)), "positions are not int64"),
        (media(position_ids=torch.full((LENGTH, 3), 4 * 256 - MAX_MODEL_LEN)), "not in 0 to 895"),
        (media(position_ids=torch.full((LENGTH, 3), -1)), "not in 0 to"),
        (media(deepstack=TWO), "features of media are of another"),
        (media(deepstack=(TWO, torch.zeros(3, 2 * WIDTH))), "places of features are not"),
        (media(deepstack=(TWO + 6, torch.zeros(2, 2 * WIDTH))), "places .* not in 0 to 6"),
        (media(deepstack=(TWO, torch.zeros(2, WIDTH))), "features are not float32"),
        (media(deepstack=(TWO, torch.zeros(2, 2 * WIDTH) / 0)), "features are not finite"),
    ],
)
def test_media_that_do_not_fit(extra: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_generation(generation(extra), MEDIA)


SHAPES = {
    "a.q_proj.weight": torch.Size((2, 8)),
    "a.k_proj.weight": torch.Size((2, 8)),
    "a.v_proj.weight": torch.Size((2, 8)),
    "norm.weight": torch.Size((8,)),
}
BUCKET = model_bytes(SHAPES, torch.float32)


def update(**changes: Any) -> dict[str, Any]:
    info = {
        "names": [*SHAPES],
        "dtype_names": ["float32"] * 4,
        "shapes": [[*shape] for shape in SHAPES.values()],
        "offsets": [0, 64, 128, 192],
        "end": BUCKET,
    }
    return {name: value for name, value in (info | changes).items() if value is not None}


def test_an_update_that_is_loaded() -> None:
    assert BUCKET == 256
    check_update(update(), SHAPES, torch.float32, BUCKET)
    check_update(update(offsets=None, end=None), SHAPES, torch.float32, None)
    norm = update(names=["norm.weight"], dtype_names=["float32"], shapes=[[8]], offsets=[224])
    check_update(norm, SHAPES, torch.float32, BUCKET)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"end": None}, "other keys than dtype_names, end"),
        ({"more": 1}, "other keys"),
        ({"names": [*SHAPES][:3]}, "equally long"),
        ({"names": "abcd"}, "equally long"),
        ({"names": ["x", *[*SHAPES][1:]]}, "has no x"),
        ({"names": [["x"], *[*SHAPES][1:]]}, "has no"),
        ({"dtype_names": ["float64"] * 4}, r"q_proj.weight is not float32 \[2, 8\]"),
        ({"shapes": [[1 << 60, 8], [2, 8], [2, 8], [8]]}, r"is not float32 \[2, 8\]"),
        ({"end": BUCKET + 1}, "end is no"),
        ({"end": BUCKET - 33}, "the offset of norm.weight is no whole number from 0 to 191"),
        ({"offsets": [-4, 64, 128, 192]}, "the offset of a.q_proj"),
        ({"offsets": [2, 64, 128, 192]}, "no multiple of 4"),
        ({"offsets": [0, 64, 1 << 70, 192]}, "the offset of a.v_proj"),
    ],
)
def test_an_update_that_is_not(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises((ValueError, UserError), match=reason):
        check_update(update(**changes), SHAPES, torch.float32, BUCKET)


@pytest.mark.parametrize("info", [None, 3, "names", [update()]])
def test_an_update_that_is_no_dictionary(info: object) -> None:
    with pytest.raises(ValueError, match="other keys"):
        check_update(info, SHAPES, torch.float32, BUCKET)


def test_a_layer_comes_as_a_whole_and_once() -> None:
    part = {name: update()[name][1:] for name in ("names", "dtype_names", "shapes", "offsets")}
    with pytest.raises(ValueError, match=r"a\.qkv_proj needs a\.q_proj\.weight, too"):
        check_update(update(**part), SHAPES, torch.float32, BUCKET)
    twice = {name: update()[name][-1:] * 2 for name in part}
    with pytest.raises(ValueError, match="come twice"):
        check_update(update(**twice), SHAPES, torch.float32, BUCKET)

"""The check for values that an entry point needs, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from megatron_longrl.checkpoint.folder import find_state
from megatron_longrl.cli.given import Given
from megatron_longrl.cli.installed import missing_packages
from megatron_longrl.config.family import FAMILY_SECTIONS
from megatron_longrl.config.model_folders import (
    CONFIG,
    PIPELINE,
    is_model_folder,
    is_pipeline_folder,
)
from megatron_longrl.config.names import flag
from megatron_longrl.config.paths import missing_paths
from megatron_longrl.errors import ConfigError
from megatron_longrl.models.policy import find_policy

REQUIRED: dict[str, tuple[str, ...]] = {
    "sft": ("train_data_path",),
    "rl": ("train_data_path",),
    "evaluate": ("load", "data"),
    "generate": ("prompts", "output"),
    "serve": ("rollout_server_address",),
}
"""Fields without a default."""

FROM_CHECKPOINT = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads"),
    "tokenizer_model",
)
"""Fields that a checkpoint brings."""


def check_given(given: Given, *, files: bool = True) -> None:
    """Check that no needed value is missing.

    Args:
        files: whether paths and packages are looked up, too.

    Raises:
        ConfigError: one line for all of it.
    """
    values = given.values
    _check_family(given)
    policy = find_policy(_family(given))
    no_program = policy.missing_program(given.entry) if policy is not None else None
    if no_program is not None:
        raise ConfigError(no_program)
    empty: tuple[object, ...] = (None, "", [])
    required = REQUIRED[given.entry] if policy is None else policy.required_by(given.entry)
    missing = [name for name in required if values.get(name) in empty]
    problems = [f"{flag(name)} is missing" for name in missing]
    if values.get("video_frames_curriculum") and values.get("seq_length") in empty:
        problems.append("--seq-length is missing, which --video-frames-curriculum needs")
    if policy is None and not brings_a_model(given) and "load" not in missing:
        lacking = [name for name in FROM_CHECKPOINT if values.get(name) in empty]
        if len(lacking) == len(FROM_CHECKPOINT):
            problems.append(
                "no model: give --pretrained-checkpoint FOLDER, of a Hugging Face model, of a "
                "pipeline of diffusers or of a run"
            )
        elif lacking:
            problems.append(
                f"{', '.join(lacking)} not set: give --pretrained-checkpoint FOLDER, which brings "
                "them, or put them into the --config recipe"
            )
    if files:
        problems += missing_paths(values, given.entry)
        problems += _without_checkpoint(given)
        if policy is None and not given.print_only:
            problems += missing_packages(values, given.entry)
    if problems:
        raise ConfigError("; ".join(problems))


def _check_family(given: Given) -> None:
    """Raises :class:`ConfigError` where ``--model-family`` names no family: nothing else of such
    a run can be checked."""
    name = given.values.get("model_family")
    problem = FAMILY_SECTIONS.unknown(name) if isinstance(name, str) else None
    if problem is not None:
        raise ConfigError(f"model_family = {name!r} ({given.origins['model_family']}): {problem}")


def _family(given: Given) -> str:
    """The model family that is given, or that the checkpoint names; empty where nothing does."""
    family = given.values.get("model_family")
    folder = given.values.get("load") or given.values.get("pretrained_checkpoint")
    if family or not isinstance(folder, str):
        return str(family or "")
    if is_pipeline_folder(folder):
        # It imports torch, which a run needs soon after.
        from megatron_longrl.platforms import platform

        platform.import_core()
        from megatron_longrl.conversion.pipeline_folder import PipelineFolder

        return PipelineFolder(folder).model_family
    found = find_state(folder)
    return str(found[1]["config"].get("model_family", "")) if found is not None else ""


def check_checkpoint(given: Given) -> None:
    """Check that the checkpoint that is given is there.

    Raises:
        ConfigError: naming the folder that is missing, or holds none.
    """
    _check_family(given)
    names = ("load", "pretrained_checkpoint")
    values = {name: given.values.get(name) for name in names}
    problems = missing_paths(values, given.entry) + _without_checkpoint(given)
    if problems:
        raise ConfigError("; ".join(problems))


def brings_a_model(given: Given) -> bool:
    """Whether the run starts from a checkpoint, which knows its model and tokenizer."""
    load, pretrained = given.values.get("load"), given.values.get("pretrained_checkpoint")
    if pretrained:
        return True
    return bool(load) and (not is_new(given) or given.entry not in ("sft", "rl", "serve"))


def is_new(given: Given) -> bool:
    """Whether ``--load`` names nothing but the folder that this run is going to make."""
    load = given.values.get("load")
    return bool(load) and load == given.values.get("save") and given.loaded is None


def _without_checkpoint(given: Given) -> list[str]:
    """Lines for folders that exist and hold nothing to start from."""
    lines = []
    for name in ("load", "pretrained_checkpoint"):
        folder = given.values.get(name)
        if not isinstance(folder, str) or not Path(folder).is_dir():
            continue
        if name == "load" and is_new(given) and given.entry in ("sft", "rl", "serve"):
            continue
        if not is_model_folder(folder) and not _holds_a_run(Path(folder)):
            lines.append(
                f"{flag(name)} {folder} holds no checkpoint: neither {CONFIG}, as of Hugging "
                f"Face, nor {PIPELINE}, as of diffusers, nor iter_… or release, as of Megatron"
            )
    return lines


def _holds_a_run(folder: Path) -> bool:
    """Complete or not: the loader reports what is wrong with it."""
    patterns = ("iter_*", "release", "longrl_state.json", "latest_checkpointed_iteration.txt")
    return any(next(folder.glob(pattern), None) for pattern in patterns)

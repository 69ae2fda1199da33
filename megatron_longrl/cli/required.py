"""The check for values that an entry point needs, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from megatron_longrl.cli.given import Given
from megatron_longrl.cli.installed import missing_packages
from megatron_longrl.config.names import flag
from megatron_longrl.config.paths import missing_paths
from megatron_longrl.errors import ConfigError
from megatron_longrl.models.policy import find_policy

REQUIRED: dict[str, tuple[str, ...]] = {
    "sft": ("train_data_path",),
    "rl": ("train_data_path",),
    "evaluate": ("load", "data"),
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
    policy = find_policy(str(values.get("model_family")))
    empty: tuple[object, ...] = (None, "", [])
    required = REQUIRED[given.entry] if policy is None else policy.required
    missing = [name for name in required if values.get(name) in empty]
    problems = [f"{flag(name)} is missing" for name in missing]
    if values.get("video_frames_curriculum") and values.get("seq_length") in empty:
        problems.append("--seq-length is missing, which --video-frames-curriculum needs")
    if policy is None and not brings_a_model(given) and "load" not in missing:
        lacking = [name for name in FROM_CHECKPOINT if values.get(name) in empty]
        if len(lacking) == len(FROM_CHECKPOINT):
            problems.append(
                "no model: give --pretrained-checkpoint FOLDER, of a Hugging Face model or of a run"
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


def brings_a_model(given: Given) -> bool:
    """Whether the run starts from a checkpoint, which knows its model and tokenizer."""
    load, pretrained = given.values.get("load"), given.values.get("pretrained_checkpoint")
    if pretrained:
        return True
    return bool(load) and (not is_new(given) or given.entry == "evaluate")


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
        if name == "load" and is_new(given) and given.entry != "evaluate":
            continue
        if not (Path(folder) / "config.json").exists() and not _holds_a_run(Path(folder)):
            lines.append(
                f"{flag(name)} {folder} holds no checkpoint: neither config.json, as of Hugging "
                "Face, nor iter_… or release, as of Megatron"
            )
    return lines


def _holds_a_run(folder: Path) -> bool:
    """Complete or not: what is wrong with it is told where it is loaded."""
    patterns = ("iter_*", "release", "longrl_state.json", "latest_checkpointed_iteration.txt")
    return any(next(folder.glob(pattern), None) for pattern in patterns)

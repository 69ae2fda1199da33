"""Old names are refused with the new ones; a saved run's recipe is translated."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_longrl.cli.load import load_config
from megatron_longrl.config.renamed import NEW_METRICS, NEW_NAMES, NEW_VALUES, present
from megatron_longrl.config.schema import all_fields, known_fields
from megatron_longrl.errors import UserError
from megatron_longrl.observability.metric_catalogue import metric_of_step
from megatron_longrl.observability.metrics_file import read_metrics


@pytest.mark.parametrize(
    ("old", "line"),
    [
        ("weight_bucket_mb", "is called 'X' now"),
        ("mrsp_stages", "is called 'X' now, and of its values 0 is none, 1 is encode, 2 is full"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(recipe: Path, old: str, line: str) -> None:
    new = NEW_NAMES[old]
    flags = [f"--{name.replace('_', '-')}" for name in (old, new)]
    with pytest.raises(UserError) as error:
        load_config(["--config", str(recipe), flags[0], "2"], "rl")
    assert str(error.value) == f"flag '{flags[0]}' " + line.replace("X", flags[1])
    recipe.write_text(recipe.read_text() + f"{old}: 2\n")
    with pytest.raises(UserError) as error:
        load_config(["--config", str(recipe)], "rl")
    number = len(recipe.read_text().splitlines())
    assert str(error.value) == f"{recipe}:{number}: key '{old}' " + line.replace("X", new)


def test_an_old_value_is_refused_with_the_new_one(recipe: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config(["--config", str(recipe), "--mrsp-mode", "2"], "rl")
    told = "mrsp_mode = '2' (flag --mrsp-mode): this value is called full now"
    assert str(error.value) == told


def test_an_old_metric_is_refused_with_the_new_one(recipe: Path) -> None:
    with pytest.raises(UserError) as error:
        load_config(["--config", str(recipe), "--keep-best-checkpoint-by=-gap/mean"], "rl")
    now = "this value is called -rollout_corr/logprob_diff_mean now"
    told = "keep_best_checkpoint_by = '-gap/mean' (flag --keep-best-checkpoint-by): "
    assert str(error.value) == told + now


def test_old_metrics_are_read_as_the_present_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1, "gap/mean": 0.5, "correction/mean": "NaN", "lm loss": 2.0}\n')
    (step,) = read_metrics(path)
    assert set(step) == {
        "iteration",
        "rollout_corr/logprob_diff_mean",
        "rollout_corr/rollout_is_mean",
        "lm loss",
    }
    assert step["rollout_corr/logprob_diff_mean"] == 0.5


def test_new_metrics_are_in_the_catalogue_and_old_ones_are_not() -> None:
    assert all(metric_of_step(new) is not None for new in NEW_METRICS.values())
    assert all(metric_of_step(old) is None for old in NEW_METRICS)


def test_a_saved_recipe_is_translated() -> None:
    saved = {"mrsp_stages": "2", "weight_bucket_mb": 3.0, "loss_aggregation": "token", "gone": 1}
    now = {"mrsp_mode": "full", "weight_bucket_mib": 3.0, "loss_aggregation": "token-mean"}
    assert known_fields(saved) == now
    saved = {"keep_best_checkpoint_by": "-gap/mean"}
    assert known_fields(saved) == {"keep_best_checkpoint_by": "-rollout_corr/logprob_diff_mean"}
    now = {"mrsp_mode": "auto", "weight_bucket_mib": 4.0}
    assert present(now) == now


def test_new_names_are_names_and_old_ones_are_none() -> None:
    fields = all_fields()
    assert set(NEW_NAMES.values()) | set(NEW_VALUES) <= set(fields)
    assert not set(NEW_NAMES) & set(fields)

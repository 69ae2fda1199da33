"""The pages that are made of the code: they are what the code says, and the code says it all."""

from __future__ import annotations

import pytest

from megatron_longrl.cli.defaults import (
    FRAMES_PER_SECOND,
    LEARNING_RATE,
    MOST_FRAMES,
    PROMPTS_PER_STEP,
)
from megatron_longrl.config.flags import says_default
from megatron_longrl.config.schema import all_fields, all_sections
from tools.reference.__main__ import DOCS, PAGES, with_tables
from tools.reference.configuration import OF_PRESETS, default_of, value_of
from tools.reference.text import formatted, table


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name):
    page = (DOCS / name).read_text(encoding="utf-8")
    assert page == with_tables(page, PAGES[name]()), "python -m tools.reference writes it"


def test_only_the_tables_are_written(tmp_path):
    begin, end = "<!-- begin: python -m tools.reference -->", "<!-- end -->"
    page = f"above\n{begin}\nold\n{end}\nbelow\n"
    assert with_tables(page, "new") == f"above\n{begin}\nnew\n{end}\nbelow\n"


def test_every_field_has_its_line():
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for name in all_fields():
        assert page.count(f"\n| `{name}`<br>`--{name.replace('_', '-')}`") == 1, name


def test_what_is_filled_in_later_is_told():
    """A field that is derived from others, or set by the algorithm, says what holds without it."""
    derived = {
        name
        for section in all_sections()
        for name in map(section.flat_name, section.derived_fields())
    }
    for name in derived - set(OF_PRESETS):
        assert says_default(all_fields()[name]), name
    for name in OF_PRESETS:
        field = all_fields()[name]
        assert " ".join((field.description or "").split()).endswith(
            "by default the algorithm's."
        ), name
        assert default_of(name, field).startswith("algorithm (grpo: "), name


def test_defaults_of_programs_and_data_are_told_as_they_are():
    told = {name: " ".join((f.description or "").split()) for name, f in all_fields().items()}
    rates = {entry: f"{rate:g}".replace("e-0", "e-") for entry, rate in LEARNING_RATE.items()}
    assert f"by default {rates['sft']} for SFT and {rates['rl']} for RL" in told["lr"]
    assert f"by default {PROMPTS_PER_STEP}, or the next" in told["grpo_prompts_per_step"]
    frames = f"{MOST_FRAMES} at {FRAMES_PER_SECOND:g} frames per second"
    assert frames in told["video_frames"]
    assert f"where neither is given, {FRAMES_PER_SECOND:g}." in told["video_fps"]


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("num_layers", "layers, integer from 0", "checkpoint; else `0`"),
        ("image_mean", "3 numbers", "checkpoint; else `0.5 0.5 0.5`"),
        ("vision_s2_scales", "list of integers (pixels)", None),
        ("max_skipped", "number from 0 to 1", "`0.5`"),
        ("rollout_top_p", "number above 0 to 1", "`1`"),
        ("rollout_lag", "updates, integer from 0 to 1", "`0`"),
        ("eval_samples", "rows, integer from 1 or none", "all"),
        ("shared_prompt", "switch", "on"),
        ("grpo_clamp_eps_upper", "number from 0", "algorithm (grpo: `0.3`)"),
        ("load", "`FOLDER` or none", "a new run starts; evaluate cannot do without it"),
        ("keep_best_checkpoint_by", "`[-]METRIC` or none", "the newest only"),
        ("recompute_granularity", "one of `full`, `selective` or none", "none are"),
        ("reward_kwargs", "mapping, as a flag JSON", "none"),
        ("train_data_path", "list of paths", None),
    ],
)
def test_values_and_defaults(name, value, default):
    field = all_fields()[name]
    assert value_of(field) == value
    assert default is None or default_of(name, field) == default


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("give --lora-rank 4.", "give `--lora-rank` 4."),
        ("see docs/mrsp.md and `x_y`", "see [mrsp.md](mrsp.md) and `x_y`"),
        ("<think>…</think><answer>…</answer> in", "`<think>…</think><answer>…</answer>` in"),
        ("under megatron_longrl/models.", "under `megatron_longrl/models`."),
        ("2x2_fix and _3x3", "`2x2_fix` and `_3x3`"),
        ("{{ question }}", "`{{ question }}`"),
    ],
)
def test_markdown_of_a_text(text, markdown):
    assert formatted(text) == markdown


def test_a_table_escapes_what_would_end_a_cell():
    assert table(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n|---|---|\n| x\\|y | 1<br>2 |"

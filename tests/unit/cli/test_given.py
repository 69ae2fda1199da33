"""What is missing, and what a checkpoint or a run brings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_longrl import plugins
from megatron_longrl.cli.changes import changes_since
from megatron_longrl.cli.load import load_config
from megatron_longrl.config import Entry
from megatron_longrl.config.paths import absolute_paths
from megatron_longrl.errors import UserError
from tests.unit.fixtures.configs import MODEL, RUN

ROWS = 20


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A file of some rows."""
    path = tmp_path / "train.jsonl"
    path.write_text('{"problem": "?", "answer": "A"}\n\n' * ROWS)
    return str(path)


@pytest.fixture
def run(tmp_path: Path, make_config: Any, data: str) -> Path:
    """A run that has saved its fifth step, as far as the configuration looks into it."""
    tokenizer = tmp_path / "runs" / "sft" / "iter_0000005" / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "tokenizer.model").write_text("")
    folder = tokenizer.parent
    config = make_config(
        train_data_path=[data], save="elsewhere", load=None, seq_length=256, vocab_size=100
    )
    for name in (".metadata", "common.pt", "metadata.json"):
        (folder / name).write_text("")
    state = {
        "config": config.flat("json"),
        "derived": sorted(config.derived()),
        "files": {},
        "layout": {},
        "iteration": 5,
        "scheduler_steps": 5,
        "optimizers": [],
        "state": {"consumed_rows": 40},
    }
    (folder / "longrl_state.json").write_text(json.dumps(state))
    (folder.parent / "latest_checkpointed_iteration.txt").write_text("5")
    return folder.parent


@pytest.mark.parametrize(
    ("entry", "flags", "line"),
    [
        ("sft", [], r"--train-data-path is missing; no model: give --pretrained-checkpoint"),
        ("rl", ["--num-layers", "3"], r"--train-data-path is missing; hidden_size, .* not set"),
        ("evaluate", [], r"^--load is missing; --data is missing$"),
        (
            "sft",
            ["--train-data-path", "none.jsonl", "--pretrained-checkpoint", "qwen25vv"],
            r"^--pretrained-checkpoint qwen25vv: no such folder; "
            r"--train-data-path none.jsonl: no such file or folder$",
        ),
        (
            "rl",
            ["--pretrained-checkpoint", "Qwen/Qwen2.5-VL-3B-Instruct"],
            r"hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir Qwen2.5-VL-3B-Instruct$",
        ),
        ("evaluate", ["--load", "a", "--data", "https://x/y.jsonl"], "addresses are not read"),
    ],
)
def test_all_that_is_missing_is_one_line(
    entry: Any, flags: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line) as error:
        load_config(flags, entry, files=True)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_checkpoint(data: str, tmp_path: Path) -> None:
    flags = ["--train-data-path", data, "--pretrained-checkpoint", str(tmp_path)]
    with pytest.raises(UserError, match="holds no checkpoint: neither"):
        load_config(flags, "sft", files=True)


def test_a_run_that_may_start_anew_needs_no_folder(recipe: Path, data: str, tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    flags = ["--config", str(recipe), "--train-data-path", data, "--tokenizer-model", data]
    assert (
        load_config([*flags, "--load", new, "--save", new], "rl", files=True).checkpoint.load == new
    )
    with pytest.raises(UserError, match=r"--load .*new: no such folder"):
        load_config([*flags, "--load", new], "rl", files=True)


def test_what_is_missing_is_told_before_torch_is_imported() -> None:
    program = (
        "import sys\n"
        "from megatron_longrl.cli.load import load_config\n"
        "from megatron_longrl.errors import UserError\n"
        "try:\n"
        "    load_config(['--pretrained-checkpoint', 'none'], 'sft', files=True)\n"
        "except UserError:\n"
        "    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# ---- A run brings its model, or all of its recipe ----


def test_a_run_brings_model_and_tokenizer_to_the_next_stage(run: Path, data: str) -> None:
    flags = ["--pretrained-checkpoint", str(run), "--train-data-path", data]
    config = load_config(flags, "rl", files=True)
    assert (config.model.num_layers, config.value("vision_patch_size")) == (4, 12)
    assert config.data.tokenizer_model == str(
        run / "iter_0000005" / "tokenizer" / "tokenizer.model"
    )
    assert config.data.tokenizer_type == "SentencePieceTokenizer"
    assert config.training.lr == 1e-6, "no field of its recipe"


def test_load_alone_goes_on_with_the_recipe(run: Path) -> None:
    config = load_config(["--load", str(run)], "sft", files=True)
    assert (config.training.lr, config.training.train_iters, config.training.seq_length) == (
        1e-4,
        20,
        256,
    )
    assert config.checkpoint.save == str(run), "where it is now"
    assert changes_since(config) == []


REACHING = {
    "plugin": ["evil_plugin"],
    "reward_function": ["evil.py:f"],
    "judge_url": "http://127.0.0.1:9/v1",
    "rollout_server_address": ["127.0.0.1:9"],
    "tensorboard_dir": "/elsewhere/tb",
    "embedding_cache_dir": "/elsewhere/cache",
}


def rewrite(run: Path, **fields: Any) -> None:
    """As its owner, or a stranger, has changed the recipe of a run."""
    path = run / "iter_0000005" / "longrl_state.json"
    state = json.loads(path.read_text())
    state["config"] |= fields
    path.write_text(json.dumps(state))


@pytest.mark.parametrize("save", ["elsewhere", "runs/sft", None, "/before"])
@pytest.mark.parametrize("name", REACHING)
@pytest.mark.parametrize("entry", ["sft", "rl", "evaluate"])
def test_a_run_from_elsewhere_reaches_nothing(
    run: Path, name: str, save: str | None, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has made the recipe; a relative folder is that of any working directory."""
    monkeypatch.chdir(run.parent.parent)
    rewrite(run, save=save, **{name: REACHING[name]})
    with pytest.raises(UserError, match=rf"was saved elsewhere.*--{name.replace('_', '-')} "):
        load_config(["--load", str(run)], entry)


def test_a_run_where_it_was_saved_goes_on_with_its_own(run: Path) -> None:
    rewrite(run, save=str(run), reward_function=["mine.py:f"], tensorboard_dir=str(run / "tb"))
    config = load_config(["--load", str(run)], "sft")
    assert config.reward.reward_function == ["mine.py:f"]
    assert config.logging.tensorboard_dir == str(run / "tb")


def test_folders_within_a_run_that_was_moved_move_with_it(run: Path) -> None:
    rewrite(run, save="/before", tensorboard_dir="/before/tb")
    assert load_config(["--load", str(run)], "sft").logging.tensorboard_dir == str(run / "tb")


def test_what_is_given_again_is_taken(run: Path) -> None:
    rewrite(run, save="/before", reward_function=["evil.py:f"])
    given = ["--load", str(run), "--reward-function", "mine.py:f"]
    assert load_config(given, "sft").reward.reward_function == ["mine.py:f"]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the working folder."""
    monkeypatch.setattr(plugins, "_imported", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "longrl_plugin", raising=False)
    (tmp_path / "longrl_plugin.py").write_text("")
    return "longrl_plugin"


def test_the_plugin_of_a_run_from_elsewhere_is_not_imported(run: Path, plugin: str) -> None:
    rewrite(run, save="/before", plugin=[plugin])
    with pytest.raises(UserError, match="was saved elsewhere"):
        load_config(["--load", str(run)], "sft")
    assert plugin not in sys.modules
    assert load_config(["--load", str(run), "--plugin", plugin], "sft").plugins.plugin == [plugin]
    assert plugin in sys.modules


def test_a_run_where_it_was_saved_imports_its_plugin(run: Path, plugin: str) -> None:
    rewrite(run, save=str(run), plugin=[plugin])
    assert load_config(["--load", str(run)], "sft").plugins.plugin == [plugin]
    assert plugin in sys.modules


def test_plugins_are_imported_before_anything_is_checked(recipe: Path, plugin: str) -> None:
    """Those of the last recipe that names some, and of the bases of a recipe; flags count more."""
    own = recipe.with_name("own.yaml")
    own.write_text(f"plugin: {plugin}\n")
    above = recipe.with_name("above.yaml")
    above.write_text(f"base: [{recipe.name}, own.yaml]\n")
    with pytest.raises(UserError, match="unknown flag '--no-such'"):
        load_config(["--config", str(above), "--no-such", "1"], "sft")
    assert plugin in sys.modules
    flags = ["--config", str(above), "--plugin", "json", "--plugin", "math"]
    assert load_config(flags, "sft").plugins.plugin == ["json", "math"]
    with pytest.raises(UserError, match="--plugin nowhere cannot be imported"):
        load_config(["--config", str(own), "--plugin", "nowhere"], "sft")


def test_changes_to_a_run_are_told(run: Path) -> None:
    config = load_config(["--load", str(run), "--train-iters", "30", "--lr=2e-4"], "sft")
    assert changes_since(config) == ["train_iters: 20 -> 30", "lr: 0.0001 -> 0.0002"]
    assert config.training.lr_decay_iters == 30, "derived values follow"


def test_a_recipe_beside_load_rules_alone(run: Path, recipe: Path) -> None:
    config = load_config(["--load", str(run), "--config", str(recipe)], "sft")
    assert config.training.seq_length == MODEL["seq_length"]


def test_another_model_in_the_recipe_is_refused(run: Path, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("num_layers: 4", "num_layers: 28"))
    with pytest.raises(UserError, match=r"num_layers = 28 \(.*recipe[.]yaml:\d+\), but the"):
        load_config(["--config", str(recipe), "--pretrained-checkpoint", str(run)], "rl")


# ---- Defaults ----


def test_defaults_of_an_entry_point(run: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--pretrained-checkpoint", str(run), "--train-data-path", data]
    sft = load_config(flags, "sft")
    assert (sft.training.lr, sft.training.train_iters) == (1e-5, ROWS)
    assert (sft.data.video_fps, sft.data.video_frames) == (2.0, 64)
    assert (
        sft.training.seq_length_from_data
        and sft.training.seq_length == sft.model.max_position_embeddings
    )
    rl = load_config(flags, "rl")
    assert (rl.training.lr, rl.rl.grpo_prompts_per_step, rl.training.train_iters) == (1e-6, 8, 3)
    assert load_config([*flags, "--train-epochs", "4"], "rl").training.train_iters == 10
    monkeypatch.setenv("WORLD_SIZE", "6")
    rl = load_config([*flags, "--context-parallel-size", "2"], "rl")
    assert rl.rl.grpo_prompts_per_step == 9, "of three replicas"


def test_responses_leave_room_for_prompts(recipe: Path, run: Path, data: str) -> None:
    """Where nobody says how long they may be; also those of a model with few positions."""
    flags = ["--pretrained-checkpoint", str(run), "--train-data-path", data]
    assert load_config(flags, "rl").rollout.max_tokens == 1024
    assert load_config([*flags, "--seq-length", "1536"], "rl").rollout.max_tokens == 768
    assert load_config([*flags, "--seq-length", "1536"], "sft").rollout.max_tokens == 1024
    short = [*flags, "--max-position-embeddings", "500"]
    assert load_config(short, "rl").rollout.max_tokens == 250
    assert load_config(short, "sft").rollout.max_tokens == 250, "for the evaluation of its run"
    line = r"rollout_max_tokens \(600\) leaves no room .* in max_position_embeddings \(500\): lower"
    with pytest.raises(UserError, match=line):
        load_config([*short, "--rollout-max-tokens", "600"], "rl")
    with pytest.raises(UserError, match=r"in seq_length \(200\): lower .* or raise --seq-length$"):
        load_config([*flags, "--seq-length", "200", "--rollout-max-tokens", "200"], "rl")


def test_frames_leave_room_for_the_rest(recipe: Path, run: Path, data: str) -> None:
    """VILA's frames have five tokens each here."""
    flags = ["--pretrained-checkpoint", str(run), "--train-data-path", data]
    short = [*flags, "--max-position-embeddings", "200"]
    for entry in ("sft", "rl"):
        config = load_config(short, entry)
        assert config.data.video_frames == 15, "15 x 5 tokens, three quarters of 100"
        assert load_config(flags, entry).data.video_frames == 64
    with pytest.raises(UserError, match=r"video_frames \(64\) x 5 tokens"):
        load_config([*short, "--video-frames", "64"], "rl")


def test_evaluation_does_not_keep_to_the_length_of_training_rows(run: Path, data: str) -> None:
    flags = ["--load", str(run), "--data", data]
    config = load_config(flags, "evaluate")
    assert (
        config.training.seq_length_from_data
        and config.training.seq_length == config.model.max_position_embeddings
    )
    assert load_config([*flags, "--seq-length", "300"], "evaluate").training.seq_length == 300


def test_a_run_whose_rows_were_as_long_as_needed_goes_on_so(run: Path) -> None:
    """The videos may be much shorter than --video-frames allows."""
    state = next(run.glob("*/longrl_state.json"))
    saved = json.loads(state.read_text())
    saved["config"] |= {"seq_length_from_data": True, "video_frames": 64, "video_fps": 2.0}
    state.write_text(json.dumps(saved))
    config = load_config(["--load", str(run)], "sft")
    assert (
        config.training.seq_length_from_data
        and config.training.seq_length == config.model.max_position_embeddings
    )
    assert changes_since(config) == []
    config = load_config(["--load", str(run), "--seq-length", "400"], "sft")
    assert not config.training.seq_length_from_data and config.training.seq_length == 400


def test_one_bound_of_frames_leaves_the_other_alone(run: Path, data: str) -> None:
    flags = ["--pretrained-checkpoint", str(run), "--train-data-path", data]
    config = load_config([*flags, "--video-frames", "8"], "sft")
    assert (config.data.video_fps, config.data.video_frames) == (None, 8)
    config = load_config([*flags, "--video-fps", "1"], "sft")
    assert (config.data.video_fps, config.data.video_frames) == (1.0, None)


@pytest.mark.parametrize(
    ("context", "flags", "tokens"),
    [
        (32768, (), 1024),
        (2048, (), 1024),
        (512, (), 256),
        (512, ("--rollout-max-tokens", "300"), 300),
    ],
)
def test_responses_leave_room_for_a_prompt(
    context: int, flags: tuple[str, ...], tokens: int, run: Path, data: str
) -> None:
    """Of a model that reads fewer tokens than two responses of the usual length."""
    state = run / "iter_0000005" / "longrl_state.json"
    saved = json.loads(state.read_text())
    saved["config"] |= {"max_position_embeddings": context, "seq_length": context}
    state.write_text(json.dumps(saved))
    start = ["--pretrained-checkpoint", str(run), "--train-data-path", data]
    start += ["--video-frames", "4"]
    assert load_config([*start, *flags], "rl").rollout.max_tokens == tokens


def test_paths_are_kept_absolute() -> None:
    kept = absolute_paths({**RUN, "save": None, "tokenizer_model": ""})
    assert kept["train_data_path"] == [str(Path("train.jsonl").resolve())]
    assert kept["load"] == str(Path("runs/sft").resolve())
    assert (kept["save"], kept["tokenizer_model"], kept["lr"]) == (None, "", 1e-4)


def test_files_of_templates_and_rewards_mean_the_same_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    given = {
        "chat_template": "mine.jinja",
        "prompt_template": "think-answer",
        "reward_function": ["a/mine.py:brevity=0.2", "/b.py:f"],
        "judge_prompt": "judge.txt",
        "judge_cache": None,
    }
    assert absolute_paths(given) == {
        "chat_template": f"{tmp_path}/mine.jinja",
        "prompt_template": "think-answer",
        "reward_function": [f"{tmp_path}/a/mine.py:brevity=0.2", "/b.py:f"],
        "judge_prompt": f"{tmp_path}/judge.txt",
        "judge_cache": None,
    }

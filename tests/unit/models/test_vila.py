"""The parts of VILA that are ours alone; tests/parity holds the whole to Hugging Face's modules."""

from __future__ import annotations

import pytest
import torch

from megatron_longrl.conversion.initialize import draw
from megatron_longrl.models.vila.config import VilaSection
from megatron_longrl.models.vila.projector import Downsample
from tests.unit.made_up_config import make_config


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7])
def test_downsampling_puts_four_neighbours_side_by_side(grid):
    features = torch.randn(2, grid * grid, 5, generator=torch.Generator().manual_seed(0))

    def patch(frame: int, row: int, column: int) -> torch.Tensor:
        inside = row < grid and column < grid
        return features[frame, row * grid + column] if inside else torch.zeros(5)

    result = Downsample(2, by_columns=True)(features)
    config = make_config(vision_image_size=7 * grid, vision_patch_size=7)
    assert result.shape == (2, config.family.tokens_per_frame, 20)
    for frame in range(2):
        cells = iter(result[frame])
        for column in range(0, grid, 2):
            for row in range(0, grid, 2):
                corners = [(row, column), (row, column + 1), (row + 1, column)]
                corners.append((row + 1, column + 1))
                expected = torch.cat([patch(frame, *corner) for corner in corners])
                assert torch.equal(next(cells), expected)


@pytest.mark.parametrize(("selected", "run"), [(-2, 26), (-1, 27), (-28, 0), (5, 5), (27, 27)])
def test_the_tower_runs_up_to_the_selected_hidden_state(selected, run):
    config = make_config(vision_num_layers=27, vision_feature_layer=selected)
    assert config.family_as(VilaSection).layers_to_run == run


NAME = "llm/model.layers.0.mlp.up_proj.weight"


def test_a_drawn_weight_depends_on_its_name_and_the_seed_only():
    shape = torch.Size([200, 50])
    torch.manual_seed(1)
    first = draw(NAME, shape, seed=7, std=0.02)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(draw(NAME, shape, seed=7, std=0.02), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.testing.assert_close(draw(NAME, shape, seed=7, std=0.04), 2 * first)
    for name, seed in ((NAME.replace("0", "1"), 7), (NAME, 8)):
        other = draw(name, shape, seed=seed, std=0.02)
        correlation = torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 0.05
    assert first.std() == pytest.approx(0.02, rel=0.05)
    assert abs(first.mean()) < 0.001


def test_biases_start_at_zero_and_norms_at_one():
    assert torch.equal(draw("vision_tower/x.bias", torch.Size([3]), 7, 0.02), torch.zeros(3))
    assert torch.equal(draw("llm/model.norm.weight", torch.Size([3]), 7, 0.02), torch.ones(3))

"""The settings of a run: the values of the algorithm where the fields of the family have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_longrl.algorithms.flow.densities import Reduction
from megatron_longrl.algorithms.flow.schedules import flow_match_euler_sigmas, linear_sigmas
from megatron_longrl.algorithms.flow.windows import moving_window
from megatron_longrl.config.presets import ALGORITHMS, FlowPreset
from megatron_longrl.models.flow.section import FlowSection

if TYPE_CHECKING:
    from megatron_longrl.config.algorithm import AlgorithmSection

_SCHEDULES = {"flow_match_euler": flow_match_euler_sigmas, "linear": linear_sigmas}


@dataclass(frozen=True)
class FlowSettings:
    """The settings of sampling and of the loss."""

    section: FlowSection
    preset: FlowPreset

    @classmethod
    def of(cls, section: FlowSection, algorithm: AlgorithmSection) -> FlowSettings:
        """The settings of a configuration."""
        preset = ALGORITHMS.find(algorithm.rl_algorithm).flow
        assert preset is not None, "the rules have refused algorithms of language models"
        return cls(section, preset)

    @property
    def sampler(self) -> str:
        """The kind of stochastic steps."""
        return self.section.flow_sampler or self.preset.sampler

    @property
    def noise_level(self) -> float:
        """The noise of stochastic steps."""
        given = self.section.noise_level
        return self.preset.noise_level if given is None else given

    @property
    def reduction(self) -> Reduction:
        """The reduction of log-densities over the elements of a sample."""
        return self.section.logprob_reduction

    @property
    def shared_first_noise(self) -> bool:
        """Whether all samples of a prompt begin with the same noise."""
        given = self.section.shared_first_noise
        return self.preset.shared_first_noise if given is None else given

    @property
    def trained_fraction(self) -> float:
        """The part of a sample's stochastic steps that is trained."""
        given = self.section.trained_steps_fraction
        return self.preset.trained_fraction if given is None else given

    def stochastic_steps(self, iteration: int) -> range:
        """The stochastic steps of sampling, never the last one, whose noise would stay."""
        if self.preset.contrast:
            return range(0)
        steps = self.section.sampling_steps - 1
        given = self.section.stochastic_window
        window = self.preset.window if given is None else given
        if not window:
            return range(steps)
        section = self.section
        return moving_window(
            iteration, steps, min(window, steps), section.window_stride, section.window_interval
        )

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """The noise levels of sampling in ``steps`` steps."""
        return _SCHEDULES[self.section.noise_schedule](steps, self.section.schedule_shift)

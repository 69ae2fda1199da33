"""Fields of the parallel layout."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from megatron_longrl.config.section import KnownTo, PositiveFloat, PositiveInt, Section, Unit


class ParallelSection(Section):
    """parallel: how the ranks share a model and its videos

    A model replica takes the product of the first three sizes; as many replicas as the ranks make
    share the data. docs/mrsp.md compares the layouts.
    """

    tensor_model_parallel_size: Annotated[PositiveInt, Unit("ranks")] = 1
    """Ranks over which every layer of the language model is split."""

    pipeline_model_parallel_size: Annotated[PositiveInt, Unit("ranks")] = 1
    """Ranks over which the layers of the language model are distributed."""

    context_parallel_size: Annotated[PositiveInt, Unit("ranks")] = Field(
        default=1,
        validation_alias=AliasChoices("context_parallel_size", "multimodal_sequence_parallel_size"),
    )
    """Ranks over which sequences are split in MR-SP's second stage (prefill and training)."""

    mrsp_mode: Literal["auto", "none", "encode", "full"] = "auto"
    """Work that MR-SP ranks share. none: no work, each rank takes whole videos and whole sequences.
    encode: the frames of a video. full: the frames, and the tokens of every sequence. auto: videos
    are split where that balances the work, and a cost model chooses the number of ranks that share
    a sequence, from one to all; no rank then holds more tokens than its part of a sequence of
    --seq-length tokens."""

    mrsp_hardware_profile: Annotated[Literal["nominal", "measured"], KnownTo("sft", "rl")] = (
        "nominal"
    )
    """Hardware profile of the cost model of --mrsp-mode auto: nominal uses fixed figures, so that
    runs repeat bit for bit; measured uses those of this machine, which are measured at the start
    and kept in checkpoints."""

    cp_comm_type: Literal["all_gather", "a2a", "p2p"] = "all_gather"
    """Exchange of keys and values between the ranks that share a sequence. all_gather collects all
    of them on every rank; a2a exchanges sequence for heads (Ulysses; the number of ranks must
    divide the number of heads); p2p passes them around a ring (least memory)."""

    vision_tensor_parallel: bool = False
    """Split the layers of the vision tower over the tensor-parallel ranks as well, which then
    encode the same frames. Without it each rank has a whole tower and its own frames."""

    sequence_parallel: bool = False
    """Split norms and dropouts over the sequence between tensor-parallel ranks."""

    use_distributed_optimizer: Annotated[bool, KnownTo("sft", "rl")] = True
    """Shard the optimizer state over the data-parallel ranks."""

    distributed_backend: Literal["gloo", "nccl"] | None = None
    """torch.distributed backend; by default nccl on CUDA and gloo on CPU."""

    distributed_timeout_minutes: Annotated[PositiveFloat, Unit("minutes")] = 10.0
    """A collective that waits longer than this ends the run with an error."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks of one model replica: tensor x context x pipeline."""
        return (
            self.tensor_model_parallel_size
            * self.context_parallel_size
            * self.pipeline_model_parallel_size
        )

    def data_parallel_size(self, world_size: int) -> int:
        """Number of model replicas on ``world_size`` ranks."""
        return world_size // self.model_parallel_size

    @property
    def sequence_multiple(self) -> int:
        """The number of tokens to a multiple of which sequences are padded, so that every rank gets
        equal zigzag chunks."""
        tensor = self.tensor_model_parallel_size if self.sequence_parallel else 1
        context = self.context_parallel_size
        return tensor if context == 1 else 2 * context * tensor

    def cp_degrees(self, num_query_groups: int) -> list[int]:
        """Return the numbers of MR-SP ranks that may share a sequence, increasing.

        Args:
            num_query_groups: the number of query groups of the language model.
        """
        ranks = self.context_parallel_size
        degrees = [d for d in range(1, ranks + 1) if ranks % d == 0]
        if self.cp_comm_type != "a2a":
            return degrees
        groups = max(1, num_query_groups // self.tensor_model_parallel_size)
        return [d for d in degrees if groups % d == 0 or d % groups == 0]

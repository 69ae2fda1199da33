"""Fields of the parallel layout."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from megatron_longrl.config.section import PositiveFloat, PositiveInt, Section


def _as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


class ParallelSection(Section):
    """parallel: how the ranks are used; what is left over is data parallel"""

    tensor_model_parallel_size: PositiveInt = 1
    """Ranks over which every layer of the language model is split."""

    pipeline_model_parallel_size: PositiveInt = 1
    """Ranks over which the layers of the language model are distributed."""

    context_parallel_size: PositiveInt = Field(
        default=1,
        validation_alias=AliasChoices("context_parallel_size", "multimodal_sequence_parallel_size"),
    )
    """Ranks over which sequences are split in MR-SP's second stage (prefill and training)."""

    mrsp_stages: Annotated[Literal["auto", "0", "1", "2"], BeforeValidator(_as_text)] = "auto"
    """What MR-SP ranks share. 0: nothing, each takes whole videos and whole rows. 1: the frames of
    a video. 2: frames, and the tokens of every row. auto: as many
    ranks share a row as a cost model finds fastest, from one to all; a rank never holds more tokens
    of a row than it would of one of --seq-length in shards."""

    mrsp_machine: Literal["nominal", "measured"] = "nominal"
    """What the cost model reckons with: fixed figures, so that runs repeat bit for bit, or those of
    this machine, measured at the start and kept in checkpoints."""

    cp_comm_type: Literal["all_gather", "a2a", "p2p"] = "all_gather"
    """How the ranks that share a sequence exchange keys and values: gather all of them, exchange
    sequence for heads (Ulysses; heads must divide), or pass them around a ring (least memory)."""

    vision_tensor_parallel: bool = False
    """Split the vision tower's layers over the tensor-parallel ranks, too, which then encode the
    same frames. Else each rank has a whole tower and frames of its own."""

    sequence_parallel: bool = False
    """Split norms and dropouts over the sequence between tensor-parallel ranks."""

    use_distributed_optimizer: bool = True
    """Shard the optimizer state over the data-parallel ranks."""

    distributed_backend: Literal["gloo", "nccl"] | None = None
    """torch.distributed backend; by default nccl on CUDA and gloo on CPU."""

    distributed_timeout_minutes: PositiveFloat = 10.0
    """A collective that waits longer than this ends the run with an error."""

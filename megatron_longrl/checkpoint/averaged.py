"""The averages of a checkpoint in the place of the weights that they are averages of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch.distributed.checkpoint.metadata import Metadata

from megatron_longrl.errors import UserError

AVERAGE = "_average"
"""End of the name of the part of a checkpoint that holds the averages of another part."""


def averaged(metadata: Metadata, folder: str | Path) -> Metadata:
    """The list of tensors of a checkpoint, in which weights lead to their averages.

    Args:
        metadata: the list, which has been checked. folder: the folder of the checkpoint, for the
        message.

    Raises:
        UserError: the checkpoint has no averages.
    """
    names = {
        key: f"{part.removesuffix(AVERAGE)}.{rest}"
        for key in metadata.state_dict_metadata
        for part, _, rest in [key.partition(".")]
        if part.endswith(AVERAGE)
    }
    if not names:
        raise UserError(
            f"{folder} has no averages of weights, because the run was without --ema-decay: leave "
            "--use-ema out"
        )
    hidden = set(names.values())
    entries = {
        names.get(key, key): entry
        for key, entry in metadata.state_dict_metadata.items()
        if key not in hidden
    }
    places = {
        replace(index, fqn=names.get(index.fqn, index.fqn)): place
        for index, place in (metadata.storage_data or {}).items()
        if index.fqn not in hidden
    }
    return replace(metadata, state_dict_metadata=entries, storage_data=places)

"""Embeddings of the videos of some prompts: from memory or disk if they are there, else from
stage 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_longrl.data.prompts import Prompt
from megatron_longrl.media.embedding_store import EmbeddingStore
from megatron_longrl.media.encoder import EncodedVideos, FrameEncoder
from megatron_longrl.media.modalities.video.spec import VideoSpec
from megatron_longrl.training.model import TrainedModel


@dataclass
class Media:
    """What the prompts of a step need, the same on every rank of the replica."""

    embeddings: dict[str, Tensor]
    """Video key -> [tokens, h]."""
    failed: dict[str, str]
    """Video key -> why it could not be read."""
    encoded: EncodedVideos | None
    """This step's encoding with its pixels, where the encoder is trained."""
    frames_decoded: int = 0
    """By this rank."""
    frames_encoded: int = 0
    """By this rank."""
    from_memory: int = 0
    """Videos whose embeddings the replica had in memory."""
    from_disk: int = 0
    """Videos whose embeddings it had on disk only."""

    def count_work_of(self, more: Media) -> None:
        """Add what it took to make the embeddings of others."""
        self.frames_decoded += more.frames_decoded
        self.frames_encoded += more.frames_encoded
        self.from_disk += more.from_disk


class MediaProvider:
    """Encodes each video once per version of the encoder.

    Args:
        store: keeps embeddings over steps. Those with which a trained encoder is about to be
            trained are not put there: the step's update makes them stale.
        version: of the encoder's present weights, part of what embeddings are kept by; collective
            over the replica.
    """

    def __init__(
        self,
        frames: FrameEncoder,
        store: EmbeddingStore,
        model: TrainedModel,
        version: Callable[[], str],
    ) -> None:
        self._frames = frames
        self._store = store
        self._model = model
        self._version = version

    def provide(self, prompts: Sequence[Prompt], *, for_training: bool) -> Media:
        """Embeddings of all videos of ``prompts``; collective over the replica.

        Args:
            for_training: a trained encoder keeps its frames for the backward pass.
        """
        specs = {spec.key(): spec for prompt in prompts for spec in prompt.videos}
        if for_training and self._model.encoder_is_trained:
            encoded = self._frames.encode(list(specs.values()), for_backward=True)
            return Media(
                encoded.embeddings,
                encoded.failed,
                encoded,
                encoded.frames_decoded,
                encoded.frames_encoded,
            )
        if not specs:
            return Media({}, {}, None)
        return self._from_store(specs)

    def bring(self, prompts: Sequence[Prompt]) -> Media:
        """Put into the store what :meth:`provide` will be asked for, where all of it fits;
        collective over the replica. The encoder must not be a trained one."""
        specs = {spec.key(): spec for prompt in prompts for spec in prompt.videos}
        tokens = sum(spec.num_tokens for spec in specs.values())
        if not specs or not self._store.has_room_for((tokens, self._frames.width)):
            return Media({}, {}, None)
        return self._from_store(specs)

    def _from_store(self, specs: Mapping[str, VideoSpec]) -> Media:
        version = self._version()
        self._store.drop_other_versions(version)
        found = {key: self._store.get((key, version)) for key in specs}
        embeddings = {key: tensor for key, tensor in found.items() if tensor is not None}
        media = Media(embeddings, {}, None, from_memory=len(embeddings))
        width = self._frames.width
        loaded = self._store.load(
            {
                (key, version): torch.Size((spec.num_tokens, width))
                for key, spec in specs.items()
                if key not in embeddings
            }
        )
        media.from_disk = len(loaded)
        embeddings.update({key: tensor for (key, _), tensor in loaded.items()})
        missing = [spec for key, spec in specs.items() if key not in embeddings]
        if not missing:
            return media
        encoded = self._frames.encode(missing)
        kept = self._store.put(
            {(key, version): tensor.cpu() for key, tensor in encoded.embeddings.items()}
        )
        embeddings.update({key: tensor for (key, _), tensor in kept.items()})
        media.failed = encoded.failed
        media.frames_decoded = encoded.frames_decoded
        media.frames_encoded = encoded.frames_encoded
        return media

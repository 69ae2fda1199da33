"""Embeddings of the media of some prompts: from memory or disk if they are there, else from
stage 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_longrl.media.embedding_store import EmbeddingStore
from megatron_longrl.media.encoder import EncodedMedia, MediaEncoder
from megatron_longrl.media.spec import MediaSpec


@dataclass
class Media:
    """The media that the prompts of a step need, the same on every rank of the replica."""

    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """Key of a medium -> [tokens, w]."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key of a medium -> why it could not be read."""
    encoded: EncodedMedia | None = None
    """Units that the backward pass encodes again, where an encoder is trained."""
    counts: Counter[str] = field(default_factory=Counter)
    """Numbers of loaded and encoded items on this rank, by
    :attr:`~megatron_longrl.media.spec.MediaSpec.counted_as`."""
    from_memory: int = 0
    """Media whose embeddings the replica had in memory."""
    from_disk: int = 0
    """Media whose embeddings it had on disk only."""

    def count_work_of(self, more: Media) -> None:
        """Add the work that it took to make the embeddings of others."""
        self.counts += more.counts
        self.from_disk += more.from_disk


class MediaProvider:
    """Encodes each medium once per version of its encoder.

    Args:
        store: keeps embeddings over steps. Those with which a trained encoder is about to be
            trained are not put there: the step's update makes them stale.
        version: name of an encoder -> version of its present weights, part of what embeddings are
            kept by; collective over the replica.
        trained: the names of the encoders that the run trains.
        outlives_run: the names of the encoders whose embeddings the store's disk keeps.
    """

    def __init__(
        self,
        encoder: MediaEncoder,
        store: EmbeddingStore,
        version: Callable[[str], str],
        *,
        trained: Collection[str] = (),
        outlives_run: Collection[str] = (),
    ) -> None:
        self.encoder = encoder
        self._store = store
        self._version = version
        self._trained = set(trained)
        self._outlives_run = set(outlives_run)

    def provide(self, specs: Iterable[MediaSpec], *, for_training: bool) -> Media:
        """The embeddings of media, each of which may be named more than once; collective over the
        replica.

        Args:
            for_training: a trained encoder keeps its units for the backward pass.
        """
        distinct = {spec.key(): spec for spec in specs}
        names = {key: self.encoder.name_for(spec) for key, spec in distinct.items()}
        trained = self._trained if for_training else set()
        kept = {key: spec for key, spec in distinct.items() if names[key] not in trained}
        media = self._from_store(kept) if kept else Media()
        if trained:
            fresh = [spec for key, spec in distinct.items() if key not in kept]
            encoded = self.encoder.encode(fresh, for_backward=True)
            media.encoded = encoded
            media.embeddings |= encoded.embeddings
            media.failed |= encoded.failed
            media.counts += encoded.counts
        return media

    def prefetch(self, specs: Iterable[MediaSpec]) -> Media:
        """Put into the store what :meth:`provide` will be asked for, where all of it fits;
        collective over the replica. The encoders must not be trained ones."""
        distinct = {spec.key(): spec for spec in specs}
        shapes = [self._shape(spec) for spec in distinct.values()]
        if not distinct or not self._store.has_room_for(shapes):
            return Media()
        return self._from_store(distinct)

    def load_ahead(self, specs: Iterable[MediaSpec], *, for_training: bool) -> None:
        """Begin to load the units that :meth:`provide` will encode; collective over the replica,
        for the versions of encoders."""
        distinct = {spec.key(): spec for spec in specs}
        names = {key: self.encoder.name_for(spec) for key, spec in distinct.items()}
        # What a trained encoder has encoded is stale after the update that comes before.
        versions = {name: self._version(name) for name in set(names.values()) - self._trained}
        missing: list[MediaSpec] = []
        fresh: list[MediaSpec] = []
        for key, spec in distinct.items():
            name = names[key]
            if name in self._trained:
                (fresh if for_training else missing).append(spec)
            elif not self._store.has((key, versions[name])):
                missing.append(spec)
        self.encoder.load_ahead([missing, fresh])

    def _shape(self, spec: MediaSpec) -> torch.Size:
        return torch.Size((spec.num_tokens, self.encoder.encoder_for(spec).width))

    def _from_store(self, specs: Mapping[str, MediaSpec]) -> Media:
        names = {key: self.encoder.name_for(spec) for key, spec in specs.items()}
        # The store goes on to keep what every encoder makes, not only those that are asked now.
        versions = {name: self._version(name) for name in self.encoder.encoders}
        self._store.drop_other_versions(versions.values())
        found = {key: self._store.get((key, versions[names[key]])) for key in specs}
        embeddings = {key: tensor for key, tensor in found.items() if tensor is not None}
        media = Media(embeddings, from_memory=len(embeddings))
        loaded = self._store.load(
            {
                (key, versions[names[key]]): self._shape(spec)
                for key, spec in specs.items()
                if key not in embeddings and names[key] in self._outlives_run
            }
        )
        media.from_disk = len(loaded)
        embeddings.update({key: tensor for (key, _), tensor in loaded.items()})
        missing = [spec for key, spec in specs.items() if key not in embeddings]
        if not missing:
            return media
        encoded = self.encoder.encode(missing)
        kept = self._store.put(
            {
                (key, versions[names[key]]): tensor.cpu()
                for key, tensor in encoded.embeddings.items()
            },
            outlive_run={key for key, name in names.items() if name in self._outlives_run},
        )
        embeddings.update({key: tensor for (key, _), tensor in kept.items()})
        media.failed = encoded.failed
        media.counts = encoded.counts
        return media

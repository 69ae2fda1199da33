"""Metrics of frames, embeddings and memory."""

from __future__ import annotations

from megatron_longrl.observability.metric_catalogue.metric import BOTH, Metric, MetricGroup

GROUP = MetricGroup(
    "Media and memory",
    "What it took to bring the embeddings of the step's media. An image counts as a frame.",
    (
        Metric(
            "frames_decoded",
            "frames that were read from files and decoded",
            "sum over ranks",
            "frames",
            "0 and up",
            healthy="0 from the second epoch on with a frozen encoder whose embeddings fit into "
            "`--embedding-store-gib` or `--embedding-cache-dir`",
            programs=BOTH,
        ),
        Metric(
            "frames_encoded",
            "frames that went through the vision tower, without those of the backward pass",
            "sum over ranks",
            "frames",
            "0 and up",
            healthy="as `frames_decoded`; each frame once a step",
            programs=BOTH,
        ),
        Metric(
            "units_decoded/MODALITY",
            "units of another modality that were read from files",
            "sum over ranks",
            "units",
            "0 and up",
            when="every step, where the model reads the modality",
            healthy="as `frames_decoded`",
            programs=BOTH,
            logged_by="models of a further modality",
        ),
        Metric(
            "units_encoded/MODALITY",
            "units of another modality that went through its encoder, without those of the "
            "backward pass",
            "sum over ranks",
            "units",
            "0 and up",
            when="every step, where the model reads the modality",
            healthy="as `frames_encoded`; each unit once a step",
            programs=BOTH,
            logged_by="models of a further modality",
        ),
        Metric(
            "embeddings_from_memory",
            "media whose embeddings were in memory",
            "sum over replicas",
            "media",
            "0 and up",
            programs=BOTH,
        ),
        Metric(
            "embeddings_from_disk",
            "media whose embeddings were read from `--embedding-cache-dir`",
            "sum over replicas",
            "media",
            "0 and up",
            programs=BOTH,
        ),
        Metric(
            "mem-embeddings-bytes",
            "embeddings that are kept in memory",
            "sum over replicas",
            "bytes",
            "0 to `--embedding-store-gib` for each replica",
            unhealthy="at its limit while `frames_encoded` does not fall: raise "
            "`--embedding-store-gib`",
            programs=BOTH,
        ),
        Metric(
            "mem-max-allocated-bytes",
            "largest memory since the start of the process: of the GPU as torch's allocator counts "
            "it, or of the process on a CPU",
            "maximum over ranks",
            "bytes",
            "0 and up",
            healthy="does not change after the first steps",
            unhealthy="grows in every step, or comes near the device's memory",
            programs=BOTH,
        ),
    ),
)

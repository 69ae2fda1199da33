"""The ways in which a run is ended."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.endings import namespace, traces
from tests.endings.scene import Run, Scene

Undo = Callable[[], None]

DISK_MIB = 48
"""Of a run's folder where its disk is to be filled; the run needs a quarter of it."""


@dataclass
class Broken:
    """What has been done to a run."""

    what: str
    undo: Undo = field(default=lambda: None)
    """So that the run can go on."""


@dataclass(frozen=True)
class Kind:
    """A way to end a run."""

    name: str
    break_: Callable[[Run, Scene, random.Random], Broken] | None
    told: str | None
    """Expression that the line about it matches; None where nobody is left who could tell."""
    flags: tuple[str, ...] = ()
    launcher: str = "longrl"
    before: Callable[[Path], Undo] | None = None
    """What is done to the run's folder before the run is started; then nothing else is."""
    is_met_later: bool = False
    """Whether the run notices it only when it comes to use what is broken."""
    stays: tuple[str, ...] = ()
    """Beginnings of names that stay in the temporary folder, as the documentation says."""
    in_folder: bool = True
    """Whether the run can remove what is half written in its folder; else the next one does."""
    goes_on: bool = False
    """Whether the run is to go on by itself, to its last step."""
    ends_at_start: str | None = None
    """Expression of the line with which such a run ends, where it had not started all yet."""
    place: Callable[[Path], AbstractContextManager[None]] = field(default=lambda _: nullcontext())
    """Around all, with the run's folder, which may be on a disk of its own."""


def _until(found: Callable[[], object], run: Run) -> None:
    while not found() and not run.is_over:
        time.sleep(0.02)


def kill_launcher(run: Run, scene: Scene, draw: random.Random) -> Broken:
    run.process.kill()
    return Broken("the launcher")


def _rank(run: Run, draw: random.Random) -> tuple[int, int]:
    """Number and process of one of the ranks, once they are there."""
    _until(lambda: len(traces.ranks(run.mark, "train_rl")) == 2, run)
    found = traces.ranks(run.mark, "train_rl")
    rank = draw.randrange(2)
    return rank, found[rank].pid


def kill_rank(run: Run, scene: Scene, draw: random.Random) -> Broken:
    rank, process = _rank(run, draw)
    os.kill(process, signal.SIGKILL)
    return Broken(f"rank {rank}")


def stop_rank(run: Run, scene: Scene, draw: random.Random) -> Broken:
    rank, process = _rank(run, draw)
    os.kill(process, signal.SIGSTOP)
    return Broken(f"rank {rank}")


def kill_server(run: Run, scene: Scene, draw: random.Random) -> Broken:
    _until(lambda: traces.servers(run.mark), run)
    for server in traces.servers(run.mark):
        server.kill()
    return Broken("the server")


def send(number: signal.Signals, run: Run, scene: Scene, draw: random.Random) -> Broken:
    run.process.send_signal(number)
    return Broken("the launcher")


def fill_disk(run: Run, scene: Scene, draw: random.Random) -> Broken:
    """To the last page, or so that a part of the next checkpoint still fits."""
    leave = draw.choice([0, 1 << 18, 1 << 20])
    ballast = namespace.fill(run.folder, leave)
    return Broken(f"{leave >> 10} KiB left", ballast.unlink)


def full_from_the_start(folder: Path) -> Undo:
    return namespace.fill(folder, 0).unlink


def read_only_from_the_start(folder: Path) -> Undo:
    namespace.make_read_only(folder)
    return partial(namespace.make_writable, folder)


def turn_read_only(run: Run, scene: Scene, draw: random.Random) -> Broken:
    namespace.make_read_only(run.folder)
    return Broken("the folder", partial(namespace.make_writable, run.folder))


def delete_videos(run: Run, scene: Scene, draw: random.Random) -> Broken:
    away = scene.folder / "deleted"
    away.mkdir(exist_ok=True)
    videos = list(Path(scene.arena.data("train")).parent.glob("*.webm"))
    for video in videos:
        video.rename(away / video.name)

    def bring_back() -> None:
        for video in videos:
            (away / video.name).rename(video)

    return Broken("all of them", bring_back)


SMALL_DISK = partial(namespace.disk, mib=DISK_MIB)
ENDED = r"error: ended by {}( before the first step| after step \d+; )"

KINDS = {
    kind.name: kind
    for kind in (
        Kind("launcher", kill_launcher, None),
        Kind("torchrun", kill_launcher, None, launcher="torchrun", stays=("torchelastic_",)),
        Kind("rank", kill_rank, r"error: rank \d .*SIGKILL"),
        Kind(
            *("server", kill_server, r"the rollout server .* ended with signal SIGKILL"),
            flags=("--rollout-engine", "server"),
            goes_on=True,
            ends_at_start=r"error: the rollout server did not start: .* signal SIGKILL",
        ),
        *(
            Kind(name, partial(send, number), ENDED.format(number.name))
            for name, number in (
                ("term", signal.SIGTERM),
                ("int", signal.SIGINT),
                ("usr1", signal.SIGUSR1),
            )
        ),
        Kind("stop", stop_rank, r"error: rank \d .* has been stopped \(SIGSTOP\) for \d+ s"),
        Kind(
            *("full", fill_disk, r"error: .*{folder}.* (full|No space left)"),
            is_met_later=True,
            place=SMALL_DISK,
        ),
        Kind(
            *("read-only", turn_read_only, r"error: .*{folder}.*Read-only"),
            is_met_later=True,
            in_folder=False,
            place=SMALL_DISK,
        ),
        Kind(
            *("full-start", None, r"error: .*{folder}.* No space left"),
            before=full_from_the_start,
            is_met_later=True,
            place=SMALL_DISK,
        ),
        Kind(
            *("ro-start", None, r"error: .*{folder}.* Read-only"),
            before=read_only_from_the_start,
            is_met_later=True,
            place=SMALL_DISK,
        ),
        Kind("videos", delete_videos, r"error: .*clip-\d+\.webm.*", is_met_later=True),
    )
}

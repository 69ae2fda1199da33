"""Ends runs in every way, at random moments: ``python -m tests.endings [--seed 1] [--moments 3]``.

A run of GRPO on two ranks is ended by each of some kinds of endings. Then it must have been told in
one line within 20 s, without a traceback; within 60 s no process, no shared memory, no temporary
folder and no half-written file of it may be left; and when the run is started again, it must go on
to the metrics and the checkpoint of a run that nothing has happened to, bit by bit. The exit status
is 1 where one is not so. It needs mounts of its own, and thus a superuser.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.endings import namespace, traces
from tests.endings.kinds import KINDS, Broken, Kind
from tests.endings.scene import STEPS, Run, Scene, differences
from tests.interrupts import restore_interrupts

PATIENCE = float(os.environ.get("LONGRL_TEST_PATIENCE", "1"))
TOLD_SECONDS = 20.0 * PATIENCE
ENDED_SECONDS = 60.0 * PATIENCE
GOES_ON_SECONDS = 120.0 * PATIENCE
LOADING = 0.2
"""Share of the moments that are before the first step."""
FIRST_SECONDS, LOADING_SECONDS = 2.0, 12.0
"""Before the first of them Python itself starts, and a signal ends it as it ends any program."""
STEP_SECONDS = 0.5

NO_MOUNTS_STATUS = 77


@dataclass
class Ending:
    """What was seen."""

    kind: str
    moment: str
    what: str = ""
    told: float | None = None
    """Seconds until it was."""
    ended: float = 0.0
    """Seconds until nothing was left."""
    line: str = ""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = "-" if self.told is None else f"{self.told:.1f} s"
        first = f"{self.kind:10} {self.moment:22} {self.what:12} {told:>7} {self.ended:5.1f} s  "
        return first + ("ok" if not self.faults else "FAULT: " + "; ".join(self.faults))


def _as_it_ends(kind: Kind, run: Run) -> Kind:
    """What is expected of a run: what goes on later ends, with a line, while it starts; and a run
    that needs nothing more of what is broken does not meet it."""
    if kind.is_met_later and run.process.poll() == 0 and run.steps == STEPS:
        return replace(kind, goes_on=True, told=None)
    at_start = kind.ends_at_start
    if at_start is None or not any(re.search(at_start, line) for line in run.errors):
        return kind
    return replace(kind, goes_on=False, told=at_start)


class Stage:
    """Breaks runs and looks at what comes of it.

    Args:
        draw: says when, and how.
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.seed = seed

    def play(self, kind: Kind, number: int) -> Ending:
        """One ending."""
        draw = random.Random(f"{self.seed} {kind.name} {number}")
        name = f"{kind.name}-{self.seed}-{number}"
        folder, temporary = self.scene.folder / name, self.scene.folder / f"{name}.tmp"
        for path in (folder, temporary):
            shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()
        with kind.place(folder):
            places = traces.Places(str(folder), folder, temporary, kind.stays)
            try:
                ending, run = self._break(kind, draw, places)
            finally:
                traces.end(places.mark)
            if ending.faults:
                (self.scene.folder / f"{name}.txt").write_text(run.output)
        shutil.rmtree(temporary, ignore_errors=True)
        if not ending.faults:
            shutil.rmtree(folder, ignore_errors=True)
        return ending

    def _break(self, kind: Kind, draw: random.Random, places: traces.Places) -> tuple[Ending, Run]:
        folder = places.run_folder
        command = self.scene.command(kind.launcher, folder, *kind.flags)
        if kind.before is not None:
            broken = Broken("the folder", kind.before(folder))
        run = Run.start(command, places.mark, folder, places.temporary)
        began = time.monotonic()
        ending = Ending(kind.name, "before launch")
        if kind.break_ is not None:
            ending.moment = self._wait(run, draw)
            if run.is_over:
                ending.faults.append("it was over before")
                return ending, run
            began = time.monotonic()
            broken = kind.break_(run, self.scene, draw)
        ending.what = broken.what
        try:
            if kind.goes_on or kind.is_met_later:
                deadline = time.monotonic() + GOES_ON_SECONDS
                while not run.is_over and time.monotonic() < deadline and not run.errors:
                    time.sleep(0.05)
                kind = _as_it_ends(kind, run)
                if kind.goes_on and run.process.poll() != 0:
                    ending.faults.append(f"it did not go on: {run.errors or run.process.poll()}")
            # What it meets later is told when it is met.
            began_ending = began = began if not kind.is_met_later else time.monotonic()
            if kind.goes_on:
                began_ending = time.monotonic()
            seconds = ENDED_SECONDS - (time.monotonic() - began_ending)
            _, left = places.wait(seconds, kind.in_folder)
            ending.ended = time.monotonic() - began_ending
            ending.faults += [f"left: {one}" for one in left[:6]]
            traces.end(places.mark)
            self._look_at_output(kind, run, began, ending)
        finally:
            broken.undo()
        if not kind.goes_on:
            if run.process.poll() == 0:
                ending.faults.append("its exit status is 0")
            self._go_on(kind, folder, ending)
            ending.faults += [f"left after it has gone on: {one}" for one in places.left()[:6]]
        if not any(fault.startswith("it did not") for fault in ending.faults):
            ending.faults += differences(folder, self.scene.unbroken(*kind.flags))
        return ending, run

    def _wait(self, run: Run, draw: random.Random) -> str:
        """Until the moment has come; says which one."""
        share = draw.random()
        if draw.random() < LOADING:
            seconds = FIRST_SECONDS + share * (LOADING_SECONDS - FIRST_SECONDS)
            time.sleep(seconds)
            return f"{seconds:.1f} s after launch"
        steps, more = draw.randrange(1, STEPS), share * STEP_SECONDS
        while run.steps < steps and not run.is_over:
            time.sleep(0.01)
        time.sleep(more)
        return f"{more:.2f} s after step {steps}"

    def _look_at_output(self, kind: Kind, run: Run, began: float, ending: Ending) -> None:
        time.sleep(0.2)  # for the thread that reads
        if "Traceback" in run.output and kind.launcher == "longrl":
            ending.faults.append("a traceback")
        errors = run.errors
        if kind.told is None:
            return
        pattern = re.compile(kind.told.replace("{folder}", re.escape(str(run.folder))))
        found = [(at, line) for at, line in run.lines if pattern.search(line)]
        if not found:
            said = errors[0] if errors else "nothing"
            ending.faults.append(f"it is not told, but: {said[:200]}")
            return
        ending.told, ending.line = max(0.0, found[0][0] - began), found[0][1]
        if ending.told > TOLD_SECONDS:
            ending.faults.append("it is told late")
        if len(errors) != (0 if kind.goes_on else 1):
            ending.faults.append(f"{len(errors)} error lines, the last: {errors[-1][:200]}")

    def _go_on(self, kind: Kind, folder: Path, ending: Ending) -> None:
        """The same command once more, with nothing in its way."""
        outcome = self.scene.arena.launch("train_rl", *self.scene.flags(folder), *kind.flags)
        if outcome.status != 0:
            told = outcome.errors or outcome.output[-300:].splitlines()
            ending.faults.append(f"it did not go on: {told[-1] if told else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where an ending was not as it should be, 77 where nothing can be mounted."""
    restore_interrupts()
    parser = argparse.ArgumentParser(
        prog="python -m tests.endings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--moments", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--work", type=Path, help="folder of data and runs, to use them again")
    parser.add_argument("--report", type=Path, help="file for what was seen, as JSON")
    given = parser.parse_args(argv)
    reason = namespace.enter()
    if reason is not None:
        sys.stderr.write(f"error: python -m tests.endings needs mounts of its own: {reason}\n")
        return NO_MOUNTS_STATUS
    with tempfile.TemporaryDirectory(prefix="longrl-endings-") as made:
        scene = Scene((given.work or Path(made)).absolute())
        scene.folder.mkdir(exist_ok=True)
        scene.prepare()
        stage, endings = Stage(scene, given.seed), []
        for name in given.only:
            scene.unbroken(*KINDS[name].flags)
            for number in range(given.moments):
                endings.append(stage.play(KINDS[name], number))
                sys.stdout.write(f"{endings[-1]}\n")
                sys.stdout.flush()
    if given.report is not None:
        given.report.write_text(json.dumps([asdict(ending) for ending in endings]))
    faults = sum(bool(ending.faults) for ending in endings)
    sys.stdout.write(f"{len(endings)} endings, seed {given.seed}: {faults} with faults\n")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

"""Attacks on a rollout server, by a seed: ``python -m tests.server_attacks [--seed 1]``.

A server with a small model is sent 1,000 requests that are wrong in some way, messages and
descriptors on its Unix socket, generations that no model can answer, bodies that say that they are
large or are, 300 clients at once that take their time, wrong tokens, and what web pages would send.
Meanwhile /health must answer within a second, memory grow by less than 100 MiB, the log hold no
more than a line of each and no traceback; afterwards greedy responses and their log-probabilities
must be bit by bit what they were. Prints a table; the exit status is 1 where anything failed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from megatron_longrl.rollout.server.connections import HEADER_SECONDS, MOST_CONNECTIONS
from megatron_longrl.rollout.server.guard import BODY_SECONDS
from megatron_longrl.rollout.server.process import ServerProcess
from tests.server_attacks import over_http, over_socket, slow
from tests.server_attacks.target import MOST_MEMORY, WEIGHTS, Target, Watch
from tests.tiny_served import model_settings

UNAUTHORIZED, FORBIDDEN, OK, ERROR = 401, 403, 200, 500
LONGEST = max(HEADER_SECONDS, BODY_SECONDS) + 1.0
"""Seconds that a client may take."""
_MOST_SHOWN = 20


@dataclass
class Counts:
    """How many attacks of each kind, and how long some take."""

    requests: int = 1000
    messages: int = 300
    generations: int = 200
    slow: int = 300
    slow_seconds: float = 35.0
    health_seconds: float = 1.0


@dataclass
class Row:
    """Of the table."""

    kind: str
    count: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    mib: float = 0.0

    def line(self) -> str:
        """As it is printed."""
        told = ", ".join(f"{count} {name}" for name, count in sorted(self.answers.items()))
        return (
            f"{self.kind:14} {self.count:5}  {self.seconds:5.0f} s  health {self.slowest:4.2f} s  "
            f"{self.mib:+5.0f} MiB  {len(self.faults)} faults  {told}"
        )


def attack(target: Target, seed: int, counts: Counts) -> list[Row]:
    """All attacks, a row for each kind and one for what must hold in the end."""
    target.give_weights()
    before = target.greedy()
    # What the first bad requests bring into memory once, is not what grows.
    for name, data in over_http.fuzzed(target, seed + 1, 20):
        _answered(name, partial(over_http.answer, target, data), Row(""))
    kinds: dict[str, Callable[[Row], None]] = {
        "requests": lambda row: _ask(
            target, over_http.fuzzed(target, seed, counts.requests), row, none_of=(ERROR,)
        ),
        "messages": lambda row: _send(target, seed, counts.messages, row),
        "generations": lambda row: _generate(target, seed, counts.generations, row),
        "size bombs": lambda row: _ask(target, over_http.size_bombs(target), row, none_of=(OK,)),
        "wrong tokens": lambda row: _ask(
            target, over_http.wrong_tokens(target), row, only=UNAUTHORIZED
        ),
        "cross-origin": lambda row: _ask(
            target, over_http.cross_origin(target), row, only=FORBIDDEN
        ),
        "slow clients": lambda row: _hold(target, counts, row),
    }
    memory = target.memory()
    rows = []
    for kind, work in kinds.items():
        row, began, log = Row(kind), time.monotonic(), target.log_size()
        with Watch(target) as watch:
            work(row)
        row.seconds, row.slowest = time.monotonic() - began, watch.slowest
        row.mib = (watch.most_memory - memory) / 2**20
        row.faults += watch.faults
        if watch.slowest > counts.health_seconds:
            row.faults.append(f"/health took {watch.slowest:.1f} s")
        lines, odd = target.log_lines(log)
        row.answers["lines in the log"] = lines
        row.faults += [f"in the log: {line[:300]}" for line in odd]
        if watch.most_memory - memory >= MOST_MEMORY:
            row.faults.append(f"memory grew by {row.mib:.0f} MiB")
        rows.append(row)
    end = Row("weights", len(before))
    after = target.greedy()
    end.faults = [] if after == before else ["responses are others than before"]
    return [*rows, end]


def _answered(name: str, work: Callable[[], int], row: Row) -> int | None:
    row.count += 1
    try:
        status = work()
    except OSError as error:
        row.faults.append(f"{name}: {type(error).__name__}: {error}")
        return None
    row.answers[str(status or "hung up")] += 1
    return status


def _ask(
    target: Target,
    requests: Iterable[tuple[str, bytes]],
    row: Row,
    *,
    only: int | None = None,
    none_of: Sequence[int] = (),
) -> None:
    for name, data in requests:
        status = _answered(name, partial(over_http.answer, target, data), row)
        wrong = status in none_of or (only is not None and status != only)
        if status is not None and wrong:
            row.faults.append(f"{name}: answered {status}")


def _send(target: Target, seed: int, count: int, row: Row) -> None:
    for name, message, files in over_socket.odd_messages(target, seed, count):
        row.count += 1
        told = over_socket.say(target, message, files)
        row.answers["refused" if "error" in told else told or "hung up"] += 1
        if "handle" in told:
            row.faults.append(f"{name}: got a handle")
    row.faults += over_socket.hold_many(target)


def _generate(target: Target, seed: int, count: int, row: Row) -> None:
    target.client.finish_weight_update(WEIGHTS)  # else all are stale
    answers = over_socket.odd_generations(target, seed, count)
    for row.count in range(1, count + 1):
        try:
            name, end = next(answers)
        except OSError as error:
            row.faults.append(f"generation {row.count - 1}: {type(error).__name__}: {error}")
            return
        row.answers[end] += 1
        if end not in ("400", "done", "failed", "stale"):
            row.faults.append(f"{name}: {end}")


def _hold(target: Target, counts: Counts, row: Row) -> None:
    row.count = counts.slow
    alive = slow.slow_clients(target, counts.slow, counts.slow_seconds)
    row.answers["cut off"], row.answers["alive"] = counts.slow - alive, alive
    most = 0 if counts.slow_seconds > LONGEST else MOST_CONNECTIONS
    if alive > most:
        row.faults.append(f"{alive} of them are still connected")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where the server has not borne an attack."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.server_attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, number in vars(Counts()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(number), default=number)
    parser.add_argument("--seed", type=int, default=1)
    given = vars(parser.parse_args(argv))
    seed, counts = given.pop("seed"), Counts(**given)
    logging.basicConfig(level="WARNING")
    settings = model_settings()
    server = ServerProcess(settings, "info")
    try:
        address = server.start()
        assert server.pid is not None and server._log is not None
        target = Target(address, server.token, server.pid, server._log.fileno(), settings)
        rows = attack(target, seed, counts)
    finally:
        server.stop()
    for row in rows:
        sys.stdout.write(row.line() + "\n")
        sys.stdout.writelines(f"  {fault}\n" for fault in row.faults[:_MOST_SHOWN])
    faults = sum(len(row.faults) for row in rows)
    sys.stdout.write(f"seed {seed}: {faults} faults\n")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

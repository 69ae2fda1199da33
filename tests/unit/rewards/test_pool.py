"""Child processes: what a user's function may do to them without harm."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from megatron_longrl.experience.reward_input import RewardInput
from megatron_longrl.processes.rank_watch import state_of
from megatron_longrl.rewards import pool as pool_module
from megatron_longrl.rewards.pool import WorkerPool
from megatron_longrl.rewards.result import RewardError, RewardResult
from tests.unit.rewards.samples import make_sample, write_file

T = TypeVar("T")

ODD = """
import asyncio, os, subprocess, sys, time

def f(response, factor=1):
    if response == "forever":
        time.sleep(1000)
    if response == "raise":
        raise ValueError("no such frame")
    if response == "exit":
        sys.exit(4)
    if response == "crash":
        os._exit(5)
    if response == "print":
        print("printed")
        subprocess.run(["echo", "from a shell"])
        os.write(1, b'{"id": 0, "outcomes": []}\\n')
        return 0.75
    if response == "read":
        return len(sys.stdin.read())
    if response == "pid":
        return os.getpid()
    if response == "child":
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)
    return {"nan": float("nan"), "text": "good", "none": None}.get(response, 0.5 * factor)

def batch(responses):
    if "long" in responses:
        return [1.0] * (len(responses) + 1)
    return [float(len(response)) for response in responses]

async def slow(response):
    if response == "forever":
        await asyncio.sleep(1000)
    if response == "block":
        time.sleep(1000)
    if response == "stubborn":
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(1000)
    if response == "raise":
        raise ValueError("no")
    if response == "own time-out":
        raise TimeoutError("mine")
    await asyncio.sleep(0.3)
    return 1.0
"""


def with_pool(
    file: str,
    work: Callable[[WorkerPool], Awaitable[T]],
    *,
    names: Sequence[str] = ("f", "batch", "slow"),
    options: dict[str, Any] | None = None,
    seconds: float = 1.0,
    size: int = 1,
) -> T:
    """Run ``work`` with a pool, and end the pool."""

    async def run() -> T:
        functions = dict.fromkeys(names, file)
        settings = {"reward_tolerance": 1e-4}
        pool = WorkerPool(functions, options or {}, settings=settings, size=size, seconds=seconds)
        try:
            pool.know(await pool.load())
            return await work(pool)
        finally:
            await pool.close()

    return asyncio.run(asyncio.wait_for(run(), 100))


def score(file: str, name: str, *responses: str, **settings: Any) -> list[RewardResult]:
    """One call per response, all at once."""

    async def work(pool: WorkerPool) -> list[RewardResult]:
        calls = [pool.score(name, [make_sample(r, k)]) for k, r in enumerate(responses)]
        return [outcome for (outcome,) in await asyncio.gather(*calls)]

    return with_pool(file, work, **settings)


@pytest.fixture
def odd(tmp_path: Path) -> str:
    return write_file(tmp_path, ODD)


def test_scores_and_keyword_arguments(odd: str) -> None:
    assert score(odd, "f", "a", "b") == [RewardResult(0.5), RewardResult(0.5)]
    assert score(odd, "f", "a", options={"factor": 3}) == [RewardResult(1.5)]


@pytest.mark.parametrize(
    ("response", "line"),
    [
        ("raise", "raised ValueError('no such frame')"),
        ("exit", "raised SystemExit(4)"),
        ("crash", "ended its process (exit status 5)"),
        ("nan", "returned nan, which is no finite number"),
        ("text", "returned 'good', which is no finite number"),
        ("none", "returned None, which is no finite number"),
    ],
)
def test_a_failure_costs_its_own_sample(odd: str, response: str, line: str) -> None:
    before, failed, after = score(odd, "f", "a", response, "b")
    assert before == after == RewardResult(0.5)
    assert failed == RewardResult.failure(line)


def test_a_function_that_sleeps_for_ever(odd: str) -> None:
    outcomes = score(odd, "f", "forever", "a", "forever", "b")
    late = RewardResult.failure("gave no result within 1 s", timed_out=True)
    assert outcomes == [late, RewardResult(0.5), late, RewardResult(0.5)]


def test_what_it_prints_and_reads_is_not_the_protocol(odd: str, capfd: Any) -> None:
    assert score(odd, "f", "print", "read", "a") == [
        RewardResult(0.75),
        RewardResult(0.0),
        RewardResult(0.5),
    ]
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "printed\n" in printed.err and "from a shell\n" in printed.err


def test_a_child_serves_many_calls_and_is_replaced_after_its_end(odd: str) -> None:
    one, two, _, three = (o.score for o in score(odd, "f", "pid", "pid", "crash", "pid"))
    assert one == two != three


def test_children_of_the_function_end_with_it(odd: str) -> None:
    async def work(pool: WorkerPool) -> list[int]:
        (pid,) = await pool.score("f", [make_sample("pid")])
        await pool.score("f", [make_sample("child")])
        return [int(pid.score or 0)]

    (leader,) = with_pool(odd, work)
    listed = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    alive = [line for line in listed.splitlines() if line.split()[0] == str(leader)]
    assert not [line for line in alive if not line.split()[1].startswith("Z")]


@pytest.mark.parametrize(("kind", "size", "calls"), [("def", 3, 3), ("async def", 1, 20)])
def test_calls_run_beside_each_other(tmp_path: Path, kind: str, size: int, calls: int) -> None:
    """Each ends when all have begun: in as many children, or asynchronous in one."""
    wait = "await asyncio.sleep(0.01)" if kind == "async def" else "time.sleep(0.01)"
    code = f"""
        import asyncio, os, time
        {kind} f(response, folder, calls):
            open(os.path.join(folder, response), "w").close()
            while len(os.listdir(folder)) < calls:
                {wait}
            return 1.0
        """
    (tmp_path / "begun").mkdir()
    options = {"folder": str(tmp_path / "begun"), "calls": calls}
    file = write_file(tmp_path, code)
    names = [f"r{k}" for k in range(calls)]
    outcomes = score(file, "f", *names, names=["f"], options=options, size=size, seconds=60)
    assert outcomes == [RewardResult(1.0)] * calls


def test_a_group_is_one_call(odd: str) -> None:
    async def work(pool: WorkerPool) -> list[list[RewardResult]]:
        texts = (["a", "bb"], ["long", "b"], ["ccc"])
        return [await pool.score("batch", [make_sample(t) for t in group]) for group in texts]

    good, wrong, last = with_pool(odd, work)
    assert good == [RewardResult(1.0), RewardResult(2.0)]
    assert wrong == [RewardResult.failure("returned 3 scores for 2 responses")] * 2
    assert last == [RewardResult(3.0)]


def test_asynchronous_calls_cost_their_own_sample(odd: str) -> None:
    late = RewardResult.failure("gave no result within 1 s", timed_out=True)
    names = ("a", "forever", "raise", "b", "own time-out", "block", "c", "stubborn")
    assert score(odd, "slow", *names) == [
        RewardResult(1.0),
        late,
        RewardResult.failure("raised ValueError('no')"),
        RewardResult(1.0),
        RewardResult.failure("raised TimeoutError('mine')"),
        late,
        RewardResult(1.0),
        late,
    ]


def test_a_cancelled_call_is_not_run(odd: str, tmp_path: Path) -> None:
    file = write_file(
        tmp_path,
        """
        import pathlib, time
        def f(response):
            pathlib.Path(response).touch()
            time.sleep(0.3)
            return 1.0
        """,
        "touching.py",
    )

    async def work(pool: WorkerPool) -> None:
        tasks = [
            asyncio.create_task(pool.score("f", [make_sample(str(tmp_path / name))]))
            for name in ("one", "two", "three")
        ]
        await asyncio.sleep(0.1)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with_pool(file, work, names=["f"])
    assert (tmp_path / "one").exists() and (tmp_path / "three").exists()
    assert not (tmp_path / "two").exists()


# ---- Starting ----


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("def g(response): return 1", "has no function 'f'"),
        ("import os; os._exit(3)", "died at its start (exit status 3)"),
    ],
)
def test_a_file_that_cannot_be_loaded(tmp_path: Path, code: str, line: str) -> None:
    async def work(pool: WorkerPool) -> None:
        raise AssertionError("loaded")

    with pytest.raises(RewardError) as error:
        with_pool(write_file(tmp_path, code), work, names=["f"])
    assert line in str(error.value)


def test_a_file_that_loads_for_ever(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pool_module, "START_SECONDS", 1.0)
    with pytest.raises(RewardError, match="did not start within 1 s"):
        score(write_file(tmp_path, "import time; time.sleep(1000)"), "f", "a", names=["f"])


def test_a_file_that_breaks_while_it_is_used(tmp_path: Path) -> None:
    """The child that replaces one that died cannot load it any more."""
    file = write_file(tmp_path, ODD)

    async def work(pool: WorkerPool) -> list[RewardResult]:
        Path(file).write_text("def g(response): return 1")
        return [(await pool.score("f", [make_sample(r)]))[0] for r in ("a", "crash", "a", "b")]

    first, crash, *others = with_pool(file, work)
    assert first == RewardResult(0.5) and crash.score is None
    assert all("has no function 'f'" in str(outcome.error) for outcome in others)


# ---- Math and ROUGE ----


def test_libraries(odd: str) -> None:
    async def work(pool: WorkerPool) -> list[RewardResult]:
        samples = [
            ("math", make_sample("<answer>1/2</answer>", answer="0.5")),
            ("math", make_sample("<answer>1/2</answer>", answer="")),
            ("rouge", make_sample("the red cup", answer="the blue cup")),
        ]
        return [(await pool.score(name, [sample]))[0] for name, sample in samples]

    equal, no_formula, rouge = with_pool(odd, work, names=(), seconds=30)
    assert equal == RewardResult(1.0)
    assert "is not a formula" in str(no_formula.error)
    assert rouge.score == pytest.approx(2 / 3) and rouge.error is None


def test_a_formula_that_computes_for_ever_is_killed(odd: str) -> None:
    """A power of powers: neither an alarm nor a thread could stop it. Importing does not count."""
    tower: RewardInput = make_sample("<answer>$9^{9^{9^{9}}}$</answer>", answer="2")

    async def work(pool: WorkerPool) -> list[RewardResult]:
        fine = make_sample("<answer>2</answer>", answer="2")
        return [(await pool.score("math", [s]))[0] for s in (tower, fine)]

    hung, fine = with_pool(odd, work, names=(), seconds=2)
    assert hung.timed_out and fine == RewardResult(1.0)


# ---- The child itself ----


def test_a_child_starts_without_torch() -> None:
    code = "import sys; import megatron_longrl.rewards.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_child_ends_with_a_killed_parent(odd: str, tmp_path: Path) -> None:
    """Also while a function runs that never looks at the pipe."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import asyncio, sys\n"
            "from megatron_longrl.rewards.pool import WorkerPool\n"
            "from tests.unit.rewards.samples import make_sample\n"
            "async def main():\n"
            "    pool = WorkerPool({'f': sys.argv[1]}, {}, settings={}, size=1, seconds=1000)\n"
            "    pool.know(await pool.load())\n"
            "    (pid,) = await pool.score('f', [make_sample('pid')])\n"
            "    print(int(pid.score), flush=True)\n"
            "    await pool.score('f', [make_sample('forever')])\n"
            "asyncio.run(main())\n",
            odd,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_alive(child):
        time.sleep(0.05)
    assert not _is_alive(child)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- What functions have started ----

FAR = """
import os, subprocess, time

def f(response, file):
    # A session of its own, and no parent: its starter has ended.
    line = f"setsid sleep 1000 & echo $! >> {file}"
    subprocess.run(["setsid", "sh", "-c", line])
    if response == "exit":
        os._exit(7)
    if response == "kill":
        os.kill(os.getpid(), 9)
    if response == "kill keeper":
        os.kill(os.getppid(), 9)
        time.sleep(1000)
    if response == "forever":
        time.sleep(1000)
    return 1.0
"""


def alive(file: Path) -> list[int]:
    """The processes that were started, and still are."""
    numbers = [int(line) for line in file.read_text().split()]
    return [n for n in numbers if Path(f"/proc/{n}").exists() and state_of(n) != "Z"]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("exit", RewardResult.failure("ended its process (exit status 7)")),
        ("kill", RewardResult.failure("ended its process (exit status -9)")),
        ("kill keeper", RewardResult.failure("ended its process (exit status -9)")),
        ("forever", RewardResult.failure("gave no result within 3 s", timed_out=True)),
        ("done", RewardResult(1.0)),
    ],
)
def test_what_a_function_has_started_in_another_session_ends_with_its_child(
    tmp_path: Path, response: str, expected: RewardResult
) -> None:
    """It holds the pipe of the child, whose end is told all the same, and no time-out."""
    started = tmp_path / "started"
    file = write_file(tmp_path, FAR)
    options = {"file": str(started)}
    outcomes = score(file, "f", response, names=["f"], options=options, seconds=3)
    assert outcomes == [expected]
    assert len(started.read_text().split()) == 1 and alive(started) == []


@pytest.mark.parametrize("with_keeper", [False, True], ids=["trainer", "trainer and keeper"])
def test_what_a_function_has_started_ends_with_a_trainer_that_is_killed(
    tmp_path: Path, with_keeper: bool
) -> None:
    started, file = tmp_path / "started", write_file(tmp_path, FAR)
    code = f"""
import asyncio, os
from pathlib import Path
from megatron_longrl.processes.descendants import children
from megatron_longrl.rewards.pool import WorkerPool
from tests.unit.rewards.samples import make_sample

async def main():
    options = {{"file": {str(started)!r}}}
    pool = WorkerPool({{"f": {file!r}}}, options, settings={{}}, size=1, seconds=60)
    pool.know(await pool.load())
    await pool.score("f", [make_sample("done")])
    for child in children(os.getpid()) if {with_keeper} else ():
        if b"rewards.worker" in Path(f"/proc/{{child}}/cmdline").read_bytes():
            os.kill(child, 9)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(started.read_text().split()) == 1
    deadline = time.monotonic() + 30
    while alive(started):
        assert time.monotonic() < deadline, "it outlives the trainer"
        time.sleep(0.02)

"""vLLM as a guest in the training process: its changes there are undone.

Measured with vLLM 0.32 on CPU under ``external_launcher``: construction reseeds torch, NumPy and
Python, replaces ``torch.set_num_threads`` by a function that only warns, sets ``LD_PRELOAD``,
``LOCAL_WORLD_SIZE`` and other variables, binds the process's memory to one NUMA node, and logs
dozens of lines; shutting down ends torch.distributed for everyone. Threads, CPU affinity, signal
handlers, default dtype and existing process groups stay as they are.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_longrl.platforms import platform

_OUR_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process
    # What is replaced in model runners is that of V1; on GPUs vLLM would take V2.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # while it starts; see isolated_startup
}
INSTANCE = "MEGATRON_LONGRL_INSTANCE"
"""The variable with the name that the processes of a server's workers share, see
:func:`isolated_startup`."""
# Read by ExecutorWithExternalLauncher; set by torchrun, missing in a process started alone.
_TORCHRUN_ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put torch's (CPU and device), NumPy's and Python's random states back."""
    states = (
        torch.get_rng_state(),
        platform.rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        platform.set_rng_state(states[1])
        np.random.set_state(states[2])
        random.setstate(states[3])


@contextmanager
def isolated_startup(instance: str, log_level: str) -> Iterator[None]:
    """Surround the import of vLLM and the construction of its engine.

    Args:
        instance: a name that all ranks share and no other job on the machine has.
        log_level: ``debug`` lets vLLM log everything; any other level leaves warnings, after the
            start.
    """
    before = dict(os.environ)
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    os.environ.update(_OUR_ENVIRONMENT)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would overrule rollout_memory_gib
    if log_level == "debug":
        os.environ["VLLM_LOGGING_LEVEL"] = "DEBUG"
    for name, value in _TORCHRUN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        with kept_random_state(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # torch tells on every rank that vLLM has switched Triton off.
            logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
            from vllm.v1.engine import core  # the import changes the environment too

            logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
            # An engine's shutdown, also by a finalizer, would end torch.distributed for everyone.
            core.cleanup_dist_env_and_memory = leave_groups
            if platform.name == "cpu":
                with _cpu_worker_habits(instance):
                    yield
            else:
                yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        for name in set(os.environ) | set(before):
            if name.startswith("VLLM_") and name in os.environ:
                continue  # vLLM reads its own variables whenever it likes
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
        if log_level != "debug":
            logging.getLogger("vllm").setLevel(logging.WARNING)
            # Would print all requests of a failed step, hundreds of kilobytes, before the error.
            logging.getLogger("vllm.logging_utils.dump_input").setLevel(logging.CRITICAL)


def unlink_shared_memory(instance: str) -> None:
    """Remove the names of an engine's shared memory, once all ranks have opened it.

    The ranks keep their mappings; vLLM never removes the names, so every job would leave some.
    """
    for path in Path("/dev/shm").glob(f"{instance}-*"):
        path.unlink(missing_ok=True)


def leave_groups(shutdown_ray: bool = False) -> None:
    """End vLLM's process groups; stands in for its ``cleanup_dist_env_and_memory``."""
    from vllm.distributed import parallel_state

    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        if parallel_state._WORLD is not None:
            parallel_state._WORLD.destroy()
    parallel_state._WORLD = None


def name_shared_memory(instance: str) -> Callable[[], None]:
    """Have the ranks of an engine name their shared memory after it: under ``env://`` every job on
    a machine would use the same names.

    Returns:
        Undoes it.
    """
    from vllm.distributed.device_communicators import cpu_communicator

    shared_memory: Any = cpu_communicator._CPUSHMDistributed
    group_name = shared_memory.make_group_name
    shared_memory.make_group_name = staticmethod(
        lambda communicator: f"{instance}-{group_name(communicator).strip('/-')}"
    )

    def undo() -> None:
        shared_memory.make_group_name = staticmethod(group_name)

    return undo


@contextmanager
def _cpu_worker_habits(instance: str) -> Iterator[None]:
    """Two things that a CPU worker does without asking."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    operators: Any = torch.ops._C
    bind_memory = operators.init_cpu_memory_env
    # Binds all memory of the process, the trainer's too, to the node of its first allowed CPU.
    operators.init_cpu_memory_env = lambda nodes: None
    undo = name_shared_memory(instance)
    try:
        yield
    finally:
        operators.init_cpu_memory_env = bind_memory
        undo()

"""Work through tasks in several processes that end with their parent."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

from data.shards.reading.signals import end_with_parent

Task = TypeVar("Task", bound=tuple[Any, ...])
Result = TypeVar("Result")

_work: Callable[..., Any] | None = None  # of a worker process, with the subject that it is about
_subject: Any = None


def in_processes(
    work: Callable[..., Result], subject: Any, tasks: Iterable[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Call `work(subject, *task)` for every task.

    Args:
        work: A module's function.
        subject: Sent to each process once, because it may be large.
        tasks: The tasks.
        workers: Processes.

    Yields:
        Tasks with their results, as they are done. Leaving early cancels what has not begun.
    """
    # Spawned, not forked: a fork of a process with torch's threads in it may hang.
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(workers, context, _prepare, (work, subject)))
        stack.callback(pool.shutdown, cancel_futures=True)
        waiting = {pool.submit(_run, *task): task for task in tasks}
        for future in as_completed(waiting):
            yield waiting.pop(future), future.result()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work in one thread.

    Work on single pictures gains nothing from more, and beside another program's threads it loses nearly everything:
    each small operation waits for the slower of two processors.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _prepare(work: Callable[..., Any], subject: Any) -> None:
    global _work, _subject
    _work, _subject = work, subject
    torch.set_num_threads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent sees to the end
    end_with_parent()


def _run(*task: Any) -> Any:
    assert _work is not None  # `_prepare` has run
    return _work(_subject, *task)

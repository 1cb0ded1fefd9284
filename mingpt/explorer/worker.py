"""The one thread that computes, so that the server can always answer.

A request becomes a Job: a generator of events runs in the thread, and its events go as lines of
JSON to whoever reads them in the event loop. Between two events the thread looks whether somebody
still wants to know: a newer request of the same lane (what one part of a page shows), or a closed
connection, cancels a job. With nothing to do the thread waits, and does no work at all.
"""

import asyncio
import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections import OrderedDict
from typing import Any

import torch

MOST_JOBS = 32  # waiting and running, of all pages together
MOST_UNREAD = 256  # events that a page has not read yet
PATIENCE = 10  # seconds for which a job waits for such a page
MOST_THREADS = torch.get_num_threads()
BETWEEN = 0.05  # seconds between two looks whether it has read
FAULT = "the explorer has a fault; its terminal says more"


class Full(Exception):
    """There are too many jobs."""


class Cache:
    """What goes with a model: its autoencoders {title: Autoencoder}, and the newest few results.

    The results, by their key, are there to be used again.
    """

    def __init__(self, size=8, autoencoders=None):
        self.size = size
        self.autoencoders = autoencoders or {}
        self.values: OrderedDict[Any, Any] = OrderedDict()

    def get(self, key, make):
        """The value of the key; where there is none, make() is called and kept."""
        if key not in self.values:
            self.values[key] = make()
        self.values.move_to_end(key)
        if len(self.values) > self.size:
            self.values.popitem(last=False)
        return self.values[key]


def as_line(event):
    """An event as a line of JSON, bytes."""
    try:
        text = json.dumps(event, allow_nan=False, separators=(",", ":"))
    except ValueError as error:  # which would be taken for the user's own mistake
        raise RuntimeError("an event has a number that is no number") from error
    return text.encode() + b"\n"


def explain(error):
    """The sentence that a page shows for an error; one of ours is told in full on stderr."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "this needs more memory than is free; take shorter texts or a smaller model"
    traceback.print_exception(error)
    return FAULT


class Job:
    """A request that is being answered; its lines are read in the event loop that made it."""

    def __init__(self, key):
        self.key = key
        self.is_over = False
        self.events: Any = None  # the view's, once it has begun
        self.threads = None  # of torch, to compute them
        self.loop = asyncio.get_running_loop()
        self.unread: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.sent = 0  # lines
        self.read = 0
        self.full_since = None  # when the page fell so far behind that the job must wait
        self.began = time.perf_counter()
        self.used = 0.0  # seconds of the worker's time

    def has_room(self):
        """May another event be sent? A page that does not read for long ends its job."""
        if self.sent - self.read < MOST_UNREAD:
            self.full_since = None
            return True
        now = time.perf_counter()
        self.full_since = self.full_since or now
        if now - self.full_since > PATIENCE:
            self.end({"cancelled": True})
        return False

    def end(self, event):
        """Give the last event to the reader."""
        self.is_over = True
        self._put(as_line(event))
        self._put(None)

    def _put(self, line):
        self.sent += 1
        try:
            self.loop.call_soon_threadsafe(self.unread.put_nowait, line)
        except RuntimeError:  # the loop is closed: nobody reads
            self.is_over = True

    async def lines(self):
        """The lines as they come, up to the last."""
        while (line := await self.unread.get()) is not None:
            self.read += 1
            yield line

    def step(self):
        """Compute the next event, in the worker's thread."""
        began = time.perf_counter()
        try:
            torch.set_num_threads(self.threads or MOST_THREADS)
            event = next(self.events)
            # An empty event is a breath, in which to look whether to go on.
            if event and not self.is_over:
                self._put(as_line(event))
        except StopIteration:
            self.end({"end": True, "seconds": round(time.perf_counter() - self.began, 4)})
        except Exception as error:
            self.end({"error": explain(error)})
        self.used += time.perf_counter() - began


class Worker:
    """The thread and its jobs. All methods but the thread's own are called in the event loop."""

    def __init__(self):
        self.jobs: dict[tuple[str, str], Job] = {}  # {(tab, lane): Job}, all that have not ended
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self.thread.start()

    def open(self, tab, lane):
        """A Job, which cancels the older one of the same lane; Full if there are too many."""
        key = (tab, lane)
        self.close(self.jobs.get(key))
        if len(self.jobs) >= MOST_JOBS:
            raise Full("the explorer has too much to do; wait a moment, or close other tabs")
        self.jobs[key] = Job(key)
        return self.jobs[key]

    def start(self, job, events, threads=None):
        """Compute the events, a generator's, as soon as the thread comes to it.

        threads: of torch, to compute them; None for as many as it takes by itself.
        """
        if not job.is_over:
            job.events = events
            job.threads = threads
            self.queue.put(job)

    def close(self, job):
        """The job has ended, or nobody wants to know; None is no job."""
        if job is None:
            return
        job.end({"cancelled": True})
        key = job.key
        if self.jobs.get(key) is job:
            del self.jobs[key]

    def stop(self):
        """Cancel everything, and end the thread when it is through with what it is at."""
        for job in list(self.jobs.values()):
            self.close(job)
        self.queue.put(None)

    def _work(self):
        """Let the jobs take turns, an event each: who has had the least time goes first.

        So a long search for edges does not hold up the heatmap of another tab.
        """
        lower_priority()
        under_way: list[Any] = []
        while self._receive(under_way):
            ready = [job for job in under_way if job.has_room()]
            if ready:
                min(ready, key=lambda job: job.used).step()
            for job in under_way:
                if job.is_over:
                    job.events = None  # and with it goes all that the view holds
            under_way = [job for job in under_way if not job.is_over]
            ready = []
            job = None  # while waiting, keep nothing

    def _receive(self, under_way):
        """Add a job that has come; False when all ends. With nothing to do the thread sleeps."""
        wait = None
        if under_way:
            wait = 0 if any(job.has_room() for job in under_way) else BETWEEN
        try:
            job = self.queue.get(timeout=wait)
        except queue.Empty:
            return True
        if job is None:
            return False
        # As if it had had as much as the others: who came before is not passed over for ever.
        job.used = min((other.used for other in under_way), default=0.0)
        under_way.append(job)
        return True


def lower_priority():
    """Let the browser and the server go first, where a thread can have a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # where it may not, it goes as it is
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)

"""Prints how far the whole experiment is and when it will end: a line now and then between Snakemake's own lines."""

import datetime
import sys
import threading
import time

from stages.run.progress import duration

LOOK_S = 2
EVERY_S = 30


def line(work, done, elapsed_s, now):
    """What is told, or None while nothing that weighs anything is done.

    work       dict stage -> int, its share of the work
    done       set of the stages that have run
    elapsed_s  since the first of them could start
    now        datetime
    """
    total, finished = sum(work.values()), sum(work[name] for name in done)
    if not finished or len(done) == len(work):
        return None
    left_s = elapsed_s * (total - finished) / finished
    end = (now + datetime.timedelta(seconds=left_s)).strftime("%H:%M" if left_s < 12 * 3600 else "%A %d %B %H:%M")
    return (
        f"experiment: {len(done)} of {len(work)} stages, {finished / total:.0%} of the work, about {duration(left_s)} left, "
        f"until {end}"
    )


def tell(work, has_run):
    """Prints `line` from a thread of its own, whenever stages have ended, at most every EVERY_S seconds.

    has_run   function: whether a stage has run by now
    """

    def watch():
        start = told = time.monotonic()
        done = set()
        while len(done) < len(work):
            time.sleep(LOOK_S)
            if time.monotonic() - told < EVERY_S:
                continue
            new = {name for name in work.keys() - done if has_run(name)}
            if not new:
                continue
            done |= new
            told = time.monotonic()
            if text := line(work, done, told - start, datetime.datetime.now()):
                print(text, file=sys.stderr, flush=True)

    if work:
        threading.Thread(target=watch, daemon=True).start()

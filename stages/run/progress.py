"""Prints the progress of a stage on stderr: one line that is updated on a terminal, a new line now and then in a log."""

import sys
import time


class Progress:
    """Call `update(done, total)` as often as you like; it prints at most every `every_s` seconds.

    what     what is being done, e.g. 'train@ddpm-seed0-round1-shard0'
    unit     of done and total, e.g. 'steps'
    begun    number done before, where an interrupted stage goes on
    """

    def __init__(self, what, unit, every_s=None, begun=0):
        self.what, self.unit, self.begun = what, unit, begun
        self.terminal = sys.stderr.isatty()
        self.every_s = every_s if every_s is not None else (0.5 if self.terminal else 10)
        self.start = self.last = time.monotonic()

    def update(self, done, total, note=None):
        """note   function that returns more to print; only called when a line is printed"""
        now = time.monotonic()
        if now - self.last < self.every_s and done < total:
            return
        self.last = now
        rate = self.rate(done)
        left = (total - done) / rate
        extra = f", {note()}" if note else ""
        line = f"{self.what}: {done}/{total} {self.unit} ({done / total:.0%}), {rate:.1f} {self.unit}/s, {duration(left)} left{extra}"
        if self.terminal:
            print(f"\r\033[K{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def rate(self, done):
        """Done per second since the beginning; never 0."""
        return max(done - self.begun, 1e-9) / max(time.monotonic() - self.start, 1e-9)


def duration(seconds):
    """12 s, 3:05 min, 2:10 h."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02} h"

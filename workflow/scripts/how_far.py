"""How far the whole experiment is, and when it will end: an estimate that learns from the stages that have ended.

A stage takes s0 seconds a unit of start-up, and s1 an image that passes through its network. Both are what the stages that have ended
say; a block of dvc.yaml of which some have ended is taken as they were, on the average.
"""

import datetime
import heapq
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from stages.run.progress import duration

LOOK_S = 2
EVERY_S = 30  # where a stage has ended since
SILENT_S = 600  # where none has
START_S = 4 / 6000  # s0 before any stage has ended, see stages.run.instance.START_UP
LEAST_LEFT = 0.1  # of the time of a stage that takes longer than expected


@dataclass(frozen=True)
class Work:
    """What a stage has to do.

    block      of dvc.yaml
    start_up   its work beside the network, in the unit of stages.run.instance.START_UP
    images     passed through the network, forward and back
    """

    block: str
    start_up: int
    images: int


class HowFar:
    """The clock of an experiment. Times are in seconds, from any fixed moment.

    work        dict stage -> Work
    waits_for   dict stage -> stages that it waits for
    slots       stages that can run at a time
    """

    def __init__(self, work, waits_for, slots):
        self.work, self.slots = work, slots
        self.started, self.took = {}, {}  # stage -> seconds; it is in one of the two once it has started
        self.users = defaultdict(list)
        for name, producers in waits_for.items():
            for producer in producers:
                self.users[producer].append(name)
        self.turn = threading.Lock()

    def start(self, stage, now):
        with self.turn:
            self.started[stage] = now

    def end(self, stage, now):
        with self.turn:
            self.took[stage] = now - self.started.pop(stage, now)

    def left(self, now):
        """Seconds to the end and the share of the work that is done; None while too little has ended to tell."""
        with self.turn:
            expected = self._expected()
            if expected is None:
                return None
            done, left = sum(self.took.values()), {}
            for name in self.work.keys() - self.took.keys():
                spent = now - self.started[name] if name in self.started else 0
                left[name] = max(expected[name] - spent, LEAST_LEFT * expected[name])
                done += min(spent, expected[name])
            all_of_them = sum(left.values())
            return self._end(left), done / (done + all_of_them)

    def _expected(self):
        """Seconds of each stage by what has ended: dict; None while no stage has ended that tells of the network."""
        ended = [(self.work[name], seconds) for name, seconds in self.took.items()]
        plain = [(work.start_up, seconds) for work, seconds in ended if not work.images]
        s0 = sum(seconds for _, seconds in plain) / sum(units for units, _ in plain) if plain else START_S
        with_network = [(work, seconds) for work, seconds in ended if work.images]
        if not with_network and any(work.images for work in self.work.values()):
            return None
        images = sum(work.images for work, _ in with_network)
        passing = sum(max(seconds - s0 * work.start_up, 0.1 * seconds) for work, seconds in with_network)
        s1 = passing / images if images else 0
        found = {name: s0 * work.start_up + s1 * work.images for name, work in self.work.items()}
        of_block = defaultdict(lambda: [0, 0])
        for name, seconds in self.took.items():
            of_block[self.work[name].block][0] += seconds
            of_block[self.work[name].block][1] += found[name]
        for name, work in self.work.items():
            seconds, expected = of_block.get(work.block, (1, 1))
            found[name] *= seconds / expected if expected else 1
        return found

    def _end(self, left):
        """Seconds until the last stage ends, where of those that can start the one goes first that the longest path waits for.

        left   dict stage -> seconds that it still takes, of all that have not ended
        """
        paths, waits_for = self._longest_paths(left), defaultdict(int)
        for name in left:
            for user in self.users[name]:
                waits_for[user] += 1
        ready = [(-paths[name], name) for name in left if not waits_for[name] and name not in self.started]
        running, now = [(left[name], name) for name in self.started], 0.0
        heapq.heapify(ready)
        heapq.heapify(running)
        while ready or running:
            while ready and len(running) < self.slots:
                _, name = heapq.heappop(ready)
                heapq.heappush(running, (now + left[name], name))
            now, name = heapq.heappop(running)
            for user in self.users[name]:
                waits_for[user] -= 1
                if not waits_for[user] and user in left and user not in self.started:
                    heapq.heappush(ready, (-paths[user], user))
        return now

    def _longest_paths(self, left):
        """Of each stage the seconds from its start to the end of the longest path of stages that wait for each other: dict."""
        paths, todo = {}, list(left)
        while todo:
            name = todo[-1]
            if unknown := [user for user in self.users[name] if user in left and user not in paths]:
                todo += unknown
                continue
            paths[name] = left[name] + max((paths.get(user, 0) for user in self.users[name]), default=0)
            todo.pop()
        return paths


def line(left_s, share, now):
    """What is told. now: datetime"""
    end = (now + datetime.timedelta(seconds=left_s)).strftime("%H:%M" if left_s < 12 * 3600 else "%A %d %B %H:%M")
    return f"{share:.0%} of the work, about {rounded(left_s)} left, until {end}"


def rounded(seconds):
    """A time as one says it: 40 s, 3 min, 2:10 h."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else duration(seconds)


def tell(clock, show):
    """Shows `line` from a thread of its own: when stages have ended, at most every EVERY_S seconds, and otherwise every SILENT_S.

    show   function of the text
    """

    def watch():
        told, ended = time.monotonic(), 0
        while len(clock.took) < len(clock.work):
            time.sleep(LOOK_S)
            now = time.monotonic()
            if now - told < (EVERY_S if len(clock.took) > ended else SILENT_S):
                continue
            if (found := clock.left(now)) and len(clock.took) < len(clock.work):
                told, ended = now, len(clock.took)
                show(line(*found, datetime.datetime.now()))

    if clock.work:
        threading.Thread(target=watch, daemon=True).start()

"""Curves of a stage while it trains, for `make watch`: TensorBoard files under logs/live/, where REDISTRIBUTE_LIVE=1 asks for them.

Nothing else reads them, and no result depends on them.
"""

import os
import time
from pathlib import Path

FOLDER = Path("logs/live")
VARIABLE = "REDISTRIBUTE_LIVE"
EVERY_S = 2  # a stage of thousands of quick steps need not have a point for each


def asked_for():
    return os.environ.get(VARIABLE, "0") not in ("", "0")


class Curves:
    """The curves of one run of one shard: all its rounds are one line each, by the optimiser steps of the shard.

    Leaving the context writes what is left. Where no curves are asked for it does nothing.
    """

    def __init__(self, run, shard, first_step):
        """first_step   where the round begins or goes on: points of an earlier try from there on are dropped"""
        self.writer, self.last = None, None
        if asked_for():
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(FOLDER / run / f"shard{shard}", purge_step=first_step)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.writer:
            self.writer.close()

    def add(self, step, numbers, last=False):
        """numbers   function that returns dict name -> float: only called when a point is written; last: it is written in any case"""
        now = time.monotonic()
        if self.writer is None or (self.last is not None and now - self.last < EVERY_S and not last):
            return
        self.last = now
        for name, value in numbers().items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

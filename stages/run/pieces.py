"""Processes a range of images in smaller pieces where there is not enough memory for all of them at once."""

import sys

import numpy as np

from stages.run import device


class InPieces:
    """Generates a batch; where memory does not suffice, this and all later ones in halves, in quarters and so on.

    generated   function (start, stop) -> [stop - start,H,W,C] uint8 array
    """

    def __init__(self, generated):
        self.generated = generated
        self.largest = None  # images at a time; None: whole batches

    def __call__(self, start, stop):
        """Images start..stop-1. Raises ValueError where the memory does not suffice for one image."""
        pieces, at = [], start
        while at < stop:
            end = min(at + (self.largest or stop - start), stop)
            try:
                pieces.append(self.generated(at, end))
                at = end
                continue
            except RuntimeError as error:
                if not device.is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Out of the handler, whose traceback holds the tensors of the failed piece.
            if end - at == 1:
                raise ValueError(f"the memory does not suffice to generate one image ({reason})")
            self.largest = (end - at + 1) // 2
            _free_memory()
            print(f"out of memory with {end - at} images at a time: going on with {self.largest}", file=sys.stderr)
        return np.concatenate(pieces)


def _free_memory():
    """Gives what torch keeps of the GPU's memory back: the pieces it is in fit the old batch size."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()

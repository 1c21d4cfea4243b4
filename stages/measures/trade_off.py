"""Memorisation at equal fidelity: is an arm below the trade-off that plain early stopping buys?

A model that is trained for less memorises less, and is less faithful. The baseline trained to several lengths therefore gives
a curve of excess over fidelity for nothing. A method has achieved something where it lies below that curve.
"""

import itertools
import math
from typing import NamedTuple


class Point(NamedTuple):
    """An arm, or a place on the curve.

    fidelity     a distance to the data, lower is more faithful (fd_pixels)
    excess       memorisation, any unit that is the same for all points
    half_width   of the 95 % interval of excess, >= 0
    """

    fidelity: float
    excess: float
    half_width: float


class Comparison(NamedTuple):
    """An arm against the curve at the arm's own fidelity.

    verdict      "below", "above", "not told apart", "more faithful" or "less faithful" (than any point of the curve)
    line         excess of the curve there; None outside its range
    difference   excess of the arm less that of the curve; None outside its range
    half_width   of the 95 % interval of the difference; None outside its range
    """

    verdict: str
    line: float | None = None
    difference: float | None = None
    half_width: float | None = None


def curve_at(curve, fidelity):
    """Excess of the early-stopped baseline at a fidelity, straight between neighbouring points.

    curve      list of at least two Points in the order of training length
    fidelity   float
    Returns    Point, or None where no two neighbours lie on both sides of the fidelity. Where the curve passes the fidelity
               more than once, because longer training did not always make it more faithful, the lowest of its points: an arm
               has to beat the best that stopping early can do. The ends are trainings of their own, so their errors
               add up as those of independent numbers.
    """
    passes = []
    for ends in itertools.pairwise(curve):
        left, right = sorted(ends)
        if left.fidelity <= fidelity <= right.fidelity:
            width = right.fidelity - left.fidelity
            share = (fidelity - left.fidelity) / width if width else 0.0  # of two at one fidelity, left is the lower
            excess = (1 - share) * left.excess + share * right.excess
            half_width = math.hypot((1 - share) * left.half_width, share * right.half_width)
            passes.append(Point(fidelity, excess, half_width))
    return min(passes, key=lambda point: point.excess, default=None)


def compare(arm, curve):
    """Whether an arm lies below the curve at equal fidelity, by the 95 % interval of the difference.

    The uncertainty of fidelity itself is not part of the interval, and arm and curve are taken as independent.

    arm       Point
    curve     list of at least two Points in the order of training length
    Returns   Comparison
    """
    at = curve_at(curve, arm.fidelity)
    if at is None:
        more = arm.fidelity < min(point.fidelity for point in curve)
        return Comparison("more faithful" if more else "less faithful")
    difference = arm.excess - at.excess
    half_width = math.hypot(arm.half_width, at.half_width)
    if difference + half_width < 0:
        verdict = "below"
    elif difference - half_width > 0:
        verdict = "above"
    else:
        verdict = "not told apart"
    return Comparison(verdict, at.excess, difference, half_width)

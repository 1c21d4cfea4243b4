"""How a round of IET ends: with averaging the models of the shards, with images moving between the shards, or with both.

In the joint schedule each round does both. In the alternating one, that of the authors' code for Stable Diffusion, odd rounds end with moving and
even ones with averaging. `redistribute` is that section of an arm in params.yaml; an empty one moves nothing. Rounds are counted from 1.
"""


def averages_after(redistribute, round_):
    """Whether a round ends with averaging."""
    return redistribute.get("schedule") != "alternating" or round_ % 2 == 0


def moves_after(redistribute, round_):
    """Whether a round ends with images moving."""
    alternating = redistribute.get("schedule") == "alternating"
    return bool(redistribute) and not (alternating and averages_after(redistribute, round_))


def round_of_shards(redistribute, round_):
    """The round that the index lists which hold in a round are named after: the one after the last move before it, or 1."""
    return next((r + 1 for r in range(round_ - 1, 0, -1) if moves_after(redistribute, r)), 1)

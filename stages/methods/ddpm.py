"""Plain DDPM: the baseline of every table, and with several shards IET alone."""

from stages.methods import base

SETTINGS = {}
MODELS = ["pixels", "text"]
COMPILE = ["inductor", "graph"]


class Method(base.Method):
    """Changes nothing."""

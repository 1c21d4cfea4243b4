"""One stage instance: its arm, seed, round, shard or part, its name, the place of its results, and how much room and time they take."""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from stages.run import files

LIGHT_BYTES = 2**20 // 10  # a report, a list: what no setting makes large
ROW_BYTES = 150  # of a table with a row per image: a dozen numbers and the image's name, compressed
START_UP = 6000  # of a stage that runs the network, in images: about 4 s on a CPU with the digits' UNet


@dataclass(frozen=True)
class Scale:
    """How large an experiment is, for estimates of room and time.

    experiment         params.yaml as a dict
    num_images         images of the whole set
    num_train          those of them that are trained on
    shape              (H, W, C) of an image
    bytes_of_weights   of one network
    """

    experiment: dict
    num_images: int
    num_train: int
    shape: tuple = (0, 0, 0)
    bytes_of_weights: int = 0

    @property
    def values(self):
        """Values of one image."""
        return math.prod(self.shape)

    def num_generated(self, arm):
        """Images that an arm generates, with all kinds of weights."""
        settings = self.experiment.get("sample", {}) | self.experiment["arms"][arm]["sample"]
        is_foreign = {"folder", "file", "pipeline"} & self.experiment["arms"][arm].get("generator", {}).keys()
        weights = ["raw"] if is_foreign else settings["weights"]
        return (settings["num_images"] or self.num_train) * len(weights)


REFERENCE = "reference"  # key of an instance that all runs share: no run is called so, as their names end in a seed


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An item of plan.json, which a block of dvc.yaml loops over.

    block                     name of that block: the phase, or <phase>_<variant> where instances differ in what they depend on
    arm, seed                 the run that it belongs to; none where all runs share it
    round, shard, part        the round, from 1; the shard and the part of the images, from 0
    """

    block: str
    arm: str | None = None
    seed: int | None = None
    round: int | None = None
    shard: int | None = None
    part: int | None = None

    writes: ClassVar[tuple] = ()  # folders below artifacts/ in which its results lie
    start_up: ClassVar[int] = START_UP  # its work beside what it passes through the network

    @property
    def phase(self):
        return phase_of(self.block)

    @property
    def run(self):
        return REFERENCE if self.arm is None else files.run_name(self.arm, self.seed)

    @property
    def key(self):
        """<arm>-seed<S>[-round<r>][-shard<k> | -part<p>]; `reference` where all runs share it."""
        places = ("round", "shard", "part")
        return "-".join([self.run, *(f"{p}{getattr(self, p)}" for p in places if getattr(self, p) is not None)])

    @property
    def name(self):
        """What DVC calls it: <block>@<key>."""
        return f"{self.block}@{self.key}"

    @property
    def arguments(self):
        """What its phase is told on the command line."""
        if self.arm is None:
            return "--reference"
        places = ("arm", "seed", "round", "shard", "part")
        return " ".join(f"--{p} {getattr(self, p)}" for p in places if getattr(self, p) is not None)

    @property
    def place(self):
        """Folder below artifacts/<phase> of the round whose model it samples or measures: <run>[/round<r>]."""
        return files.place(self.run, self.round)

    def outputs(self):
        """Folders and files of artifacts/ that it makes: list of paths."""
        return [files.folder(name, self.run, self.round, self.shard, self.part) for name in self.writes]

    def size(self, scale):
        """Bytes that its results take: an estimate from a Scale."""
        return LIGHT_BYTES

    def work(self, scale):
        """Its work, in images that are passed through the network forward and back: an estimate from a Scale."""
        return self.start_up

    def item(self):
        """Its fields as dvc.yaml reads them: dict, without those that it does not have."""
        values = {"run": self.run}
        if self.arm is not None:
            values |= {"place": self.place, "arguments": self.arguments}
        values |= {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and name != "block"}


def phase_of(stage):
    """The phase of a stage or a block by its name: train of train_next@ddpm-seed0-round2-shard0."""
    return stage.partition("@")[0].partition("_")[0]

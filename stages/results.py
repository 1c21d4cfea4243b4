"""Results in Python: what an experiment came to, as pandas tables, and audits of images that are in memory.

from stages import results

found = results.load("path/to/project")
found.runs                                      # a table; also rounds, images, leaks, curves

audit = results.audit(generated, train, heldout)     # uint8 arrays [M,H,W,C], or paths as `python -m stages.audit` takes them
audit.leaks, audit.excess, audit.low, audit.high
"""

import contextlib
import functools
from pathlib import Path


def load(project="."):
    """The results of the experiment in a folder, which must have run to its report.

    project   folder of params.yaml (text or pathlib.Path); the working directory may be any
    Returns   Results
    Raises    ValueError: there is no params.yaml, or it is wrong. A table raises ValueError where results are missing or damaged
    """
    return Results(project)


class Results:
    """The tables of one experiment: pandas frames, each read when it is first asked for.

    The first columns of all are arm (text) and seed (int), in the order of params.yaml. Images are known by their index: that of a generated
    image is its number from 0, that of a training image its position in artifacts/data/train.npy. Shares are in [0, 1].
    """

    def __init__(self, project="."):
        self.project = Path(project).absolute()
        with self._inside():
            from stages.run import params

            self.settings = params.load()  # params.yaml as a dict

    @functools.cached_property
    def runs(self):
        """One row per arm, seed and kind of weights: what its last sampled round came to at the headline's protocol and threshold.

        weights                          "raw" or "ema"
        round, steps                     the round (NaN for a generator from elsewhere), optimiser steps of all shards up to then
        protocol, threshold              the headline's
        count, share                     generated images that count as copies of a training image, and their share
        distinct                         training images that they are copies of
        excess, excess_low, excess_high  copies beyond chance, in generated images, with the 95 % interval; NaN without held-out images
        simplicity                       the count that real held-out images reach in the place of generated ones
        fd_pixels, fd_pixels_heldout     Frechet distance of pixels to training and held-out images, in units of the [0, 1] range squared
        fd_pixels_heldout_error          half of the 95 % interval of fd_pixels_heldout; NaN without held-out images
        num_images, num_train, num_heldout, num_compared   images generated, trained on, held out, and the training images of the excess
        fd_mean_image                    fd_pixels_heldout of one image over and over, the mean of the held-out ones: a scale for the fidelities
        leaked                           training images that are leaked with confidence
        skipped_share, augmented_share   shares of all images visited in training; NaN where the arm is trained elsewhere
        moved                            moves of training images to another shard, over all rounds
        optimizer_steps, forward_images  of all shards and rounds; images that were passed through the network
        Further columns are those of the measures that the experiment has (quality, similarity, ...), and spent.<name> of the training method.
        """
        from stages.report.results import RUN

        rounds, training = self.rounds, self._report.training
        last = rounds.groupby([*RUN, "weights"], sort=False).tail(1)
        return last.merge(training, how="left", on=RUN, validate="many_to_one")

    @functools.cached_property
    def rounds(self):
        """One row per arm, seed, kind of weights and sampled round: the columns of `runs`, without those of training."""
        from stages.report import columns, results

        core = [
            *results.RUN,
            *columns.of("score"),
            "excess",
            "excess_low",
            "excess_high",
            "simplicity",
            "round",
            "steps",
        ]
        rounds = self._report.rounds
        return rounds[[name for name in rounds.columns if name in core or rounds[name].notna().any()]]

    @functools.cached_property
    def images(self):
        """One row per generated image, kind of weights and sampled round.

        weights, round, image          "raw" or "ema"; the round (NaN for a generator from elsewhere); the number of the image
        nearest_train, nearest_key     index and name of its nearest training image
        d1, d2                         squared distances to the two nearest training images, in grey levels squared
        train_<protocol>               its ratio to the training images under each protocol; lower is closer to a copy
        heldout_<protocol>             the same to the matched held-out images, where there are some
        variant                        the variant of it that is nearest, with score.variants
        matched_ratio                  its lowest ratio among as many training images as there are held-out ones, and of their classes
        confidence                     that it is a copy, in [0, 1]; NaN where it is not known, see stages.measures.confidence
        generated                      its file, where the images come from a folder
        excess, influence              what it contributes to the headline's excess (images), and to fd_pixels_heldout (its unit)
        prompt                         number of its prompt, where it was asked for with one
        """
        return self._of_rounds("images.parquet")

    @functools.cached_property
    def leaks(self):
        """One row per training image that a run gave out in its last sampled round, clearest first; see stages.report.leaks.

        weights, index, key   "raw" or "ema"; index and name of the training image
        count                 generated images that are copies of it at the headline's protocol and threshold
        best_ratio, twin      the lowest ratio among them, and the number of the generated image that has it
        status, confidence    "leaked" or "candidate"; that this image is a copy, in [0, 1], NaN where it is not known
        matched_ratio, heldout_ratio   its ratio among as many training images as there are held-out ones, and among these
        generated, variant    its file, or its number; the variant of it that is nearest, "as is" without score.variants
        duplicates            how many other training images are the same as the training image or nearly so
        """
        return self._report.leaks

    @functools.cached_property
    def curves(self):
        """One row per arm, seed, sampled round, kind of weights, protocol and threshold: the columns count, share, distinct, excess,
        excess_low, excess_high and simplicity of `runs`."""
        return self._of_rounds("curves.parquet")

    @functools.cached_property
    def _report(self):
        from stages.report import results

        with self._inside():
            return results.read(self.settings)

    def _of_rounds(self, name):
        """A table that the score phase writes for each sampled round, of all of them."""
        import pandas as pd

        from stages import experiments
        from stages.run import files

        frames = []
        with self._inside():
            for place in experiments.sampled(self.settings):
                run = files.run_name(place["arm"], place["seed"])
                table = files.load_table(files.folder("results/score", run, place["round"]) / name)
                frames.append(
                    pd.DataFrame({**place, "round": place["round"] or float("nan")}, index=table.index).join(table)
                )
        return pd.concat(frames, ignore_index=True)

    @contextlib.contextmanager
    def _inside(self):
        """All paths of an experiment begin at its folder."""
        if not self.project.is_dir():
            raise ValueError(f"{self.project} is no folder, expected that of an experiment (project)")
        with contextlib.chdir(self.project):
            yield


def audit(
    generated, train, heldout=None, *, out=None, size=None, num_images=None, num_steps=50, show_images=0, device="cpu", threads=1
):  # fmt: skip
    """Which training images does a generator give out? The same as `python -m stages.audit` says of the same images.

    generated     [M,H,W,C] or [M,H,W] uint8 array with C = 1 or 3, or a path: folder, .zip, .npz, .npy, or a saved pipeline of diffusers
    train         [N,H,W,C] uint8 array or a path: the images that it was trained on, N >= 4
    heldout       [K,H,W,C] uint8 array or a path: images of the same kind that it was not trained on, K >= 2; None: there is no excess
    out           folder for the page, the leak list and metrics.json; None: none are written
    size          side in pixels to which all images are brought; None: that of the generated images, where sizes differ
    num_images    generated images to look at, the first ones; None: all (of a pipeline 256)
    num_steps     steps of a pipeline's sampler
    show_images   generated images that the page shows beside training images, 0 to 24
    device        "cpu", "cuda" or "auto"; a GPU stays claimed until the process ends
    threads       CPU threads
    Returns       stages.audit.Outcome: leaks and images (frames as those of Results), excess, low, high, metrics, and numbers of images.
                  An image of an array is called by its position
    Raises        ValueError: images that cannot be audited, in one sentence
    The working directory of the process is another one while it runs, so no other thread should depend on it.
    """
    import torch

    from stages import audit as command

    options = command.Options(size, num_images, num_steps, show_images, device, threads)
    before = torch.get_num_threads()
    try:
        return command.run({"generated": generated, "train": train, "heldout": heldout}, options, out)
    finally:
        torch.set_num_threads(before)

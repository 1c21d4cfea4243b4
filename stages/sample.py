"""Generates one part of an arm's images from its final model, with raw and with EMA weights.

params    model, diffusion, compute, sample, arms.<arm>.sample, arms.<arm>.method (or arms.<arm>.generator)
reads     artifacts/model/<run>/round<R>, artifacts/data for the shape of an image; or the images of a generator from elsewhere
writes    artifacts/samples/<run>/part<p>/<weights>.npy: [M_p,H,W,C] uint8
          labels.npy: [M_p] int64, the classes asked for, where the model is class-conditional
          generations.jsonl: a line an image, the prompts used and original and the training image they are of, where it has text
Image i starts from noise keyed by (seed, i), and parts are whole batches: their number changes no image. (A batch that memory
does not suffice for is generated in pieces, which may differ from the whole in the last bit.) A checkpoint in scratch/ lets a
killed stage go on where it was; SIGTERM, a scheduler's warning, writes one and ends the stage.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from stages import network, params
from stages.image_sets import elsewhere
from stages.run import checkpoint, cli, device, files
from stages.run.progress import Progress


def main(arguments):
    with cli.stage("sample", __doc__, arguments, "arm", "seed", "part") as job:
        job.device = device.claim(job.params["compute"])
        other = params.maker(job.params, job.arm)
        if other is None and "pipeline" not in job.recipe["generator"]:
            _take_over(job)
            return
        from stages.diffusion import sampling

        settings = params.section(job.params, "sample", job.arm) | {"precision": job.params["compute"]["precision"]}
        batch_size = settings["batch_size"]
        first, last = sampling.part_of(settings["num_images"], batch_size, job.part, settings["parts"])
        shape = files.load_array(files.DATA / "train.npy", mmap=True).shape[1:]
        made_by = job if other is None else SimpleNamespace(**vars(job) | _training_of(job, other))
        source = _source_of(made_by)(made_by, settings, shape)

        saved = checkpoint.Checkpoint(
            job, [settings, job.recipe, *(job.params[s] for s in ("model", "diffusion", "compute"))], source.inputs
        )
        images = {weights: np.zeros((last - first, *shape), np.uint8) for weights in settings["weights"]}
        done, total = 0, len(images) * (last - first)
        if unfinished := saved.saved():
            done = int(unfinished["done"][0])
            images = {weights: unfinished[weights].copy() for weights in images}

        def so_far():
            return images | {"done": np.array([done])}

        def before_a_pass(*_):  # a batch may take longer than a scheduler waits
            if saved.look() and saved.told_to_stop:
                saved.save_if_due(so_far, f"image {done} of {total}")

        source.network.register_forward_pre_hook(before_a_pass)
        in_pieces, progress = InPieces(source.generate), Progress(f"sample@{job.key}", "images")
        for i, weights in enumerate(images):
            source.load(weights)
            for start in range(first, last, batch_size):
                stop = min(start + batch_size, last)
                if (until := i * (last - first) + stop - first) <= done:
                    continue
                images[weights][start - first : stop - first] = in_pieces(start, stop)
                done = until
                progress.update(done, total)
                saved.save_if_due(so_far, f"image {done} of {total}")
        with files.publish(files.samples_dir(job.run, job.part)) as folder:
            for weights, array in images.items():
                files.save_array(folder / f"{weights}.npy", array)
            if (labels := source.labels(first, last)) is not None:
                files.save_array(folder / "labels.npy", labels)
            if records := source.records(first, last):
                lines = [json.dumps(record, ensure_ascii=False) for record in records]
                files.write_text(folder / "generations.jsonl", "\n".join(lines) + "\n")
        saved.remove()


def _training_of(job, arm):
    """The arm that made the model, which need not be the one whose images these are."""
    return {"arm": arm, "recipe": job.params["arms"][arm], "run": files.run_name(arm, job.seed)}


def _source_of(job):
    if "generator" in job.recipe:
        return _Pipeline
    if params.is_text(job.params):
        from stages.text import generation

        return generation.Source
    return _Model


class _Model:
    """The final model of an arm as a source of images."""

    def __init__(self, job, settings, shape):
        height, width, channels = shape
        self.job, self.settings, self.shape = job, settings, (channels, height, width)
        built = network.build(job, self.shape)
        self.method, self.num_classes, self.alpha_bars = built.method, built.num_classes, built.alpha_bars
        self.network = built.network.to(job.device).eval()
        self.folder = files.model_dir(job.run, job.recipe["rounds"])
        self.inputs = [self.folder / f"{weights}.safetensors" for weights in settings["weights"]]

    def load(self, weights):
        from stages.diffusion import unet

        path = self.folder / f"{weights}.safetensors"
        unet.load(self.network, files.load_arrays(path), path)

    def labels(self, first, last):
        """The classes asked for: [last - first] int64, None for an unconditional network."""
        from stages.diffusion import sampling

        return sampling.class_labels(first, last, self.num_classes, self.job.seed) if self.num_classes else None

    def records(self, first, last):
        """What each image was asked for, as dicts; none where that is nothing."""
        return []

    def generate(self, start, stop):
        """Images start..stop-1 with the weights loaded last: [stop - start,H,W,C] uint8."""
        import torch

        from stages.diffusion import sampling

        job = self.job
        x_T = sampling.starting_noise(start, stop, self.shape, job.seed).to(job.device)
        labels = self.labels(start, stop)
        asked = None if labels is None else torch.from_numpy(labels).to(job.device)
        with torch.no_grad():
            x = self.method.sample(
                self.network, x_T, range(start, stop), job.seed, asked, self.alpha_bars, self.settings
            )
        return sampling.stored(x)


class _Pipeline:
    """A saved pipeline of somebody else as a source of images; it has one kind of weights."""

    def __init__(self, job, settings, shape):
        path = Path(job.recipe["generator"]["pipeline"])
        self.pipeline = elsewhere.pipeline(path, shape, job.device)
        self.job, self.settings, self.shape = job, settings, shape
        self.network = self.pipeline.unet
        self.inputs = sorted(file for file in path.rglob("*") if file.is_file())

    def load(self, weights):
        pass

    def labels(self, first, last):
        return None

    def records(self, first, last):
        return []

    def generate(self, start, stop):
        return elsewhere.generated(self.pipeline, self.shape, start, stop, self.job.seed, self.settings["num_steps"])


class InPieces:
    """Generates a batch; where memory does not suffice, this and all later ones in halves, in quarters and so on.

    generated   function (start, stop) -> [stop - start,H,W,C] uint8
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


def _take_over(job):
    """The images of a folder or a file become the arm's samples."""
    shape = files.load_array(files.DATA / "train.npy", mmap=True).shape[1:]
    progress = Progress(f"sample@{job.key}", "images")
    num_images = params.section(job.params, "sample", job.arm)["num_images"]
    images = elsewhere.images(job.recipe["generator"], shape, num_images, progress.update)
    with files.publish(files.samples_dir(job.run, job.part)) as folder:
        files.save_array(folder / "raw.npy", images)


if __name__ == "__main__":
    cli.run(main)

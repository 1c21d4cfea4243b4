"""Generates one part of an arm's images from its final model, with raw and with EMA weights.

params    model, diffusion, compute, sample, arms.<arm>.sample, arms.<arm>.method (or arms.<arm>.generator)
reads     artifacts/model/<run>/round<R>, artifacts/data for the shape of an image; or the images of a generator from elsewhere
writes    artifacts/samples/<run>/part<p>/<weights>.npy: [M_p,H,W,C] uint8
          labels.npy: [M_p] int64, the classes asked for, where the model is class-conditional
Image i starts from noise keyed by (seed, i), and parts are whole batches: their number changes no image. (A batch that memory
does not suffice for is generated in pieces, which may differ from the whole in the last bit.)
"""

import sys

import numpy as np

from stages import audit, cli, device, files, network, params
from stages.progress import Progress


def main(arguments):
    with cli.stage("sample", __doc__, arguments, "arm", "seed", "part") as job:
        job.device = device.claim(job.params["compute"])
        if "generator" in job.recipe:
            _take_over(job)
            return
        import torch

        from stages.method import diffusion, sampling, unet

        settings = params.section(job.params, "sample", job.arm) | {"precision": job.params["compute"]["precision"]}
        batch_size = settings["batch_size"]
        first, last = sampling.part_of(settings["num_images"], batch_size, job.part, settings["parts"])
        height, width, channels = files.load_array(files.DATA / "train.npy", mmap=True).shape[1:]
        alpha_bars = diffusion.alpha_bars(**job.params["diffusion"])
        method, model, num_classes = network.build(job, (channels, height, width))
        model.to(job.device).eval()
        labels = sampling.class_labels(first, last, num_classes, job.seed) if num_classes else None

        def generated(start, stop):
            x_T = sampling.starting_noise(start, stop, (channels, height, width), job.seed).to(job.device)
            asked = None
            if labels is not None:
                asked = torch.from_numpy(labels[start - first : stop - first]).to(job.device)
            with torch.no_grad():
                x = method.sample(model, x_T, range(start, stop), job.seed, asked, alpha_bars, settings)
            return sampling.stored(x)

        batch_of = InPieces(generated)
        progress = Progress(f"sample@{job.key}", "images")
        total, done = (last - first) * len(settings["weights"]), 0
        with files.publish(files.samples_dir(job.run, job.part)) as folder:
            for weights in settings["weights"]:
                source = files.model_dir(job.run, job.recipe["rounds"]) / f"{weights}.safetensors"
                unet.load(model, files.load_arrays(source), source)
                images = np.empty((last - first, height, width, channels), np.uint8)
                for start in range(first, last, batch_size):
                    stop = min(start + batch_size, last)
                    images[start - first : stop - first] = batch_of(start, stop)
                    done += stop - start
                    progress.update(done, total)
                files.save_array(folder / f"{weights}.npy", images)
            if labels is not None:
                files.save_array(folder / "labels.npy", labels)


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
    """The images of a generator from elsewhere become the arm's samples."""
    shape = files.load_array(files.DATA / "train.npy", mmap=True).shape[1:]
    progress = Progress(f"sample@{job.key}", "images")
    settings = params.section(job.params, "sample", job.arm)
    images = audit.images(job.recipe["generator"], shape, settings, job.seed, job.device, progress.update)
    with files.publish(files.samples_dir(job.run, job.part)) as folder:
        files.save_array(folder / "raw.npy", images)


if __name__ == "__main__":
    cli.run(main)

"""Generates one part of an arm's images from its final model, with raw and with EMA weights.

params    model, diffusion, compute, sample, arms.<arm>.sample
reads     artifacts/model/<run>/round<R>, artifacts/data for the shape of an image
writes    artifacts/samples/<run>/part<p>/<weights>.npy: [M_p,H,W,C] uint8
Image i starts from noise keyed by (seed, i), and parts are whole batches: their number changes no image.
"""

import numpy as np

from stages import cli, device, files, params
from stages.progress import Progress


def main(arguments):
    with cli.stage("sample", __doc__, arguments, "arm", "seed", "part") as job:
        job.device = device.claim(job.params["compute"])
        from stages.method import diffusion, sampling, unet

        settings = params.section(job.params, "sample", job.arm)
        batch_size, precision = settings["batch_size"], job.params["compute"]["precision"]
        first, last = sampling.part_of(settings["num_images"], batch_size, job.part, settings["parts"])
        height, width, channels = files.load_array(files.DATA / "train.npy", mmap=True).shape[1:]
        alpha_bars = diffusion.alpha_bars(**job.params["diffusion"])
        network = unet.build(job.params["model"], (channels, height, width)).to(job.device).eval()
        progress = Progress(f"sample@{job.key}", "images")
        total, done = (last - first) * len(settings["weights"]), 0
        with files.publish(files.samples_dir(job.run, job.part)) as folder:
            for weights in settings["weights"]:
                source = files.model_dir(job.run, job.recipe["rounds"]) / f"{weights}.safetensors"
                unet.load(network, files.load_arrays(source), source)
                images = np.empty((last - first, height, width, channels), np.uint8)
                for start in range(first, last, batch_size):
                    stop = min(start + batch_size, last)
                    x_T = sampling.starting_noise(start, stop, (channels, height, width), job.seed).to(job.device)
                    x = sampling.ddim(network, x_T, alpha_bars, settings["num_steps"], settings["protocol"], precision)
                    images[start - first : stop - first] = sampling.stored(x)
                    done += stop - start
                    progress.update(done, total)
                files.save_array(folder / f"{weights}.npy", images)


if __name__ == "__main__":
    cli.run(main)

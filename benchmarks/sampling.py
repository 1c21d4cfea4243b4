"""DDIM sampling in 50 steps: ours against diffusers' DDIMPipeline, on the same network, in turn."""

from benchmarks import common

CHOSEN = common.arguments(__doc__, network="small", batch=64, turns=5, steps=50, precision="fp32", device=None)

import copy  # noqa: E402 (the thread pools are set first)

import torch  # noqa: E402

from benchmarks.networks import NETWORKS  # noqa: E402
from stages.diffusion import ddpm, sampling, unet, weights  # noqa: E402
from stages.pixels import initial_weights  # noqa: E402


def sides(device):
    """Functions without arguments by name, each of which makes a batch of images."""
    import diffusers

    network = unet.build(NETWORKS[CHOSEN.network], (3, 32, 32))
    weights.load(network, initial_weights.initial_weights(network, 0), "the initialisation")
    network.to(device).eval()
    pipeline = diffusers.DDIMPipeline(
        diffusers.UNet2DModel.from_config(network.config).to(device).eval(), diffusers.DDIMScheduler(1000, 1e-4, 0.02)
    )
    pipeline.set_progress_bar_config(disable=True)
    alpha_bars = ddpm.alpha_bars(1000, 1e-4, 0.02)

    def ours():
        noise = sampling.starting_noise(0, CHOSEN.batch, (3, 32, 32), 0).to(device)
        return sampling.stored(sampling.ddim(network, noise, alpha_bars, CHOSEN.steps, "paper", CHOSEN.precision))

    def theirs():
        with torch.autocast(device.type, torch.bfloat16, enabled=CHOSEN.precision == "bf16"):
            return pipeline(batch_size=CHOSEN.batch, num_inference_steps=CHOSEN.steps, output_type="np").images

    last = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def channels_last():
        noise = sampling.starting_noise(0, CHOSEN.batch, (3, 32, 32), 0).to(device)
        return sampling.stored(sampling.ddim(last, noise, alpha_bars, CHOSEN.steps, "paper", CHOSEN.precision))

    return {"DDIMPipeline": theirs, "ours": ours, "ours, channels last": channels_last}


def main():
    device = common.torch_device(CHOSEN)
    common.heading()
    times = common.take_turns(sides(device), CHOSEN.turns, device, "sampling")
    title = f"Sampling, network {CHOSEN.network}, {CHOSEN.batch} images, {CHOSEN.steps} steps, {CHOSEN.precision}"
    common.table(title, times, "DDIMPipeline", work=CHOSEN.batch)


if __name__ == "__main__":
    main()

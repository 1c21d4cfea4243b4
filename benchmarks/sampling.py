"""DDIM sampling in 50 steps: ours against diffusers' DDIMPipeline, on the same network, in turn."""

from benchmarks import common

CHOSEN = common.arguments(__doc__, network="small", batch=64, turns=5, steps=50, precision="fp32", device=None)

import copy  # noqa: E402 (the thread pools are set first)

import torch  # noqa: E402

from benchmarks.networks import NETWORKS  # noqa: E402
from stages.diffusion import ddpm, sampling, unet, weights  # noqa: E402
from stages.methods import compiling  # noqa: E402
from stages.pixels import initial_weights  # noqa: E402


def network_on(device):
    network = unet.build(NETWORKS[CHOSEN.network], (3, 32, 32))
    weights.load(network, initial_weights.initial_weights(network, 0), "the initialisation")
    return network.to(device).eval()


def of_size(network, device):
    """A function of a number of images, which a network makes all at once."""
    alpha_bars = ddpm.alpha_bars(1000, 1e-4, 0.02)

    def images(number):
        noise = sampling.starting_noise(0, number, (3, 32, 32), 0).to(device)
        return sampling.stored(sampling.ddim(network, noise, alpha_bars, CHOSEN.steps, "paper", CHOSEN.precision))

    return images


def by_graph(device):
    """As `of_size`, with each pass through the network as a CUDA graph."""
    network = network_on(device)
    compiling.by_graph(network)
    return of_size(network, device)


def sides(device):
    """Functions without arguments by name, each of which makes a batch of images."""
    import diffusers

    network = network_on(device)
    pipeline = diffusers.DDIMPipeline(
        diffusers.UNet2DModel.from_config(network.config).to(device).eval(), diffusers.DDIMScheduler(1000, 1e-4, 0.02)
    )
    pipeline.set_progress_bar_config(disable=True)
    ours = of_size(network, device)

    def theirs():
        with torch.autocast(device.type, torch.bfloat16, enabled=CHOSEN.precision == "bf16"):
            return pipeline(batch_size=CHOSEN.batch, num_inference_steps=CHOSEN.steps, output_type="np").images

    last = of_size(copy.deepcopy(network).to(memory_format=torch.channels_last), device)
    return {
        "DDIMPipeline": theirs,
        "ours": lambda: ours(CHOSEN.batch),
        "ours, channels last": lambda: last(CHOSEN.batch),
    }


def main():
    device = common.torch_device(CHOSEN)
    common.heading()
    times = common.take_turns(sides(device), CHOSEN.turns, device, "sampling")
    title = f"Sampling, network {CHOSEN.network}, {CHOSEN.batch} images, {CHOSEN.steps} steps, {CHOSEN.precision}"
    common.table(title, times, "DDIMPipeline", work=CHOSEN.batch)


if __name__ == "__main__":
    main()

"""TAA as the authors' code for Stable Diffusion has it: the preset `taa.authors`.

Each batch only goes through the network to be judged. Samples that are kept wait in a queue; once it holds a batch, the first B of them
are read again, mirrored and augmented at ONE level, floor(M * mean rho), given timesteps and noise of their own, and trained on; the
rest of the queue is dropped. So no image is ever learnt as it is, and most batches are not followed by an optimiser step. AutoContrast
and Equalize have no level: they are applied at level 0 too.

Their code keeps places in the shard, which point at other images once images have moved. Here they are indices of images, and an image
that has left the shard leaves the queue.

B batch, Q = CAPACITY places in the queue.
"""

import dataclasses
import math

import torch

from stages import randomness
from stages.diffusion import ddpm
from stages.methods import base
from stages.methods.agc import augmentation, memory_bank

CAPACITY = 2048  # at least 2 B - 1


def initial_state(device):
    """An empty queue: queue, [Q] int64 indices of images, -1 behind the last; queue_rho, [Q] float32, the rho of each."""
    return {
        "queue": torch.full((CAPACITY,), -1, dtype=torch.int64, device=device),
        "queue_rho": torch.zeros(CAPACITY, device=device),
    }


def losses(step, settings):
    """Losses of a batch, minimised is None where the queue holds no whole batch yet.

    settings   section arms.<arm>.method
    """
    taa, lam, bank = settings["taa"], settings["lambda"], step.carried["bank"]
    with torch.no_grad():
        original = step.sample_losses()
    skipped = memory_bank.skip_mask(original, bank, step.t, lam)
    rho = augmentation.relative_strength(original, lam * bank[step.t], taa["A"])
    step.carried["bank"] = memory_bank.updated(bank, step.t, original, settings["eta"])
    waiting, strengths = _queued(step, (~skipped).nonzero().squeeze(1), rho)
    minimised, batch_size = None, len(step.x)
    if len(waiting) >= batch_size:
        level = math.floor(taa["magnitude"] * float(strengths[:batch_size].mean()))
        minimised = _learnt(step, waiting[:batch_size], level, taa)
        waiting, strengths = waiting[:0], strengths[:0]
    for name, values, empty in (("queue", waiting, -1), ("queue_rho", strengths, 0)):
        step.carried[name] = torch.full_like(step.carried[name], empty)
        step.carried[name][: len(values)] = values
    return base.Losses(minimised, original, skipped, ~skipped)


def _queued(step, kept, rho):
    """The queue with the kept samples of this batch behind it, without images that are no longer of the shard."""
    ids, device = step.shard.ids, step.x.device
    queue, strengths = step.carried["queue"], step.carried["queue_rho"]
    here = torch.isin(queue, ids.to(device))
    waiting = torch.cat([queue[here], step.ids.to(device)[kept]])
    if len(waiting) > CAPACITY:
        raise ValueError(
            f"train.batch_size is {len(step.x)}, expected at most {CAPACITY // 2} with taa.authors (params.yaml)"
        )
    return waiting, torch.cat([strengths[here], rho[kept]])


def _learnt(step, ids, level, taa):
    """Mean loss of images that are read again: augmented at one level, with flips, timesteps and noise of their own."""
    device, ids = step.x.device, ids.cpu()
    generator = randomness.torch_generator("cpu", "augment", *step.key)
    x = step.shard.pixels[torch.searchsorted(step.shard.ids, ids).to(device)]
    strength = torch.full((len(x),), float(level), device=device)
    x = augmentation.rand_augment(x, strength, generator, num_ops=taa["num_ops"], max_level=taa["max_level"])
    if step.settings["flip"]:
        flipped = (torch.rand(len(x), generator=generator) < 0.5).to(device)
        x = torch.where(flipped.view(-1, 1, 1, 1), x.flip(-1), x)
    noise = randomness.torch_generator(device, "second_noise", *step.key)
    again = dataclasses.replace(
        step,
        x=x,
        ids=ids,
        labels=None if step.labels is None else step.shard.labels[torch.searchsorted(step.shard.ids, ids).to(device)],
        t=torch.randint(len(step.alpha_bar), (len(x),), generator=noise, device=device),
        eps=torch.randn(step.objective.noise_shape(x), generator=noise, device=device),
        prompts=step.objective.prompts(ids, step.settings, step.key),
        condition=None,
    )
    return again.sample_losses(ddpm.normalise(x)).mean()

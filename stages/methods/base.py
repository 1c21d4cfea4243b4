"""What every training method has in common: plain DDPM. A method overrides what it changes.

B batch, C H W image, n images of the shard, T timesteps, N images of the training set.
"""

from dataclasses import dataclass, field

import torch

from stages import randomness
from stages.methods.objective import Objective, Pixels


@dataclass
class Images:
    """The images of one shard, and what the network learns of them.

    pixels   [n,C,H,W] uint8 on the device
    ids      [n] int64 on the CPU, increasing: their indices in the training set
    labels   [n] int64 on the device, None for a network without classes
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor | None = None
    objective: Objective = field(default_factory=Pixels)


@dataclass
class Step:
    """One optimiser step as a method sees it.

    network     in training mode
    x           [B,C,H,W] uint8, flipped where that was drawn
    flipped     [B] bool: the image is mirrored
    ids         [B] int64 on the CPU: index of each image in the training set
    labels      [B] int64 class of each image, None for an unconditional network
    t           [B] int64, 0 <= t < T
    eps         float32, standard normal, of the shape of what is noised: [B,C,H,W] for the images themselves
    alpha_bar   [T] float32
    carried     dict name -> tensor: what the method carries from step to step (see `initial_state`); change it in place
    settings    dict: batch_size, grad_clip_norm, precision, ...
    key         (seed, shard, step counted over all rounds), for draws of the method's own
    objective   what the network learns of an image
    prompts     list of B texts that the network is shown; a method may change it before the first loss is asked for
    condition   [B,tokens,width] float32: embeddings of the prompts, made when they are first needed; None without text
    shard       all images of the shard; None where a step is made by hand
    counts      [B] float32: what the loss of each sample counts in what is minimised, see timestep_focus; None: 1
    told        [B,A] float32: what the network is told of the augmentation of x, see told_augmentation; None without
    drawn       dict name -> tensor: what Method.drawn gave, on the device
    """

    network: torch.nn.Module
    x: torch.Tensor
    flipped: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor | None
    t: torch.Tensor
    eps: torch.Tensor
    alpha_bar: torch.Tensor
    carried: dict
    settings: dict
    key: tuple
    objective: Objective = field(default_factory=Pixels)
    prompts: list | None = None
    condition: torch.Tensor | None = None
    shard: Images | None = None
    counts: torch.Tensor | None = None
    told: torch.Tensor | None = None
    drawn: dict = field(default_factory=dict)

    def class_labels(self, rows=slice(None)):
        """What the network is told of some samples of the batch beside the timestep: labels, or labels and told; None for nothing."""
        labels = None if self.labels is None else self.labels[rows]
        return labels if self.told is None else (labels, self.told[rows])

    def counted(self, loss):
        """Losses [B] of the batch as they count in what is minimised."""
        return loss if self.counts is None else self.counts * loss

    def sample_losses(self, images=None, rows=slice(None)):
        """Losses of some samples of the batch: see Objective.sample_losses."""
        return self.objective.sample_losses(self, images, rows)


@dataclass
class Losses:
    """What a step came to.

    minimised            scalar whose gradient is taken; None: this batch is not followed by an optimiser step
    original             [B] float32, detached: loss of each image as it came
    skipped, augmented   [B] bool, or None where the method does neither
    again                [B] float32, what `Method.rest` is told of the augmented samples, which it takes anew; None: there is no rest
    """

    minimised: torch.Tensor | None
    original: torch.Tensor
    skipped: torch.Tensor | None = None
    augmented: torch.Tensor | None = None
    again: torch.Tensor | None = None


def clip(step):
    """Scales a gradient down that is longer than grad_clip_norm."""
    torch.nn.utils.clip_grad_norm_(step.network.parameters(), step.settings["grad_clip_norm"], foreach=True)


class Method:
    """Plain DDPM (Ho et al. 2020)."""

    # Forward passes through the network at each visit of an image.
    passes = 1

    def __init__(self, settings):
        """settings   section arms.<arm>.method"""
        self.settings = settings

    def network_channels(self, channels):
        """Channels that the network takes in and gives out, for images of so many channels."""
        return channels, channels

    def initial_state(self, num_timesteps, device):
        """What each shard carries from step to step and from round to round: dict name -> tensor of any dtype, on the device."""
        return {}

    def batch(self, num_images, batch_size, seed, shard, step):
        """Positions in the shard of the batch of one step; the images left over at the end of an epoch wait for the next.

        Returns   [B] int64 numpy array
        """
        epoch, batch = divmod(step, num_images // batch_size)
        order = randomness.numpy_generator("order", seed, shard, epoch).permutation(num_images)
        return order[batch * batch_size : (batch + 1) * batch_size]

    def images(self, step):
        """Other images that are learnt in the place of x: [B,C,H,W] float32 in [-1, 1]; None for x as it is."""
        return None

    def losses(self, step):
        """Losses of a batch (Eq. 2)."""
        loss = step.sample_losses(self.images(step))
        return Losses(step.counted(loss).mean(), loss.detach())

    def drawn(self, batch_size, key):
        """Draws of the method's own for a step that are made before it, on the CPU: dict name -> tensor."""
        return {}

    def rest(self, step, losses, size):
        """What is minimised as well, of the augmented samples: a scalar. It is asked for when the gradient of the first has been taken,
        so that never the activations of both are held: half the memory.

        losses   Losses of the step, with again
        size     samples that it passes through the network, at least as many as are augmented
        """
        raise NotImplementedError

    def rest_size(self, count):
        """The size of `rest` where so many samples are augmented."""
        raise NotImplementedError

    def rest_sizes(self, batch_size):
        """The sizes of `rest` of which a CUDA graph is captured, as each has one: increasing, up to batch_size."""
        return []

    def gradients(self, step):
        """Puts the gradient of a batch into the parameters, clipped, and returns its Losses."""
        losses = self.losses(step)
        if losses.minimised is None:
            return losses
        losses.minimised.backward()
        losses.minimised = losses.minimised.detach()
        if losses.again is not None and (count := int(losses.augmented.sum())):
            rest = self.rest(step, losses, self.rest_size(count))
            rest.backward()
            losses.minimised = losses.minimised + rest.detach()
        clip(step)
        return losses

    def spent(self, num_images, batch_size, num_steps):
        """Numbers for the report on what a shard's training spent so far, by name; such as the epsilon of a privacy accountant.

        num_images   of the shard
        num_steps    optimiser steps of the shard over all rounds so far
        """
        return {}

    def remark(self, skipped_share):
        """A sentence on a round in which this share of the visits was skipped, or None."""
        return None

    def sample(self, network, x, images, seed, labels, alpha_bars, settings, sampler):
        """Images from noise.

        network      in evaluation mode
        x            [B,C,H,W] float32 on the device: standard normal, the noise of images
        images       [B] int: number of each image, for draws of the method's own keyed by (seed, image)
        labels       [B] int64 or None
        alpha_bars   [T] float64
        settings     dict: protocol, num_steps, precision, ...
        sampler      stages.diffusion.sampling: handed in, as training does not depend on it
        Returns      [B,C,H,W] float32, about [-1, 1]
        """
        return sampler.ddim(
            network, x, alpha_bars, settings["num_steps"], settings["protocol"], settings["precision"], labels
        )

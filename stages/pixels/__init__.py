"""Models of pixels: a UNet that is trained from nothing, class-conditional or not. stages.methods.kinds says what a kind offers.

C H W image.
"""

import torch

from stages.diffusion import ddpm, unet
from stages.methods import kinds
from stages.methods.objective import Pixels
from stages.pixels import initial_weights


def build(method, model, diffusion, image_shape, num_classes, device):
    """See stages.methods.kinds; all of such a model is trained, so nothing is put on the device here."""
    channels = method.network_channels(image_shape[0])
    network = unet.build(model, image_shape, channels, num_classes, model.get("num_told", 0))
    return Model(method, network, ddpm.alpha_bars(**diffusion), num_classes, image_shape, device)


def memory_needed(model, image_shape, precision, batch_size=None, keeps_ema=False, guidance=1):
    """None: there is no estimate for this kind."""
    return None


class Model(kinds.Model):
    """A UNet, and its method."""

    def __init__(self, method, network, alpha_bars, num_classes, image_shape, device):
        super().__init__(method, network, alpha_bars, num_classes)
        self.image_shape, self.device = image_shape, device

    def first_weights(self, seed):
        return initial_weights.initial_weights(self.network, seed)

    def objective(self, settings, data, keep):
        return Pixels()

    def source(self, settings, data, seed, sampler):
        return Source(self, settings, seed, sampler)

    def profiled(self, images, labels, captions):
        return self.network, images, labels if self.num_classes else None


class Source(kinds.Source):
    """A UNet as a source of images; its method may have a sampler of its own.

    guidance   diffusion.amg.Guidance, or None: set by the phase that samples, as training does not depend on it
    """

    guidance = None

    def __init__(self, model, settings, seed, sampler):
        self.model, self.settings, self.seed, self.sampler = model, settings, seed, sampler
        self.network = model.network.to(model.device).eval()

    def labels(self, first, last):
        num_classes = self.model.num_classes
        return self.sampler.class_labels(first, last, num_classes, self.seed) if num_classes else None

    def generate(self, start, stop):
        model, images = self.model, range(start, stop)
        x_T = self.sampler.starting_noise(start, stop, model.image_shape, self.seed).to(model.device)
        labels = self.labels(start, stop)
        asked = None if labels is None else torch.from_numpy(labels).to(model.device)
        network = self.network if self.guidance is None else self.guidance.over(self.network, model.alpha_bars)
        with torch.no_grad():
            x = model.method.sample(
                network, x_T, images, self.seed, asked, model.alpha_bars, self.settings, self.sampler
            )
        return self.sampler.stored(x)

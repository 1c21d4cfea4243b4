"""A Stable Diffusion model as a kind of model: its UNet is trained, all else of it is only used.

C H W image, c h w latent.
"""

from stages.methods import kinds
from stages.text import generation, latents, model


class Model(kinds.Model):
    """The UNet of a Stable Diffusion model, and the method that trains it.

    folder         of the model, in diffusers' layout
    frozen         model.Frozen: what is not trained, on the device
    latent_shape   (c, h, w)
    """

    def __init__(self, method, folder, image_shape, device):
        self.folder, self.frozen = folder, model.Frozen(folder, device)
        self.latent_shape = self.frozen.latent_shape(image_shape)
        read = model.files_of(folder, *model.PARTS)
        super().__init__(method, model.unet(folder), self.frozen.alpha_bars, files=read)

    def first_weights(self, seed):
        """Those that come with the model, whatever the seed."""
        return model.unet_weights(self.folder)

    def objective(self, settings, data, keep):
        return latents.build(self.frozen, self.latent_shape, settings, data, keep)

    def source(self, settings, data, seed, sampler):
        return generation.Source(self, settings, data, seed, sampler)

    def profiled(self, images, labels, captions):
        return latents.profiled(self.frozen, self.network, images, captions)

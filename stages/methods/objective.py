"""What a network learns of an image, whatever the training method: of the image itself here, of its latent in stages.text.latents.

B batch, b rows of it, C H W image.
"""

from stages.diffusion import ddpm


class Objective:
    """What every objective offers. This one is of a network that sees no captions."""

    def noise_shape(self, x):
        """Shape of the noise for images x [B,C,H,W]."""
        return x.shape

    def prompts(self, ids, settings, key):
        """The captions that a step shows the network: list of B texts; None where it sees none.

        ids        [B] int64 on the CPU: index of each image in the training set
        settings   section train
        key        (seed, shard, step counted over all rounds)
        """
        return None

    def numbers(self):
        """Numbers for the report on what the network is shown, by name."""
        return {}

    def sample_losses(self, step, images, rows):
        """Losses of some samples of a batch, each with its own timestep, noise and caption.

        step     base.Step
        images   [b,C,H,W] float32 in [-1, 1]: other images in the place of step.x; None for those as they are
        rows     which samples of the batch they are: a slice, or [b] int64
        Returns  [b] float32: squared error, mean over all but the batch
        """
        raise NotImplementedError


class Pixels(Objective):
    """The noise on the image (Eq. 2)."""

    def sample_losses(self, step, images, rows):
        x_0 = ddpm.normalise(step.x[rows]) if images is None else images
        labels = step.class_labels(rows)
        return ddpm.sample_losses(
            step.network, x_0, step.t[rows], step.eps[rows], step.alpha_bar, step.settings["precision"], labels
        )

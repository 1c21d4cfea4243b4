"""What a network learns of an image, whatever the training method: of the image itself here, of its latent in stages/text.

B batch, b rows of it, C H W image.
"""

from stages.diffusion import ddpm


class Pixels:
    """The noise on the image (Eq. 2)."""

    def noise_shape(self, x):
        """Shape of the noise for images x [B,C,H,W]."""
        return x.shape

    def prompts(self, ids, settings, key):
        """The captions that a step shows the network, list of B texts; None where it sees none."""
        return None

    def numbers(self):
        """Numbers for the report on what the network is shown, by name."""
        return {}

    def sample_losses(self, step, images, rows):
        """See base.Step.sample_losses."""
        x_0 = ddpm.normalise(step.x[rows]) if images is None else images
        labels = None if step.labels is None else step.labels[rows]
        return ddpm.sample_losses(
            step.network, x_0, step.t[rows], step.eps[rows], step.alpha_bar, step.settings["precision"], labels
        )

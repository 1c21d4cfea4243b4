"""DP-SGD (Abadi et al. 2016): the gradient of every sample is clipped, and noise is added to their sum.

B expected batch size, n images of the shard, D number of weights.

The privacy it buys is spent.epsilon of the report: the smallest epsilon for the given delta by the RDP accountant of opacus,
at the sampling rate B / n, which assumes the Poisson sampling that is done here. With K shards each image is in one of them,
so the largest epsilon of the shards holds for all. The noise follows from the seed, as all draws do: who knows the seed can
take it off again, so keep the seed of a model whose privacy matters to yourself.
"""

import warnings

import torch

from stages import randomness
from stages.methods import base

SETTINGS = {
    "required": ["clip", "noise_multiplier", "delta"],
    "properties": {
        "clip": {
            "description": "C, largest L2 norm of the gradient of one sample; train.grad_clip_norm has no effect",
            "type": "number",
            "exclusiveMinimum": 0,
        },
        "noise_multiplier": {
            "description": "sigma: the noise on the summed gradient has standard deviation sigma * clip",
            "type": "number",
            "exclusiveMinimum": 0,
        },
        "delta": {
            "description": "probability with which the privacy bound may fail",
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
        },
    },
}
FOCUSABLE = False  # clipping the gradient of every sample would undo what its loss counts
COMPILE = []  # opacus hangs on what a compiled network no longer calls
CHANNELS_LAST = False  # see per_sample_gradients
AT_ONCE = 16  # samples whose gradients are held at a time: each takes the memory of the weights


def per_sample_gradients(network, sample_losses):
    """The gradient of every sample by itself, through opacus.

    opacus silently gives wrong gradients (zeros on the CPU) for a convolution whose input does not lie in NCHW order, as
    everything after an attention block of diffusers does: its inputs are therefore put in order first.

    network         any network without layers that mix samples
    sample_losses   function () -> [B] losses, a call to the network included
    Returns         list of [B, *shape of the parameter] float32, in the order of network.parameters(); [B] losses, detached
    """
    from opacus import GradSampleModule

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks on modules whose inputs need no gradient
        in_order = [
            module.register_forward_pre_hook(lambda _, inputs: tuple(value.contiguous() for value in inputs))
            for module in network.modules()
            if isinstance(module, torch.nn.Conv2d)
        ]
        wrapped = GradSampleModule(network, loss_reduction="sum")
        try:
            losses = sample_losses()
            losses.sum().backward()
            gradients = [p.grad_sample.float() for p in network.parameters()]  # of a bf16 pass too: the bound is exact
        finally:
            for hook in in_order:
                hook.remove()
            wrapped.to_standard_module()
            for p in network.parameters():
                p.grad = None
    return gradients, losses.detach()


def clipped_sum(gradients, clip):
    """Sum over the samples of their gradients, each scaled down to an L2 norm over all D weights of at most `clip`.

    gradients   list of [B, ...]
    Returns     list of [...]
    """
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
    factor = (clip / norms.clamp(min=1e-12)).clamp(max=1.0)
    return [torch.einsum("b,b...->...", factor, g) for g in gradients]


class Method(base.Method):
    def batch(self, num_images, batch_size, seed, shard, step):
        """Poisson sampling: every image is in the batch with probability B / n, so a batch has B images on average."""
        draws = randomness.numpy_generator("poisson", seed, shard, step).random(num_images)
        return (draws < batch_size / num_images).nonzero()[0]

    def gradients(self, step):
        """(sum of the clipped gradients + N(0, (sigma C)^2)) / B."""
        network, clip = step.network, self.settings["clip"]
        total = [torch.zeros_like(p) for p in network.parameters()]
        original = [torch.zeros(0, device=step.x.device)]
        for start in range(0, len(step.x), AT_ONCE):
            rows = slice(start, start + AT_ONCE)
            gradients, losses = per_sample_gradients(network, lambda rows=rows: step.sample_losses(rows=rows))
            for summed, addend in zip(total, clipped_sum(gradients, clip), strict=True):
                summed += addend
            original.append(losses)
        generator = randomness.torch_generator(step.x.device, "dp_noise", *step.key)
        deviation = self.settings["noise_multiplier"] * clip
        for p, summed in zip(network.parameters(), total, strict=True):
            noise = torch.randn(p.shape, generator=generator, device=p.device)
            p.grad = (summed + deviation * noise) / step.settings["batch_size"]
        original = torch.cat(original)
        return base.Losses(original.sum() / max(1, len(original)), original)

    def spent(self, num_images, batch_size, num_steps):
        """epsilon so far."""
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(self.settings["noise_multiplier"], batch_size / num_images, num_steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an epsilon so large that the order that gives it is the first or last
            return {"epsilon": float(accountant.get_epsilon(self.settings["delta"]))}

"""Guidance away from the training images while images are generated, after AMG (Chen, Liu and Xu 2024, arXiv 2404.00922).

At each step the image that is predicted so far is compared with the training images, by the ratio that copies are counted by. Where it
comes near to one of them it is moved away from it. The models stay what they are.

It lowers the very ratio that it is judged by, and a moved copy may still show what the training image shows. So look at its images as
well, and at membership inference, which it leaves as it is.

It is not the published sampler: with the published numbers it makes other images. As in the published code (chenchen-usyd/AMG-iddpm) are the
ratio nL2 with 50 neighbours, the training images without near-copies, that an image is guided from the step on in which its nL2 was below 1.5, and
a level that goes from 1.95 down to 1.5. What differs:

what is compared     the predicted image with the training images; there x_t with training images that have noise of their own
what is moved        the predicted image, straight away from the nearest one to where its ratio is the level, the other distances taken as they
                     are; there the mean of the step, by 80,000 times what is lacking of the level, the variance of the step and the gradient of the
                     ratio by x_t. Neither goes through the network
strength             the share of that way; it has no counterpart there, nor has the 80,000 one here
sampler              DDIM in the steps of the experiment, without noise; there 250 ancestral steps, with learned variance
first step           of guidance: where the image itself comes near; there where an unguided one does, which is made beside it
pauses               none; there guidance rests for 10 steps after 3 that did not need it
other guidance       the paper's despecification guidance and its caption deduplication are not here

B batch, C H W image, D = C H W, N training images that count, T timesteps. Images in [-1, 1].
"""

import math
from types import SimpleNamespace

import torch

# sample.mitigation in params.yaml: by name, the JSON schema of what it holds beside it. Plain data.
SETTINGS = {
    "amg": {
        "required": ["start", "level", "strength", "neighbours"],
        "properties": {
            "start": {
                "description": "an image is guided from the step on in which its nL2, the distance to the nearest training image divided by half the "
                "mean distance to the nearest ones, is below this (1.5 in the published code; 2 is the largest value it can have)",
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 2,
            },
            "level": {
                "description": "nL2 that it is moved to at the first steps, which goes down to start at the last (1.95 in the published code)",
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 2,
            },
            "strength": {
                "description": "share of the way there that it is moved in each step; 1: all of it (the published code has no such number)",
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
            },
            "neighbours": {
                "description": "number of nearest training images that the mean is taken of (50 in the published code)",
                "type": "integer",
                "minimum": 2,
            },
        },
    },
}
DECAY = 0.025 * 250  # of the level over t / T: 0.025 in each of 250 steps
NEARLY = 1.0  # nL2 below which a training image is a near-copy of another, as in the published code
AT_ONCE = 2**26  # pairs of training images


def level_at(settings, share):
    """The nL2 that an image is moved to: start at the last step, nearly `level` at the first.

    settings   section sample.mitigation
    share      t / T, in [0, 1]
    """
    return settings["level"] - (settings["level"] - settings["start"]) * math.exp(-DECAY * share)


def vectors(train):
    """Images [M,H,W,C] uint8 as they are compared: [M,D] float32 in [-1, 1]."""
    return torch.from_numpy(train).permute(0, 3, 1, 2).reshape(len(train), -1).float() / 127.5 - 1


def not_near_copies(images, neighbours):
    """Which training images are no near-copies of others, as the published code finds them: one after the other, an image is left out whose nL2 to
    those that are not left out is below NEARLY. Of images that are equal the last stays.

    images      [M,D] float32
    neighbours  number of nearest images that the mean of nL2 is taken of, or all others where there are fewer
    Returns     [M] bool
    """
    stays, num_stay = torch.ones(len(images), dtype=torch.bool, device=images.device), len(images)
    norms, rows = images.square().sum(dim=1), max(1, AT_ONCE // len(images))
    for start in range(0, len(images), rows):
        block = slice(start, start + rows)
        for i, squared in enumerate(norms[block, None] - 2 * images[block] @ images.T + norms, start):
            count = min(neighbours, num_stay - 1)
            if not count:
                break
            squared[i] = math.inf
            found = squared.masked_fill(~stays, math.inf).topk(count, largest=False)
            nearest = images[found.indices[0]]
            first = float((images[i] - nearest).norm())  # of equal images the sum above holds rounding alone
            others = float(found.values[1:].clamp(min=0).sqrt().sum())
            if first == 0 or 2 * count * first < NEARLY * (first + others):
                stays[i], num_stay = False, num_stay - 1
    return stays


class Guidance:
    """Guides images away from the training images.

    settings   section sample.mitigation
    train      [M,H,W,C] uint8: training images; those that `not_near_copies` leaves out do not count, or a copy's nearest ones were its twins
    device     of the images
    stays      [M] bool: what `not_near_copies` says of them, where that is known; None: it is found here, in a time that grows with M^2
    Raises     ValueError: fewer images count than settings["neighbours"]
    """

    def __init__(self, settings, train, device, stays=None):
        images = vectors(train).to(device)
        if stays is None:
            stays = not_near_copies(images, settings["neighbours"])
        images = images[torch.as_tensor(stays, device=device)]
        if len(images) < settings["neighbours"]:
            raise ValueError(
                f"sample.mitigation.neighbours is {settings['neighbours']}, but of the {len(train)} training images {len(images)} are no "
                "near-copies of others: use at most that number (params.yaml)"
            )
        self.settings = settings
        self.train = images
        self.norms = self.train.square().sum(dim=1)

    def nearest(self, x_0):
        """The nearest training image of each image, and what its nL2 is made of: d_1 over half the mean of the k smallest distances.

        x_0       [B,D] float32
        Returns   [B,D] float32, the nearest training images; [B] d_1, the distances to them (not squared); [B] the sums of d_2 .. d_k. So nL2, in
                  [0, 2], is 2 k d_1 / (d_1 + sum)
        """
        squared = x_0.square().sum(dim=1, keepdim=True) - 2 * x_0 @ self.train.T + self.norms
        index = squared.topk(self.settings["neighbours"], dim=1, largest=False).indices
        nearest = self.train[index[:, 0]]
        # Of distances near 0 the sum above holds rounding alone.
        first = (x_0 - nearest).square().sum(dim=1).sqrt()
        others = squared.gather(1, index[:, 1:]).clamp(min=0).sqrt().sum(dim=1)
        return nearest, first, others

    def moved(self, x_0, guided, share):
        """Predicted images, moved away from their nearest training images where that is asked for.

        x_0       [B,C,H,W] float32
        guided    [B] bool: images that were guided before; set here where nL2 < start
        share     t / T
        Returns   [B,C,H,W] float32, clamped to [-1, 1] where it was moved
        """
        flat = x_0.flatten(1)
        nearest, first, others = self.nearest(flat)
        twice = 2 * self.settings["neighbours"]
        ratio = twice * first / (first + others)
        guided |= ratio < self.settings["start"]
        level = level_at(self.settings, share)
        # There is no way away from a training image that is met exactly.
        towards = guided & (ratio < level) & (first > 0)
        # The d_1 that has the level's ratio, the other distances taken as they are.
        wanted = level * others / (twice - level)
        grown = 1 + self.settings["strength"] * (wanted / first - 1)
        away = (nearest + grown[:, None] * (flat - nearest)).clamp(-1, 1)
        return torch.where(towards[:, None], away, flat).view_as(x_0)

    def over(self, network, alpha_bars):
        """A network that predicts noise as one whose predicted images are moved; for one batch from its first step to its last.

        network      (x [B,C,H,W], t [B], ...) -> object with .sample
        alpha_bars   [T] float64
        """
        guided = None

        def predict(x, t, **conditions):
            nonlocal guided
            eps = network(x, t, **conditions).sample.float()
            if guided is None:
                guided = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            signal = float(alpha_bars[int(t[0])])
            with torch.autocast(x.device.type, enabled=False):
                x_0 = ((x - (1 - signal) ** 0.5 * eps) / signal**0.5).clamp(-1, 1)
                moved = self.moved(x_0, guided, int(t[0]) / len(alpha_bars))
                changed = (moved != x_0).flatten(1).any(dim=1).view(-1, 1, 1, 1)
                return SimpleNamespace(
                    sample=torch.where(changed, (x - signal**0.5 * moved) / (1 - signal) ** 0.5, eps)
                )

        return predict

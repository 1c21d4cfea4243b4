"""ambient_high: what the network is shown, and that what minimises its loss is the noise that DDPM predicts."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_methods import SEED, T, pictures, step_of

from stages.diffusion import ddpm
from stages.methods import ambient_high

SIGMA_N = 0.8
ALPHA_BAR = ddpm.alpha_bars(T, 0.005, 0.3)
SIGMA = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
FIRST_HIGH = int((SIGMA <= SIGMA_N).sum())
METHOD = ambient_high.Method({"name": "ambient_high", "sigma_n": SIGMA_N})


class Seeing(torch.nn.Module):
    """Remembers what it was shown, and answers with a learnt number times that."""

    def __init__(self):
        super().__init__()
        self.factor, self.shown = torch.nn.Parameter(torch.tensor(0.3)), []

    def forward(self, x, t, class_labels=None):
        self.shown.append(x.detach())
        return SimpleNamespace(sample=self.factor * x)


def seed_of(image):
    low, high = np.random.SeedSequence([57, SEED, image]).generate_state(2, np.uint32)
    return int(low) + (int(high) << 32)


def test_both_sides_of_sigma_n_occur():
    assert 3 < FIRST_HIGH < T - 3


def test_a_batch_by_hand():
    """Every timestep once, with ids that are not their places; half of the images mirrored."""
    x, ids = pictures(T, channels=2, side=4), 100 + 3 * torch.arange(T)
    step = step_of(Seeing(), x, ids=ids)
    step.t, step.flipped = torch.arange(T), torch.arange(T) % 2 == 1
    losses = METHOD.losses(step)
    (shown,), expected = step.network.shown, []
    for i in range(T):
        sigma, x_0, eps = float(SIGMA[i]), x[i].double() / 127.5 - 1, step.eps[i].double()
        e = torch.from_numpy(
            np.random.default_rng(seed_of(100 + 3 * i)).standard_normal((2, 4, 4), np.float32)
        ).double()
        e = e.flip(-1) if i % 2 else e
        if sigma > SIGMA_N:
            x_t = x_0 + SIGMA_N * e + math.sqrt(sigma**2 - SIGMA_N**2) * eps
            r = math.sqrt(1 - SIGMA_N**2 / sigma**2)
        else:
            x_t, r = x_0 + sigma * eps, 1.0
        x_t = x_t * math.sqrt(float(ALPHA_BAR[i]))
        assert torch.allclose(shown[i].double(), x_t, atol=1e-5), i
        expected.append(float(((eps - r * 0.3 * x_t) ** 2).mean()))
    assert losses.original.tolist() == pytest.approx(expected, rel=1e-4)
    assert float(losses.minimised.detach()) == pytest.approx(sum(expected) / T, rel=1e-4) and losses.skipped is None


def test_at_high_noise_an_image_is_seen_through_one_noise_alone():
    """Mean of many visits: the copy, not the image; mirrored visits give the mirrored copy. At low noise it is the image."""
    x = pictures(1, side=5)
    copy = ddpm.normalise(x) + SIGMA_N * ambient_high.fixed_noise([7], (1, 5, 5), SEED)
    for t, expected in ((FIRST_HIGH, copy), (FIRST_HIGH - 1, ddpm.normalise(x))):
        seen = []
        for visit in range(600):
            mirrored = visit % 2 == 1
            step = step_of(Seeing(), x.flip(-1) if mirrored else x, ids=torch.tensor([7]), number=visit)
            step.t, step.flipped = torch.tensor([t]), torch.tensor([mirrored])
            METHOD.losses(step)
            shown = step.network.shown[0] / step.alpha_bar[t].sqrt()
            seen.append(shown.flip(-1) if mirrored else shown)
        error = (torch.stack(seen).mean(0) - expected).abs().max()
        assert float(error) < 4.5 * float(SIGMA[t]) / 600**0.5
    assert float((copy - ddpm.normalise(x)).abs().max()) > 1


def test_small_sigma_n_is_plain_training():
    step = step_of(Seeing(), pictures(9))
    plain = step.sample_losses()
    found = ambient_high.Method({"sigma_n": 1e-6}).losses(step).original
    assert torch.allclose(found, plain.detach(), rtol=1e-4)


# The loss is smallest where the network predicts E[n | x_t]: on a mixture whose conditional mean is a sum over its two values.

VALUES, SHARES = (-0.6, 0.8), (0.3, 0.7)  # of a pixel; each pixel is drawn by itself


class Posterior(torch.nn.Module):
    """(1 + a) E[n | x_t] + b, by brute force over the values of a pixel: x_t = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) n."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Parameter(torch.zeros(())), torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, class_labels=None):
        signal = ALPHA_BAR[t].view(-1, 1, 1, 1)
        noise = torch.stack([(x.double() - signal.sqrt() * v) / (1 - signal).sqrt() for v in VALUES])
        weight = torch.tensor(SHARES, dtype=torch.float64).view(2, 1, 1, 1, 1) * torch.exp(-(noise**2) / 2)
        mean = (weight * noise).sum(0) / weight.sum(0)
        return SimpleNamespace(sample=((1 + self.a) * mean + self.b).float())


def gradient_at_the_posterior(method):
    """Of a and b, divided by their standard errors over 300 images of 24 x 24 pixels; four high timesteps."""
    random = torch.Generator().manual_seed(3)
    high = torch.rand(300, 1, 24, 24, generator=random) < SHARES[1]
    x = torch.where(high, (VALUES[1] + 1) * 127.5, (VALUES[0] + 1) * 127.5).round().to(torch.uint8)
    parts = []
    for i in range(0, 300, 10):
        step = step_of(Posterior(), x[i : i + 10], ids=torch.arange(i, i + 10), number=i)
        step.t = FIRST_HIGH + torch.arange(10) % 4
        method.losses(step).minimised.backward()
        parts.append([float(step.network.a.grad), float(step.network.b.grad)])
    parts = torch.tensor(parts)
    return parts.mean(0) / (parts.std(0) / len(parts) ** 0.5)


def test_the_loss_is_smallest_at_the_conditional_mean_of_the_noise():
    assert float(gradient_at_the_posterior(METHOD).abs().max()) < 4


@pytest.mark.parametrize("wrong", ["no r in the loss", "the loss of the copy alone"])
def test_wrong_derivations_would_be_noticed(wrong):
    class Wrong(ambient_high.Method):
        def losses(self, step):
            x = ddpm.normalise(step.x)
            noise = ambient_high.fixed_noise(step.ids, x.shape[1:], step.key[0])
            r = (1 - SIGMA_N**2 / SIGMA[step.t] ** 2).sqrt().float().view(-1, 1, 1, 1)
            eps = step.eps if wrong == "the loss of the copy alone" else r * step.eps
            x_t = ddpm.noised(x + SIGMA_N * noise, step.t, eps, step.alpha_bar)
            loss = (step.eps - ddpm.predicted(step.network, x_t, step.t)).square().mean(dim=(1, 2, 3))
            return ambient_high.base.Losses(loss.mean(), loss.detach())

    assert float(gradient_at_the_posterior(Wrong({"sigma_n": SIGMA_N})).abs().max()) > 10


# The same at every timestep, of images that are points in space: three of them, unequally many, and their mirror images. What one pixel is
# depends on the others.

POINTS = torch.tensor([[40, 90, 200], [215, 60, 20], [120, 240, 140]], dtype=torch.uint8).view(3, 1, 1, 3)
OFTEN = torch.tensor([0.55, 0.3, 0.15])


def with_mirrored(images):
    """[P,1,1,3] to the centres [2P,3] float64 of what is seen, mirrored or not."""
    return torch.cat([images, images.flip(-1)]).view(-1, 3).double()


class OfPoints(torch.nn.Module):
    """What minimises the loss, by brute force over the centres of x_t; and away from it, mean + A mean + b at low and at high timesteps.

    centres   [2,P,3] float64: at low and at high timesteps
    copies    whether the centres at high timesteps are noisy copies. What is around them is r of the noise that was drawn, and r times the
              answer is compared with that: so the answer is E[eps | x_t] / r
    """

    def __init__(self, centres, copies):
        super().__init__()
        self.centres, self.copies = centres, copies
        self.away = torch.nn.Parameter(torch.zeros(2, 3, 4, dtype=torch.float64))

    def forward(self, x, t, class_labels=None):
        high = t >= FIRST_HIGH
        r = (1 - SIGMA_N**2 / SIGMA[t] ** 2).clamp(min=0).sqrt()
        r = torch.where(high & self.copies, r, 1.0)[:, None]
        signal = ALPHA_BAR[t].view(-1, 1, 1)
        noise = x.double().view(-1, 1, 3) - signal.sqrt() * self.centres[high.long()]
        noise = noise / ((1 - signal).sqrt() * r[:, None])
        weight = torch.softmax(OFTEN.repeat(2).log() - noise.square().sum(dim=2) / 2, dim=1)
        mean = (weight[:, :, None] * noise).sum(dim=1) / r
        terms = torch.cat([mean, torch.ones_like(mean[:, :1])], dim=1)
        answer = mean + torch.einsum("bij,bj->bi", self.away[high.long()], terms)
        return SimpleNamespace(sample=answer.float().view(-1, 1, 1, 3))


def gradient_at(network, method, each_anew, num_batches=100, size=60):
    """Of A and b, divided by their standard errors: the largest. Images are points as often as OFTEN says, half of them mirrored.

    each_anew   every visit is of another image, with another noise of its own; False: there are three images
    """
    parts = []
    for number in range(num_batches):
        random = torch.Generator().manual_seed(1000 + number)
        which = torch.multinomial(OFTEN, size, replacement=True, generator=random)
        mirrored = torch.rand(size, generator=random) < 0.5
        x = torch.where(mirrored.view(-1, 1, 1, 1), POINTS[which].flip(-1), POINTS[which])
        ids = size * number + torch.arange(size) if each_anew else IDS[which]
        step = step_of(network, x, ids=ids, number=number)
        step.flipped = mirrored
        network.zero_grad()
        method.losses(step).minimised.backward()
        parts.append(network.away.grad.flatten().clone())
    parts = torch.stack(parts)
    return float((parts.mean(0) / (parts.std(0) / num_batches**0.5)).abs().max())


IDS = torch.tensor([31, 4, 17])
IMAGES = with_mirrored(ddpm.normalise(POINTS))
COPIES = with_mirrored(ddpm.normalise(POINTS) + SIGMA_N * ambient_high.fixed_noise(IDS, (1, 1, 3), SEED))


def test_over_many_images_the_loss_is_smallest_at_the_noise_that_ddpm_predicts():
    """At every timestep: of the images themselves, though at high noise none of them was ever seen."""
    network = OfPoints(torch.stack([IMAGES, IMAGES]), copies=False)
    assert gradient_at(network, METHOD, each_anew=True) < 4


def test_over_three_images_the_loss_is_smallest_at_the_images_at_low_noise_and_at_their_copies_at_high():
    """What can be learnt by heart at high noise: the three copies, and those mirrored, and nothing else."""
    network = OfPoints(torch.stack([IMAGES, COPIES]), copies=True)
    assert gradient_at(network, METHOD, each_anew=False) < 4
    assert gradient_at(OfPoints(torch.stack([IMAGES, IMAGES]), copies=False), METHOD, each_anew=False) > 10


def test_noise_that_is_not_mirrored_with_its_image_would_be_noticed():
    """Over many images it is not, as mirrored noise is as likely as noise; three images would have two copies each."""

    class NotMirrored(ambient_high.Method):
        def losses(self, step):
            step.flipped = torch.zeros_like(step.flipped)  # the image is mirrored already
            return super().losses(step)

    network = OfPoints(torch.stack([IMAGES, COPIES]), copies=True)
    assert gradient_at(network, NotMirrored({"sigma_n": SIGMA_N}), each_anew=False) > 10
    everywhere = OfPoints(torch.stack([IMAGES, IMAGES]), copies=False)
    assert gradient_at(everywhere, NotMirrored({"sigma_n": SIGMA_N}), each_anew=True) < 4

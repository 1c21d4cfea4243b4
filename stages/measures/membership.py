"""Membership inference: does a model tell whether it was trained on an image?

n training images (members) and as many held-out ones, N = 2 n, C H W image, T timesteps, S timesteps looked at. Every statistic is
lower where the model knows an image, so its negative is the score of an attack. With e(x, t) the predicted noise, a_t = alpha_bar_t:

loss    mean of (e(x_t, t) - eps)^2 over pixels and draws of eps (Eq. 2; Matsumoto et al. 2023)
pia     |e(x_0, 0) - e(sqrt(a_t) x_0 + sqrt(1 - a_t) e(x_0, 0), t)|_4 (Kong et al. 2023, arXiv 2305.18355)
secmi   |x~_t - x_t|^2, where x_t follows from x_0 by DDIM steps towards noise, and x~_t from it by a further one and one back
        (Duan et al. 2023, arXiv 2302.01316)
sima    |e(x_0, t)|_4, the image itself shown at t (arXiv 2509.25003)

Which timestep, and which attack, does best is chosen on one half of the images and judged on the other, then the other way round:
so all images are used, and none chooses what it is judged by.
"""

from typing import NamedTuple

import numpy as np
import torch

from stages.diffusion import ddpm
from stages.measures import loss_profile, roc
from stages.measures.intervals import NORMAL_97_5

ATTACKS = ("loss", "pia", "secmi", "sima")
FALSE_SHARES = (0.01, 0.001)  # of the held-out images that are taken for members
REDRAWN = 1000  # samples of the bootstrap
CHOICE = 0.36  # correlation of the areas of the two halves by the choice, at most: see `judged`


class Judged(NamedTuple):
    """How well an attack does.

    auc, low, high   area under the ROC curve, in [0, 1], with its 95 % interval; None where the two groups do not overlap
    found            for each of FALSE_SHARES (share of the members found, low, high); None with too few held-out images for it
    chosen           names of what did best on the second half, and on the first: those that the first and the second are judged by
    score            [N] float64: that of the attack; only scores of one half compare
    contribution     [N] float64 with mean auc, by which the interval of a difference of two models on the same images follows
    """

    auc: float
    low: float | None
    high: float | None
    found: list
    chosen: list
    score: np.ndarray
    contribution: np.ndarray


def pairs(train_labels, heldout_labels, most, rng):
    """Training images and as many held-out ones of the same classes, at random.

    train_labels     [N'] integer class of each training image; all equal where there are no classes
    heldout_labels   [H] integer
    most             how many of each, at most
    rng              numpy.random.Generator
    Returns          [2,n] int64: indices of the members, and of held-out images of the same classes, in an order drawn at random
    """
    found = []
    for label in np.intersect1d(train_labels, heldout_labels):
        both = [rng.permutation(np.flatnonzero(labels == label)) for labels in (train_labels, heldout_labels)]
        size = min(map(len, both))
        found.append(np.stack([images[:size] for images in both]))
    found = np.concatenate(found, axis=1) if found else np.zeros((2, 0), np.int64)
    return found[:, rng.permutation(found.shape[1])[:most]]


def interval(num_timesteps):
    """Timesteps of a DDIM step of secmi: 10 of 1,000."""
    return max(1, num_timesteps // 100)


def timesteps(num_timesteps, shares):
    """The timesteps looked at: multiples of the interval next to the shares of T, each once, ascending; without those that leave no
    room for the further step of secmi."""
    step = interval(num_timesteps)
    found = {max(step, step * round(share * num_timesteps / step)) for share in shares}
    return sorted(t for t in found if t + step < num_timesteps)


@torch.no_grad()
def statistics(network, x_0, at, num_draws, alpha_bars, seed, batch_size, precision="fp32", progress=None, labels=None):
    """All statistics of all images. Of an image it takes S (num_draws + 2) passes through the network, and max(at) / interval + 2.

    network      in evaluation mode: (x, t [B][, class_labels]) -> object with the noise in .sample
    x_0          [N,C,H,W] float32 on the device of the network: images in [-1, 1], or their latents
    at           [S] ascending multiples of the interval, see `timesteps`
    num_draws    noise draws of the loss at each timestep, shared by all images (loss_profile.losses)
    alpha_bars   [T] float64
    seed         of those draws
    progress     None or a callable (images done, N)
    labels       [N] int64 class of each image, or [N,L,D] embedding of its caption; None for an unconditional network
    Returns      dict of ATTACKS -> [N,S] float64
    Raises       FloatingPointError: a statistic is not finite
    """
    alpha_bar = alpha_bars.float().to(x_0.device)
    losses = loss_profile.losses(network, x_0, at, num_draws, alpha_bar, seed, batch_size, precision, None, labels)
    found = []
    for start in range(0, len(x_0), batch_size):
        rows = slice(start, start + batch_size)
        y = None if labels is None else labels[rows]
        found.append(_without_noise(network, x_0[rows], at, alpha_bars.tolist(), precision, y))
        if progress is not None:
            progress(min(start + batch_size, len(x_0)), len(x_0))
    whole = {name: torch.cat([batch[name] for batch in found]).cpu().numpy() for name in ATTACKS[1:]}
    if not all(np.isfinite(values).all() for values in whole.values()):
        raise FloatingPointError("a predicted noise is not finite: the model has diverged")
    return {"loss": losses} | whole


def _without_noise(network, x_0, at, alpha_bars, precision, labels):
    """pia, secmi and sima of a batch: dict -> [B,S] float64. alpha_bars: list of T numbers."""

    def predicted(x, t):
        return ddpm.predicted(network, x, torch.full((len(x),), t, device=x.device), precision, labels)

    def norm(x, order):
        return torch.linalg.vector_norm(x.double(), ord=order, dim=(1, 2, 3))

    at_0, found = predicted(x_0, 0), {name: [] for name in ATTACKS[1:]}
    for t in at:
        noised = alpha_bars[t] ** 0.5 * x_0 + (1 - alpha_bars[t]) ** 0.5 * at_0
        found["pia"].append(norm(at_0 - predicted(noised, t), 4))
        found["sima"].append(norm(predicted(x_0, t), 4))
    step, x, noise = interval(len(alpha_bars)), x_0, at_0
    for t in range(0, at[-1] + 1, step):
        signal, further = alpha_bars[t], alpha_bars[t + step]
        x = (further / signal) ** 0.5 * (x - (1 - signal) ** 0.5 * noise) + (1 - further) ** 0.5 * noise
        before, noise = noise, predicted(x, t + step)
        if t in at:  # the step back differs from where it started by the two noises alone: written out, nothing cancels
            factor = (signal * (1 - further) / further) ** 0.5 - (1 - signal) ** 0.5
            found["secmi"].append(factor**2 * norm(before - noise, 2) ** 2)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


def judged(candidates, rng):
    """How well the best of several attacks does.

    candidates   dict name -> [2,n] float64: statistics of the members and of the held-out images, n >= 4
    rng          numpy.random.Generator of the bootstrap
    Returns      Judged. The interval of the area is DeLong's, of the two halves together: it needs no draws, and gives what each image
                 contributes. That of a share found is the middle 95 % of a bootstrap over members and over held-out images, as its
                 threshold is a draw as well.

    Where chance alone decides which of K attacks does best, the halves are no independent draws. Each has the area of the attack that is the
    best of the other, and if both choose one attack, it was lucky on both; else each is unlucky where the other was lucky, less so. Of K
    independent attacks the correlation is m_K^2 / (K - 1), m_K the expected largest of K standard normal draws: 0.32, 0.36, 0.35, 0.34 and
    0.21 for K = 2, 3, 4, 5 and 16. So the variance of the area is multiplied by 1 + CHOICE, which is more than needed where one attack is
    clearly the best. What images contribute is without it, as differences between models matter where areas are well above one half.
    """
    num = next(iter(candidates.values())).shape[1]
    halves = [slice(0, num // 2), slice(num // 2, num)]
    score, contribution = np.zeros((2, num)), np.zeros((2, num))
    chosen, variance, found = [], 0.0, []
    for own, other in (halves, halves[::-1]):
        best = max(candidates, key=lambda name: _area(-candidates[name][:, other]).mean())
        chosen.append(best)
        score[:, own] = of_half = -candidates[best][:, own]
        placed = _area(of_half)
        contribution[:, own] = placed.mean() + 2 * (placed - placed.mean())
        share = placed.shape[1] / num
        variance += share**2 * (placed.var(axis=1, ddof=1) / placed.shape[1]).sum()
        found.append([_found(of_half, false_share, share, rng) for false_share in FALSE_SHARES])
    if len(candidates) > 1:
        variance *= 1 + CHOICE
    auc = float(contribution.mean())
    half = NORMAL_97_5 * variance**0.5
    ends = (max(0.0, auc - half), min(1.0, auc + half)) if variance > 0 else (None, None)
    return Judged(
        auc, *ends, [_together(*both) for both in zip(*found, strict=True)], chosen, score.ravel(), contribution.ravel()
    )


def _area(score):
    """roc.placements of members and held-out images: [2,n] to [2,n]; their mean is the area under the curve."""
    return np.stack(roc.placements(score.ravel(), np.arange(score.size) < score.shape[1]))


def _found(score, false_share, weight, rng):
    """Share of the members found in a half, then of REDRAWN samples of its images, times the weight of the half: [1 + REDRAWN]; None
    where so small a share of the held-out images is less than one of them."""
    num = score.shape[1]
    if int(false_share * num) < 1:
        return None
    members = np.concatenate([score[0][None], score[0][rng.integers(num, size=(REDRAWN, num))]])
    others = np.concatenate([score[1][None], score[1][rng.integers(num, size=(REDRAWN, num))]])
    threshold = np.sort(others, axis=1)[:, num - 1 - int(false_share * num)]
    return weight * (members > threshold[:, None]).mean(axis=1)


def _together(first, second):
    if first is None or second is None:
        return None
    share, *redrawn = first + second
    return float(share), *map(float, np.quantile(redrawn, [0.025, 0.975]))


def roc_curve(score, false_shares):
    """Share of the members found at each share of false ones: the mean over the two halves of `judged`, by their sizes.

    score          [N] float64: Judged.score
    false_shares   [F] in [0, 1)
    Returns        [F] float64
    """
    score = np.reshape(score, (2, -1))
    num, total = score.shape[1], np.zeros(len(false_shares))
    for of_half in (score[:, : num // 2], score[:, num // 2 :]):
        positive = np.arange(of_half.size) < of_half.shape[1]
        found = [roc.found_share(of_half.ravel(), positive, share) for share in false_shares]
        total += np.array(found) * of_half.shape[1] / num
    return total

"""How simple an image is, and how near its nearest neighbour: what Fig. 8 of the paper compares most and least skipped images by.

n images of [H,W,C]; grey levels in [0, 1]. The paper gives neither the treatment of colour nor that of the constant part
(DC) of the spectrum. Here colours become one luma, and energy is without DC: with it, it would mostly be brightness.
"""

import numpy as np

from stages.measures import neighbours

LUMA = np.array([0.299, 0.587, 0.114])  # of red, green, blue: ITU-R BT.601
NYQUIST = 0.5  # cycles per pixel
BLOCK = 512  # images at a time


def grey(images):
    """Luma of images: [n,H,W,C] uint8, C = 1 or 3, to [n,H,W] float64 in [0, 1]."""
    pixels = images / 255.0
    return pixels[..., 0] if images.shape[-1] == 1 else pixels @ LUMA


def pixel_variance(images):
    """Variance of the grey levels inside each image: [n,H,W,C] uint8 to [n] float64 in [0, 1/4]."""
    return _by_block(images, lambda block: grey(block).var(axis=(1, 2)))


def energies(images):
    """Energy of the two-dimensional Fourier transform F of the grey image, orthonormal, as means over its H W frequencies.

    images    [n,H,W,C] uint8
    Returns   [n,3] float64: energy without DC (by Parseval the pixel variance); energy with DC (the mean of the squared grey
              levels); share of the energy without DC at more than a quarter of the Nyquist frequency (0.125 cycles per
              pixel, whatever the direction), nan for an image of a single grey level, which has no such energy
    """
    return _by_block(images, _energies)


def _energies(images):
    pixels = grey(images)
    energy = np.abs(np.fft.fft2(pixels, norm="ortho")) ** 2
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in pixels.shape[1:]), indexing="ij"))
    flat = pixels.min(axis=(1, 2)) == pixels.max(axis=(1, 2))
    total = energy.mean(axis=(1, 2))
    without_dc = np.where(flat, 0, energy[:, frequency > 0].sum(axis=1))
    high = energy[:, frequency > NYQUIST / 4].sum(axis=1)
    share = np.divide(high, without_dc, out=np.full(len(images), np.nan), where=~flat)
    return np.stack([without_dc / frequency.size, total, share], axis=1)


def nearest_other(train, chosen, device="cpu", progress=None):
    """Distance of some training images to the nearest other one (Fig. 8, left; the text says "all other images", the caption
    "most similar").

    train      [N,H,W,C] uint8, N >= 2
    chosen     [n] int64 indices
    progress   as in neighbours.nearest
    Returns    [n] float64, Euclidean in grey levels of [0, 1]; 0 where the training set holds the image twice
    """
    distances, indices = neighbours.nearest(train[chosen], train, 2, device=device, progress=progress)
    # The image itself is one of the two, or both are copies of it.
    other = np.where(indices[:, 0] == chosen, distances[:, 1], distances[:, 0])
    return np.sqrt(other) / 255


def _by_block(images, measure):
    return np.concatenate([measure(images[start : start + BLOCK]) for start in range(0, len(images), BLOCK)])

"""What the search for copies cannot see: training images that are altered in known ways, planted, and looked for.

A copy that is found is one whose nearest training image is the one it was made of, and that counts as memorised.
"""

import io

import numpy as np

PLANTED = 50  # training images that each alteration is tried on, or all there are
CROP = 2  # pixels at each side
QUALITY, SIGMA, DEGREES = 50, 1.0, 5.0  # of JPEG; of a Gaussian blur in pixels; of a rotation


def alterations(images, rng):
    """The same images altered in every way that their size allows.

    images    [n,H,W,C] uint8
    rng       numpy.random.Generator, of the noise
    Yields    (what was done, in words; [n,H,W,C] uint8)
    """
    from scipy import ndimage

    side, grey = min(images.shape[1:3]), images.astype(np.float64)
    noise = rng.standard_normal(images.shape)
    yield "unchanged", images
    for strength in (8, 24):
        yield f"noise of {strength} grey levels", _in_range(grey + strength * noise)
    yield "darker by 40 grey levels", _in_range(grey - 40)
    yield "brighter by 40 grey levels", _in_range(grey + 40)
    mean = grey.mean(axis=(1, 2, 3), keepdims=True)
    yield "60 % of the contrast", _in_range(mean + 0.6 * (grey - mean))
    for pixels in (1, 2, 4):
        if side > pixels:
            yield f"shifted by {pixels} pixel{'s' * (pixels > 1)}", _shifted(images, pixels)
    yield "mirrored", images[:, :, ::-1]
    if side > 2 * CROP:
        yield f"cropped by {CROP} pixels a side, resized back", np.stack([_cropped(image) for image in images])
    yield f"JPEG of quality {QUALITY}", np.stack([_jpeg(image) for image in images])
    yield (
        f"blurred, sigma {SIGMA:g} pixel",
        _in_range(ndimage.gaussian_filter(grey, (0, SIGMA, SIGMA, 0), mode="nearest")),
    )
    turned = ndimage.rotate(grey, DEGREES, axes=(1, 2), reshape=False, order=1, mode="nearest")
    yield f"rotated by {DEGREES:g} degrees", _in_range(turned)


def found(train, planted, nearest, memorised):
    """Which planted images are found.

    train       [N,H,W,C] uint8
    planted     [n] int64: the training image that each was made of
    nearest     [n] int64: its nearest training image. A twin, with the same pixels as the right one, is as right
    memorised   [n] bool: whether it counts as a copy
    Returns     [n] bool
    """
    return memorised & (train[nearest] == train[planted]).all(axis=(1, 2, 3))


def _in_range(grey):
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)


def _shifted(images, pixels):
    """To the right, the border filled with the pixels at the edge."""
    return np.pad(images[:, :, :-pixels], ((0, 0), (0, 0), (pixels, 0), (0, 0)), mode="edge")


def _by_channels(image, change):
    """An image whose channels are changed one by one, or all three at once. change: function of a Pillow image that returns another."""
    from PIL import Image

    if image.shape[2] == 3:
        return np.asarray(change(Image.fromarray(image)))
    return np.stack([np.asarray(change(Image.fromarray(image[:, :, c]))) for c in range(image.shape[2])], axis=2)


def _cropped(image):
    from PIL import Image

    height, width = image.shape[:2]
    box = (CROP, CROP, width - CROP, height - CROP)
    return _by_channels(image, lambda picture: picture.crop(box).resize((width, height), Image.Resampling.BILINEAR))


def _jpeg(image):
    from PIL import Image

    def stored(picture):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=QUALITY)
        return Image.open(stream)

    return _by_channels(image, stored)

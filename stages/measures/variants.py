"""The nearest training images of generated images that may be mirrored, shifted, cropped or differently lit copies.

A search of pixels as they are misses a copy that is mirrored or moved by two pixels. So each generated image is searched again in every
variant below, after what makes it one has been undone, and the distance to a training image is the smallest over the variants:

    D(j) = min over v of D_v(j)

as is         the image itself
mirrored      it is mirrored left to right
shift X Y     it is moved X pixels to the right and Y down (negative: left, up), up to 2 each. Moved back, its border is filled with
              the pixels at its edge
crop C        it is the middle of the training image without C pixels at each side, brought to full size. It is made smaller again
              (bilinear), and the border is filled as above. That smooths it, so it is often the nearest variant of a noisy copy too
brightness    its brightness and contrast differ: neighbours.Version with fitted

All distances are squared grey levels over all values of an image, so those of different variants compare. The search is exact. It
costs as many products of images as there are variants, 29 for images of 6 pixels or more.

With variants, ratios and counts are not those of any published protocol: every image comes nearer to something, also by chance.
Held-out images have to be searched in the same way.
"""

import functools

import numpy as np
import torch

from stages.measures import neighbours

AS_IS, BRIGHTNESS = "as is", "brightness"
MAX_SHIFT = 2  # pixels
MAX_CROP = 2  # pixels at each side
# "as is" is told where the image as it is comes so near to the smallest squared distance: the fit of brightness takes a little off
# every distance, also off that of an image whose brightness is the same.
AS_GOOD = 1.1
ROWS = 4096  # images that are transformed at a time


def names(shape):
    """The variants that images of a shape have.

    shape     (H, W, C)
    Returns   list of texts, "as is" first
    """
    height, width = shape[:2]
    rows, columns = (range(-min(MAX_SHIFT, side - 1), min(MAX_SHIFT, side - 1) + 1) for side in (height, width))
    shifts = [f"shift {x:+d} {y:+d}" for y in rows for x in columns if x or y]
    crops = [f"crop {c}" for c in range(1, MAX_CROP + 1) if 2 * c < min(height, width)]
    return [AS_IS, "mirrored", *shifts, *crops, BRIGHTNESS]


def undone(images, name):
    """Images without what makes them the variant; "as is" and "brightness" leave them as they are.

    images    [M,H,W,C] uint8
    name      one of `names`
    Returns   [M,H,W,C] uint8
    """
    kind, *numbers = name.split(" ")
    if kind == "mirrored":
        return np.ascontiguousarray(images[:, :, ::-1])
    if kind == "shift":
        return _moved(images, *(-int(number) for number in numbers))
    if kind == "crop":
        return _shrunk(images, int(numbers[0]))
    return images


def versions(shape):
    """The variants of images of a shape as a search takes them: list of neighbours.Version, in the order of `names`."""
    return [neighbours.Version(functools.partial(undone, name=name), name == BRIGHTNESS) for name in names(shape)]


def found_in(sample, train, index):
    """In which of its variants a sample is nearest to a training image; "as is" where that comes near to the smallest distance.

    sample    [M,H,W,C] uint8
    train     [N,H,W,C] uint8, may be memory-mapped
    index     [M] int64: the training image that is nearest to each
    Returns   [M] text, of `names`
    """
    all_names = np.array(names(sample.shape[1:]))
    variant = np.empty(len(sample), all_names.dtype)
    for start in range(0, len(sample), ROWS):
        rows, columns = sample[start : start + ROWS], train[index[start : start + ROWS]]
        distances = np.stack([neighbours.paired(v.altered(rows), columns, v.fitted) for v in versions(rows.shape[1:])])
        first = distances.argmin(axis=0)
        first[distances[0] <= AS_GOOD * distances.min(axis=0)] = 0
        variant[start : start + ROWS] = all_names[first]
    return variant


def _moved(images, x, y):
    """Images moved x pixels to the right and y down, the border filled with the pixels at the edge."""
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) - y, 0, height - 1)
    columns = np.clip(np.arange(width) - x, 0, width - 1)
    return images.take(rows, axis=1).take(columns, axis=2)


def _shrunk(images, border):
    """Images made smaller by `border` pixels at each side (bilinear), the border filled with the pixels at the edge."""
    size = [side - 2 * border for side in images.shape[1:3]]
    shrunk = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), ROWS):
        rows = np.array(
            images[start : start + ROWS].transpose(0, 3, 1, 2), order="C"
        )  # a copy, as images may be read-only
        rows = torch.from_numpy(rows).float()
        small = torch.nn.functional.interpolate(rows, size=size, mode="bilinear", antialias=True).round().clamp(0, 255)
        small = small.to(torch.uint8).numpy().transpose(0, 2, 3, 1)
        shrunk[start : start + ROWS] = np.pad(small, ((0, 0), (border, border), (border, border), (0, 0)), mode="edge")
    return shrunk

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
brightness    its brightness and contrast differ: neighbours.nearest with fitted

All distances are squared grey levels over all values of an image, so those of different variants compare. Each variant is searched
exactly, and the k smallest of the D(j) are among the k smallest of each variant: so the result is exact too. It costs as many searches
as there are variants, 29 for images of 6 pixels or more.

With variants, ratios and counts are not those of any published protocol: every image comes nearer to something, also by chance.
Held-out images have to be searched in the same way.
"""

import numpy as np
import torch

from stages.measures import neighbours

AS_IS = "as is"
MAX_SHIFT = 2  # pixels
MAX_CROP = 2  # pixels at each side
# "as is" is told where the image as it is comes so near to the smallest squared distance: the fit of brightness takes a little off
# every distance, also off that of an image whose brightness is the same.
AS_GOOD = 1.1
FITTED_BLOCK = 2048  # its distances take 8 bytes each, several times over
ROWS = 4096  # images that are transformed, and lists that are merged, at a time


def names(shape):
    """The variants that images of a shape have.

    shape     (H, W, C)
    Returns   list of texts, "as is" first
    """
    height, width = shape[:2]
    rows, columns = (range(-min(MAX_SHIFT, side - 1), min(MAX_SHIFT, side - 1) + 1) for side in (height, width))
    shifts = [f"shift {x:+d} {y:+d}" for y in rows for x in columns if x or y]
    crops = [f"crop {c}" for c in range(1, MAX_CROP + 1) if 2 * c < min(height, width)]
    return [AS_IS, "mirrored", *shifts, *crops, "brightness"]


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


def nearest(sample, train, k, device="cpu", progress=None):
    """The k nearest training images of each sample over all variants, exactly.

    sample, train, k, device   as in neighbours.nearest
    progress                   None or a callable (images done, images), where each image counts once for each variant
    Returns                    distances [M,k] int64, ascending; indices [M,k] int64, as those of neighbours.nearest, each training
                               image once; variant [M], the text of the variant that the nearest one was found in
    Raises                     ValueError: as neighbours.nearest
    """
    all_names = names(train.shape[1:])
    for number, name in enumerate(all_names):

        def done(images, total, number=number):
            if progress is not None:
                progress(number * total + images, len(all_names) * total)

        block = {"fitted": True, "block": FITTED_BLOCK} if name == "brightness" else {}
        found = neighbours.nearest(undone(sample, name), train, k, device=device, progress=done, **block)
        if name == AS_IS:
            best, as_is, variant = found, found, np.zeros(len(sample), np.int64)
            continue
        before = best[0][:, 0].copy()
        best = _merged(best, found, len(train))
        variant[best[0][:, 0] < before] = number
    first, smallest = best[1][:, :1], best[0][:, :1]
    variant[((as_is[1] == first) & (as_is[0] <= AS_GOOD * smallest)).any(axis=1)] = 0
    return *best, np.array(all_names)[variant]


def _merged(one, other, num_train):
    """The k smallest of two searches, each training image once, with the smaller of its distances; ties as in neighbours.nearest."""
    k = one[0].shape[1]
    distances, indices = np.empty_like(one[0]), np.empty_like(one[1])
    for start in range(0, len(distances), ROWS):
        rows = slice(start, start + ROWS)
        keys = np.concatenate([found[0][rows] * num_train + found[1][rows] for found in (one, other)], axis=1)
        keys.sort(axis=1)
        index = keys % num_train
        order = np.argsort(index, axis=1, kind="stable")  # of one training image the smaller distance comes first
        index = np.take_along_axis(index, order, axis=1)
        again = np.zeros(index.shape, bool)
        again[:, 1:] = index[:, 1:] == index[:, :-1]
        at = np.empty_like(again)
        np.put_along_axis(at, order, again, axis=1)
        keys[at] = np.iinfo(np.int64).max
        keys.sort(axis=1)
        distances[rows], indices[rows] = np.divmod(keys[:, :k], num_train)
    return distances, indices


def _moved(images, x, y):
    """Images moved x pixels to the right and y down, the border filled with the pixels at the edge."""
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) - y, 0, height - 1)
    columns = np.clip(np.arange(width) - x, 0, width - 1)
    return images[:, rows[:, None], columns]


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

"""Exact nearest neighbours of 8-bit images.

Legend: M sample images, N training images, k neighbours, H W C height, width and channels of an image,
D = H*W*C values of an image, P pairs of images.

Distances are squared Euclidean in units of one grey level squared (0 <= distance <= 65,025 D), computed in integers
from end to end. The usual fp32 expansion |s|^2 + |t|^2 - 2 s.t returns small values of either sign for an exact copy,
and a copy is what the search is for. Integers leave no rounding, so no shortlist has to be ranked again.
"""

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

# Pixels minus 128 lie in [-128, 127]: D products of at most 2^14 must fit the int32 sums of the int8 product.
MAX_VALUES = (2**31 - 1) // 2**14
# A squared distance of up to D * 255^2 fits int32 up to here; the distances of larger images take int64.
MAX_VALUES_INT32 = (2**31 - 1) // 255**2
# fp32 holds every integer up to 2^24 = 1024 * 2^14: a sum of so many products of centred pixels is exact in any order.
EXACT_FP32_VALUES = 2**24 // 2**14
MAX_CONTRAST = 2.0  # a fit raises or lowers the contrast of a sample by this factor at most
BLOCK = 4096  # images of either side whose distances are held at a time
BLOCK_VALUES = 2**27  # and their values, of either side
# Rows widened to int32 at a time: 512 images of 3,072 values stay in a processor's cache, 4,096 took 1.6 times as long.
ROWS_IN_CACHE = 512


class Version(NamedTuple):
    """One way in which a sample is compared with training images.

    altered   function [B, H, W, C] uint8 -> [B, H, W, C] uint8: the sample that is compared in its place
    fitted    True: the distance is that after the sample has been given brightness and contrast of the training image, see
              `_fitted_distance`
    """

    altered: Callable = lambda images: images
    fitted: bool = False


AS_IT_IS = (Version(),)


def nearest(sample, train, k, **options):
    """The k nearest training images of each sample, exactly: `nearest_in_parts` with one part, which is all of them.

    Returns   distances [M, k] int64 squared distances, ascending, and indices [M, k] int64 positions in train.
    """
    return nearest_in_parts(sample, train, [(np.arange(len(train)), k)], **options)[0]


def nearest_in_parts(sample, train, parts, block=None, device="cpu", progress=None, versions=AS_IT_IS):
    """The k nearest training images of each sample in each of several parts of the training set, exactly and in one search.

    sample    [M, H, W, C] uint8 array, may be memory-mapped, M >= 0
    train     [N, H, W, C] uint8 array, may be memory-mapped
    parts     list of (positions in train, [n] int64 ascending; number of neighbours k, 1 <= k <= n)
    block     images of either side in one block of the distance matrix; changes time and memory, never the result.
              A block takes up to about 16 * block^2 bytes, twice that where most distances are equal, 40 where one is fitted.
              None: at most BLOCK, fewer of large images and of several versions
    device    torch device of the search
    progress  None or a callable (samples done, M), called after each block of the matrix and each version
    versions  the distance of a sample and a training image is the smallest over these
    Returns   list of distances [M, k] int64 squared distances, ascending, and indices [M, k] int64 positions in train: one
              pair a part. Equal distances are ordered by index, and the lowest indices are the ones kept.
    Raises    ValueError: not uint8, not four axes, different image shapes, too large images, k or block out of range.

    A neighbour is identified by its key, distance * N + index, which is unique and orders by distance, then by index.
    Each block of training images gives its k smallest keys (see _smallest_keys), and the k smallest of all are among
    the k smallest of their own blocks.
    """
    _check_images("sample", sample)
    _check_images("train", train)
    if sample.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"sample images are {sample.shape[1:]} and train images {train.shape[1:]} (H, W, C), expected one shape"
        )
    num_samples, num_train, num_values = len(sample), len(train), int(np.prod(train.shape[1:]))
    for positions, k in parts:
        if not 1 <= k <= len(positions):
            raise ValueError(f"k is {k}, expected 1 <= k <= {len(positions)}, the number of training images")
    if block is None:
        block = min(BLOCK if len(versions) == 1 else BLOCK // 2, max(256, BLOCK_VALUES // num_values))
    _check_block(block)

    used = np.unique(np.concatenate([positions for positions, _ in parts]))
    distance_of = _Distances(num_values, device, versions)
    found = [(np.empty((num_samples, k), np.int64), np.empty((num_samples, k), np.int64)) for _, k in parts]
    for start in range(0, num_samples, block):
        rows = sample[start : start + block]
        best = [None] * len(parts)
        for first in range(0, len(used), block):
            index = used[first : first + block]

            def part_done(share, start=start, rows=rows, first=first, index=index):
                if progress is not None:
                    share = (first + share * len(index)) / len(used)
                    progress(start + int(len(rows) * share), num_samples)

            distance = distance_of(rows, train[index], part_done)
            for p, (positions, k) in enumerate(parts):
                ends = np.searchsorted(positions, [index[0], index[-1] + 1])
                own = torch.from_numpy(np.searchsorted(index, positions[slice(*ends)])).to(device)
                if not len(own):
                    continue
                among = distance if len(own) == len(index) else distance[:, own]
                keys = _smallest_keys(among, k, torch.from_numpy(index).to(device)[own], num_train)
                best[p] = keys if best[p] is None else torch.cat([best[p], keys], dim=1).sort(dim=1).values[:, :k]
        for (distances, indices), keys in zip(found, best, strict=True):
            keys = keys.sort(dim=1).values.cpu().numpy()
            distances[start : start + len(rows)], indices[start : start + len(rows)] = np.divmod(keys, num_train)
    return found


class _Distances:
    """Squared distances of a block of samples and a block of training images, the smallest over the versions."""

    def __init__(self, num_values, device, versions):
        self.num_values, self.device, self.versions = num_values, device, versions
        self.prepared, self.product = _product(num_values, device)
        self.dtype = torch.int32 if num_values <= MAX_VALUES_INT32 else torch.int64

    def __call__(self, rows, columns, part_done):
        """[B, n] int32 or int64 of images rows [B, H, W, C] and columns [n, H, W, C].

        part_done   called with the share that is done, after each version
        """
        of_columns, smallest = self.prepared(_centred(columns, self.device)), None
        norms = self._norms(columns)
        sums = _sums(columns, self.device) if any(version.fitted for version in self.versions) else None
        for number, version in enumerate(self.versions, start=1):
            altered = version.altered(rows)
            products = self.product(_centred(altered, self.device), of_columns)[: len(rows), : len(columns)]
            own = self._norms(altered)
            if version.fitted:
                moments = (own, _sums(altered, self.device)), (norms, sums)
                distance = _fitted_distance(products, *moments, self.num_values).to(self.dtype)
            else:
                distance = products.to(self.dtype).mul_(-2).add_(own[:, None]).add_(norms)
            smallest = distance if smallest is None else torch.minimum(smallest, distance, out=smallest)
            part_done(number / len(self.versions))
        return smallest

    def _norms(self, images):
        return torch.from_numpy(_squared_norms(images)).to(self.device, self.dtype)


def distances_from_nearest(train, indices, block=ROWS_IN_CACHE, progress=None):
    """Squared distances from the nearest training image of each sample to the sample's other neighbours.

    These are the ||xbar - y|| of Eq. 12 of the paper, squared: xbar the nearest training image, y in S.

    train     [N, H, W, C] uint8 array, may be memory-mapped
    indices   [M, k] integer positions in train, the nearest first (as nearest returns them)
    block     pairs of images compared at a time; changes time and memory, never the result
    progress  None or a callable (pairs done, pairs), called after each block
    Returns   [M, k] int64 squared distances from train[indices[:, 0]] to train[indices]; column 0 is 0.
    Raises    ValueError: train not uint8 or not four axes, indices not [M, k] integers in [0, N), block out of range.

    Samples share neighbours, the more so the more a model memorises, so each distinct pair is computed once. Runs on
    the CPU: one pass over the pairs is bound by memory, about 10 s for 65,536 samples of 3,072 values with k = 50.
    """
    _check_images("train", train)
    _check_block(block)
    indices = np.asarray(indices)
    if indices.ndim != 2 or indices.shape[1] < 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices are {indices.dtype} {indices.shape}, expected integers [M, k]")
    num_train, num_values = len(train), int(np.prod(train.shape[1:]))
    if indices.size and (indices.min() < 0 or indices.max() >= num_train):
        raise ValueError(
            f"indices run from {indices.min()} to {indices.max()}, expected 0 to {num_train - 1}, "
            "the positions in train: they belong to another training set"
        )

    indices = indices.astype(np.int64)
    low = np.minimum(indices[:, :1], indices)
    high = np.maximum(indices[:, :1], indices)
    pairs, position = np.unique(low * num_train + high, return_inverse=True)
    low, high = np.divmod(pairs, num_train)
    dtype = np.int32 if num_values <= MAX_VALUES_INT32 else np.int64
    distances = np.empty(len(pairs), np.int64)
    for start in range(0, len(pairs), block):
        stop = min(start + block, len(pairs))
        difference = train[low[start:stop]].reshape(stop - start, num_values).astype(dtype)
        difference -= train[high[start:stop]].reshape(stop - start, num_values)
        distances[start:stop] = np.einsum("pd,pd->p", difference, difference)
        if progress is not None:
            progress(stop, len(pairs))
    return distances[position].reshape(indices.shape)


def paired(sample, train, fitted=False):
    """Squared distances of each sample and the training image of the same place; both [P, H, W, C] uint8, fitted as in Version.

    Returns   [P] int64
    """
    shape = (len(sample), int(np.prod(sample.shape[1:])))
    distances = np.empty(len(sample), np.int64)
    for start in range(0, len(sample), ROWS_IN_CACHE):
        rows = slice(start, start + ROWS_IN_CACHE)
        x, y = (images.reshape(shape)[rows].astype(np.int64) - 128 for images in (sample, train))
        if fitted:
            of_rows, of_columns = (
                (torch.from_numpy(np.einsum("pd,pd->p", values, values)), torch.from_numpy(values.sum(axis=1)))
                for values in (x, y)
            )
            products = torch.from_numpy(np.einsum("pd,pd->p", x, y))
            pairs = _fitted_distance(products[:, None], of_rows, [moment[:, None] for moment in of_columns], shape[1])
            distances[rows] = pairs[:, 0]
        else:
            distances[rows] = np.einsum("pd,pd->p", x - y, x - y)
    return distances


def _fitted_distance(products, of_samples, of_train, num_values):
    """Squared distances after brightness and contrast of each sample were fitted to each training image.

    The sample x becomes a (x - mean x) + mean t, with a = sd t / sd x in [1 / MAX_CONTRAST, MAX_CONTRAST]. With the centred sums
    S_xx, S_xt and S_tt the squared distance is a^2 S_xx - 2 a S_xt + S_tt, rounded to an integer. The contrast is that of the training
    image and not the a of least squares, S_xt / S_xx: this one makes every sample paler, the less alike the two are, and brings it
    nearer to all training images. Of a copy both are the same. The bounds keep a training image with next to no contrast from being
    the nearest of all samples.

    products             [B, n] int32: inner products of the pixels minus 128
    of_samples, of_train   squared norms and sums of these pixels: [B], [n]
    num_values           D
    Returns              [B, n] int64
    """
    (sample_norms, sample_sums), (train_norms, train_sums) = (
        [moment.double() for moment in moments] for moments in (of_samples, of_train)
    )
    sample_squares = sample_norms - sample_sums**2 / num_values
    train_squares = train_norms - train_sums**2 / num_values
    distance = products.double().sub_(sample_sums[:, None] * (train_sums / num_values))
    contrast = (train_squares / sample_squares.clamp(min=1e-9)[:, None]).sqrt_().clamp_(1 / MAX_CONTRAST, MAX_CONTRAST)
    distance.mul_(-2).mul_(contrast).add_(contrast.square_().mul_(sample_squares[:, None])).add_(train_squares)
    return distance.round_().clamp_(min=0).long()


def _smallest_keys(distance, k, index, num_train):
    """Keys of the k nearest columns in each row of one block, ties by lowest index; all keys if there are at most k.

    distance   [B, n] int32 or int64: squared distances to some training images
    index      [n] int64 on the same device: their positions, ascending
    num_train  N
    Returns    [B, min(k, n)] int64 keys, distance * N + index, in no order.

    topk alone picks any of several equal distances. Its values are right all the same, so the (k+1)-th smallest value
    tells whether there was a choice. Larger than the k-th: exactly k columns lie at or below the k-th value, so topk
    found precisely those. Equal to it: the row is searched again by key, where no two are equal. Building keys for
    every row would be as sure, and took ten times as long.
    """
    if distance.shape[1] <= k:
        return distance.long() * num_train + index
    values, columns = torch.topk(distance, k + 1, dim=1, largest=False, sorted=True)
    keys = values[:, :k].long() * num_train + index[columns[:, :k]]
    undecided = values[:, k - 1] == values[:, k]
    if undecided.any():
        all_keys = distance[undecided].long().mul_(num_train).add_(index)
        keys[undecided] = torch.topk(all_keys, k, dim=1, largest=False).values
    return keys


def _product(num_values, device):
    """The faster of the two products below that gives true sums here; which one it is changes no result.

    Returns   function that prepares centred training images for it, once for several products; the product
    """
    on_8_bits = _int8_product_is_faster(device) and _int8_product_is_exact(num_values, device)
    return (torch.t, _product_int8) if on_8_bits else (_in_fp32_slices, _product_fp32)


def _product_int8(sample, train):
    """Inner products [M, N] int32 of centred images [M, D] int8 and, transposed, [D, N] int8, on the processor's 8-bit units."""
    return torch._int_mm(sample, train)


def _product_fp32(sample, train):
    """The same as _product_int8 on any processor: fp32 over slices of D so short that no sum is rounded.

    train   list of [N, at most EXACT_FP32_VALUES] float32
    """
    products = torch.zeros(len(sample), len(train[0]), dtype=torch.int32, device=sample.device)
    for of_sample, of_train in zip(sample.split(EXACT_FP32_VALUES, dim=1), train, strict=True):
        products += (of_sample.float() @ of_train.T).int()
    return products


def _in_fp32_slices(images):
    return [values.float() for values in images.split(EXACT_FP32_VALUES, dim=1)]


@functools.cache
def _int8_product_is_faster(device):
    """Whether torch._int_mm takes no longer than fp32. On processors without 8-bit dot products it takes 20 times as long (seen with AVX2)."""
    if torch.device(device).type != "cpu":
        return True
    images = torch.ones(256, EXACT_FP32_VALUES, dtype=torch.int8)

    def seconds(product):
        started = time.perf_counter()
        product(images)
        return time.perf_counter() - started

    def on_8_bits(images):
        _product_int8(images, images.T)

    def in_fp32(images):
        _product_fp32(images, _in_fp32_slices(images))

    times = [(seconds(on_8_bits), seconds(in_fp32)) for _ in range(3)]  # the first of each sets things up
    return min(int8 for int8, _ in times) <= min(fp32 for _, fp32 in times)


@functools.cache  # it takes longer than a small search
def _int8_product_is_exact(num_values, device):
    """Whether torch._int_mm gives true sums for the most extreme pixels.

    On x86 processors without VNNI it adds pairs of products in 16 bits and saturates without a word: distances between
    dark and bright images come out wrong (seen with torch 2.12.1 limited to AVX2 or to AVX-512 without VNNI).
    """
    ends = torch.tensor([127, -128], dtype=torch.int8, device=device).repeat(128)  # 256 constant images
    images = ends[:, None].repeat(1, _round_up(num_values, 8))
    ends = ends.int()
    return torch.equal(_product_int8(images, images.T), images.shape[1] * ends[:, None] * ends[None, :])


def _centred(images, device):
    """Pixels minus 128 as int8 [B', D'] on the device, zeros added up to what the int8 product takes.

    On CUDA that is D and the train side in multiples of 8 and at least 17 sample rows; the same is done everywhere.
    """
    num_images, num_values = len(images), int(np.prod(images.shape[1:]))
    centred = np.zeros((max(24, _round_up(num_images, 8)), _round_up(num_values, 8)), np.uint8)
    # Flipping the top bit of u gives u - 128 in two's complement.
    np.bitwise_xor(images.reshape(num_images, num_values), np.uint8(128), out=centred[:num_images, :num_values])
    return torch.from_numpy(centred.view(np.int8)).to(device)


def _squared_norms(images):
    """Squared norms [B] int32 of the centred pixels of images [B, H, W, C] uint8."""
    norms = np.empty(len(images), np.int32)
    for start in range(0, len(images), ROWS_IN_CACHE):
        rows = images[start : start + ROWS_IN_CACHE]
        values = rows.reshape(len(rows), -1).astype(np.int32) - 128
        norms[start : start + len(rows)] = np.einsum("nd,nd->n", values, values)
    return norms


def _sums(images, device):
    """Sums [B] int64 on the device of the centred pixels of images [B, H, W, C] uint8."""
    num_values = int(np.prod(images.shape[1:]))
    sums = images.reshape(len(images), num_values).sum(axis=1, dtype=np.int64) - 128 * num_values
    return torch.from_numpy(sums).to(device)


def _round_up(number, multiple):
    return -(-number // multiple) * multiple


def _check_images(role, images):
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"{role} images are {images.dtype} {images.shape}, expected uint8 [number, H, W, C]")
    num_values = int(np.prod(images.shape[1:]))
    if not 1 <= num_values <= MAX_VALUES:
        raise ValueError(
            f"{role} images are {images.shape[1:]} (H, W, C), {num_values} values each, expected 1 to {MAX_VALUES}: "
            "resize them"
        )


def _check_block(block):
    if block < 1:
        raise ValueError(f"block is {block}, expected at least 1 image")

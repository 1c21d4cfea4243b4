"""Copy-detection similarity of generated images to training images: SSCD features, nearest training image, summary.

Legend: M sample images, N training images, B batch, D features, H W C height, width and channels of an image.

SSCD (Pizzi et al. 2022) is a network made to find copies: the dot product of two unit features is near 1 for a copy and near
0 for images that have nothing in common. The similarity of a generated image is that to its nearest training image; a set of
generated images is summed up by the 95th percentile of these (Somepalli et al. 2023), because memorisation is in the tail.
"""

import warnings

import numpy as np

from stages.measures import intervals

# How an image reaches the network: short side in pixels after a bilinear resize, side of the centre crop, mean and standard
# deviation that pixels in [0, 1] are normalised with.
PREPROCESS = {
    # What the code of Somepalli et al. and of the paper does, whose published similarities are so.
    "dcr": (256, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # What the authors of SSCD recommend for images of one shape: no crop, the statistics of ImageNet.
    "sscd": (288, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
PERCENTILE = 95  # of the similarities, which a set is summed up by
MARK = 0.5  # similarity above which two images count as near-copies


def load(path):
    """The network, a TorchScript file such as sscd_disc_large.torchscript.pt, in evaluation mode on the CPU.

    A TorchScript file holds a program of tensor operations and no Python. torch 2.12 calls this kind of file deprecated, and this
    is the only place that knows of it.
    Raises    ValueError: no such file
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`?torch.jit.load`? is deprecated", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        first = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} cannot be read as a TorchScript network ({first}): expected a file of SSCD that ends in .torchscript.pt"
        ) from None


def network_input(images, preprocess):
    """What the network is shown: [B, H, W, C] uint8, C = 1 or 3 -> [B, 3, h, w] float32.

    preprocess   a key of PREPROCESS. Images are resized by Pillow, as torchvision's transforms do: the short side to its length,
                 the long side in proportion, rounded down.
    """
    import torch
    from PIL import Image
    from torchvision.transforms import functional

    side, crop, mean, std = PREPROCESS[preprocess]
    batch = []
    for image in images:
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
        picture = functional.resize(picture, side, functional.InterpolationMode.BILINEAR)
        if crop is not None:
            picture = functional.center_crop(picture, crop)
        batch.append(functional.normalize(functional.to_tensor(picture), mean, std))
    return torch.stack(batch)


def features(network, images, preprocess, batch_size, progress=None):
    """Unit features of images.

    network      from `load`, on the device to compute on
    images       [N, H, W, C] uint8 array, may be memory-mapped; C = 1 (repeated to three channels) or 3
    preprocess   a key of PREPROCESS
    batch_size   images at a time; float sums depend on it in the last digits
    progress     None or a callable (images done, N), called after each batch
    Returns      [N, D] float32, each row of length 1
    Raises       ValueError: images of another kind; the network gives no [B, D] or values that are not finite
    """
    import torch

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 [N, H, W, 1 or 3]")
    device = next(iter(network.state_dict().values())).device
    found = []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.no_grad(), exact:
        for start in range(0, len(images), batch_size):
            batch = network_input(images[start : start + batch_size], preprocess)
            output = network(batch.to(device))
            if output.ndim != 2 or len(output) != len(batch):
                raise ValueError(f"the network gives {tuple(output.shape)} for {len(batch)} images, expected [B, D]")
            found.append(torch.nn.functional.normalize(output.float(), dim=1).cpu().numpy())
            if progress is not None:
                progress(start + len(batch), len(images))
    found = np.concatenate(found)
    if not np.isfinite(found).all():
        raise ValueError("the features of the network are not finite: look at the weights")
    return found


def nearest(sample, train, threads=1):
    """The most similar training image of each generated image, by faiss, exhaustively.

    sample    [M, D] float32 unit features
    train     [N, D] float32 unit features, N >= 1
    threads   CPU threads
    Returns   similarity [M] float32, the dot product, in [-1, 1]; index [M] int64 position in train
    """
    similarity, index = _search(sample, train, 1, threads)
    return similarity[:, 0], index[:, 0]


def nearest_other(train, threads=1):
    """The most similar other image of each training image, that is with the diagonal of the matrix left out (Fig. 6).

    train     [N, D] float32 unit features, N >= 2
    Returns   similarity [N] float32, index [N] int64; an image that is there twice has its twin at similarity 1
    Raises    ValueError: fewer than two images
    """
    if len(train) < 2:
        raise ValueError(f"there are {len(train)} training images, expected 2 at least to compare them with each other")
    similarity, index = _search(train, train, 2, threads)
    # Where an image is not the first of its own two it is the second, or two others are as similar: the first is one of those.
    column = (index[:, 0] == np.arange(len(train))).astype(int)
    rows = np.arange(len(train))
    return similarity[rows, column], index[rows, column]


def _search(queries, reference, k, threads):
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        engine = faiss.IndexFlatIP(reference.shape[1])
        engine.add(np.ascontiguousarray(reference, np.float32))
        similarity, index = engine.search(np.ascontiguousarray(queries, np.float32), k)
        return similarity.clip(-1, 1), index  # rounding may give an image and its copy a little more
    finally:
        faiss.omp_set_num_threads(before)


def summary(similarity, prompts=None, interval=True):
    """A set of similarities in numbers.

    similarity   [M] float, that of each image to its nearest training image
    prompts      [M] integer, the same for images of one prompt, which are alike: the interval is then that of a draw of prompts.
                 None: every image is independent of the others
    interval     whether the set is a sample that has an interval
    Returns      dict: percentile_95, the score of the set; low, high, its 95 % interval (intervals.of_quantile); mean, sd (n in the denominator), percentile_75, percentile_90, share_above, the share of images above 0.5
    Raises       ValueError: no image
    """
    similarity = np.asarray(similarity, np.float64)
    if not len(similarity):
        raise ValueError("there are no similarities to sum up, expected one an image")
    found = {"percentile_95": np.percentile(similarity, PERCENTILE)}
    if interval:
        found["low"], found["high"] = intervals.of_quantile(similarity, PERCENTILE / 100, (-1.0, 1.0), prompts)
    found |= {
        "mean": similarity.mean(),
        "sd": similarity.std(),
        "percentile_75": np.percentile(similarity, 75),
        "percentile_90": np.percentile(similarity, 90),
        "share_above": (similarity > MARK).mean(),
    }
    return {name: float(value) for name, value in found.items()}

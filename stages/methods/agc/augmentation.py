"""Threshold-Aware Augmentation (TAA): RandAugment whose strength follows each sample's loss (paper, Eqs. 5 to 8).

A sample whose loss lies just above the skip threshold is on its way to being memorised; it is augmented before its
loss is taken again, the more strongly the closer it is to the threshold. This module holds the loss that is taken
again (Eq. 5), the strength (Eqs. 6, 7) and the augmentation (Aug in Eq. 8); memory_bank.augment_mask says which samples are augmented.

The augmentation is RandAugment (arXiv:1909.13719) with the 14 operations and the conventions of
torchvision.transforms.RandAugment (nearest sampling, fill 0), but each sample has its own CONTINUOUS strength, counted
in torchvision's levels: level L of max_level = 30 is bin L of num_magnitude_bins = 31. At integer levels each
operation equals torchvision's on uint8 tensors exactly. torchvision itself takes one integer level per call, and
rounding to it would leave only the levels 0, 1, 2, 3 at the paper's M = 3.

Weaknesses of the method at the paper's small strengths (M = 3 or 5 of 30), kept because torchvision defines them:
  - AutoContrast and Equalize (2 of the 14) have no strength and do not shrink with rho. With two draws,
    1 - (12/14)^2 = 26.5 % of the augmented samples get at least one of them.
  - Solarize does not vanish at level 0 either: its threshold is 255 there and pixels equal to 255 become 0.
  - Geometry is nearly the identity: at level 3, rotation by 3 degrees and shear by 0.03 with nearest sampling, and
    translation by int(0.0453 * size): 1 px on 32 px (0 px below level 2.07), 0 px on 8 px (below level 8.28).
  - Posterize keeps all 8 bits up to level 3.75.
  - Equalize needs 255 pixels outside the brightest value present, so it never changes an image of 16 x 16 or less
    unless that image is 16 x 16 with a single brightest pixel.
  - Brightness, Color, Contrast and Sharpness truncate to integers instead of rounding, so they darken by up to 1 grey
    level however small rho is: Brightness with sign -1 takes 1 from every non-black pixel, with sign +1 nothing;
    the other three take 1 from about half of the pixels of a noise image with either sign.

Shapes: B batch, n samples of it that share an operation, C H W image, K operations applied in turn (num_ops).
"""

import math

import torch
import torch.nn.functional as F

from stages import randomness
from stages.diffusion import ddpm

# Order of torchvision.transforms.RandAugment, so that an index means the same operation here and there.
OPS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
GEOMETRIC_OPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")

# The second pass is filled up with repeats, whose losses are dropped, to a multiple of this many samples: every new batch
# size is compiled anew by oneDNN and cuDNN, and it would have another at nearly every step.
SECOND_PASS = 8


def augmented_losses(step, subset, loss, threshold, taa):
    """Losses of some samples of a batch from augmented images, with the same timestep and noise (Eq. 5): L(Aug(x, rho), t, eps).

    step       base.Step
    subset     [n] int64: which samples of the batch
    loss       [B] float32: losses of the images as they are
    threshold  [B] float32: lambda * bank[t]
    taa        section taa of the method: A, magnitude, num_ops, max_level
    Returns    [n] float32
    """
    places = torch.arange(-(-len(subset) // SECOND_PASS) * SECOND_PASS, device=subset.device)
    rounded = subset[places % len(subset)]
    rho = relative_strength(loss[rounded], threshold[rounded], taa["A"])
    x_aug = rand_augment(
        step.x[rounded],
        taa["magnitude"] * rho,
        randomness.torch_generator("cpu", "augment", *step.key),
        num_ops=taa["num_ops"],
        max_level=taa["max_level"],
    )
    return step.sample_losses(ddpm.normalise(x_aug), rounded)[: len(subset)]


def relative_strength(loss, threshold, decay):
    """Relative augmentation strength rho of each sample (paper, Eq. 6 and Eq. 7).

        d = |loss / threshold - 1|,  rho = exp(-decay * d)

    With r = loss / bank[t] this is the paper's d = |(r - lambda) / lambda|, so rho = 1 at r = lambda and
    rho = exp(-decay * (R - 1)) at r = R * lambda, where the augmented band ends.

    loss       [B] float: per-sample mean squared error
    threshold  [B] float, >= 0: lambda * bank[t], the skip threshold at the sample's timestep
    decay      float, >= 0: A of Eq. 7 (paper: 5)
    Returns    [B] float in [0, 1], without gradient; 0 where the threshold is 0 (timestep not seen yet).
    Raises     ValueError: shapes differ or are not [B], decay below 0 or not finite; on a CPU, a threshold below 0 (to look at one, the
               host would have to wait for a GPU).
    """
    if loss.ndim != 1 or loss.shape != threshold.shape:
        raise ValueError(
            f"loss has shape {list(loss.shape)} and threshold {list(threshold.shape)}, expected the same [B] for both"
        )
    if not (0 <= decay < math.inf):
        raise ValueError(f"decay is {decay}, expected 0 <= decay < infinity")
    if threshold.device.type == "cpu" and (threshold < 0).any():
        raise ValueError(f"threshold goes down to {threshold.min().item()}, expected lambda * bank[t] >= 0")
    d = (loss.detach() / threshold - 1).abs()
    rho = torch.exp(-decay * d)
    return torch.where(threshold == 0, torch.zeros_like(rho), rho)  # 0 / 0 and decay 0 would give NaN


def rand_augment(images, strength, generator, num_ops=2, max_level=30):
    """Apply num_ops random operations to each image, at that image's own strength (Aug in Eq. 8).

    images     [B, C, H, W] uint8, C = 1 or 3, any device; not changed
    strength   [B] float, in levels: m = M * rho, 0 <= m <= max_level, any device
    generator  torch.Generator on the CPU: the only source of randomness, whatever the images' device
    num_ops    int >= 1: operations applied one after the other (the paper does not say; torchvision's default)
    max_level  int >= 1: level of the strongest operation (the paper does not say; torchvision's default)
    Returns    [B, C, H, W] uint8 on the images' device. Row i depends on images[i], strength[i] and the i-th draw.
    Raises     ValueError: wrong dtype or shape, strength out of range, num_ops or max_level below 1, generator not
               on the CPU.
    """
    ops, signs = draw_ops(len(images), num_ops, generator)
    return apply_ops(images, strength, ops, signs, max_level)


def draw_ops(batch_size, num_ops, generator):
    """Draw operation and sign of every step for a whole batch, each of the 14 x 2 pairs equally likely.

    Strengths play no part, and the pairs are drawn sample after sample in ONE call: sample i gets the same pairs
    in a batch of any size, and unsigned operations use up a sign too.

    batch_size  int >= 0: B
    num_ops     int >= 1: K
    generator   torch.Generator on the CPU
    Returns     ops   [B, K] int64 on the CPU: positions in OPS
                signs [B, K] int64 on the CPU: -1 or +1; the unsigned operations ignore it
    Raises      ValueError: num_ops below 1, generator not on the CPU.
    """
    if num_ops < 1:
        raise ValueError(f"num_ops is {num_ops}, expected at least 1")
    if generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}, expected a CPU generator")
    pairs = torch.randint(2 * len(OPS), (batch_size, num_ops), generator=generator)
    return pairs // 2, 1 - 2 * (pairs % 2)


def apply_ops(images, strength, ops, signs, max_level=30):
    """Apply given operations to each image, at that image's own strength.

    images     [B, C, H, W] uint8, C = 1 or 3, any device; not changed
    strength   [B] float, in levels, 0 <= m <= max_level, any device
    ops        [B, K] int64 on the CPU: positions in OPS, applied from column 0 on
    signs      [B, K] int64 on the CPU: -1 or +1
    max_level  int >= 1: level of the strongest operation
    Returns    [B, C, H, W] uint8 on the images' device
    Raises     ValueError: wrong dtype or shape, a value out of range.
    """
    _check_batch(images, strength, ops, signs, max_level)
    height, width = images.shape[-2:]
    levels = strength.to("cpu", torch.float64)  # parameters are computed in double, as torchvision does in Python
    out = images.clone()
    for step in range(ops.shape[1]):
        maps = {}  # row -> affine map; all geometric operations share one sampling call below
        for op, name in enumerate(OPS):
            index = (ops[:, step] == op).nonzero().squeeze(1)
            if name == "Identity" or len(index) == 0:
                continue
            parameter = op_parameter(name, levels[index], height, width, max_level)
            if name in GEOMETRIC_OPS:
                signed = (signs[index, step] * parameter).tolist()
                for row, magnitude in zip(index.tolist(), signed, strict=True):
                    maps[row] = _inverse_affine(name, magnitude, height, width)
                continue
            rows = index.to(out.device)
            out[rows] = _apply_colour(name, out[rows], parameter, signs[index, step])
        if maps:
            rows = torch.tensor(list(maps)).to(out.device)
            out[rows] = _warp(out[rows], torch.tensor(list(maps.values())))
    return out


def op_parameter(name, level, height, width, max_level=30):
    """Parameter of one operation at continuous levels, before its sign.

    name           one of OPS
    level          [n] float64 on the CPU, 0 <= level <= max_level
    height, width  image size (px)
    max_level      int >= 1
    Returns        [n] float64: shear as a slope, translation in px (before truncation to whole pixels), rotation in
                   degrees, colour operations as the change of the blend ratio, Posterize in bits kept, Solarize as a
                   grey value in 0..255; 0 for the operations without strength.
    """
    if name == "Posterize":
        return 8 - (level / (max_level / 4)).round()  # bits are whole: torchvision's rounding rule, half to even
    first, last = {
        "ShearX": (0.0, 0.3),
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150.0 / 331.0 * width),
        "TranslateY": (0.0, 150.0 / 331.0 * height),
        "Rotate": (0.0, 30.0),
        "Brightness": (0.0, 0.9),
        "Color": (0.0, 0.9),
        "Contrast": (0.0, 0.9),
        "Sharpness": (0.0, 0.9),
        "Solarize": (255.0, 0.0),
    }.get(name, (0.0, 0.0))
    # Linear between the entries of torchvision's float32 table, so that integer levels hit the entries exactly.
    table = torch.linspace(first, last, max_level + 1, dtype=torch.float32).double()
    return torch.lerp(table[level.floor().long()], table[level.ceil().long()], level.frac())


def _check_batch(images, strength, ops, signs, max_level):
    """Raise ValueError unless the arguments of apply_ops have the dtypes, shapes and ranges given there."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} of shape {list(images.shape)}, expected uint8 [B, C, H, W] with C = 1 or 3"
        )
    if not strength.is_floating_point() or strength.shape != images.shape[:1]:
        raise ValueError(
            f"strength is {strength.dtype} of shape {list(strength.shape)}, expected float [{len(images)}], "
            "one level per image"
        )
    if isinstance(max_level, bool) or not isinstance(max_level, int) or max_level < 1:
        raise ValueError(f"max_level is {max_level!r}, expected a whole number of at least 1")
    if not ((strength >= 0) & (strength <= max_level)).all():  # written so that NaN is refused
        raise ValueError(
            f"strength lies in {strength.min().item()} .. {strength.max().item()}, "
            f"expected 0 .. {max_level} (max_level)"
        )
    for label, tensor in (("ops", ops), ("signs", signs)):
        if tensor.dtype != torch.int64 or tensor.ndim != 2 or len(tensor) != len(images):
            raise ValueError(
                f"{label} are {tensor.dtype} of shape {list(tensor.shape)}, expected int64 [{len(images)}, num_ops]"
            )
    if ops.shape != signs.shape:
        raise ValueError(f"ops have shape {list(ops.shape)} and signs {list(signs.shape)}, expected the same")
    if not ((ops >= 0) & (ops < len(OPS))).all():
        raise ValueError(f"ops lie in {ops.min()} .. {ops.max()}, expected 0 .. {len(OPS) - 1} (positions in OPS)")
    if not (signs.abs() == 1).all():
        raise ValueError("signs hold a value other than -1 and +1")


def _inverse_affine(name, magnitude, height, width):
    """Map from output to source position, in px from the image centre: six numbers, row by row.

    Shears keep the upper left corner in place and rotation the centre, as in torchvision's RandAugment. The shears
    take torchvision's detour (slope to degrees and back, offset around the width or height) and Python's floats:
    a last bit lost on the way moves pixels at some image sizes, H = 38, W = 3 for one.
    """
    if name in ("ShearX", "ShearY"):
        angle = math.radians(math.degrees(math.atan(magnitude)))
    if name == "ShearX":
        slope = math.tan(angle)
        return [1.0, slope, (width * 0.5 + slope * (height * 0.5)) - width * 0.5, 0.0, 1.0, 0.0]
    if name == "ShearY":
        slope = math.sin(angle) / math.cos(angle)
        return [1.0, 0.0, 0.0, slope, 1.0, (slope * (width * 0.5) + height * 0.5) - height * 0.5]
    if name == "TranslateX":
        return [1.0, 0.0, -math.trunc(magnitude), 0.0, 1.0, 0.0]
    if name == "TranslateY":
        return [1.0, 0.0, 0.0, 0.0, 1.0, -math.trunc(magnitude)]
    assert name == "Rotate", f"{name} is not a geometric operation"
    cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
    return [cos, -sin, 0.0, sin, cos, 0.0]


def _warp(images, matrices):
    """Nearest-neighbour sampling of each image under its own affine map; black outside.

    images    [n, C, H, W] uint8, any device
    matrices  [n, 6] on the CPU: from _inverse_affine
    Returns   [n, C, H, W] uint8

    The source PIXEL NUMBERS are computed on the CPU and only the copying happens on the images' device, so that the
    device's rounding, or TF32 matrix products on a GPU, cannot decide which source pixel is taken. The grid is one
    matrix product, as in torchvision, not products and sums written out: a shear by 0.2 puts pixels exactly half way
    between two sources, and the last bit decides.
    """
    n, num_channels, height, width = images.shape
    theta = matrices.to(torch.float32).reshape(n, 2, 3)
    x = torch.linspace(-width * 0.5 + 0.5, width * 0.5 - 0.5, width)
    y = torch.linspace(-height * 0.5 + 0.5, height * 0.5 - 0.5, height)
    y_grid, x_grid = torch.meshgrid(y, x, indexing="ij")
    positions = torch.stack([x_grid, y_grid, torch.ones_like(x_grid)], dim=-1).reshape(1, height * width, 3)
    half_size = torch.tensor([0.5 * width, 0.5 * height])
    grid = positions.expand(n, -1, -1).bmm(theta.transpose(1, 2) / half_size)  # [n, H * W, 2] in [-1, 1]
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32)  # from 1: grid_sample puts 0 outside
    source = F.grid_sample(
        numbers.reshape(1, 1, height, width).expand(n, -1, -1, -1),
        grid.reshape(n, height, width, 2),
        mode="nearest",
        padding_mode="zeros",
        align_corners=False,
    )
    source = source.long().reshape(n, 1, height * width).expand(-1, num_channels, -1).to(images.device)
    with_black = F.pad(images.flatten(2), (1, 0))  # pixel number 0 is black
    return with_black.gather(2, source).reshape(images.shape)


def _apply_colour(name, images, parameter, signs):
    """One operation that changes pixel values but moves none.

    images     [n, C, H, W] uint8, any device
    parameter  [n] float64 on the CPU: from op_parameter
    signs      [n] int64 on the CPU: -1 or +1
    Returns    [n, C, H, W] uint8
    """
    if name == "AutoContrast":
        return _autocontrast(images)
    if name == "Equalize":
        return _equalize(images)
    parameter = parameter.reshape(-1, 1, 1, 1)
    if name == "Posterize":
        mask = 256 - 2 ** (8 - parameter)
        return images & mask.to(images.device, torch.uint8)
    if name == "Solarize":
        threshold = parameter.to(images.device, torch.float32)
        return torch.where(images >= threshold, 255 - images, images)
    ratio = 1.0 + signs.reshape(-1, 1, 1, 1) * parameter
    if name == "Brightness":
        return _blend(images, torch.zeros_like(images), ratio)
    if name == "Color":
        return images if images.shape[1] == 1 else _blend(images, _grey(images), ratio)
    if name == "Contrast":
        grey = _grey(images).float()
        mean = grey.sum(dim=(1, 2, 3), keepdim=True) / grey[0].numel()  # exact sum in float32 up to 256 x 256 px
        return _blend(images, mean, ratio)
    assert name == "Sharpness", f"{name} is not a colour operation"
    if min(images.shape[-2:]) <= 2:  # all border; blending an image with itself would lose 1 by truncation
        return images
    return _blend(images, _blurred(images), ratio)


def _blend(images, other, ratio):
    """ratio * images + (1 - ratio) * other, clamped to 0..255 and TRUNCATED to uint8, as torchvision does.

    images  [n, C, H, W] uint8
    other   uint8 or float32, broadcast to images
    ratio   [n, 1, 1, 1] float64 on the CPU, >= 0
    """
    weight = ratio.to(images.device, torch.float32)
    rest = (1.0 - ratio).to(images.device, torch.float32)  # subtracted in double, then rounded, as torchvision does
    return (weight * images + rest * other).clamp(0, 255).to(torch.uint8)


def _grey(images):
    """Luma of [n, C, H, W] uint8 as [n, 1, H, W] uint8; the images themselves for C = 1."""
    if images.shape[1] == 1:
        return images
    r, g, b = images.unbind(dim=1)
    return (0.2989 * r + 0.587 * g + 0.114 * b).to(torch.uint8).unsqueeze(1)


def _blurred(images):
    """3 x 3 smoothing, weight 5/13 in the middle and 1/13 around; the border stays. [n, C, H >= 3, W >= 3] uint8."""
    pixels = images.float()
    total = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1) + 4 * pixels[..., 1:-1, 1:-1]
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = (total / 13).round().to(torch.uint8)  # whole sums over 13 are never half-way
    return blurred


def _autocontrast(images):
    """Stretch each channel to 0..255; a constant channel stays. [n, C, H, W] uint8."""
    lowest = images.amin(dim=(2, 3), keepdim=True).float()
    highest = images.amax(dim=(2, 3), keepdim=True).float()
    scale = 255 / (highest - lowest)
    constant = highest == lowest
    lowest = lowest.masked_fill(constant, 0)
    scale = scale.masked_fill(constant, 1)
    return ((images - lowest) * scale).clamp(0, 255).to(torch.uint8)


def _equalize(images):
    """Histogram equalisation of each channel, in whole numbers. [n, C, H, W] uint8."""
    values = images.flatten(2).flatten(0, 1).long()  # [n * C, H * W]
    num_channels = len(values)
    first_bin = 256 * torch.arange(num_channels, device=images.device).unsqueeze(1)
    histogram = torch.bincount((values + first_bin).flatten(), minlength=256 * num_channels).reshape(-1, 256)
    num_brightest = histogram.gather(1, values.amax(dim=1, keepdim=True))
    step = (values.shape[1] - num_brightest) // 255  # [n * C, 1]; 0: too few pixels, the channel stays
    divisor = step.clamp(min=1)
    table = (histogram.cumsum(dim=1) - histogram + step // 2) // divisor  # counts of the darker pixels only
    equalized = table.clamp(0, 255).gather(1, values)
    return torch.where(step == 0, values, equalized).to(torch.uint8).reshape(images.shape)

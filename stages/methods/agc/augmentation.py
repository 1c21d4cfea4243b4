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

import functools
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
GEOMETRIC_OPS = OPS[1:6]  # all share one sampling call

# The second pass is filled up with repeats, whose losses are dropped, to a multiple of this many samples: every new batch
# size is compiled anew by oneDNN and cuDNN, and it would have another at nearly every step.
SECOND_PASS = 8
# A CUDA graph has one size. So many are captured, of equal parts of the batch, and the smallest that suffices is run.
GRAPHS = 4


def capacity(count):
    """Rows of the second pass for so many augmented samples."""
    return -(-count // SECOND_PASS) * SECOND_PASS


def capacities(batch_size):
    """The sizes of which a graph is captured, increasing: 1/4, 1/2, 3/4 and all of the batch, rounded up."""
    return sorted({-(-batch_size * part // GRAPHS) for part in range(1, GRAPHS + 1)})


def drawn(batch_size, key, num_ops):
    """Operations and signs for the second pass of a step, as many as its largest may take: see `draw_ops`. Those of its i-th sample are
    the i-th, however many it has."""
    generator = randomness.torch_generator("cpu", "augment", *key)
    return draw_ops(capacity(batch_size), num_ops, generator)


def augmented_losses(step, augmented, rho, taa, size):
    """Losses of the augmented samples from augmented images, with the same timestep and noise (Eq. 5): L(Aug(x, rho), t, eps).

    step       base.Step, with what `drawn` gives as drawn: ops, signs
    augmented  [B] bool: which samples of the batch
    rho        [B] float32: relative strength of each
    taa        section taa of the method: magnitude, max_level
    size       rows of the second pass, at least as many as there are augmented samples, see `capacity`
    Returns    [B] float32, 0 where a sample is not augmented
    """
    count = augmented.sum()
    places = torch.arange(size, device=augmented.device)
    augmented_first = (~augmented).to(torch.uint8).argsort(stable=True)
    rows = augmented_first[places % count.clamp(min=1)]  # those that are augmented, in their order
    ops, signs = (step.drawn[name][:size] for name in ("ops", "signs"))
    x_aug = apply_ops(step.x[rows], taa["magnitude"] * rho[rows], ops, signs, taa["max_level"])
    losses = step.sample_losses(ddpm.normalise(x_aug), rows)
    return losses.new_zeros(rho.shape).index_add(0, rows, torch.where(places < count, losses, 0))


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
    if _on_host(threshold) and (threshold < 0).any():
        raise ValueError(f"threshold goes down to {threshold.min().item()}, expected lambda * bank[t] >= 0")
    d = (loss.detach() / threshold - 1).abs()
    rho = torch.exp(-decay * d)
    return torch.where(threshold == 0, torch.zeros_like(rho), rho)  # 0 / 0 and decay 0 would give NaN


def rand_augment(images, strength, generator, num_ops=2, max_level=30):
    """Apply num_ops random operations to each image, at that image's own strength (Aug in Eq. 8).

    images     [B, C, H, W] uint8, C = 1 or 3, any device; not changed
    strength   [B] float, in levels: m = M * rho, 0 <= m <= max_level, on the images' device
    generator  torch.Generator on the CPU: the only source of randomness, whatever the images' device
    num_ops    int >= 1: operations applied one after the other (the paper does not say; torchvision's default)
    max_level  int >= 1: level of the strongest operation (the paper does not say; torchvision's default)
    Returns    [B, C, H, W] uint8 on the images' device. Row i depends on images[i], strength[i] and the i-th draw.
    Raises     ValueError: wrong dtype or shape, strength out of range, num_ops or max_level below 1, generator not
               on the CPU.
    """
    ops, signs = draw_ops(len(images), num_ops, generator)
    return apply_ops(images, strength, ops.to(images.device), signs.to(images.device), max_level)


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

    On other devices than a CPU each operation is applied to all images, and its result kept where it was drawn: more work, but of shapes
    that are known beforehand, so that the host never waits. The images are the same, but at levels that put the source of a pixel exactly
    half way between two others.

    images     [B, C, H, W] uint8, C = 1 or 3, any device; not changed
    strength   [B] float, in levels, 0 <= m <= max_level, on the images' device
    ops        [B, K] int64, there too: positions in OPS, applied from column 0 on
    signs      [B, K] int64, there too: -1 or +1
    max_level  int >= 1: level of the strongest operation
    Returns    [B, C, H, W] uint8
    Raises     ValueError: wrong dtype or shape; on a CPU, a value out of range.
    """
    _check_batch(images, strength, ops, signs, max_level)
    height, width = images.shape[-2:]
    levels = strength.double()  # parameters are computed in double, as torchvision does in Python
    first_move, last_move = OPS.index(GEOMETRIC_OPS[0]), OPS.index(GEOMETRIC_OPS[-1])
    out = images.clone()

    def apply(drew, operation):
        """To the images that drew it, drew [B] bool: operation(images, rows) -> [n, C, H, W] uint8, rows their places."""
        nonlocal out
        if not _on_host(images):
            out = torch.where(drew.view(-1, 1, 1, 1), operation(out, slice(None)), out)
        elif len(rows := drew.nonzero().squeeze(1)):
            out[rows] = operation(out[rows], rows)

    for drawn_ops, drawn_signs in zip(ops.T, signs.T, strict=True):
        for op, name in enumerate(OPS):
            if name == "Identity" or name in GEOMETRIC_OPS:
                continue

            def coloured(some, rows, name=name, sign=drawn_signs):
                return _apply_colour(name, some, op_parameter(name, levels[rows], height, width, max_level), sign[rows])

            apply(drawn_ops == op, coloured)

        def warped(some, rows, op=drawn_ops, sign=drawn_signs):
            return _warp(some, _inverse_affine(op[rows], levels[rows], sign[rows], height, width, max_level))

        apply((first_move <= drawn_ops) & (drawn_ops <= last_move), warped)
    return out


def _on_host(tensor):
    """Whether the values of a tensor are known to the host at once; on a GPU it would have to wait for them."""
    return tensor.device.type == "cpu"


def op_parameter(name, level, height, width, max_level=30):
    """Parameter of one operation at continuous levels, before its sign.

    name           one of OPS
    level          [n] float64, 0 <= level <= max_level
    height, width  image size (px)
    max_level      int >= 1
    Returns        [n] float64: shear as a slope, translation in px (before truncation to whole pixels), rotation in
                   degrees, colour operations as the change of the blend ratio, Posterize in bits kept, Solarize as a
                   grey value in 0..255; 0 for the operations without strength.
    """
    if name == "Posterize":
        return 8 - (level / (max_level / 4)).round()  # bits are whole: torchvision's rounding rule, half to even
    table = _table(name, height, width, max_level, level.device)
    return torch.lerp(table[level.floor().long()], table[level.ceil().long()], level.frac())


@functools.cache  # a CUDA graph that is captured can read it, not fetch it from the host
def _table(name, height, width, max_level, device):
    """The parameter of one operation at whole levels: [max_level + 1] float64.

    The entries are those of torchvision's float32 table, so that integer levels hit them exactly; between them it is linear.
    """
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
    return torch.linspace(first, last, max_level + 1, dtype=torch.float32).double().to(device)


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
    if _on_host(strength) and not ((strength >= 0) & (strength <= max_level)).all():  # NaN is refused, too
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
    if not _on_host(ops):
        return
    if not ((ops >= 0) & (ops < len(OPS))).all():
        raise ValueError(f"ops lie in {ops.min()} .. {ops.max()}, expected 0 .. {len(OPS) - 1} (positions in OPS)")
    if not (signs.abs() == 1).all():
        raise ValueError("signs hold a value other than -1 and +1")


def _inverse_affine(ops, levels, signs, height, width, max_level):
    """Map from output to source position of each image, in px from the image centre: six numbers, row by row.

    Shears keep the upper left corner in place and rotation the centre, as in torchvision's RandAugment. The shears
    take torchvision's detour (slope to degrees and back, offset around the width or height) and, on a CPU, Python's sines:
    a last bit lost on the way moves pixels at some image sizes, H = 38, W = 3 for one.

    ops, signs  [n] int64; other operations than GEOMETRIC_OPS get the identity
    levels      [n] float64
    Returns     [n, 6] float64
    """

    def magnitude(name):
        return signs * op_parameter(name, levels, height, width, max_level)

    def angle(name):
        return of("radians", of("degrees", of("atan", magnitude(name))))

    def of(function, values):
        if _on_host(values):
            return values.new_tensor([getattr(math, function)(value) for value in values.tolist()])
        return {"radians": torch.deg2rad, "degrees": torch.rad2deg}.get(function, getattr(torch, function, None))(
            values
        )

    zero, one = torch.zeros_like(levels), torch.ones_like(levels)
    x_slope = of("tan", angle("ShearX"))
    x_offset = (width * 0.5 + x_slope * (height * 0.5)) - width * 0.5
    y_slope = of("sin", angle("ShearY")) / of("cos", angle("ShearY"))
    y_offset = (y_slope * (width * 0.5) + height * 0.5) - height * 0.5
    turn = of("radians", magnitude("Rotate"))
    cos, sin = of("cos", turn), of("sin", turn)
    maps = {
        "ShearX": (one, x_slope, x_offset, zero, one, zero),
        "ShearY": (one, zero, zero, y_slope, one, y_offset),
        "TranslateX": (one, zero, -magnitude("TranslateX").trunc(), zero, one, zero),
        "TranslateY": (one, zero, zero, zero, one, -magnitude("TranslateY").trunc()),
        "Rotate": (cos, -sin, zero, sin, cos, zero),
    }
    found = torch.stack([one, zero, zero, zero, one, zero], dim=1)
    for name, columns in maps.items():
        found = torch.where((ops == OPS.index(name)).unsqueeze(1), torch.stack(columns, dim=1), found)
    return found


def _warp(images, matrices):
    """Nearest-neighbour sampling of each image under its own affine map; black outside.

    images    [n, C, H, W] uint8
    matrices  [n, 6] float64, from _inverse_affine
    Returns   [n, C, H, W] uint8

    On a CPU source positions are computed as torchvision does, in float32 by one matrix product, not by products and sums written out: a
    shear by 0.2 puts pixels exactly half way between two sources, and the last bit decides. On other devices in float64, so that their
    rounding, TF32 above all, decides nowhere else.
    """
    n, num_channels, height, width = images.shape
    device = images.device
    dtype = torch.float32 if _on_host(images) else torch.float64
    theta = matrices.to(dtype).reshape(n, 2, 3)
    x = torch.linspace(-width * 0.5 + 0.5, width * 0.5 - 0.5, width, dtype=dtype, device=device)
    y = torch.linspace(-height * 0.5 + 0.5, height * 0.5 - 0.5, height, dtype=dtype, device=device)
    y_grid, x_grid = torch.meshgrid(y, x, indexing="ij")
    positions = torch.stack([x_grid, y_grid, torch.ones_like(x_grid)], dim=-1).reshape(1, height * width, 3)
    along_x, along_y = theta.transpose(1, 2).unbind(2)
    halved = torch.stack([along_x / (0.5 * width), along_y / (0.5 * height)], dim=2)
    grid = positions.expand(n, -1, -1).bmm(halved)  # [n, H * W, 2] in [-1, 1]
    numbers = torch.arange(1, height * width + 1, dtype=dtype, device=device)  # from 1: grid_sample puts 0 outside
    source = F.grid_sample(
        numbers.reshape(1, 1, height, width).expand(n, -1, -1, -1),
        grid.reshape(n, height, width, 2),
        mode="nearest",
        padding_mode="zeros",
        align_corners=False,
    )
    source = source.long().reshape(n, 1, height * width).expand(-1, num_channels, -1)
    with_black = F.pad(images.flatten(2), (1, 0))  # pixel number 0 is black
    return with_black.gather(2, source).reshape(images.shape)


def _apply_colour(name, images, parameter, signs):
    """One operation that changes pixel values but moves none.

    images     [n, C, H, W] uint8, any device
    parameter  [n] float64: from op_parameter
    signs      [n] int64: -1 or +1
    Returns    [n, C, H, W] uint8
    """
    if name == "AutoContrast":
        return _autocontrast(images)
    if name == "Equalize":
        return _equalize(images)
    parameter = parameter.reshape(-1, 1, 1, 1)
    if name == "Posterize":
        mask = 256 - 2 ** (8 - parameter)
        return images & mask.to(torch.uint8)
    if name == "Solarize":
        threshold = parameter.to(torch.float32)
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
    ratio   [n, 1, 1, 1] float64, >= 0
    """
    weight = ratio.to(torch.float32)
    rest = (1.0 - ratio).to(torch.float32)  # subtracted in double, then rounded, as torchvision does
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
    histogram = values.new_zeros(len(values), 256).scatter_add_(1, values, torch.ones_like(values))
    num_brightest = histogram.gather(1, values.amax(dim=1, keepdim=True))
    step = (values.shape[1] - num_brightest) // 255  # [n * C, 1]; 0: too few pixels, the channel stays
    divisor = step.clamp(min=1)
    table = (histogram.cumsum(dim=1) - histogram + step // 2) // divisor  # counts of the darker pixels only
    equalized = table.clamp(0, 255).gather(1, values)
    return torch.where(step == 0, values, equalized).to(torch.uint8).reshape(images.shape)

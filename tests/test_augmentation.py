"""Tests of stages/methods/agc/augmentation.py. Oracle: the pinned torchvision, one image and one operation at a time."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from stages.methods.agc import augmentation
from stages.methods.agc.augmentation import OPS, apply_ops, draw_ops, op_parameter, rand_augment, relative_strength

UNSIGNED = ("Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")
NO_STRENGTH = ("Identity", "AutoContrast", "Equalize")
SHAPES = [  # C, H, W
    (1, 8, 8),
    (3, 8, 8),
    (1, 32, 32),
    (3, 32, 32),
    (1, 64, 64),
    (3, 64, 64),
    (1, 20, 28),  # neither square nor powers of two: H and W swapped, or rounding in the grid, would show
    (3, 32, 8),
    (3, 2, 5),  # Sharpness has no inside to blur
]


def torchvision_op(image, name, level, sign, max_level=30):
    """Oracle: torchvision's own operation on one image [C, H, W] at one integer level."""
    magnitudes, signed = RandAugment()._augmentation_space(max_level + 1, image.shape[-2:])[name]
    magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
    return _apply_op(image, name, sign * magnitude if signed else magnitude, InterpolationMode.NEAREST, None)


def make_images(shape, generator):
    """Five images: all values, a narrow range, few values and constants (0 / 0 in AutoContrast), smooth, saturated."""
    height, width = shape[1:]
    noise = torch.randint(256, shape, generator=generator)
    few = torch.tensor([7, 7, 7, 250])[noise % 4]
    few[0] = 93
    ramp = (torch.linspace(0, 250, width) + torch.linspace(0, 5, height).unsqueeze(1)).expand(shape)
    return torch.stack([noise, 100 + noise % 37, few, ramp.long(), 255 * (noise > 128)]).to(torch.uint8)


def single_op(images, levels, name, sign, **kwargs):
    """Every image under the same operation and sign, at its own level."""
    ops = torch.full((len(images), 1), OPS.index(name))
    return apply_ops(images, levels, ops, torch.full_like(ops, sign), **kwargs)


def test_operations_are_torchvisions_in_its_order():
    assert list(OPS) == list(RandAugment()._augmentation_space(31, (32, 32)))


@pytest.mark.parametrize("shape", SHAPES)
def test_integer_levels_equal_torchvision(shape):
    """All operations, the levels and both signs in ONE batch, so samples with different maps share a call."""
    images = make_images(shape, torch.Generator().manual_seed(1))
    levels = (0, 1, 3, 5, 15, 30)
    cases = [(name, level, sign) for name in OPS for level in levels for sign in (-1, 1)]
    batch = images.repeat(len(cases), 1, 1, 1)
    repeated = [case for case in cases for _ in images]
    ops = torch.tensor([[OPS.index(name)] for name, _, _ in repeated])
    signs = torch.tensor([[sign] for _, _, sign in repeated])
    result = apply_ops(batch, torch.tensor([float(level) for _, level, _ in repeated]), ops, signs)
    assert result.dtype == torch.uint8 and result.shape == batch.shape
    for row, (image, case) in enumerate(zip(batch, repeated, strict=True)):
        assert torch.equal(result[row], torchvision_op(image, *case)), case


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "Rotate"])
def test_every_level_of_the_sampled_maps_equals_torchvision(name):
    """Some levels (shear 0.1, 0.2, 0.3) put pixels exactly half way, where the last bit decides (38 x 3: the map's)."""
    for height, width in ((8, 8), (32, 32), (64, 64), (20, 28), (33, 47), (38, 3), (3, 38)):
        image = torch.arange(height * width).reshape(1, height, width).mul(37).remainder(255).add(1).to(torch.uint8)
        for sign in (-1, 1):
            result = single_op(image.expand(31, 1, height, width), torch.arange(31.0), name, sign)
            for level in range(31):
                expected = torchvision_op(image, name, level, sign)
                assert torch.equal(result[level], expected), (height, width, level, sign)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 28), (3, 32, 32), (1, 33, 47)])
def test_what_a_gpu_does_gives_the_same_images(shape, monkeypatch):
    """All images under each operation, and positions in double: but at levels that put a source exactly half way, bit for bit."""
    generator = torch.Generator().manual_seed(13)
    images = make_images(shape, generator).repeat(60, 1, 1, 1)
    levels = 30 * torch.rand(len(images), generator=generator)
    ops, signs = draw_ops(len(images), 3, generator)
    usual = apply_ops(images, levels, ops, signs)
    monkeypatch.setattr(augmentation, "_on_host", lambda _: False)
    assert torch.equal(apply_ops(images, levels, ops, signs), usual)
    assert (usual != images).flatten(1).any(1).sum() > 200


def test_other_max_level_equals_torchvision_with_that_many_bins():
    images = make_images((3, 20, 28), torch.Generator().manual_seed(2))
    for name in OPS:
        for level in (0, 3, 7, 10):
            result = single_op(images, torch.full((5,), float(level)), name, -1, max_level=10)
            for row, image in enumerate(images):
                assert torch.equal(result[row], torchvision_op(image, name, level, -1, max_level=10)), (name, level)


def test_operations_follow_each_other_in_column_order():
    """At level 30 Solarize inverts everything: the corners are white when it comes last and black when Rotate does."""
    image = make_images((3, 16, 24), torch.Generator().manual_seed(3))[0]
    ops = torch.tensor([[OPS.index("Rotate"), OPS.index("Solarize")], [OPS.index("Solarize"), OPS.index("Rotate")]])
    result = apply_ops(torch.stack([image, image]), torch.tensor([30.0, 30.0]), ops, torch.tensor([[1, -1], [1, -1]]))
    rotated_first = torchvision_op(torchvision_op(image, "Rotate", 30, 1), "Solarize", 30, 1)
    solarized_first = torchvision_op(torchvision_op(image, "Solarize", 30, 1), "Rotate", 30, -1)
    assert torch.equal(result[0], rotated_first) and result[0, 0, 0, 0] == 255
    assert torch.equal(result[1], solarized_first) and result[1, 0, 0, 0] == 0


@pytest.mark.parametrize("name", [name for name in OPS if name not in (*NO_STRENGTH, "Posterize")])
def test_parameter_between_two_levels_lies_strictly_between(name):
    low, middle, high = op_parameter(name, torch.tensor([2.0, 2.3, 3.0], dtype=torch.float64), 20, 28).tolist()
    assert min(low, high) < middle < max(low, high)
    assert middle == pytest.approx(low + 0.3 * (high - low), rel=1e-12)  # double arithmetic


def test_parameters_by_hand():
    level = torch.tensor([0.0, 1.5, 30.0], dtype=torch.float64)
    expected = {
        "ShearX": [0.0, 0.015, 0.3],
        "TranslateX": [0.0, 0.05 * 150 / 331 * 28, 150 / 331 * 28],  # width 28
        "TranslateY": [0.0, 0.05 * 150 / 331 * 20, 150 / 331 * 20],  # height 20
        "Rotate": [0.0, 1.5, 30.0],
        "Sharpness": [0.0, 0.045, 0.9],
        "Solarize": [255.0, 242.25, 0.0],
        "Equalize": [0.0, 0.0, 0.0],
    }
    for name, values in expected.items():
        assert op_parameter(name, level, 20, 28).tolist() == pytest.approx(values, rel=1e-6), name  # float32 tables


def test_posterize_keeps_whole_bits_at_continuous_levels():
    """8 - round(m / 7.5), half to even: the ties 3.75 and 11.25 (0.5 and 1.5) go to 8 and 6 bits."""
    level = torch.tensor([0.0, 3.0, 3.75, 3.76, 4.0, 11.24, 11.25, 18.75, 18.76, 30.0], dtype=torch.float64)
    assert op_parameter("Posterize", level, 8, 8).tolist() == [8, 8, 8, 7, 7, 7, 6, 6, 5, 4]


@pytest.mark.parametrize("name", [name for name in OPS if name not in ("AutoContrast", "Equalize")])
@pytest.mark.parametrize("sign", [-1, 1])
def test_level_0_is_the_identity(name, sign):
    for shape in SHAPES:
        images = make_images(shape, torch.Generator().manual_seed(4)).clamp(max=254)  # 255: see the next test
        assert torch.equal(single_op(images, torch.zeros(len(images)), name, sign), images), shape


def test_solarize_inverts_white_even_at_level_0():
    """torchvision's threshold is 255 at level 0 and the comparison is >=, so Solarize does not vanish with rho."""
    white_and_grey = torch.tensor([[[[255, 254]]]], dtype=torch.uint8)
    assert single_op(white_and_grey, torch.zeros(1), "Solarize", 1).tolist() == [[[[0, 254]]]]


def test_translation_truncates_to_whole_pixels():
    """32 px: 150 / 331 * 32 * m / 30 = 0.4834 * m, so one pixel from m = 2.07 on and at M = 3 never two."""
    images = torch.arange(1, 33, dtype=torch.uint8).repeat(3, 1, 32, 1)
    result = single_op(images, torch.tensor([2.06, 2.08, 3.0]), "TranslateX", 1)[:, 0, 0]
    assert result[0].tolist() == list(range(1, 33))
    assert result[1].tolist() == result[2].tolist() == [0, *range(1, 32)]


def assert_levels_are_continuous_and_per_sample(apply):
    """Brightness and Solarize by hand, and the same result as in a batch of one, at levels between the integers."""
    levels = torch.tensor([0.4, 2.6, 0.0, 2.2, 17.5])
    grey = torch.full((5, 1, 8, 8), 100, dtype=torch.uint8)
    ops = torch.full((5, 1), OPS.index("Brightness"))
    result = apply(grey, levels, ops, torch.ones_like(ops))
    assert result[:, 0, 0, 0].tolist() == [101, 107, 100, 106, 152]  # int(100 * (1 + 0.03 * m))
    ramp = torch.arange(224, 256, dtype=torch.uint8).reshape(1, 1, 1, 32).repeat(5, 1, 1, 1)
    ops = torch.full((5, 1), OPS.index("Solarize"))
    result = apply(ramp, levels, ops, torch.ones_like(ops))
    # 255 - 8.5 * m = 251.6, 232.9, 255, 236.3, 106.25: values from there up are inverted
    assert (result != ramp).sum(dim=(1, 2, 3)).tolist() == [4, 23, 1, 19, 32]

    generator = torch.Generator().manual_seed(5)
    images = torch.randint(256, (64, 3, 20, 28), generator=generator).to(torch.uint8)
    levels = 30 * torch.rand(64, generator=generator)
    ops, signs = draw_ops(64, 2, generator)
    result = apply(images, levels, ops, signs)
    for row in range(64):
        alone = apply_ops(*(tensor[row : row + 1] for tensor in (images, levels, ops, signs)))
        assert torch.equal(result[row], alone[0]), row


def first_level_for_all(images, strength, ops, signs):
    """Mutant: one strength per call, as torchvision's class works."""
    return apply_ops(images, strength[:1].expand_as(strength), ops, signs)


def rounded_levels(images, strength, ops, signs):
    """Mutant: torchvision's integer bins."""
    return apply_ops(images, strength.round(), ops, signs)


def test_levels_are_continuous_and_per_sample():
    assert_levels_are_continuous_and_per_sample(apply_ops)


@pytest.mark.parametrize("mutant", [first_level_for_all, rounded_levels])
def test_wrong_levels_would_be_noticed(mutant):
    with pytest.raises(AssertionError):
        assert_levels_are_continuous_and_per_sample(mutant)


def test_a_sample_does_not_depend_on_the_other_strengths_or_the_batch_size():
    images = make_images((3, 16, 16), torch.Generator().manual_seed(6)).repeat(8, 1, 1, 1)
    levels = torch.linspace(0, 30, len(images))
    others = levels.flip(0).clone()
    others[7] = levels[7]
    result = rand_augment(images, levels, torch.Generator().manual_seed(7))
    assert torch.equal(rand_augment(images, others, torch.Generator().manual_seed(7))[7], result[7])
    assert torch.equal(rand_augment(images[:9], levels[:9], torch.Generator().manual_seed(7)), result[:9])


def test_same_seed_same_result_and_the_global_generator_is_left_alone():
    images = make_images((1, 16, 16), torch.Generator().manual_seed(8)).repeat(8, 1, 1, 1)
    before, global_state = images.clone(), torch.get_rng_state()
    levels = torch.linspace(5, 30, len(images))
    first = rand_augment(images, levels, torch.Generator().manual_seed(9))
    assert torch.equal(rand_augment(images, levels, torch.Generator().manual_seed(9)), first)
    assert not torch.equal(rand_augment(images, levels, torch.Generator().manual_seed(10)), first)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_draws_are_equally_likely_and_independent():
    """70,000 samples x 2 steps: each bound is 5 standard deviations of its binomial count."""
    ops, signs = draw_ops(70_000, 2, torch.Generator().manual_seed(11))
    assert ops.shape == signs.shape == (70_000, 2) and ops.dtype == signs.dtype == torch.int64
    for step in range(2):
        pairs = torch.bincount(2 * ops[:, step] + (signs[:, step] + 1) // 2, minlength=28)
        assert len(pairs) == 28 and (pairs - 2500).abs().max() < 5 * math.sqrt(2500)
    assert ((ops[:, 0] == ops[:, 1]).sum() - 5000).abs() < 5 * math.sqrt(5000)
    has_no_strength = (ops >= OPS.index("AutoContrast")).any(dim=1)  # 1 - (12 / 14)^2 = 0.2653 of the samples
    assert has_no_strength.double().mean().item() == pytest.approx(0.2653, abs=5 * 0.44 / math.sqrt(70_000))


def test_unsigned_operations_ignore_the_sign():
    images = make_images((3, 32, 32), torch.Generator().manual_seed(12))
    levels = torch.tensor([1.5, 8.0, 12.25, 22.0, 30.0])
    for name in OPS:
        same = torch.equal(single_op(images, levels, name, -1), single_op(images, levels, name, 1))
        assert same == (name in UNSIGNED), name


def test_empty_batch_stays_empty():
    empty = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert rand_augment(empty, torch.empty(0), torch.Generator()).shape == (0, 3, 8, 8)


def test_relative_strength_by_hand():
    """A = 5; R = 1.7 and 1.2 end the band at exp(-3.5) and exp(-1); unequal thresholds, so roles cannot be swapped."""
    threshold = torch.tensor([0.5, 0.1, 0.1, 0.2, 0.0, 0.0])
    loss = torch.tensor([0.5, 0.17, 0.12, 0.1, 0.3, 0.0])
    expected = [1.0, math.exp(-3.5), math.exp(-1.0), math.exp(-2.5), 0.0, 0.0]
    assert relative_strength(loss, threshold, 5.0).tolist() == pytest.approx(expected, rel=1e-6)  # float32
    assert relative_strength(loss, threshold, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_relative_strength_carries_no_gradient():
    loss = torch.tensor([0.5], requires_grad=True)
    assert not relative_strength(loss, torch.tensor([0.4]), 5.0).requires_grad


def test_relative_strength_refuses_wrong_arguments():
    with pytest.raises(ValueError, match=r"loss has shape \[2\] and threshold \[1\]"):
        relative_strength(torch.ones(2), torch.ones(1), 5.0)
    with pytest.raises(ValueError, match=r"shape \[2, 1\]"):
        relative_strength(torch.ones(2, 1), torch.ones(2, 1), 5.0)
    for decay in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="decay is"):
            relative_strength(torch.ones(2), torch.ones(2), decay)
    with pytest.raises(ValueError, match="threshold goes down to -1.0"):
        relative_strength(torch.ones(2), torch.tensor([1.0, -1.0]), 5.0)


IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": IMAGES.float()}, "torch.float32 of shape"),
        ({"images": IMAGES[0]}, r"shape \[3, 8, 8\], expected uint8"),
        ({"images": IMAGES[:, :2]}, "C = 1 or 3"),
        ({"strength": torch.ones(3)}, r"expected float \[2\]"),
        ({"strength": torch.ones(2, 1)}, r"expected float \[2\]"),
        ({"strength": torch.ones(2, dtype=torch.int64)}, "strength is torch.int64"),
        ({"strength": torch.tensor([1.0, 30.5])}, r"expected 0 .. 30 \(max_level\)"),
        ({"strength": torch.tensor([1.0, -0.1])}, "strength lies in"),
        ({"strength": torch.tensor([1.0, math.nan])}, "strength lies in"),
        ({"max_level": 0}, "max_level is 0"),
        ({"max_level": 30.0}, "max_level is 30.0"),
        ({"ops": torch.zeros(2, 1)}, "ops are torch.float32"),
        ({"ops": torch.zeros(3, 1, dtype=torch.int64)}, r"expected int64 \[2, num_ops\]"),
        ({"ops": torch.tensor([[0], [14]])}, "expected 0 .. 13"),
        ({"ops": torch.zeros(2, 2, dtype=torch.int64)}, "expected the same"),
        ({"signs": torch.tensor([[1], [0]])}, "other than -1 and \\+1"),
    ],
)
def test_apply_ops_refuses_wrong_arguments(changed, message):
    ops = torch.zeros(2, 1, dtype=torch.int64)
    arguments = {"images": IMAGES, "strength": torch.ones(2), "ops": ops, "signs": torch.ones_like(ops)}
    with pytest.raises(ValueError, match=message):
        apply_ops(**{**arguments, **changed})


def test_draw_ops_refuses_zero_operations():
    with pytest.raises(ValueError, match="num_ops is 0, expected at least 1"):
        rand_augment(IMAGES, torch.ones(2), torch.Generator(), num_ops=0)

"""Augmentation that the network is told of, so that it does not leak into what is generated (Karras et al. 2022, appendix F.2).

A training image is changed by each of some kinds of transformation with probability p, and the network gets the parameters of the change
beside the timestep. All of them 0 means an unchanged image, and that is what it is told in sampling. Goes with any method that may see
other pixels than the image has.

x_flip        mirrored: at half of the visits, whatever p is                                     told 1
y_flip        upside down, with probability p / 2                                                told 1
scaling       by 2^(0.2 w), w ~ N(0, 1)                                                          told w
rotation      by an angle a, uniform in [-pi, pi)                                                told cos a - 1, sin a
anisotropy    by 2^(0.2 w) along a direction a, by 2^(-0.2 w) across it; a is 0 in half of the   told w cos a, w sin a
              cases, and uniform in [-pi, pi) in the others
translation   by 0.125 w_x of the width and 0.125 w_y of the height, w ~ N(0, 1)                 told w_x, w_y
shift         by one pixel in one of the eight directions; not of that paper: for small images   told the pixels, x and y

All but shift are drawn as the training of the authors' code draws them (NVlabs/edm, train.py --augment=p: a flip is a fair coin that is then
kept with a probability, which is p for y_flip, and 1 for x_flip by a factor of 1e8). What differs from it:

pixels        between others they are interpolated linearly; theirs filters with wavelets on a grid twice as fine
values        rounded to whole grey levels and clamped to what an image can have; theirs stay real numbers, without bounds
border        an image is mirrored about the centres of its outermost pixels, as often as is needed; theirs once, and grey beyond that.
              A shift repeats the border
signs         a rotation and the direction of an anisotropy go from x to y; theirs from y to x. Both are as likely
network       what it is told goes through one linear layer, which starts at 0, to the embedding of the timestep after that one's own two layers;
              theirs is added before these layers, and starts at random in the networks of its experiments with CIFAR-10
draws         of this project's generators, one for each step

B batch, C H W image, A numbers that the network is told.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F

NUM_TOLD = {"x_flip": 1, "y_flip": 1, "scaling": 1, "rotation": 2, "anisotropy": 2, "translation": 2, "shift": 2}
EIGHT = np.array([d for d in itertools.product((-1, 0, 1), repeat=2) if d != (0, 0)])
STRENGTH, SHARE = 0.2, 0.125


def num_told(settings):
    """A. settings: section train.told_augmentation: p, kinds."""
    return sum(NUM_TOLD[kind] for kind in settings["kinds"])


def drawn(num_images, settings, generator):
    """What happens to each image of a batch. Every kind draws, used or not, so that none changes the draws of another.

    settings    section train.told_augmentation: p, kinds
    generator   numpy Generator
    Returns     dict kind -> [B, 1 or 2] float64, 0 where the kind leaves an image as it is: see `told_of`; anisotropy: w and a
    """
    found, p = {}, settings["p"]
    probabilities = dict.fromkeys(NUM_TOLD, p) | {"x_flip": 1 / 2, "y_flip": p / 2}
    for kind in NUM_TOLD:
        chosen = generator.random(num_images) < probabilities[kind]
        values = {
            "x_flip": lambda: np.ones((num_images, 1)),
            "y_flip": lambda: np.ones((num_images, 1)),
            "scaling": lambda: generator.standard_normal((num_images, 1)),
            "rotation": lambda: generator.uniform(-np.pi, np.pi, (num_images, 1)),
            "anisotropy": lambda: np.stack(
                [generator.standard_normal(num_images), generator.uniform(-np.pi, np.pi, num_images)], axis=1
            ),
            "translation": lambda: generator.standard_normal((num_images, 2)),
            "shift": lambda: EIGHT[generator.integers(len(EIGHT), size=num_images)],
        }[kind]()
        if kind in settings["kinds"]:
            found[kind] = np.where(chosen[:, None], values, 0.0)
    along_x = generator.random(num_images) < 1 / 2  # drawn last, so that it changes no other draw
    if "anisotropy" in found:
        found["anisotropy"][along_x, 1] = 0.0
    return found


def told_of(changes):
    """What the network is told of them, in the order of NUM_TOLD: [B,A] float32."""
    found = []
    for kind, values in changes.items():
        if kind == "rotation":
            values = np.concatenate([np.cos(values) - 1, np.sin(values)], axis=1)
        elif kind == "anisotropy":
            w, a = values[:, :1], values[:, 1:]
            values = np.concatenate([w * np.cos(a), w * np.sin(a)], axis=1)
        found.append(values)
    return torch.from_numpy(np.concatenate(found, axis=1)).float()


def _rotations(angle):
    """[B,2,2]: by an angle [B], from the axis x to the axis y of the image, which points down."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _scalings(x, y):
    """[B,2,2]: by x and y [B] along the axes."""
    zero = np.zeros_like(x)
    return np.stack([np.stack([x, zero], -1), np.stack([zero, y], -1)], -2)


def _moves(changes, height, width):
    """Where a pixel goes, in pixels from the centre, by scaling, then rotation, anisotropy and translation.

    Returns   [B,2,2] and [B,2] float64: position p goes to M p + b
    """
    num_images = len(next(iter(changes.values())))
    zero = np.zeros((num_images, 2))
    scale = 2 ** (STRENGTH * changes.get("scaling", zero)[:, 0])
    w, a = changes.get("anisotropy", zero).T
    stretched = _rotations(a) @ _scalings(2 ** (STRENGTH * w), 2 ** (-STRENGTH * w)) @ _rotations(-a)
    matrix = stretched @ _rotations(changes.get("rotation", zero)[:, 0]) @ _scalings(scale, scale)
    return matrix, changes.get("translation", zero) * SHARE * np.array([width, height])


def _mirrored(x, flipped, dim):
    return torch.where(flipped.bool().view(-1, 1, 1, 1), x.flip(dim), x)


def _shifted(x, shift):
    """x [B,C,H,W] moved by shift [B,2] int64 pixels, right and down; the border is repeated."""
    for dim, pixels in ((3, shift[:, 0]), (2, shift[:, 1])):
        size = x.shape[dim]
        source = (torch.arange(size, device=x.device) - pixels[:, None]).clamp(0, size - 1)
        shape = [len(x), 1, 1, 1]
        shape[dim] = size
        x = x.gather(dim, source.view(shape).expand_as(x))
    return x


def changed(x, changes, sent=lambda tensor: tensor):
    """Images with those changes: flips, then those of `_moves`, then the shift. An image without a change stays as it is, bit for bit.

    x         [B,C,H,W] uint8
    changes   of `drawn`
    sent      function that puts a small tensor where the images are
    Returns   [B,C,H,W] uint8
    """
    height, width = x.shape[2:]
    for kind, dim in (("x_flip", -1), ("y_flip", -2)):
        if kind in changes:
            x = _mirrored(x, sent(torch.from_numpy(changes[kind])), dim)
    moving = [changes[kind] for kind in ("scaling", "rotation", "anisotropy", "translation") if kind in changes]
    if moving:
        matrix, offset = _moves(changes, height, width)
        half = np.maximum([(width - 1) / 2, (height - 1) / 2], 0.5)  # to the outermost pixels
        back = np.linalg.inv(matrix)
        theta = np.concatenate([back * half / half[:, None], -(back @ offset[:, :, None]) / half[:, None]], axis=2)
        grid = F.affine_grid(sent(torch.from_numpy(theta).float()), x.shape, align_corners=True)
        moved = F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=True)
        moves = sent(torch.from_numpy(np.concatenate(moving, axis=1).any(axis=1)))
        x = torch.where(moves.view(-1, 1, 1, 1), moved.round().clamp(0, 255).to(torch.uint8), x)
    if "shift" in changes:
        x = _shifted(x, sent(torch.from_numpy(changes["shift"].astype(np.int64))))
    return x

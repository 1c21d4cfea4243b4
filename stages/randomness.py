"""Every random draw of the project, keyed by what it is for.

A draw is keyed by (purpose, seed, ...) and never by arm, round or order of execution. So two arms with one seed see the
same noise, renaming an arm changes nothing, Q rounds of E epochs draw what one round of Q*E epochs draws, and a stage that
was killed resumes as if nothing had happened.
"""

import numpy as np

# The numbers are part of every result: append, never renumber.
PURPOSES = {
    "split": 1,  # training against held-out images:   (seed)
    "shard": 2,  # dealing images to shards:            (seed)
    "init": 3,  # weights of round 0:                   (seed)
    "order": 4,  # order of an epoch:                   (seed, shard, epoch counted over all rounds)
    "noise": 5,  # timesteps and noise of a step:       (seed, shard, step counted over all rounds)
    "flip": 6,  # horizontal flips of a step:           (seed, shard, step)
    "dropout": 7,  # dropout of a step:                 (seed, shard, step)
    "augment": 8,  # operations of a step's augmentation: (seed, shard, step)
    "ties": 9,  # equal skip counts, random selection:  (seed, shard, round)
    "sample": 10,  # starting noise of an image:        (seed, image index)
    "reference": 11,  # parts that match held-out images: (seed)
    "class": 12,  # class of a generated image:         (seed, image index)
    "added_noise": 13,  # noise on training images:     (seed, shard, step)
    "poisson": 14,  # who is in a DP-SGD batch:         (seed, shard, step)
    "dp_noise": 15,  # noise of a DP-SGD gradient:      (seed, shard, step)
    "mask": 16,  # Ambient's masks of a training image: (seed, image)
    "sigma": 17,  # Ambient's noise levels of a step:   (seed, shard, step)
    "sample_mask": 18,  # Ambient's mask of an image:   (seed, image index)
    "loss_noise": 19,  # noise of Fig. 3:               (seed, timestep, draw)
    "other_images": 20,  # the other images of Fig. 3:  (seed)
    "skip_ties": 21,  # equal skip counts in Fig. 8:    (seed)
    "move_pairs": 22,  # who is compared with whom:     (seed)
    "quality": 23,  # subsets of KID, splits of the Inception score: (seed)
    "quality_heldout": 24,  # as many held-out images as training images, halves of them: (which, 0 or 1)
    "membership": 30,  # pairs of images, redrawn images of an attack: (which, 0 or 1)
    "copying": 31,  # halves of held-out images, copycat, cells: (which, 0 to 2)
    "halves": 32,  # halves of the held-out images: (0)
    "prompt_words": 41,  # words put into a prompt:     (seed, image index)
    "embedding_noise": 42,  # noise on the embeddings of a prompt: (seed, image index)
    "detect": 43,  # prompts that are looked at:        (seed)
    "posterior": 50,  # samples of the VAE's posterior in a step: (seed, shard, step)
    "caption": 51,  # which caption of an image, and whether any: (seed, shard, step)
    "caption_noise": 52,  # words put into the captions of a step: (seed, shard, step)
    "text_noise": 53,  # noise on the embeddings of a step: (seed, shard, step)
    "second_noise": 55,  # timesteps and noise of the authors' second pass: (seed, shard, step)
    "prompts": 54,  # the captions that images are generated for: (seed)
    "told_augmentation": 56,  # augmentation of a step that the network is told of: (seed, shard, step)
    "fixed_noise": 57,  # the one noise of an image in ambient_high: (seed, image)
    "timestep_focus": 58,  # timesteps of a step that are not uniform: (seed, shard, step)
    "method": 60,  # any training method's own draws of a step: (seed, shard, step)
}


def seed_of(purpose, *key):
    """One 64-bit seed for a draw.

    purpose   a key of PURPOSES
    key       non-negative integers, always as many as the table above names (numpy's SeedSequence reads a missing last
              number as 0)
    Returns   int, 0 <= seed < 2**64
    """
    words = np.random.SeedSequence([PURPOSES[purpose], *key]).generate_state(2, np.uint32)
    return int(words[0]) | int(words[1]) << 32


def numpy_generator(purpose, *key):
    """A numpy Generator of its own for a draw; see `seed_of`."""
    return np.random.default_rng(seed_of(purpose, *key))


def torch_generator(device, purpose, *key):
    """A torch Generator on `device` for a draw; see `seed_of`. CPU and GPU generators draw different numbers.

    The CPU's reads only the low 32 bits of the seed: of 390,000 steps some 18 pairs share a draw, which does no harm, but use
    numpy where every single draw must be another.
    """
    import torch

    return torch.Generator(device).manual_seed(seed_of(purpose, *key))

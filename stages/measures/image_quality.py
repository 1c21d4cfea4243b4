"""How close a set of generated images is to the training images, from features of the Inception network.

Legend: M sample images, N training images, D features. Everything here is of one protocol of inception.py: features of two
protocols never meet.

FID is the Frechet distance of frechet.py. The others are torch-fidelity's own functions, on features in memory:

KID               unbiased MMD^2 with the kernel (x.y / D + 1)^3, mean over 100 pairs of subsets (Binkowski et al. 2018).
                  A subset has 1,000 images, or all of the smaller set where that has fewer.
Inception score   exp of the mean KL from an image's classes to those of its split, mean over splits (Salimans et al. 2016).
                  10 splits, fewer where a split would have less than two images.
precision, recall share of the sample inside the manifold of the training images, and of the training images inside that of
                  the sample; a manifold is the union of balls that reach to the third nearest neighbour in the same set
                  (Kynkaanniemi et al. 2019, there with VGG features; here with those of Inception, as KID). Where a set has
                  three images or fewer, the neighbour is the last it has.
"""

import torch
from torch_fidelity import metric_isc, metric_kid, metric_prc

from stages.measures import frechet

FIRST = 50_000  # images of the second FID: most published values are of so many
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SPLITS = 10
NEIGHBOUR = 3


def measures(sample, sample_logits, train, train_moments, rng_seed, device="cpu"):
    """All measures of one sample under one protocol.

    sample         [M, D] float32 features of generated images, M >= 2
    sample_logits  [M, classes] float32
    train          [N, D] float32 features of the training images, N >= 2
    train_moments  frechet.feature_moments(train), which is the same for every sample
    rng_seed       0 <= int < 2^32, of KID's subsets and the splits of the Inception score
    device         torch device of the distances
    Returns        dict: fid; fid_50k, of the first 50,000 images, None where there are no more than that; kid; is;
                   precision; recall
    Raises         ValueError: fewer than two images on a side
    """
    fewest = min(len(sample), len(train))
    if fewest < 2:
        raise ValueError(f"there are {len(sample)} generated and {len(train)} training images, expected 2 at least")
    kid = metric_kid.kid_features_to_metric(
        torch.from_numpy(sample),
        torch.from_numpy(train),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SUBSET_SIZE, fewest),
        rng_seed=rng_seed,
        verbose=False,
    )
    splits = min(SPLITS, len(sample) // 2)
    inception_score = metric_isc.isc_features_to_metric(torch.from_numpy(sample_logits), splits, True, rng_seed)
    # The first argument is the generated set: torch-fidelity's precision and recall were each other's until 2026.
    manifolds = metric_prc.prc_features_to_metric(
        torch.from_numpy(sample).to(device),
        torch.from_numpy(train).to(device),
        prc_neighborhood=min(NEIGHBOUR, fewest - 1),
        save_cpu_ram=True,
        verbose=False,
    )
    return {
        "fid": fid(sample, train_moments),
        "fid_50k": fid(sample[:FIRST], train_moments) if len(sample) > FIRST else None,
        "kid": kid[metric_kid.KEY_METRIC_KID_MEAN],
        "is": inception_score[metric_isc.KEY_METRIC_ISC_MEAN],
        "precision": manifolds[metric_prc.KEY_METRIC_PRECISION],
        "recall": manifolds[metric_prc.KEY_METRIC_RECALL],
    }


def fid(sample, train_moments):
    """Frechet distance of the features of a sample [M, D] to those of the training images, given by their moments."""
    return frechet.frechet_distance(*frechet.feature_moments(sample), *train_moments)

"""AGC: the memory bank of losses and the rule that skips a sample (Eq. 3, 4 and 8 of the paper).

B batch, T timesteps. `bank` is the l of the paper, `lam` its lambda, `upper` its R.
"""

import torch


def updated(bank, t, loss, eta):
    """The bank after a batch (Eq. 3): l_t <- eta * l_t + (1 - eta) * L, once for every sample, in batch order.

    A batch of 128 over 1,000 timesteps nearly always holds some timestep twice, so the order matters. For a timestep that
    occurs m times with losses L_1..L_m the loop has the closed form
        l_t <- eta^m l_t + (1 - eta) * sum_i eta^(m-i) L_i
    which is computed here for every sample of the batch, over the [B,B] table of who shares whose timestep. Samples of one
    timestep get the same number, bit for bit, so it does not matter which of them is written. All shapes are known beforehand:
    a GPU does not wait for the host.

    bank     [T] float: running mean loss per timestep, 0 = not seen yet
    t        [B] int64, 0 <= t < T
    loss     [B] float: loss of the ORIGINAL images, skipped samples included
    eta      decay in [0, 1)
    Returns  [T] float, a new tensor
    """
    same = t[:, None] == t
    later = same.triu(1).sum(1)  # samples of the same timestep that are still to come
    share = (1 - eta) * eta ** later.to(bank.dtype) * loss.to(bank.dtype)
    added = torch.where(same, share, 0).sum(1)
    return bank.scatter(0, t, bank[t] * eta ** same.sum(1).to(bank.dtype) + added)


def skip_mask(loss, bank, t, lam):
    """Samples whose loss is abnormally low for their timestep (Eq. 8, first case): L < lambda * l_t.

    The ratio r = L / l_t of Eq. 4 is compared with lambda. The bank is the one BEFORE this batch entered it, so no sample is judged
    against its own loss. Written without the division of Eq. 4: an unseen timestep (l_t = 0) never skips, and equality keeps the sample.

    loss     [B] float
    bank     [T] float
    t        [B] int64
    lam      threshold, >= 0; 0 never skips
    Returns  [B] bool, True = leave out of the update
    """
    return loss < lam * bank[t]


def augment_mask(loss, bank, t, lam, upper):
    """Samples just above the threshold (Eq. 8, second case): lambda * l_t < L < R * lambda * l_t, strict on both sides.

    upper    R >= 1; infinity augments every sample that is neither skipped nor on the threshold nor of an unseen timestep
    Returns  [B] bool, disjoint from `skip_mask`
    """
    threshold = lam * bank[t]
    return (threshold > 0) & (loss > threshold) & (loss < upper * threshold)


def batch_loss(loss, skipped, summed=None):
    """Mean loss of the samples that were not skipped, or what some of them contribute to it; 0 where all were skipped.

    `where`, not a product with the mask: a skipped sample's loss must not reach the sum even if it is not finite.

    loss     [B] float
    skipped  [B] bool
    summed   [B] bool, samples that were not skipped: only these are summed, over the same number; None: all of them
    Returns  scalar: sum / max(1, number not skipped)
    """
    summed = ~skipped if summed is None else summed
    return torch.where(summed, loss, torch.zeros_like(loss)).sum() / (~skipped).sum().clamp(min=1)

"""AGC: the bank against a plain loop, the skip and augmentation rules on numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from stages.methods.agc import memory_bank


def loop(bank, t, loss, eta):
    """Eq. 3 sample after sample, in Python floats."""
    bank = bank.tolist()
    for timestep, value in zip(t.tolist(), loss.tolist()):
        bank[timestep] = eta * bank[timestep] + (1 - eta) * value
    return torch.tensor(bank, dtype=torch.float64)


def check_bank(updated, dtype):
    """Equal to the loop for batches of many sizes over few timesteps, so that most of them repeat."""
    random = torch.Generator().manual_seed(0)
    for case in range(200):
        num_timesteps = int(torch.randint(1, 40, (), generator=random))
        size = int(torch.randint(1, 130, (), generator=random))
        eta = [0.0, 0.5, 0.8, 0.99][case % 4]
        bank = torch.rand(num_timesteps, generator=random, dtype=dtype)
        bank[torch.rand(num_timesteps, generator=random) < 0.3] = 0  # not seen yet
        t = torch.randint(num_timesteps, (size,), generator=random)
        loss = 3 * torch.rand(size, generator=random, dtype=dtype)
        before = bank.clone()
        after = updated(bank, t, loss, eta)
        assert torch.equal(bank, before), "the bank was changed in place"
        assert after.dtype == dtype
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}[dtype]
        assert torch.allclose(after.double(), loop(bank, t, loss, eta), rtol=0, atol=tolerance), f"case {case}"
        unseen = torch.ones(num_timesteps, dtype=torch.bool).index_fill_(0, t, False)
        assert torch.equal(after[unseen], bank[unseen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bank_equals_the_loop_over_the_batch(dtype):
    check_bank(memory_bank.updated, dtype)


def one_update_per_timestep(bank, t, loss, eta):
    after = bank.clone()
    after[t] = eta * bank[t] + (1 - eta) * loss  # the last of the repeated timesteps wins
    return after


def mean_per_timestep(bank, t, loss, eta):
    after = bank.clone()
    for timestep in t.unique():
        after[timestep] = eta * bank[timestep] + (1 - eta) * loss[t == timestep].mean()
    return after


def reversed_order(bank, t, loss, eta):
    return memory_bank.updated(bank, t.flip(0), loss.flip(0), eta)


@pytest.mark.parametrize("wrong", [one_update_per_timestep, mean_per_timestep, reversed_order])
def test_the_check_tells_wrong_banks_from_the_right_one(wrong):
    with pytest.raises(AssertionError, match="case"):
        check_bank(wrong, torch.float64)


def test_bank_by_hand():
    bank = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    after = memory_bank.updated(bank, torch.tensor([1, 1, 0]), torch.tensor([3.0, 5.0, 7.0], dtype=torch.float64), 0.8)
    # l_1: 0.8 * 2 + 0.2 * 3 = 2.2, then 0.8 * 2.2 + 0.2 * 5 = 2.76; l_0: 0.8 * 1 + 0.2 * 7 = 2.2; l_2 was not drawn.
    assert after.tolist() == pytest.approx([2.2, 2.76, 5.0], abs=1e-15)


def test_skip_rule_by_hand():
    bank = torch.tensor([2.0, 0.0, 4.0])
    t = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    loss = torch.tensor([0.99, 1.0, 1.01, 0.0, 9.0, 1.99, 2.5])
    # lambda 0.5: thresholds 1, 0, 2. Equality keeps, and a timestep that was never seen never skips.
    assert memory_bank.skip_mask(loss, bank, t, 0.5).tolist() == [True, False, False, False, False, True, False]
    assert not memory_bank.skip_mask(loss, bank, t, 0).any()


def test_augment_rule_by_hand():
    bank = torch.tensor([2.0, 0.0])
    t = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    loss = torch.tensor([0.5, 1.0, 1.25, 1.5, 2.0, 0.0, 3.0])
    # lambda 0.5, R 1.5: the band is 1 < L < 1.5, open at both ends.
    assert memory_bank.augment_mask(loss, bank, t, 0.5, 1.5).nonzero().flatten().tolist() == [2]
    assert memory_bank.augment_mask(loss, bank, t, 0.5, math.inf).nonzero().flatten().tolist() == [2, 3, 4]
    assert not memory_bank.augment_mask(loss, bank, t, 0.5, 1.0).any()
    assert not memory_bank.augment_mask(loss, bank, t, 0.0, math.inf).any()


def test_masks_part_the_batch_by_the_ratio():
    random = torch.Generator().manual_seed(1)
    bank = torch.rand(20, generator=random) + 0.1
    t = torch.randint(20, (4000,), generator=random)
    loss = torch.rand(4000, generator=random)
    skipped = memory_bank.skip_mask(loss, bank, t, 0.5)
    augmented = memory_bank.augment_mask(loss, bank, t, 0.5, 1.7)
    ratio = (loss.double() / bank[t].double()).numpy()
    cases = np.digitize(ratio, [0.5, 0.5 * 1.7])  # 0 below lambda, 1 in the band, 2 above
    assert np.bincount(cases).min() > 200
    assert np.array_equal(skipped.numpy(), cases == 0)
    assert np.array_equal(augmented.numpy(), cases == 1)
    assert not (skipped & augmented).any()


def check_mean_of_the_kept(batch_loss):
    loss = torch.tensor([1.0, 2.0, 6.0, 100.0, 9.0], requires_grad=True)
    minimised = batch_loss(loss, torch.tensor([False, False, False, True, True]))
    assert minimised.item() == 3.0  # (1 + 2 + 6) / 3; dividing by the batch size would give 1.8
    minimised.backward()
    assert torch.allclose(loss.grad, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]) / 3)


def test_loss_is_the_mean_of_the_kept():
    check_mean_of_the_kept(memory_bank.batch_loss)


def test_division_by_the_batch_size_would_be_noticed():
    with pytest.raises(AssertionError):
        check_mean_of_the_kept(lambda loss, skipped: torch.where(skipped, 0, loss).mean())


def test_contributions_of_disjoint_samples_add_up_to_the_mean_of_the_kept():
    loss, skipped = torch.tensor([1.0, 2.0, 6.0, 100.0]), torch.tensor([False, False, False, True])
    first, second = torch.tensor([True, False, True, False]), torch.tensor([False, True, False, False])
    assert memory_bank.batch_loss(loss, skipped, first).item() == pytest.approx(7 / 3)
    assert memory_bank.batch_loss(loss, skipped, second).item() == pytest.approx(2 / 3)


def test_nothing_kept_is_a_loss_of_zero_with_zero_gradient():
    loss = torch.tensor([1.0, 2.0], requires_grad=True)
    minimised = memory_bank.batch_loss(loss, torch.tensor([True, True]))
    minimised.backward()
    assert minimised.item() == 0.0
    assert loss.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_skipped_sample_that_is_not_finite_stays_out_of_the_mean(value):
    loss = torch.tensor([value, 4.0, 2.0], requires_grad=True)
    minimised = memory_bank.batch_loss(loss, torch.tensor([True, False, False]))
    minimised.backward()
    assert minimised.item() == 3.0
    assert loss.grad.tolist() == [0.0, 0.5, 0.5]
    assert not math.isfinite(memory_bank.batch_loss(loss.detach(), torch.tensor([False, False, True])))

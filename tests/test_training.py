"""The inner loop: against a plain training loop, against counts and losses worked out one image at a time, and against itself
where two ways must give the same bits.
"""

import copy
import math

import numpy as np
import pytest
import torch

from stages import methods, randomness
from stages.diffusion import ddpm, unet, weights
from stages.iet import averaging, redistribution, shard_state
from stages.methods import base, loop
from stages.methods.agc import augmentation, memory_bank
from stages.pixels import initial_weights

T = 20
BATCH = 8
NUM_IMAGES = 19  # 2 batches an epoch, 3 images left over
MODEL = {"block_channels": [8, 8], "attention_levels": [], "layers_per_block": 1, "dropout": 0.2, "norm_groups": 4}
PLAIN = {
    "batch_size": BATCH, "learning_rate": 3e-3, "warmup_steps": 5, "grad_clip_norm": 1.8, "ema_decay": 0.9, "flip": True,
    "precision": "fp32", "method": {"name": "ddpm"},
}  # fmt: skip
TAA = {"R": 1.25, "A": 5.0, "magnitude": 20, "num_ops": 2, "max_level": 30}


def with_agc(taa=None, lam=0.5):
    method = {"name": "agc", "lambda": lam, "eta": 0.8}
    return PLAIN | {"method": method | {"taa": taa} if taa else method}


AGC = with_agc()
EVERY = with_agc(TAA)
SEED, SHARD = 5, 3


@pytest.fixture(scope="module")
def alpha_bar():
    return ddpm.alpha_bars(T, 0.005, 0.3).float()


@pytest.fixture(scope="module")
def images():
    """Smooth random images without symmetry, as bytes."""
    small = torch.rand(NUM_IMAGES, 1, 3, 3, generator=torch.Generator().manual_seed(8))
    return (torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear") * 255).to(torch.uint8)


def fresh(**model):
    """Network and state before round 1."""
    network = unet.build(MODEL | model, (1, 8, 8))
    weights.load(network, initial_weights.initial_weights(network, SEED), "the initialisation")
    network.train()
    return network, shard_state.fresh_state(list(network.parameters()), {"bank": torch.zeros(T)})


def judging(**model):
    """As `fresh`, but with an answer that depends on the images, and a bank about whose thresholds the first losses lie."""
    network, _ = fresh(**model)
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "conv2" in name or "conv_out" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=random))
    state = shard_state.fresh_state(list(network.parameters()), {"bank": torch.zeros(T)})
    state.carried["bank"] = 2 * (0.8 + 0.4 * torch.rand(T, generator=random))
    return network, state


def shard_of(images):
    return base.Images(images, torch.arange(len(images)))


def training_of(network, state, record, images, settings, alpha_bar, first_step=0):
    method = methods.method(settings["method"])
    return loop.Training(network, state, record, shard_of(images), method, settings, alpha_bar, SEED, SHARD, first_step)


def step(network, state, record, images, settings, alpha_bar, epoch=0):
    return loop.train_step(training_of(network, state, record, images, settings, alpha_bar), epoch)


def run(network, state, images, settings, alpha_bar, num_epochs, first_step=None, after_step=lambda *_: None):
    record = loop.Record.empty(len(images), num_epochs, "cpu")
    first_step = state.step if first_step is None else first_step
    loop.train_round(training_of(network, state, record, images, settings, alpha_bar, first_step), after_step)
    return record


def everything(network, state):
    """All tensors that a shard has, for comparison bit for bit."""
    return [
        *network.parameters(),
        *state.ema,
        *state.exp_avg,
        *state.exp_avg_sq,
        state.carried["bank"],
        torch.tensor(state.step),
    ]


def same_bits(one, other):
    return all(torch.equal(a, b) for a, b in zip(everything(*one), everything(*other), strict=True))


def key_of(purpose, *key):
    """The project's seeds, written anew."""
    numbers = {"order": 4, "noise": 5, "flip": 6, "dropout": 7}
    low, high = np.random.SeedSequence([numbers[purpose], SEED, SHARD, *key]).generate_state(2, np.uint32)
    return int(low) + (int(high) << 32)


def drawn(images, num_step):
    """Places, images, timesteps and noise of a step, from the keys alone."""
    epoch, batch = num_step // (len(images) // BATCH), num_step % (len(images) // BATCH)
    order = np.random.default_rng(key_of("order", epoch)).permutation(len(images))
    places = order[batch * BATCH : (batch + 1) * BATCH]
    x = images[places].clone()
    flips = torch.rand(BATCH, generator=torch.Generator().manual_seed(key_of("flip", num_step))) < 0.5
    for j in range(BATCH):
        if flips[j]:
            x[j] = x[j, :, :, range(7, -1, -1)]
    noise = torch.Generator().manual_seed(key_of("noise", num_step))
    t = torch.randint(T, (BATCH,), generator=noise)
    eps = torch.randn(BATCH, 1, 8, 8, generator=noise)
    return places, x, t, eps


# Learning rate and order.


def test_learning_rate_by_hand():
    rates = [loop.learning_rate(0.8, s, 4) for s in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8], abs=1e-15)
    assert loop.learning_rate(0.8, 0, 0) == 0.8


@pytest.mark.parametrize(("num_images", "batch_size"), [(12, 4), (11, 4), (5, 5), (7, 4), (64, 1)])
def test_an_epoch_visits_each_image_at_most_once_and_drops_the_rest(num_images, batch_size):
    per_epoch = num_images // batch_size
    orders = []
    for epoch in range(3):
        batches = [
            base.Method({}).batch(num_images, batch_size, SEED, SHARD, epoch * per_epoch + b) for b in range(per_epoch)
        ]
        assert all(len(batch) == batch_size and batch.dtype == np.int64 for batch in batches)
        visited = np.concatenate(batches)
        assert len(set(visited)) == len(visited) == per_epoch * batch_size
        assert visited.min() >= 0 and visited.max() < num_images
        orders.append(visited.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_images_left_over_come_again():
    visits = np.zeros(11)
    for s in range(200):
        visits[base.Method({}).batch(11, 4, SEED, SHARD, s)] += 1
    assert visits.sum() == 800 and visits.min() > 0.8 * 800 / 11


# One model, no skipping: plain training.


def plain_training(images, alpha_bar, num_steps, model):
    """What anyone would write with torch's own optimiser, schedule and clipping."""
    network, _ = fresh(**model)
    ema = [p.detach().clone() for p in network.parameters()]
    optimiser = torch.optim.Adam(
        network.parameters(), lr=PLAIN["learning_rate"], betas=(0.9, 0.999), eps=1e-8, foreach=False
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / PLAIN["warmup_steps"]))
    norms = []
    for s in range(num_steps):
        _, x, t, eps = drawn(images, s)
        a = alpha_bar[t][:, None, None, None]
        torch.manual_seed(key_of("dropout", s))
        answer = network(a.sqrt() * (x / 127.5 - 1) + (1 - a).sqrt() * eps, t).sample
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(answer, eps).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), PLAIN["grad_clip_norm"])))
        optimiser.step()
        schedule.step()
        for average, p in zip(ema, network.parameters()):
            average.mul_(PLAIN["ema_decay"]).add_(p.detach(), alpha=1 - PLAIN["ema_decay"])
    return network, ema, norms


def test_without_skipping_it_is_a_plain_training_loop(images, alpha_bar):
    network, state = fresh()
    run(network, state, images, PLAIN, alpha_bar, num_epochs=6)
    expected, ema, norms = plain_training(images, alpha_bar, 12, {})
    assert min(norms) < PLAIN["grad_clip_norm"] < max(norms)  # clipping was put to the test
    start, _ = fresh()
    changed = compared = 0
    for (name, p), q, r in zip(network.named_parameters(), expected.parameters(), start.parameters()):
        if name.endswith("to_k.bias"):  # moves no attention: its gradient is rounding noise, which Adam makes large
            continue
        compared += 1
        changed += not torch.allclose(q, r, atol=1e-3)
        assert torch.allclose(p, q, rtol=0, atol=2e-5), name
    assert compared > 50 and changed > 0.8 * compared
    for (name, _), average, e in zip(network.named_parameters(), state.ema, ema):
        assert name.endswith("to_k.bias") or torch.allclose(average, e, rtol=0, atol=2e-5), name


def next_round(network, state):
    """Everything through arrays and the average of K = 1, as the train and aggregate stages do between two rounds."""
    handed_over = shard_state.trained_as_arrays(network, state)
    raw, ema = (averaging.average([handed_over[name]]) for name in ("raw", "ema"))
    arrays = {name: value.copy() for name, value in handed_over["state"].items()}
    after = unet.build(MODEL, (1, 8, 8))
    weights.load(after, raw, "the round before")
    carried = {"bank": torch.zeros(T)}
    return after, shard_state.from_arrays(arrays, ema, dict(after.named_parameters()), carried, "the round before")


@pytest.mark.parametrize("settings", [PLAIN, EVERY], ids=["plain", "agc and taa"])
def test_one_shard_in_rounds_is_one_long_run(settings, images, alpha_bar):
    whole = judging() if settings is EVERY else fresh()
    record = run(*whole, images, settings, alpha_bar, num_epochs=6)
    parts, visits, skips = judging() if settings is EVERY else fresh(), 0, 0
    for _ in range(3):
        of_round = run(*parts, images, settings, alpha_bar, num_epochs=2)
        visits, skips = visits + of_round.visits, skips + of_round.skips
        parts = next_round(*parts)
    assert parts[1].step == 12
    assert same_bits(whole, parts)
    assert torch.equal(record.visits, visits) and torch.equal(record.skips, skips)
    assert bool(skips.any()) == (settings is EVERY)


def test_losing_any_part_of_the_state_between_rounds_would_be_noticed(images, alpha_bar):
    whole = judging()
    run(*whole, images, EVERY, alpha_bar, num_epochs=4)
    for lost in ("exp_avg", "exp_avg_sq", "ema", "bank", "step"):
        network, state = judging()
        run(network, state, images, EVERY, alpha_bar, num_epochs=2)
        network, state = next_round(network, state)
        if lost == "bank":
            state.carried["bank"] = torch.zeros(T)
        else:
            setattr(state, lost, getattr(fresh()[1], lost))
        run(network, state, images, EVERY, alpha_bar, num_epochs=2)
        assert not same_bits(whole, (network, state)), lost


def test_seed_and_shard_give_other_draws(images, alpha_bar):
    one, other = fresh(), fresh()
    losses = [
        loop.train_step(
            loop.Training(
                *pair,
                loop.Record.empty(NUM_IMAGES, 1, "cpu"),
                shard_of(images),
                base.Method({}),
                PLAIN,
                alpha_bar,
                seed,
                shard,
            ),
            epoch=0,
        )
        for pair, seed, shard in [(one, 0, 0), (other, 0, 1), (fresh(), 1, 0)]
    ]
    assert len({float(loss) for loss in losses}) == 3
    assert not same_bits(one, other)


def test_every_draw_of_a_step_with_agc_and_taa_is_keyed_by_seed_shard_and_step(images, alpha_bar, monkeypatch):
    keys, seed_of = [], randomness.seed_of

    def spied(purpose, *key):
        keys.append((purpose, key))
        return seed_of(purpose, *key)

    network, state = judging()
    monkeypatch.setattr(randomness, "seed_of", spied)
    state.step = 7  # batch 1 of epoch 3: the 4th, counted over all rounds
    loss = step(network, state, loop.Record.empty(NUM_IMAGES, 1, "cpu"), images, EVERY, alpha_bar)
    assert torch.isfinite(loss)
    by_step = ["flip", "noise", "dropout", "augment"]
    assert sorted(keys) == sorted([("order", (SEED, SHARD, 3)), *((purpose, (SEED, SHARD, 7)) for purpose in by_step)])


def test_result_does_not_depend_on_what_was_drawn_before(images, alpha_bar):
    one, other = judging(), judging()
    run(*one, images, EVERY, alpha_bar, num_epochs=1)
    torch.manual_seed(123)
    torch.rand(1000)
    np.random.seed(9)
    run(*other, images, EVERY, alpha_bar, num_epochs=1, after_step=lambda *_: torch.rand(3))
    assert same_bits(one, other)


# AGC and TAA, one image at a time.


def loss_alone(network, x, t, eps, alpha_bar, j):
    """Loss of sample j in a batch of its own, a tensor with its gradient."""
    own = slice(j, j + 1)
    answer = network(ddpm.noised(ddpm.normalise(x[own]), t[own], eps[own], alpha_bar), t[own]).sample
    return ((answer - eps[own]) ** 2).mean()


def losses_alone(*arguments):
    with torch.no_grad():
        return [float(loss_alone(*arguments, j)) for j in range(BATCH)]


def check_by_hand(images, alpha_bar, settings=EVERY, num_epochs=4):
    """Losses, masks, bank and record of a run, recomputed with one image in a batch and plain loops.

    Without dropout: one image alone would draw another mask than in its batch.
    """
    network, state = judging(dropout=0.0)
    record = loop.Record.empty(NUM_IMAGES, num_epochs, "cpu")
    method, taa = settings["method"], settings["method"].get("taa")
    counts = {name: np.zeros(NUM_IMAGES, int) for name in ("skips", "augmented", "visits")}
    per_epoch = {name: np.zeros(num_epochs) for name in ("loss", "skipped", "augmented", "visited")}
    by_tenth = {"skipped": np.zeros(10, int), "visited": np.zeros(10, int)}
    bank = [float(value) for value in state.carried["bank"]]
    for s in range(2 * num_epochs):
        places, x, t, eps = drawn(images, s)
        losses = losses_alone(network, x, t, eps, alpha_bar)
        threshold = [method["lambda"] * bank[timestep] for timestep in t.tolist()]  # before the bank sees this batch
        skipped = [loss < limit for loss, limit in zip(losses, threshold)]
        augmented = [bool(taa) and limit < loss < taa["R"] * limit for loss, limit in zip(losses, threshold)]
        for loss, timestep in zip(losses, t.tolist()):
            bank[timestep] = method["eta"] * bank[timestep] + (1 - method["eta"]) * loss

        step(network, state, record, images, settings, alpha_bar, epoch=s // 2)

        assert np.allclose(state.carried["bank"].numpy(), bank, rtol=1e-5, atol=0), f"bank after step {s}"
        for j, place in enumerate(places):
            counts["skips"][place] += skipped[j]
            counts["augmented"][place] += augmented[j]
            counts["visits"][place] += 1
            by_tenth["skipped"][int(t[j]) * 10 // T] += skipped[j]
            by_tenth["visited"][int(t[j]) * 10 // T] += 1
        for name, values in [
            ("loss", losses),
            ("skipped", skipped),
            ("augmented", augmented),
            ("visited", [1] * BATCH),
        ]:
            per_epoch[name][s // 2] += sum(values)

    num_visits = 2 * num_epochs * BATCH
    assert 3 < counts["skips"].sum() < num_visits - 3, "the check is blind"
    assert not taa or counts["augmented"].sum() > 3, "the check is blind"
    for name, expected in counts.items():
        assert np.array_equal(getattr(record, name).numpy(), expected), f"{name} of each image"
    assert np.allclose(record.epoch_loss.numpy(), per_epoch.pop("loss"), rtol=1e-5)
    for name, expected in per_epoch.items():
        assert np.array_equal(getattr(record, f"epoch_{name}").numpy(), expected), f"{name} in each epoch"
    for name, expected in by_tenth.items():
        assert np.array_equal(getattr(record, f"t_{name}").numpy(), expected), f"{name} by timestep"
    assert loop.forward_images(record) == num_visits + counts["augmented"].sum()
    return record, counts


def test_masks_bank_and_record_by_hand(images, alpha_bar):
    check_by_hand(images, alpha_bar)
    check_by_hand(images, alpha_bar, AGC)


def compare_after_update(monkeypatch):
    """A sample is judged against a bank that holds its own loss already."""
    skip_mask, updated = memory_bank.skip_mask, memory_bank.updated
    monkeypatch.setattr(
        memory_bank, "skip_mask", lambda loss, bank, t, lam: skip_mask(loss, updated(bank, t, loss, 0.8), t, lam)
    )


def bank_of_augmented(monkeypatch):
    """The bank is fed with the loss of the augmented image."""
    updated, batch_loss, waiting = memory_bank.updated, memory_bank.batch_loss, []

    def later(bank, t, loss, eta):
        waiting[:] = [(bank, bank.clone(), t, eta)]
        return bank

    def feeding(loss, skipped, summed):  # a second time with the losses of the augmented images among the others
        bank, before, t, eta = waiting[0]
        bank.copy_(updated(before, t, loss.detach(), eta))
        return batch_loss(loss, skipped, summed)

    monkeypatch.setattr(memory_bank, "updated", later)
    monkeypatch.setattr(memory_bank, "batch_loss", feeding)


def bank_of_kept(monkeypatch):
    """Skipped samples do not enter the bank."""
    updated, skip_mask = memory_bank.updated, memory_bank.skip_mask

    def of_kept(bank, t, loss, eta):
        kept = ~skip_mask(loss, bank, t, 0.5)
        return updated(bank, t[kept], loss[kept], eta)

    monkeypatch.setattr(memory_bank, "updated", of_kept)


def counts_by_place_in_batch(monkeypatch):
    """Counts are kept by the place in the batch, not by the image."""
    index_add_ = torch.Tensor.index_add_

    def by_place(self, dim, index, source):
        return index_add_(self, dim, torch.arange(len(index)) if len(self) == NUM_IMAGES else index, source)

    monkeypatch.setattr(torch.Tensor, "index_add_", by_place)


@pytest.mark.parametrize("wrong", [compare_after_update, bank_of_augmented, bank_of_kept, counts_by_place_in_batch])
def test_the_check_by_hand_tells_wrong_versions_from_the_right_one(wrong, images, alpha_bar, monkeypatch):
    check_by_hand(images, alpha_bar)
    wrong(monkeypatch)
    with pytest.raises(AssertionError, match="bank after step|of each image"):
        check_by_hand(images, alpha_bar)


def check_ids(as_arrays, images, alpha_bar):
    """Counts find their way from the record through the counts file to the ids that MSR moves."""
    shard = np.sort(np.random.default_rng(2).permutation(1000)[:NUM_IMAGES])
    record, counts = check_by_hand(images, alpha_bar)
    arrays = as_arrays(record, shard)
    by_id = {int(image): int(skips) for image, skips in zip(shard, counts["skips"])}
    assert {int(image): int(skips) for image, skips in zip(arrays["index"], arrays["skips"])} == by_id
    leaving = redistribution.most_skipped(arrays["index"], arrays["skips"], 3, np.random.default_rng(0))
    assert sorted(by_id[image] for image in leaving.tolist()) == sorted(by_id.values())[-3:]


def test_counts_are_kept_by_training_id(images, alpha_bar):
    check_ids(loop.as_arrays, images, alpha_bar)


def test_counts_by_place_in_the_shard_would_be_noticed(images, alpha_bar):
    with pytest.raises(AssertionError):
        check_ids(
            lambda record, index: loop.as_arrays(record, index) | {"index": np.arange(len(index))},
            images,
            alpha_bar,
        )


def test_arrays_hold_the_mean_loss_and_take_an_unfinished_epoch():
    record = loop.Record.empty(3, 2, "cpu")
    record.epoch_loss[0], record.epoch_visited[0] = 6.0, 4
    arrays = loop.as_arrays(record, np.array([4, 8, 9]))
    assert arrays["epoch_loss"].tolist() == [1.5, 0.0]
    assert record.epoch_loss.tolist() == [6.0, 0.0]
    assert arrays["index"].tolist() == [4, 8, 9] and arrays["skips"].dtype == np.int32


def strengths_given(patch):
    """The strengths of every augmentation from now on."""
    given, apply_ops = [], augmentation.apply_ops

    def listening(x, strength, *rest, **options):
        given.append(strength.clone())
        return apply_ops(x, strength, *rest, **options)

    patch.setattr(augmentation, "apply_ops", listening)
    return given


def check_loss_minimised(images, alpha_bar):
    """The number that is minimised and its gradient, with the losses taken anew one image at a time."""
    taa, strengths = TAA, []
    for num_step in range(6):
        network, state = judging(dropout=0.0)
        state.step = num_step
        twin = copy.deepcopy(network)
        _, x, t, eps = drawn(images, num_step)
        threshold = (0.5 * state.carried["bank"][t]).tolist()
        settings = EVERY | {"grad_clip_norm": 1e9}
        with pytest.MonkeyPatch.context() as patch:
            given = strengths_given(patch)
            minimised = step(network, state, loop.Record.empty(NUM_IMAGES, 1, "cpu"), images, settings, alpha_bar)

        losses = losses_alone(twin, x, t, eps, alpha_bar)
        ratio = np.array(losses) / threshold
        in_band = np.flatnonzero((ratio > 1) & (ratio < taa["R"]))
        expected = torch.from_numpy(taa["magnitude"] * np.exp(-taa["A"] * (ratio[in_band] - 1))).float()
        # The last bit of a strength may turn a pixel by one grey level: go on with those that were given.
        strength = given[0][: len(in_band)] if len(in_band) else expected
        assert torch.allclose(strength, expected, rtol=1e-4, atol=0)
        random = randomness.torch_generator("cpu", "augment", SEED, SHARD, num_step)
        x[in_band] = augmentation.rand_augment(x[in_band], strength, random)
        after = losses_alone(twin, x, t, eps, alpha_bar)
        kept = ratio >= 1
        assert float(minimised) == pytest.approx(sum(np.array(after)[kept]) / sum(kept), rel=1e-5), f"step {num_step}"
        mean = sum(loss_alone(twin, x, t, eps, alpha_bar, j) for j in np.flatnonzero(kept)) / int(sum(kept))
        for moment, gradient in zip(state.exp_avg, torch.autograd.grad(mean, list(twin.parameters()))):
            # Adam's, after one step from zero.
            assert torch.allclose(moment, 0.1 * gradient, rtol=1e-3, atol=1e-6)
        assert 0 < sum(kept) < BATCH, "the check is blind"
        strengths += [float(s) for s, j in zip(strength, in_band) if abs(after[j] - losses[j]) > 1e-3]
    assert len(strengths) > 5 and min(strengths) < 0.5 * max(strengths), "the check is blind"


def test_loss_minimised_by_hand(images, alpha_bar):
    check_loss_minimised(images, alpha_bar)


def test_division_by_the_batch_size_would_be_noticed(images, alpha_bar, monkeypatch):
    monkeypatch.setattr(memory_bank, "batch_loss", lambda loss, _, summed: torch.where(summed, loss, 0).mean())
    with pytest.raises(AssertionError):
        check_loss_minimised(images, alpha_bar)


def test_augmented_images_keep_their_timestep_and_noise(images, alpha_bar, monkeypatch):
    calls, sample_losses = [], ddpm.sample_losses

    def spied(network, x_0, t, eps, *rest):
        calls.append((x_0, t, eps))
        return sample_losses(network, x_0, t, eps, *rest)

    monkeypatch.setattr(ddpm, "sample_losses", spied)
    network, state = judging()
    record = loop.Record.empty(NUM_IMAGES, 1, "cpu")
    step(network, state, record, images, EVERY, alpha_bar)
    (x, t, eps), (x_aug, t_aug, eps_aug) = calls
    subset = torch.from_numpy(
        np.array([j for j, place in enumerate(drawn(images, 0)[0]) if record.augmented[int(place)]], int)
    )
    assert 0 < len(subset) < BATCH
    # Filled up with repeats to a multiple of SECOND_PASS; check_loss_minimised shows that they do not count.
    assert len(t_aug) % augmentation.SECOND_PASS == 0 and len(t_aug) - len(subset) < augmentation.SECOND_PASS
    filled = subset[torch.arange(len(t_aug)) % len(subset)]
    assert torch.equal(t_aug, t[filled]) and torch.equal(eps_aug, eps[filled])
    assert not torch.equal(x_aug, x[filled])


def test_bank_is_the_same_with_and_without_augmentation(images, alpha_bar):
    with_taa, without = judging(), judging()
    record = loop.Record.empty(NUM_IMAGES, 1, "cpu")
    step(*with_taa, record, images, EVERY, alpha_bar)
    step(*without, loop.Record.empty(NUM_IMAGES, 1, "cpu"), images, AGC, alpha_bar)
    assert record.augmented.sum() > 0
    assert torch.equal(with_taa[1].carried["bank"], without[1].carried["bank"])
    assert not torch.equal(with_taa[1].carried["bank"], judging()[1].carried["bank"])
    assert not same_bits(with_taa, without)


def test_threshold_of_zero_is_no_agc(images, alpha_bar):
    without, zero = judging(), judging()
    run(*without, images, PLAIN, alpha_bar, num_epochs=3)
    record = run(*zero, images, with_agc(TAA, lam=0.0), alpha_bar, num_epochs=3)
    assert not record.skips.any() and not record.augmented.any()
    zero[1].carried["bank"] = without[1].carried["bank"]  # kept all the same, but nobody asks it
    assert same_bits(without, zero)


def test_band_of_no_width_is_agc_only(images, alpha_bar):
    agc, closed, open_ = judging(), judging(), judging()
    record = run(*agc, images, AGC, alpha_bar, num_epochs=3)
    closed_record = run(*closed, images, with_agc(TAA | {"R": 1.0}), alpha_bar, num_epochs=3)
    run(*open_, images, EVERY, alpha_bar, num_epochs=3)
    assert record.skips.any() and not closed_record.augmented.any()
    assert same_bits(agc, closed)
    assert torch.equal(record.skips, closed_record.skips)
    assert not same_bits(agc, open_)


def test_images_are_mirrored_or_left_but_never_mixed(images, alpha_bar, monkeypatch):
    seen, normalise = [], ddpm.normalise
    monkeypatch.setattr(ddpm, "normalise", lambda x: seen.append(x.clone()) or normalise(x))
    for settings in (PLAIN, PLAIN | {"flip": False}):
        run(*fresh(), images, settings, alpha_bar, num_epochs=6)
    places = np.concatenate([drawn(images, s)[0] for s in range(12)])
    flipped, left = torch.cat(seen[:12]), torch.cat(seen[12:])
    assert torch.equal(left, images[places])
    mirrored = (flipped == images[places].flip(-1)).all(dim=(1, 2, 3))
    unchanged = (flipped == images[places]).all(dim=(1, 2, 3))
    assert torch.equal(mirrored, ~unchanged) and 25 < mirrored.sum() < 71


# A batch with nothing kept, restarts, and what is not finite.


def test_batch_with_nothing_kept_steps_with_zero_gradient(images, alpha_bar):
    network, state = judging()
    for _ in range(3):
        step(network, state, loop.Record.empty(NUM_IMAGES, 1, "cpu"), images, PLAIN, alpha_bar)
    state.carried["bank"] = torch.full((T,), 1e6)
    before = copy.deepcopy((list(network.parameters()), state))
    record = loop.Record.empty(NUM_IMAGES, 1, "cpu")
    loss = step(network, state, record, images, EVERY, alpha_bar)
    assert float(loss) == 0.0 and state.step == 4
    assert record.skips.sum() == record.epoch_skipped[0] == BATCH and not record.augmented.any()
    rate = PLAIN["learning_rate"] * 4 / 5  # the warm-up takes 5 steps
    for i, p in enumerate(network.parameters()):
        m, v = 0.9 * before[1].exp_avg[i], 0.999 * before[1].exp_avg_sq[i]  # what Adam makes of a zero gradient
        assert torch.allclose(state.exp_avg[i], m, rtol=1e-5, atol=0)
        assert torch.allclose(state.exp_avg_sq[i], v, rtol=1e-5, atol=0)
        moved = before[0][i] - rate * (m / (1 - 0.9**4)) / ((v / (1 - 0.999**4)).sqrt() + 1e-8)
        assert torch.allclose(p, moved, rtol=0, atol=1e-6)
        assert torch.allclose(state.ema[i], 0.9 * before[1].ema[i] + 0.1 * moved, rtol=0, atol=1e-6)
        assert p.grad is None
    assert not torch.equal(network.conv_out.weight, before[0][-2])
    assert (state.carried["bank"][drawn(images, 3)[2]] < 1e6).all()  # skipped losses enter it


def test_run_that_is_cut_off_goes_on_to_the_same_bits(images, alpha_bar):
    whole, copied = judging(), []
    run(*whole, images, EVERY, alpha_bar, num_epochs=2)  # round 1, so that round 2 does not begin at step 0
    record = loop.Record.empty(NUM_IMAGES, 3, "cpu")

    def copy_at_3(done, total, loss):
        assert total == 6 and float(loss) > 0
        if done == 3:  # in the middle of an epoch
            copied.append(copy.deepcopy((*whole, record)))

    loop.train_round(training_of(*whole, record, images, EVERY, alpha_bar, first_step=4), copy_at_3)
    network, state, cut_record = copied[0]
    assert state.step == 7 and int(cut_record.visits.sum()) == 3 * BATCH
    told = []
    cut = training_of(network, state, cut_record, images, EVERY, alpha_bar, first_step=4)
    loop.train_round(cut, lambda done, *_: told.append(done))
    assert told == [4, 5, 6]
    assert same_bits(whole, (network, state))
    assert all(torch.equal(value, getattr(cut_record, name)) for name, value in vars(record).items())
    assert record.epoch_visited.tolist() == [2 * BATCH] * 3


def test_round_that_is_done_does_nothing(images, alpha_bar):
    network, state = fresh()
    run(network, state, images, PLAIN, alpha_bar, num_epochs=1)
    before = copy.deepcopy((network, state))
    run(network, state, images, PLAIN, alpha_bar, num_epochs=1, first_step=0)
    assert same_bits(before, (network, state))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_round_and_names_the_step(value, images, alpha_bar):
    network, state = fresh()
    run(network, state, images, PLAIN, alpha_bar, num_epochs=2)
    told = []

    def break_it(done, total, loss):
        told.append(done)
        if done == 3:
            with torch.no_grad():
                network.conv_out.bias.fill_(value)

    with pytest.raises(FloatingPointError, match=r"the loss at step 7 is (nan|inf), expected a finite number"):
        run(network, state, images, EVERY, alpha_bar, num_epochs=3, after_step=break_it)
    assert told == [1, 2, 3]


@pytest.mark.parametrize("every", [2, 4, 50])
def test_looking_at_the_loss_seldom_changes_nothing_but_when_it_is_told(every, images, alpha_bar, monkeypatch):
    """As on an accelerator: the same bits, and the step with the first broken loss is named all the same."""
    one, other, told = fresh(), fresh(), []
    run(*one, images, EVERY, alpha_bar, num_epochs=3)
    monkeypatch.setattr(loop, "steps_between_looks", lambda _: every)
    run(*other, images, EVERY, alpha_bar, num_epochs=3, after_step=lambda done, *_: told.append(done))
    assert same_bits(one, other)
    assert told == {2: [2, 4, 6], 4: [4, 6], 50: [6]}[every]

    losses = iter([1.0, 2.0, math.inf, math.nan, 3.0, 4.0])

    def scripted(training, epoch):
        training.state.step += 1
        return torch.tensor(next(losses))

    monkeypatch.setattr(loop, "train_step", scripted)
    with pytest.raises(FloatingPointError, match="the loss at step 8 is inf, expected a finite number"):
        run(*other, images, EVERY, alpha_bar, num_epochs=3)


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations for which an accelerator makes the host wait: values or sizes that only it knows."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "repeat_interleave", "bincount")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if any(operation in name for operation in self.OPERATIONS):
            self.found.append(name)
        if "index.Tensor" in name and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found.append(f"{name} by a mask")
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("settings", [PLAIN, AGC], ids=["ddpm", "agc"])
def test_a_step_makes_no_accelerator_wait(settings, images, alpha_bar):
    network, state = judging()
    record = loop.Record.empty(len(images), 1, "cpu")
    with Waits() as waits:
        step(network, state, record, images, settings, alpha_bar)
    assert waits.found == []
    assert settings is PLAIN or 0 < int(record.epoch_skipped) < BATCH


def test_a_wait_would_be_noticed(images, alpha_bar):
    """The second pass of TAA asks how many images it has; so does a loop over the batch."""
    network, state = judging()
    record = loop.Record.empty(len(images), 1, "cpu")
    with Waits() as waits:
        step(network, state, record, images, EVERY, alpha_bar)
    assert any("nonzero" in name for name in waits.found)
    with Waits() as waits:
        loss = torch.rand(3)
        assert loss[loss > 2].sum() == 0
    assert len(waits.found) == 2


def test_shard_smaller_than_a_batch_is_refused(images, alpha_bar):
    with pytest.raises(
        ValueError, match=r"shard 3 has 3 images, fewer than .* train.batch_size = 8: .* \(params.yaml\)"
    ):
        run(*fresh(), images[:3], PLAIN, alpha_bar, num_epochs=1)


def test_training_lowers_the_loss(images, alpha_bar):
    settings = PLAIN | {"flip": False, "grad_clip_norm": 1.0, "learning_rate": 1e-2}
    record = run(*fresh(dropout=0.0), images, settings, alpha_bar, num_epochs=40)
    losses = loop.as_arrays(record, np.arange(NUM_IMAGES))["epoch_loss"]
    assert losses[:3].mean() == pytest.approx(1, abs=0.2)  # an answer of 0 leaves mean eps^2
    assert losses[-10:].mean() < 0.6 * losses[:3].mean()


def test_bf16_decides_as_fp32_does(images, alpha_bar):
    network, state = fresh(dropout=0.0)
    settings = with_agc(TAA, lam=0.8)
    run(network, state, images, settings, alpha_bar, num_epochs=20)
    bank = state.carried["bank"]
    assert (bank > 0).sum() > 0.8 * T
    random = torch.Generator().manual_seed(3)
    x_0 = ddpm.normalise(images[torch.randint(NUM_IMAGES, (1500,), generator=random)])
    t, eps = torch.randint(T, (1500,), generator=random), torch.randn(1500, 1, 8, 8, generator=random)
    with torch.no_grad():
        full, half = (ddpm.sample_losses(network, x_0, t, eps, alpha_bar, p) for p in ("fp32", "bf16"))
    skipped = [memory_bank.skip_mask(loss, bank, t, 0.8) for loss in (full, half)]
    assert not torch.equal(full, half)
    assert 0.1 < skipped[0].float().mean() < 0.9
    assert (skipped[0] == skipped[1]).float().mean() >= 0.98


def test_bf16_trains_with_weights_in_float32(images, alpha_bar):
    full, half = judging(), judging()
    run(*full, images, EVERY, alpha_bar, num_epochs=2)
    run(*half, images, EVERY | {"precision": "bf16"}, alpha_bar, num_epochs=2)
    assert all(value.dtype == torch.float32 for value in everything(*half)[:-1])
    assert not same_bits(full, half)
    assert torch.allclose(full[1].carried["bank"], half[1].carried["bank"], rtol=0.05, atol=0)


def test_weights_that_are_not_finite_after_the_last_step_are_not_handed_on(images, alpha_bar):
    with pytest.raises(FloatingPointError):
        run(*fresh(), images[:BATCH], PLAIN | {"learning_rate": 1e39, "warmup_steps": 0}, alpha_bar, num_epochs=1)

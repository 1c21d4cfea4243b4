"""Training one proxy model on one shard, whatever the method: the inner loop of IET.

B batch, C H W image, n images of the shard, T timesteps, E epochs of this round. `step` counts the optimiser steps of this
shard over all rounds, and everything that depends on time (learning rate, order of the images, noise) follows from it alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.optim.adam import adam

from stages import randomness
from stages.iet import shard_state
from stages.methods import base, compiling, timestep_focus, told_augmentation


def steps_between_looks(device):
    """The loss is looked at after every so many steps: looking makes an accelerator wait for the host."""
    return 1 if device.type == "cpu" else 50


@dataclass
class Record:
    """What happened in this round, counted on the device.

    skips, augmented, visits             [n] int32, per image of the shard in the order of its index list
    epoch_loss                           [E] float64, sum over the samples of the loss of the original image
    epoch_skipped, _augmented, _visited  [E] int64, samples
    t_skipped, t_visited                 [10] int64, samples by tenth of the timesteps
    """

    skips: torch.Tensor
    augmented: torch.Tensor
    visits: torch.Tensor
    epoch_loss: torch.Tensor
    epoch_skipped: torch.Tensor
    epoch_augmented: torch.Tensor
    epoch_visited: torch.Tensor
    t_skipped: torch.Tensor
    t_visited: torch.Tensor

    @classmethod
    def empty(cls, num_images, num_epochs, device):
        def zeros(size, dtype):
            return torch.zeros(size, dtype=dtype, device=device)

        return cls(
            *(zeros(num_images, torch.int32) for _ in range(3)),
            zeros(num_epochs, torch.float64),
            *(zeros(num_epochs, torch.int64) for _ in range(3)),
            *(zeros(10, torch.int64) for _ in range(2)),
        )


def learning_rate(base, step, warmup_steps):
    """Linear warm-up, then constant. The first step has base / warmup_steps: a step of rate 0 would be a wasted one."""
    return base * min(1.0, (step + 1) / warmup_steps) if warmup_steps else base


def num_epochs(num_images, settings):
    """E: the epochs of a round, the last one cut short where `steps` says how long it is."""
    return (
        settings["epochs"]
        if "epochs" in settings
        else -(-settings["steps"] // max(1, num_images // settings["batch_size"]))
    )


@dataclass
class Training:
    """One round of training on one shard, from wherever `state` stands in it.

    network, state, record   change in every step; the record says how many epochs the round has
    images                   base.Images of the shard
    method                   base.Method: what is special about an arm
    settings                 dict: batch_size, learning_rate, warmup_steps, grad_clip_norm, ema_decay, flip, precision; maybe
                             weight_decay, told_augmentation, timestep_focus, and steps, the length of the round where it is not that of its epochs
    alpha_bar                [T] float32 on the device
    seed, shard              that the draws are keyed by
    first_step               step at which the round began; state.step is beyond it where an interrupted stage goes on
    captured                 compiling.Captured, which then takes the gradients in the place of the method
    """

    network: torch.nn.Module
    state: shard_state.ShardState
    record: Record
    images: base.Images
    method: base.Method
    settings: dict
    alpha_bar: torch.Tensor
    seed: int
    shard: int
    first_step: int = 0
    captured: compiling.Captured | None = None


def train_step(training, epoch):
    """One optimiser step: the draws, the method's losses and gradients, Adam, the EMA, the record.

    training   Training, of which network, state and record change in place
    epoch      0 <= epoch < E: epoch of this round, for the record
    Returns    scalar tensor, the loss that was minimised
    """
    state, settings = training.state, training.settings
    positions, step = _drawn(training)
    losses = (training.captured or training.method).gradients(step)
    # A batch with nothing kept still takes its step, with zero gradient; one that only waits has no loss and takes none.
    if losses.minimised is not None:
        _update(list(training.network.parameters()), state, settings, step.x.device)
    training.network.zero_grad(set_to_none=True)
    state.step += 1
    _count(training.record, positions, step.t * 10 // len(step.alpha_bar), losses, epoch)
    return losses.original.mean() if losses.minimised is None else losses.minimised.detach()


def _drawn(training):
    """The batch of a step with its timesteps and noise.

    Returns   [B] int64 positions in the shard, on the device; base.Step
    """
    images, settings = training.images, training.settings
    device, key = images.pixels.device, (training.seed, training.shard, training.state.step)
    places = torch.from_numpy(training.method.batch(len(images.ids), settings["batch_size"], *key))
    positions = _sent(places, device)
    x = images.pixels[positions]
    flipped = torch.zeros(len(x), dtype=torch.bool, device=device)
    if settings["flip"]:
        flipped = _sent(torch.rand(len(x), generator=randomness.torch_generator("cpu", "flip", *key)) < 0.5, device)
        x = torch.where(flipped.view(-1, 1, 1, 1), x.flip(-1), x)
    told = None
    if augmentation := settings.get("told_augmentation"):
        generator = randomness.numpy_generator("told_augmentation", *key)
        changes = told_augmentation.drawn(len(x), augmentation, generator)
        x = told_augmentation.changed(x, changes, lambda tensor: _sent(tensor, device))
        told = _sent(told_augmentation.told_of(changes), device)
    noise = randomness.torch_generator(device, "noise", *key)
    t = torch.randint(len(training.alpha_bar), (len(x),), generator=noise, device=device)
    counts = None
    if focus := settings.get("timestep_focus"):
        t, counts = timestep_focus.applied(focus, t, len(training.alpha_bar), key)
    eps = torch.randn(images.objective.noise_shape(x), generator=noise, device=device)
    torch.manual_seed(randomness.seed_of("dropout", *key))  # dropout draws from the global generator
    ids = images.ids[places]
    return positions, base.Step(
        network=training.network,
        x=x,
        flipped=flipped,
        ids=ids,
        labels=None if images.labels is None else images.labels[positions],
        t=t,
        eps=eps,
        alpha_bar=training.alpha_bar,
        carried=training.state.carried,
        settings=settings,
        key=key,
        objective=images.objective,
        prompts=images.objective.prompts(ids, settings, key),
        shard=images,
        counts=counts,
        told=told,
        drawn={name: _sent(value, device) for name, value in training.method.drawn(len(x), key).items()},
    )


def _count(record, positions, tenth, losses, epoch):
    """Enters a batch into the record: by position in the shard, which the index list turns into ids of the training set.

    positions   [B] int64 on the device
    tenth       [B] int64, 0 to 9: that of the timesteps
    """
    record.visits.index_add_(0, positions, torch.ones_like(positions, dtype=torch.int32))
    record.t_visited.index_add_(0, tenth, torch.ones_like(tenth))
    record.epoch_visited[epoch] += len(positions)
    record.epoch_loss[epoch] += losses.original.double().sum()
    if losses.skipped is not None:
        record.skips.index_add_(0, positions, losses.skipped.int())
        record.t_skipped.index_add_(0, tenth, losses.skipped.long())
        record.epoch_skipped[epoch] += losses.skipped.sum()
    if losses.augmented is not None:
        record.augmented.index_add_(0, positions, losses.augmented.int())
        record.epoch_augmented[epoch] += losses.augmented.sum()


@torch.no_grad()
def _update(parameters, state, settings, device):
    """Adam, or AdamW with weight_decay, and the EMA."""
    adam(
        parameters,
        [p.grad for p in parameters],
        state.exp_avg,
        state.exp_avg_sq,
        [],
        torch.full((len(parameters),), float(state.step), device=device).unbind(),
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=learning_rate(settings["learning_rate"], state.step, settings["warmup_steps"]),
        weight_decay=settings.get("weight_decay", 0.0),
        decoupled_weight_decay=bool(settings.get("weight_decay")),  # AdamW
        eps=1e-8,
        maximize=False,
    )
    if state.ema:
        torch._foreach_lerp_(state.ema, parameters, 1 - settings["ema_decay"])


def _sent(tensor, device):
    """A small tensor of the CPU on the device, without waiting for the device."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def train_round(training, after_step, hurry=lambda: False):
    """All steps of one round on one shard: the epochs of the record, or settings["steps"].

    training     Training, of which network, state and record change in place
    after_step   called as after_step(steps done in this round, steps of this round, loss tensor) at each look at the loss
    hurry        called after every step: True asks for a look now
    Raises       ValueError: the shard is smaller than a batch
                 FloatingPointError: a loss, or a weight after the last step, is not finite; names the step
    """
    network, state, settings = training.network, training.state, training.settings
    steps_per_epoch = len(training.images.ids) // settings["batch_size"]
    if steps_per_epoch == 0:
        raise ValueError(
            f"shard {training.shard} has {len(training.images.ids)} images, fewer than one batch of train.batch_size = "
            f"{settings['batch_size']}: use a smaller batch or fewer shards (params.yaml)"
        )
    total = settings.get("steps", steps_per_epoch * len(training.record.epoch_visited))
    network.train()
    device = training.images.pixels.device
    every = steps_between_looks(device)
    # The last step and its loss, or the first one whose loss is not finite.
    told_step, told_loss = torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), device=device)
    while state.step < training.first_step + total:
        step = state.step
        loss = train_step(training, (step - training.first_step) // steps_per_epoch)
        fine = told_loss.isfinite()
        told_step, told_loss = torch.where(fine, step, told_step), torch.where(fine, loss, told_loss)
        done = state.step - training.first_step
        if not hurry() and done % every and done < total:
            continue
        if not told_loss.isfinite():
            raise FloatingPointError(
                f"the loss at step {int(told_step)} is {float(told_loss)}, expected a finite number"
            )
        after_step(done, total, loss)
    if not all(p.isfinite().all() for p in network.parameters()):
        raise FloatingPointError(f"the weights after step {state.step - 1} are not all finite")


def forward_images(record, passes=1):
    """Images passed through the network in this round: `passes` times at every visit, and once more for each augmented sample."""
    return int(passes * record.epoch_visited.sum() + record.epoch_augmented.sum())


def as_arrays(record, index):
    """The record as numpy arrays under the names of the file that holds it, with the ids the counts belong to.

    index     [n] int64: training ids of the shard, in the order of its images
    Returns   dict name -> array; epoch_loss becomes the mean per sample
    """
    arrays = {name: value.cpu().numpy() for name, value in vars(record).items()}
    arrays["epoch_loss"] = arrays["epoch_loss"] / np.maximum(arrays["epoch_visited"], 1)
    return {"index": index, **arrays}


def counts(training):
    """What a round came to, as named arrays for its counts file.

    Returns   dict: what `as_arrays` gives of the record; carried.<name>, what the method carries; spent.<name>, [1] float64, what it
              spent; forward_images and optimizer_steps, [1] int64, of this round
    """
    record, state, method, images = training.record, training.state, training.method, training.images
    spent = method.spent(len(images.ids), training.settings["batch_size"], state.step) | images.objective.numbers()
    return {
        **as_arrays(record, images.ids.numpy()),
        **shard_state.carried_as_arrays(state),
        **{f"spent.{name}": np.array([value], np.float64) for name, value in spent.items()},
        "forward_images": np.array([forward_images(record, method.passes)], np.int64),
        "optimizer_steps": np.array([state.step - training.first_step], np.int64),
    }

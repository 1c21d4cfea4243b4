"""Trains the proxy model of one shard for one round (IET), by the method of its arm.

params    model, diffusion, compute, train, arms.<arm>.train, arms.<arm>.method; model.pipeline is a folder that is read too
reads     artifacts/data, the index list of the shard, the averaged model and the shard's own state of the round before
writes    artifacts/train/<run>/round<r>/shard<k>/raw.safetensors, ema.safetensors: the proxy model (no EMA with ema_decay 0)
              state.safetensors: Adam's moments, what the method carries (AGC: the memory bank) and the step, for the next round of this shard
          artifacts/counts/<run>/round<r>/shard<k>/counts.safetensors: skips, visits and losses of this round
A checkpoint in scratch/ lets a killed stage go on where it was, to the same result; SIGTERM, a scheduler's warning, writes one
at once and ends the stage.
"""

import sys

import numpy as np

from stages import network, params, text
from stages.run import checkpoint, cli, device, files
from stages.run.progress import Progress


def main(arguments):
    with cli.stage("train", __doc__, arguments, "arm", "seed", "round", "shard") as job:
        job.device = device.claim(job.params["compute"])
        import torch

        from stages.methods import loop

        settings = params.section(job.params, "train", job.arm) | {"precision": job.params["compute"]["precision"]}
        index = files.load_array(files.current_shards_dir(job.recipe, job.run, job.round) / f"shard{job.shard}.npy")
        pixels = files.load_array(files.DATA / "train.npy", mmap=True)[index]
        images = loop.Images(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(job.device), torch.from_numpy(index)
        )
        kind = text if params.is_text(job.params) else network
        model = kind.build(job, tuple(images.pixels.shape[1:]))
        method, unet, alpha_bar = model.method, model.network, model.alpha_bars.float().to(job.device)
        images.objective = model.objective()
        if model.num_classes:
            labels = files.load_array(files.DATA / "train_labels.npy")[index]
            images.labels = torch.from_numpy(labels).to(job.device)
        names = [name for name, _ in unet.named_parameters()]
        state = _start(job, model, names, method.initial_state(len(alpha_bar), job.device), settings["ema_decay"])
        first_step = state.step
        num_epochs = loop.num_epochs(len(index), settings)
        record = loop.Record.empty(len(index), num_epochs, job.device)

        saved = checkpoint.Checkpoint(
            job,
            [settings, job.recipe["method"], *(job.params[s] for s in ("data", "model", "diffusion", "compute"))],
            _inputs(job) + model.inputs,
        )
        _take_up(saved.saved(), unet, names, state, record)
        progress = Progress(f"train@{job.key}", "steps")

        def after_step(done, total, loss):
            progress.update(done, total, lambda: _note(loss, record))
            saved.save_if_due(lambda: _unfinished(unet, names, state, record), f"step {done} of {total}")

        try:
            loop.train_round(
                unet, state, record, images, method, settings, alpha_bar, job.seed, job.shard, num_epochs, first_step,
                after_step, saved.look,
            )  # fmt: skip
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} (arm {job.arm}, seed {job.seed}, round {job.round}, shard {job.shard}): lower train.learning_rate or "
                "look at the images; nothing was written"
            ) from None
        except RuntimeError as error:
            if not device.is_out_of_memory(error):
                raise
            raise ValueError(
                f"the memory of {job.device} does not suffice for train.batch_size = {settings['batch_size']} "
                f"({str(error).splitlines()[0]}): try {max(1, settings['batch_size'] // 2)} (params.yaml), or a smaller network; "
                f"{f'{model.memory}; ' if model.memory else ''}nothing was written"
            ) from None
        spent = method.spent(len(index), settings["batch_size"], state.step) | images.objective.numbers()
        if remark := method.remark(float(record.epoch_skipped.sum() / record.epoch_visited.sum().clamp(min=1))):
            print(f"arm {job.arm}, round {job.round}, shard {job.shard}: {remark}", file=sys.stderr)
        _write(job, method, unet, names, state, record, index, state.step - first_step, spent)
        saved.remove()


def _inputs(job):
    """Files that the result depends on beside the settings."""
    found = [
        files.DATA / "train.npy",
        files.DATA / "train_labels.npy",
        files.current_shards_dir(job.recipe, job.run, job.round) / f"shard{job.shard}.npy",
    ]
    if job.round > 1:
        found += sorted(_model_before(job).glob("*.safetensors"))
        found.append(files.train_dir(job.run, job.round - 1, job.shard) / "state.safetensors")
    return found


def _model_before(job):
    """Folder of the weights that a round after the first begins with: the average, or the shard's own where there was none."""
    averaged = files.averages_after(job.recipe, job.round - 1)
    return files.model_dir(job.run, job.round - 1) if averaged else files.train_dir(job.run, job.round - 1, job.shard)


def _start(job, built, names, carried, ema_decay):
    """Loads the averaged model and this shard's state of the round before; the initial ones in round 1.

    carried   what the method begins with: dict name -> tensor
    """
    import torch

    from stages.diffusion import unet
    from stages.iet import shard_state

    network = built.network
    if job.round == 1:
        unet.load(network, built.first_weights(job.seed), "the initialisation")
        network.to(job.device)
        return shard_state.fresh_state(list(network.parameters()), carried, bool(ema_decay))

    model, ema = _model_before(job), {}
    if ema_decay:
        ema = files.load_arrays(model / "ema.safetensors")
        unet.load(network, ema, model / "ema.safetensors")  # checks names and shapes of the EMA too
    unet.load(network, files.load_arrays(model / "raw.safetensors"), model / "raw.safetensors")
    network.to(job.device)
    state_file = files.train_dir(job.run, job.round - 1, job.shard) / "state.safetensors"
    saved = {name: torch.from_numpy(value).to(job.device) for name, value in files.load_arrays(state_file).items()}
    expected = {f"{kind}.{n}": p.shape for kind in ("exp_avg", "exp_avg_sq") for n, p in network.named_parameters()}
    expected |= {f"carried.{name}": value.shape for name, value in carried.items()} | {"step": (1,)}
    for name, shape in expected.items():
        found = tuple(saved[name].shape) if name in saved else "nothing"
        if found != tuple(shape):
            raise ValueError(
                f"{state_file} holds the state of another network: {name} is {found}, expected {tuple(shape)}; "
                "set model, diffusion and method in params.yaml back, or rerun the phase that wrote it"
            )
    return shard_state.ShardState(
        ema=[torch.from_numpy(ema[n]).to(job.device) for n in names if ema],
        exp_avg=[saved[f"exp_avg.{n}"] for n in names],
        exp_avg_sq=[saved[f"exp_avg_sq.{n}"] for n in names],
        carried={name: saved[f"carried.{name}"] for name in carried},
        step=int(saved["step"]),
    )


def _note(loss, record):
    visited = max(int(record.epoch_visited.sum()), 1)
    skipped, augmented = int(record.epoch_skipped.sum()) / visited, int(record.epoch_augmented.sum()) / visited
    return f"loss {float(loss):.4f}, skipped {skipped:.1%}, augmented {augmented:.1%}"


def _moments(names, state):
    return {
        **{f"exp_avg.{n}": value.cpu().numpy() for n, value in zip(names, state.exp_avg, strict=True)},
        **{f"exp_avg_sq.{n}": value.cpu().numpy() for n, value in zip(names, state.exp_avg_sq, strict=True)},
        **{f"carried.{name}": value.cpu().numpy() for name, value in state.carried.items()},
        "step": np.int64(state.step),
    }


def _raw(network):
    return {n: p.detach().cpu().numpy() for n, p in network.named_parameters()}


def _ema(names, state):
    return {n: value.cpu().numpy() for n, value in zip(names, state.ema, strict=True)} if state.ema else {}


def _write(job, method, network, names, state, record, index, num_steps, spent):
    from stages.methods import loop

    counts = loop.as_arrays(record, index) | {
        **{f"carried.{name}": value.cpu().numpy() for name, value in state.carried.items()},
        **{f"spent.{name}": np.array([value], np.float64) for name, value in spent.items()},
        "forward_images": np.array([loop.forward_images(record, method.passes)], np.int64),
        "optimizer_steps": np.array([num_steps], np.int64),
    }
    with files.publish(files.counts_dir(job.run, job.round, job.shard)) as folder:
        files.save_arrays(folder / "counts.safetensors", counts)
    num_bytes = 4 * 4 * sum(p.numel() for p in network.parameters())  # weights, EMA and two moments in float32
    with files.publish(files.train_dir(job.run, job.round, job.shard), num_bytes) as folder:
        files.save_arrays(folder / "raw.safetensors", _raw(network))
        if state.ema:
            files.save_arrays(folder / "ema.safetensors", _ema(names, state))
        files.save_arrays(folder / "state.safetensors", _moments(names, state))


def _unfinished(network, names, state, record):
    """Everything that the rest of the round depends on, as named arrays."""
    arrays = {f"raw.{n}": value for n, value in _raw(network).items()}
    arrays |= {f"ema.{n}": value for n, value in _ema(names, state).items()}
    arrays |= {f"record.{name}": value.cpu().numpy() for name, value in vars(record).items()}
    return arrays | _moments(names, state)


def _take_up(arrays, network, names, state, record):
    """Puts the arrays of `_unfinished` back; nothing where there are none."""
    if arrays is None:
        return
    import torch

    saved = {name: torch.from_numpy(value) for name, value in arrays.items()}
    with torch.no_grad():
        for i, (name, parameter) in enumerate(zip(names, network.parameters(), strict=True)):
            parameter.copy_(saved[f"raw.{name}"])
            if state.ema:
                state.ema[i].copy_(saved[f"ema.{name}"])
            state.exp_avg[i].copy_(saved[f"exp_avg.{name}"])
            state.exp_avg_sq[i].copy_(saved[f"exp_avg_sq.{name}"])
    for name, value in state.carried.items():
        value.copy_(saved[f"carried.{name}"])
    state.step = int(saved["step"])
    for name, value in vars(record).items():
        value.copy_(saved[f"record.{name}"])


if __name__ == "__main__":
    cli.run(main)

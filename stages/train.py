"""Trains the proxy model of one shard for one round (IET), by the method of its arm.

params    model, diffusion, compute, train, arms.<arm>.train, arms.<arm>.method; model.pipeline is a folder that is read too
reads     artifacts/data, the index list of the shard, the averaged model and the shard's own state from the round before; with a teacher
          the models of the arm that teaches and their index lists
writes    artifacts/train/<run>/round<r>/shard<k>/raw.safetensors, ema.safetensors: the proxy model (no EMA with ema_decay 0)
              state.safetensors: Adam's moments, the state of the method (AGC: the memory bank) and the step, for the next round of this shard
          artifacts/results/counts/<run>/round<r>/shard<k>/counts.safetensors: skips, visits and losses of this round
A checkpoint in scratch/ lets a killed stage resume and reach the same result; SIGTERM, by which a scheduler warns, makes the stage
write one at once and end.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from stages import experiments, models
from stages.run import checkpoint, cli, declarations, device, files, live
from stages.run.instance import START_UP, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "train",
    "per": "shard",
    "arms": "trained",
    "device": True,
    "arms_override": True,
    "text_keys": ["caption", "caption_text", "caption_dropout"],
    "section": {
        "description": "training settings that all arms share",
        "required": ["batch_size", "learning_rate", "ema_decay"],
        "properties": {
            "epochs": {"description": "E, passes over a shard in one round; an arm sets either epochs or steps", "type": "integer", "minimum": 1},
            "steps": {"description": "optimiser steps on a shard in one round, instead of epochs", "type": "integer", "minimum": 1},
            "batch_size": {"description": "images per optimiser step", "type": "integer", "minimum": 1},
            "learning_rate": {"description": "Adam's step size after the warm-up", "type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "warmup_steps": {"description": "number of optimiser steps on a shard over which the learning rate rises from 0", "default": 0, "type": "integer", "minimum": 0},
            "grad_clip_norm": {"description": "largest L2 norm of the gradient; longer gradients are scaled down to it", "default": 1.0, "type": "number", "exclusiveMinimum": 0},
            "ema_decay": {"description": "decay of the EMA weights per optimiser step; 0: no EMA weights are kept", "type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "flip": {"description": "mirror training images at random", "default": False, "type": "boolean"},
            "dropout": {"description": "share of the values that a residual block drops in training (default: 0)", "type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "weight_decay": {"description": "share of the learning rate by which each step shrinks the weights, as in AdamW (default: 0)", "type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "told_augmentation": {
                "description": "augmentation of training images that the network is told of, and that is switched off in sampling (default: none)",
                "type": "object",
                "additionalProperties": False,
                "required": ["p", "kinds"],
                "properties": {
                    "p": {"description": "probability of each kind at a visit (0.12 for CIFAR-10 in Karras et al. 2022); y_flip has half of it, and x_flip always 1/2, as in their code", "type": "number", "exclusiveMinimum": 0, "maximum": 1},
                    "kinds": {"description": "kinds of change: x_flip, y_flip, scaling, rotation, anisotropy, translation, as in Karras et al. 2022; shift: by one pixel, not of them", "type": "array", "minItems": 1, "uniqueItems": True, "items": {"enum": ["x_flip", "y_flip", "scaling", "rotation", "anisotropy", "translation", "shift"]}},
                },
            },
            "timestep_focus": {
                "description": "timesteps that count for more or for less than others: drawn from a Gaussian, or an interval whose losses are weighted (default: none)",
                "type": "object",
                "additionalProperties": False,
                "oneOf": [{"required": ["centre", "width"]}, {"required": ["low", "high", "weight"]}],
                "dependentRequired": {"importance_weights": ["centre"]},
                "properties": {
                    "centre": {"description": "the t / T that is drawn most often", "type": "number", "minimum": 0, "maximum": 1},
                    "width": {"description": "standard deviation over t / T of the Gaussian that timesteps are drawn from; 0.1 or more with importance_weights, as the weights of rare timesteps grow without bound", "type": "number", "minimum": 0.01},
                    "importance_weights": {"description": "with centre and width: losses are divided by how often their timestep is drawn, so that the objective stays the same (default: false)", "type": "boolean"},
                    "low": {"description": "with high and weight: the first t / T whose loss is weighted", "type": "number", "minimum": 0, "maximum": 1},
                    "high": {"description": "the t / T above low from which on losses are as they were", "type": "number", "minimum": 0, "maximum": 1},
                    "weight": {"description": "what losses in [low, high) are multiplied by", "type": "number", "minimum": 0},
                },
            },
            "caption": {"description": "text model, the caption to train with. first: the first one of an image; random_of_all: a random one of the image at each visit; fixed_text: caption_text for all images (default: first)", "enum": ["first", "random_of_all", "fixed_text"]},
            "caption_text": {"description": "text model: with caption fixed_text, the text that stands for all captions, in training and in generation", "type": "string"},
            "caption_dropout": {"description": "text model: share of the visits at which the network sees no caption (default: 0)", "type": "number", "minimum": 0, "maximum": 1},
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Training(Instance):
    """One shard in one round.

    index          the list of its images
    method         code of the training method
    kind           code of the kind of model
    architecture   what the network is built from
    model, state   of a round after the first: the weights that it begins with, and what the shard kept for itself
    teacher, teacher_shards   of a student: the models that teach it, and which images each of them saw
    """

    index: str
    method: str
    kind: str
    architecture: str
    model: str | None = None
    state: str | None = None
    teacher: str | None = None
    teacher_shards: str | None = None

    writes = ("train", "results/counts")

    def size(self, scale):  # weights, EMA, two moments of Adam
        return (
            3 + bool(experiments.section(scale.experiment, "train", self.arm)["ema_decay"])
        ) * scale.bytes_of_weights

    def work(self, scale):
        settings = experiments.section(scale.experiment, "train", self.arm)
        shard_size = scale.num_train / scale.experiment["arms"][self.arm]["shard"]["num_shards"]
        images = settings["steps"] * settings["batch_size"] if "steps" in settings else settings["epochs"] * shard_size
        # A student asks its teachers at each visit, and a forward pass is a third of a training pass.
        teacher = experiments.teacher_of(scale.experiment, self.arm)
        asked = scale.experiment["arms"][teacher]["shard"]["num_shards"] / 3 if teacher else 0
        return int(images * (1 + asked)) + START_UP


def instances(experiment):
    found = []
    for arm, seed in experiments.runs(experiment, experiments.trained(experiment)):
        recipe, run = experiment["arms"][arm], files.run_name(arm, seed)
        code = {
            "method": experiments.method_source(experiment, arm),
            "kind": f"stages/{experiments.kind(experiment)}",
            "architecture": experiments.architecture(experiment),
        }
        code |= experiments.teacher_files(experiment, arm, seed)
        student = "_student" if "teacher" in code else ""
        for r in range(1, recipe["rounds"] + 1):
            shards = experiments.current_shards(recipe, run, r)
            for k in range(recipe["shard"]["num_shards"]):
                place = {"arm": arm, "seed": seed, "round": r, "shard": k, "index": str(shards / f"shard{k}.npy")}
                if r == 1:
                    found.append(Training(block=f"train{student}", **place, **code))
                    continue
                model, state = experiments.model_before(recipe, run, r, k), files.folder("train", run, r - 1, k)
                if model == state:  # DVC wants a path only once
                    model /= "raw.safetensors"
                before = {"model": str(model), "state": str(state)}
                found.append(Training(block=f"train_next{student}", **place, **code, **before))
    return found


def check(experiment):
    """Raises ValueError if keys of the section, or what an arm says of its training, do not go together."""
    for arm in experiments.trained(experiment):
        _check_method(experiment, arm)
        _check_compute(experiment, arm)
        _check_teacher(experiment, arm)
        settings, own = experiments.section(experiment, "train", arm), experiment["arms"][arm]["train"]
        for key in ("dropout", "told_augmentation") if experiments.is_text(experiment) else ():
            if key in settings:
                raise ValueError(f"train.{key} of {arm} has no effect on the network of model.pipeline: remove it")
        found = [key for key in ("epochs", "steps") if key in settings]
        if not found:
            raise ValueError(f"the key arms.{arm}.train.epochs is missing (or steps: how long a round is)")
        if len(found) > 1:
            raise ValueError(
                f"both epochs and steps say how long a round of {arm} is: give one of them (arms.{arm}.train = {own})"
            )
    _check_captions(experiment)


def _check_method(experiment, arm):
    kind, settings = experiments.kind(experiment), experiment["arms"][arm]["method"]
    name = settings["name"]
    fitting = [n for n, method in declarations.methods().items() if kind in method["MODELS"]]
    if name not in fitting:
        trains = "a model without captions" if kind == "text" else "a model with captions, model.pipeline"
        raise ValueError(f"arms.{arm}.method.name is {name}, which trains {trains}: use one of {', '.join(fitting)}")
    declared = declarations.methods()[name]
    reads_again = settings.get("taa", {}).get("authors")
    train = experiments.section(experiment, "train", arm)
    for key, allowed in (("told_augmentation", "AUGMENTABLE"), ("timestep_focus", "FOCUSABLE")):
        if key in train and (reads_again or not declared[allowed]):
            why = "taa.authors, which trains on images that it reads again" if reads_again else f"the method {name}"
            raise ValueError(f"train.{key} of {arm} does not go with {why}: remove one of them")
    focus = train.get("timestep_focus", {})
    if "low" in focus and focus["low"] >= focus["high"]:
        raise ValueError(
            f"train.timestep_focus.low of {arm} is {focus['low']}, expected less than train.timestep_focus.high = {focus['high']}"
        )


def _check_compute(experiment, arm):
    """That the training steps of an arm can be computed and compiled as the section compute says."""
    compute, settings = experiment["compute"], experiment["arms"][arm]["method"]
    if compute.get("channels_last") and not declarations.methods()[settings["name"]]["CHANNELS_LAST"]:
        raise ValueError(
            f"compute.channels_last is true, which does not go with arms.{arm}.method.name {settings['name']}: set it to false"
        )
    mode = compute.get("compile")
    if mode not in ("inductor", "graph"):
        return
    is_graph, name = mode == "graph", settings["name"]
    told = f"compute.compile is {mode}, "
    if is_graph and compute["device"] == "cpu":
        raise ValueError(f"{told}which only a GPU can run, but compute.device is cpu: set compile to off or inductor")
    if experiments.is_text(experiment):
        raise ValueError(f"{told}but a model with captions, model.pipeline, is not compiled: set it to off")
    if mode not in declarations.methods()[name]["COMPILE"]:
        fitting = [n for n, method in declarations.methods().items() if mode in method["COMPILE"]]
        raise ValueError(
            f"{told}but arms.{arm}.method.name is {name}, whose training step cannot be compiled so: set it to off, or use "
            f"one of {', '.join(fitting)}"
        )
    if is_graph and settings.get("taa", {}).get("authors"):
        raise ValueError(
            f"{told}but with arms.{arm}.method.taa.authors it is not known before a step whether anything is learnt: set compile to off or "
            "inductor"
        )


def _check_teacher(experiment, arm):
    """That the arm which teaches another has models that were trained apart, on the images themselves, and is no student."""
    if (teacher := experiments.teacher_of(experiment, arm)) is None:
        return
    key, trained = f"arms.{arm}.method.teacher is {teacher}", experiments.trained(experiment)
    apart = [name for name in trained if experiments.trains_apart(trained[name])]
    if teacher not in apart or experiments.teacher_of(experiment, teacher):
        raise ValueError(
            f"{key}, expected an arm with shard.combine: predictions that is no student itself: "
            f"{', '.join(a for a in apart if not experiments.teacher_of(experiment, a)) or 'there is none'}"
        )
    if not experiments.predicts_noise(experiment, teacher):
        raise ValueError(f"{key}, whose networks do not predict the noise of an image: use one whose method is another")


def _check_captions(experiment):
    """Who has the text that stands in the place of captions, and who asks for it."""
    sections = {arm: experiments.section(experiment, "train", arm) for arm in experiments.trained(experiment)}
    fixed = {arm: settings.get("caption") == "fixed_text" for arm, settings in sections.items()}
    for arm, is_fixed in fixed.items():
        if is_fixed and not (found := sections[arm].get("caption_text", "")).strip():
            raise ValueError(
                f"train.caption of {arm} is fixed_text, but train.caption_text is {repr(found) if found else 'missing or empty'}: give "
                "the text that stands in the place of all captions"
            )
        if not is_fixed and "caption_text" in experiment["arms"][arm]["train"]:
            raise ValueError(f"arms.{arm}.train.caption_text has no effect without caption: fixed_text: remove it")
    if "caption_text" in experiment["train"] and not any(fixed.values()):
        raise ValueError("train.caption_text has no effect without caption: fixed_text: remove it")


def check_sizes(experiment, num_train):
    """Raises ValueError if a shard is smaller than one batch."""
    for arm, recipe in experiments.trained(experiment).items():
        num_shards = recipe["shard"]["num_shards"]
        batch_size = experiments.section(experiment, "train", arm)["batch_size"]
        if num_shards <= num_train < num_shards * batch_size:
            raise ValueError(
                f"arms.{arm}: {num_train} training images in {num_shards} shards leave a shard of "
                f"{num_train // num_shards}, fewer than one batch (train.batch_size = {batch_size})"
            )


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments, check) as job:
        job.device = device.claim(job.params["compute"])
        mode = device.compile_mode(job.params["compute"], job.device)
        from stages.iet import shard_state
        from stages.methods import compiling, loop

        settings = experiments.section(job.params, "train", job.arm) | {"precision": job.params["compute"]["precision"]}
        index = files.load_array(_index_file(job))
        model = models.build(job, job.arm)
        images = _images(job, model, index)
        if experiments.teacher_of(job.params, job.arm):
            model.method.take_teachers(*_teachers(job))
        state = _state(job, model, settings["ema_decay"])
        record = loop.Record.empty(len(index), loop.num_epochs(len(index), settings), job.device)
        alpha_bar = model.alpha_bars.float().to(job.device)
        training = loop.Training(
            model.network, state, record, images, model.method, settings, alpha_bar, job.seed, job.shard, state.step
        )
        sections = [job.params[name] for name in ("data", "model", "diffusion", "compute")]
        inputs = _inputs(job) + models.inputs(job, model)
        saved = checkpoint.Checkpoint(
            job, [settings, job.recipe["method"], *sections], inputs, experiments.code_of(job)
        )
        if (unfinished := saved.saved()) is not None:
            shard_state.take_up(unfinished, model.network, state, vars(record))
        compiling.prepare(training, mode)
        _train(job, training, saved)
        _write(job, training)
        saved.remove()


def _index_file(job):
    return experiments.current_shards(job.recipe, job.run, job.round) / f"shard{job.shard}.npy"


def _images(job, model, index):
    """The images of the shard on the device, with their classes where the model is told them: base.Images."""
    import torch

    from stages.methods import base

    pixels = files.load_array(files.DATA / "train.npy", mmap=True)[index]
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(job.device)
    labels = None
    if model.num_classes:
        labels = torch.from_numpy(files.load_array(files.DATA / "train_labels.npy")[index]).to(job.device)
    return base.Images(pixels, torch.from_numpy(index), labels, models.objective(job, model))


def _teacher_weights(job):
    """The file of the models that teach: averaged weights where such are kept."""
    teacher = experiments.teacher_of(job.params, job.arm)
    kept = "ema" if experiments.section(job.params, "train", teacher)["ema_decay"] else "raw"
    return Path(experiments.teacher_files(job.params, job.arm, job.seed)["teacher"]) / f"{kept}.safetensors"


def _teacher_lists(job):
    """The index lists of the models that teach, in their order: list of paths."""
    folder = Path(experiments.teacher_files(job.params, job.arm, job.seed)["teacher_shards"])
    num_teachers = job.params["arms"][experiments.teacher_of(job.params, job.arm)]["shard"]["num_shards"]
    return [folder / f"shard{k}.npy" for k in range(num_teachers)]


def _teachers(job):
    """The networks that teach, and [N] int64: which of them saw an image.

    Raises   ValueError: an image is in no shard of theirs, as after a change of data that they have not seen
    """
    import torch

    from stages.diffusion import weights

    path = _teacher_weights(job)
    network = models.build(job, experiments.teacher_of(job.params, job.arm)).network
    weights.load(network, files.load_arrays(path), path)
    seen_by = torch.full((files.shape_of(files.DATA / "train.npy")[0],), -1)
    for k, index in enumerate(_teacher_lists(job)):
        seen_by[torch.from_numpy(files.load_array(index))] = k
    if (seen_by < 0).any():
        raise ValueError(
            f"{path.parent} knows nothing of {int((seen_by < 0).sum())} of the training images: rerun the arm that teaches"
        )
    return network.to(job.device).eval().requires_grad_(False).members, seen_by.to(job.device)


def _before(job):
    """What a round after the first begins with: the folder of its weights, and the file of the shard's own state."""
    own = files.folder("train", job.run, job.round - 1, job.shard)
    return experiments.model_before(job.recipe, job.run, job.round, job.shard), own / "state.safetensors"


def _inputs(job):
    """Files that the result depends on beside the settings and the model."""
    found = [files.DATA / "train.npy", files.DATA / "train_labels.npy", _index_file(job)]
    if job.round > 1:
        folder, state = _before(job)
        found += [*sorted(folder.glob("*.safetensors")), state]
    if experiments.teacher_of(job.params, job.arm):
        found += [_teacher_weights(job), *_teacher_lists(job)]
    return found


def _state(job, model, ema_decay):
    """Loads the weights that the round begins with, onto the device, and returns the shard's state: iet.shard_state.ShardState."""
    from stages.diffusion import weights
    from stages.iet import shard_state

    network = model.network
    carried = model.method.initial_state(len(model.alpha_bars), job.device)
    if job.round == 1:
        weights.load(network, model.first_weights(job.seed), "the initialisation")
        network.to(job.device)
        return shard_state.fresh_state(list(network.parameters()), carried, bool(ema_decay))
    (folder, state_file), ema = _before(job), {}
    if ema_decay:
        ema = files.load_arrays(folder / "ema.safetensors")
        weights.load(network, ema, folder / "ema.safetensors")  # checks names and shapes of the EMA too
    weights.load(network, files.load_arrays(folder / "raw.safetensors"), folder / "raw.safetensors")
    network.to(job.device)
    arrays = files.load_arrays(state_file)
    return shard_state.from_arrays(arrays, ema, dict(network.named_parameters()), carried, state_file)


def _train(job, training, saved):
    """The round, with a line of progress and a checkpoint now and then."""
    from stages.iet import shard_state
    from stages.methods import loop

    begun, batch_size = training.state.step - training.first_step, training.settings["batch_size"]
    progress = Progress(f"train@{job.key}", "steps", begun=begun)

    def so_far():
        return shard_state.unfinished_as_arrays(training.network, training.state, vars(training.record))

    def after_step(done, total, loss):
        progress.update(done, total, lambda: _note(loss, training.record))
        curves.add(
            training.state.step, lambda: _numbers(loss, training) | {"steps_per_s": progress.rate(done)}, done == total
        )
        saved.save_if_due(so_far, f"step {done} of {total}")

    try:
        with live.Curves(job.run, job.shard, training.state.step) as curves:
            loop.train_round(training, after_step, saved.look)
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error} (arm {job.arm}, seed {job.seed}, round {job.round}, shard {job.shard}): lower train.learning_rate or "
            "look at the images; nothing was written"
        ) from None
    except RuntimeError as error:
        if not device.is_out_of_memory(error):
            raise
        told = models.memory_told(job)
        raise ValueError(
            f"the memory of {job.device} does not suffice for train.batch_size = {batch_size} "
            f"({str(error).splitlines()[0]}): try {max(1, batch_size // 2)} (params.yaml), or a smaller network; "
            f"{f'{told}; ' if told else ''}nothing was written"
        ) from None


def _note(loss, record):
    skipped, augmented = _shares(record)
    return f"loss {float(loss):.4f}, skipped {skipped:.1%}, augmented {augmented:.1%}"


def _numbers(loss, training):
    """What the curves show of the round so far."""
    from stages.methods import loop

    settings, (skipped, augmented) = training.settings, _shares(training.record)
    rate = loop.learning_rate(settings["learning_rate"], training.state.step - 1, settings["warmup_steps"])
    return {"loss": float(loss), "learning_rate": rate, "skipped_share": skipped, "augmented_share": augmented}


def _shares(record):
    """Of the images visited in this round so far: the shares that were skipped and augmented."""
    visited = max(int(record.epoch_visited.sum()), 1)
    return int(record.epoch_skipped.sum()) / visited, int(record.epoch_augmented.sum()) / visited


def _write(job, training):
    from stages.iet import shard_state
    from stages.methods import loop

    record = training.record
    if remark := training.method.remark(float(record.epoch_skipped.sum() / record.epoch_visited.sum().clamp(min=1))):
        print(f"arm {job.arm}, round {job.round}, shard {job.shard}: {remark}", file=sys.stderr)
    with files.publish(files.folder("results/counts", job.run, job.round, job.shard)) as folder:
        files.save_arrays(folder / "counts.safetensors", loop.counts(training))
    num_bytes = 4 * 4 * sum(p.numel() for p in training.network.parameters())  # weights, EMA and two moments in float32
    with files.publish(files.folder("train", job.run, job.round, job.shard), num_bytes) as folder:
        for name, arrays in shard_state.trained_as_arrays(training.network, training.state).items():
            files.save_arrays(folder / f"{name}.safetensors", arrays)


if __name__ == "__main__":
    cli.run(main)

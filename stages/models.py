"""The model of an arm, for the phases that train it or use it: reads what both kinds of model need from files.

The module of a kind is imported by its name, so that a phase depends only on the kind that its arm has. What the two kinds offer is
described in stages.methods.kinds.
"""

import functools
import importlib
import sys

from stages import experiments, methods
from stages.run import device, files, kept

CAPTIONS, KEYS = files.DATA / "captions.json", files.DATA / "keys.json"


def build(job, arm, single=False):
    """The model that an arm trains, with its method, for the images of artifacts/data; its weights are not loaded. Where it is not to be
    trained by the job and its shards are trained apart, its network is all of theirs: mean_of_predictions.MeanOfPredictions.

    job       of cli.stage, with its device
    arm       a trained arm, which need not be that of the job
    single    one network, also where shards are trained apart
    Returns   kinds.Model
    Raises    ValueError: a class-conditional model on images without classes; a model that does not fit the images, or the GPU
    """
    import torch

    from stages.iet import mean_of_predictions
    from stages.methods import told_augmentation

    _check_memory(job)
    compute = job.params["compute"]
    device.allow_tf32(compute["precision"] == "tf32")
    recipe = job.params["arms"][arm]
    method = methods.method(recipe["method"])
    settings = experiments.section(job.params, "train", arm)
    own = {"dropout": settings.get("dropout", 0.0)}
    if "told_augmentation" in settings:
        own["num_told"] = told_augmentation.num_told(settings["told_augmentation"])
    model, diffusion = job.params["model"] | own, job.params["diffusion"]
    found = _kind(job).build(method, model, diffusion, _image_shape(), _num_classes(job), job.device)
    if compute.get("channels_last"):
        found.network.to(memory_format=torch.channels_last)
    if experiments.trains_apart(recipe) and not single and not (job.phase == "train" and arm == job.arm):
        found.network = mean_of_predictions.MeanOfPredictions(found.network, recipe["shard"]["num_shards"])
    return found


def _kind(job):
    """The package of the kind of model that an experiment has."""
    return importlib.import_module(f"stages.{experiments.kind(job.params)}")


def _image_shape():
    height, width, channels = files.shape_of(files.DATA / "train.npy")[1:]
    return channels, height, width


def _num_classes(job):
    if not job.params["model"].get("class_conditional"):
        return None
    num_classes = len(files.load_json(files.DATA / "classes.json"))
    if not num_classes:
        raise ValueError(
            f"model.class_conditional is true, but the images of data.name {job.params['data']['name']} have no classes: "
            "put them into one sub-folder per class, or set it to false (params.yaml)"
        )
    return num_classes


def objective(job, model):
    """What a model learns of the training images of the job's arm: objective.Objective."""
    return model.objective(experiments.section(job.params, "train", job.arm), _data(job, job.arm), kept.keep)


def source(job, arm, round_, settings, sampler):
    """The model of an arm after a round as a source of images; load its weights before the first.

    settings   section sample of the job's arm, and precision
    sampler    stages.diffusion.sampling
    Returns    kinds.Source; list of the files that it depends on beside its settings
    Raises     ValueError: more steps than the model has timesteps for; see also `build`
    """
    model = build(job, arm)
    if experiments.is_text(job.params) and 2 * settings["num_steps"] > len(model.alpha_bars):
        raise ValueError(
            f"sample.num_steps of {arm} is {settings['num_steps']}, expected at most half of the {len(model.alpha_bars)} timesteps of "
            f"{job.params['model']['pipeline']} (params.yaml)"
        )
    weights = [_weights_file(job, arm, round_, kind) for kind in settings["weights"]]
    return model.source(settings, _data(job, arm), job.seed, sampler), weights + inputs(job, model)


def load(job, arm, round_, kind, source):
    """Gives a source of images the weights of an arm after a round, raw or ema."""
    path = _weights_file(job, arm, round_, kind)
    source.load(kind, files.load_arrays(path), path)


def _weights_file(job, arm, round_, kind):
    return files.folder("model", files.run_name(arm, job.seed), round_) / f"{kind}.safetensors"


def inputs(job, model):
    """The files that a model depends on beside its weights and the images: those of the captions, and those of a Stable Diffusion model."""
    return [*([CAPTIONS, KEYS] if experiments.is_text(job.params) else []), *model.files]


def _data(job, arm):
    """What a model with captions is told of the images: kinds.DataSet. None for one without."""
    from stages.methods import kinds

    if not experiments.is_text(job.params):
        return None
    images = files.DATA / "train.npy"
    return kinds.DataSet(
        captions=files.load_json(CAPTIONS),
        keys=files.load_json(KEYS)["train"],
        fixed_text=experiments.fixed_text(job.params, arm),
        images=functools.partial(files.load_array, images, mmap=True),
        images_checksum=files.checksum(images),
    )


def load_network(job, arm, round_, kind, model):
    """Gives the network of a model the weights of an arm after a round, and puts it on the device in evaluation mode.

    round_   0: the weights that training begins with
    kind     raw or ema; of round 0 there is one
    """
    from stages.diffusion import weights

    if round_ == 0:
        weights.load(model.network, model.first_weights(job.seed), "round 0")
    else:
        path = _weights_file(job, arm, round_, kind)
        weights.load(model.network, files.load_arrays(path), path)
    model.network.to(job.device).eval()


def profiled(job, arm, model, images, groups):
    """A model of an arm, with its weights loaded, and images, as loss_profile.losses looks at them.

    images    dict: train, heldout, each a [n,H,W,C] uint8 array
    groups    list of (train or heldout, [n] indices of images of that part)
    Returns   see kinds.Model.profiled; of the images of all groups, one group after the other
    """
    import numpy as np
    import torch

    from stages.diffusion import ddpm

    def of_groups(by_part):
        return [by_part[part][i] for part, index in groups for i in index]

    def on_device(values):
        return torch.from_numpy(np.stack(of_groups(values))).to(job.device)

    labels = captions = None
    if model.num_classes:
        labels = on_device({part: files.load_array(files.DATA / f"{part}_labels.npy") for part in images})
    if experiments.is_text(job.params):
        fixed = experiments.fixed_text(job.params, arm)
        captions = [fixed or texts[0] for texts in of_groups(files.load_json(CAPTIONS))]
    x_0 = ddpm.normalise(on_device(images).permute(0, 3, 1, 2).contiguous())
    return model.profiled(x_0, labels, captions)


def memory_told(job):
    """What a stage takes of its GPU's memory by estimate, and how much there is, in words; "" on the CPU and without an estimate."""
    found = _memory(job)
    return _in_words(*found) if found else ""


def _check_memory(job):
    """Says so where a stage takes more memory than its GPU has for it.

    Raises   ValueError: the weights alone do not fit
    """
    if (found := _memory(job)) is None:
        return
    needed, batch_size, has = found
    fixed = needed["weights"] + needed["frozen"]
    if fixed > has:
        raise ValueError(
            f"{_in_words(*found)}: no smaller batch helps, so use another GPU, fewer stages a GPU ({device.SLOTS}) or a smaller "
            "model.pipeline"
        )
    if fixed + (batch_size or 1) * needed["image"] > has:
        precision = job.params["compute"]["precision"]
        advice = "a smaller data.size" if precision == "bf16" else "compute.precision: bf16 or a smaller data.size"
        if batch_size and (fitting := int((has - fixed) // needed["image"])):
            advice = f"train.batch_size {fitting}, {advice}"
        print(f"{_in_words(*found)}: where it does not suffice, try {advice} (params.yaml)", file=sys.stderr)


def _memory(job):
    """What a stage takes of its GPU's memory by estimate.

    Returns   dict as kinds.memory_needed gives it; images at a time in training, None where the stage only samples, and goes down to
              one image by itself; bytes that the GPU has. None on the CPU, and for a kind of model that has no estimate
    """
    if (has := device.memory(job.device)) is None:
        return None
    precision, batch_size = job.params["compute"]["precision"], None
    if job.phase == "train":
        settings = experiments.section(job.params, "train", job.arm)
        batch_size = settings["batch_size"]
        more = {"batch_size": batch_size, "keeps_ema": bool(settings["ema_decay"])}
    else:
        more = {"guidance": experiments.section(job.params, "sample", job.arm).get("guidance", 1)}
    needed = _kind(job).memory_needed(job.params["model"], _image_shape(), precision, **more)
    made_by = job.params["arms"][experiments.maker(job.params, job.arm)]
    if needed and job.phase != "train" and experiments.trains_apart(made_by):
        needed = needed | {"weights": made_by["shard"]["num_shards"] * needed["weights"]}
    return needed and (needed, batch_size, has)


def _in_words(needed, batch_size, has):
    size = files.text_of_size
    what, images = f"weights {size(needed['weights'])}", f"one image {size(needed['image'])}"
    if batch_size:
        what = f"weights, gradients and Adam's moments {size(needed['weights'])}"
        images = f"a batch of {batch_size} images {size(batch_size * needed['image'])}"
    total = needed["weights"] + needed["frozen"] + (batch_size or 1) * needed["image"]
    return (
        f"by estimate this takes {size(total)} of device memory ({what}, text encoder and VAE {size(needed['frozen'])}, {images}), "
        f"and the GPU has {size(has)} for it"
    )

"""What phases need to know of an experiment (the parsed params.yaml): its arms, its seeds, the settings of a phase for an arm."""

import contextlib

from stages.iet import rounds
from stages.run import cli, closure, declarations, files


def trained(experiment):
    """The arms that are trained here, by name; the others are generators, whose images are only measured."""
    return {arm: recipe for arm, recipe in experiment["arms"].items() if "generator" not in recipe}


def maker(experiment, arm):
    """The arm whose training makes the model that an arm's images come from; None where that is a generator from elsewhere."""
    recipe = experiment["arms"][arm]
    return recipe["generator"].get("arm") if "generator" in recipe else arm


# The modules that make or read such images; a phase imports them by name, so that other arms do not depend on them.
FOREIGN = ("stages.image_sets.elsewhere", "stages.diffusion.saved_pipeline")
SOURCES = ("folder", "file", "pipeline")  # of images of a generator from elsewhere


def source_of(generator):
    """The path that a section arms.<arm>.generator names."""
    return next(generator[kind] for kind in SOURCES if kind in generator)


def seeds_of(experiment, arm):
    """The seeds that an arm is run with: all, or the first where its images are the same for each (a folder, a file)."""
    fixed = {"folder", "file"} & experiment["arms"][arm].get("generator", {}).keys()
    return experiment["seeds"][:1] if fixed else experiment["seeds"]


def runs(experiment, arms=None):
    """Every arm with each of its seeds, in the order of params.yaml: list of (arm, seed). arms: some of them; None: all."""
    arms = experiment["arms"] if arms is None else arms
    return [(arm, seed) for arm in arms for seed in seeds_of(experiment, arm)]


def sampled_rounds(experiment, arm):
    """The rounds whose averaged model an arm's images are made by, ascending: those of sample_rounds, or the last one.

    An arm that samples another arm's model has that arm's last round; a generator from elsewhere has no rounds: [None].
    """
    if (made_by := maker(experiment, arm)) is None:
        return [None]
    last, asked = experiment["arms"][made_by]["rounds"], asked_rounds(experiment, arm) if made_by == arm else None
    if asked == "all":
        recipe = experiment["arms"][arm]["redistribute"]
        return [r for r in range(1, last + 1) if rounds.averages_after(recipe, r)]
    return sorted(asked) if asked else [last]


def asked_rounds(experiment, arm):
    """What sample_rounds says of a trained arm: a list, "all", or None. It is no key of the section sample, all of which a sample stage
    depends on: so a further round makes nothing else stale."""
    return experiment["arms"][arm].get("sample_rounds", experiment.get("sample_rounds"))


def sampled(experiment, arms=None):
    """Everything that is sampled and measured: list of dicts with arm, seed and round, arm by arm. arms: some of them; None: all."""
    return [
        {"arm": arm, "seed": seed, "round": r}
        for arm, seed in runs(experiment, arms)
        for r in sampled_rounds(experiment, arm)
    ]


def last_sampled(experiment, arm):
    """The round that stands for an arm wherever one number does: the last one that is sampled; None without rounds."""
    return sampled_rounds(experiment, arm)[-1]


def is_text(experiment):
    """Whether the model is one with captions."""
    return "pipeline" in experiment.get("model", {})


def kind(experiment):
    """The kind of its model, which is the name of a package of stages/: pixels or text."""
    return "text" if is_text(experiment) else "pixels"


def fixed_text(experiment, arm):
    """The text that a trained arm shows the network in the place of all captions, and is asked for; None where it has captions."""
    settings = section(experiment, "train", arm)
    return settings["caption_text"] if settings.get("caption") == "fixed_text" else None


def section(experiment, phase, arm):
    """The settings of one phase of one arm: the shared section of that name with the arm's own over it.

    A generator from elsewhere has one kind of weights, called raw, and one part; of a folder or a file all images are taken
    (num_images None) unless the arm itself says how many. An arm that samples from another arm's model takes nothing of that
    arm's settings.
    """
    recipe = experiment["arms"][arm]
    settings = {**experiment.get(phase, {}), **recipe[phase]}
    if phase == "sample" and maker(experiment, arm) is None:
        settings |= {"weights": ["raw"], "parts": 1}
        if "pipeline" not in recipe["generator"]:
            settings["num_images"] = recipe["sample"].get("num_images")
    return settings


def trains_apart(recipe):
    """Whether the models of an arm's shards are trained apart, and their predictions averaged in the place of their weights."""
    return recipe.get("shard", {}).get("combine") == "predictions"


def teacher_of(experiment, arm):
    """The arm whose models teach a trained arm; None where there is none."""
    return experiment["arms"][arm]["method"].get("teacher")


def current_shards(recipe, run, round_):
    """Folder of the index lists that hold in a round: shard<k>.npy, [n] int64 sorted."""
    return files.folder("shards", run, rounds.round_of_shards(recipe["redistribute"], round_))


def model_before(recipe, run, round_, shard):
    """Folder of the weights that a round after the first begins with: the average, or the shard's own where there was none."""
    averaged = rounds.averages_after(recipe["redistribute"], round_ - 1) and not trains_apart(recipe)
    return files.folder("model", run, round_ - 1) if averaged else files.folder("train", run, round_ - 1, shard)


def model_of_round(experiment, arm, seed, round_):
    """What the averaged model of a trained arm depends on: dict with its folder, and the code of its method, its kind and its network."""
    return {
        "model": str(files.folder("model", files.run_name(arm, seed), round_)),
        "method": method_source(experiment, arm),
        "kind": f"stages/{kind(experiment)}",
        "architecture": architecture(experiment),
    }


def teacher_files(experiment, arm, seed):
    """What the teachers of an arm are read from: dict with the folders of their weights, of the last round, and of their shards; {} without."""
    if (teacher := teacher_of(experiment, arm)) is None:
        return {}
    recipe, run = experiment["arms"][teacher], files.run_name(teacher, seed)
    return {
        "teacher": str(files.folder("model", run, recipe["rounds"])),
        "teacher_shards": str(current_shards(recipe, run, recipe["rounds"])),
    }


def final_model(experiment, arm, seed):
    """The same of the round that stands for the arm, the last one that is sampled."""
    return model_of_round(experiment, arm, seed, last_sampled(experiment, arm))


def copies_by_sscd(experiment):
    """Whether similarity decides if an image has leaked: for a model with captions and weights of SSCD. Otherwise its ratio decides."""
    return is_text(experiment) and "weights" in experiment.get("similarity", {})


def load_shards(recipe, run, round_):
    """The K index lists that hold in a round: list of [n] int64."""
    folder = current_shards(recipe, run, round_)
    return [files.load_array(folder / f"shard{k}.npy") for k in range(recipe["shard"]["num_shards"])]


def load_counts(recipe, run):
    """What happened in training: a list of rounds, each the list of its K shards, each the named arrays of its counts file."""
    return [
        [files.load_arrays(files.counts_file(run, r, k)) for k in range(recipe["shard"]["num_shards"])]
        for r in range(1, recipe["rounds"] + 1)
    ]


@contextlib.contextmanager
def stage(phase, description, arguments, check=None):
    """One stage instance of a phase, from its command line to its end.

    phase       PHASE of its module
    check       function of the experiment: what holds within the phase's own settings
    Yields      namespace with phase (its name), params, key, device, and as far as the phase has them arm, recipe, run, seed, round, shard, part
    Raises      ValueError: params.yaml is wrong, or has no such arm, seed, round, shard or part
    """

    def prepare(job):
        if check:
            check(job.params)
        if hasattr(job, "arm"):
            _check_place(phase, job)
            job.recipe, job.run = job.params["arms"][job.arm], files.run_name(job.arm, job.seed)

    with cli.stage(phase, description, arguments, prepare) as job:
        yield job


def stage_with_reference(phase, description, arguments, reference, measure, check=None):
    """One stage instance of a phase of two kinds: `--reference`, for what all runs share, and those of an arm and seed.

    reference, measure   functions of the job, which claim its device
    """
    with stage(phase, description, arguments, check) as job:
        (measure if hasattr(job, "arm") else reference)(job)


def code_of(job):
    """Source files that the results of a job with a network depend on: those of its phase, of its arm's training method, of its kind of model."""
    modules = [f"stages.{job.phase}"]
    if (made_by := maker(job.params, job.arm)) is None:
        modules += FOREIGN
    else:
        method = job.params["arms"][made_by]["method"]["name"]
        modules += [f"stages.methods.{method}", f"stages.{kind(job.params)}"]
    return [closure.ROOT / path for path in closure.files(*modules)]


def _check_place(phase, job):
    """Raises ValueError if params.yaml has no such arm, seed, round, shard or part, or the arm has no such phase."""
    arms = job.params["arms"]
    if job.arm not in arms:
        raise ValueError(f"there is no arm {job.arm}, expected one of {', '.join(arms)} (params.yaml, arms)")
    if phase["arms"] == "trained" and "generator" in arms[job.arm]:
        raise ValueError(f"arms.{job.arm} is a generator from elsewhere, which has no phase {job.phase} (params.yaml)")
    if job.seed not in (seeds := seeds_of(job.params, job.arm)):
        raise ValueError(f"there is no seed {job.seed}, expected one of {seeds} (params.yaml, seeds)")
    if phase["per"] in cli.SAMPLED:
        if job.round not in (expected := sampled_rounds(job.params, job.arm)):
            if job.round is None:
                raise ValueError(f"the argument --round is missing: {job.arm} is sampled after rounds {expected}")
            told = (
                "no --round, as it is trained elsewhere" if expected == [None] else f"one of {expected} (sample_rounds)"
            )
            raise ValueError(f"round {job.round} of {job.arm} is not sampled, expected {told}")
    elif hasattr(job, "round") and not 1 <= job.round <= arms[job.arm]["rounds"]:
        raise ValueError(f"round {job.round} of {job.arm} does not exist, expected 1 to {arms[job.arm]['rounds']}")
    if hasattr(job, "shard") and job.shard not in range(num := arms[job.arm]["shard"]["num_shards"]):
        raise ValueError(f"shard {job.shard} of {job.arm} does not exist, expected 0 to {num - 1}")
    if hasattr(job, "part") and job.part not in range(num := section(job.params, "sample", job.arm)["parts"]):
        raise ValueError(f"part {job.part} of {job.arm} does not exist, expected 0 to {num - 1}")


def method_source(experiment, arm):
    """The file or folder that the training method of an arm is written in."""
    return str(declarations.method_source(experiment["arms"][arm]["method"]["name"]))


def predicts_noise(experiment, arm):
    """Whether the network of a trained arm predicts the noise on an image, given the timestep."""
    return declarations.methods()[experiment["arms"][arm]["method"]["name"]]["PREDICTS_NOISE"]


def architecture(experiment):
    """What the network is built from, beside the code of its kind: the UNet's code, or the folder of the pipeline."""
    return experiment["model"]["pipeline"] if is_text(experiment) else "stages/diffusion/unet.py"

"""Rules between sections of params.yaml that belong to no single phase. All other rules are in the function `check` of each phase."""

from stages import experiments, phases
from stages.image_sets import SETS
from stages.run import declarations, params


def load(path=params.PARAMS_FILE):
    """params.yaml, with all of it checked: by the schema, and by all rules between its sections. See params.load."""
    experiment = params.read(path)
    check(experiment, path)
    return experiment


def check(experiment, path=params.PARAMS_FILE):
    """Raises ValueError at the first thing that the schema refuses, or rule that does not hold: a sentence that begins with the file."""
    params.check(experiment, path)
    try:
        phases.module("data").check(experiment)
        _check_kind(experiment)
        _check_model(experiment)
        phases.check(experiment)
        if "num_train" in experiment["data"]:
            phases.check_sizes(experiment, experiment["data"]["num_train"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_model(experiment):
    """What a network and a noise schedule can be."""
    model, diffusion = experiment["model"], experiment["diffusion"]
    for channels in model.get("block_channels", []):
        if channels % model["norm_groups"]:
            raise ValueError(
                f"model.block_channels has {channels}, expected multiples of model.norm_groups = {model['norm_groups']}"
            )
    for level in model.get("attention_levels", []):
        if level >= len(model["block_channels"]):
            raise ValueError(
                f"model.attention_levels has {level}, expected less than the number of levels in model.block_channels, "
                f"{len(model['block_channels'])}"
            )
    if diffusion and diffusion["beta_start"] > diffusion["beta_end"]:
        raise ValueError(
            f"diffusion.beta_start is {diffusion['beta_start']}, expected at most diffusion.beta_end = {diffusion['beta_end']}"
        )


def _check_kind(experiment):
    """What goes with a text-conditioned model, and what does not."""
    name = experiment["data"]["name"]
    if experiments.is_text(experiment):
        if not SETS[name].captions:
            known = [other for other, entry in SETS.items() if entry.captions]
            raise ValueError(
                f"data.name is {name}, whose images have no captions, but model.pipeline is trained with captions: use "
                f"{', '.join(known)}"
            )
        return
    for name, phase in declarations.phases().items():
        if phase.get("needs_captions") and name in experiment:
            raise ValueError(
                f"the section {name} looks into images that were made from prompts, and without model.pipeline there are none: remove it"
            )
        for key in phase.get("text_keys", ()):
            arms = [f"arms.{arm}." for arm, recipe in experiment["arms"].items() if key in recipe.get(name, {})]
            if places := [*([""] if key in experiment.get(name, {}) else []), *arms]:
                raise ValueError(f"{places[0]}{name}.{key} has no effect without model.pipeline: remove it")

"""Generates one part of an arm's images from the averaged model of a round, with raw and with EMA weights.

params    model, diffusion, compute, sample, arms.<arm>.sample, arms.<arm>.method (or arms.<arm>.generator)
reads     artifacts/model/<run>/round<r>, artifacts/data for the shape of an image, and with amg for the training images; or the images of a generator from elsewhere
writes    artifacts/samples/<run>/round<r>/part<p>/<weights>.npy: [M_p,H,W,C] uint8
          labels.npy: [M_p] int64, the classes asked for, where the model is class-conditional
          generations.jsonl: one line per image of a text model: the prompt used, the original prompt and the training image it belongs to
Image i starts from noise keyed by (seed, i), and parts are whole batches: their number changes no image. (A batch that
does not fit into memory is generated in pieces, which may differ from the whole in the last bit.) A checkpoint in scratch/ lets a
killed stage resume; SIGTERM, by which a scheduler warns, makes the stage write one and end.
"""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments, models
from stages.iet import rounds
from stages.run import checkpoint, cli, declarations, device, files, kept
from stages.run.instance import START_UP, Instance
from stages.run.pieces import InPieces
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "sample",
    "per": "part",
    "arms": "all",
    "device": True,
    "final": True,
    "arms_override": True,
    "text_keys": ["guidance", "images_per_prompt", "with_replacement"],
    "section": {
        "description": "sampling settings that all arms share",
        "required": ["num_images"],
        "properties": {
            "num_images": {"description": "number of images to generate per seed", "type": "integer", "minimum": 1},
            "parts": {"description": "number of stage instances among which the images are divided, at most one per batch", "default": 1, "type": "integer", "minimum": 1},
            "batch_size": {"description": "images generated per batch", "default": 64, "type": "integer", "minimum": 1},
            "protocol": {"description": "where sampling ends. paper: at t = 0, as in the authors' code; clean: at the image without noise", "default": "paper", "enum": ["paper", "clean"]},
            "num_steps": {"description": "DDIM steps. Where they do not divide diffusion.num_timesteps, the authors' code takes more than is asked for: 31 for 30 of 1000", "default": 50, "type": "integer", "minimum": 1},
            "guidance": {"description": "text model: scale of classifier-free guidance; 1: none", "type": "number", "minimum": 1},
            "images_per_prompt": {"description": "text model: images generated for each caption (default: 1)", "type": "integer", "minimum": 1},
            "mitigation": {"description": "what is changed while images are generated: of a text model prompts, their embeddings or guidance; of others amg, guidance away from the training images (default: nothing)", "$ref": "#/$defs/mitigation"},
            "with_replacement": {"description": "text model: captions are drawn with replacement, as in the authors' code (default: false)", "type": "boolean"},
            "weights": {"description": "weights to sample with. raw: the averaged weights; ema: their moving average", "default": ["raw", "ema"], "type": "array", "minItems": 1, "uniqueItems": True, "items": {"enum": ["raw", "ema"]}},
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Part(Instance):
    """One part of an arm's images.

    section        of the arm in params.yaml that says where its images come from: method or generator
    model          folder of the final weights
    method         code of the training method
    kind           code of the kind of model
    architecture   what the network is built from
    source         of a generator from elsewhere, in the place of those four: the folder or file
    """

    section: str
    model: str | None = None
    method: str | None = None
    kind: str | None = None
    architecture: str | None = None
    source: str | None = None

    writes = ("samples",)

    def size(self, scale):
        settings = experiments.section(scale.experiment, "sample", self.arm)
        return scale.num_generated(self.arm) * scale.values // settings["parts"]

    def work(self, scale):
        if self.section == "generator":
            return START_UP
        settings = experiments.section(scale.experiment, "sample", self.arm)
        made_by = scale.experiment["arms"][experiments.maker(scale.experiment, self.arm)]
        num_models = made_by["shard"]["num_shards"] if experiments.trains_apart(made_by) else 1
        # A forward pass is a third of a training pass.
        passes = settings["num_images"] * settings["num_steps"] * len(settings["weights"]) * num_models / 3
        return int(passes / settings["parts"]) + START_UP


def instances(experiment):
    found = []
    for place in experiments.sampled(experiment):
        arm, made_by = place["arm"], experiments.maker(experiment, place["arm"])
        fields = {"section": "generator" if "generator" in experiment["arms"][arm] else "method"}
        if made_by is None:
            block = "sample_elsewhere"
            fields["source"] = experiments.source_of(experiment["arms"][arm]["generator"])
        else:
            block = "sample"
            fields |= experiments.model_of_round(experiment, made_by, place["seed"], place["round"])
        for part in range(experiments.section(experiment, "sample", arm)["parts"]):
            found.append(Part(block=block, **place, part=part, **fields))
    return found


def check(experiment):
    """Raises ValueError if what an arm says of its images does not go together."""
    for arm in experiment["arms"]:
        _check_generator(experiment, arm)
        if experiments.maker(experiment, arm):
            _check_settings(experiment, arm)
        if "generator" not in experiment["arms"][arm]:
            _check_rounds(experiment, arm)


def _check_generator(experiment, arm):
    recipe = experiment["arms"][arm]
    generator = recipe.get("generator")
    if generator is None:
        return
    kinds = [kind for kind in (*experiments.SOURCES, "arm") if kind in generator]
    if len(kinds) != 1:
        raise ValueError(
            f"arms.{arm}.generator has {' and '.join(kinds) or 'no source of images'}, expected one of folder, file, pipeline and arm"
        )
    trained = experiments.trained(experiment)
    if kinds == ["arm"] and generator["arm"] not in trained:
        raise ValueError(
            f"arms.{arm}.generator.arm is {generator['arm']}, expected one of the arms that are trained here: "
            f"{', '.join(trained) or 'there is none'}"
        )
    if "resize" in generator and kinds != ["folder"]:
        raise ValueError(f"arms.{arm}.generator.resize has no effect on a {kinds[0]}: remove it")
    if kinds == ["arm"]:
        return
    for key in recipe["sample"]:
        if key not in (("num_images", "batch_size", "num_steps") if kinds == ["pipeline"] else ("num_images",)):
            raise ValueError(f"arms.{arm}.sample.{key} has no effect on the images of a {kinds[0]}: remove it")


def _check_settings(experiment, arm):
    """How images of an arm are made, by the model of this or of another arm that is trained here."""
    sample, diffusion = experiments.section(experiment, "sample", arm), experiment["diffusion"]
    made_by = experiments.maker(experiment, arm)
    if experiments.is_text(experiment) and "guidance" not in sample:
        raise ValueError("the key sample.guidance is missing (scale of classifier-free guidance; 1: none)")
    mitigation, held_out = sample.get("mitigation", {}), {"num_train", "heldout_share"} & experiment["data"].keys()
    if mitigation:
        _check_mitigation(experiment, arm, made_by, mitigation)
    if mitigation.get("name") == "wen" and "target" not in mitigation and not held_out:
        raise ValueError(
            f"sample.mitigation of {arm} has no target, and no image is held out from whose captions it could be computed: set "
            "data.heldout_share, or give sample.mitigation.target"
        )
    if not experiments.section(experiment, "train", made_by)["ema_decay"] and "ema" in sample["weights"]:
        raise ValueError(
            f"train.ema_decay of {made_by} is 0, so no averaged weights are kept, but sample.weights of {arm} names ema: set it to [raw]"
        )
    if diffusion and 2 * sample["num_steps"] > diffusion["num_timesteps"]:
        raise ValueError(
            f"sample.num_steps of {arm} is {sample['num_steps']}, expected at most half of diffusion.num_timesteps = "
            f"{diffusion['num_timesteps']}: DDIM visits every n-th timestep, n at least 2"
        )
    num_batches = -(-sample["num_images"] // sample["batch_size"])
    if sample["parts"] > num_batches:
        raise ValueError(
            f"sample.parts of {arm} is {sample['parts']}, but its {sample['num_images']} images in batches of "
            f"{sample['batch_size']} are {num_batches} batches: use at most {num_batches} parts"
        )


def _check_mitigation(experiment, arm, made_by, mitigation):
    name, kind = mitigation["name"], "text" if experiments.is_text(experiment) else "pixels"
    told = f"sample.mitigation of {arm} is {name}, "
    if name not in (fitting := declarations.mitigations()[kind]):
        whose = {"text": "a model with captions (model.pipeline)", "pixels": "a model without captions"}[kind]
        raise ValueError(f"{told}which does not go with {whose}: use {', '.join(fitting)}, or remove it")
    if name != "amg":
        return
    method = experiment["arms"][made_by]["method"]["name"]
    if not experiments.predicts_noise(experiment, made_by):
        raise ValueError(f"{told}which does not go with arms.{made_by}.method.name {method}: remove it")
    if mitigation["start"] > mitigation["level"]:
        raise ValueError(
            f"{told}with start {mitigation['start']} and level {mitigation['level']}, expected start <= level"
        )


def _check_rounds(experiment, arm):
    """That the rounds to be sampled are rounds of the arm which end with an averaged model."""
    asked, recipe = experiments.asked_rounds(experiment, arm), experiment["arms"][arm]
    if asked in (None, "all"):
        return
    if missing := [r for r in asked if r > recipe["rounds"]]:
        raise ValueError(
            f"sample_rounds of {arm} names round {_listed(missing)}, but the arm has {recipe['rounds']} (arms.{arm}.rounds)"
        )
    if moving := [r for r in asked if not rounds.averages_after(recipe["redistribute"], r)]:
        raise ValueError(
            f"sample_rounds of {arm} names round {_listed(moving)}, which ends with moving images and without an averaged model "
            "(redistribute.schedule: alternating): use even rounds"
        )


def _listed(numbers):
    return ", ".join(map(str, numbers))


def check_sizes(experiment, num_train):
    """Raises ValueError if a text-conditioned arm asks for more captions than there are training images, or amg for more neighbours."""
    for arm in experiment["arms"]:
        mitigation = experiments.section(experiment, "sample", arm).get("mitigation", {})
        of_amg = mitigation.get("name") == "amg" and experiments.maker(experiment, arm) is not None
        if of_amg and mitigation["neighbours"] > num_train:
            raise ValueError(
                f"sample.mitigation.neighbours of {arm} is {mitigation['neighbours']}, but there are {num_train} training images: use at most "
                "that number"
            )
    for arm in experiment["arms"] if experiments.is_text(experiment) else ():
        sample, made_by = experiments.section(experiment, "sample", arm), experiments.maker(experiment, arm)
        if made_by is None or experiments.fixed_text(experiment, made_by):
            continue
        num_prompts = -(-(sample["num_images"] or 0) // sample.get("images_per_prompt", 1))
        if not sample.get("with_replacement") and num_prompts > num_train:
            raise ValueError(
                f"sample.num_images of {arm} asks for {num_prompts} captions, but there are {num_train} training images: "
                "generate fewer images, or more for each caption (sample.images_per_prompt)"
            )


def check_files(experiment):
    """Raises ValueError if what a generator from elsewhere is read from is not there, or would be removed with artifacts/."""
    for arm, recipe in experiment["arms"].items():
        if experiments.maker(experiment, arm) is None:
            path = experiments.source_of(recipe["generator"])
            files.check_outside(path, f"{path} of arms.{arm}.generator", "your images")
            if not Path(path).exists():
                raise ValueError(
                    f"{path}, from which arms.{arm}.generator takes its images, does not exist (params.yaml)"
                )


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments, check) as job:
        job.device = device.claim(job.params["compute"])
        settings = experiments.section(job.params, "sample", job.arm) | {
            "precision": job.params["compute"]["precision"]
        }
        shape = files.shape_of(files.DATA / "train.npy")[1:]
        maker = experiments.maker(job.params, job.arm)
        if maker is None and "pipeline" not in job.recipe["generator"]:
            elsewhere = importlib.import_module("stages.image_sets.elsewhere")
            value_range = files.load_json(files.RANGE) if files.RANGE.exists() else None
            images = elsewhere.images(job.recipe["generator"], shape, settings["num_images"], Progress, value_range)
            _write(job, {"raw": images})
            return
        from stages.diffusion import amg, sampling
        from stages.methods import compiling

        first, last = sampling.part_of(settings["num_images"], settings["batch_size"], job.part, settings["parts"])
        if maker is None:
            saved_pipeline = importlib.import_module("stages.diffusion.saved_pipeline")
            path = Path(job.recipe["generator"]["pipeline"])
            source = saved_pipeline.Source(path, shape, job.seed, settings["num_steps"], job.device)
            inputs = source.files
        else:
            source, inputs = models.source(job, maker, job.round, settings, sampling)
            if device.compile_mode(job.params["compute"], job.device) == "graph":
                compiling.by_graph(source.network)
            mitigation = settings.get("mitigation") or {}
            if mitigation.get("name") == "amg":
                path = files.DATA / "train.npy"
                train = files.load_array(path)
                source.guidance = amg.Guidance(
                    mitigation, train, job.device, _not_near_copies(job, mitigation, train, path)
                )
                inputs = [*inputs, path]
        sections = [job.params[name] for name in ("model", "diffusion", "compute")]
        saved = checkpoint.Checkpoint(job, [settings, job.recipe, *sections], inputs, experiments.code_of(job))
        images = {kind: np.zeros((last - first, *shape), np.uint8) for kind in settings["weights"]}
        _generate(job, maker, source, images, first, settings["batch_size"], saved)
        _write(job, images, source.labels(first, last), source.records(first, last))
        saved.remove()


def _not_near_copies(job, mitigation, train, path):
    """See amg.not_near_copies: [M] bool array, found once for all parts, rounds and seeds."""
    from stages.diffusion import amg

    def rows():
        yield amg.not_near_copies(amg.vectors(train).to(job.device), mitigation["neighbours"]).cpu().numpy()

    return kept.keep("not_near_copies", [mitigation["neighbours"]], [path], len(train), rows) > 0


def _generate(job, maker, source, images, first, batch_size, saved):
    """Generates images in whole batches, with each kind of weights in turn, from wherever the checkpoint stands.

    maker    the arm whose weights they are; None where the source has its own
    images   dict kind of weights -> [n,H,W,C] uint8 array of the images first..first+n-1, which are filled in
    """
    count = len(next(iter(images.values())))
    done, total, measured = 0, count * len(images), False
    if unfinished := saved.saved():
        done = int(unfinished["done"][0])
        for kind, array in images.items():
            array[:] = unfinished[kind]

    def so_far():
        return images | {"done": np.array([done])}

    def before_a_pass(*_):  # a batch may take longer than a scheduler waits
        if saved.look() and saved.told_to_stop:
            saved.save_if_due(so_far, f"image {done} of {total}")

    source.network.register_forward_pre_hook(before_a_pass)
    in_pieces, progress = InPieces(source.generate), Progress(f"sample@{job.key}", "images", begun=done)
    for i, (kind, array) in enumerate(images.items()):
        if maker is not None:
            models.load(job, maker, job.round, kind, source)
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            if (until := i * count + stop) <= done:
                continue
            largest = None if measured else device.LargestBatch(job.device)
            array[start:stop] = in_pieces(first + start, first + stop)
            if largest and in_pieces.largest is None and (told := largest.told(stop - start)):
                print(told, file=sys.stderr)
            measured, done = True, until
            progress.update(done, total)
            saved.save_if_due(so_far, f"image {done} of {total}")


def _write(job, images, labels=None, records=()):
    with files.publish(files.folder("samples", job.run, job.round, part=job.part)) as folder:
        for kind, array in images.items():
            files.save_array(folder / f"{kind}.npy", array)
        if labels is not None:
            files.save_array(folder / "labels.npy", labels)
        if records:
            lines = [json.dumps(record, ensure_ascii=False) for record in records]
            files.write_text(folder / "generations.jsonl", "\n".join(lines) + "\n")


if __name__ == "__main__":
    cli.run(main)

"""The plan: every stage instance of the experiment with its predecessors, derived from params.yaml alone.

dvc.yaml loops over plan.yaml because DVC's templates have no arithmetic and cannot say "round r - 1". The file is committed
like a lock file. `python -m stages.plan` checks params.yaml and mends plan.yaml when the structure of the experiment
changed (arms, seeds, shards, rounds, parts): it also removes what instances that left the plan have made, which would
otherwise be read as part of a folder, and ends with an error that says to run the same command again.
"""

import shutil
import sys
from pathlib import Path

import yaml

from stages import clip, detect, image_sets, inception_weights, methods, params, similarity
from stages.image_sets import elsewhere
from stages.run import cli, files, processes
from stages.text import model as pipeline

PLAN_FILE = Path("plan.yaml")
HEAD = "# Derived from params.yaml by stages/plan.py, which renews it: do not edit, do commit.\n"
# In the place of the counts of a round before, where images moved after that or there is none: the code that deals them anew.
NO_COUNTS = "stages/iet/sharding.py"
# DVC wants a file for every dependency. Round 1 follows no round: its model and state come from the code that makes them.
INITIAL_MODEL = "stages/diffusion/initial_weights.py"
INITIAL_STATE = "stages/iet/shard_state.py"
# What builds the network of a stage, or reads images from elsewhere, beside a method; and the folder of a model that is fine-tuned,
# or code in its place.
NETWORK = {"network": "stages/network.py", "folder": "stages/methods/__init__.py"}
TEXT_NETWORK = "stages/text"
AUDIT = {**NETWORK, "method": "stages/image_sets/elsewhere.py", "network": "stages/image_sets/folders.py"}
# What says which images a set has where DVC need not watch a folder: the pinned packages, which hold the images or check them.
# The folder of such a set may be missing, too, until a download makes it.
PINNED_DATA = "requirements.txt"
ONE_OF_A_KIND = ("data", "report")  # phases of a single stage: their entry in the plan holds what it reads
# The pinned torch-fidelity knows address and checksum of the Inception weights where they are to be fetched.
FETCHED_WEIGHTS = "requirements.txt"
# What the report depends on where a phase is left out: the code that says so.
NO_QUALITY = "stages/inception_weights.py"
NO_SIMILARITY, NO_CLIP, NO_DETECT = "stages/similarity.py", "stages/clip.py", "stages/detect.py"
# The features of the training images come after no other stage of their phase, but from weights that this looks at.
NO_REFERENCE = "stages/run/weight_files.py"


def expand(experiment):
    """All stage instances of an experiment, a pure function of its parameters.

    experiment   params.yaml as a dict
    Returns      dict phase -> dict key -> fields of dvc.yaml; a key is <arm>-seed<S>[-round<r>][-shard<k> | -part<p>]
    """
    phases = (
        "shard",
        "train",
        "aggregate",
        "redistribute",
        "sample",
        "score",
        "quality",
        "similarity",
        "clip",
        "detect",
        "analyse",
    )
    folder = experiment["model"].get("pipeline")
    network = {"network": TEXT_NETWORK, "folder": folder} if folder else NETWORK
    plan = {phase: {} for phase in phases}
    for arm, recipe in experiment["arms"].items():
        num_parts = params.section(experiment, "sample", arm)["parts"]
        for seed in params.seeds_of(experiment, arm):
            run = files.run_name(arm, seed)
            this = {"arm": arm, "seed": seed, "run": run}
            if (other := params.maker(experiment, arm)) is None:
                made = {"section": "generator", **AUDIT, "model": elsewhere.source(recipe["generator"])}
            else:
                trains, trained = "generator" not in recipe, experiment["arms"][other]
                if trains:
                    _expand_training(plan, recipe, this, network)
                model = str(files.model_dir(files.run_name(other, seed), trained["rounds"]))
                made = {
                    "section": "method" if trains else "generator",
                    "method": _method_of(trained),
                    **network,
                    "model": model,
                }
                if clip.wanted(experiment):
                    plan["clip"][run] = this | {"weights": experiment["clip"]["model"]}
                if arm in detect.arms(experiment):
                    plan["detect"][run] = this | {"method": made["method"], **network, "model": model}
                if "analyse" in experiment and trains:
                    by_sscd = params.is_text(experiment) and similarity.wanted(experiment)
                    plan["analyse"][run] = this | {
                        "method": made["method"],
                        "model": model,
                        "network": network["network"],
                        "nearest": str((files.similarity_dir if by_sscd else files.score_dir)(run)),
                    }
            for p in range(num_parts):
                plan["sample"][f"{run}-part{p}"] = this | {"part": p} | made
            plan["score"][run] = dict(this)
    data = experiment["data"]
    source = PINNED_DATA if image_sets.SETS[data["name"]].pinned else data["root"]
    if inception_weights.wanted(experiment):
        plan["quality"] = _quality(experiment["quality"], plan["score"])
    if similarity.wanted(experiment):
        plan["similarity"] = _similarity(experiment["similarity"], plan["score"])
    # DVC wants a dependency to be there: where a phase is left out the report has a file of code in the place of its results.
    report = {
        "counts": "artifacts/counts" if plan["train"] else "stages/train.py",
        "quality": str(files.QUALITY) if plan["quality"] else NO_QUALITY,
        "similarity": str(files.SIMILARITY) if plan["similarity"] else NO_SIMILARITY,
        "clip": str(files.CLIP) if plan["clip"] else NO_CLIP,
        "detect": str(files.DETECT) if plan["detect"] else NO_DETECT,
        "analysis": str(files.ANALYSIS) if plan["analyse"] else "stages/analyse.py",
    }
    return {"data": {"source": source}, **plan, "report": report}


def _expand_training(plan, recipe, this, network):
    """Adds all instances from the shards to the final model of one arm and seed."""
    num_shards, num_rounds, run = recipe["shard"]["num_shards"], recipe["rounds"], this["run"]
    plan["shard"][run] = dict(this)
    first_model = f"{network['folder']}/unet" if network is not NETWORK else INITIAL_MODEL

    def model_before(r, k):
        if r == 1:
            return first_model
        if files.averages_after(recipe, r - 1):
            return str(files.model_dir(run, r - 1))
        return f"{files.train_dir(run, r - 1, k)}/raw.safetensors"  # of the shard itself

    for r in range(1, num_rounds + 1):
        shards = str(files.current_shards_dir(recipe, run, r))
        for k in range(num_shards):
            plan["train"][f"{run}-round{r}-shard{k}"] = this | {
                "round": r,
                "shard": k,
                "method": _method_of(recipe),
                **network,
                "index": f"{shards}/shard{k}.npy",
                "model": model_before(r, k),
                "state": str(files.train_dir(run, r - 1, k)) if r > 1 else INITIAL_STATE,
            }
        if files.averages_after(recipe, r):
            plan["aggregate"][f"{run}-round{r}"] = this | {"round": r}
        if files.moves_after(recipe, r) and r < num_rounds:
            before = r > 1 and not files.moves_after(recipe, r - 1)
            plan["redistribute"][f"{run}-round{r}"] = this | {
                "round": r,
                "shards": shards,
                "counts_before": str(files.counts_dir(run, r - 1, 0).parent) if before else NO_COUNTS,
                "next_shards": str(files.shards_dir(run, r + 1)),
            }


def _quality(settings, runs):
    """The reference, which goes through the training images once, and a stage a run, which reads it."""
    reference = {
        "run": files.REFERENCE,
        "arguments": "--reference",
        "images": str(files.DATA),
        "network": settings.get("weights", FETCHED_WEIGHTS),
    }
    return {reference["run"]: reference} | {
        run: {
            "run": run,
            "arguments": f"--arm {item['arm']} --seed {item['seed']}",
            "images": str(files.samples_dir(run, 0).parent),
            "network": str(files.quality_dir(files.REFERENCE)),
        }
        for run, item in runs.items()
    }


def _similarity(settings, runs):
    """As the quality phase: the reference, and a stage a run, which reads it."""
    reference = {
        "run": files.REFERENCE,
        "arguments": "--reference",
        "reads": settings["weights"],
        "reference": NO_REFERENCE,
    }
    return {reference["run"]: reference} | {
        run: {
            "run": run,
            "arguments": f"--arm {item['arm']} --seed {item['seed']}",
            "reads": str(files.samples_dir(run, 0).parent),
            "reference": str(files.similarity_dir(files.REFERENCE)),
        }
        for run, item in runs.items()
    }


def left_out(experiment):
    """Which measures are left out, mostly for lack of weights: a sentence each. Of similarity, CLIP score and detector it is said
    only where they belong to what is measured, in experiments with captions, or where a section is there without weights.
    The safety checker of a model is left out too."""
    text = params.is_text(experiment)
    measures = [("quality", inception_weights), ("similarity", similarity), ("clip", clip), ("detect", detect)]
    told = [
        measure.LEFT_OUT
        for name, measure in measures
        if (text or name == "quality" or name in experiment) and not measure.wanted(experiment)
    ]
    if text and pipeline.has_safety_checker(folder := experiment["model"]["pipeline"]):
        told.append(f"the safety checker of {folder} is left out, as what it blacks out could not be measured")
    return told


def _method_of(recipe):
    return str(methods.source_of(recipe["method"]["name"]))


def check_source(experiment):
    """Raises ValueError if the image folder is gone and no decoded copy of it is there either, or would not be safe, or the
    weights of a measure are missing or others; says so on stderr where DVC will not notice changes of the images."""
    inception_weights.check(experiment)
    similarity.check(experiment)
    clip.check(experiment)
    if params.is_text(experiment):
        folder = experiment["model"]["pipeline"]
        if Path(folder).resolve().is_relative_to(files.ARTIFACTS.resolve()):
            raise ValueError(
                f"model.pipeline = {folder} lies in artifacts/, which is cleared of what no stage makes: move the model"
            )
        pipeline.check(folder)
    data = experiment["data"]
    root = data.get("root")
    if root and Path(root).resolve().is_relative_to(files.ARTIFACTS.resolve()):
        raise ValueError(
            f"data.root = {root} lies in artifacts/, which is cleared of what no stage makes: move your images"
        )
    if root and not Path(root).is_dir() and not _is_decoded(data):
        image_sets.check_root(data)
    if linked := image_sets.linked_folders(data):
        print(
            f"{linked[0]}{f' and {len(linked) - 1} more' if linked[1:] else ''} in data.root: a link, behind which DVC does not "
            "look; when images change there, run: dvc repro --force --single-item data",
            file=sys.stderr,
        )
    for arm, recipe in experiment["arms"].items():
        path = elsewhere.source(recipe["generator"]) if params.maker(experiment, arm) is None else None
        if path and Path(path).resolve().is_relative_to(files.ARTIFACTS.resolve()):
            raise ValueError(
                f"{path} of arms.{arm}.generator lies in artifacts/, which is cleared of what no stage makes: move your images"
            )
        if path and not Path(path).exists():
            raise ValueError(f"{path}, from which arms.{arm}.generator takes its images, does not exist (params.yaml)")


def _is_decoded(data):
    """Whether artifacts/data holds the images of this section data, by DVC's record."""
    recorded = recorded_stages().get("data", {}).get("params", {}).get(params.PARAMS_FILE, {}).get("data")
    return files.DATA.exists() and recorded == data


def stage_names(plan):
    """Names of all stages of dvc.yaml: phase@key, and those that there is one of."""
    instances = {f"{phase}@{key}" for phase, keys in plan.items() if phase not in ONE_OF_A_KIND for key in keys}
    return instances | {"plan", "data", "report"}


def output_folders(plan):
    """Folders and files of artifacts/ that instances of the plan make, one level per phase, as paths."""
    outputs = [files.PLAN_OK, files.DATA, files.REPORT]
    for item in plan["shard"].values():
        outputs.append(files.shards_dir(item["run"], 1))
    for item in plan["train"].values():
        outputs.append(files.train_dir(item["run"], item["round"], item["shard"]))
        outputs.append(files.counts_dir(item["run"], item["round"], item["shard"]))
    outputs += [files.model_dir(item["run"], item["round"]) for item in plan["aggregate"].values()]
    outputs += [Path(item["next_shards"]) for item in plan["redistribute"].values()]
    outputs += [files.samples_dir(item["run"], item["part"]) for item in plan["sample"].values()]
    outputs += [files.score_dir(item["run"]) for item in plan["score"].values()]
    outputs += [files.analysis_dir(item["run"]) for item in plan["analyse"].values()]
    outputs += [files.quality_dir(item["run"]) for item in plan["quality"].values()]
    outputs += [files.similarity_dir(item["run"]) for item in plan["similarity"].values()]
    outputs += [files.clip_dir(item["run"]) for item in plan["clip"].values()]
    outputs += [files.detect_dir(item["run"]) for item in plan["detect"].values()]
    return outputs


def text(plan):
    """The content of plan.yaml."""
    return HEAD + yaml.safe_dump({"plan": plan}, sort_keys=False, width=200)


def refresh(plan, dry_run=False):
    """Makes plan.yaml, artifacts/ and dvc.lock agree with a plan.

    dry_run   write plan.yaml, which DVC needs to say what would run, but remove nothing
    Returns   list of sentences that say what was changed; empty if all agreed
    """
    changes = []
    old = PLAN_FILE.read_text(encoding="utf-8") if PLAN_FILE.exists() else ""
    if old != text(plan):
        before = _stages_of(old)
        added, removed = stage_names(plan) - before, before - stage_names(plan)
        files.write_text(PLAN_FILE, text(plan))
        names = (
            f"now has {len(added)} new stages and {len(removed)} fewer old ones" if added or removed else "was renewed"
        )
        changes.append(f"plan.yaml {names}")
    stray = _stray_artifacts(plan)
    gone = _stray_lock_entries(plan)
    if not dry_run:
        for path in stray:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _remove_lock_entries(gone)
    if stray or gone:
        verb = "would be removed" if dry_run else "were removed"
        changes.append(
            f"{len(stray)} folders or files of artifacts/ and {len(gone)} entries of dvc.lock that belong to no stage of the "
            f"plan {verb} (DVC's cache keeps their contents)"
        )
    return changes


def _stages_of(old):
    """Names of the stages of an earlier plan.yaml; none where it cannot be read, as after a merge with conflicts."""
    try:
        return stage_names(yaml.safe_load(old)["plan"])
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return set()


def _stray_artifacts(plan):
    """Paths under artifacts/ that no instance makes, the topmost of each."""
    expected = set(output_folders(plan))
    on_the_way = {parent for path in expected for parent in path.parents}
    stray = []

    def visit(folder):
        for path in sorted(folder.iterdir()):
            if path in expected:
                continue
            if path in on_the_way:
                visit(path)
            elif path.name != ".gitignore":
                stray.append(path)

    if files.ARTIFACTS.is_dir():
        visit(files.ARTIFACTS)
    return stray


def _stray_lock_entries(plan):
    return sorted(recorded_stages().keys() - stage_names(plan))


def recorded_stages():
    """What dvc.lock records: dict name of a stage -> its entry."""
    lock_file = Path("dvc.lock")
    if not lock_file.exists():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        recorded = (yaml.load(lock_file.read_text(encoding="utf-8"), loader) or {}).get("stages", {})  # noqa: S506
        return dict(recorded)
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError, TypeError, ValueError):
        raise ValueError(
            "dvc.lock cannot be read, as after a merge with conflicts: restore it (git checkout dvc.lock), or remove it and "
            "run the same command again, which then runs all stages"
        ) from None


def _remove_lock_entries(names):
    """Takes entries out of dvc.lock, under DVC's own lock and through DVC's own YAML, so the rest stays as it is."""
    if not names:
        return
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    processes.with_dvc_lock(lambda: _rewrite_lock(names, parse_yaml_for_update, dumps_yaml))


def _rewrite_lock(names, parse, dump):
    lock_file = Path("dvc.lock")
    content = parse(lock_file.read_text(encoding="utf-8"), str(lock_file))
    for name in names:
        content["stages"].pop(name, None)
    files.write_text(lock_file, dump(content))


def main(arguments):
    from stages.run import room  # which reads plans

    with cli.stage("plan", __doc__, arguments) as job:
        check_source(job.params)
        for sentence in left_out(job.params):
            print(sentence, file=sys.stderr)
        plan = expand(job.params)
        changes = refresh(plan)
        room.check(job.params)
        files.write_text(files.PLAN_OK, "params.yaml was found valid and plan.yaml up to date\n")
        if changes:
            print("; ".join(changes), file=sys.stderr)
            raise ValueError(
                "the structure of the experiment changed and the plan was renewed: run the same command again"
            )


if __name__ == "__main__":
    cli.run(main)

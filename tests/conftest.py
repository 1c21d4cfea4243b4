"""Temporary copies of the project with a tiny experiment on real digits, run through the doors people use."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import yaml

from stages import experiments, phases, plan  # sets one thread, before torch is imported: float sums depend on it
from stages.run import files
from stages.run import params as parameters  # sets one thread, before torch is imported: float sums depend on it

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "workflow/scripts"))  # tests import scripts by name
import checkout  # noqa: E402

# 60 digits in batches of 10; 20 timesteps, so that each cell of the bank is visited often enough for AGC to act.
TINY = """
seeds: [3]
data: {name: digits, num_train: 60, split_seed: 0}
model: {block_channels: [8, 16], attention_levels: [1], layers_per_block: 1, norm_groups: 4}
diffusion: {num_timesteps: 20, beta_start: 0.005, beta_end: 0.4}
compute: {device: cpu, threads: 1, precision: fp32}
train: {dropout: 0.1, batch_size: 10, learning_rate: 2.0e-3, warmup_steps: 5, grad_clip_norm: 1.0, ema_decay: 0.9, flip: false}
sample: {num_images: 50, parts: 2, batch_size: 20, protocol: paper, num_steps: 5, weights: [raw, ema]}
score: {neighbours: 20, thresholds: [0.4, 0.5, 0.6], grid_step: 0.1, headline: {protocol: l2_from_gen, threshold: 0.5, weights: raw}}
arms:
  ddpm:
    rounds: 1
    method: {name: ddpm}
    shard: {num_shards: 1}
    train: {epochs: 10}
    redistribute: {}
    sample: {}
  iet_agc_plus:
    rounds: 2
    method:
      name: agc
      lambda: 0.9
      eta: 0.8
      taa: {R: 2.0, A: 5.0, magnitude: 3, num_ops: 2, max_level: 30}
    shard: {num_shards: 2}
    train: {epochs: 10}
    redistribute: {share: 0.25, select: memory}
    sample: {}
"""


# Files whose tests take longest, in the order in which two workers take them: so that neither waits for the other at the end.
FIRST = [
    "test_pipeline",
    "test_text_memory",
    "test_quality",
    "test_arms",  # by then the finished run is there
    "test_retention",
    "test_plan",
    "test_survival",
    "test_adding",
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


class Project:
    """A copy of the project in a folder of its own."""

    def __init__(self, root):
        self.root = Path(root)

    @classmethod
    def create(cls, root, params):
        """The project's own files as a fresh clone would have them, with other parameters and nothing run yet."""
        own_results = ("dvc.lock", "plan.json", "metrics.json", "plots/", "params.yaml", "tests/", "benchmarks/")
        for name in checkout.own_files(ROOT):
            if not name.startswith(own_results):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        (root / "params.yaml").write_text(params)
        project = cls(root)
        if shutil.which("git"):
            project.run("git", "init", "-q", "-b", "main")
            project.run("git", "config", "user.email", "test@example.org")
            project.run("git", "config", "user.name", "test")
        project.run("python", "workflow/scripts/checkout.py")
        (root / "plan.json").write_text(plan.text(plan.expand(parameters.filled(yaml.safe_load(params)))))
        if shutil.which("git"):
            project.commit("start")
        return project

    def copy(self, root):
        """Everything, results and DVC's cache included, as a second workspace that shares nothing."""
        shutil.copytree(self.root, root, symlinks=True, dirs_exist_ok=True)
        return Project(root)

    def run(self, *command, check=True, timeout=900, env=None):
        """Runs a command in the project; returns the finished process with .text = stdout and stderr together."""
        if command[0] == "git" and not shutil.which("git"):
            pytest.skip("git is not installed")
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("REDISTRIBUTE", "DVC_", "SNAKEMAKE"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            **(env or {}),
        }
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        done.text = done.stdout
        assert not check or done.returncode == 0, f"{' '.join(map(str, command))} -> {done.returncode}\n{done.text}"
        return done

    def commit(self, message):
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def edit(self, **changes):
        """Changes params.yaml: path with '__' for '.', e.g. edit(arms__ddpm__rounds=2)."""
        params = self.params()
        for path, value in changes.items():
            section = params
            *folders, last = path.split("__")
            for folder in folders:
                section = section[folder]
            section[last] = value
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def keep_arm(self, arm):
        """Takes all other arms out of params.yaml."""
        self.edit(arms={arm: self.params()["arms"][arm]})

    def params(self):
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def lock(self):
        """dvc.lock as a mapping stage -> what was recorded."""
        return yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]

    def results(self):
        """Hashes of all outputs, by path."""
        return {out["path"]: out["md5"] for stage in self.lock().values() for out in stage.get("outs", [])}

    def stages_run(self, text):
        """Names of the stages in the output of `dvc repro`."""
        return set(re.findall(r"^Running stage '(.*)':", text, re.MULTILINE))


def text_experiment(**sections):
    """The tiny experiment with captions: 6 images in two parts."""
    tiny = yaml.safe_load((ROOT / "experiments/tiny/text.yaml").read_text())
    tiny["arms"] = {"default": tiny["arms"]["default"]}
    tiny["model"] = {"pipeline": "model"}
    tiny["data"]["num_train"] = 12
    tiny["score"]["neighbours"] = 5
    tiny["sample"] |= {"num_images": 6, "parts": 2, "batch_size": 4}
    return tiny | sections


def tiny_with(**sections):
    """The tiny experiment with further sections, or others in the place of its own."""
    return {**yaml.safe_load(TINY), **sections}


def with_six_images(experiment):
    """The experiment with six generated images in batches of 4, so in parts of 4 and 2, as `write_samples` has them."""
    return experiment | {"sample": experiment["sample"] | {"num_images": 6, "batch_size": 4}}


def item_of_round(arm, seed, round_):
    """What plan.json says of any instance that measures a sampled round, beside fields of its phase."""
    run = f"{arm}-seed{seed}"
    words = f"--arm {arm} --seed {seed} --round {round_}"
    return {"run": run, "place": f"{run}/round{round_}", "arm": arm, "seed": seed, "round": round_, "arguments": words}


def small_project(root, **sections):
    """A project of one arm, 12 training and 6 generated images, so that a large network takes seconds."""
    tiny = tiny_with(**sections)
    tiny["data"]["num_train"], tiny["score"]["neighbours"] = 12, 5
    tiny["sample"] |= {"num_images": 6, "batch_size": 6, "parts": 1}
    tiny["arms"] = {"ddpm": tiny["arms"]["ddpm"] | {"train": {"epochs": 2}}}
    return Project.create(root, yaml.safe_dump(tiny, sort_keys=False))


def seen_by_dvc(project):
    """The stages as DVC reads them from dvc.yaml, in the project as current folder.

    Returns   waits_for, reads: dict stage -> set of stages, and of paths; commands: dict stage -> text; outs: set of relative paths
    """
    from dvc.repo import Repo

    repo = Repo()
    try:
        stages = {stage.addressing: stage for stage in repo.index.stages}
        waits_for = {name: {dep.addressing for dep in repo.index.graph.successors(stages[name])} for name in stages}
        reads = {name: {dep.fs_path for dep in stages[name].deps} for name in stages}
        outs = {Path(out.fs_path).relative_to(project.root) for name in stages for out in stages[name].outs}
        return waits_for, reads, {name: stages[name].cmd for name in stages}, outs
    finally:
        repo.close()


def check_missing_file(project, told):
    """Both doors tell of a file that is not there before anything runs."""
    for command in (("snakemake", "-n"), ("dvc", "repro")):
        done = project.run(*command, check=False)
        assert done.returncode and told in done.text
        assert "Running stage 'data'" not in done.text


def check_turned_off_and_on(project, phase, told, key):
    """A finished project without the section of a phase, and with it again: all is as it was, and nothing of the phase is left meanwhile.

    told   what is said of the phase that is left out
    key    of metrics.json: what the phase adds for raw weights
    """
    kept, section = (project.root / "artifacts/report/summary.json").read_text(), project.params()[phase]
    project.edit(**{phase: {}})
    done = project.run("snakemake")
    assert told in done.text and "3 of 3 steps (100%) done" in done.text  # plan, report and the rule all
    assert key not in json.loads((project.root / "artifacts/report/summary.json").read_text())["ddpm"]["raw"]
    assert not list((project.root / "artifacts/results").glob(f"{phase}/*/*"))
    assert "up to date" in project.run("dvc", "status").text
    project.edit(**{phase: section})
    project.run("snakemake")
    assert (project.root / "artifacts/report/summary.json").read_text() == kept
    assert "up to date" in project.run("dvc", "status").text


def write_params(experiment):
    Path("params.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))


def plant_images(train, heldout):
    """Writes artifacts/data as far as a phase reads it that looks at pixels and classes.

    train, heldout   each ([n,H,W,C] uint8, [n] class of each image); no images held out: None
    """
    for part, planted in (("train", train), ("heldout", heldout)):
        if planted is not None:
            files.save_array(files.DATA / f"{part}.npy", planted[0])
            files.save_array(files.DATA / f"{part}_labels.npy", planted[1])


def run_stages(experiment):
    """Runs all stages of an experiment in this process and in the current folder, in an order in which each has its inputs."""
    write_params(experiment)
    order = phases.names()
    of_rounds = ("train", "aggregate", "redistribute")

    def place(stage):
        if stage.phase in of_rounds:
            taught = experiments.teacher_of(experiment, stage.arm) is not None  # by models of another arm
            return order.index("train"), taught, stage.round, order.index(stage.phase)
        return order.index(stage.phase), 0, 0, 0

    for stage in sorted(plan.expand(experiment).values(), key=place):
        if stage.phase == "plan":  # it only checks, and makes what DVC reads
            continue
        takes_arguments = stage.arm is not None or phases.declared(stage.phase).get("reference")
        phases.module(stage.phase).main(stage.arguments.split() if takes_arguments else [])


def written_anew(path, content):
    """Gives one file of an artifact other content, as the stage that writes that folder would: with its checksum."""
    contents = {file.name: file.read_bytes() for file in Path(path).parent.iterdir()} | {Path(path).name: content}
    with files.publish(Path(path).parent) as folder:
        folder.mkdir()
        for name, data in contents.items():
            (folder / name).write_bytes(data)
        (folder / files.CHECKSUMS).unlink()


@pytest.fixture(scope="module")
def one_thread():
    """For the tests of a module that compares float sums: pytestmark = pytest.mark.usefixtures("one_thread")."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_images(seed, num, side=8, channels=1, brightest=256):
    """[num,side,side+3,channels] uint8: as wide as high would hide a transpose."""
    return np.random.default_rng(seed).integers(0, brightest, (num, side, side + 3, channels), dtype=np.uint8)


def write_samples(run, arrays, asked=None):
    """The six generated images of a run, in parts of 4 and 2.

    arrays   dict weights -> [6,H,W,C] uint8
    asked    what each was asked for, where it has a prompt: list of six dicts
    """
    for part, rows in enumerate((slice(0, 4), slice(4, 6))):
        folder = files.folder("samples", run, 1, part=part)
        for weights, array in arrays.items():
            files.save_array(folder / f"{weights}.npy", array[rows])
        if asked:
            files.write_text(folder / "generations.jsonl", "".join(json.dumps(line) + "\n" for line in asked[rows]))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A tiny Stable Diffusion folder."""
    import tiny_sd

    path = tmp_path_factory.mktemp("tiny") / "model"
    tiny_sd.build(path, "D")
    return path


@pytest.fixture
def with_captions(tiny_model, tmp_path, monkeypatch):
    """prepare(experiment, captions, heldout) makes the working folder one where 12 toy images with captions were decoded and dealt
    to one shard, with a copy of the tiny model in model/; `heldout` are captions of images that are held out."""
    import tiny_sd

    def prepare(experiment, captions=None, heldout=()):
        monkeypatch.chdir(tmp_path)
        shutil.copytree(tiny_model, "model", dirs_exist_ok=True)
        write_params(experiment)
        toys = np.stack([image for image, _ in tiny_sd.toy_images(24, 32)])
        captions = captions or [[f"a {colour} {shape}"] for shape in ("square", "circle") for colour in tiny_sd.COLOURS]
        keys = {"train": [f"{i}.png" for i in range(12)], "heldout": [f"{i}.png" for i in range(12, 12 + len(heldout))]}
        files.save_array(files.DATA / "train.npy", toys[:12])
        files.save_array(files.DATA / "heldout.npy", toys[12 : 12 + len(heldout)])
        files.save_array(files.DATA / "train_labels.npy", np.zeros(12, np.int64))
        files.write_json(files.DATA / "keys.json", keys)
        files.write_json(files.DATA / "captions.json", {"train": captions, "heldout": [[text] for text in heldout]})
        files.save_array(files.folder("shards", "default-seed0", 1) / "shard0.npy", np.arange(12))

    return prepare


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """A finished run of the tiny experiment by Snakemake, committed. Tests only read it, or copy it.

    With several workers the first to come makes it, and each has a copy of its own.
    """
    own = tmp_path_factory.mktemp("finished")
    if worker_id == "master":
        return run_tiny(own / "project")
    shared = tmp_path_factory.getbasetemp().parent / "finished"
    with filelock.FileLock(f"{shared}.lock"):
        if not shared.exists():
            project = run_tiny(shared / "project")
            (shared / "said.json").write_text(json.dumps([project.output, project.stray]))
    project = Project(shared / "project").copy(own / "project")
    project.output, project.stray = json.loads((shared / "said.json").read_text())
    return project


def run_tiny(root):
    root.mkdir(parents=True)
    project = Project.create(root, TINY)
    guard = {"PYTHONPATH": str(ROOT / "tests/no_network"), "NETWORK_LOG": str(root / "logs/network")}
    project.output = project.run("snakemake", "--cores", "all", "--resources", "gpu=4", env=guard).text
    project.stray = project.run("git", "status", "--porcelain").text
    project.commit("run")
    return project

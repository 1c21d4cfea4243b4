"""What is wrong is told in one sentence through every door (a stage by hand, dvc, snakemake), and leaves nothing half-written."""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY, Project, written_anew

from stages import data, experiments, sample, shard, train
from stages.run import cli, files

IET = "iet_agc_plus-seed3"


def contents(project):
    """Everything that a stage could have spoilt: results, records, plan, unfinished files."""
    kept = [project.root / name for name in ("dvc.lock", "plan.json", "metrics.json")]
    found = [*kept, *(project.root / "artifacts").rglob("*"), *(project.root / "scratch/unfinished").rglob("*")]
    return {str(path.relative_to(project.root)): path.read_bytes() for path in found if path.is_file()}


def errors(done):
    """The lines that a finished process ends in; those of Snakemake and DVC around it are theirs."""
    assert "Traceback" not in done.text, done.text
    return [line for line in done.text.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A copy of the project with a plan and nothing run; tests leave it as it is."""
    project = Project.create(tmp_path_factory.mktemp("planned") / "project", TINY)
    return project


@pytest.fixture
def unharmed(planned):
    """The project; after the test it must be as before, with no unfinished file."""
    text, before = (planned.root / "params.yaml").read_text(), contents(planned)
    yield planned
    (planned.root / "params.yaml").write_text(text)
    assert contents(planned) == before
    assert not list((planned.root / "scratch").glob("unfinished/*"))


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """The working folder with decoded data and shards; returns run(phase's main, *arguments) -> the sentence it ends with."""
    import torch

    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_STAGE", "REDISTRIBUTE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    Path("params.yaml").write_text(TINY)
    data.main([])
    shard.main(["--arm", "iet_agc_plus", "--seed", "3"])
    yield tmp_path
    torch.set_num_threads(threads)


TRAIN = "--arm iet_agc_plus --seed 3 --round {} --shard 1"


@pytest.fixture
def refusal(decoded, monkeypatch, capsys):
    """refusal(main, arguments) -> what the stage says as it ends with exit code 1 and without a trace in artifacts/."""

    def run(main, arguments):
        project = Project(decoded)
        before = contents(project)
        monkeypatch.setattr(sys, "argv", ["stage", *arguments.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(main)
        assert end.value.code == 1
        assert contents(project) == before
        assert not list(Path("scratch").glob("unfinished/*"))
        return capsys.readouterr().err

    return run


def write_round_1(change_raw=None, change_state=None, model=None):
    """What round 2 of shard 1 reads: the model of round 1, the shard's state and index list, all of them fresh."""
    from stages.diffusion import unet
    from stages.pixels import initial_weights

    network = unet.build(model or yaml.safe_load(TINY)["model"], (1, 8, 8))
    weights = initial_weights.initial_weights(network, 3)
    state = {f"{kind}.{name}": np.zeros_like(w) for kind in ("exp_avg", "exp_avg_sq") for name, w in weights.items()}
    state |= {"carried.bank": np.zeros(20, np.float32), "step": np.int64(30)}
    files.save_arrays(files.folder("model", IET, 1) / "ema.safetensors", weights)
    files.save_arrays(files.folder("model", IET, 1) / "raw.safetensors", (change_raw or dict)(weights))
    files.save_arrays(files.folder("train", IET, 1, 1) / "state.safetensors", (change_state or dict)(state))
    files.save_array(files.folder("shards", IET, 2) / "shard1.npy", np.arange(30))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "train --arm iet --seed 3 --round 1 --shard 0",
            "there is no arm iet, expected one of ddpm, iet_agc_plus (params.yaml, arms)",
        ),
        (
            "train --arm ddpm --seed 0 --round 1 --shard 0",
            "there is no seed 0, expected one of [3] (params.yaml, seeds)",
        ),
        (
            "train --arm iet_agc_plus --seed 3 --round 3 --shard 0",
            "round 3 of iet_agc_plus does not exist, expected 1 to 2",
        ),
        ("train --arm ddpm --seed 3 --round 0 --shard 0", "round 0 of ddpm does not exist, expected 1 to 1"),
        ("train --arm ddpm --seed 3 --round 1 --shard 1", "shard 1 of ddpm does not exist, expected 0 to 0"),
        ("train --arm ddpm --seed 3 --round 1 --shard -1", "shard -1 of ddpm does not exist, expected 0 to 0"),
        (
            "redistribute --arm ddpm --seed 3 --round 1",
            "arms.ddpm.redistribute is empty, so this arm moves no images (params.yaml)",
        ),
    ],
)
def test_a_stage_refuses_what_the_experiment_does_not_have(unharmed, arguments, told):
    done = unharmed.run("python", "-m", *f"stages.{arguments}".split(), check=False)
    assert (done.returncode, done.text) == (1, f"error: {told}\n")


@pytest.mark.parametrize("part", [-1, 2])
def test_parts_are_counted_from_0(decoded, part):
    """Without a process of its own: the stage imports torch before it looks at its arguments."""
    arguments = ["--arm", "ddpm", "--seed", "3", "--round", "1", "--part", str(part)]
    with (
        pytest.raises(ValueError, match=rf"^part {part} of ddpm does not exist, expected 0 to 1$"),
        experiments.stage(sample.PHASE, "", arguments),
    ):
        pytest.fail("the stage began")


def test_arguments_that_are_no_numbers_or_missing_show_how_to_call_the_stage(unharmed):
    done = unharmed.run("python", "-m", "stages.shard", "--arm", "ddpm", "--seed", "three", check=False)
    assert done.returncode == 2
    assert "usage: python -m stages.shard" in done.text and "invalid int value: 'three'" in done.text
    done = unharmed.run("python", "-m", "stages.shard", "--arm", "ddpm", check=False)
    assert done.returncode == 2 and "the following arguments are required: --seed" in done.text


def test_a_stage_before_its_inputs_names_the_first_that_is_missing_and_what_makes_it(unharmed):
    advice = "run `snakemake` or `dvc repro`, which make what comes before this stage"
    done = unharmed.run("python", "-m", "stages.train", *TRAIN.format(1).split(), check=False)
    missing = f"artifacts/shards/{IET}/round1/shard1.npy"
    assert (done.returncode, done.text) == (1, f"error: {missing} is missing: {advice}\n")
    done = unharmed.run("python", "-m", "stages.shard", "--arm", "ddpm", "--seed", "3", check=False)
    assert (done.returncode, done.text) == (1, f"error: artifacts/data/train_labels.npy is missing: {advice}\n")


def test_a_stage_outside_the_project_says_where_to_run(unharmed, tmp_path):
    done = Project(tmp_path).run("python", "-m", "stages.shard", check=False, env={"PYTHONPATH": str(unharmed.root)})
    assert done.returncode == 2  # arguments come first
    arguments = ("--arm", "ddpm", "--seed", "3")
    done = Project(tmp_path).run(
        "python", "-m", "stages.shard", *arguments, check=False, env={"PYTHONPATH": str(unharmed.root)}
    )
    assert done.returncode == 1
    assert (
        done.text
        == f"error: there is no params.yaml in {tmp_path}: go to the root of the project first: cd {unharmed.root}\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_is_refused_with_the_same_sentence_through_all_doors(unharmed):
    text = (unharmed.root / "params.yaml").read_text()
    (unharmed.root / "params.yaml").write_text(text.replace("learning_rate:", "learning_rat:"))
    told = "error: params.yaml: unknown key train.learning_rat: did you mean learning_rate?"
    for command in (
        "snakemake -n",
        "dvc repro",
        f"dvc repro train@{IET}-round1-shard0",
        "python -m stages.train " + TRAIN.format(1),
    ):
        done = unharmed.run(*command.split(), check=False)
        assert done.returncode != 0, command
        assert errors(done) == [told], (command, done.text)


def test_snakemake_options_that_only_it_would_see_are_refused(unharmed):
    done = unharmed.run("snakemake", "-n", "--config", "lr=1", check=False)
    assert done.returncode == 1
    assert errors(done) == [
        "error: --config and --configfile would change only what Snakemake sees: edit params.yaml instead"
    ]


def test_cuda_without_a_gpu_is_refused_before_anything_runs(unharmed):
    unharmed.edit(compute__device="cuda")
    done = unharmed.run("snakemake", "-n", check=False, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 1
    (told,) = errors(done)
    assert told.startswith("error: compute.device is cuda, but no GPU is visible: set it to auto or cpu (params.yaml)")


def test_cuda_without_a_gpu_is_refused_by_a_stage(refusal, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    Path("params.yaml").write_text(TINY.replace("device: cpu", "device: cuda"))
    told = refusal(train.main, TRAIN.format(1))
    assert told.startswith("error: compute.device is cuda, but no GPU is visible: set it to auto or cpu (params.yaml)")
    assert len(told.splitlines()) == 1


def test_a_class_conditional_model_on_images_without_classes_is_refused(refusal):
    Path("params.yaml").write_text(TINY.replace("norm_groups: 4}", "norm_groups: 4, class_conditional: true}"))
    written_anew(files.DATA / "classes.json", b"[]\n")
    told = refusal(train.main, TRAIN.format(1))
    assert told == (
        "error: model.class_conditional is true, but the images of data.name digits have no classes: put them into one "
        "sub-folder per class, or set it to false (params.yaml)\n"
    )


def test_a_round_before_the_round_that_it_goes_on_from(refusal):
    write_round_1()
    (files.folder("model", IET, 1) / "ema.safetensors").unlink()
    told = refusal(train.main, TRAIN.format(2))
    assert told.startswith(
        f"error: artifacts/model/{IET}/round1/ema.safetensors is missing: run `snakemake` or `dvc repro`"
    )
    write_round_1()
    (files.folder("train", IET, 1, 1) / "state.safetensors").unlink()
    told = refusal(train.main, TRAIN.format(2))
    assert told.startswith(
        f"error: artifacts/train/{IET}/round1/shard1/state.safetensors is missing: run `snakemake` or"
    )


def test_a_model_of_another_architecture_names_the_weight(refusal):
    wider = yaml.safe_load(TINY)["model"] | {"block_channels": [12, 16]}
    write_round_1(model=wider)
    told = refusal(train.main, TRAIN.format(2))
    assert told == (
        f"error: artifacts/model/{IET}/round1/ema.safetensors holds the weights of another network: conv_in.bias is (12,), "
        "expected (8,); set model in params.yaml back, or rerun the phase that wrote it\n"
    )
    write_round_1(change_raw=lambda weights: {n: w for n, w in weights.items() if n != "conv_out.weight"})
    told = refusal(train.main, TRAIN.format(2))
    assert (
        f"{IET}/round1/raw.safetensors holds the weights of another network: conv_out.weight is nothing, expected"
        in told
    )
    write_round_1(change_state=lambda state: {n: v for n, v in state.items() if n != "exp_avg.conv_in.bias"})
    told = refusal(train.main, TRAIN.format(2))
    assert (
        "shard1/state.safetensors holds the state of another network: exp_avg.conv_in.bias is nothing, expected (8,)"
        in told
    )


def test_a_damaged_model_is_named(refusal):
    write_round_1()
    raw = files.folder("model", IET, 1) / "raw.safetensors"
    raw.write_bytes(raw.read_bytes()[:-100])
    told = refusal(train.main, TRAIN.format(2))
    assert told.startswith(f"error: {raw} cannot be read (") and told.endswith(
        "remove it and run the same command again\n"
    )


def test_a_loss_that_is_not_finite_stops_and_says_where(refusal):
    def with_nan(weights):
        weights["conv_out.bias"][0] = np.nan
        return weights

    write_round_1(change_raw=with_nan)
    told = refusal(train.main, TRAIN.format(2))
    assert told == (
        "error: the loss at step 30 is nan, expected a finite number (arm iet_agc_plus, seed 3, round 2, shard 1): lower "
        "train.learning_rate or look at the images; nothing was written\n"
    )
    assert not (files.folder("train", IET, 2, 1)).exists() and not files.counts_file(IET, 2, 1).exists()
    assert not list(Path("scratch").rglob("*.safetensors"))  # no checkpoint of it either


def test_a_batch_that_memory_does_not_suffice_for_names_one_to_try(refusal, monkeypatch):
    import torch

    from stages.methods import loop

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee the manual")

    write_round_1()
    monkeypatch.setattr(loop, "train_step", full)
    assert refusal(train.main, TRAIN.format(2)) == (
        "error: the memory of cpu does not suffice for train.batch_size = 10 (CUDA out of memory. Tried to allocate 20 GiB.): "
        "try 5 (params.yaml), or a smaller network; nothing was written\n"
    )
    assert not files.folder("train", IET, 2, 1).exists() and not files.counts_file(IET, 2, 1).exists()


def test_the_traceback_is_there_for_who_wants_it(refusal, monkeypatch):
    monkeypatch.setenv("REDISTRIBUTE_DEBUG", "1")
    told = refusal(shard.main, "--arm none --seed 3")
    assert told.startswith("Traceback") and told.splitlines()[-1].startswith(
        "error: there is no arm none, expected one of"
    )

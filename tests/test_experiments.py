"""The experiments of experiments/: their budgets, sizes, arms and tables, and the command that switches between them."""

import re
import subprocess
import sys

import pytest
import seeds
import tiny_sd
import yaml
from conftest import ROOT

from stages import experiments, rules
from stages.report import published, trade_off
from stages.run import declarations

FOLDER = ROOT / "experiments"
NAMES = ["cifar10", "cifar100", "afhq_dog", "fashion_mnist"]
CIFAR10_ARMS = (
    "ddpm added_noise dp_sgd ambient agc iet_agc iet_agc_taa iet_agc_plus k2 k5 k15 e25 e100 p10 p50 lambda04 lambda06"
)
CIFAR100_ARMS = "ddpm added_noise iet_agc iet_agc_plus"
AFHQ_ARMS = "ddpm added_noise agc iet_agc iet_agc_plus"
OPTIONAL = ["iet", "iet_agc_e100", "iet_agc_plus_random", "k1_full", "dp_sgd_eps10"]


def load(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def with_optional_arms():
    """cifar10.yaml as text with its commented arms switched on, as its head says."""
    text = (FOLDER / "cifar10.yaml").read_text(encoding="utf-8")
    before, optional = text.split("  # Optional arms.\n")
    return before + re.sub(r"^  # ", "  ", optional, flags=re.MULTILINE)


def test_every_file_is_an_experiment_known_here():
    found = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*")} - {"tiny"}
    small = {"cifar10_8px", "flickr8k_16px", *(f"tiny/{name}" for name in NAMES), "tiny/digits", "tiny/text"}
    small |= {"digits_methods", "cifar10_methods_16px", "cifar10_2000"}
    assert found == {*NAMES, "laion10k", *small}


def test_the_optional_arms_of_cifar10_are_valid(tmp_path):
    (tmp_path / "params.yaml").write_text(with_optional_arms(), encoding="utf-8")
    assert list(rules.load(tmp_path / "params.yaml")["arms"])[-5:] == OPTIONAL


@pytest.mark.parametrize(
    ("name", "arms", "of_ddpm", "of_iet"),
    [
        ("cifar10", CIFAR10_ARMS, 6, [5, 10, 15, 20]),
        ("cifar100", CIFAR100_ARMS, 6, [5, 10, 15, 20]),
        ("afhq_dog", AFHQ_ARMS, 4, [12, 24, 36, 48]),
        ("fashion_mnist", AFHQ_ARMS, 5, [5, 10, 15, 20]),
    ],
)
def test_an_experiment_has_the_arms_of_its_tables_and_curves_of_those_that_are_compared(name, arms, of_ddpm, of_iet):
    experiment, tiny = load(name), load(f"tiny/{name}")
    assert list(experiment["arms"]) == list(tiny["arms"]) == arms.split()
    assert trade_off.baseline_of(experiment) == trade_off.baseline_of(tiny) == "ddpm"
    curves = {"ddpm": [*range(1, of_ddpm + 1)], "iet_agc": of_iet, "iet_agc_plus": of_iet}
    for arm, recipe in experiment["arms"].items():
        assert experiments.sampled_rounds(experiment, arm) == curves.get(arm, [recipe["rounds"]]), arm
        assert len(experiments.sampled_rounds(tiny, arm)) == (2 if arm in curves else 1), arm


def optimiser_steps(experiment, num_train, arm):
    """Batches of a shard of N / K images, one image more in the first shards; what is left of a batch is not trained on."""
    recipe = experiment["arms"][arm]
    num_shards, batch_size = recipe["shard"]["num_shards"], experiment["train"]["batch_size"]
    sizes = [num_train // num_shards + (k < num_train % num_shards) for k in range(num_shards)]
    return sum(size // batch_size for size in sizes) * recipe["train"]["epochs"] * recipe["rounds"]


@pytest.mark.parametrize(
    ("name", "num_train", "one_shard", "sharded"),
    [
        ("cifar10", 50_000, 400_000, 390_000),
        ("cifar100", 50_000, 400_000, 390_000),
        ("afhq_dog", 4_739, 180_000, 180_000),
        ("fashion_mnist", 5_120, 40_000, 40_000),
    ],
)
def test_budgets_are_the_specified_ones(name, num_train, one_shard, sharded):
    experiment = load(name)
    if name == "cifar10":
        experiment = yaml.safe_load(with_optional_arms())
    per_epoch = num_train // experiment["train"]["batch_size"]
    for arm, recipe in experiment["arms"].items():
        steps = optimiser_steps(experiment, num_train, arm)
        train = experiment["train"] | recipe["train"]
        num_shards = recipe["shard"]["num_shards"]
        if num_shards == 1 and arm != "k1_full":
            # whole epochs, so the nearest number of them
            assert abs(steps - one_shard) <= per_epoch / 2, arm
            assert train["warmup_steps"] == (500 if name == "fashion_mnist" else 5000), arm
        else:
            assert steps == sharded, arm
            assert train["warmup_steps"] == 15 * (num_train // num_shards // train["batch_size"]), arm
        assert recipe["rounds"] * train["epochs"] == {"afhq_dog": 2400}.get(name, 1000) or num_shards == 1


def test_2000_images_cost_what_the_head_of_the_file_says():
    """FLOP of the network as torch counts them, on shapes without values."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from stages.diffusion import unet

    experiment = load("cifar10_2000")
    rules.check(experiment)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = unet.build(experiment["model"], (3, 32, 32))
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert sum(p.numel() for p in network.parameters()) == 8_952_067
    flop, batch_size = counter.get_total_flops(), experiment["train"]["batch_size"]
    assert flop == pytest.approx(3.20e9, rel=0.005)
    for arm, recipe in experiment["arms"].items():
        visits = recipe["rounds"] * recipe["shard"]["num_shards"] * recipe["train"]["steps"] * batch_size
        assert visits == 2_560_000 == 1280 * 2000 and 3 * visits * flop == pytest.approx(2.46e16, rel=0.005), arm
        assert len(experiments.sampled_rounds(experiment, arm)) == 2, arm
    sample = experiment["sample"]
    point = sample["num_images"] * sample["num_steps"] * len(sample["weights"]) * flop
    assert point == pytest.approx(1.31e15, rel=0.005) and round((2.46e16 + 2 * point) / 330e12) == 82


@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes", "num_parameters"),
    [
        ("cifar10", (3, 32, 32), None, 35_746_307),
        ("cifar100", (3, 32, 32), 100, 35_797_507),
        ("afhq_dog", (3, 64, 64), None, 78_700_803),
    ],
)
def test_networks_have_the_specified_size(name, image_shape, num_classes, num_parameters):
    import torch

    from stages.diffusion import unet

    model = load(name)["model"]
    assert model.get("class_conditional", False) == (num_classes is not None)
    with torch.device("meta"):  # shapes without memory
        network = unet.build(model, image_shape, num_classes=num_classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    assert f"{num_parameters:,} parameters" in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def test_the_settings_are_those_of_the_paper():
    """Section by section: lambda, R, magnitude; P; the batch and flips of each data set."""
    expected = {
        "cifar10": (10, 0.5, 1.7, 3, 50, 128, True),
        "cifar100": (10, 0.5, 1.7, 5, 50, 128, True),
        "afhq_dog": (5, 0.7, 1.2, 5, 50, 60, False),
    }
    for name, values in expected.items():
        experiment = load(name)
        plus = experiment["arms"]["iet_agc_plus"]
        method, train = plus["method"], experiment["train"]
        found = (plus["shard"]["num_shards"], method["lambda"], method["taa"]["R"], method["taa"]["magnitude"])
        assert (*found, plus["train"]["epochs"], train["batch_size"], train["flip"]) == values
        assert method["eta"] == 0.8 and method["taa"]["A"] == 5.0
        assert plus["redistribute"] == {"share": 0.25, "select": "memory"}
        assert experiment["sample"]["num_images"] == 65_536 and train["ema_decay"] == 0.9999


def test_rows_of_the_tables_are_bound_to_arms_with_their_settings():
    experiment = yaml.safe_load(with_optional_arms())
    arms = experiment["arms"]
    bound = set()
    for table in published.read()["tables"]:
        name = table["data"]
        if name == "captioned_folder":
            continue
        known = arms if name == "cifar10" else load(name)["arms"]
        for row in table["rows"]:
            assert row["arm"] in known, row
            if name == "cifar10":
                bound.add(row["arm"])
            recipe, label = known[row["arm"]], row["label"]
            if "setting" in label and row["arm"] not in ("ddpm", "k1_full"):
                value = {
                    "K": recipe["shard"]["num_shards"],
                    "E": recipe["train"]["epochs"],
                    "P": recipe["redistribute"]["share"],
                    "λ": recipe["method"]["lambda"],
                }[label["setting"]]
                assert value == float(label["value"]), row
            if "AGC" in label:
                has = {
                    "AGC": recipe["method"]["name"] == "agc",
                    "IET": recipe["shard"]["num_shards"] > 1,
                    "TAA": "taa" in recipe["method"],
                    "MSR": bool(recipe["redistribute"]),
                }
                assert {part: mark == "✓" for part, mark in label.items()} == has, row
    assert bound == set(CIFAR10_ARMS.split()) | set(OPTIONAL)


def test_rows_of_the_text_conditioned_tables_are_bound_to_the_arms_of_laion10k():
    text = (FOLDER / "laion10k.yaml").read_text(encoding="utf-8")
    before, optional = text.split('  # Optional arms, in no table: take the "# " away.\n')
    arms = yaml.safe_load(before + re.sub(r"^  # ", "  ", optional, flags=re.MULTILINE))["arms"]
    tables = [table for table in published.read()["tables"] if table["data"] == "captioned_folder"]
    rows = [row for table in tables for row in table["rows"]]
    assert {row["arm"] for row in rows} == set(arms)
    kinds = {"RT": "rt", "CWR": "cwr", "GNI": "gni", "RNA": "rna", "Wen et al.": "wen"}
    for row in rows:
        recipe, label = arms[row["arm"]], row["label"]
        at_inference = kinds.get(
            label.get("method") if label.get("mitigation") == "at inference" else label.get("mitigation")
        )
        if at_inference:
            maker = {"Default": "default", "IET-AGC+": "iet_agc_plus"}[label.get("trained by", "Default")]
            assert recipe["generator"] == {"arm": maker} and recipe["sample"]["mitigation"]["name"] == at_inference
        if "AGC" in label:
            has = {
                "AGC": recipe["method"]["name"] == "agc",
                "IET": recipe["shard"]["num_shards"] > 1,
                "TAA": "taa" in recipe["method"],
                "MSR": bool(recipe["redistribute"]),
            }
            assert {part: mark == "✓" for part, mark in label.items()} == has, row


def parts(recipe):
    """What an arm is, without the numbers of it."""
    method = recipe["method"]
    return (
        method["name"],
        "taa" in method,
        recipe["shard"]["num_shards"] > 1,
        recipe["redistribute"].get("select"),
    )


def test_flickr8k_16px_has_equal_budgets_and_curves_and_the_bank_is_visited_often_enough():
    """Of a cell that starts at 0 and decays by 0.8 a visit, 16 visits are needed to come within 3 % of the loss."""
    experiment = load("flickr8k_16px")
    rules.check(experiment)
    trained = experiments.trained(experiment)
    steps = {arm: r["shard"]["num_shards"] * r["rounds"] * r["train"]["steps"] for arm, r in trained.items()}
    assert {n: [a for a in steps if steps[a] == n] for n in set(steps.values())} == {
        1250: ["default", "agc", "iet_agc", "iet_agc_plus", "rc_p04"],
    }
    assert {arm: experiments.sampled_rounds(experiment, arm) for arm in trained} == dict.fromkeys(
        trained, [1, 2, 3, 4, 5]
    )
    assert trade_off.baseline_of(experiment) == "default"
    timesteps = tiny_sd.CONFIGS["E"]["timesteps"]
    for arm, recipe in trained.items():
        visits = recipe["rounds"] * recipe["train"]["steps"] * experiment["train"]["batch_size"] / timesteps
        assert "lambda" not in recipe["method"] or 0.8**visits < 1e-9, arm


@pytest.mark.parametrize("name", NAMES)
def test_tiny_arms_are_of_the_same_kind(name):
    large, tiny = load(name), load(f"tiny/{name}")
    assert {arm: parts(recipe) for arm, recipe in large["arms"].items()} == {
        arm: parts(recipe) for arm, recipe in tiny["arms"].items()
    }
    assert large["data"]["name"] == tiny["data"]["name"]
    assert large["model"].get("class_conditional") == tiny["model"].get("class_conditional")
    for arm in ("k2", "k5", "k15") if name == "cifar10" else ():
        assert large["arms"][arm]["shard"] == tiny["arms"][arm]["shard"]


def test_tiny_digits_has_every_method_and_equal_budgets():
    digits = load("tiny/digits")
    kinds = {parts(recipe) for recipe in digits["arms"].values()}
    others = {parts(recipe) for recipe in yaml.safe_load(with_optional_arms())["arms"].values()}
    of_no_table = {(name, False, False, None) for name in ("ambient_high", "distill_md")}
    assert kinds == others - {("agc", True, False, None)} | of_no_table  # k1_full: no kind of its own
    assert kinds == {
        ("ddpm", False, False, None),
        ("added_noise", False, False, None),
        ("dp_sgd", False, False, None),
        ("ambient", False, False, None),
        *of_no_table,
        ("agc", False, False, None),
        ("ddpm", False, True, None),
        ("agc", False, True, None),
        ("agc", True, True, None),
        ("agc", True, True, "memory"),
        ("agc", True, True, "random"),
    }
    steps = {arm: optimiser_steps(digits, 60, arm) for arm in digits["arms"]}
    assert steps == dict.fromkeys(digits["arms"], 120)


def test_digits_methods_has_every_method_of_pixels_with_one_budget():
    experiment = load("digits_methods")
    steps = {arm: optimiser_steps(experiment, 256, arm) for arm in experiment["arms"]}
    assert steps == dict.fromkeys(experiment["arms"], 1320) and trade_off.baseline_of(experiment) == "ddpm"
    of_pixels = {name for name, declared in declarations.methods().items() if "pixels" in declared["MODELS"]}
    names = {recipe["method"]["name"] for recipe in experiment["arms"].values()}
    assert names == of_pixels
    assert {arm for arm, recipe in experiment["arms"].items() if "dropout" in recipe["train"]} == {"ddpm_dropout", "iet_agc_plus_dropout"}  # fmt: skip
    assert {arm for arm, recipe in experiment["arms"].items() if "told_augmentation" in recipe["train"]} == {"told_augmentation", "iet_agc_plus_told"}  # fmt: skip
    assert {arm for arm, recipe in experiment["arms"].items() if "timestep_focus" in recipe["train"]} == {"timestep_focus", "iet_agc_plus_focus"}  # fmt: skip
    focus = experiment["arms"]["timestep_focus"]["train"]["timestep_focus"]
    assert experiment["arms"]["iet_agc_plus_focus"]["train"]["timestep_focus"] == focus
    inside = [t for t in range(1000) if focus["low"] <= t / 1000 < focus["high"]]
    assert (inside[0], inside[-1], focus["weight"]) == (20, 199, 0.1)


# The command that switches.


@pytest.fixture
def checkout(tmp_path):
    """A repository with params.yaml committed and two experiments."""
    (tmp_path / "experiments/tiny").mkdir(parents=True)
    (tmp_path / "experiments/one.yaml").write_text("seeds: [1]\n")
    (tmp_path / "experiments/tiny/two.yaml").write_text("seeds: [2]\n")
    (tmp_path / "params.yaml").write_text("seeds: [0]\n")
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.email=a@b.org", "-c", "user.name=a", "commit", "-qm", "start"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def run(script, checkout, *words):
    """Exit code and what a script of workflow/scripts says in a checkout."""
    command = [sys.executable, ROOT / "workflow/scripts" / script, *words]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def switch(checkout, *words):
    return *run("experiment.py", checkout, *words), (checkout / "params.yaml").read_text()


def test_switching_copies_the_file_and_back(checkout):
    code, told, found = switch(checkout, "one")
    assert code == 0 and "params.yaml is now experiments/one.yaml" in told and found == "seeds: [1]\n"
    assert switch(checkout, "tiny/two")[2] == "seeds: [2]\n"  # an untouched copy of an experiment is lost nowhere


def test_edits_are_kept_under_another_name_where_no_git_can_keep_them(checkout):
    edited = "seeds: [1, 5]\n"
    (checkout / "params.yaml").write_text(edited)
    (checkout / ".git").rename(checkout / "no.git")
    code, told, found = switch(checkout, "one")
    assert code == 0 and found == "seeds: [1]\n" and "the old one is params.old1.yaml" in told
    assert (checkout / "params.old1.yaml").read_text() == edited


def test_edits_are_never_overwritten(checkout):
    edited = "seeds: [1, 5]\n"
    (checkout / "params.yaml").write_text(edited)
    code, told, found = switch(checkout, "one")
    assert code == 1 and found == edited
    assert told.startswith("error: params.yaml has edits that are not committed") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [],
            "error: the experiment is missing: expected one of one, tiny/two (make experiment NAME=...; with DATA=folder, any name for an experiment on images of your own)\n",
        ),
        (
            ["tiny/twp"],
            "error: the experiment is tiny/twp: did you mean tiny/two? (make experiment NAME=...; with DATA=folder, any name for an experiment on images of your own)\n",
        ),
        (
            ["../params"],
            "error: the experiment is ../params: expected one of one, tiny/two (make experiment NAME=...; with DATA=folder, any name for an experiment on images of your own)\n",
        ),
    ],
)
def test_an_unknown_experiment_lists_the_known_ones(checkout, words, told):
    assert switch(checkout, *words) == (1, told, "seeds: [0]\n")


@pytest.mark.parametrize("name", ["flickr8k_16px", "laion10k"])
def test_a_copy_for_other_seeds_finds_what_the_experiment_reads(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = seeds._from_anywhere(load(name) | {"clip": {"model": "data/clip"}}, [4, 5])
    assert found["seeds"] == [4, 5] and found["clip"]["model"] == str(tmp_path / "data/clip")
    for section, key in (("data", "root"), ("model", "pipeline")):
        assert found[section][key] == str(tmp_path / load(name)[section][key])


def test_seeds_that_repeat_or_are_no_numbers_are_refused(checkout):
    (checkout / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for words, told in [
        (
            ["0", "2", "0"],
            "scratch/seeds/params.yaml: seeds is [0, 2, 0], expected no value twice (every arm runs once per seed)",
        ),
        (["0", "-1"], "the seeds are 0 -1, expected whole numbers of at least 0, such as 0 1 2"),
        ([], "the seeds are missing, expected whole numbers of at least 0, such as 0 1 2"),
    ]:
        assert run("seeds.py", checkout, *words) == (1, f"error: {told}\n")

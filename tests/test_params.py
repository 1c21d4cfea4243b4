"""params.yaml: every way in which it can be wrong ends in one sentence that says what, where, and what was expected."""

import copy
import math
import random
import re
import time

import pytest
import settings
import yaml
from conftest import ROOT, TINY

from stages import experiments, rules
from stages.run import declarations

OWN = (ROOT / "params.yaml").read_text(encoding="utf-8")


def sentence(path, text):
    """What `load` says about a text (or bytes): one line that starts with the name of the file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        rules.load(path)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(str(path))
    return told.removeprefix(str(path))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "params.yaml"


def changed(**changes):
    """The tiny experiment as text, with values replaced: path with '__' for '.'; ... removes a key."""
    experiment = yaml.safe_load(TINY)
    for path, value in changes.items():
        *folders, last = path.split("__")
        section = experiment
        for folder in folders:
            section = section[folder]
        if value is ...:
            del section[last]
        else:
            section[last] = value
    return yaml.safe_dump(experiment, sort_keys=False)


def test_the_experiments_of_the_project_are_valid(file):
    assert list(rules.load(ROOT / "params.yaml")["arms"])[0] == "ddpm"
    file.write_text(TINY)
    assert rules.load(file)["seeds"] == [3]
    for example in sorted((ROOT / "experiments").rglob("*.yaml")):
        assert rules.load(example)["arms"]


def test_dvc_reads_the_same_values():
    from dvc.utils.serialize import load_yaml

    ours, theirs = rules.load(ROOT / "params.yaml"), load_yaml(str(ROOT / "params.yaml"))
    assert ours == theirs
    assert [type(v) for v in leaves(ours)] == [type(v) for v in leaves(theirs)]  # 1 == 1.0 == True


def leaves(value):
    if isinstance(value, dict):
        return [leaf for below in value.values() for leaf in leaves(below)]
    return [leaf for below in value for leaf in leaves(below)] if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("modle", "unknown key modle: did you mean model?"),
        ("train__learning_rat", "unknown key train.learning_rat: did you mean learning_rate?"),
        ("score__headline__treshold", "unknown key score.headline.treshold: did you mean threshold?"),
        ("arms__ddpm__round", "unknown key arms.ddpm.round: did you mean rounds?"),
        ("arms__iet_agc_plus__shard__shards", "unknown key arms.iet_agc_plus.shard.shards: did you mean num_shards?"),
        (
            "arms__iet_agc_plus__method__lamda",
            "unknown key arms.iet_agc_plus.method.lamda: did you mean lambda?",
        ),
        ("arms__iet_agc_plus__method__taa__a", "unknown key arms.iet_agc_plus.method.taa.a: valid keys here are R, A,"),
        ("diffusion__xyzzy", "unknown key diffusion.xyzzy: valid keys here are num_timesteps, beta_start, beta_end"),
    ],
)
def test_a_misspelt_key_is_refused_at_every_level(file, path, hint):
    assert hint in sentence(file, changed(**{path: 1}))


def test_the_misspelling_is_told_rather_than_the_key_it_leaves_missing(file):
    text = changed(train__dropout=...).replace("\ntrain:", "\ntrain:\n  dropuot: 0.1")
    assert sentence(file, text) == ": unknown key train.dropuot: did you mean dropout?"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train__learning_rate": ...}, "the key train.learning_rate is missing"),
        ({"score__headline__weights": ...}, "the key score.headline.weights is missing (one of sample.weights)"),
        ({"arms__ddpm__method": ...}, "the key arms.ddpm.method is missing"),
        ({"arms__ddpm__sample": ...}, "the key arms.ddpm.sample is missing (settings of this arm, over those of the section sample; {} for none)"),
        ({"compute": ...}, "the key compute is missing (device, threads and precision of the computation; the rounding of results depends on them): compute: {} takes its defaults"),
        ({"arms__iet_agc_plus__redistribute__select": ...}, "the key arms.iet_agc_plus.redistribute.select is missing"),
        ({"score": ...}, "the key score is missing (how generated images are compared with training images and held-out images)"),
        ({"arms__ddpm__train__epochs": "ten"}, "arms.ddpm.train.epochs is 'ten', expected a whole number (E, passes over a shard in one round"),
        ({"arms__ddpm__train__epochs": 10.0}, "arms.ddpm.train.epochs is 10.0, expected a whole number (E, passes over a shard in one round"),
        ({"arms__ddpm__train__epochs": True}, "arms.ddpm.train.epochs is True, expected a whole number (E, passes over a shard in one round"),
        ({"train__flip": "maybe"}, "train.flip is 'maybe', expected true or false (mirror training images at random)"),
        ({"train__dropout": [0.1]}, "train.dropout is [0.1], expected a number (share of the values that a residual block drops"),
        ({"seeds": 0}, "seeds is 0, expected a list in [ ] (every arm runs once per seed)"),
        ({"model": None}, "model is None, expected a section of keys (one network for all arms"),
        ({"score": 5}, "score is 5, expected a section of keys"),
        ({"arms__ddpm": None}, "arms.ddpm is None, expected a section of keys"),
        ({"arms__ddpm__redistribute": None}, "arms.ddpm.redistribute is None, expected a section of keys"),
        ({"model": ["x"] * 5000}, "model is ['x', 'x', "),
        ({"data__root": 5}, "data.root is 5, expected a text"),
        ({"train__learning_rate": 0}, "train.learning_rate is 0, expected more than 0 and at most 1 (Adam's step size"),
        ({"train__learning_rate": -0.5}, "train.learning_rate is -0.5, expected more than 0 and at most 1"),
        ({"train__ema_decay": 1.0}, "train.ema_decay is 1.0, expected at least 0 and less than 1"),
        ({"seeds": [0, -1]}, "seeds.1 is -1, expected at least 0 and at most 4294967295"),
        ({"compute__device": "cpuu"}, "compute.device is 'cpuu', expected one of auto, cpu, cuda (auto takes a GPU"),
        ({"data__name": 5}, "data.name is 5, expected a text (the image set)"),
        ({"sample__weights": ["raw", "emma"]}, "sample.weights.1 is 'emma', expected one of raw, ema: did you mean ema?"),
        ({"sample__weights": []}, "sample.weights is empty, expected at least one entry"),
        ({"arms": {}}, "arms is empty, expected at least one entry"),
        ({"data__root": ""}, "data.root is empty, expected at least one entry"),
        ({"seeds": [3, 1, 3]}, "seeds is [3, 1, 3], expected no value twice (every arm runs once per seed)"),
    ],
)  # fmt: skip
def test_missing_keys_types_ranges_and_choices(file, changes, told):
    assert told in sentence(file, changed(**changes))
    assert len(sentence(file, changed(**changes))) < 300


def test_a_misspelt_choice_names_the_nearest(file):
    assert (
        "cpuu', expected one of auto, cpu, cuda (auto takes a GPU where there is one): did you mean cpu?"
        in sentence(file, changed(compute__device="cpuu"))
    )


@pytest.mark.parametrize("written", ["2e-4", "1E-3", "2.e4", ".5e0", "5.0e0", "+2e-4", "1e-05"])
def test_a_number_that_yaml_reads_as_text_gets_advice_that_means_the_same_number(file, written):
    """YAML 1.1 wants a dot and a sign in the exponent; DVC's YAML 1.2 does not, so the same text is a number there."""
    text = TINY.replace("learning_rate: 2.0e-3", f"learning_rate: {written}")
    told = re.fullmatch(
        r": train\.learning_rate is (\S+), which YAML 1\.1 reads as text: write (\S+)", sentence(file, text)
    )
    assert told[1] == written
    assert float(told[2]) == float(written)
    if float(written) <= 1:
        file.write_text(TINY.replace("learning_rate: 2.0e-3", f"learning_rate: {told[2]}"))
        assert rules.load(file)["train"]["learning_rate"] == float(written)


def test_the_advice_keeps_the_sign_and_gives_whole_numbers_where_they_are_wanted(file):
    told = sentence(file, TINY.replace("learning_rate: 2.0e-3", "learning_rate: -2e-4"))
    assert told.endswith("train.learning_rate is -2e-4, which YAML 1.1 reads as text: write -2.0e-4")
    told = sentence(file, TINY.replace("num_images: 50", "num_images: 1e5"))
    assert told.endswith("sample.num_images is 1e5, which YAML 1.1 reads as text: write 100000")


# A hundred million ones in nine lines: the check of the schema never came to an end.
ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ": the file is None, expected a section of keys"),
        ("- seeds\n- data\n", ": the file is ['seeds', 'data'], expected a section of keys"),
        ("digits\n", ": the file is 'digits', expected a section of keys"),
        (ALIASES + TINY.replace("[3]", "*i"), ", line 1: its aliases (*) stand for more than 100,000 values"),
        (TINY.replace("[3]", "&a [*a]"), ", line 2: its aliases (*) stand for more than 100,000 values"),
        (TINY + "seeds: [4]\n", ", line 29: the key seeds stands twice"),
        (TINY.replace("rounds: 2", "rounds: 2\n    rounds: 3"), ", line 20: the key rounds stands twice"),
        (b"# caf\xe9\n" + TINY.encode(), " is not UTF-8 text: byte 5 cannot be read"),
        ("seeds: [0\ndata: 1\n", ", line 2: did not find expected ',' or ']'"),
        ("seeds:\n\t- 0\n", ", line 2: a tab, where YAML allows only spaces: replace it by spaces"),
        (TINY.replace("    rounds: 2", "  \trounds: 2", 1), ", line 19: a tab, where YAML allows only spaces"),
        (TINY.replace("  threads: 1", "\tthreads: 1", 1) + "\ta: 1", ", line 29: a tab, where YAML allows only spaces"),
        ("seeds: *none\n", ", line 1: found undefined alias"),
        ("seeds: !!python/object/apply:os.getcwd []\n", ", line 1: could not determine a constructor for the tag"),
        (TINY + "\0", ": unacceptable character #x0000"),
        (TINY + "---\nseeds: [1]\n", ", line 29: but found another document"),
        ("[" * 5000, ", line 2: did not find"),
        (TINY.replace("[3]", "[2024-02-30]"), ", line 2: '2024-02-30' cannot be read as timestamp"),
        (TINY.replace("[3]", "[0x_]"), ", line 2: '0x_' cannot be read as int"),
        (TINY.replace("[3]", "[" + "9" * 5000 + "]"), ", line 2: '999"),
        (TINY.replace("false", '!!bool "perhaps"'), ", line 7: 'perhaps' cannot be read as bool"),
        (TINY.replace("  ddpm:", "  on:"), ", line 11: the key True is no text: put it in quotes"),
        (TINY.replace("  ddpm:", "  1:"), ", line 11: the key 1 is no text"),
        (TINY.replace("  ddpm:", "  ~:"), ", line 11: the key None is no text"),
        (TINY.replace("  ddpm:", '  "dd\\npm":'), ", line 11: the key 'dd\\npm' is no text"),
        (TINY.replace("  ddpm:", "  ? [a]\n  :"), ", line 11: the key ['a'] is no text"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_proper_yaml(file, text, told):
    assert sentence(file, text).startswith(told)


def test_a_merge_key_stands_for_what_it_names(file):
    """YAML's own way to write a recipe once; it once was refused as an unknown tag."""
    text = TINY.replace("train: {epochs: 10}", "train: &plain {epochs: 10}", 1)
    text = text.replace(
        "    train: {epochs: 10}\n    redistribute: {share", "    train:\n      <<: *plain\n    redistribute: {share"
    )
    file.write_text(text)
    assert rules.load(file) == yaml.safe_load(TINY)


@pytest.mark.parametrize("name", ["a.b", "a@b", "a b", "a/b", "..", "../a", "1a", "_a", "", "é", "a:b"])
def test_arm_names_that_cannot_be_part_of_stage_names_and_paths(file, name):
    experiment = yaml.safe_load(TINY)
    experiment["arms"][name] = experiment["arms"]["ddpm"]
    told = sentence(file, yaml.safe_dump(experiment, allow_unicode=True))
    assert told.startswith(
        f": the arm name {name!r} cannot be used: expected a letter, then letters, digits, '_', '+' or '-'"
    )


def test_arm_names_that_can(file):
    experiment = yaml.safe_load(TINY)
    experiment["arms"]["iet+AGC-2_x"] = experiment["arms"]["ddpm"]
    file.write_text(yaml.safe_dump(experiment))
    assert "iet+AGC-2_x" in rules.load(file)["arms"]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms__ddpm__method": {"clip": 2.0}}, "the key arms.ddpm.method.name is missing (training method"),
        ({"arms__ddpm__method": {"name": "agq"}}, "arms.ddpm.method.name is 'agq', expected one of added_noise, agc, ambient"),
        ({"arms__theirs": {"generator": {}, "sample": {}}}, "arms.theirs.generator is empty"),
        (
            {"arms__theirs": {"generator": {"folder": "a", "file": "b"}, "sample": {}}},
            "arms.theirs.generator has folder and file, expected one of folder, file, pipeline and arm",
        ),
        (
            {"arms__theirs": {"generator": {"file": "b", "resize": True}, "sample": {}}},
            "arms.theirs.generator.resize has no effect on a file: remove it",
        ),
        (
            {"arms__theirs": {"generator": {"file": "b"}, "sample": {"num_steps": 5}}},
            "arms.theirs.sample.num_steps has no effect on the images of a file: remove it",
        ),
        (
            {"arms__theirs": {"generator": {"file": "b"}, "sample": {}}, "score__headline__weights": "ema"},
            "score.headline.weights is ema, but theirs is a generator from elsewhere, which has raw weights only: set it to raw",
        ),
        ({"train__learning_rate": NAN}, "train.learning_rate is nan, expected a finite number"),
        ({"train__grad_clip_norm": INF}, "train.grad_clip_norm is inf, expected a finite number"),
        ({"score__thresholds": [0.5, NAN]}, "score.thresholds is nan, expected a finite number"),
        ({"arms__iet_agc_plus__method__lambda": INF}, "arms.iet_agc_plus.method.lambda is inf, expected a finite"),
        ({"arms__iet_agc_plus__method__taa__R": NAN}, "arms.iet_agc_plus.method.taa.R is nan, expected a finite number"),
        ({"arms__iet_agc_plus__method__taa__A": INF}, "arms.iet_agc_plus.method.taa.A is inf, expected a finite number"),
        (
            {"arms__iet_agc_plus__method": {"name": "ddpm"}},
            "arms.iet_agc_plus.redistribute.select is memory, which needs the skip counts of a method that skips (agc), but "
            "arms.iet_agc_plus.method.name is ddpm",
        ),
        ({"arms__iet_agc_plus__shard__num_shards": 61}, "arms.iet_agc_plus.shard.num_shards is 61, more than the 60 training"),
        (
            {"arms__iet_agc_plus__shard__num_shards": 7},
            "60 training images in 7 shards leave a shard of 8, fewer than one batch (train.batch_size = 10)",
        ),
        ({"score__neighbours": 61}, "score.neighbours is 61, more than the 60 training images"),
        ({"sample__parts": 4}, "sample.parts of ddpm is 4, but its 50 images in batches of 20 are 3 batches: use at most 3"),
        ({"arms__iet_agc_plus__sample__parts": 4}, "sample.parts of iet_agc_plus is 4"),
        ({"score__headline__threshold": 0.55}, "score.headline.threshold is 0.55, expected one of score.thresholds [0.4, 0.5"),
        ({"sample__weights": ["ema"]}, "score.headline.weights is raw, but sample.weights of ddpm is ['ema']"),
        ({"arms__iet_agc_plus__sample__weights": ["ema"]}, "but sample.weights of iet_agc_plus is ['ema']"),
        ({"sample__num_steps": 11}, "sample.num_steps of ddpm is 11, expected at most half of diffusion.num_timesteps = 20"),
        ({"diffusion__beta_start": 0.5}, "diffusion.beta_start is 0.5, expected at most diffusion.beta_end = 0.4"),
        ({"model__attention_levels": [2]}, "model.attention_levels has 2, expected less than the number of levels"),
        ({"model__block_channels": [8, 18]}, "model.block_channels has 18, expected multiples of model.norm_groups = 4"),
        ({"data__num_train": ...}, "the key data.num_train is missing: data.name digits needs it"),
        ({"data__name": "image_folder"}, "the key data.root is missing: data.name image_folder needs it"),
        ({"data__size": 8}, "data.size has no effect for data.name digits: remove it"),
        ({"data__name": "cifra10"}, "data.name is 'cifra10', expected one of afhq_dog, captioned_folder, cifar10, cifar100, digits,"),
        ({"data__name": "cifra10"}, " fashion_mnist, image_folder, train_and_heldout (the image set): did you mean cifar10?"),
        ({"data__name": ""}, "data.name is empty, expected at least one entry (the image set)"),
        ({"data__name": "afhq_dog"}, "the key data.root is missing: data.name afhq_dog needs it"),
        ({"data__name": "afhq_dog", "data__root": "x", "data__size": 64}, "data.size has no effect for data.name afhq_dog"),
        (
            {"data__name": "cifar100", "data__root": "x", "data__heldout_share": 0.1},
            "data.heldout_share has no effect for data.name cifar100: remove it",
        ),
        ({"data__download": "yes"}, "data.download is 'yes', expected true or false (fetch the official files that root lacks"),
        (
            {"data__download": True},
            "data.download cannot fetch digits: its images come with scikit-learn; remove data.download",
        ),
        (
            {"data__name": "image_folder", "data__root": "x", "data__download": True},
            "data.download cannot fetch image_folder: put your images under data.root; remove data.download",
        ),
        (
            {"data__name": "afhq_dog", "data__root": "x", "data__download": True},
            "data.download cannot fetch afhq_dog: put the folders train/dog and val/dog of AFHQ v1 (from the project stargan-v2 "
            "of clovaai: download.sh afhq-dataset) under data.root; remove data.download",
        ),
        (
            {"data__name": "image_folder", "data__root": "x", "data__heldout_share": 0.5},
            "data.num_train and data.heldout_share both say what is held out: give one of them",
        ),
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together(file, changes, told):
    assert told in sentence(file, changed(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"arms__iet_agc_plus__method__taa__R": INF},
        {"arms__iet_agc_plus__shard__num_shards": 6},  # shards of exactly one batch
        {"sample__parts": 3},  # as many as batches
        {"score__neighbours": 60},
        {"diffusion__beta_start": 0.4},
        {"sample__num_steps": 10},
        {"data__name": "cifar100", "data__root": "x", "data__download": True},
        {"data__name": "fashion_mnist", "data__root": "x", "data__download": False},
        {"data__name": "afhq_dog", "data__root": "x"},
        {
            "arms__iet_agc_plus__method": {"name": "ddpm"},
            "arms__iet_agc_plus__redistribute__select": "random",
        },
    ],
)
def test_the_last_values_that_are_allowed(file, changes):
    file.write_text(changed(**changes))
    assert rules.load(file)["data"]["num_train"] == 60


def test_a_missing_file_says_where_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^there is no params\.yaml in .*: go to the root of the project first: cd {ROOT}$"
    ):
        rules.load()


def test_an_arm_settings_lie_over_the_shared_ones():
    experiment = yaml.safe_load(TINY)
    experiment["arms"]["ddpm"]["train"]["batch_size"] = 7
    before = copy.deepcopy(experiment)
    assert experiments.section(experiment, "train", "ddpm") == {**experiment["train"], "epochs": 10, "batch_size": 7}
    assert experiments.section(experiment, "train", "iet_agc_plus")["batch_size"] == 10
    assert experiment == before


def test_whatever_the_text_it_loads_or_is_refused_in_one_sentence(file):
    """Random mutations of the project's own params.yaml, with the signs that mean something in YAML among them."""
    rng = random.Random(0)
    pieces = ["\0", "\t", "\n", "  ", "{", "}", "[", "]", ":", "- ", "&a ", "*a", "!!int ", "!!bool ", "<<: ", "? ", "'", '"', "#",
              "~", "1e5", "-", ".inf", ".nan", "0x", "2024-13-01", "yes", "\ufeff", "é", "|", ">", "%", "@", "---\n", "99999999999"]  # fmt: skip
    start, seen = time.monotonic(), {"loads": 0, "refused": 0}
    while time.monotonic() - start < 2:
        text = OWN
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(text))
            end = at + rng.choice([0, 0, 1, 1, 3, 20])
            text = text[:at] + rng.choice([*pieces, "", chr(rng.randrange(1, 0x250))]) + text[end:]
        file.write_text(text, encoding="utf-8")
        try:
            rules.load(file)
            seen["loads"] += 1
        except ValueError as error:
            told = str(error)
            assert told.startswith(str(file)) and "\n" not in told and len(told) < 400, (text, told)
            seen["refused"] += 1
    assert min(seen.values()) > 5, seen


def test_make_settings_lists_every_key_of_the_schema_with_its_meaning(capsys):
    """Sections of phases, training methods and mitigations included; `ONLY` picks those that begin so."""
    settings.main([])
    told = capsys.readouterr().out.splitlines()
    for line in (
        "score.neighbours: number of nearest training images that the ratio uses; integer; at least 2; default 50",
        "diffusion.num_timesteps: T, number of timesteps; integer; at least 1; default 1000",
        "train.ema_decay: decay of the EMA weights per optimiser step; 0: no EMA weights are kept; number; at least 0, less than 1",
        "arms.<name>.method (agc).eta: decay of the memory bank per sample; number; at least 0, less than 1; default 0.8",
    ):
        assert line in told
    keys = {line.partition(":")[0] for line in told}
    for name, phase in declarations.phases().items():
        of_section = phase.get("section", {}).get("properties", {})
        assert {f"{name}.{key}" for key in of_section} <= keys
        of_arms = of_section if phase.get("arms_override") else phase.get("arm_section", {}).get("properties", {})
        assert {f"arms.<name>.{name}.{key}" for key in of_arms} <= keys
    settings.main(["clip"])
    assert {line.partition(":")[0] for line in capsys.readouterr().out.splitlines()} == {
        "clip", "clip.model", "clip.preprocess", "clip.batch_size",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no key begins with xyzzy"):
        settings.main(["xyzzy"])

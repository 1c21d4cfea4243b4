"""The plan says what runs on what; renewing it removes what left the experiment and nothing else."""

import copy
import os
import random
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, TINY, Project
from PIL import Image

from stages import data, phases, plan, rules, sample
from stages.run import files


def experiment(**changes):
    """The tiny experiment with changes; path with '__' for '.'."""
    tiny = yaml.safe_load(TINY)
    for path, value in changes.items():
        *folders, last = path.split("__")
        section = tiny
        for folder in folders:
            section = section[folder]
        section[last] = value
    return tiny


def only(recipe, **changes):
    """One arm named a."""
    tiny = experiment(**changes)
    tiny["arms"] = {
        "a": {"method": {"name": "ddpm"}, "train": {"epochs": 1}, "redistribute": {}, "sample": {}, **recipe}
    }
    return tiny


MSR = {"share": 0.25, "select": "random"}
PIXELS = {"kind": "stages/pixels", "architecture": "stages/diffusion/unet.py"}


def listed(tiny):
    """What plan.json says of an experiment: block -> key -> fields, but for those that follow from others."""
    found = yaml.safe_load(plan.text(plan.expand(tiny)))["plan"]
    for items in found.values():
        for item in items.values():
            if isinstance(item, dict):
                item.pop("place", None), item.pop("arguments", None)
    return found


def outputs(plan_):
    return [path for instance in plan_.values() for path in instance.outputs()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(plan_):
    """Everything that the instances of a plan write, as small files, and a dvc.lock that names all stages."""
    for path in outputs(plan_):
        if path.suffix in (".ok", ".safetensors"):
            files.write_text(path, str(path))
        else:
            files.write_text(path / "content", str(path))
    entries = {name: {"cmd": f"run {name}", "outs": [{"path": name, "md5": "0" * 32}]} for name in sorted(plan_)}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": entries}, sort_keys=False))


def tree():
    return {str(p): p.read_text() for p in Path("artifacts").rglob("*") if p.is_file()}


def lock_entries():
    return yaml.safe_load(Path("dvc.lock").read_text())["stages"]


def test_expand_is_a_pure_function():
    first = experiment()
    before = copy.deepcopy(first)
    assert plan.expand(first) == plan.expand(first)
    assert first == before
    plan.expand(first).clear()
    assert len([name for name in plan.expand(first) if name.startswith("train")]) == 5


def test_two_shards_and_three_rounds_with_redistribution_by_hand():
    found = listed(only({"rounds": 3, "shard": {"num_shards": 2}, "redistribute": MSR}, seeds=[7]))
    a = {"arm": "a", "seed": 7, "run": "a-seed7"}
    assert found["shard"] == {"a-seed7": a} and found["score"] == {"a-seed7-round3": a | {"round": 3}}
    assert list(found["train"]) == [f"a-seed7-round1-shard{k}" for k in (0, 1)]
    assert list(found["train_next"]) == [f"a-seed7-round{r}-shard{k}" for r in (2, 3) for k in (0, 1)]
    assert found["train"]["a-seed7-round1-shard1"] == a | PIXELS | {
        "method": "stages/methods/ddpm.py",
        "round": 1,
        "shard": 1,
        "index": "artifacts/shards/a-seed7/round1/shard1.npy",
    }
    assert found["train_next"]["a-seed7-round3-shard0"] == a | PIXELS | {
        "method": "stages/methods/ddpm.py",
        "round": 3,
        "shard": 0,
        "index": "artifacts/shards/a-seed7/round3/shard0.npy",
        "model": "artifacts/model/a-seed7/round2",  # of the round before
        "state": "artifacts/train/a-seed7/round2/shard0",  # of the same shard
    }
    assert found["aggregate"] == {f"a-seed7-round{r}": a | {"round": r} for r in (1, 2, 3)}
    assert found["redistribute"] == {  # none after the last round
        f"a-seed7-round{r}": a
        | {
            "round": r,
            "shards": f"artifacts/shards/a-seed7/round{r}",
            "next_shards": f"artifacts/shards/a-seed7/round{r + 1}",
        }
        for r in (1, 2)
    }
    assert found["redistribute_both"] == {}
    assert found["sample"] == {
        f"a-seed7-round3-part{p}": a
        | PIXELS
        | {
            "section": "method",
            "method": "stages/methods/ddpm.py",
            "round": 3,
            "part": p,
            "model": "artifacts/model/a-seed7/round3",
        }
        for p in (0, 1)
    }
    assert found["data"] == {"source": "requirements.txt"}


def test_alternating_rounds_by_hand():
    """Odd rounds end with a move, even ones with an average; what moves is counted since the last move."""
    msr = {"share": 0.25, "select": "memory", "schedule": "alternating"}
    found = listed(only({"rounds": 4, "shard": {"num_shards": 2}, "redistribute": msr}, seeds=[7]))
    assert list(found["aggregate"]) == ["a-seed7-round2", "a-seed7-round4"]
    shards, a = "artifacts/shards/a-seed7/round", {"run": "a-seed7", "arm": "a", "seed": 7}
    first = {"round": 1, "shards": f"{shards}1", "next_shards": f"{shards}2"}
    assert found["redistribute"] == {"a-seed7-round1": a | first}
    third = {"round": 3, "shards": f"{shards}2", "next_shards": f"{shards}4", "round_before": 2}
    assert found["redistribute_both"] == {"a-seed7-round3": a | third}
    trained = found["train"] | found["train_next"]
    of_shard_1 = [trained[f"a-seed7-round{r}-shard1"] for r in (1, 2, 3, 4)]
    assert [item["index"] for item in of_shard_1] == [f"{shards}{r}/shard1.npy" for r in (1, 2, 2, 4)]
    own = "artifacts/train/a-seed7/round{}/shard1/raw.safetensors"
    assert [item.get("model") for item in of_shard_1] == [
        None, own.format(1), "artifacts/model/a-seed7/round2", own.format(3),
    ]  # fmt: skip
    assert {item["model"] for item in found["sample"].values()} == {"artifacts/model/a-seed7/round4"}


def test_each_sampled_round_has_its_own_instances_and_a_further_one_changes_no_other():
    """In any order; 'all' leaves out the rounds of an alternating schedule that end without an averaged model."""
    arms = {"rounds": 4, "shard": {"num_shards": 2}, "redistribute": MSR | {"schedule": "alternating"}}
    one, two = (listed(only(arms | {"sample_rounds": rounds})) for rounds in ([2], [4, 2]))
    assert list(two["sample"]) == [f"a-seed3-round{r}-part{p}" for r in (2, 4) for p in (0, 1)]
    assert list(two["score"]) == ["a-seed3-round2", "a-seed3-round4"]
    assert [two["sample"][f"a-seed3-round{r}-part1"]["model"] for r in (2, 4)] == [
        f"artifacts/model/a-seed3/round{r}" for r in (2, 4)
    ]
    assert one["sample"].items() < two["sample"].items() and one["score"].items() < two["score"].items()
    assert {block: items for block, items in one.items() if block not in ("sample", "score")} == {
        block: items for block, items in two.items() if block not in ("sample", "score")
    }
    assert listed(only(arms | {"sample_rounds": "all"})) == two
    of_all = only(arms) | {"sample_rounds": [2]}
    assert listed(of_all) == one
    expanded = plan.expand(only(arms | {"sample_rounds": [4, 2]}))
    part, scores = expanded["sample@a-seed3-round2-part1"], expanded["score@a-seed3-round2"]
    assert part.arguments == "--arm a --seed 3 --round 2 --part 1" and scores.arguments == "--arm a --seed 3 --round 2"
    assert part.outputs() == [Path("artifacts/samples/a-seed3/round2/part1")]
    assert scores.place == "a-seed3/round2" and scores.outputs() == [Path("artifacts/results/score/a-seed3/round2")]


def test_without_redistribution_the_index_lists_of_round_1_hold_throughout():
    found = listed(only({"rounds": 3, "shard": {"num_shards": 2}}, seeds=[0]))
    assert found["redistribute"] == {}
    trained = found["train"] | found["train_next"]
    assert {item["index"] for item in trained.values() if item["shard"] == 1} == {
        "artifacts/shards/a-seed0/round1/shard1.npy"
    }
    assert trained["a-seed0-round3-shard1"]["state"] == "artifacts/train/a-seed0/round2/shard1"


def test_one_shard_and_one_round():
    found = listed(only({"rounds": 1, "shard": {"num_shards": 1}, "redistribute": MSR, "sample": {"parts": 1}}))
    numbers = {block: len(keys) for block, keys in found.items() if block != "data" and keys}
    assert numbers == {"shard": 1, "train": 1, "aggregate": 1, "sample": 1, "score_reference": 1, "score": 1}


def test_every_seed_has_instances_of_its_own_and_an_arm_its_own_parts():
    found = listed(experiment(seeds=[5, 2], arms__ddpm__sample={"parts": 3}))
    runs = {f"{arm}-seed{s}-round{r}" for arm, r in (("ddpm", 1), ("iet_agc_plus", 2)) for s in (5, 2)}
    assert set(found["score"]) == runs
    of_ddpm = [key for key in found["sample"] if key.startswith("ddpm-seed2")]
    assert of_ddpm == [f"ddpm-seed2-round1-part{p}" for p in range(3)]
    assert len([key for key in found["sample"] if key.startswith("iet")]) == 2 * 2
    two = found["train_next"]["iet_agc_plus-seed2-round2-shard1"]
    assert all("seed2" in two[key] for key in ("index", "model", "state"))


def test_data_come_from_the_folder_where_there_is_one():
    found = listed(experiment(data={"name": "image_folder", "root": "my images", "split_seed": 0}))
    assert found["data"] == {"source": "my images"}
    found = listed(experiment(data={"name": "afhq_dog", "root": "afhq", "split_seed": 0}))
    assert found["data"] == {"source": "afhq"}


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_a_set_with_checksums_is_pinned_by_the_package_that_has_them(name):
    """DVC wants every dependency to be there; the folder of such a set may not be, before a download."""
    found = listed(experiment(data={"name": name, "root": "none", "split_seed": 0}))
    assert found["data"] == {"source": "requirements.txt"}


def test_images_that_are_the_same_for_every_seed_are_scored_once():
    theirs = {name: {"generator": {name: "x"}, "sample": {}} for name in ("folder", "file", "pipeline")}
    found = listed(experiment(seeds=[5, 2], arms=theirs))
    assert list(found["score"]) == ["folder-seed5", "file-seed5", "pipeline-seed5", "pipeline-seed2"]
    assert list(found["sample_elsewhere"]) == [f"{run}-part0" for run in found["score"]]
    assert not found["sample"] and not found["train"]


def test_an_arm_that_samples_the_model_of_another_arm_trains_nothing_whatever_the_seed():
    """Its own seeds, the other arm's models: IET's of two rounds, by the method of that arm."""
    arms = experiment()["arms"] | {"b": {"generator": {"arm": "iet_agc_plus"}, "sample": {"parts": 1}}}
    found = listed(experiment(seeds=[5, 2], arms=arms))
    assert {
        item["arm"]
        for block in ("shard", "train", "train_next", "aggregate", "redistribute")
        for item in found[block].values()
    } == {
        "ddpm",
        "iet_agc_plus",
    }
    for seed in (5, 2):
        item = found["sample"][f"b-seed{seed}-round2-part0"]
        assert (item["section"], item["method"]) == ("generator", "stages/methods/agc")
        assert item["model"] == f"artifacts/model/iet_agc_plus-seed{seed}/round2"


def test_images_of_a_generator_in_artifacts_are_refused_as_they_would_be_removed(folder):
    Path("artifacts/mine").mkdir(parents=True)
    theirs = {"generator": {"folder": "artifacts/mine"}, "sample": {}}
    with pytest.raises(
        ValueError, match=r"artifacts/mine of arms.theirs.generator lies in artifacts/, which is cleared"
    ):
        sample.check_files(experiment(arms={"theirs": theirs}))


def test_every_run_is_analysed_where_the_section_is_there():
    """On its final model; nothing else changes."""
    without, with_section = experiment(seeds=[5, 2]), experiment(seeds=[5, 2], analyse={})
    before, after = listed(without), listed(with_section)
    assert before["analyse"] == {} and len(after["analyse"]) == 4
    assert {item["run"] for item in after["analyse"].values()} == {item["run"] for item in after["score"].values()}
    assert after["analyse"]["iet_agc_plus-seed2"] == PIXELS | {
        "arm": "iet_agc_plus", "seed": 2, "run": "iet_agc_plus-seed2", "method": "stages/methods/agc",
        "model": "artifacts/model/iet_agc_plus-seed2/round2", "nearest": "artifacts/results/score/iet_agc_plus-seed2/round2",
        "samples": "artifacts/samples/iet_agc_plus-seed2/round2",
    }  # fmt: skip
    assert after | {"analyse": {}} == before
    one, other = plan.expand(without), plan.expand(with_section)
    assert other.keys() - one.keys() == {f"analyse@{key}" for key in after["analyse"]}
    more = set(outputs(other)) - set(outputs(one))
    assert more == {Path("artifacts/results/analyse") / key for key in after["analyse"]}


def test_more_rounds_leave_the_items_of_earlier_rounds_as_they_are():
    """DVC reruns an instance whose fields changed: growing an experiment must cost the new rounds only."""
    three, five = (listed(only({"rounds": r, "shard": {"num_shards": 2}, "redistribute": MSR})) for r in (3, 5))
    for phase in ("shard", "train", "train_next", "aggregate", "redistribute"):
        assert three[phase].items() <= five[phase].items()
        assert list(five[phase])[: len(three[phase])] == list(three[phase])
    assert len(five["train_next"]) - len(three["train_next"]) == 4 and "a-seed3-round3" in five["redistribute"]
    assert {item["model"] for item in five["sample"].values()} == {"artifacts/model/a-seed3/round5"}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_experiment_each_input_is_made_by_an_earlier_instance(seed):
    rng = random.Random(seed)
    tiny = experiment(seeds=rng.sample(range(99), rng.randint(1, 3)))
    tiny["arms"] = {
        f"arm{i}": {
            "rounds": rng.randint(1, 4),
            "shard": {"num_shards": rng.randint(1, 4)},
            "method": {"name": "ddpm"},
            "train": {"epochs": 1},
            "redistribute": rng.choice([{}, MSR]),
            "sample": rng.choice([{}, {"parts": rng.randint(1, 3)}]),
        }
        for i in range(rng.randint(1, 3))
    }
    made = outputs(plan.expand(tiny))
    assert len(made) == len(set(made))
    items = [item for block, keys in listed(tiny).items() if block != "data" for item in keys.values()]
    for item in items:
        for field in {"index", "model", "state", "shards"} & item.keys():
            path = Path(item[field])
            assert path in made or path.parent in made  # an index list lies in the folder of its round
        for field in {"method", "architecture"} & item.keys():
            assert (ROOT / item[field]).exists()
        assert ("model" in item) == (item.get("round", 1) > 1) or "shard" not in item
    assert len(items) > 4


def test_the_plan_of_the_project_is_that_of_its_parameters():
    assert (ROOT / "plan.json").read_text() == plan.text(plan.expand(rules.load(ROOT / "params.yaml")))


def test_dvc_reads_the_plan_as_it_was_meant():
    from dvc.utils.serialize import parse_yaml

    found = plan.expand(experiment(data={"name": "image_folder", "root": 'it\'s: "images" #1 & ünï', "split_seed": 0}))
    read = parse_yaml(plan.text(found), "plan.json")["plan"]
    assert read["data"] == {"source": 'it\'s: "images" #1 & ünï'}
    assert read["train"] == {i.key: i.item() for i in found.values() if i.block == "train"} and len(read["train"]) == 3


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # of a package of DVC's
def test_dvc_resolves_dvc_yaml_to_exactly_these_instances(folder, monkeypatch):
    """Every artifact that a stage reads is the output of one stage, lies inside it, or is the parent of outputs."""
    from dvc.repo import Repo

    project = Project.create(folder / "project", TINY)
    monkeypatch.chdir(project.root)
    found = plan.expand(yaml.safe_load(TINY))
    Path("plan.json").write_text(plan.text(found))
    repo = Repo()
    try:
        stages = {stage.addressing: stage for stage in repo.index.stages}
        assert set(stages) == set(found)
        root = Path(repo.root_dir)
        outs = {Path(out.fs_path).relative_to(root): name for name, stage in stages.items() for out in stage.outs}
        own_reports = {
            Path("metrics.json"),
            *(
                Path(f"plots/{n}.{kind}")
                for n in ("mq_curve", "trade_off", "training", "skip_histogram")
                for kind in ("csv", "svg")
            ),
        }
        assert set(outs) == set(outputs(found)) | own_reports
        for name, instance in found.items():
            made = {path for path, by in outs.items() if by == name} - own_reports
            assert made == set(instance.outputs()), name
        for name, stage in stages.items():
            for dep in stage.deps:
                path = Path(dep.fs_path).relative_to(root)
                if path.parts[0] != "artifacts":
                    assert (root / path).exists(), (name, path)
                    continue
                around = [out for out in outs if out == path or out in path.parents]
                inside = [out for out in outs if path in out.parents]
                assert (len(around) == 1) != bool(inside), (name, path)
                assert name not in {outs[out] for out in around + inside}
        waits_for = {name: {dep.addressing for dep in repo.index.graph.successors(stages[name])} for name in stages}
    finally:
        repo.close()
    run = "iet_agc_plus-seed3"
    assert waits_for[f"train_next@{run}-round2-shard1"] == {
        "data", f"redistribute@{run}-round1", f"aggregate@{run}-round1", f"train@{run}-round1-shard1",
    }  # fmt: skip
    assert waits_for[f"aggregate@{run}-round2"] == {f"train_next@{run}-round2-shard{k}" for k in (0, 1)}
    assert waits_for[f"redistribute@{run}-round1"] == {
        f"shard@{run}",
        *(f"train@{run}-round1-shard{k}" for k in (0, 1)),
    }
    assert waits_for[f"sample@{run}-round2-part1"] == {"data", f"aggregate@{run}-round2"}
    assert waits_for["plan"] == set()


def test_refresh_writes_and_says_so_once(folder):
    found = plan.expand(experiment())
    assert plan.refresh(found) == ["plan.json now has 21 new stages and 0 fewer old ones"]
    assert Path("plan.json").read_text() == plan.text(found)
    assert plan.refresh(found) == []


def test_refresh_of_a_finished_experiment_touches_nothing(folder):
    found = plan.expand(experiment())
    plan.refresh(found)
    make(found)
    before, lock = tree(), Path("dvc.lock").read_bytes()
    assert plan.refresh(found) == []
    assert tree() == before and Path("dvc.lock").read_bytes() == lock


def test_refresh_removes_what_left_the_plan_and_only_that(folder):
    """A shard folder that stays when K shrinks would be averaged into the model: stages read whole folders."""
    old, new = plan.expand(experiment()), plan.expand(experiment(arms__iet_agc_plus__shard__num_shards=1))
    plan.refresh(old)
    make(old)
    files.write_text("artifacts/train/.gitignore", "/shard1\n")
    files.write_text("artifacts/train/iet_agc_plus-seed3/round1/shard7/raw.safetensors", "stray")
    files.write_text("artifacts/notes/mine.txt", "stray")
    before, lock = tree(), lock_entries()

    changes = plan.refresh(new)
    gone = {"train@iet_agc_plus-seed3-round1-shard1", "train_next@iet_agc_plus-seed3-round2-shard1"}
    assert changes[0] == "plan.json now has 0 new stages and 2 fewer old ones"
    assert changes[1].startswith(
        "6 folders or files of artifacts/ and 2 entries of dvc.lock that belong to no stage of the plan"
    )
    removed = before.keys() - tree().keys()
    assert removed == {
        *(f"artifacts/train/iet_agc_plus-seed3/round{r}/shard1/content" for r in (1, 2)),
        *(f"artifacts/results/counts/iet_agc_plus-seed3/round{r}/shard1/content" for r in (1, 2)),
        "artifacts/train/iet_agc_plus-seed3/round1/shard7/raw.safetensors",
        "artifacts/notes/mine.txt",
    }
    assert not Path("artifacts/train/iet_agc_plus-seed3/round1/shard1").exists()
    assert tree().items() <= before.items() and "artifacts/train/.gitignore" in tree()
    assert lock_entries() == {name: entry for name, entry in lock.items() if name not in gone}
    assert plan.refresh(new) == []


def test_an_arm_that_left_goes_whole_and_new_rounds_remove_nothing(folder):
    old = plan.expand(experiment())
    plan.refresh(old)
    make(old)
    before, lock = tree(), lock_entries()
    longer = experiment(arms__iet_agc_plus__rounds=4, arms__iet_agc_plus__sample_rounds=[2, 4])
    plan.refresh(plan.expand(longer))
    assert tree() == before and lock_entries() == lock  # a structural change loses no record

    plan.refresh(plan.expand(experiment(arms__iet_agc_plus__rounds=4)))  # its second round is no longer sampled
    measured = [f"artifacts/{name}/iet_agc_plus-seed3/round2" for name in ("samples", "results/score")]
    assert tree() == {path: text for path, text in before.items() if not path.startswith(tuple(measured))}
    assert lock.keys() - lock_entries().keys() == {
        "score@iet_agc_plus-seed3-round2", *(f"sample@iet_agc_plus-seed3-round2-part{p}" for p in (0, 1)),
    }  # fmt: skip

    tiny = experiment()
    del tiny["arms"]["ddpm"]
    plan.refresh(plan.expand(tiny))
    runs = {part for path in tree() for part in Path(path).parts if "-seed" in part}
    assert runs == {"iet_agc_plus-seed3"} and "artifacts/data/content" in tree()
    assert not [name for name in lock_entries() if "ddpm-" in name]


def test_a_dry_run_writes_the_plan_and_removes_nothing(folder):
    old = plan.expand(experiment())
    plan.refresh(old)
    make(old)
    before, lock = tree(), Path("dvc.lock").read_bytes()
    new = plan.expand(experiment(seeds=[3, 4], arms__iet_agc_plus__shard__num_shards=1))
    changes = plan.refresh(new, dry_run=True)
    assert "would be removed" in changes[1] and changes[1].startswith("4 folders or files")
    assert tree() == before and Path("dvc.lock").read_bytes() == lock
    assert Path("plan.json").read_text() == plan.text(new)


def test_a_stray_link_goes_without_what_it_points_to(folder):
    found = plan.expand(experiment())
    files.write_text("elsewhere/mine.txt", "mine")
    Path("artifacts").mkdir()
    os.symlink(Path("elsewhere").resolve(), "artifacts/link")
    plan.refresh(found)
    assert not Path("artifacts/link").is_symlink() and Path("elsewhere/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "old", ["<<<<<<< HEAD\nplan: {}\n=======\nplan:\n>>>>>>> other\n", "", "plan:\n", "[]", "plan: [1]", "a: {}"]
)
def test_a_plan_that_cannot_be_read_is_written_anew(folder, old):
    """After a merge with conflicts, for one: it is derived, so nothing is lost."""
    Path("plan.json").write_text(old)
    found = plan.expand(experiment())
    assert plan.refresh(found)[0].startswith("plan.json now has ")
    assert Path("plan.json").read_text() == plan.text(found) and plan.refresh(found) == []


@pytest.mark.parametrize("lock", ["schema: '2.0'\nstages:\n<<<<<<< HEAD\n  a: 1\n", "- a\n", "stages: [1]\n"])
def test_a_lock_file_that_cannot_be_read_is_told(folder, lock):
    Path("dvc.lock").write_text(lock)
    with pytest.raises(ValueError, match=r"^dvc\.lock cannot be read, .*restore it \(git checkout dvc\.lock\)"):
        plan.refresh(plan.expand(experiment()))
    assert Path("dvc.lock").read_text() == lock


@pytest.mark.parametrize("lock", ["", "schema: '2.0'\nstages: {}\n", "schema: '2.0'\n"])
def test_an_empty_lock_file_has_no_stray_entry(folder, lock):
    plan.refresh(plan.expand(experiment()))
    Path("dvc.lock").write_text(lock)
    assert plan.refresh(plan.expand(experiment())) == []


def test_images_are_not_looked_for_where_stray_files_are_removed(folder):
    """artifacts/ is cleared of what no stage makes: that would be the user's own images."""
    for root in ("artifacts/images", "./artifacts/../artifacts/data", str(folder / "artifacts")):
        Path(root).mkdir(parents=True, exist_ok=True)
        with pytest.raises(ValueError, match="lies in artifacts/"):
            data.check_files(experiment(data={"name": "image_folder", "root": root, "split_seed": 0}))


def test_a_folder_that_is_gone_is_told_unless_its_images_are_decoded_already(folder):
    section = experiment(data={"name": "image_folder", "root": "images", "split_seed": 0})
    told = rf"^the folder {folder}/images does not exist: put your images under data\.root, or mend data\.root"
    with pytest.raises(ValueError, match=told):
        data.check_files(section)
    files.write_text("artifacts/data/train.npy", "decoded")
    with pytest.raises(ValueError, match=told):
        data.check_files(section)  # it may be another set
    lock = {"schema": "2.0", "stages": {"data": {"params": {"params.yaml": {"data": section["data"]}}}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    data.check_files(section)
    with pytest.raises(ValueError, match=told.replace("/images", "/others")):
        data.check_files(experiment(data={"name": "image_folder", "root": "others", "split_seed": 0}))
    data.check_files(experiment())


def test_a_folder_that_a_download_will_make_need_not_be_there(folder):
    section = {"name": "cifar10", "root": "data"}
    with pytest.raises(
        ValueError, match=rf"^the folder {folder}/data does not exist: put the folder cifar-10-batches-py"
    ):
        data.check_files(experiment(data=section))
    data.check_files(experiment(data={**section, "download": True}))


def test_what_lies_behind_a_link_is_not_watched_which_is_told(folder, capsys):
    for path in ("elsewhere", "images/bird"):
        Path(path).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (8, 8), i).save(f"{path}/{i}.png")
    section = experiment(data={"name": "image_folder", "root": "images", "split_seed": 0})
    data.check_files(section)
    assert capsys.readouterr().err == ""
    os.symlink("../elsewhere", "images/cat")
    data.check_files(section)
    assert capsys.readouterr().err == (
        "images/cat in data.root: a link, behind which DVC does not look; when images change there, run: dvc repro --force "
        "--single-item data\n"
    )
    data.check_files(
        experiment(data={"name": "cifar10", "root": "images", "split_seed": 0})
    )  # its checksums say what its images are
    assert capsys.readouterr().err == ""
    os.symlink("nowhere", "images/dog")
    with pytest.raises(ValueError, match=r"^images/dog is a link to nothing \(nowhere\)"):
        data.check_files(section)


def test_the_stage_asks_for_another_run_after_a_change_and_then_agrees(folder):
    Path("params.yaml").write_text(TINY)
    project = Project(folder)
    run = ("python", "-m", "stages.plan")
    here = {"PYTHONPATH": str(ROOT)}
    left_out = [phases.declared(name)["left_out"] for name in ("quality", "membership")]
    first = project.run(*run, check=False, env=here)
    assert first.returncode == 1
    assert first.text.splitlines() == [
        *left_out,
        "plan.json now has 21 new stages and 0 fewer old ones",
        "error: the structure of the experiment changed and the plan was renewed: run the same command again",
    ]
    assert Path("artifacts/plan.ok").exists()
    second = project.run(*run, check=False, env=here)
    assert (second.returncode, second.text) == (0, "".join(f"{sentence}\n" for sentence in left_out))

    Path("params.yaml").write_text(TINY.replace("learning_rate: 2.0e-3", "learning_rate: 1.0e-3"))
    assert project.run(*run, env=here).text == second.text  # a value is no structure

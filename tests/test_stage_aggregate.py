"""The phase aggregate on planted weights: which models of which round, seed and kind it averages, and under which names."""

import numpy as np
import pytest
import yaml
from conftest import TINY, write_params

from stages import aggregate
from stages.run import files

ARM = "iet"
WEIGHTS = {"raw": [1, 4, 10], "ema": [2, 8, 32]}  # of the three shards in round 2; means 5 and 14


def write_experiment(num_shards, kinds=("raw", "ema")):
    """Models of three rounds, two seeds and one shard more than the arm has: those of another place are larger by far."""
    experiment = yaml.safe_load(TINY)
    arm = experiment["arms"]["iet_agc_plus"] | {"rounds": 3, "shard": {"num_shards": num_shards}}
    experiment |= {"seeds": [3, 4], "arms": {ARM: arm}}
    write_params(experiment)
    for seed in (3, 4):
        for round_ in (1, 2, 3):
            for kind in kinds:
                for k, value in enumerate([*WEIGHTS[kind], 1000]):
                    elsewhere = 0 if (seed, round_) == (4, 2) else 10_000 * seed + 100_000 * round_
                    arrays = {"a": [[value, 2 * value]], "b": [-value]}
                    arrays = {name: np.array(array, np.float32) + elsewhere for name, array in arrays.items()}
                    folder = files.folder("train", files.run_name(ARM, seed), round_, k)
                    files.save_arrays(folder / f"{kind}.safetensors", arrays)
    aggregate.main(["--arm", ARM, "--seed", "4", "--round", "2"])
    folder = files.folder("model", "iet-seed4", 2)
    return {path.stem: files.load_arrays(path) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(("num_shards", "raw", "ema"), [(3, 5, 14), (2, 2.5, 5), (1, 1, 2)])
def test_the_model_of_a_round_is_the_mean_of_the_shards_of_that_round_alone(
    tmp_path, monkeypatch, num_shards, raw, ema
):
    monkeypatch.chdir(tmp_path)
    found = write_experiment(num_shards)
    assert set(found) == {"raw", "ema"}
    for kind, mean in (("raw", raw), ("ema", ema)):
        assert found[kind]["a"].tolist() == [[mean, 2 * mean]] and found[kind]["b"].tolist() == [-mean], kind
        assert {array.dtype for array in found[kind].values()} == {np.dtype(np.float32)}
    assert not files.folder("model", "iet-seed3").exists()


def test_without_ema_weights_there_is_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(write_experiment(3, ["raw"])) == {"raw"}


def test_a_shard_that_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment(3)
    for kind in ("raw", "ema"):
        path = files.folder("train", "iet-seed4", 2, 2) / f"{kind}.safetensors"
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(ValueError, match=f"shard2/{kind}.safetensors is missing"):
            aggregate.main(["--arm", ARM, "--seed", "4", "--round", "2"])
        path.write_bytes(content)

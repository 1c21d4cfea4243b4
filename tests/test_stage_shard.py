"""The phase shard on planted classes: which labels, which seed, which split, and under which names."""

import numpy as np
import yaml
from conftest import TINY, write_params

from stages import shard
from stages.run import files

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [13, 7, 4]))


def dealt(seed, **section):
    experiment = yaml.safe_load(TINY)
    arm = experiment["arms"]["iet_agc_plus"] | {"shard": {"num_shards": 5} | section}
    write_params(experiment | {"seeds": [2, 9], "arms": {"ddpm": experiment["arms"]["ddpm"], "iet": arm}})
    files.save_array(files.DATA / "train_labels.npy", LABELS)
    files.save_array(files.DATA / "heldout_labels.npy", LABELS[:9])
    shard.main(["--arm", "iet", "--seed", str(seed)])
    folder = files.folder("shards", f"iet-seed{seed}", 1)
    assert {path.name for path in folder.iterdir()} == {*(f"shard{k}.npy" for k in range(5)), "checksums.json"}
    return [np.load(folder / f"shard{k}.npy") for k in range(5)]


def expected(seed):
    """Each class shuffled, all of them in a row, and dealt like cards."""
    words = np.random.SeedSequence([2, seed]).generate_state(2, np.uint32)
    draws = np.random.default_rng(int(words[0]) | int(words[1]) << 32)
    row = [image for c in range(3) for image in draws.permutation([i for i in range(24) if LABELS[i] == c])]
    return [sorted(row[k::5]) for k in range(5)]


def test_shards_are_dealt_by_the_classes_of_the_training_images_and_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (9, 2):
        found = dealt(seed)
        assert [list(part) for part in found] == expected(seed)
        assert [len(part) for part in found] == [5, 5, 5, 5, 4] and {part.dtype for part in found} == {
            np.dtype(np.int64)
        }
        assert all(
            max(n) - min(n) <= 1 for n in np.transpose([np.bincount(LABELS[part], minlength=3) for part in found])
        )
    assert expected(9) != expected(2)


def test_a_contiguous_split_follows_the_order_of_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = dealt(9, split="contiguous")
    assert np.concatenate(found).tolist() == list(range(24)) and [len(part) for part in found] == [5, 5, 5, 5, 4]

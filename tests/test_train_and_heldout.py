"""The image set of two sides: what is read as what, with unequal numbers of images."""

import numpy as np
import pytest
from PIL import Image

from stages import image_sets

RNG = np.random.default_rng(8)


def write(root, side, images, folders=("",)):
    for i, image in enumerate(images):
        path = root / side / folders[i % len(folders)] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def load(root, **data):
    found = image_sets.load({"name": "train_and_heldout", "root": str(root), "split_seed": 0, **data})
    parts = [part and np.stack(list(part.images(range(len(part.keys))))) for part in (found.pool, found.test)]
    return found, *parts


def pixels(num, *shape):
    return RNG.integers(0, 256, (num, *shape), dtype=np.uint8)


def test_two_folders_with_the_same_classes(tmp_path):
    train, heldout = pixels(6, 5, 7), pixels(4, 5, 7)
    write(tmp_path, "train", train, ("dog", "cat"))
    write(tmp_path, "heldout", heldout, ("cat", "dog"))
    found, of_train, of_heldout = load(tmp_path)
    assert found.shape == (5, 7, 1) and found.classes == ["cat", "dog"]
    assert found.pool.keys == ["cat/01.png", "cat/03.png", "cat/05.png", "dog/00.png", "dog/02.png", "dog/04.png"]
    assert found.pool.labels.tolist() == [0, 0, 0, 1, 1, 1] and found.test.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(of_train[..., 0], train[[1, 3, 5, 0, 2, 4]])
    assert np.array_equal(of_heldout[..., 0], heldout[[0, 2, 1, 3]])


def test_sub_folders_of_one_side_only_are_no_classes(tmp_path):
    write(tmp_path, "train", pixels(6, 5, 5), ("old", "young"))
    write(tmp_path, "heldout", pixels(4, 5, 5), ("old",))
    found, *_ = load(tmp_path)
    assert found.classes == [] and not found.pool.labels.any() and not found.test.labels.any()


def test_an_array_beside_a_folder_in_colour(tmp_path):
    grey, colour = pixels(6, 5, 5), pixels(4, 5, 5, 3)
    np.savez(tmp_path / "train.npz", grey)
    write(tmp_path, "heldout", colour)
    found, of_train, of_heldout = load(tmp_path)
    assert found.shape == (5, 5, 3) and found.pool.keys == [str(i) for i in range(6)]
    assert np.array_equal(of_train, np.repeat(grey[..., None], 3, axis=3)) and np.array_equal(of_heldout, colour)


def test_nothing_held_out(tmp_path):
    np.save(tmp_path / "train.npy", pixels(6, 5, 5, 3))
    found, of_train, _ = load(tmp_path)
    assert found.test is None and of_train.shape == (6, 5, 5, 3)


def test_what_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"has no folder train, and no train.npz or train.npy: put the training images into a folder"
    ):
        load(tmp_path)
    np.save(tmp_path / "train.npy", pixels(6, 5, 5))
    with pytest.raises(ValueError, match=r"train.npy are 5x5 pixels, but data.size is 4: an array is not resized"):
        load(tmp_path, size=4)
    np.save(tmp_path / "heldout.npy", pixels(6, 5, 6))
    with pytest.raises(
        ValueError, match=r"the held-out images of .* are 6x5 pixels, but the training images are 5x5: give data.size"
    ):
        load(tmp_path)

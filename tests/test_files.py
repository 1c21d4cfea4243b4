"""Files appear whole or not at all, and what cannot be read or written is told in one sentence."""

import contextlib
import errno
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stages import files


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unfinished():
    return list(Path("scratch/unfinished").glob("*"))


def raising(error):
    def function(*_, **__):
        raise error

    return function


def test_a_file_appears_only_when_it_is_whole():
    with files.publish("artifacts/deep/a.txt") as temporary:
        temporary.write_text("half")
        assert not Path("artifacts/deep/a.txt").exists()
        assert temporary.parent == Path("scratch/unfinished")  # no folder that DVC hashes
        temporary.write_text("whole")
    assert Path("artifacts/deep/a.txt").read_text() == "whole"
    assert unfinished() == []


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_leaves_the_old_file_and_no_leftovers(error):
    files.write_text("artifacts/a.txt", "old")
    with pytest.raises(type(error)), files.publish("artifacts/a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert Path("artifacts/a.txt").read_text() == "old"
    assert unfinished() == []


def test_an_error_leaves_the_old_folder_and_no_leftovers():
    for content in ("old", None):
        with contextlib.suppress(ValueError), files.publish("artifacts/folder") as folder:
            folder.mkdir()
            (folder / "a.txt").write_text(content or "half")
            if content is None:
                raise ValueError
    assert [p.read_text() for p in Path("artifacts/folder").iterdir()] == ["old"]
    assert unfinished() == []


def test_a_folder_replaces_a_folder_as_a_whole():
    for name in ("one", "two"):
        with files.publish("artifacts/folder") as folder:
            folder.mkdir()
            (folder / name).write_text(name)
    assert [p.name for p in Path("artifacts/folder").iterdir()] == ["two"]


def test_a_read_only_hard_link_of_the_cache_keeps_its_content():
    """DVC's cache and the workspace share one read-only file: writing into it would spoil the cache."""
    Path("cache").mkdir()
    Path("artifacts").mkdir()
    Path("cache/ab").write_text("cached")
    os.link("cache/ab", "artifacts/plan.ok")
    Path("cache/ab").chmod(0o444)
    files.write_text("artifacts/plan.ok", "new")
    assert (Path("cache/ab").read_text(), Path("artifacts/plan.ok").read_text()) == ("cached", "new")
    assert Path("cache/ab").stat().st_nlink == 1


def test_a_full_disk_is_told_with_the_final_name_and_leaves_the_old_file(monkeypatch):
    files.save_arrays("artifacts/a.safetensors", {"x": np.arange(3)})
    monkeypatch.setattr(Path, "write_bytes", raising(OSError(errno.ENOSPC, "No space left on device", "scratch/x")))
    with pytest.raises(OSError) as caught:
        files.save_arrays("artifacts/a.safetensors", {"x": np.arange(4)})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.strerror.startswith("artifacts/a.safetensors was not written: the disk is full, ")
    assert caught.value.strerror.endswith("make room or mend the folder and run the same command again")
    assert caught.value.filename is None  # cli.run prints the sentence alone
    assert files.load_arrays("artifacts/a.safetensors")["x"].tolist() == [0, 1, 2]
    assert unfinished() == []


def test_of_a_folder_the_final_name_is_told_and_not_that_of_a_file_in_scratch(monkeypatch):
    with pytest.raises(OSError) as caught, files.publish("artifacts/train/run/shard0") as folder:
        monkeypatch.setattr(Path, "write_bytes", raising(OSError(errno.ENOSPC, "No space left on device")))
        files.save_arrays(folder / "raw.safetensors", {"x": np.arange(4)})
    assert caught.value.strerror.startswith("artifacts/train/run/shard0 was not written: the disk is full")
    assert unfinished() == []


def test_a_really_full_disk():
    """A tmpfs of a few pages in the place of scratch/, whose file system artifacts/ shares in a project."""
    Path("small").mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "small"], check=False).returncode
    ):
        pytest.skip("mounting a small file system is not permitted here")
    try:
        with contextlib.chdir("small"):
            files.save_array("artifacts/a.npy", np.arange(100))
            for save in (
                lambda: files.save_array("artifacts/a.npy", np.zeros(20_000)),
                lambda: files.save_arrays("artifacts/a.npy", {"x": np.zeros(20_000)}),
            ):
                with pytest.raises(OSError) as caught:
                    save()
                told = "artifacts/a.npy was not written: the disk is full, 0 MiB are free in"
                assert caught.value.strerror.startswith(told)
                assert files.load_array("artifacts/a.npy").tolist() == list(range(100))
                assert unfinished() == []
    finally:
        subprocess.run(["umount", "small"], check=True)


@pytest.mark.parametrize(
    ("number", "told"), [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")]
)
def test_a_folder_that_cannot_be_written_to_is_told(monkeypatch, number, told):
    """Simulated, since root may write anywhere. Removing the unfinished file then fails too, which must not hide it."""
    files.write_text("artifacts/a.txt", "old")
    monkeypatch.setattr(Path, "write_bytes", raising(OSError(number, told, "scratch/unfinished/x")))
    monkeypatch.setattr(Path, "unlink", raising(OSError(number, told, "scratch/unfinished/x")))
    with pytest.raises(OSError) as caught:
        files.write_text("artifacts/a.txt", "new")
    assert caught.value.strerror.startswith(f"artifacts/a.txt was not written: it cannot be written to ({told}), ")
    assert Path("artifacts/a.txt").read_text() == "old"


def test_another_error_of_the_system_stays_what_it_is():
    with pytest.raises(FileNotFoundError, match="nowhere"), files.publish("artifacts/a.txt") as temporary:
        temporary.write_text(Path("nowhere").read_text())
    assert not Path("artifacts/a.txt").exists()


def test_arrays_come_back_as_they_were_and_always_give_the_same_bytes():
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([[True, False]]),
        "empty": np.zeros((0, 3), np.int64),
        "turned": np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
    }
    files.save_arrays("one", arrays)
    files.save_arrays("two", dict(reversed(arrays.items())))
    assert Path("one").read_bytes() == Path("two").read_bytes()
    back = files.load_arrays("one")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype and back[name].shape == array.shape


def test_one_array_comes_back_as_it_was():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    files.save_array("artifacts/a.npy", array)
    np.testing.assert_array_equal(files.load_array("artifacts/a.npy"), array)
    mapped = files.load_array("artifacts/a.npy", mmap=True)
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, array)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("mmap", [False, True])
def test_no_pickle_is_ever_loaded_or_written(mmap):
    np.save("a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"^a\.npy cannot be read"):
        files.load_array("a.npy", mmap)
    Path("b.npy").write_bytes(b"\x80\x04\x95\x1b\x00cos\nmkdir\n(S'trapped'\ntR.")
    with pytest.raises(ValueError, match=r"^b\.npy cannot be read"):
        files.load_array("b.npy", mmap)
    assert not Path("trapped").exists()
    with pytest.raises(ValueError, match="[Oo]bject arrays"):
        files.save_array("c.npy", np.array([Trap()], dtype=object))
    assert not Path("c.npy").exists() and unfinished() == []


LOADERS = {
    "a.safetensors": files.load_arrays,
    "a.npy": files.load_array,
    "mapped.npy": lambda path: files.load_array(path, mmap=True),
    "a.json": files.load_json,
}


@pytest.mark.parametrize("name", LOADERS)
def test_what_is_cut_short_or_no_such_file_at_all_is_told_with_its_name(name):
    if name.endswith(".safetensors"):
        files.save_arrays(name, {"x": np.arange(40).reshape(5, 8), "y": np.ones(3)})
    elif name.endswith(".npy"):
        files.save_array(name, np.arange(40).reshape(5, 8))
    else:
        files.write_json(name, {"images": ["one", "two"]})
    whole = Path(name).read_bytes()
    assert LOADERS[name](name) is not None

    rng = random.Random(0)
    cases = [
        b"",
        b"PK\x03\x04" + b"x" * 60,
        b"no such format" * 9,
        b"\x80\x04K\x01.",
        whole[:-5],
        whole[:20],
        whole[:7],
    ]
    must_fail = len(cases)
    for _ in range(150):  # one byte of the header wrong: often still readable, never another kind of error
        at = rng.randrange(min(len(whole), 130))
        cases.append(whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :])
    for i, content in enumerate(cases):
        Path(name).write_bytes(content)
        try:
            LOADERS[name](name)
            assert i >= must_fail, content
        except ValueError as error:
            assert str(error).startswith(f"{name} cannot be read (") and "\n" not in str(error), content
            assert str(error).endswith("): remove it and run the same command again")


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_missing_file_says_what_makes_it(load):
    with pytest.raises(ValueError) as caught:
        load("artifacts/none")
    assert str(caught.value) == (
        "artifacts/none is missing: run `snakemake` or `dvc repro`, which make what comes before this stage"
    )


def test_index_lists_of_round_1_hold_throughout_where_nothing_is_redistributed():
    for round_ in (1, 2):
        for k in range(2):
            files.save_array(f"artifacts/shards/a-seed0/round{round_}/shard{k}.npy", np.array([10 * round_ + k]))
    kept, moved = ({"redistribute": r, "shard": {"num_shards": 2}} for r in ({}, {"share": 0.5, "select": "random"}))
    assert [s.tolist() for s in files.load_shards(kept, "a-seed0", 2)] == [[10], [11]]
    assert [s.tolist() for s in files.load_shards(moved, "a-seed0", 2)] == [[20], [21]]

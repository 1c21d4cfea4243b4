"""Files appear whole or not at all, and what cannot be read or written is told in one sentence."""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from stages import experiments
from stages.run import files


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


def contents(folder):
    return {path.name: path.read_text() for path in Path(folder).iterdir() if path.name != files.CHECKSUMS}


def write_folder(*names, error=None):
    with files.publish("artifacts/folder") as folder:
        folder.mkdir()
        for name in names:
            (folder / name).write_text(name)
        if error:
            raise error


def test_an_error_leaves_the_old_folder_and_no_leftovers():
    write_folder("old")
    with pytest.raises(ValueError):
        write_folder("half", error=ValueError())
    assert contents("artifacts/folder") == {"old": "old"}
    assert unfinished() == []


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_replaces_a_folder_as_a_whole(monkeypatch, can_exchange):
    """On a system without renameat2 too."""
    if not can_exchange:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    write_folder("one", "both")
    write_folder("two", "both")
    assert contents("artifacts/folder") == {"two": "two", "both": "both"}
    assert unfinished() == []


def test_one_step_replaces_a_folder_where_the_system_has_one(monkeypatch):
    """No rename to or from the folder's name, between which a reader or a kill would find none."""
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this system cannot exchange two folders")
    write_folder("one")
    rename = os.replace

    def watched(source, target):
        assert "artifacts/folder" not in (str(source), str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_folder("two")
    assert contents("artifacts/folder") == {"two": "two"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_old_folder_stays_whole_where_the_new_one_cannot_take_its_place(monkeypatch, can_exchange):
    write_folder("one", "both")
    full = OSError(errno.ENOSPC, "No space left on device")
    rename = os.replace
    renamed = []

    def refused(source, target):
        renamed.append(source)
        if str(target) == "artifacts/folder" and len(renamed) == 2:
            raise full
        return rename(source, target)

    monkeypatch.setattr(files, "_exchanged", raising(full) if can_exchange else lambda *_: False)
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(files.NotWrittenError, match=r"^artifacts/folder was not written: the disk is full"):
        write_folder("two")
    assert contents("artifacts/folder") == {"one": "one", "both": "both"}
    assert unfinished() == []


def test_a_killed_process_leaves_the_old_folder_or_the_new_one():
    """Killed 12 times, each at a random moment of a random one of its first writes, while it replaces one folder by another, of several files of one content."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom stages.run import files\nfiles.own_unfinished('me')\n"
        "for i in range(10**6):\n"
        "    with files.publish('artifacts/folder') as folder:\n"
        "        folder.mkdir()\n"
        "        for name in 'abcdefgh': (folder / name).write_text(str(i))\n"
        "    print(i, flush=True)\n"
    )
    rng, seen = random.Random(1), set()
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        for i in range(rng.randint(1, 9)):
            assert writer.stdout.readline() == b"%d\n" % i
        time.sleep(rng.uniform(0, 0.02))
        writer.kill()
        writer.communicate()
        (content,) = set(contents("artifacts/folder").values())
        assert len(contents("artifacts/folder")) == 8 and len(unfinished()) <= 2
        seen.add(content)
    assert len(seen) > 1
    files.own_unfinished("me")  # the next process of that name clears what they left
    assert unfinished() == []
    files.own_unfinished("other")


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
                told = "artifacts/a.npy was not written: the disk is full, it needs 0.2 MiB and 0.0 MiB are free in"
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
    assert [s.tolist() for s in experiments.load_shards(kept, "a-seed0", 2)] == [[10], [11]]
    assert [s.tolist() for s in experiments.load_shards(moved, "a-seed0", 2)] == [[20], [21]]


def test_too_little_room_is_told_before_anything_is_made(monkeypatch):
    free = 5 * 2**20
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free, total=2**40))
    with pytest.raises(files.NotWrittenError) as caught, files.publish("artifacts/data", 3 * 2**30 + 1):
        pytest.fail("the block began")
    told = "artifacts/data was not written: the disk is full, it needs 3.1 GiB and 5.0 MiB are free in"
    assert str(caught.value).startswith(told)


def test_a_file_system_that_does_not_say_what_is_free_is_tried(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0, total=0))
    files.write_text("artifacts/a.txt", "new")
    assert Path("artifacts/a.txt").read_text() == "new"


def test_the_room_of_a_folder_is_what_it_holds_and_what_did_not_fit(monkeypatch):
    whole = Path.write_bytes

    def limited(path, data):
        if len(data) > 2 * 2**20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", limited)
    with pytest.raises(files.NotWrittenError) as caught, files.publish("artifacts/train/run") as folder:
        files.write_bytes(folder / "small", bytes(2**20))
        files.write_bytes(folder / "large", bytes(3 * 2**20))
    assert "artifacts/train/run was not written: the disk is full, it needs 4.0 MiB and" in str(caught.value)


def test_a_limit_on_the_size_of_a_file_is_told(project):
    """RLIMIT_FSIZE: a real refusal by the system in the middle of a file, which needs no mount."""
    code = (
        f"import sys, resource; sys.path.insert(0, {str(ROOT)!r})\nimport numpy as np\nfrom stages.run import files\n"
        "files.save_array('artifacts/a.npy', np.arange(3))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: files.save_array('artifacts/a.npy', np.zeros(20_000))\n"
        "except OSError as error: print(error, files.load_array('artifacts/a.npy').tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "artifacts/a.npy was not written: a file may not be so large here, it needs 0.2 MiB and"
    )
    assert done.stdout.endswith("[0, 1, 2]\n") and unfinished() == []


def test_an_input_that_may_not_be_read_is_not_told_as_an_output():
    with pytest.raises(PermissionError) as caught, files.publish("artifacts/out"):
        raise PermissionError(errno.EACCES, "Permission denied", "data/secret.png")
    assert caught.value.filename == "data/secret.png"


def flipped(path, at):
    """One bit of a file another, its time of change as before, as a failing disk leaves it."""
    before = Path(path).stat()
    content = bytearray(Path(path).read_bytes())
    content[at] ^= 4
    Path(path).chmod(0o644)
    Path(path).write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_all_kinds():
    import pandas as pd

    with files.publish("artifacts/data") as folder:
        folder.mkdir()
        files.save_array(folder / "train.npy", np.arange(4000, dtype=np.uint8).reshape(100, 40))
        files.save_arrays(folder / "a.safetensors", {"x": np.arange(40.0)})
        files.write_json(folder / "keys.json", {"train": ["one", "two"]})
        files.save_table(folder / "images.parquet", pd.DataFrame({"d": np.arange(30)}))


READERS = {
    "train.npy": lambda path: files.load_array(path, mmap=True),
    "a.safetensors": files.load_arrays,
    "keys.json": files.load_json,
    "images.parquet": files.load_table,
}


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_anywhere_is_noticed_and_named(name):
    write_all_kinds()
    path = Path("artifacts/data") / name
    whole = path.read_bytes()
    md5 = hashlib.md5(whole).hexdigest()
    assert json.loads(Path("artifacts/data/checksums.json").read_text())[name] == md5 == files.checksum(path)
    assert READERS[name](path) is not None
    for at in [0, len(whole) - 1, *random.Random(2).sample(range(len(whole)), 20)]:
        flipped(path, at)
        with pytest.raises(ValueError) as caught:
            READERS[name](path)
        told = str(caught.value)
        assert told.startswith(f"{path} is damaged: ") and "\n" not in told
        assert f"remove artifacts/data, and files/md5/{md5[:2]}/{md5[2:]} in the cache" in told
        flipped(path, at)
    assert READERS[name](path) is not None


def test_a_shape_is_learnt_from_the_header_alone(tmp_path, monkeypatch):
    """No byte of the images is hashed, so a flipped one in them is not seen here; what numpy cannot use is told as elsewhere."""
    monkeypatch.chdir(tmp_path)
    with files.publish(files.DATA) as folder:
        folder.mkdir()
        files.save_array(folder / "train.npy", np.zeros((7, 4, 6, 3), np.uint8))
        files.save_array(folder / "heldout.npy", np.zeros((0, 4, 6, 3), np.uint8))

    def hashed(path):
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(files, "_md5", hashed)
    assert files.shape_of(files.DATA / "train.npy") == (7, 4, 6, 3)
    assert files.shape_of(files.DATA / "heldout.npy") == (0, 4, 6, 3)
    with pytest.raises(AssertionError, match="was hashed"):
        files.load_array(files.DATA / "train.npy")
    with pytest.raises(ValueError, match=r"^artifacts/data/none.npy is missing: run `snakemake`"):
        files.shape_of(files.DATA / "none.npy")
    whole = (files.DATA / "train.npy").read_bytes()
    for content in (b"", whole[:40], b"PK" + whole[2:], whole[:-1], whole.replace(b"descr", b"xxxxx")):
        (files.DATA / "train.npy").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"^artifacts/data/train.npy cannot be read \(.*\): remove it and run"
        ) as error:
            files.shape_of(files.DATA / "train.npy")
        assert "\n" not in str(error.value)


def test_a_flipped_bit_in_the_list_of_checksums_is_noticed_too():
    """In a name, in a sum, in the marks of JSON: never does a file pass unlooked at, nor is there another error."""
    write_all_kinds()
    list_file = Path("artifacts/data/checksums.json")
    named = 0
    for at in range(list_file.stat().st_size):
        flipped(list_file, at)
        refused = []
        for name, read in READERS.items():
            try:
                read(Path("artifacts/data") / name)
            except ValueError as error:
                assert str(error).startswith("artifacts/data/")
                refused.append(name)
        named += len(refused)
        harmless = b" \n"  # a blank that became another blank or a letter that JSON forgives
        flipped(list_file, at)
        assert refused or list_file.read_bytes()[at : at + 1] in harmless, at
    assert named > 4 * 32


def test_a_file_that_may_not_be_read_is_told(monkeypatch):
    write_all_kinds()
    monkeypatch.setattr(files, "_md5", raising(PermissionError(errno.EACCES, "Permission denied", "x")))
    with pytest.raises(ValueError, match=r"^artifacts/data/train.npy cannot be read \(Permission denied\): mend"):
        files.load_array("artifacts/data/train.npy")

"""Sets with official files: tiny files in the official formats are read as they were written, and nothing else passes.

torchvision's lists of checksums and addresses are replaced by those of the tiny files; the mirror is a folder.
"""

import gzip
import hashlib
import http.client
import io
import pickle
import shutil
import socket
import struct
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY, Project

from stages import image_sets
from stages.image_sets import official
from stages.run.progress import Progress

pytestmark = pytest.mark.filterwarnings("default")  # torch and torchvision warn of themselves when imported
RNG = np.random.default_rng(0)
CIFAR10_PARTS = {"data_batch_1": 3, "data_batch_2": 1, "data_batch_3": 4, "data_batch_4": 1, "data_batch_5": 2, "test_batch": 5}  # fmt: skip
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11 has it from 3.11.4 on
CIFAR100_PARTS = {"train": 7, "test": 4}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def tiny_cifar(folder, counts, label_key, num_classes):
    """Files of CIFAR: each image a row of 1,024 red, 1,024 green, 1,024 blue values, row by row. Returns rows and labels."""
    folder.mkdir(parents=True)
    rows = {name: RNG.integers(0, 256, (count, 3072), dtype=np.uint8) for name, count in counts.items()}
    labels = {name: RNG.integers(0, num_classes, count).tolist() for name, count in counts.items()}
    for name in counts:
        content = {"data": rows[name], label_key: labels[name], "coarse_labels": [1] * counts[name]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return rows, labels


def pack(folder, packed):
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder with what the three addresses offer, and root, a folder where nothing is yet.

    mirror.<set> = dict of what was written; mirror.files(name, root) unpacks the official files under a root.
    """
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

    class Mirror:
        at = tmp_path / "mirror"
        root = tmp_path / "data"
        sets = {}

        def files(self, name, root):
            if name == "fashion_mnist":
                shutil.copytree(self.at / "fashion", root / "FashionMNIST/raw")
            else:
                with tarfile.open(self.at / f"{name}.tar.gz") as archive:
                    archive.extractall(root, **SAFELY)

    found = Mirror()
    for name, dataset, counts, label_key, classes in (
        ("cifar10", CIFAR10, CIFAR10_PARTS, "labels", [f"thing {i}" for i in range(10)]),
        ("cifar100", CIFAR100, CIFAR100_PARTS, "fine_labels", [f"fine thing {i}" for i in range(100)]),
    ):
        folder = found.at / dataset.base_folder
        found.sets[name] = tiny_cifar(folder, counts, label_key, len(classes))
        meta = dataset.meta["filename"]
        names = {dataset.meta["key"]: classes, "coarse_label_names": ["wrong"]}
        (folder / meta).write_bytes(pickle.dumps(names, protocol=2))
        pack(folder, found.at / f"{name}.tar.gz")
        checksums = [[part, md5(folder / part)] for part in counts]
        monkeypatch.setattr(dataset, "train_list", checksums[:-1])
        monkeypatch.setattr(dataset, "test_list", checksums[-1:])
        monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(folder / meta)})
        monkeypatch.setattr(dataset, "url", (found.at / f"{name}.tar.gz").as_uri())
        monkeypatch.setattr(dataset, "tgz_md5", md5(found.at / f"{name}.tar.gz"))

    fashion, written, checksums = found.at / "fashion", {}, []
    fashion.mkdir()
    for prefix, count in (("train", 6), ("t10k", 3)):
        images = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, count, dtype=np.uint8)
        written[prefix] = images, labels
        for kind, head, values in (
            ("images-idx3", struct.pack(">IIII", 0x803, count, 28, 28), images),
            ("labels-idx1", struct.pack(">II", 0x801, count), labels),
        ):
            path = fashion / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + values.tobytes()))
            checksums.append((path.name, md5(path)))
    found.sets["fashion_mnist"] = written
    monkeypatch.setattr(FashionMNIST, "resources", checksums)
    monkeypatch.setattr(FashionMNIST, "mirrors", [fashion.as_uri() + "/"])
    return found


def load(name, root, **section):
    return image_sets.load({"name": name, "root": str(root), "split_seed": 0, **section}, Progress)


def refusal(name, root, **section):
    with pytest.raises(ValueError) as caught:
        load(name, root, **section)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_cifar(found, rows, labels, num_train):
    """Pixel by pixel against the rows as they stand in the files."""
    names = list(rows)
    for part, chosen in ((found.pool, names[:-1]), (found.test, names[-1:])):
        expected = np.concatenate([rows[name] for name in chosen])
        images = np.stack(list(part.images(range(len(part.keys)))))
        assert images.shape == (len(expected), 32, 32, 3) and images.dtype == np.uint8
        for n, y, x, c in [(0, 0, 0, 0), (1, 0, 5, 1), (len(expected) - 1, 7, 0, 2), (2, 31, 30, 0), (0, 12, 19, 2)]:
            assert images[n, y, x, c] == expected[n, c * 1024 + y * 32 + x]
        assert part.labels.dtype == np.int64
        assert part.labels.tolist() == [label for name in chosen for label in labels[name]]
    assert found.shape == (32, 32, 3) and len(found.pool.keys) == num_train


def test_cifar10_is_read_as_it_is_written(mirror):
    mirror.files("cifar10", mirror.root)
    found = load("cifar10", mirror.root)
    check_cifar(found, *mirror.sets["cifar10"], num_train=11)
    assert found.classes == [f"thing {i}" for i in range(10)]
    assert found.pool.keys[::5] == ["train/00000", "train/00005", "train/00010"] and found.test.keys[4] == "test/00004"


def test_cifar_images_are_brought_to_a_size_as_torchvision_does(mirror):
    from PIL import Image
    from torchvision.transforms import Resize

    mirror.files("cifar10", mirror.root)
    whole, small = load("cifar10", mirror.root), load("cifar10", mirror.root, size=12)
    assert small.shape == (12, 12, 3) and small.pool.keys == whole.pool.keys
    chosen = np.array([7, 2])
    for found, image in zip(small.pool.images(chosen), whole.pool.images(chosen), strict=True):
        assert np.array_equal(found, np.asarray(Resize((12, 12))(Image.fromarray(image))))


def test_cifar100_has_its_fine_labels(mirror):
    mirror.files("cifar100", mirror.root)
    found = load("cifar100", mirror.root)
    check_cifar(found, *mirror.sets["cifar100"], num_train=7)
    assert found.classes == [f"fine thing {i}" for i in range(100)]


@pytest.mark.parametrize("wrong", ["rows", "labels"])
def test_the_check_tells_wrong_readings_from_the_right_one(mirror, wrong):
    mirror.files("cifar100", mirror.root)
    rows, labels = mirror.sets["cifar100"]
    if wrong == "rows":  # colour by colour of each pixel, as arrays lie elsewhere
        rows = {name: row.reshape(-1, 3, 1024).swapaxes(1, 2).reshape(-1, 3072) for name, row in rows.items()}
    else:
        labels = {name: [1] * len(of_name) for name, of_name in labels.items()}  # the coarse ones
    with pytest.raises(AssertionError):
        check_cifar(load("cifar100", mirror.root), rows, labels, num_train=7)


def test_fashion_mnist_is_read_as_it_is_written(mirror):
    mirror.files("fashion_mnist", mirror.root)
    before = sorted(mirror.root.rglob("*"))
    found = load("fashion_mnist", mirror.root)
    assert found.shape == (28, 28, 1)
    for part, prefix, count in ((found.pool, "train", 6), (found.test, "t10k", 3)):
        images, labels = mirror.sets["fashion_mnist"][prefix]
        read = np.stack(list(part.images(range(count))))
        assert read.dtype == np.uint8 and np.array_equal(read, images[..., None])
        assert part.labels.dtype == np.int64 and part.labels.tolist() == labels.tolist()
        assert len(part.keys) == count
    assert len(found.classes) == 10 and found.classes[:2] == ["T-shirt/top", "Trouser"]
    assert sorted(mirror.root.rglob("*")) == before  # nothing is unpacked into the user's folder


def test_an_unpacked_file_beside_the_packed_one_is_not_trusted(mirror):
    """torchvision reads it without a look at any checksum."""
    mirror.files("fashion_mnist", mirror.root)
    forged = struct.pack(">IIII", 0x803, 6, 28, 28) + bytes(6 * 28 * 28)
    (mirror.root / "FashionMNIST/raw/train-images-idx3-ubyte").write_bytes(forged)
    found = load("fashion_mnist", mirror.root)
    assert np.array_equal(next(found.pool.images([0]))[..., 0], mirror.sets["fashion_mnist"]["train"][0][0])


OBTAIN = {
    "cifar10": "put the folder cifar-10-batches-py with its official files (of cifar-10-python.tar.gz) under data.root",
    "cifar100": "put the folder cifar-100-python with its official files (of cifar-100-python.tar.gz) under data.root",
    "fashion_mnist": "put the four official files (train-images-idx3-ubyte.gz and so on, packed) into FashionMNIST/raw under data.root",
}  # fmt: skip
A_FILE = {
    "cifar10": "cifar-10-batches-py/data_batch_4",
    "cifar100": "cifar-100-python/meta",
    "fashion_mnist": "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz",
}
NUM_FILES = {"cifar10": 7, "cifar100": 3, "fashion_mnist": 4}
SETS = pytest.mark.parametrize("name", list(OBTAIN))


@SETS
def test_without_files_the_sentence_names_the_absolute_folder_and_what_to_put_there(mirror, name, monkeypatch):
    monkeypatch.chdir(mirror.at)
    tail = f"{OBTAIN[name]}, or set data.download: true, or mend data.root (params.yaml)"
    assert refusal(name, "none") == f"the folder {mirror.at}/none does not exist: {tail}"
    Path("empty").mkdir()
    told = refusal(name, "empty")
    assert told.startswith(f"{mirror.at}/empty lacks {NUM_FILES[name]} of {NUM_FILES[name]} files, the first is ")
    assert told.endswith(f": {tail}")
    mirror.files(name, mirror.root)
    (mirror.root / A_FILE[name]).unlink()
    assert refusal(name, mirror.root) == (
        f"{mirror.root} lacks 1 of {NUM_FILES[name]} files, the first is {A_FILE[name]}: {tail}"
    )


@SETS
@pytest.mark.parametrize("download", [False, True])
def test_a_wrong_checksum_names_the_file_which_is_never_opened_nor_replaced(mirror, name, download, monkeypatch):
    mirror.files(name, mirror.root)
    wrong = mirror.root / A_FILE[name]
    before = md5(wrong)
    content = bytearray(wrong.read_bytes())
    content[len(content) // 2] ^= 1
    wrong.write_bytes(content)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    monkeypatch.setattr(gzip, "open", lambda *_, **__: pytest.fail("a file was opened"))
    told = refusal(name, mirror.root, download=download)
    assert told.startswith(
        f"{wrong} is damaged or no official file (its MD5 is {md5(wrong)}, expected {before}): remove it,"
    )
    assert wrong.read_bytes() == content


@SETS
def test_nothing_is_fetched_unless_asked_for(mirror, name, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was used"))
    refusal(name, mirror.root)
    refusal(name, mirror.root, download=False)
    assert not mirror.root.exists()
    mirror.files(name, mirror.root)
    assert load(name, mirror.root, download=True).pool.keys  # all there already


@SETS
def test_a_download_brings_the_official_files_and_nothing_else(mirror, name, capsys):
    downloaded = load(name, mirror.root, download=True)
    assert capsys.readouterr().err.count("downloading file://") == (4 if name == "fashion_mnist" else 1)
    by_hand = mirror.at.parent / "by hand"
    mirror.files(name, by_hand)
    brought = {path.relative_to(mirror.root): path.read_bytes() for path in mirror.root.rglob("*") if path.is_file()}
    assert brought == {path.relative_to(by_hand): path.read_bytes() for path in by_hand.rglob("*") if path.is_file()}
    assert len(brought) == NUM_FILES[name] and len(list(mirror.root.iterdir())) == 1
    again = load(name, by_hand)
    assert downloaded.classes == again.classes and downloaded.pool.keys == again.pool.keys
    assert all(np.array_equal(*pair) for pair in zip(downloaded.pool.images(range(4)), again.pool.images(range(4))))


@SETS
def test_a_download_fills_up_what_is_missing(mirror, name):
    mirror.files(name, mirror.root)
    whole = (mirror.root / A_FILE[name]).read_bytes()
    (mirror.root / A_FILE[name]).unlink()
    load(name, mirror.root, download=True)
    assert (mirror.root / A_FILE[name]).read_bytes() == whole


@SETS
def test_without_a_network_the_sentence_names_address_folder_and_what_to_put_there(mirror, name, monkeypatch):
    from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

    def no_network(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(CIFAR10, "url", "https://example.invalid/x.tar.gz")
    monkeypatch.setattr(CIFAR100, "url", "https://example.invalid/x.tar.gz")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://example.invalid/"])
    told = refusal(name, mirror.root, download=True)
    address = "http://example.invalid/train-images-idx3-ubyte.gz" if name == "fashion_mnist" else CIFAR10.url
    assert told == (
        f"the download into {mirror.root} failed ({address}: Name or service not known): {OBTAIN[name]}, or mend data.root "
        "(params.yaml)"
    )
    assert list(mirror.root.iterdir()) == []


class Answer(io.BytesIO):
    """What urlopen returns: it says how much is coming, and `end` is called when no more comes."""

    def __init__(self, content, size, end=lambda: b""):
        super().__init__(content)
        self.headers, self.end = {"Content-Length": str(size)}, end

    def read(self, size=-1):
        return super().read(min(size, 100)) or self.end()


def stop(error):
    def end():
        raise error

    return end


@SETS
@pytest.mark.parametrize(
    ("end", "told"),
    [
        (bytes, "it broke off after 700 of 5,000 bytes"),
        (stop(TimeoutError("timed out")), "timed out"),
        (stop(ConnectionResetError(104, "Connection reset by peer")), "Connection reset by peer"),
        (stop(http.client.IncompleteRead(b"", 4300)), "IncompleteRead"),
        (stop(KeyboardInterrupt()), None),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing(mirror, name, end, told, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(bytes(700), 5000, end))
    if told:
        assert told in refusal(name, mirror.root, download=True)
    else:
        with pytest.raises(KeyboardInterrupt):
            load(name, mirror.root, download=True)
    assert list(mirror.root.iterdir()) == []


@SETS
def test_what_a_killed_download_left_is_not_taken_for_the_set(mirror, name):
    mirror.files(name, mirror.root / "unfinished-download-x")
    assert f"lacks {NUM_FILES[name]} of {NUM_FILES[name]} files" in refusal(name, mirror.root)
    load(name, mirror.root, download=True)


@SETS
def test_another_file_at_the_address_is_not_kept(mirror, name, monkeypatch):
    content = b"<html>moved</html>"
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(content, len(content)))
    told = refusal(name, mirror.root, download=True)
    assert f" gave another file than expected (MD5 {hashlib.md5(content).hexdigest()}, not " in told
    assert told.endswith(f", which was not kept: {OBTAIN[name]}, or mend data.root (params.yaml)")
    assert list(mirror.root.iterdir()) == []


def test_a_silent_network_ends(mirror, monkeypatch):
    """Without a limit, a connection that no answer comes from is waited for without end."""
    waits = []

    def urlopen(request, timeout=None):
        waits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    refusal("cifar10", mirror.root, download=True)
    assert waits == [official.TIMEOUT_S]


@pytest.mark.slow
def test_a_download_through_dvc_and_snakemake_makes_the_folder(mirror, tmp_path):
    """DVC refuses a dependency that is not there; the folder need not be there for a set that is checked by checksums."""
    from torchvision.datasets import CIFAR100

    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"name": "cifar100", "root": "data/cifar100", "split_seed": 0}
    experiment["score"]["neighbours"] = experiment["train"]["batch_size"] = 3  # of 7 images
    experiment["arms"]["iet_agc_plus"]["shard"]["num_shards"] = 1
    project = Project.create(tmp_path / "project", yaml.safe_dump(experiment))
    lists = {name: getattr(CIFAR100, name) for name in ("train_list", "test_list", "meta", "url", "tgz_md5")}
    with open(project.root / "stages/image_sets/official.py", "a") as stream:
        stream.write(
            f"from torchvision.datasets import CIFAR100\nfor name, value in {lists}.items():\n    setattr(CIFAR100, name, value)\n"
        )
    root = project.root / "data/cifar100"
    done = project.run("dvc", "repro", "data", check=False)
    assert done.returncode != 0 and f"error: the folder {root} does not exist: {OBTAIN['cifar100']}" in done.text

    project.edit(data__download=True)
    project.run("snakemake", "--cores", "1", "data")
    assert "downloading file://" in (project.root / "logs/data/data.log").read_text()
    decoded = project.root / "artifacts/data"
    assert (decoded / "classes.json").read_text().count("fine thing") == 100
    assert np.load(decoded / "train.npy").shape == (7, 32, 32, 3) and np.load(decoded / "heldout.npy").shape == (
        4,
        32,
        32,
        3,
    )
    assert sorted(path.name for path in (root / "cifar-100-python").iterdir()) == ["meta", "test", "train"]
    assert project.run("git", "status", "--porcelain", "data").text == ""  # not committed by accident

    shutil.rmtree(root)  # decoded images are enough
    assert "Data and pipelines are up to date" in project.run("dvc", "status", "data").text

"""CIFAR-10, CIFAR-100 and Fashion-MNIST: official files, which torchvision can read and whose checksums (MD5) it knows.

They lie under data.root where torchvision expects them. Every file is compared with its checksum before it is opened, because the
files of CIFAR are pickles, which could run code.
"""

import gzip
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from stages.image_sets.parts import ImageSet, NotThereError, from_array
from stages.image_sets.registry import image_set, of_size

TIMEOUT_S = 60  # of a download, without a byte


@image_set(
    "put the folder cifar-10-batches-py with its official files (of cifar-10-python.tar.gz) under data.root",
    takes=("num_train", "size", "deduplicate"),
    pinned=True,
    download=True,
    stored=of_size(60_000, 32, 3),
)
def cifar10(data, progress):
    """50,000 + 10,000 colour images of 32x32, 10 classes."""
    from torchvision.datasets import CIFAR10

    return _cifar(data, CIFAR10, progress)


@image_set(
    "put the folder cifar-100-python with its official files (of cifar-100-python.tar.gz) under data.root",
    takes=("num_train", "size", "deduplicate"),
    pinned=True,
    download=True,
    stored=of_size(60_000, 32, 3),
)
def cifar100(data, progress):
    """50,000 + 10,000 colour images of 32x32, 100 classes (the fine labels)."""
    from torchvision.datasets import CIFAR100

    return _cifar(data, CIFAR100, progress)


def _cifar(data, dataset, progress):
    names = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    official = {f"{dataset.base_folder}/{name}": md5 for name, md5 in names}
    _provide(data, official, {dataset.filename: (dataset.url, dataset.tgz_md5)}, progress)
    train, test = (dataset(os.path.abspath(data["root"]), train=train) for train in (True, False))
    parts = [
        from_array([f"{name}/{i:05}" for i in range(len(part.data))], part.targets, part.data, data.get("size"))
        for name, part in (("train", train), ("test", test))
    ]
    side = data.get("size", 32)
    return ImageSet((side, side, 3), train.classes, *parts)


@image_set(
    "put the four official files (train-images-idx3-ubyte.gz and so on, packed) into FashionMNIST/raw under data.root",
    pinned=True,
    download=True,
    stored=of_size(70_000, 28, 1),
)
def fashion_mnist(data, progress):
    """60,000 + 10,000 grey images of clothes of 28x28, 10 classes."""
    from torchvision.datasets import FashionMNIST

    official = {f"FashionMNIST/raw/{name}": md5 for name, md5 in FashionMNIST.resources}
    packed = {path: (FashionMNIST.mirrors[0] + path.rpartition("/")[2], md5) for path, md5 in official.items()}
    _provide(data, official, packed, progress)
    # torchvision reads unpacked files, but has checksums of the packed ones only: unpack these, now that they are checked.
    with tempfile.TemporaryDirectory() as unpacked:
        for path in official:
            target = Path(unpacked, path.removesuffix(".gz"))
            target.parent.mkdir(parents=True, exist_ok=True)
            with gzip.open(Path(data["root"], path)) as source, open(target, "wb") as stream:
                shutil.copyfileobj(source, stream)
        parts = []
        for name in ("train", "test"):
            part = FashionMNIST(unpacked, train=name == "train")
            keys = [f"{name}/{i:05}" for i in range(len(part.data))]
            parts.append(from_array(keys, part.targets.numpy(), part.data.numpy()[..., None]))
    return ImageSet((28, 28, 1), FashionMNIST.classes, *parts)


def _provide(data, official, packed, progress):
    """Makes sure that all official files are there and whole; with data.download it fetches the missing ones.

    official   dict path under data.root -> MD5
    packed     dict path under data.root -> (address, MD5), of what can be downloaded: the official files themselves, or tar
               archives of them
    Raises     NotThereError: a file is missing, or cannot be fetched
               ValueError: a file has another checksum
    """
    from torchvision.datasets.utils import calculate_md5

    root = os.path.abspath(data["root"])
    missing = [path for path in official if not os.path.isfile(os.path.join(root, path))]
    if missing and not data.get("download"):
        raise NotThereError(f"{root} lacks {len(missing)} of {len(official)} files, the first is {missing[0]}")
    if missing:
        try:
            _download(
                root,
                missing,
                {path: packed[path] for path in packed if path in missing or path not in official},
                progress,
            )
        except OSError as error:
            raise NotThereError(f"the download into {root} failed ({error.strerror or error})") from None
    for path, md5 in official.items():
        if (found := calculate_md5(os.path.join(root, path))) != md5:
            raise ValueError(
                f"{os.path.join(root, path)} is damaged or no official file (its MD5 is {found}, expected {md5}): remove it, "
                "and put the official one there or let data.download: true fetch it (params.yaml)"
            )


def _download(root, missing, packed, progress):
    """Fetches archives and files, and puts the missing ones under `root`, each only once it is whole.

    torchvision's own downloader waits for ever for a network that is silent, and writes under the final names.
    """
    from torchvision.datasets.utils import calculate_md5

    os.makedirs(root, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-download-", dir=root) as folder:
        for path, (url, md5) in packed.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, target, progress)
            if (found := calculate_md5(target)) != md5:
                raise NotThereError(
                    f"{url} gave another file than expected (MD5 {found}, not {md5}), which was not kept"
                )
            if path.endswith(".tar.gz"):
                with tarfile.open(target) as archive:
                    for member in missing:
                        Path(folder, member).parent.mkdir(parents=True, exist_ok=True)
                        with archive.extractfile(member) as source, open(Path(folder, member), "wb") as stream:
                            shutil.copyfileobj(source, stream)
        for path in missing:
            target = Path(root, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(folder, path), target)


def _fetch(url, path, progress):
    """Raises   OSError: no network, the download broke off, or the disk is full; its text has the address"""
    mib = 2**20
    request = urllib.request.Request(url, headers={"User-Agent": "redistribute"})  # noqa: S310 (torchvision's addresses)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response, open(path, "wb") as stream:  # noqa: S310
            size = int(response.headers.get("Content-Length") or 0)
            told = progress(f"downloading {url}", "MiB")
            while chunk := response.read(mib):
                stream.write(chunk)
                if size:
                    told.update(-(-stream.tell() // mib), -(-size // mib))
            if size and stream.tell() != size:
                raise OSError(f"it broke off after {stream.tell():,} of {size:,} bytes")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"{url}: {getattr(reason, 'strerror', None) or reason}") from None

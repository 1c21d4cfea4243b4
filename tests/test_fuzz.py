"""Files from elsewhere, damaged at random for a bounded time: read, or refused in one sentence, in little time and memory."""

import random
import resource
import time
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from stages import image_sets
from stages.image_sets import elsewhere
from stages.image_sets.parts import silent

SHAPE = (8, 8, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
SECONDS = 1.5  # of each kind
MIB = 1024  # of ru_maxrss


def damaged(whole, rng):
    """Some bytes changed, cut out or put in, anywhere; more often near the ends, where headers and directories are."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        near = rng.choice([150, len(content)])
        at = (
            rng.randrange(min(near, len(content)))
            if rng.random() < 0.6
            else len(content) - 1 - rng.randrange(min(near, len(content)))
        )
        match rng.randrange(4):
            case 0:
                del content[at : at + rng.choice([1, 8, 1000])]
            case 1:
                content[at:at] = rng.randbytes(rng.choice([1, 8]))
            case 2:
                content[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, b"99999999"])
            case _:
                content[at] = rng.randrange(256)
        if not content:
            break
    return bytes(content)


def survives(read, write, whole, told):
    """Returns the numbers of what was read and what was refused."""
    rng, read_well, refused = random.Random(0), 0, 0
    memory_before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    while time.monotonic() - start < SECONDS:
        content = damaged(rng.choice(whole), rng)
        write(content)
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old or odd headers; what counts is the error
                read()
            read_well += 1
        except ValueError as error:
            assert told in str(error) and "\n" not in str(error) and len(str(error)) < 900, (content, error)
            refused += 1
        assert time.monotonic() - began < 5, content
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before < 300 * MIB
    assert refused > 20
    return read_well, refused


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz"])
def test_array_files(tmp_path, name):
    path = tmp_path / name
    {"a.npy": np.save, "a.npz": np.savez, "packed.npz": np.savez_compressed}[name](path, PIXELS)
    generator = {"file": str(path)}
    assert np.array_equal(elsewhere.images(generator, SHAPE, None, silent), PIXELS)
    whole = [path.read_bytes()]
    survives(lambda: elsewhere.images(generator, SHAPE, None, silent), path.write_bytes, whole, str(path))


@pytest.mark.parametrize("ending", ["png", "tif", "gif", "jpg"])
def test_image_files(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    whole = []
    for mode in ("L", "RGB"):
        Image.fromarray(PIXELS[0]).convert(mode).save(path, **({"compression": "tiff_lzw"} if ending == "tif" else {}))
        whole.append(path.read_bytes())
    data = {"name": "image_folder", "root": str(tmp_path), "size": 8, "split_seed": 0}

    def read():
        found = image_sets.load(data)
        assert next(found.pool.images([0])).shape == found.shape

    read()
    survives(read, path.write_bytes, whole, str(path))


def bomb(path, shape, dtype, content):
    """An archive of one array whose header says what its content does not bear out."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as member,
    ):
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(member, header)
        for _ in range(content):
            member.write(bytes(2**20))


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((10**12, 8, 8, 3), "u1", "says that it holds 178,813.9 GiB of images, but"),
        ((200, 2000, 2000, 3), "u1", "are 2000x2000 pixels, but the training images are 8x8"),
        ((200, 8, 8, 3), "f8", "holds float64 (200, 8, 8, 3), expected uint8"),
        ((10**6, 8, 8, 3), "u1", "cannot be read as a numpy array (EOF: reading array data"),
    ],
)
def test_an_archive_is_not_unpacked_for_what_its_header_says(tmp_path, shape, dtype, told):
    """300 MiB of zeros in 300 kB; a TB that is claimed; 192 MB claimed of which there is 1."""
    path = tmp_path / "a.npz"
    bomb(path, shape, dtype, 300 if dtype == "f8" or shape[1] > 8 else 1)
    assert path.stat().st_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:
        elsewhere.images({"file": str(path)}, SHAPE, None, silent)
    assert told in str(caught.value) and str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250 * MIB


def test_an_archive_with_a_password_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, PIXELS)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the local header's flag of encryption
    content[content.rindex(b"PK\1\2") + 8] |= 1  # and the directory's
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a numpy array .*password"):
        elsewhere.images({"file": str(path)}, SHAPE, None, silent)

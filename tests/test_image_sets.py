"""Image files of every kind become the arrays they should, and what is no image is named."""

import os
import random
import shutil
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY
from PIL import Image, PngImagePlugin

from stages import image_sets
from stages.image_sets import folders, registry
from stages.run import params

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)  # 8 wide, 6 high
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


def decoded(root, **data):
    """The whole pool as one array [N,H,W,C]."""
    found = image_sets.load({"name": "image_folder", "root": str(root), **data})
    images = np.stack(list(found.pool.images(range(len(found.pool.keys)))))
    assert images.dtype == np.uint8 and images.shape[1:] == found.shape
    return images


def refusal(root, **data):
    with pytest.raises(ValueError) as caught:
        decoded(root, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits():
    found = image_sets.load({"name": "digits"})
    assert found.shape == (8, 8, 1) and found.test is None
    assert len(found.pool.keys) == len(set(found.pool.keys)) == len(found.pool.labels) == 1797
    images = np.stack(list(found.pool.images(range(1797))))
    assert images.dtype == np.uint8 and len(np.unique(images)) == 17  # all grey levels of the package stay apart
    assert found.pool.labels.dtype == np.int64 and np.bincount(found.pool.labels).min() == 174
    assert found.classes == list("0123456789")
    assert np.array_equal(next(found.pool.images([5])), images[5])


def test_sub_folders_are_classes_and_keys_are_paths(root):
    for key in ("cat/2.png", "cat/1.png", "bird/deep/9.png", "dog/1.png"):
        save(root / key, GREY)
    (root / "cat/notes.txt").write_text("no image")
    found = image_sets.load({"name": "image_folder", "root": str(root)})
    pool = found.pool
    assert pool.keys == ["bird/deep/9.png", "cat/1.png", "cat/2.png", "dog/1.png"]
    assert pool.labels.tolist() == [0, 1, 1, 2] and pool.labels.dtype == np.int64
    assert found.classes == ["bird", "cat", "dog"]


def test_images_without_sub_folders_are_one_class(root):
    for name in ("b.png", "a.PNG", "c.jpeg"):
        save(root / name, COLOUR)
    found = image_sets.load({"name": "image_folder", "root": str(root)})
    assert found.pool.keys == ["a.PNG", "b.png", "c.jpeg"] and found.pool.labels.tolist() == [0, 0, 0]
    assert found.classes == []


def test_images_beside_class_folders_are_a_class_of_their_own(root):
    for key in ("b.png", "zebra/1.png", "ant/1.png"):
        save(root / key, GREY)
    found = image_sets.load({"name": "image_folder", "root": str(root)})
    assert [found.classes[label] for label in found.pool.labels] == ["ant", ".", "zebra"]
    assert found.pool.keys == ["ant/1.png", "b.png", "zebra/1.png"] and found.classes == [".", "ant", "zebra"]


@pytest.mark.parametrize(
    "name", ["with space.png", "ünïcödé-写真.png", 'it\'s "quoted" $HOME & (1).png', "-dash.png", "%s {0}.png"]
)
def test_any_file_name(root, name):
    save(root / "class one" / name, GREY)
    assert image_sets.load({"name": "image_folder", "root": str(root)}).pool.keys == [f"class one/{name}"]
    assert np.array_equal(decoded(root)[0, :, :, 0], GREY)


def test_grey_png_has_one_channel_and_keeps_its_values(root):
    save(root / "a.png", GREY)
    assert np.array_equal(decoded(root), GREY[None, :, :, None])


def test_one_colour_image_makes_all_three_channels(root):
    save(root / "a.png", GREY)
    save(root / "b.png", COLOUR)
    images = decoded(root)
    assert images.shape == (2, 6, 8, 3)
    assert np.array_equal(images[0], np.repeat(GREY[:, :, None], 3, axis=2)) and np.array_equal(images[1], COLOUR)


def test_jpeg(root):
    smooth = np.linspace(20, 220, 6 * 8 * 3).reshape(6, 8, 3).astype(np.uint8)
    save(root / "a.jpg", smooth, quality=95)
    images = decoded(root)
    assert images.shape == (1, 6, 8, 3)
    assert np.abs(images[0].astype(int) - smooth).mean() < 10  # lossy


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_transparency_palettes_and_bits(root, mode):
    save(root / "a.png", COLOUR, mode)
    expected = Image.fromarray(COLOUR).convert(mode)
    channels = {"RGBA": "RGB", "P": "RGB", "LA": "L", "1": "L"}[mode]
    images = decoded(root)
    assert images.shape == (1, 6, 8, len(channels))
    assert np.array_equal(images[0].squeeze(), np.asarray(expected.convert(channels)))


def test_transparency_is_dropped_and_hides_no_colour(root):
    save(root / "a.png", np.dstack([COLOUR, np.zeros((6, 8), np.uint8)]))
    assert np.array_equal(decoded(root)[0], COLOUR)


def test_a_palette_with_transparent_entries_makes_no_warning(root):
    image = Image.fromarray(COLOUR).quantize(4)
    image.save(root / "a.png", transparency=bytes([0, 128, 255, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decoded(root)[0], np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(root, name):
    values = np.array([[0, 255, 256, 4096], [32768, 40000, 65279, 65535]], np.uint16)
    save(root / name, values)
    assert decoded(root)[0, :, :, 0].tolist() == [[0, 0, 1, 16], [128, 156, 254, 255]]


def test_16_bit_grey_beside_colour(root):
    save(root / "a.png", np.full((6, 8), 128 * 256, np.uint16))
    save(root / "b.png", COLOUR)
    assert np.unique(decoded(root)[0]).tolist() == [128]


@pytest.mark.parametrize(
    "values", [np.full((6, 8), 70000, np.int32), np.full((6, 8), -3, np.int32), np.full((6, 8), 0.5, np.float32)]
)
def test_32_bit_values_have_no_range_to_scale_from(root, values):
    save(root / "a.tif", values)
    assert refusal(root) == f"{root}/a.tif has 32-bit values, expected 8 or 16 bits: convert or remove it"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_equals_the_upright_one(root, name, orientation):
    """Cameras store what the sensor saw, and in EXIF how to turn it; keeping the stored rows would train on lying faces."""
    stored = {  # how the upright image lies in the file, for each value of the tag
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1), 6: np.rot90, 7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation](np.kron(COLOUR, np.ones((8, 8, 1), np.uint8)))  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(name[2:], {})
    save(root / name, np.ascontiguousarray(stored), exif=exif, **lossless)
    images = decoded(root)
    assert images.shape == (1, 48, 64, 3)
    assert np.abs(images[0, 4::8, 4::8].astype(int) - COLOUR).max() <= 8  # of JPEG; a wrong turn differs by up to 255


def test_size_takes_the_middle_square_of_the_upright_image(root):
    wide = np.repeat(np.repeat(np.array([[10, 100, 100, 200]], np.uint8), 4, axis=0), [4, 4, 4, 4], axis=1)  # 16 x 4
    tall = np.ascontiguousarray(wide.T)
    save(root / "tall.png", tall)
    save(root / "wide.png", wide)
    images = decoded(root, size=4)
    assert images.shape == (2, 4, 4, 1) and np.unique(images).tolist() == [100]
    save(root / "wide.png", COLOUR)
    assert decoded(root, size=5).shape == (2, 5, 5, 3)
    assert decoded(root, size=16).shape == (2, 16, 16, 3)


def test_size_that_all_images_have_changes_no_pixel(root):
    square = COLOUR[:6, :6]
    save(root / "a.png", square)
    assert np.array_equal(decoded(root, size=6)[0], square) and np.array_equal(decoded(root)[0], square)


def test_several_sizes_without_data_size_name_one_file_of_each(root):
    save(root / "a.png", COLOUR)
    save(root / "b.png", COLOUR)
    save(root / "c.png", COLOUR[:5])
    assert refusal(root) == (
        f"the images have several sizes ({root}/a.png is 8x6, {root}/c.png is 8x5): give data.size, the side in pixels to "
        "which all are brought (params.yaml)"
    )


def test_a_turned_image_counts_with_its_upright_size(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "a.png", COLOUR)
    save(root / "b.png", np.ascontiguousarray(np.rot90(COLOUR)), exif=exif)
    assert np.array_equal(*decoded(root))


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "empty.png", "text.png", "text.jpg", "gif.gif"])
def test_what_is_no_readable_image_is_named(root, name):
    save(root / "a.png", np.kron(COLOUR, np.ones((8, 8, 1), np.uint8)))
    content = {"empty": b"", "text": b"this is no image\n" * 50}.get(name.split(".")[0])
    if content is None:
        save(root / name, RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        content = (root / name).read_bytes()[:-900]
    (root / name).write_bytes(content)
    told = refusal(root)
    assert told.startswith(f"{root}/{name} is not a readable image (")
    assert told.endswith("): mend it or remove it from data.root")


def test_damaged_files_are_read_or_named_and_nothing_else(root):
    rng = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for ending in ("png", "jpg", "webp", "bmp", "gif", "ppm"):
        save(root / f"a.{ending}", COLOUR, **({"exif": exif} if ending in ("png", "jpg", "webp") else {}))
        whole = (root / f"a.{ending}").read_bytes()
        refused = 0
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(min(len(damaged), 120))] = rng.randrange(256)
            (root / f"a.{ending}").write_bytes(damaged)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow warns of EXIF it cannot read, and reads on
                    decoded(root)
            except ValueError as error:
                assert str(error).startswith(f"{root}/a.{ending} "), damaged
                refused += 1
        assert refused
        (root / f"a.{ending}").unlink()


def test_exif_that_cannot_be_read_names_the_file(root, monkeypatch):
    """Pillow raised a SyntaxError, which no stage catches, for a WebP whose EXIF has a wrong header."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "a.webp", COLOUR, exif=exif)
    content = (root / "a.webp").read_bytes()
    assert content.count(b"MM\0*") == 1
    (root / "a.webp").write_bytes(content.replace(b"MM\0*", b"9M\0*"))
    assert refusal(root).startswith(f"{root}/a.webp is not a readable image (")


def test_missing_and_empty_folders(root):
    advice = "put your images under data.root, or mend data.root (params.yaml)"
    assert refusal(root / "none") == f"the folder {root}/none does not exist: {advice}"
    (root / "notes.txt").write_text("no image")
    told = refusal(root)
    assert told.startswith(f"the folder {root} holds no image, expected files that end in .bmp, .gif, ")
    assert told.endswith(f": {advice}")
    (root / "file").write_text("")
    assert "does not exist" in refusal(root / "file")


@pytest.mark.parametrize("limit", [47, 20])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(root, monkeypatch, limit):
    """Pillow only warns of up to twice the limit (48 pixels against 47), and raises above (48 against 20)."""
    save(root / "a.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert refusal(root) == f"{root}/a.png claims to have more than {limit} pixels: remove it from data.root"


def test_a_header_that_claims_a_huge_image_is_refused(root):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    save(root / "a.png", GREY)
    content = (root / "a.png").read_bytes()
    import zlib

    chunk = b"IHDR" + header
    (root / "a.png").write_bytes(content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:])
    assert "a.png claims to have more than " in refusal(root)


def test_symbolic_links_to_images_are_read(root, tmp_path):
    save(tmp_path / "elsewhere.png", GREY)
    os.symlink(tmp_path / "elsewhere.png", root / "a.png")
    assert np.array_equal(decoded(root)[0, :, :, 0], GREY)


def test_folders_behind_links_are_classes_too(root, tmp_path):
    save(tmp_path / "elsewhere/cats/deep/1.png", GREY)
    save(tmp_path / "elsewhere/dog.png", COLOUR[:, :, 0])
    save(root / "bird/1.png", 255 - GREY)
    os.symlink(tmp_path / "elsewhere/cats", root / "cat")
    os.symlink("../../elsewhere/dog.png", root / "bird/0.png")
    found = image_sets.load({"name": "image_folder", "root": str(root)})
    assert found.pool.keys == ["bird/0.png", "bird/1.png", "cat/deep/1.png"]
    assert found.classes == ["bird", "cat"] and found.pool.labels.tolist() == [0, 0, 1]
    assert np.array_equal(decoded(root)[2, :, :, 0], GREY)
    assert image_sets.linked_folders({"name": "image_folder", "root": str(root)}) == [root / "cat"]


def test_the_root_itself_may_be_a_link(root, tmp_path):
    save(root / "cat/1.png", GREY)
    os.symlink(root, tmp_path / "link")
    assert image_sets.load({"name": "image_folder", "root": str(tmp_path / "link")}).pool.keys == ["cat/1.png"]
    assert image_sets.linked_folders({"name": "image_folder", "root": str(tmp_path / "link")}) == []


@pytest.mark.parametrize(
    ("link", "target", "told"),
    [
        ("cat/back", "..", "{root} and {root}/cat/back are the same folder"),  # without end
        ("cat/self", ".", "{root}/cat and {root}/cat/self are the same folder"),
        ("kitten", "cat", "{root}/kitten and {root}/cat are the same folder"),  # its images would count twice
    ],
)
def test_a_folder_that_is_reached_twice_is_refused(root, link, target, told):
    save(root / "cat/1.png", GREY)
    os.symlink(target, root / link)
    expected = f"{told.format(root=root)}, by a link: remove the link (its images count twice)"
    assert refusal(root) == expected
    with pytest.raises(ValueError, match="are the same folder"):
        image_sets.linked_folders({"name": "image_folder", "root": str(root)})


@pytest.mark.parametrize(("link", "target"), [("b.png", "gone.png"), ("cat/dog", "/none/dogs"), ("b.png", "b.png")])
def test_a_link_to_nothing_is_named(root, link, target):
    save(root / "cat/1.png", GREY)
    os.symlink(target, root / link)
    assert refusal(root) == f"{root}/{link} is a link to nothing ({target}): mend or remove it"


@pytest.mark.parametrize("key", [b"caf\xe9.png", b"caf\xe9/1.png", b"cat/notes \xff.txt"])
def test_a_name_that_is_not_utf_8_is_named(root, key):
    """DVC ends with a codec's complaint for such a file, whatever its kind."""
    path = os.path.join(os.fsencode(root), key)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as stream:
        Image.fromarray(GREY).save(stream, "png")
    told = refusal(root)
    shown = {b"caf\xe9.png": r"caf\xe9.png", b"caf\xe9/1.png": r"caf\xe9"}.get(key, r"cat/notes \xff.txt")
    assert told == f"the name of {root}/{shown} is not UTF-8: rename it"
    told.encode("utf-8")


@pytest.fixture
def afhq(tmp_path, monkeypatch):
    """A tiny AFHQ: 3 and 2 dogs of 512x512, other animals beside them; returns its root."""
    monkeypatch.setattr(folders, "AFHQ_DOG", {"train": 3, "val": 2})
    root = tmp_path / "afhq"
    for i, key in enumerate(
        ("train/dog/b.jpg", "train/dog/a.jpg", "train/dog/c.png", "val/dog/z.jpg", "val/dog/a.jpg")
    ):
        blocks = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        save(root / key, np.kron(blocks, np.ones((8, 8, 1), np.uint8)))
    save(root / "train/cat/a.jpg", COLOUR)
    return root


def load_afhq(root, **section):
    return image_sets.load({"name": "afhq_dog", "root": str(root), "split_seed": 0, **section})


@pytest.mark.filterwarnings("default")  # torch and torchvision warn of themselves when imported
def test_afhq_dog_is_resized_as_the_authors_code_does(afhq):
    """torchvision's Resize of a Pillow image is what the authors' code calls."""
    from torchvision.transforms import Resize

    found = load_afhq(afhq)
    assert found.shape == (64, 64, 3) and found.classes == []
    assert found.pool.keys == ["train/dog/a.jpg", "train/dog/b.jpg", "train/dog/c.png"]
    assert found.test.keys == ["val/dog/a.jpg", "val/dog/z.jpg"]
    for part in (found.pool, found.test):
        assert part.labels.tolist() == [0] * len(part.keys) and part.labels.dtype == np.int64
        for key, image in zip(part.keys, part.images(range(len(part.keys)))):
            with Image.open(afhq / key) as original:
                assert np.array_equal(image, np.asarray(Resize((64, 64))(original)))
                nearest = np.asarray(original.resize((64, 64), Image.Resampling.NEAREST))
            assert not np.array_equal(image, nearest)


def test_afhq_dog_without_its_val_folder_has_no_test_part(afhq):
    shutil.rmtree(afhq / "val/dog")
    assert load_afhq(afhq, heldout_share=0.5).test is None


def test_afhq_dog_holds_out_its_val_folder_or_a_share_but_not_both(afhq):
    with pytest.raises(ValueError, match="is held out, so data.heldout_share has no effect: remove it") as caught:
        load_afhq(afhq, heldout_share=0.5)
    assert str(caught.value).startswith(f"{afhq}/val/dog is")


@pytest.mark.parametrize("key", ["train/dog/b.jpg", "val/dog/z.jpg"])
def test_another_number_of_dogs_is_named(afhq, key):
    (afhq / key).unlink()
    part, count, expected = ("train", 2, 3) if key.startswith("train") else ("val", 1, 2)
    with pytest.raises(ValueError) as caught:
        load_afhq(afhq)
    assert str(caught.value) == (
        f"{afhq}/{part}/dog holds {count} images, expected the {expected} of AFHQ version 1: complete it, or read another "
        f"selection with data.name: image_folder, root: {afhq}/train/dog and size: 64 (params.yaml)"
    )


def test_the_real_afhq_has_4739_and_500_dogs(afhq, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"train/dog holds 3 images, expected the 4,739 of AFHQ version 1: complete it"
    ):
        load_afhq(afhq)
    assert folders.AFHQ_DOG == {"train": 4739, "val": 500}


def test_a_dog_of_another_size_is_named(afhq):
    save(afhq / "val/dog/z.jpg", COLOUR)
    with pytest.raises(ValueError, match=r"val/dog/z\.jpg is 8x6, expected 512x512 as all of AFHQ version 1$"):
        load_afhq(afhq)


def test_afhq_that_is_not_there_says_where_it_comes_from(tmp_path):
    (tmp_path / "dog").mkdir()
    with pytest.raises(ValueError) as caught:
        load_afhq(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no folder train/dog: put the folders train/dog and val/dog of AFHQ v1 (from the project stargan-v2 "
        "of clovaai: download.sh afhq-dataset) under data.root, or mend data.root (params.yaml)"
    )


def test_the_schema_knows_the_keys_of_every_set():
    schema = params.schema()["properties"]["data"]["properties"]
    assert list(image_sets.SETS) == sorted(image_sets.SETS)
    for name, entry in image_sets.SETS.items():
        assert {*entry.needs, *entry.takes} <= set(schema), name


NEW_SET = """
import numpy as np

from stages.image_sets.parts import ImageSet, from_array
from stages.image_sets.registry import image_set


@image_set("its images are drawn with numpy", needs=(), takes=("size",))
def stripes(data, progress):
    progress("drawing", "stripes").update(1, 1)
    images = np.zeros((3, 4, 4, 1), np.uint8)
    return ImageSet((4, 4, 1), [], from_array(["a", "b", "c"], [0, 0, 0], images))
"""
USE = """
import sys

import yaml

from stages import image_sets, rules

experiment = yaml.safe_load(sys.stdin)
rules.check(experiment)
found = image_sets.load(experiment["data"])
print(found.pool.keys, image_sets.stored(experiment["data"]), list(image_sets.SETS))
"""


def test_one_function_adds_a_set(tmp_path):
    """In a file of its own, in a copy of the package: params.yaml may name it, and it can be loaded."""
    for folder in ("stages", "workflow/schemas"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"name": "stripes", "split_seed": 0}

    def use():
        command = [sys.executable, "-c", USE]
        given = yaml.safe_dump(experiment)
        return subprocess.run(command, input=given, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "data.name is 'stripes', expected one of afhq_dog, captioned_folder," in use().stderr
    (tmp_path / "stages/image_sets/mine.py").write_text(NEW_SET)
    expected = sorted([*image_sets.SETS, "stripes"])
    assert use().stdout == f"['a', 'b', 'c'] None {expected}\n", use().stderr


def test_two_sets_of_one_name_are_refused():
    def digits(data, progress):
        raise AssertionError

    with pytest.raises(
        ValueError, match=r"two image sets are called digits, in .*packaged and .*test_image_sets: rename"
    ):
        registry.image_set("from nowhere")(digits)


def test_progress_is_told_to_whoever_asks_for_it(root):
    save(root / "a.png", GREY)
    save(root / "b.png", GREY)
    told = []

    class Told:
        def __init__(self, what, unit):
            told.append((what, unit))

        def update(self, done, total):
            told.append((done, total))

    image_sets.load({"name": "image_folder", "root": str(root)}, Told)
    assert told == [("looking at the images", "images"), (1, 2), (2, 2)]

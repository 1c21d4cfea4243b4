"""A folder as a hospital hands it over, made by code: 120 image files of many kinds, some of them bad, and what else lies between them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WHO = "Doe^Jane"  # in the EXIF of turned images: must not get anywhere
ODD = ["O'Brien & sons #1 (ünï).png", "写真 07.png", "-dash.png", "%s {0} $HOME.png"]
BAD = {"empty.png": b"", "letter.png": b"Dear colleague,\n" * 40, "cut.jpg": None}  # None: the first half of an image


@dataclass(frozen=True)
class Hospital:
    """What was made.

    root       the folder
    images     names of the files that are images, sorted: 117
    bad        names of those that are none, though they are called so: 3
    twins      names of two files with one content
    turned     names of images that EXIF turns by 90 degrees
    deep       names of grey images of 16 bits; shallow: of 12 bits in files of 16
    hidden     number of files that no one means; others: suffixes of files that are no images
    """

    root: Path
    images: list
    bad: list
    twins: tuple
    turned: list
    deep: list
    shallow: list
    hidden: int
    others: tuple

    def remove_bad(self):
        for name in self.bad:
            (self.root / name).unlink()


def picture(number, width=48, height=40):
    """A smooth picture in colour, different for each number: [height,width,3] uint8."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def make(root):
    """Fills a folder, which must not be there.

    Returns   Hospital
    """
    root = Path(root)
    root.mkdir(parents=True)
    kinds = {"turned": [], "deep": [], "shallow": []}
    for i in range(113 - len(ODD)):
        array = picture(i, *((64, 48) if i % 3 else (48, 64)))
        image, grey = Image.fromarray(array), array[..., 1].astype(np.uint16)
        name = f"scan_{i:03}"
        if i < 10:
            image.convert("CMYK").save(root / f"{name}.jpg", quality=95)
        elif i < 20:
            Image.fromarray(grey * 257).save(root / f"{name}.png")
            kinds["deep"].append(f"{name}.png")
        elif i < 30:
            Image.fromarray(grey * 16).save(root / f"{name}.tif")
            kinds["shallow"].append(f"{name}.tif")
        elif i < 36:
            image.quantize(32).save(root / f"{name}.png", transparency=bytes([0, 128] + [255] * 30))
        elif i < 42:
            exif = Image.Exif()
            exif[0x0112], exif[0x013B] = 6, WHO
            image.save(root / f"{name}.jpg", exif=exif, quality=95)
            kinds["turned"].append(f"{name}.jpg")
        elif i < 60:
            Image.fromarray(array[..., 0]).save(root / f"{name}.{('png', 'bmp', 'webp')[i % 3]}")
        else:
            image.save(root / f"{name}.{('png', 'jpg', 'jfif', 'PNG')[i % 4]}")
    frames = [Image.fromarray(picture(500 + i)) for i in range(3)]
    frames[0].save(root / "heart.gif", save_all=True, append_images=frames[1:])
    frames[1].save(root / "pages.tiff", save_all=True, append_images=frames[2:])
    for i, name in enumerate(ODD):
        Image.fromarray(picture(600 + i)).save(root / name)
    twins = ("scan_100.png", "copy of scan_100.png")
    shutil.copy(root / twins[0], root / twins[1])
    Image.fromarray(picture(700)).save(root / "last.png")
    for name, content in BAD.items():
        whole = (root / "scan_036.jpg").read_bytes()
        (root / name).write_bytes(whole[: len(whole) // 2] if content is None else content)

    for name in (".DS_Store", "Thumbs.db", "._last.png", ".ipynb_checkpoints/last-checkpoint.png", "__MACOSX/last.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\0\5\26\7")
    (root / "phone.heic").write_bytes(b"\0\0\0\x1cftypheic")
    (root / "readme.txt").write_text("handed over on a stick")
    images = sorted(path.name for path in root.iterdir() if path.is_file() and is_image(path) and path.name not in BAD)
    return Hospital(root, images, sorted(BAD), twins, **kinds, hidden=5, others=(".heic", ".txt"))


def is_image(path):
    return path.suffix not in (".heic", ".txt", ".db") and not path.name.startswith(".")

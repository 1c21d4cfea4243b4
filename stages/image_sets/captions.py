"""A folder of images with captions, for text-conditioned models."""

import json
import os
from pathlib import Path, PurePosixPath

from stages.image_sets import folders
from stages.image_sets.parts import NotThereError
from stages.image_sets.registry import image_set

SHOWN = 5  # names of images that a message gives at most


@image_set(
    "put your images under data.root, with captions.json, metadata.jsonl or a .txt beside each (README, Stable Diffusion)",
    takes=("size", "captions", "num_train", "heldout_share"),
    captions=True,
    stored=folders.stored,
)
def captioned_folder(data, progress):
    """A folder of images, at any depth and in colour, with their captions in one of three layouts:

    captions.json    one object: path of an image -> its caption, or a list of captions. A path is either below data.root, or ends
                     in such a path, so that a file made elsewhere can be used as it is. Of several ends that name an image the
                     longest counts.
    metadata.jsonl   one line for each image: {"file_name": path below data.root, "text": caption}
    NAME.txt         beside NAME.jpg or the like: its whole content is the caption

    An image's name is its path inside the folder. Sub-folders are no classes. data.size works as for `folders.image_folder`.

    Raises   NotThereError: no image, or no captions
             ValueError: captions in several layouts, images without captions or captions without images, an empty caption
    """
    root = Path(data["root"])
    images = folders.image_folder(data, progress, mode="RGB")
    keys = images.pool.keys
    captions = _read(root, data.get("captions"), keys)
    for key in keys:
        for text in captions[key]:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"the caption of {key} in {root} is {'empty' if isinstance(text, str) else repr(text)}, expected a text: mend it or "
                    "remove the image"
                )
    images.pool.captions = [captions[key] for key in keys]
    images.classes, images.pool.labels = [], images.pool.labels * 0  # sub-folders only sort the files
    return images


def _read(root, name, keys):
    """The captions of all images.

    name      data.captions, the name of the JSON file, or None
    keys      names of the images
    Returns   dict key -> list of texts, for exactly these keys
    """
    found = {
        "captions.json": root / (name or "captions.json"),
        "metadata.jsonl": root / "metadata.jsonl",
    }
    layouts = [layout for layout, path in found.items() if path.is_file()]
    if name and "captions.json" not in layouts:
        raise NotThereError(f"{found['captions.json']} (data.captions) does not exist")
    if name:
        layouts = ["captions.json"]
    beside = {key: root / PurePosixPath(key).with_suffix(".txt") for key in keys}
    if any(path.is_file() for path in beside.values()) and not name:
        layouts.append("a .txt beside each image")
    if not layouts:
        raise NotThereError(f"{os.path.abspath(root)} has no captions")
    if len(layouts) > 1:
        raise ValueError(
            f"{os.path.abspath(root)} has captions in several layouts ({', '.join(layouts)}): keep one of them, or name the JSON file "
            "in data.captions (params.yaml)"
        )
    match layouts[0]:
        case "captions.json":
            given = _of_json(found["captions.json"])
            captions, unmatched = _by_suffix(given, keys, found["captions.json"])
        case "metadata.jsonl":
            given = _of_lines(found["metadata.jsonl"])
            captions = {key: given[key] for key in keys if key in given}
            unmatched = [key for key in given if key not in captions]
        case _:
            captions = {key: [_text(path)] for key, path in beside.items() if path.is_file()}
            unmatched = []
    bare = [key for key in keys if key not in captions]
    if bare or unmatched:
        raise ValueError(
            f"{_counted(bare, 'images have no caption')} and {_counted(unmatched, 'captions have no image')} "
            f"under {os.path.abspath(root)}: complete them or remove the rest"
        )
    return captions


def _counted(keys, what):
    shown = f" ({', '.join(keys[:SHOWN])}{', ...' if keys[SHOWN:] else ''})" if keys else ""
    return f"{len(keys):,} {what}{shown}"


def _by_suffix(given, keys, source):
    """Finds the image of each given path: the longest end of the path that is the name of an image.

    given     dict path -> list of texts
    Returns   dict key -> list of texts; list of the paths that name no image
    Raises    ValueError: two paths name one image
    """
    known, captions, sources, unmatched = set(keys), {}, {}, []
    for path, texts in given.items():
        parts = path.replace("\\", "/").split("/")
        key = next((end for i in range(len(parts)) if (end := "/".join(parts[i:])) in known), None)
        if key is None:
            unmatched.append(path)
        elif key in captions:
            raise ValueError(f"{source} has two captions for the image {key}: {sources[key]} and {path}; remove one")
        else:
            captions[key], sources[key] = texts, path
    return captions, unmatched


def _of_json(path):
    try:
        given = json.loads(_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): mend it") from None
    if not isinstance(given, dict):
        raise ValueError(
            f"{path} holds a {type(given).__name__}, expected an object: path of an image -> caption or list of captions"
        )
    texts = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    if empty := [key for key, value in texts.items() if not value]:
        raise ValueError(f"{path} has an empty list of captions for {_counted(empty, 'images')}: mend or remove them")
    return texts


def _of_lines(path):
    given = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            key, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'{path}, line {number}: expected {{"file_name": ..., "text": ...}}') from None
        if key in given:
            raise ValueError(f"{path}, line {number}: {key} occurs twice")
        given[key] = [text]
    return given


def _text(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: convert it") from None

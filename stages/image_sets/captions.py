"""A folder of images with captions, for text-conditioned models."""

import csv
import io
import json
import os
import posixpath
import unicodedata
from pathlib import Path, PurePosixPath

from stages.image_sets import folders, looks
from stages.image_sets.parts import NotThereError
from stages.image_sets.registry import image_set

SHOWN = 5  # names of images that a message gives at most
BESIDE = (".txt", ".caption")
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
COLUMNS = ("text", "caption")  # that captions stand in where data.caption_column says nothing, the first that there is


@image_set(
    "put your images under data.root, with captions.json, metadata.jsonl, .csv or .parquet, or a .txt or .caption beside each",
    takes=("size", "range", "captions", "caption_column", "num_train", "heldout_share", "group", "deduplicate"),
    captions=True,
    stored=folders.stored,
)
def captioned_folder(data, progress):
    """A folder of images, at any depth and in colour, with their captions in one of these layouts:

    captions.json      one object: path of an image -> its caption, or a list of captions. A path is either below data.root, or ends
                       in such a path, so that a file made elsewhere can be used as it is. Of several ends that name an image the
                       longest counts.
    metadata.jsonl     one line for each image: {"file_name": path, "text": caption or list of captions}; in the column `text` or
                       `caption`, or in data.caption_column. In any folder; the path begins there.
    metadata.csv, metadata.parquet   the same as a table with a header
    NAME.txt, NAME.caption           beside NAME.jpg or the like: its whole content is the caption

    Text is UTF-8, with or without a byte order mark. Line ends around a caption are dropped. Paths may have / or \\ and begin
    with ./, and accents are the same however they are encoded. An image's name is its path inside the folder. Sub-folders are no
    classes. data.size and data.range work as for `folders.image_folder`.

    Raises   NotThereError: no image, or no captions
             ValueError: captions in several layouts, images without captions or captions without images, an empty caption, two
             images with one file of captions
    """
    root = Path(data["root"])
    images = folders.image_folder(data, progress, mode="RGB", beside=(*BESIDE, ".json", ".jsonl", ".csv", ".parquet"))
    captions, notes = _read(root, data, images.pool.keys)
    images.notes += notes
    images.pool.captions = [[_trimmed(text) for text in captions[key]] for key in images.pool.keys]
    _check_texts(root, images.pool)
    images.classes, images.pool.labels = [], images.pool.labels * 0  # sub-folders only sort the files
    return images


def _trimmed(text):
    return text.strip("\r\n") if isinstance(text, str) else text


def _check_texts(root, pool):
    wrong = {}
    for key, texts in zip(pool.keys, pool.captions, strict=True):
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                wrong.setdefault(key, "empty" if isinstance(text, str) else repr(text))
    if len(wrong) == 1:
        ((key, found),) = wrong.items()
        raise ValueError(f"the caption of {key} in {root} is {found}, expected a text: mend it or remove the image")
    if wrong:
        told = looks.listed([f"{key} ({found})" for key, found in wrong.items()], 20)
        raise ValueError(
            f"the captions of {len(wrong):,} images in {root} are empty or no text: {told}: mend them or remove the images"
        )


def _read(root, data, keys):
    """The captions of all images.

    data      section data of params.yaml: captions, the name of the JSON file; caption_column
    keys      names of the images
    Returns   dict key -> list of texts, for exactly these keys; sentences that the user should know
    """
    name, column = data.get("captions"), data.get("caption_column")
    whole = root / (name or "captions.json")
    if name and not whole.is_file():
        raise NotThereError(f"{whole} (data.captions) does not exist")
    files = [path for path in folders.listing(root)[0] if not folders.is_hidden(path.relative_to(root))]
    tables = {kind: [path for path in files if path.name == kind] for kind in TABLES}
    beside = {} if name else {suffix: _beside(root, keys, files, suffix) for suffix in BESIDE}
    layouts = ["captions.json"] if whole.is_file() else []
    if not name:
        layouts += [kind for kind, found in tables.items() if found]
        layouts += [f"a {suffix} beside each image" for suffix, found in beside.items() if found]
    if not layouts:
        raise NotThereError(f"{os.path.abspath(root)} has no captions")
    if len(layouts) > 1:
        raise ValueError(
            f"{os.path.abspath(root)} has captions in several layouts ({', '.join(layouts)}): keep one of them, or name the JSON file "
            "in data.captions (params.yaml)"
        )
    if column and layouts[0] not in TABLES:
        raise ValueError(
            f"data.caption_column has no effect, as captions stand in {layouts[0]}: remove it (params.yaml)"
        )
    names, notes = _names(keys), []
    if layouts[0] == "captions.json":
        captions, unmatched = _by_suffix(_of_json(whole), names, whole)
    elif layouts[0] in TABLES:
        captions, unmatched = _of_tables(root, tables[layouts[0]], names, column)
    else:
        suffix = next(suffix for suffix in BESIDE if beside[suffix])
        captions, unmatched = {key: [_text(path)] for key, path in beside[suffix].items()}, []
        used = set(beside[suffix].values())
        if stray := sum(path.suffix.lower() == suffix and path not in used for path in files):
            notes.append(f"{stray:,} {suffix} files have no image of their name and are not read")
    bare = [key for key in keys if key not in captions]
    if bare or unmatched:
        raise ValueError(
            f"{_counted(bare, 'images have no caption')} and {_counted(unmatched, 'captions have no image')} "
            f"under {os.path.abspath(root)}: complete them or remove the rest"
        )
    return captions, notes


def _counted(keys, what):
    shown = f" ({', '.join(keys[:SHOWN])}{', ...' if keys[SHOWN:] else ''})" if keys else ""
    return f"{len(keys):,} {what}{shown}"


def _plain(path):
    """A path in one spelling: accents composed (NFC), / between folders, no ./ in it."""
    return posixpath.normpath(unicodedata.normalize("NFC", path).replace("\\", "/"))


def _names(keys):
    """dict plain name -> key.

    Raises   ValueError: two keys have one plain name
    """
    names = {}
    for key in keys:
        if (other := names.setdefault(_plain(key), key)) != key:
            raise ValueError(f"the images {other!a} and {key!a} have one name but for its spelling: rename one of them")
    return names


def _beside(root, keys, files, suffix):
    """The file of captions of each image that has one: dict key -> path.

    Raises   ValueError: two images share one
    """
    there = {_plain(path.relative_to(root).as_posix()): path for path in files if path.suffix.lower() == suffix}
    there = {str(PurePosixPath(name).with_suffix("")): path for name, path in there.items()}
    found, owners, shared = {}, {}, []
    for key in keys:
        if path := there.get(str(PurePosixPath(_plain(key)).with_suffix(""))):
            found[key] = path
            if (other := owners.setdefault(path, key)) != key:
                shared.append(f"{other} and {key} ({path.name})")
    if shared:
        raise ValueError(
            f"images under {root} share a file of captions: {looks.listed(shared, 20)}: rename one of each, or use captions.json"
        )
    return found


def _by_suffix(given, names, source):
    """Finds the image of each given path: the longest end of the path that is the name of an image.

    given     dict path -> list of texts
    names     dict plain name -> key
    Returns   dict key -> list of texts; list of the paths that name no image
    Raises    ValueError: two paths name one image
    """
    captions, sources, unmatched = {}, {}, []
    for path, texts in given.items():
        parts = _plain(path).split("/")
        key = next((names[end] for i in range(len(parts)) if (end := "/".join(parts[i:])) in names), None)
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


def _of_tables(root, paths, names, column):
    """Captions of metadata files, each of which names images from its own folder on.

    Returns   dict key -> list of texts; list of the names that are no image's
    Raises    ValueError: a row without name or captions, or two rows for one image
    """
    rows_of = {"metadata.jsonl": _of_lines, "metadata.csv": _of_csv, "metadata.parquet": _of_parquet}
    captions, unmatched = {}, []
    for path in paths:
        folder = path.parent.relative_to(root).as_posix()
        for place, row in rows_of[path.name](path):
            texts = _texts(row, column)
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or texts is None:
                expected = f'{{"file_name": ..., "{column or "text"}": ...}}'
                raise ValueError(f"{path}, {place}: expected {expected}")
            name = _plain(posixpath.join(folder, row["file_name"].replace("\\", "/")))
            if (key := names.get(name)) is None:
                unmatched.append(name)
            elif key in captions:
                raise ValueError(
                    f"{path}, {place}: {row['file_name']} occurs twice: put its captions into one list (metadata.jsonl)"
                )
            else:
                captions[key] = texts
    return captions, unmatched


def _texts(row, column):
    """The captions of a row: list; None where it has none."""
    columns = (column,) if column else COLUMNS
    found = next((row[name] for name in columns if name in row), None) if isinstance(row, dict) else None
    if found is None or isinstance(found, str):
        return None if found is None else [found]
    return list(found) if isinstance(found, (list, tuple)) and found else None


def _of_lines(path):
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError:
                yield f"line {number}", None


def _of_csv(path):
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise csv.Error(f"expected {len(rows.fieldnames)} columns")
            yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}: mend it") from None


def _of_parquet(path):
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not readable as Parquet ({' '.join(str(error).split())[:200]}): mend it") from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: convert it") from None

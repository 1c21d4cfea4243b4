"""Images that belong together, such as those of one person, and so lie on one side of the split."""

import posixpath
import re
from pathlib import Path

import numpy as np

from stages.image_sets import looks


def of_keys(data, keys):
    """The group of each image, by data.group; None without one.

    data      section data of params.yaml. group: folder, the folder that an image lies in; {pattern: regular expression}, what its first
              group in brackets finds in the image's path (or all of it that matches); {table: file.csv, column: name}, a table below
              data.root whose column file_name has the path
    keys      [N] paths of the images below data.root
    Returns   [N] int64, equal for images of one group
    Raises    ValueError: an image without a group, or one group for all images
    """
    asked = data.get("group")
    if asked is None:
        return None
    if asked == "folder":
        names = [posixpath.dirname(key) for key in keys]
    elif "pattern" in asked:
        found = [re.search(asked["pattern"], key) for key in keys]
        _refuse(
            [key for key, match in zip(keys, found, strict=True) if not match],
            f"do not match data.group.pattern {asked['pattern']}",
        )
        names = [match[1] if match.re.groups else match[0] for match in found]
    else:
        by_key = _table(Path(data["root"], asked["table"]), asked["column"])
        _refuse(
            [key for key in keys if key not in by_key],
            f"are not in {asked['table']} (data.group.table, column file_name)",
        )
        names = [by_key[key] for key in keys]
    kinds, groups = np.unique(names, return_inverse=True)
    if len(kinds) == 1:
        raise ValueError(
            f"data.group puts all {len(keys):,} images into one group, {str(kinds[0])!r}: nothing could be held out (params.yaml)"
        )
    return groups.astype(np.int64)


def check(asked):
    """Raises ValueError if data.group is none of the forms of `of_keys`."""
    if asked in (None, "folder"):
        return
    if set(asked) not in ({"pattern"}, {"table", "column"}):
        raise ValueError(
            f"data.group has {', '.join(asked) or 'no key'}, expected folder, or pattern, or table and column"
        )
    if "pattern" in asked:
        try:
            re.compile(asked["pattern"])
        except re.error as error:
            raise ValueError(f"data.group.pattern is no regular expression ({error}): {asked['pattern']}") from None


def _table(path, column):
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} (data.group.table) cannot be read: {error}") from None
    for name in ("file_name", column):
        if name not in table:
            raise ValueError(f"{path} has the columns {', '.join(table)}, expected file_name and {column} (data.group)")
    return dict(zip(table.file_name, table[column], strict=True))


def _refuse(keys, what):
    if keys:
        raise ValueError(f"{len(keys):,} images {what}: {looks.listed(keys, 20)}")

"""The sets of duplicates that the data stage has found."""

from stages.run import files


def found():
    """What duplicates.json holds, see stages.measures.duplicates.summary."""
    return files.load_json(files.DUPLICATES / "duplicates.json")


def others_of(indices):
    """How many other training images are the same as each of these or nearly so: list of numbers.

    indices   of training images
    """
    number = {i: len(one["train"]) - 1 for one in found()["sets"] for i in one["train"]}
    return [number.get(int(i), 0) for i in indices]

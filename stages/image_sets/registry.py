"""How an image set makes itself known: the decorator `image_set` on the function that loads it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What the rest of the project knows of an image set.

    load       function (section data of params.yaml, progress) -> ImageSet; see `stages.image_sets.load`
    obtain     where the images come from and what to put under data.root: the part of a sentence after a colon
    needs      keys that the section must have, beside name and split_seed
    takes      further keys that have an effect
    pinned     the pinned packages alone say what its images are, as they hold them or check their files: DVC need not
               watch data.root
    download   data.download: true fetches it
    captions   its images have captions, which a text-conditioned model is trained with
    stored     function: section data -> (number of images, (H, W, C)), without reading them, for an estimate of the disk;
               None where there is no such function
    """

    load: Callable
    obtain: str
    needs: tuple = ("root",)
    takes: tuple = ("num_train",)
    pinned: bool = False
    download: bool = False
    captions: bool = False
    stored: Callable | None = None


DECLARED = {}  # name -> Entry, in the order in which the functions were defined


def image_set(obtain, **more):
    """Declares the function below it an image set; the name of the function is what data.name says.

    obtain, more   the fields of Entry, without `load`
    Raises         ValueError: two functions have one name
    """

    def declare(function):
        name = function.__name__
        if name in DECLARED:
            modules = f"{DECLARED[name].load.__module__} and {function.__module__}"
            raise ValueError(f"two image sets are called {name}, in {modules}: rename one of the functions")
        DECLARED[name] = Entry(function, obtain, **more)
        return function

    return declare


def of_size(num_images, side, channels):
    """`Entry.stored` of a set whose size is known: square images, whose side data.size may change but not their channels."""
    return lambda data: (num_images, (data.get("size", side), data.get("size", side), channels))

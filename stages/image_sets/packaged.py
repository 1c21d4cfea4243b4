"""Image sets that come with an installed package."""

import numpy as np

from stages.image_sets.parts import ImageSet, from_array
from stages.image_sets.registry import image_set, of_size


@image_set(
    "its images come with scikit-learn",
    needs=("num_train",),
    takes=(),
    pinned=True,
    stored=of_size(1797, 8, 1),
)
def digits(data, progress):
    """The 1,797 handwritten digits of scikit-learn: 8x8 grey, 10 classes.

    The 17 grey levels become 0, 15, ..., 240. Not 255: RandAugment's Solarize inverts a saturated pixel at any strength,
    however small, and strokes here are saturated.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * 15).astype(np.uint8)[..., None]
    classes = [str(name) for name in bunch.target_names]
    return ImageSet((8, 8, 1), classes, from_array([f"digit-{i:04}" for i in range(len(images))], bunch.target, images))

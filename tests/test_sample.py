"""The sample stage where memory runs out: a batch is generated in pieces, and every image is still its own."""

import numpy as np
import pytest
import torch

from stages import device, sample


def limited(limit, error=None):
    """A generator of images that bear their own number, with memory for `limit` of them; and the list of its calls."""
    calls = []

    def generated(start, stop):
        calls.append((start, stop))
        if stop - start > limit:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return np.arange(start, stop, dtype=np.uint8).reshape(-1, 1, 1, 1)

    return generated, calls


@pytest.mark.parametrize(("limit", "largest"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (9, 5), (10, None)])
def test_batches_that_do_not_fit_are_generated_in_pieces(limit, largest, capsys):
    generated, calls = limited(limit)
    in_pieces = sample.InPieces(generated)
    found = np.concatenate([in_pieces(start, min(start + 10, 24)) for start in (0, 10, 20)])
    assert found[:, 0, 0, 0].tolist() == list(range(24))
    assert in_pieces.largest == largest
    failed = [call for call in calls if call[1] - call[0] > limit]
    assert len(failed) == {1: 4, 2: 3, 3: 2, 4: 2, 5: 1, 9: 1, 10: 0}[limit]  # 10, 5, 3, 2; never tried again
    assert capsys.readouterr().err.count("out of memory with") == len(failed)


def test_one_image_too_many_and_other_errors_end_it():
    with pytest.raises(ValueError, match=r"does not suffice to generate one image \(CUDA out of memory"):
        sample.InPieces(limited(0)[0])(0, 8)
    with pytest.raises(RuntimeError, match="another reason"):
        sample.InPieces(limited(0, RuntimeError("another reason"))[0])(0, 8)


def test_what_torch_says_when_memory_is_full():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert device.is_out_of_memory(caught.value)
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not device.is_out_of_memory(RuntimeError("shapes do not match"))
    assert not device.is_out_of_memory(ValueError("can't allocate memory"))

"""IET: the average of the proxy models is equal-weighted, exact for equal models, and refuses unlike ones."""

import numpy as np
import pytest

from stages.iet import averaging


def model(*values, dtype=np.float32):
    return {"w": np.array(values, dtype), "b": np.array([[2 * v] for v in values], dtype)}


def random_model(seed):
    random = np.random.default_rng(seed)
    return {
        "conv.weight": random.normal(0, 0.1, (3, 5, 3)).astype(np.float32),
        "conv.bias": (random.normal(0, 1, 7) * 10.0 ** random.integers(-20, 20, 7)).astype(np.float32),
    }


def check_equal_weighted(average):
    """Three shards of 1, 3 and 8 images with the weights 0, 4 and 5."""
    mean = average([model(0.0), model(4.0), model(5.0)], sizes=[1, 3, 8])
    assert mean["w"].tolist() == [3.0]  # Eq. 9 by hand; weighting by shard size would give 52 / 12
    assert mean["b"].tolist() == [[6.0]]


def weighted_by_size(models, sizes):
    return {name: sum(m[name] * np.float32(size / sum(sizes)) for m, size in zip(models, sizes)) for name in models[0]}


def test_average_is_equal_weighted_on_unequal_shards():
    check_equal_weighted(lambda models, sizes: averaging.average(models))


def test_weighting_by_shard_size_would_be_noticed():
    with pytest.raises(AssertionError):
        check_equal_weighted(weighted_by_size)


@pytest.mark.parametrize("num_models", [2, 3, 5, 10, 15])
def test_mean_of_identical_models_is_bit_identical(num_models):
    first = random_model(1)
    mean = averaging.average([{name: value.copy() for name, value in first.items()} for _ in range(num_models)])
    assert all(mean[name].tobytes() == value.tobytes() for name, value in first.items())


def test_a_running_sum_in_float32_would_be_noticed():
    first = random_model(1)["conv.weight"]
    running = (first + first + first + first + first) / np.float32(5)
    assert running.dtype == np.float32 and running.tobytes() != first.tobytes()


def test_one_model_is_returned_as_it_is():
    first = random_model(2) | {"odd": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)}
    mean = averaging.average([first])
    assert mean.keys() == first.keys()
    assert all(mean[name].tobytes() == value.tobytes() for name, value in first.items())


def test_mean_is_exact_to_the_last_bit_and_the_order_does_not_matter():
    models = [random_model(seed) for seed in range(7)]
    mean = averaging.average(models)
    for name, value in mean.items():
        exact = np.mean(np.stack([m[name] for m in models]).astype(np.longdouble), axis=0)
        assert np.all(np.abs(value - exact) <= np.spacing(np.abs(value)))
        turned = averaging.average(models[3:] + models[:3])[name]
        assert np.all(np.abs(value - turned) <= np.spacing(np.abs(value)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept_and_models_are_not_changed(dtype):
    models = [model(1.0, -2.0, dtype=dtype), model(2.0, 5.0, dtype=dtype)]
    mean = averaging.average(models)
    assert mean["w"].dtype == mean["b"].dtype == dtype
    assert mean["w"].tolist() == [1.5, 1.5]
    assert models[0]["w"].tolist() == [1.0, -2.0] and models[1]["w"].tolist() == [2.0, 5.0]


def test_models_are_taken_one_at_a_time():
    alive = []

    def models():
        for value in (1.0, 2.0, 6.0):
            alive.append(value)
            yield model(value)

    stream = models()
    assert averaging.average(stream)["w"].tolist() == [3.0]
    assert alive == [1.0, 2.0, 6.0]


def test_unlike_models_are_refused():
    with pytest.raises(ValueError, match="no model to average"):
        averaging.average([])
    extra = model(1.0) | {"new": np.zeros(1, np.float32)}
    for models in ([model(1.0), model(2.0), extra], [extra, model(1.0)]):
        with pytest.raises(ValueError, match=f"model {len(models) - 1} and model 0 .* only one has new"):
            averaging.average(models)
    with pytest.raises(ValueError, match=r"model 1 has w of shape \(2,\), model 0 has \(1,\)"):
        averaging.average([model(1.0), model(2.0) | {"w": np.zeros(2, np.float32)}])
    with pytest.raises(ValueError, match=r"shape \(1, 1\)"):  # would broadcast
        averaging.average([model(1.0), model(2.0) | {"w": np.zeros((1, 1), np.float32)}])

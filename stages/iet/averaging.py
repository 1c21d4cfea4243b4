"""IET: the model of a round is the mean of its K proxy models (Eq. 9 of the paper); or their weights side by side."""

import numpy as np


def average(states):
    """Equal-weighted mean of K sets of weights (Eq. 9), whatever the sizes of their shards.

    Summed in float64 in the order given and cast back once, so that the mean of identical models is bit-identical; one
    model alone is returned as it is.

    states   iterable of K >= 1 dicts name -> float array, consumed one at a time
    Returns  dict name -> array of the dtype of the first model
    Raises   ValueError: no model, or names or shapes differ
    """
    states = iter(states)
    first = next(states, None)
    if first is None:
        raise ValueError("no model to average, expected one per shard")
    total, num_models = first, 1
    for state in states:
        if state.keys() != first.keys():
            odd = sorted(state.keys() ^ first.keys())[0]
            raise ValueError(f"model {num_models} and model 0 do not have the same weights: only one has {odd}")
        if num_models == 1:
            total = {name: value.astype(np.float64) for name, value in first.items()}
        for name, value in state.items():
            if value.shape != total[name].shape:
                raise ValueError(
                    f"model {num_models} has {name} of shape {value.shape}, model 0 has {total[name].shape}"
                )
            total[name] += value
        num_models += 1
    if num_models == 1:
        return first
    return {name: (value / num_models).astype(first[name].dtype) for name, value in total.items()}


def side_by_side(states):
    """K sets of weights as one, for mean_of_predictions.MeanOfPredictions: members.<k>.<name>.

    states   iterable of K dicts name -> float array
    Returns  dict name -> array
    """
    return {f"members.{k}.{name}": value for k, state in enumerate(states) for name, value in state.items()}

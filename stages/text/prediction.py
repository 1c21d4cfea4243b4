"""What the network of a Stable Diffusion model predicts: the noise eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans
and Ho 2022). This is the only place that tells one from the other.

B images, c h w latent, T timesteps. `signal` is the alpha_bar of a timestep: a number in (0, 1), or a tensor that is broadcast.
"""

TYPES = ("epsilon", "v_prediction")


def _is_velocity(prediction_type):
    """Raises   ValueError: neither of the two"""
    if prediction_type not in TYPES:
        raise ValueError(f"the network predicts {prediction_type}, expected epsilon or v_prediction")
    return prediction_type == "v_prediction"


def target(prediction_type, x_0, t, eps, alpha_bar):
    """What the network is to predict: [B,c,h,w].

    x_0, eps    [B,c,h,w] float32
    t           [B] int64, 0 <= t < T
    alpha_bar   [T] float32
    """
    if not _is_velocity(prediction_type):
        return eps
    signal = alpha_bar[t].view(-1, 1, 1, 1)
    return signal**0.5 * eps - (1 - signal) ** 0.5 * x_0


def as_noise(prediction_type, prediction, x, signal):
    """The noise that a prediction stands for: itself, or sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x.

    prediction   [B,c,h,w]
    x            [B,c,h,w]: what the network saw
    """
    if not _is_velocity(prediction_type):
        return prediction
    return signal**0.5 * prediction + (1 - signal) ** 0.5 * x


def noise_difference(prediction_type, prediction, other, signal):
    """Difference of the noises that two predictions of the same x stand for: theirs, or sqrt(alpha_bar) (v - v').

    prediction, other   [B,c,h,w]
    """
    if not _is_velocity(prediction_type):
        return prediction - other
    return signal**0.5 * (prediction - other)

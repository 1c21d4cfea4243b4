"""The forward process and the training objective of DDPM (Ho et al. 2020; Eq. 1 and 2 of the paper).

B batch, C H W image, T timesteps.
"""

import torch


def alpha_bars(num_timesteps, beta_start, beta_end):
    """Cumulative product of 1 - beta_t for a linear schedule, computed in float64.

    Returns   [T] float64, decreasing, in (0, 1)
    """
    betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def normalise(images):
    """uint8 [B,C,H,W] in 0..255 to float32 in [-1, 1]: x / 127.5 - 1."""
    return images.float() / 127.5 - 1


def noised(x_0, t, eps, alpha_bar):
    """q(x_t | x_0) (Eq. 1): sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    x_0, eps   [B,C,H,W] float32
    t          [B] int64, 0 <= t < T
    alpha_bar  [T] float32
    """
    signal = alpha_bar[t].view(-1, 1, 1, 1)
    return signal.sqrt() * x_0 + (1 - signal).sqrt() * eps


def predicted(model, x, t, precision="fp32", labels=None, condition=None):
    """What the network says of x at t, in float32 whatever it computes in.

    model      (x [B,C,H,W], t [B]) -> object with .sample; with labels also class_labels, with a condition
               encoder_hidden_states
    precision  bf16 for the arithmetic of the network; fp32 or tf32, between which torch's own settings decide
    labels     [B] int64 class of each image, None for an unconditional network
    condition  [B,L,D] embeddings of a text for each image, None for a network without text
    """
    conditions = {} if labels is None else {"class_labels": labels}
    if condition is not None:
        conditions["encoder_hidden_states"] = condition
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(x, t, **conditions).sample.float()


def sample_losses(model, x_0, t, eps, alpha_bar, precision="fp32", labels=None):
    """Squared error of the predicted noise (Eq. 2), one number per sample, never reduced over the batch.

    Returns   [B] float32: mean over C, H and W
    """
    x_t = noised(x_0, t, eps, alpha_bar)
    return (predicted(model, x_t, t, precision, labels) - eps).square().mean(dim=(1, 2, 3))

"""How the weights of DemoFusion's parts fall over the trajectory.

Paper: Du et al., "DemoFusion", CVPR 2024, arXiv 2311.16973. All follow one cosine, kappa, which falls from 1 in pure
noise to 0 in the clean sample; each part raises it to an exponent of its own.
"""

import math


def cosine_decay(timestep: float, num_train_timesteps: int) -> float:
    """kappa_t = (1 + cos(pi * (T - t) / T)) / 2: 1 at t = T, 0 at t = 0 (Eq. 5)."""
    return 0.5 * (1.0 + math.cos(math.pi * (num_train_timesteps - timestep) / num_train_timesteps))


def skip_weight(kappa: float, cosine_scale_1: float) -> float:
    """c1 = kappa^a1: the weight of the noised enlargement in the sample (Eq. 4)."""
    return kappa**cosine_scale_1


def dilated_weight(kappa: float, cosine_scale_2: float) -> float:
    """c2 = kappa^a2: the weight of dilated sampling in the prediction (Eq. 8)."""
    return kappa**cosine_scale_2


def blur_std(kappa: float, cosine_scale_3: float, blur_sigma: float) -> float:
    """Sigma * c3 with c3 = 0.99 * kappa^a3 + 0.01: standard deviation of the lattices' blur, in cells (Sec. 3.4)."""
    return blur_sigma * (0.99 * kappa**cosine_scale_3 + 0.01)

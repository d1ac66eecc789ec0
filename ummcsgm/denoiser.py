"""network + params + SDE + Completion -> denoise(x, t); and eq. 5, exactly.

With tau = std / mean the noise level and y = x / mean the images on the clean scale,
the network F answers on the missing modalities (Karras et al. 2022, table 1)

    denoise = c_skip y + c_out F(c_in y | b / data_std, A|B, ln(tau) / 4)
    c_skip = s^2 / (tau^2 + s^2),  c_out = tau s / sqrt(tau^2 + s^2),
    c_in = 1 / sqrt(tau^2 + s^2),  s = data_std

which for VP and s = 1 is v-prediction, F = -v. On the seen modalities the answer is b.
"""

import dataclasses

import jax.numpy as jnp

from ummcsgm.completion import Completion, channels
from ummcsgm.network import MMCSN
from ummcsgm.sde import SDE, per_example, score_from_denoised
from ummcsgm.types import Denoiser, Images, Params, Times


@dataclasses.dataclass(frozen=True)
class Model:
    """What stands still while parameters change: network, process, scale of the data.

    `data_std` is the standard deviation of clean images, background included.
    """

    network: MMCSN
    sde: SDE
    data_std: float


def make_denoise(model: Model, params: Params, completion: Completion) -> Denoiser:
    """`denoise(x, t)`: E[clean images | x, b], [B, H, W, M]; b itself where seen.

    What `x` holds on the seen modalities is ignored. Any t in (0, 1]; never 0.
    """
    sde, variance = model.sde, model.data_std**2

    def denoise(x: Images, t: Times) -> Images:
        level = sde.noise_level(t)
        noise = per_example(level, x)
        total = jnp.sqrt(jnp.square(noise) + variance)
        clean_scale = x / per_example(sde.mean(t), x)
        inputs = jnp.where(
            channels(completion.missing),
            clean_scale / total,
            completion.seen / model.data_std,
        )
        answer = model.network.apply(
            params, inputs, completion.missing, 0.25 * jnp.log(level)
        )
        skip, out = variance / jnp.square(total), noise * model.data_std / total
        return completion.fill(skip * clean_scale + out * answer)

    return denoise


def mm_csn(
    sde: SDE, denoise: Denoiser, completion: Completion, x: Images, t: Times
) -> Images:
    """NN((a_t, b), t, A|B) = (a_t, b) + (score of a_t given b, 0): the paper's eq. 5.

    Bitwise b on the seen modalities. Any t in (0, 1]; the score does not exist at 0.
    """
    score = score_from_denoised(sde, x, denoise(x, t), t)
    return completion.fill(x + score)


def posterior_mean(sde: SDE, denoise: Denoiser, completion: Completion) -> Images:
    """E[a | b] in ONE network evaluation, and b: the answer to the MMSE token.

    At t = 1 with a_t = 0 nothing is known of a but b. The token is one of the rows that
    `loss.draw_questions` trains on, so the answer needs no noise and is no draw.
    """
    zeros = jnp.zeros_like(completion.seen)
    return completion.fill(denoise(zeros, jnp.ones(zeros.shape[:1], zeros.dtype)))

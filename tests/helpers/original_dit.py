"""The original DiT's sampling, written naively from the papers' formulas in float64, to test against."""

import numpy as np
import torch


def space_timesteps(total: int, count: int) -> list[int]:
    """DiT's respacing: accumulate a fractional stride and round."""
    position, taken = 0.0, []
    for _ in range(count):
        taken.append(round(position))
        position += (total - 1) / (count - 1)
    return taken


def alphas_bar(visited: list[int]) -> list[float]:
    """Cumulative alphas of DiT's linear schedule at the visited timesteps."""
    betas = np.linspace(0.0001, 0.02, 1000, dtype=np.float64)
    return np.cumprod(1 - betas)[visited].tolist()


def guided(model, x, t, y, scale, null):
    """Guide the first three channels of the noise, and take the rest from the conditional half."""
    n = len(x)
    out = model(torch.cat([x, x]), torch.full((2 * n,), t), torch.cat([y, torch.full_like(y, null)])).double()
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps[:n], eps[n:]
    return torch.cat([uncond + scale * (cond - uncond), rest[:n]], 1)


def ddim(model, x, y, visited, scale, null):
    """Eta 0, from the last visited timestep to the clean image."""
    bar = alphas_bar(visited)
    x = x.double()
    for i in reversed(range(len(visited))):
        eps = guided(model, x.float(), visited[i], y, scale, null)[:, : x.shape[1]]
        previous = bar[i - 1] if i else 1.0
        clean = (x - (1 - bar[i]) ** 0.5 * eps) / bar[i] ** 0.5
        x = previous**0.5 * clean + (1 - previous) ** 0.5 * eps
    return x


def ddpm(model, x, y, visited, scale, null, draws):
    """Ancestral sampling with the learned-range variance; `draws[k]` is the noise of the k-th step."""
    bar = alphas_bar(visited)
    x = x.double()
    for k, i in enumerate(reversed(range(len(visited)))):
        out = guided(model, x.float(), visited[i], y, scale, null)
        eps, logits = out.chunk(2, 1)
        previous = bar[i - 1] if i else 1.0
        beta = 1 - bar[i] / previous
        clean = (x - (1 - bar[i]) ** 0.5 * eps) / bar[i] ** 0.5
        mean = (previous**0.5 * beta * clean + (bar[i] / previous) ** 0.5 * (1 - previous) * x) / (1 - bar[i])
        if i == 0:
            return mean
        lower = beta * (1 - previous) / (1 - bar[i])
        share = (logits + 1) / 2
        x = mean + torch.exp(0.5 * (share * np.log(beta) + (1 - share) * np.log(lower))) * draws[k]
    raise AssertionError("no timesteps")

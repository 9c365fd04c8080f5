"""The fast Hadamard transform of rows: x H / √n without forming the n × n matrix. It is orthogonal, as H Hᵀ = n I.

H is the Kronecker product of a Sylvester matrix of size 2^p and a small matrix of size K, where n = 2^p K, or two of
them. The small ones are Paley's (1933): for a prime q, with Q_ij = χ(j - i) the quadratic character of the difference,

    q = 3 mod 4, K = q + 1:      H = I + S,   S = [[0, 1], [-1, Q]]
    q = 1 mod 4, K = 2 (q + 1):  H = C ⊗ [[1, 1], [1, -1]] + I ⊗ [[1, -1], [-1, -1]],   C = [[0, 1], [1, Q]]

which gives 12, 20, 24, 28, 36, 44, 48, 60, 68, 72, 76, 84, 108, 140 and more, and with them the widths of published
diffusion transformers (1152 = 32 · 36, 3072 = 256 · 12, 1920 = 32 · 60, 2240 = 16 · 140, 5600 = 2 · 20 · 140). QuaRot
(arXiv 2404.00456) reads these matrices from tables; released ViDiT-Q multiplies with a dense matrix in float64 at
every call. Here each factor is applied as a small matrix product over its own axis, which costs n (K + Σ 2^pᵢ)
multiplications per row instead of n². A dedicated kernel would need no multiplications for the powers of two, and p
additions instead of Σ 2^pᵢ; `operations` counts the operations of such a kernel.

Left out: half precision inside (16-bit butterflies were seen to flicker in video), and sizes from prime powers (52).
"""

from functools import cache
from math import isqrt

import torch
from jaxtyping import Float, Int8, Integer
from torch import Tensor

LARGEST_BASE = 256  # beyond it the small matrix is not small
_CHUNK = 5  # powers of two that are handled by one matrix product


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, int(n**0.5) + 1))


def _paley(order: int) -> bool:
    """Whether Paley's constructions give a Hadamard matrix of this order."""
    first = order % 4 == 0 and _prime(order - 1)
    return first or (order % 4 == 0 and (order // 2 - 1) % 4 == 1 and _prime(order // 2 - 1))


def _small(order: int) -> bool:
    """Whether there is a matrix of this order that is small enough to be multiplied with."""
    return order <= LARGEST_BASE and _paley(order)


def split(n: int) -> tuple[int, tuple[int, ...]]:
    """p and the orders of small matrices whose product with 2^p is n: none, one (the smallest), or else two.

    >>> split(1152), split(4608), split(1024), split(72), split(5600)
    ((5, (36,)), (7, (36,)), (10, ()), (1, (36,)), (1, (20, 140)))

    Raises:
        ValueError: there are none; the message is for a user.
    """
    p = (n & -n).bit_length() - 1
    rests = [(power, n >> power) for power in range(p, -1, -1)]
    for power, rest in rests:
        if rest == 1 or _small(rest):
            return power, (rest,) if rest > 1 else ()
    for power, rest in rests:
        for first in range(min(isqrt(rest), LARGEST_BASE), 0, -1):  # the nearer the two, the fewer multiplications
            if rest % first == 0 and _small(first) and _small(rest // first):
                return power, (first, rest // first)
    advice = f"blocks of {2**p} divide them" if p else "they are odd"
    raise ValueError(f"no Hadamard matrix is known here for {n} channels; {advice}")


def _character(q: int) -> Float[Tensor, "q q"]:
    """Quadratic characters of all differences j - i modulo a prime q."""
    values = torch.full((q,), -1.0, dtype=torch.float64)
    values[[k * k % q for k in range(q)]] = 1.0
    values[0] = 0.0
    return values[(torch.arange(q) - torch.arange(q)[:, None]) % q]


def _bordered(q: int, column: float) -> Float[Tensor, "q+1 q+1"]:
    """Q with a row of ones, a column of `column` and a zero in the corner."""
    made = torch.ones(q + 1, q + 1, dtype=torch.float64)
    made[0, 0], made[1:, 0], made[1:, 1:] = 0.0, column, _character(q)
    return made


def base_matrix(order: int) -> Float[Tensor, "order order"]:
    """A Hadamard matrix of ±1 by Paley's constructions, float64, of an order that `split` gives; order 1 is [[1]]."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if _prime(order - 1) and order % 4 == 0:
        return torch.eye(order, dtype=torch.float64) + _bordered(order - 1, -1.0)
    ones, other = torch.tensor([[[1.0, 1], [1, -1]], [[1, -1], [-1, -1]]], dtype=torch.float64)
    half = order // 2
    return torch.kron(_bordered(half - 1, 1.0), ones) + torch.kron(torch.eye(half, dtype=torch.float64), other)


def sylvester(order: int) -> Float[Tensor, "order order"]:
    """The symmetric Hadamard matrix of ±1 of a power of two, float64."""
    made, step = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
    while len(made) < order:
        made = torch.kron(step, made)
    return made


@cache
def _factors(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """The orthogonal Kronecker factors of H / √n, the slowest axis first: plain tensors, whoever asks first."""
    power, bases = split(n)
    parts = -(-power // _CHUNK)
    digits = [power // parts + (i < power % parts) for i in range(parts)]
    with torch.inference_mode(False):
        made = [sylvester(2**d) for d in digits] + [base_matrix(base) for base in bases or ([] if digits else [1])]
        return tuple((each / len(each) ** 0.5).to(device, dtype) for each in made)


def hadamard(x: Float[Tensor, "*rows n"], block: int | None = None) -> Float[Tensor, "*rows n"]:
    """x H / √n, or the same in each block of `block` channels; in float32, or in float64 for a float64 `x`.

    >>> hadamard(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    tensor([1., 1., 1., 1.])

    Raises:
        ValueError: no Hadamard matrix of that size is known here (see `split`).
    """
    rows = x.double() if x.dtype == torch.float64 else x.float()
    inner = 1
    for factor in reversed(_factors(block or x.shape[-1], rows.dtype, rows.device)):
        size = len(factor)
        last = inner == 1
        rows = rows.reshape(-1, size) @ factor if last else factor.T @ rows.reshape(-1, size, inner)
        inner *= size
    return rows.reshape(x.shape).to(x.dtype)


def rotate(x: Float[Tensor, "*rows n"], signs: Int8[Tensor, " n"], block: int | None) -> Float[Tensor, "*rows n"]:
    """x R with the randomized Hadamard matrix R = diag(signs) H / √n (QuaRot), block by block if blocks are given."""
    return hadamard(x * signs, block)


def regular(x: Float[Tensor, "*rows n"], block: int) -> Float[Tensor, "*rows n"]:
    """x H / √block in each block of 4^k channels, with the regular Hadamard matrix H of ConvRot (arXiv 2512.03673).

    H is a Kronecker power of the matrix of order 4 whose rows all sum to 2. It is symmetric, and its own inverse; all
    its rows have equal sums, so that a constant vector stays constant, where Sylvester's matrix makes one large value.

    >>> regular(torch.ones(4), 4)
    tensor([1., 1., 1., 1.])
    """
    four = 0.5 * (
        torch.ones(4, 4, dtype=x.dtype, device=x.device) - 2 * torch.eye(4, dtype=x.dtype).fliplr().to(x.device)
    )
    rows, inner = x.reshape(-1, block), 1
    while inner < block:
        rows = four @ rows.reshape(-1, 4, inner)
        inner *= 4
    return rows.reshape(x.shape)


def permuted(
    x: Float[Tensor, "*rows n"], order: Integer[Tensor, " n"], signs: Int8[Tensor, " n"]
) -> Float[Tensor, "*rows n"]:
    """The channels of x in another order, rotated in blocks of the largest power of two that divides their number."""
    channels = x.shape[-1]
    return rotate(x.index_select(-1, order), signs, channels & -channels)


def operations(n: int, block: int | None = None) -> int:
    """Additions and multiplications of `rotate` for one row: n (1 + p + K), with the sum of two K."""
    power, bases = split(block or n)
    return n * (1 + power + sum(bases))

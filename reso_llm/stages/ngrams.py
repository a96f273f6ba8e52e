"""N-grams under prime keys, and what their counts say: the definition of the binding memory.

    g(t, m)  = prod_{k=0}^{m-1} p_{t-k}^(2^k)                Goedel number of the last m tokens
    P_m(v)   = (c_m(v) - d(c_m(v))) / n_m + lambda_m P_{m-1}(v),    P_0 = u
    e_m(v)   = ln P_m(v) / (lambda_m ... lambda_1 u(v)) - the same of order m - 1

p_i is the prime of token i. The binary digits of its exponent in g are the places of the token, so
different n-grams of any lengths have different g (with exponents k + 1, a b b would equal b a a).
So one table holds all orders. The key of g is its residues modulo two primes, together a number
below 2^62 (exact integers; two of a million n-grams collide with probability 1e-7, and collisions
are counted). P is modified Kneser-Ney (Chen & Goodman 1998): c_m(v) is how often v followed for the
longest order, and in how many contexts one token longer for the others; d is a discount for c = 1,
2, 3 or more; lambda is the mass left over, here also by all but the most frequent. e_m is what
order m adds to the evidence for v over the unigram u. The doubt after a context is the entropy of
its P_m.

Every count is kept once for each of FOLDS spans of the text left out, and once for the whole.
`runs.py` and `counting.py` count, `smoothing.py` has P, `tables.py` makes the tables of `prsc.py`.

Shapes: B batch, T time, V vocabulary, M orders.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from entropy_core.primes import first_primes

MODULI = (2147483647, 2147483629)  # the two largest primes below 2^31: products fit an int64
FOLDS = 5
NO_CONTEXT = 2**63 - 1  # a key above all others


def prime_powers(vocab_size: int, num_orders: int) -> np.ndarray:
    """p_i^(2^k) modulo both MODULI, (V+1, M, 2) int64; the last row, for "no token", is zero.

    A residue of zero makes the whole product zero, which is the key of no n-gram.
    """
    primes = np.array(first_primes(vocab_size), dtype=np.int64)
    powers = np.zeros((vocab_size + 1, num_orders, 2), dtype=np.int64)
    for h, modulus in enumerate(MODULI):
        power = primes
        for k in range(num_orders):
            powers[:-1, k, h] = power
            power = power * power % modulus
    return powers


def context_keys(history: Tensor, powers: Tensor) -> Tensor:
    """Keys of the contexts of orders 1 ... M of the last T tokens: (B,T+M-1) -> (B,T,M).

    history holds ids, -1 for no token; a key is (g mod M_1) M_2 + (g mod M_2), or 0.
    """
    M = powers.shape[1]
    T = history.shape[1] - M + 1
    factors = powers[history]  # (B,T+M-1,M,2); row -1 is that of "no token"
    moduli = torch.tensor(MODULI, device=history.device)
    residues = [factors[:, M - 1 :, 0]]
    for k in range(1, M):
        residues.append(residues[-1] * factors[:, M - 1 - k : M - 1 - k + T, k] % moduli)
    high, low = torch.stack(residues, dim=2).unbind(-1)  # (B,T,M)
    return torch.add(low, high, alpha=MODULI[1])


def keys_before(
    tokens: np.ndarray, begin: int, end: int, powers: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For orders 1 ... M: keys of the contexts before positions up to `end`, and of their suffixes.

    The positions are begin (at least 1) ... end - 1 of tokens (N,), less the first ones that have
    too few tokens before them; an order without any is left out. The suffix of a context is all but
    its oldest token.
    """
    moduli = np.array(MODULI)
    residues = np.ones((end - begin, 2), dtype=np.int64)
    keys = residues[:, 0]
    for m in range(powers.shape[1]):
        if begin <= m:
            residues, keys, begin = residues[1:], keys[1:], begin + 1
        if begin >= end:
            return
        residues = residues * powers[tokens[begin - 1 - m : end - 1 - m], m] % moduli
        suffixes, keys = keys, residues[:, 0] * MODULI[1] + residues[:, 1]
        yield keys, suffixes

"""Slow, obvious twins of the stages, straight from their definitions, for the tests."""

import cmath
import math
from collections import Counter

import torch
import torch.nn.functional as F

from entropy_core import sedenion
from reso_llm.stages.field import FieldState
from reso_llm.stages.ngrams import FOLDS

NO_FOLD = FOLDS  # the fold left out in the tables that leave none out


def unit(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


def turn_reference(x, base, turns=None):
    """Pairs of x (T,K) turned by their position; the last N pairs by turns (T,N) as well."""
    time, width = x.shape
    first = width // 2 - (0 if turns is None else turns.shape[1])
    columns = []
    for i in range(width // 2):
        angle = torch.arange(time, dtype=x.dtype) * base ** (-2 * i / width)
        angle = angle if i < first or turns is None else angle + turns[:, i - first]
        a, b = x[:, 2 * i], x[:, 2 * i + 1]
        columns += [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
    return torch.stack(columns, dim=1)


def attention_reference(module, x, value_embedding, base, turns=None):
    """The equations of the module's docstring; turns (B,T,N) are gain times theta."""
    time, dim = x.shape[1:]
    heads, window = module.num_heads, module.window or time
    width = dim // heads
    scales = [1.0] * 2 * heads if module.temperature is None else module.temperature.flatten()
    rows = []
    for row in range(len(x)):
        q, k, v = (x[row] @ w.T for w in module.qkv)  # (T,D)
        if value_embedding is not None:
            v = v + module.value_mix * value_embedding[row]
        out = []
        for h in range(heads):
            own = slice(h * width, (h + 1) * width)
            extra = None if turns is None else turns[row]
            q_h = scales[h] * turn_reference(unit(q[:, own]), base, extra)
            k_h = scales[heads + h] * turn_reference(unit(k[:, own]), base, extra)
            seen = [slice(max(0, t + 1 - window), t + 1) for t in range(time)]
            shares = [(k_h[s] @ q_h[t] / width**0.5).softmax(0) for t, s in enumerate(seen)]
            out.append(torch.stack([p @ v[s, own] for p, s in zip(shares, seen, strict=True)]))
        rows.append(torch.cat(out, dim=-1) @ module.out.weight.T)
    return torch.stack(rows)


def mean_field_reference(theta, retention):
    """Z of every token, one term at a time, from the definition: (B,T,N) -> complex (B,T,N)."""
    fields = []
    for t in range(theta.shape[1]):
        weights = [retention ** (t - j) for j in range(t + 1)]
        terms = [w * torch.exp(1j * theta[:, j]) for j, w in enumerate(weights)]
        fields.append(sum(terms) / sum(weights))
    return torch.stack(fields, dim=1)


def synchronise_reference(theta, omega, config):
    """All tokens from the first on, in complex numbers."""
    for _ in range(config.num_steps):
        field = mean_field_reference(theta, config.retention)
        pull = (torch.exp(-1j * theta) * field).imag
        theta = theta + config.step_size * (omega + config.coupling * pull)
    return theta, mean_field_reference(theta, config.retention).abs().mean(-1)


def clocks_reference(z, theta, spokes):
    """Clocks h (B,T,N), one token after the other; z is complex, spokes (N,)."""
    h, clocks = torch.ones_like(z[:, 0]), []
    for t in range(z.shape[1]):
        columns = [locked_reference(z[:, t, i], int(n)) for i, n in enumerate(spokes)]
        turn = torch.stack(columns, dim=-1)
        h = turn * h + (1 - turn.abs()) * torch.exp(1j * theta[:, t])
        clocks.append(h)
    return torch.stack(clocks, dim=1)


def locked_reference(z, n):
    """The turn of each z (B,): along the root of unity at the smallest angle to z, at most 1."""
    turns = []
    for one in z:
        roots = [cmath.exp(2j * math.pi * k / n) for k in range(n)]
        root = min(roots, key=lambda root: abs(cmath.phase(one.item() / root)))
        share = (one / root).real
        turns.append(share * root if share < 1 else 0 * share + root)
    return LeakingReference.apply(z, torch.stack(turns))


class LeakingReference(torch.autograd.Function):
    """The second argument; a tenth of the gradient goes to the first in its stead."""

    @staticmethod
    def forward(ctx, z, nearest):
        return nearest.clone()

    @staticmethod
    def backward(ctx, grad):
        return 0.1 * grad, 0.9 * grad


def unit_sedenion(vector):
    """Sedenions (...,16) at length 1, by the norm of the package with its eps."""
    eps = torch.finfo(torch.float64).eps
    return vector / (vector.square().mean(-1, keepdim=True) + eps).sqrt() / 4


def field_reference(stage, x, state):
    """One token after the other, by the equations of the module's docstring."""
    H, C, (field, before, key) = stage.num_heads, stage.num_channels, state
    outputs = []
    for x_t in x.unbind(1):
        normed = x_t / (x_t.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
        z = normed @ stage.inputs.weight.T
        u, r = unit_sedenion(z[:, : 32 * H].view(-1, 2, H, 16)).unbind(1)
        content = z[:, 32 * H : -4 * H].view(-1, H, C)
        gates = z[:, -4 * H :].view(-1, 4, H, 1) + stage.gate_bias[..., None]
        write, erase, read = gates[:, :3].sigmoid().unbind(1)
        p, q = (unit_sedenion(v + stage.order * sedenion.multiply(v, before)) for v in (u, r))
        y = torch.einsum("bhcs,bhs->bhc", field, q)
        y = y / (1 + y.square().mean(-1, keepdim=True)).sqrt()
        outputs.append(x_t + (read * y).flatten(1) @ stage.out.weight.T)
        faded = torch.exp(-F.softplus(-gates[:, 3]))[..., None] * field
        change = write * content - erase * torch.einsum("bhcs,bhs->bhc", faded, key)
        field = faded + torch.einsum("bhc,bhs->bhcs", change, key)
        before, key = u, p
    return torch.stack(outputs, dim=1), FieldState(field, before, key)


def followers_reference(texts, order):
    """{token: weight} of what followed the last `order` tokens of the last text before.

    texts are (ids, weights) with a weight for each id; no context reaches across two of them.
    """
    newest, found = texts[-1][0], Counter()
    context = newest[len(newest) - order :]
    if len(context) < order:
        return {}
    for ids, weights in texts:
        for at in range(order, len(ids)):
            if ids[at - order : at] == context:
                found[ids[at]] += weights[at]
    return {token: weight for token, weight in found.items() if weight}


def echo_reference(module, x, texts, vocab_size):
    """sum_m s_m K_m / N_m (V,), for the final x (D,) after the last of the texts."""
    added = x.new_zeros(vocab_size)
    for m in range(module.max_order):
        found = followers_reference(texts, m + 1)
        if not found:
            continue
        total, kinds = sum(found.values()), len(found)
        z = module.trust[m] + x @ module.gate[m] / len(x) ** 0.5
        z = z + module.total_scale[m] * math.log(total) + module.kinds_scale[m] * math.log(kinds)
        shares = torch.tensor([found.get(v, 0.0) / total for v in range(vocab_size)]).to(x)
        added = added + z.exp() * shares
    return added


class CountReference:
    """Modified Kneser-Ney of a text, with the targets of one fold left out of the counts.

    `raw[m]` and `counts[m]` map contexts of m ids (oldest first) to Counters of what follows, in
    all of the text and in the other folds: how often, and what P takes for it. Discounts, the
    unigram and the choice of tokens are those of all of the text.
    """

    def __init__(self, tokens, num_orders, slots, vocab_size, left_out=NO_FOLD):
        tokens, self.slots = [int(t) for t in tokens], slots
        self.orders = range(1, num_orders + 1)
        self.raw = {m: {} for m in self.orders}
        for m in self.orders:
            for at in range(m, len(tokens)):
                key = tuple(tokens[at - m : at])
                everywhere, others = self.raw[m].setdefault(key, (Counter(), Counter()))
                everywhere[tokens[at]] += 1
                others[tokens[at]] += at * FOLDS // len(tokens) != left_out
        self.counts = {m: self._continuations(m) for m in self.orders[:-1]}
        self.counts[num_orders] = self.raw[num_orders]
        self.discounts = {m: self._discounts(m) for m in self.orders}
        followed = [sum(everywhere[v] > 0 for everywhere, _ in self.raw[1].values())
                    for v in range(vocab_size)]  # fmt: skip
        self.unigram = [(n + 0.5) / (sum(followed) + vocab_size / 2) for n in followed]

    def _continuations(self, m):
        """How many different tokens stand before each n-gram; the text's first has one as well."""
        found = {}
        for key, pair in self.raw[m].items():
            found[key] = tuple(Counter({v: 1 for v, n in c.items() if n}) for c in pair)
        before = {}
        for (_, *rest), pair in self.raw[m + 1].items():
            for mine, theirs in zip(before.setdefault(tuple(rest), (Counter(), Counter())), pair,
                                    strict=True):  # fmt: skip
                mine.update({v: 1 for v, n in theirs.items() if n})
        for key, pair in before.items():
            for mine, theirs in zip(found[key], pair, strict=True):
                mine |= theirs
                mine.update({v: max(0, n - mine[v]) for v, n in theirs.items()})
        return found

    def _discounts(self, m):
        sizes = Counter(n for everywhere, _ in self.counts[m].values() for n in everywhere.values())
        n1, n2, n3, n4 = (max(1, sizes[c]) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        d = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return [0.0] + [min(max(x, 0.1), c - 0.05 if c == 1 else c - 0.1 * (c - 1))
                        for c, x in enumerate(d, start=1)]  # fmt: skip

    def after(self, context):
        """P (V,) after these ids, oldest first, and [(times seen, {token: e_m})] of each order."""
        p, weight, found = list(self.unigram), 1.0, []
        for m in self.orders:
            key = tuple(context[-m:])
            if len(context) < m or key not in self.raw[m]:
                found.append((0, {}))
                continue
            everywhere, others = self.counts[m][key]
            bound = sorted(everywhere, key=lambda v: (-everywhere[v], v))[: self.slots[m - 1]]
            total = max(1, sum(others.values()))
            share = {v: (others[v] - self.discounts[m][min(others[v], 3)]) / total for v in bound}
            left = 1 - sum(share.values())
            before, p = p, [share.get(v, 0.0) + left * p[v] for v in range(len(p))]
            evidence = {
                v: math.log(p[v] / (left * weight * self.unigram[v]))
                - math.log(before[v] / (weight * self.unigram[v]))
                for v in bound
                if share[v]
            }
            weight *= left
            found.append((sum(self.raw[m][key][1].values()), evidence))
        return p, found

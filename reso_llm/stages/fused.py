"""Three pieces of the training step with hand-written gradients, for speed on CPUs.

    rms_norm(x)              = x / sqrt(mean x^2 + eps)          (Zhang & Sennrich 2019)
    relu_squared(x)          = max(x, 0)^2                       (So 2021, arXiv 2109.08668)
    linear_cross_entropy     = mean_w of -ln p[target],   p = softmax(c tanh(x W^T / c))

torch differentiates each as a chain of elementwise kernels that read and write main memory; the
forms here touch it fewer times. The loss never holds the (N, V) logits: it works through blocks
of rows that stay in the processor's cache and takes each block's gradient on the spot. The binding
memory's evidence is added to the logits there, the echo's support to p[target]. The plain forms are
their twins in the tests. Without gradients torch's own forward is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 256  # a block of logits of a few MB: measured best of 64 ... 512 for V = 4096


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias whose weight (outputs, inputs) lies in memory input by input.

    Values and training are those of nn.Linear; the product with a single row, which decoding is
    made of, takes about half the time in this layout.
    """
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return layer


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        if x.dtype.itemsize < 4 or _left_to_torch(x):  # autocast would take the mean in bfloat16
            mean_square = x.float().square().mean(-1, keepdim=True)
        else:
            mean_square = torch.linalg.vecdot(x, x).unsqueeze_(-1).div_(x.shape[-1])
        scale = mean_square.add_(_eps(x)).rsqrt_()
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(y, grad).unsqueeze_(-1).div_(y.shape[-1])
        return torch.addcmul(grad, y, along, value=-1).mul_(scale)


def rms_norm(x: Tensor) -> Tensor:
    """x divided by its root mean square over the last axis; no learned scale."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _RMSNorm.apply(x)
    return F.rms_norm(x, (x.shape[-1],), eps=_eps(x))


def _left_to_torch(x: Tensor) -> bool:
    """Whether autograd differentiates the loss: on a GPU, and where autocast chooses the dtypes."""
    return x.is_cuda or torch.is_autocast_enabled(x.device.type)


def _eps(x: Tensor) -> float:
    """The same for every dtype below float64, so that training and inference are one function."""
    return torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2, elementwise."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _ReluSquared.apply(x)
    return F.relu(x).square_()


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """c tanh(logits / c), bounded by c = cap (Gemma 2, arXiv 2408.00118); 0 leaves them as is."""
    return torch.tanh(logits / cap) * cap if cap else logits


Sparse = tuple[Tensor, Tensor]
"""ids (N,J) and values (N,J) to add to the logits of each row; ids may repeat."""

Support = tuple[Tensor, Tensor]
"""C (N,) and S (N,), at least 0: the probability of each target is (p + C) / (1 + S)."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, weight, targets, row_weights, cap: float, sparse_ids, sparse_values, support
    ):
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        grad_sparse = None if sparse_ids is None else torch.empty_like(sparse_values)
        grad_support = None if support is None else torch.empty_like(support)
        total = x.new_zeros(())
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            sparse = None if sparse_ids is None else (sparse_ids[rows], sparse_values[rows])
            own = None if support is None else support[rows]
            loss, grad, grad_logits, grad_own = _rows_loss(
                x[rows] @ weight.T, targets[rows], row_weights[rows], cap, sparse, own
            )
            total += loss
            if support is not None:
                grad_support[rows] = grad_own
            torch.mm(grad, weight, out=grad_x[rows])
            grad_weight.addmm_(grad.T, x[rows])
            if sparse is not None:
                grad_sparse[rows] = grad_logits
        ctx.save_for_backward(grad_x, grad_weight, grad_sparse, grad_support)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad_x, grad_weight, *optional = (
            None if part is None else part.mul_(grad) for part in ctx.saved_tensors
        )
        grad_sparse, grad_support = optional
        return grad_x, grad_weight, None, None, None, None, grad_sparse, grad_support


def _rows_loss(
    z: Tensor,
    targets: Tensor,
    weights: Tensor,
    cap: float,
    sparse: Sparse | None,
    added: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Weighted -ln (p + C) of a block of raw logits z (n,V), and its gradients.

    These are the gradients in z, the sparse values and C = added (n,); that in C is 0 where C is,
    for s K / N has none in s there, and 1 / p may overflow. z is overwritten.
    """
    squashed = z.div_(cap).tanh_() if cap else z
    logits = squashed * cap if cap else z.clone()
    if sparse is not None:
        logits.scatter_add_(-1, *sparse)
    log_norm = logits.logsumexp(-1, keepdim=True)
    at_target = targets.unsqueeze(-1)
    log_p = total = logits.gather(-1, at_target).sub_(log_norm).squeeze(-1)
    grad = logits.sub_(log_norm).exp_()
    grad.scatter_add_(-1, at_target, grad.new_full(at_target.shape, -1.0))
    grad_added = None
    if added is not None:
        total = torch.logaddexp(log_p, added.log())
        grad_added = torch.where(added > 0, -weights * torch.exp(-total), 0)
    loss = -(total * weights).sum()
    weights = (weights * torch.exp(log_p - total)).unsqueeze(-1)  # the share of p in p + C
    grad_sparse = None if sparse is None else grad.gather(-1, sparse[0]).mul_(weights)
    if cap:
        grad.sub_(grad * squashed.square_())
    return loss, grad.mul_(weights), grad_sparse, grad_added


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    cap: float = 0.0,
    sparse: Sparse | None = None,
    support: Support | None = None,
) -> Tensor:
    """Mean loss in nats per target of the soft-capped linear head, over rows where mask is set.

    x (N,D), weight (V,D), targets (N,) ids, mask (N,) bool or None for all; `sparse` values are
    added to the logits after the cap, `support` to the probabilities. A mask without a single row
    gives 0.
    """
    rows = torch.ones_like(targets, dtype=x.dtype) if mask is None else mask.to(x.dtype)
    row_weights = rows / rows.sum().clamp_min(1)
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not needs_gradient or _left_to_torch(x):
        return (linear_nats(x, weight, targets, cap, sparse, support) * row_weights).sum()
    added, norm = support or (None, None)
    loss = _LinearCrossEntropy.apply(
        x, weight, targets, row_weights, cap, *(sparse or (None, None)), added
    )
    return loss if norm is None else loss + (row_weights * norm.log1p()).sum()


def linear_nats(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float = 0.0,
    sparse: Sparse | None = None,
    support: Support | None = None,
) -> Tensor:
    """The loss (N,) in nats of every target; see `linear_cross_entropy`."""
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    size = max(1, len(x)) if needs_gradient else ROWS
    losses = []
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        logits = soft_cap(F.linear(x[rows], weight), cap)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if sparse is not None:
            logits = logits.scatter_add(-1, sparse[0][rows], sparse[1][rows].to(logits.dtype))
        losses.append(F.cross_entropy(logits, targets[rows], reduction="none"))
    nats = torch.cat(losses) if losses else x.new_zeros(0)
    if support is None:
        return nats
    added, norm = support
    return norm.log1p() - _log_sum(-nats, added)


def _log_sum(log_p: Tensor, added: Tensor) -> Tensor:
    """ln(e^log_p + added), with finite gradients where added is 0."""
    some = added > 0
    return torch.logaddexp(log_p, torch.where(some, torch.where(some, added, 1).log(), -torch.inf))

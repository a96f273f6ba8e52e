"""Three pieces of the training step with hand-written gradients, for speed on CPUs.

    rms_norm(x)              = x / sqrt(mean x^2 + eps)          (Zhang & Sennrich 2019)
    relu_squared(x)          = max(x, 0)^2                       (So 2021, arXiv 2109.08668)
    linear_cross_entropy     = mean_w of -ln softmax(c tanh(x W^T / c))[target]

torch differentiates each as a chain of elementwise kernels that read and write main memory; the
forms here touch it fewer times. The loss never holds the (N, V) logits: it works through blocks
of rows that stay in the processor's cache and takes each block's gradient on the spot. The plain
forms are their twins in the tests. Without gradients torch's own forward is used.
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
        if x.dtype.itemsize < 4 or x.is_cuda:  # autocast would take the mean in bfloat16
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


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, row_weights, cap: float, sparse_ids, sparse_values):
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        grad_sparse = None if sparse_ids is None else torch.empty_like(sparse_values)
        total = x.new_zeros(())
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            sparse = None if sparse_ids is None else (sparse_ids[rows], sparse_values[rows])
            loss, grad, grad_logits = _rows_loss(
                x[rows] @ weight.T, targets[rows], row_weights[rows], cap, sparse
            )
            total += loss
            torch.mm(grad, weight, out=grad_x[rows])
            grad_weight.addmm_(grad.T, x[rows])
            if sparse is not None:
                grad_sparse[rows] = grad_logits
        ctx.save_for_backward(grad_x, grad_weight, grad_sparse)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        grad_x, grad_weight, grad_sparse = ctx.saved_tensors
        if grad_sparse is not None:
            grad_sparse.mul_(grad)
        return grad_x.mul_(grad), grad_weight.mul_(grad), None, None, None, None, grad_sparse


def _rows_loss(
    z: Tensor, targets: Tensor, weights: Tensor, cap: float, sparse: Sparse | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weighted loss of a block of raw logits z (n,V), its gradients in z and the sparse values.

    z is overwritten.
    """
    squashed = z.div_(cap).tanh_() if cap else z
    logits = squashed * cap if cap else z.clone()
    if sparse is not None:
        logits.scatter_add_(-1, *sparse)
    log_norm = logits.logsumexp(-1, keepdim=True)
    targets, weights = targets.unsqueeze(-1), weights.unsqueeze(-1)
    loss = ((log_norm - logits.gather(-1, targets)) * weights).sum()
    grad = logits.sub_(log_norm).exp_()
    grad.scatter_add_(-1, targets, grad.new_full(targets.shape, -1.0))
    grad_sparse = None if sparse is None else grad.gather(-1, sparse[0]).mul_(weights)
    if cap:
        grad.sub_(grad * squashed.square_())
    return loss, grad.mul_(weights), grad_sparse


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    cap: float = 0.0,
    sparse: Sparse | None = None,
) -> Tensor:
    """Mean loss in nats per target of the soft-capped linear head, over rows where mask is set.

    x (N,D), weight (V,D), targets (N,) ids, mask (N,) bool or None for all; `sparse` values are
    added to the logits after the cap. A mask without a single row gives 0.
    """
    rows = torch.ones_like(targets, dtype=x.dtype) if mask is None else mask.to(x.dtype)
    row_weights = rows / rows.sum().clamp_min(1)
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if needs_gradient and not x.is_cuda:
        return _LinearCrossEntropy.apply(
            x, weight, targets, row_weights, cap, *(sparse or (None, None))
        )
    total = row_weights.new_zeros(())
    size = max(1, len(x)) if needs_gradient else ROWS
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        some = None if sparse is None else (sparse[0][rows], sparse[1][rows])
        losses = _row_losses(x[rows], weight, targets[rows], cap, some)
        total = total + (losses * row_weights[rows]).sum()
    return total


def _row_losses(
    x: Tensor, weight: Tensor, targets: Tensor, cap: float, sparse: Sparse | None
) -> Tensor:
    logits = soft_cap(F.linear(x, weight), cap)
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if sparse is not None:
        logits = logits.scatter_add(-1, sparse[0], sparse[1].to(logits.dtype))
    return F.cross_entropy(logits, targets, reduction="none")

"""Hand-written gradients against plain torch, in value and in gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from reso_llm.stages import fused
from reso_llm.stages.fused import (
    linear_cross_entropy,
    linear_nats,
    relu_squared,
    rms_norm,
    soft_cap,
)


def draw(*shape, seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


def rms_norm_reference(x):
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def relu_squared_reference(x):
    return x.clamp_min(0).square()


def linear_cross_entropy_reference(x, weight, targets, mask=None, cap=0.0):
    logits = x @ weight.T
    logits = cap * (logits / cap).tanh() if cap else logits
    losses = F.cross_entropy(logits, targets, reduction="none")
    chosen = losses if mask is None else losses[mask]
    return chosen.mean() if len(chosen) else losses.sum() * 0


def value_and_gradients(function, *inputs):
    """Value, and the gradients of a random projection of it (a constant one would hide errors)."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    weights = draw(*y.shape, seed=9, dtype=y.dtype) if y.ndim else y.new_tensor(0.7)
    (y * weights).sum().backward()
    return [y.detach(), *(x.grad for x in inputs)]


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


ELEMENTWISE = [(rms_norm, rms_norm_reference), (relu_squared, relu_squared_reference)]


@pytest.mark.parametrize(("function", "reference"), ELEMENTWISE)
def test_gradcheck(function, reference):
    x = draw(3, 2, 5).requires_grad_()
    assert gradcheck(function, (x,))


@pytest.mark.parametrize(("function", "reference"), ELEMENTWISE)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elementwise_twins(function, reference, scale, dtype):
    x = draw(2, 7, 12, dtype=dtype, scale=scale)
    ours, theirs = value_and_gradients(function, x), value_and_gradients(reference, x)
    assert_same(ours, theirs, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-6 * scale)


@pytest.mark.parametrize(("function", "reference"), ELEMENTWISE)
def test_path_without_gradients_is_the_same_and_leaves_the_input(function, reference):
    """Guards the in-place square of the inference path against writing into its input."""
    x = draw(2, 3, 8, dtype=torch.float32)
    before = x.clone()
    with torch.no_grad():
        y = function(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, function(x.clone().requires_grad_()).detach())


def test_rms_norm_of_zeros_is_zero_with_finite_gradient():
    value, grad = value_and_gradients(rms_norm, torch.zeros(2, 4))
    assert torch.equal(value, torch.zeros(2, 4))
    assert torch.isfinite(grad).all()


def test_rms_norm_takes_views_that_are_not_contiguous():
    x = draw(4, 6, 3).transpose(0, 2)
    assert_same(
        value_and_gradients(rms_norm, x), value_and_gradients(rms_norm_reference, x.contiguous())
    )


@pytest.mark.parametrize("function", [rms_norm, relu_squared, linear_cross_entropy])
def test_a_second_derivative_is_refused(function):
    """What is saved for backward does not know x: a second derivative would be silently wrong."""
    x = draw(2, 4).requires_grad_()
    rest = (draw(5, 4), torch.tensor([0, 1])) if function is linear_cross_entropy else ()
    (grad,) = torch.autograd.grad(function(x, *rest).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


@pytest.mark.parametrize(("function", "reference"), ELEMENTWISE)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_forward_mode_derivative_without_gradients(function, reference):
    """The Jacobian-vector products of a Lyapunov exponent go through the plain path."""
    x, tangent = draw(2, 5), draw(2, 5, seed=1)
    with torch.no_grad():
        ours = torch.func.jvp(function, (x,), (tangent,))
    assert_same(ours, torch.func.jvp(reference, (x,), (tangent,)))


def test_soft_cap():
    z = torch.tensor([-1e4, -1.0, 0.0, 1e-3, 1e4], dtype=torch.float64)
    capped = soft_cap(z, 15.0)
    assert capped.abs().max() <= 15
    assert capped[3] == pytest.approx(1e-3, rel=1e-6)
    assert soft_cap(z, 0.0) is z


# --- linear cross-entropy -----------------------------------------------------------------------

ROWS = fused.ROWS


@pytest.mark.parametrize("cap", [0.0, 2.0, 15.0])
@pytest.mark.parametrize("num_rows", [1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 5])
@pytest.mark.parametrize("masked", [False, True])
def test_linear_cross_entropy_twin(cap, num_rows, masked):
    """Guards the last, shorter block of rows, and the derivative of the cap."""
    x, weight = draw(num_rows, 6, seed=1), draw(11, 6, seed=2)
    targets = torch.randint(11, (num_rows,), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(num_rows) % 3 != 1 if masked else None
    ours = value_and_gradients(
        lambda x, w: linear_cross_entropy(x, w, targets, mask, cap), x, weight
    )
    theirs = value_and_gradients(
        lambda x, w: linear_cross_entropy_reference(x, w, targets, mask, cap), x, weight
    )
    assert_same(ours, theirs, rtol=1e-9, atol=1e-12)


def test_linear_cross_entropy_in_float32():
    x, weight = draw(300, 16, dtype=torch.float32), draw(50, 16, seed=2, dtype=torch.float32)
    targets = torch.arange(300) % 50
    ours = value_and_gradients(lambda x, w: linear_cross_entropy(x, w, targets, cap=5.0), x, weight)
    theirs = value_and_gradients(
        lambda x, w: linear_cross_entropy_reference(x, w, targets, cap=5.0), x, weight
    )
    assert_same(ours, theirs, rtol=1e-4, atol=1e-6)


def test_huge_logits_stay_finite():
    x, weight = draw(4, 3, scale=1e3), draw(7, 3, scale=1e3)
    targets = torch.tensor([0, 1, 2, 3])
    for value in value_and_gradients(lambda x, w: linear_cross_entropy(x, w, targets), x, weight):
        assert torch.isfinite(value).all()


def test_a_mask_without_a_row_gives_zero_loss_and_gradient():
    x, weight = draw(5, 3), draw(4, 3)
    nothing = torch.zeros(5, dtype=torch.bool)
    targets = torch.zeros(5, dtype=torch.int64)
    ours = value_and_gradients(
        lambda x, w: linear_cross_entropy(x, w, targets, nothing, 15.0), x, weight
    )
    assert all(torch.equal(value, torch.zeros_like(value)) for value in ours)


@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_loss_without_gradients_is_the_same(cap):
    """Validation and training report the same number."""
    x, weight = draw(ROWS + 3, 6, dtype=torch.float32), draw(11, 6, seed=2, dtype=torch.float32)
    targets, mask = torch.arange(ROWS + 3) % 11, torch.arange(ROWS + 3) % 2 == 0
    with torch.no_grad():
        plain = linear_cross_entropy(x, weight, targets, mask, cap)
    blocks = linear_cross_entropy(x.clone().requires_grad_(), weight, targets, mask, cap)
    torch.testing.assert_close(plain, blocks.detach())


@pytest.mark.parametrize("leaf", ["x", "weight"])
def test_gradient_for_one_input_alone(leaf):
    """Probing with a frozen head, or a frozen trunk."""
    x, weight, targets = draw(4, 3), draw(5, 3), torch.tensor([0, 1, 2, 4])
    free = {"x": x, "weight": weight}[leaf].requires_grad_()
    (ours,) = torch.autograd.grad(linear_cross_entropy(x, weight, targets, cap=3.0), free)
    (theirs,) = torch.autograd.grad(
        linear_cross_entropy_reference(x, weight, targets, cap=3.0), free
    )
    torch.testing.assert_close(ours, theirs)


def test_inputs_are_left_alone():
    x, weight = draw(4, 3).requires_grad_(), draw(5, 3).requires_grad_()
    copies = x.detach().clone(), weight.detach().clone()
    linear_cross_entropy(x, weight, torch.tensor([0, 1, 2, 4]), cap=3.0).backward()
    assert torch.equal(x, copies[0])
    assert torch.equal(weight, copies[1])


# --- sparse values added to the logits ------------------------------------------------------------


def with_sparse_reference(x, weight, values, ids, targets, mask, cap):
    """The full logits, value by value; ids may repeat in a row and then add up."""
    logits = x @ weight.T
    logits = cap * (logits / cap).tanh() if cap else logits
    extra = torch.zeros_like(logits)
    for j in range(ids.shape[1]):
        extra = extra + F.one_hot(ids[:, j], weight.shape[0]) * values[:, j : j + 1]
    losses = F.cross_entropy(logits + extra, targets, reduction="none")
    return losses.mean() if mask is None else losses[mask].mean()


def draw_sparse(num_rows, num_slots=6, vocab_size=11):
    """Ids of which some repeat in a row, and some are the row's target."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(vocab_size, (num_rows, num_slots), generator=generator)
    targets = torch.randint(vocab_size, (num_rows,), generator=generator)
    ids[: num_rows // 2, 0] = targets[: num_rows // 2]
    ids[:, 1] = ids[:, 0]
    return ids, targets


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("num_rows", [5, ROWS + 3])
@pytest.mark.parametrize("masked", [False, True])
def test_sparse_values_twin(cap, num_rows, masked):
    ids, targets = draw_sparse(num_rows)
    mask = torch.arange(num_rows) % 3 > 0 if masked else None

    def ours(x, weight, values):
        return linear_cross_entropy(x, weight, targets, mask, cap, (ids, values))

    def theirs(x, weight, values):
        return with_sparse_reference(x, weight, values, ids, targets, mask, cap)

    inputs = draw(num_rows, 4), draw(11, 4, seed=1), draw(num_rows, 6, seed=2)
    assert_same(value_and_gradients(ours, *inputs), value_and_gradients(theirs, *inputs))
    plain = linear_cross_entropy(inputs[0], inputs[1], targets, mask, cap)
    assert (ours(*inputs) - plain).abs() > 1e-2, "the values count"


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_sparse_values_without_gradients_are_the_same(monkeypatch, cap):
    """In blocks of rows as well, and the inputs stay as they are."""
    monkeypatch.setattr(fused, "ROWS", 4)
    ids, targets = draw_sparse(9)
    x, weight, values = draw(9, 4).requires_grad_(), draw(11, 4, seed=1), draw(9, 6, seed=2)
    before = [t.clone() for t in (x, weight, values, ids)]
    loss = linear_cross_entropy(x, weight, targets, None, cap, (ids, values))
    with torch.no_grad():
        again = linear_cross_entropy(x, weight, targets, None, cap, (ids, values))
    torch.testing.assert_close(loss.detach(), again)
    assert all(map(torch.equal, before, (x, weight, values, ids)))


def test_sparse_values_of_zero_are_none():
    ids, targets = draw_sparse(9)
    x, weight = draw(9, 4).requires_grad_(), draw(11, 4, seed=1)
    sparse = ids, torch.zeros(9, 6, dtype=x.dtype)
    plain = linear_cross_entropy(x, weight, targets, None, 2.0)
    torch.testing.assert_close(linear_cross_entropy(x, weight, targets, None, 2.0, sparse), plain)


# --- support beside the network ------------------------------------------------------------------


def with_support_reference(x, weight, values, added, norm, ids, targets, mask, cap):
    """-ln (p + C) / (1 + S) from the full logits, p of the head with its sparse values."""
    logits = x @ weight.T
    logits = cap * (logits / cap).tanh() if cap else logits
    p = logits.scatter_add(-1, ids, values).softmax(-1)
    p = p.gather(-1, targets[:, None]).squeeze(-1)
    losses = -((p + added) / (1 + norm)).log()
    return losses.mean() if mask is None else losses[mask].mean()


def draw_support(num_rows):
    """C and S (N,), C at most S, both 0 in every fourth row, and C alone in every fourth."""
    norm = draw(num_rows, seed=5).exp()
    added = norm * torch.rand(num_rows, generator=torch.Generator().manual_seed(6)).double()
    row = torch.arange(num_rows) % 4
    return torch.where((row == 1) | (row == 3), 0.0, added), torch.where(row == 3, 0.0, norm)


@pytest.mark.parametrize("cap", [0.0, 2.0])
@pytest.mark.parametrize("num_rows", [5, ROWS + 3])
@pytest.mark.parametrize("masked", [False, True])
def test_support_twin(cap, num_rows, masked):
    """In value and in the gradient of x, weight, sparse values, C and S."""
    ids, targets = draw_sparse(num_rows)
    mask = torch.arange(num_rows) % 3 > 0 if masked else None

    def ours(x, weight, values, added, norm):
        sparse, support = (ids, values), (added, norm)
        return linear_cross_entropy(x, weight, targets, mask, cap, sparse, support)

    def theirs(x, weight, values, added, norm):
        return with_support_reference(x, weight, values, added, norm, ids, targets, mask, cap)

    inputs = draw(num_rows, 4), draw(11, 4, seed=1), draw(num_rows, 6, seed=2)
    inputs = *inputs, *draw_support(num_rows)
    found, expected = value_and_gradients(ours, *inputs), value_and_gradients(theirs, *inputs)
    expected[4] = torch.where(inputs[3] > 0, expected[4], 0)
    assert_same(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs), theirs(*inputs))
        nats = linear_nats(*inputs[:2], targets, cap, (ids, inputs[2]), inputs[3:])
    chosen = nats if mask is None else nats[mask]
    torch.testing.assert_close(chosen.mean(), theirs(*inputs))


def test_gradients_with_sparse_values_and_support_by_finite_differences():
    """In ten directions of all inputs at once; gradcheck would go through the graph twice."""
    ids, targets = draw_sparse(5)
    mask = torch.arange(5) != 2
    added, norm = draw_support(5)
    inputs = draw(5, 4), draw(11, 4, seed=1), draw(5, 6, seed=2), added + 0.1, norm + 0.2

    def loss(x, weight, values, added, norm):
        sparse, support = (ids, values), (added, norm)
        return linear_cross_entropy(x, weight, targets, mask, 2.0, sparse, support)

    free = [tensor.clone().requires_grad_() for tensor in inputs]
    grads = torch.autograd.grad(loss(*free), free)
    for seed in range(10):
        way = [draw(*tensor.shape, seed=20 + seed + i) for i, tensor in enumerate(inputs)]
        ahead, behind = (
            loss(*(tensor + h * v for tensor, v in zip(inputs, way, strict=True)))
            for h in (1e-6, -1e-6)
        )
        slope = sum((grad * v).sum() for grad, v in zip(grads, way, strict=True))
        assert ((ahead - behind) / 2e-6).item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-8)


def test_the_plain_path_has_the_same_gradients():
    """The one that a GPU takes, by torch's own rules; finite where nothing was read."""
    ids, targets = draw_sparse(9)
    inputs = draw(9, 4), draw(11, 4, seed=1), draw(9, 6, seed=2), *draw_support(9)

    def blocks(x, weight, values, added, norm):
        sparse, support = (ids, values), (added, norm)
        return linear_cross_entropy(x, weight, targets, None, 2.0, sparse, support)

    def plain(x, weight, values, added, norm):
        return linear_nats(x, weight, targets, 2.0, (ids, values), (added, norm)).mean()

    ours, theirs = value_and_gradients(blocks, *inputs), value_and_gradients(plain, *inputs)
    assert_same(ours, theirs)
    assert all(torch.isfinite(value).all() for value in theirs)


def test_support_stays_finite_where_p_is_nothing():
    """p = e^-1000: no support, some, and a share that is 0 times whatever its gradient is."""
    x, weight = torch.tensor([[1e3]] * 2), torch.tensor([[1.0], [0.0]]).requires_grad_()
    strength = torch.ones(2, requires_grad=True)
    support = strength * torch.tensor([0.0, 0.5]), strength
    loss = linear_cross_entropy(x, weight, torch.tensor([1, 1]), support=support)
    assert loss.item() == pytest.approx((1000 - math.log(0.5)) / 2 + math.log(2))
    loss.backward()
    assert torch.isfinite(weight.grad).all()
    assert strength.grad.tolist() == pytest.approx([0.25, 0.25 - 0.5])


def test_support_of_nothing_changes_nothing():
    targets, nothing = torch.arange(9) % 11, (torch.zeros(9).double(), torch.zeros(9).double())
    for x in (draw(9, 4), draw(9, 4).requires_grad_()):
        weight = draw(11, 4, seed=1)
        plain = linear_cross_entropy(x, weight, targets, None, 2.0)
        told = linear_cross_entropy(x, weight, targets, None, 2.0, None, nothing)
        torch.testing.assert_close(told, plain)

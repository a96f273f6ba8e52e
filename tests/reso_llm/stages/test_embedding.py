"""The token embedding: primes' waves, the effective table and its memo, folding, the smear."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from entropy_core.primes import GOLDEN_RATIO, MAX_FREQUENCIES, first_primes, golden_frequencies
from reso_llm.config import PrimeEmbeddingConfig
from reso_llm.stages.embedding import PLAIN, EmbeddingState, TokenEmbedding, prime_waves
from reso_llm.stages.fused import rms_norm
from reso_llm.training.config import OptimConfig
from reso_llm.training.optim import make_optimizers

VOCABULARY, DIM, FREQUENCIES = 37, 24, 6
PRIME = PrimeEmbeddingConfig(enabled=True, num_frequencies=FREQUENCIES)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_ids(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def make_new(prime=PRIME, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TokenEmbedding(VOCABULARY, DIM, prime)


def make(prime=PRIME, seed=0):
    """Every parameter moved off its start: P, gate and scale start at zero."""
    module = make_new(prime, seed)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.3 * draw(*p.shape, seed=i))
    return module


def weight_reference(module):
    """E[id] + sum_f P_f cos(w_f ln p) + P_(F+f) sin(w_f ln p), token by token, wave by wave."""
    primes = [n for n in range(2, 200) if all(n % d for d in range(2, n))][:VOCABULARY]
    w0 = np.pi / np.log(primes[-1])
    rows = []
    for i, p in enumerate(primes):
        row = module.table.weight[i]
        for f in range(FREQUENCIES):
            phase = w0 * GOLDEN_RATIO**f * np.log(p)
            row = row + np.cos(phase) * module.prime_map[f]
            row = row + np.sin(phase) * module.prime_map[FREQUENCIES + f]
        rows.append(row)
    return torch.stack(rows)


def fresh(module):
    """The effective table by definition, whatever the memo says."""
    return (module.table.weight + module.waves @ module.prime_map).detach()


# --- waves -------------------------------------------------------------------------------------


def test_the_embedding_refuses_too_many_frequencies():
    with pytest.raises(ValueError, match="num_frequencies"):
        make_new(PrimeEmbeddingConfig(enabled=True, num_frequencies=MAX_FREQUENCIES + 1))


def test_waves_are_exact_to_the_last_bit_of_float32():
    """Guards phases computed in float32: a million radians would leave one digit."""
    waves = prime_waves(4096, 32)
    primes = first_primes(4096)
    phases = np.outer(np.log(np.array(primes, dtype=np.longdouble)),
                      golden_frequencies(primes[-1], 32).astype(np.longdouble))  # fmt: skip
    expected = np.concatenate((np.cos(phases), np.sin(phases)), axis=-1).astype(np.float64)
    assert waves.dtype == torch.float32
    np.testing.assert_allclose(waves.numpy(), expected, rtol=0, atol=1e-7)


def test_waves_tell_all_tokens_apart():
    waves = prime_waves(500, 16).double()
    distances = torch.cdist(waves, waves) + 10 * torch.eye(500)
    assert distances.min() > 0.1


# --- the effective table ------------------------------------------------------------------------


def test_weight_equals_the_sum_of_waves_in_value_and_gradient():
    module = make().double()
    module.waves = prime_waves_in_float64()
    parameters = (module.table.weight, module.prime_map)
    fast, slow = module.weight, weight_reference(module)
    torch.testing.assert_close(fast, slow)
    mix = draw(VOCABULARY, DIM, seed=7).double()
    ours, theirs = (torch.autograd.grad((w * mix).sum(), parameters) for w in (fast, slow))
    torch.testing.assert_close(ours, theirs)


def prime_waves_in_float64():
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return prime_waves(VOCABULARY, FREQUENCIES)
    finally:
        torch.set_default_dtype(previous)


def test_forward_is_lookup_norm_and_smear():
    module, ids = make(), draw_ids(2, 5)
    w, previous = weight_reference(module), draw(2, 1, DIM, seed=9)
    rows = []
    for b in range(2):
        before = previous[b, 0]
        for t in range(5):
            e = rms_norm(w[ids[b, t]])
            gate = torch.sigmoid(e[:16] @ module.smear_gate.weight[0])
            rows.append(rms_norm(e + gate * module.smear_scale * before))
            before = e
    x, state = module(ids, EmbeddingState(previous))
    torch.testing.assert_close(x, torch.stack(rows).view(2, 5, DIM), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.last[:, 0], rms_norm(w[ids[:, -1]]))
    given, _ = module(ids, EmbeddingState(previous), module.weight)
    assert torch.equal(given, x)
    other, _ = module(ids, EmbeddingState(previous), 2 + module.weight)
    assert not torch.allclose(other, x, atol=0.1), "the weight that is given is the one used"


def test_new_primes_are_inert_and_learn():
    """P starts at zero, so the start is the control's; its gradient is Phi^T dE."""
    module, control = make_new(), make_new(PLAIN)
    ids = draw_ids(2, 5)
    assert torch.equal(module(ids, None)[0], control(ids, None)[0])
    weight = module.weight
    weight.retain_grad()
    (module(ids, None, weight)[0] * draw(2, 5, DIM)).sum().backward()
    torch.testing.assert_close(module.prime_map.grad, module.waves.T @ weight.grad)
    assert module.prime_map.grad.norm() > 1e-3


def test_without_primes_nothing_is_there():
    """The control: the weight is the table itself, with today's names and no buffer."""
    plain = make(PLAIN)
    assert plain.weight is plain.table.weight
    with torch.no_grad():
        assert plain.weight is plain.table.weight
    assert set(plain.state_dict()) == {"table.weight", "smear_gate.weight", "smear_scale"}
    assert not list(plain.buffers())
    assert set(make().state_dict()) - set(plain.state_dict()) == {"prime_map"}


def test_the_prime_map_trains_with_muon():
    """Optimizers sort parameters by name and shape: a table would go to AdamW."""
    module = make()
    (group,) = make_optimizers(module, OptimConfig())["muon"].param_groups
    assert [p is module.prime_map for p in group["params"]] == [True]


# --- the memo -----------------------------------------------------------------------------------


def test_without_gradients_the_product_is_made_once():
    module = make()
    with torch.no_grad():
        first = module.weight
        assert module.weight is first
    with torch.inference_mode():
        assert module.weight is first
    torch.testing.assert_close(first, fresh(module))
    assert not first.requires_grad


def test_a_memo_made_in_inference_mode_serves_no_grad():
    module = make()
    with torch.inference_mode():
        first = module.weight
    with torch.no_grad():
        assert module.weight is first
    assert not first.is_inference()


def test_gradients_never_meet_the_memo():
    module = make()
    with torch.no_grad():
        kept = module.weight
    live = module.weight
    assert live is not kept
    assert live.requires_grad
    live.sum().backward()
    assert module.prime_map.grad is not None


def with_sgd(module):
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def with_fused_adamw(module):
    """It changes parameters without counting a version."""
    torch.optim.AdamW(module.parameters(), lr=0.1, fused=True).step()


def with_the_project_s(module):
    for optimizer in make_optimizers(module, OptimConfig()).values():
        optimizer.step()


@pytest.mark.parametrize("step", [with_sgd, with_fused_adamw, with_the_project_s])
@pytest.mark.parametrize("look_before", [True, False])
def test_a_step_of_the_optimizer_is_seen(step, look_before):
    module, ids = make(), draw_ids(2, 5)
    before = read(module).clone()
    (module(ids, None)[0] * draw(2, 5, DIM)).sum().backward()
    if look_before:
        torch.testing.assert_close(read(module), before)
    step(module)
    torch.testing.assert_close(read(module), fresh(module))
    module.zero_grad(set_to_none=True)
    torch.testing.assert_close(read(module), fresh(module))
    assert (read(module) - before).abs().max() > 1e-3


@torch.no_grad()
def read(module):
    return module.weight


def test_every_way_to_change_a_parameter_is_seen():
    module, other = make(), make(seed=5)
    read(module)
    changes = {
        "load_state_dict": lambda: module.load_state_dict(other.state_dict()),
        "in place": lambda: module.prime_map.mul_(2),
        "in place, the table": lambda: module.table.weight.add_(1),
        "to float64": lambda: module.to(torch.float64),
        "new parameter": lambda: setattr(module, "prime_map", nn.Parameter(module.prime_map + 1)),
        "inference mode": lambda: module.prime_map.mul_(3),
    }
    for name, change in changes.items():
        before = read(module).clone()
        with torch.inference_mode() if name == "inference mode" else torch.no_grad():
            change()
        assert read(module).dtype == module.prime_map.dtype, name
        torch.testing.assert_close(read(module), fresh(module), msg=name)
        assert name == "to float64" or (read(module) - before).abs().max() > 1e-3, name


def test_parameters_made_in_inference_mode_have_no_memo():
    with torch.inference_mode():
        module = make()
        read(module)
        module.prime_map.add_(1)
        torch.testing.assert_close(module.weight, fresh(module))


def test_autocast_does_not_reach_the_table():
    module = make()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        kept = module.weight
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, fresh(module))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_stand_alone(clone):
    module = make()
    read(module)
    twin = clone(module)
    torch.testing.assert_close(read(twin), fresh(module))
    with torch.no_grad():
        twin.prime_map.add_(1)
    torch.testing.assert_close(read(twin), fresh(twin))
    torch.testing.assert_close(read(module), fresh(module))


# --- folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fold_is_the_same_function_without_primes(dtype):
    module, ids = make().to(dtype), draw_ids(3, 7)
    random_state = torch.get_rng_state()
    plain = module.fold()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert set(plain.state_dict()) == {"table.weight", "smear_gate.weight", "smear_scale"}
    assert plain.weight is plain.table.weight
    assert plain.weight.dtype == dtype
    for a, b in zip(plain(ids, None), module(ids, None), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    before = fresh(module)
    with torch.no_grad():
        plain.table.weight.zero_()
        plain.smear_scale.zero_()
    torch.testing.assert_close(fresh(module), before)
    assert module.smear_scale != 0


def test_a_folded_table_loads_into_a_plain_embedding():
    module, ids = make(), draw_ids(3, 7)
    plain = make_new(PLAIN, seed=3)
    plain.load_state_dict(module.fold().state_dict())
    torch.testing.assert_close(plain(ids, None)[0], module(ids, None)[0], rtol=0, atol=1e-6)


def test_a_new_parameter_of_the_same_version_is_seen():
    module = make()
    with torch.no_grad():
        before = module.weight.clone()
        fresh_map = nn.Parameter(module.prime_map.detach() + 1)
        while fresh_map._version < module.prime_map._version:
            fresh_map.add_(0)
        module.prime_map = fresh_map
        torch.testing.assert_close(module.weight, fresh(module))
        assert not torch.equal(module.weight, before)

"""The token embedding: factors of names, the effective table and its memo, folding, the smear."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from reso_llm.config import PrimeEmbeddingConfig
from reso_llm.stages.embedding import PLAIN, EmbeddingState, TokenEmbedding, factor_rows
from reso_llm.stages.fused import rms_norm
from reso_llm.training.config import OptimConfig
from reso_llm.training.optim import make_optimizers

VOCABULARY, DIM, PLACES = 37, 24, 3
PRIME = PrimeEmbeddingConfig(enabled=True, num_places=PLACES)
# No name, single bytes, words with and without space and capitals, a word of 17 bytes, not UTF-8.
NAMES = [
    b"", b"", b" ", b"a", b"A", b" a", b"1", b".", b"ing", b"Ing", b" walking", b" Walking",
    b"talking", b" walked", b"THE", b"the", b" The", b"tHe", b"internationalised", b"\xff\xc3",
    b"  ", b"    ", b"\n", b" \n", b"\x00", b"aa", b"aaa", b"ab", b"ba",
]  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_ids(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def make_new(prime=PRIME, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TokenEmbedding(VOCABULARY, DIM, prime)


def make(prime=PRIME, seed=0):
    """With names, and every parameter moved off its start: P, gate and scale start at zero."""
    module = make_new(prime, seed)
    module.read_names(NAMES)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.3 * draw(*p.shape, seed=i))
    return module


PRIMES = [n for n in range(2, 1700) if all(n % d for d in range(2, int(n**0.5) + 1))][:256]


def goedel(string):
    """The number with all its digits: the k-th byte's prime to the power 2^k."""
    return math.prod(PRIMES[byte] ** (2**k) for k, byte in enumerate(string))


def pairs_of(number):
    """(byte, place) of every factor p_byte^(2^place), by dividing."""
    pairs = set()
    for byte, prime in enumerate(PRIMES):
        exponent = 0
        while number % prime == 0:
            number, exponent = number // prime, exponent + 1
        pairs |= {(byte, k) for k in range(exponent.bit_length()) if exponent >> k & 1}
    assert number == 1
    return pairs


def rows_reference(name):
    """The rows of a name, by factorising its two numbers."""
    space = len(name) > 1 and name.startswith(b" ")
    letters = name[1:] if space else name
    forward, backward = goedel(letters[:PLACES]), goedel(letters[::-1][:PLACES])
    rows = {2 + 256 * k + byte for byte, k in pairs_of(forward)}
    rows |= {2 + 256 * (PLACES + k) + byte for byte, k in pairs_of(backward)}
    return sorted(rows | ({1} if space else set()))


def weight_reference(module, names=NAMES):
    """E[id] + the sum of P over the factors of the id's name / sqrt(their number), id by id."""
    rows = []
    for i in range(VOCABULARY):
        row, found = module.table.weight[i], rows_reference(names[i] if i < len(names) else b"")
        for factor in found:
            row = row + module.factor_table[factor] / len(found) ** 0.5
        rows.append(row)
    return torch.stack(rows)


def fresh(module):
    """The effective table by definition, whatever the memo says."""
    return weight_reference(module).detach()


# --- the factors of a name ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_those_of_the_number(name):
    """Each row once, all of P's rows, and none that is kept for nothing."""
    rows = factor_rows(name, PLACES)
    assert sorted(rows) == rows_reference(name)
    assert all(0 < row < len(make_new().factor_table) for row in rows)


def test_kin_share_factors():
    def shared(a, b):
        return len(set(factor_rows(a, 6)) & set(factor_rows(b, 6)))

    assert shared(b" walking", b"walking") == shared(b"walking", b"walking") == 12
    assert shared(b"walking", b"talking") == 5 + 6
    assert shared(b"walking", b"walked") == 4
    assert shared(b"walking", b"sing") == 3
    assert shared(b"ab", b"ba") == 0, "order matters"
    assert shared(b" one", b" six") == 1, "the space"


def test_names_are_read_again_from_the_start():
    module = make()
    read(module)
    module.read_names(NAMES[::-1])
    torch.testing.assert_close(read(module), weight_reference(module, NAMES[::-1]))
    module.read_names([])
    assert torch.equal(read(module), module.table.weight)


def test_more_names_than_tokens_are_refused():
    with pytest.raises(ValueError, match="number of names = 38: expected at most vocab_size = 37"):
        make_new().read_names([b"x"] * (VOCABULARY + 1))


def test_the_factors_are_saved_with_the_weights():
    module, twin = make(), make_new()
    read(twin)
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(read(twin), fresh(module))


# --- the effective table ------------------------------------------------------------------------


def test_weight_equals_the_sum_of_factors_in_value_and_gradient():
    module = make().double()
    parameters = (module.table.weight, module.factor_table)
    fast, slow = module.weight, weight_reference(module)
    torch.testing.assert_close(fast, slow)
    mix = draw(VOCABULARY, DIM, seed=7).double()
    ours, theirs = (torch.autograd.grad((w * mix).sum(), parameters) for w in (fast, slow))
    torch.testing.assert_close(ours, theirs)


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


def test_new_factors_are_inert_and_learn():
    """P starts at zero, so the start is the control's; only rows of factors have a gradient."""
    module, control = make_new(), make_new(PLAIN)
    module.read_names(NAMES)
    ids = draw_ids(2, 5)
    assert torch.equal(module(ids, None)[0], control(ids, None)[0])
    weight = module.weight
    weight.retain_grad()
    (module(ids, None, weight)[0] * draw(2, 5, DIM)).sum().backward()
    used = {row for name in NAMES for row in rows_reference(name)}
    learning = module.factor_table.grad.abs().sum(1).nonzero().flatten().tolist()
    assert learning
    assert set(learning) <= used


def test_without_names_factors_are_silent():
    """A new model knows no tokenizer yet: its weight is the table, and no row of P learns."""
    module = make_new()
    with torch.no_grad():
        module.factor_table.add_(1)
    assert torch.equal(module.weight, module.table.weight)
    module.weight.sum().backward()
    assert not module.factor_table.grad.any()


def test_silent_factors_add_exactly_nothing():
    module = make()
    module.silence()
    assert torch.equal(read(module), module.table.weight)


def test_without_the_stage_nothing_is_there():
    """The control: the weight is the table itself, with today's names and no buffer."""
    plain = make(PLAIN)
    assert plain.weight is plain.table.weight
    with torch.no_grad():
        assert plain.weight is plain.table.weight
    assert set(plain.state_dict()) == {"table.weight", "smear_gate.weight", "smear_scale"}
    assert not list(plain.buffers())
    assert set(make().state_dict()) - set(plain.state_dict()) == {"factor_table", "factors"}


def test_the_factors_train_as_a_table():
    """Optimizers sort parameters by name and shape: rows that are rarely read are AdamW's."""
    module = make()
    groups = make_optimizers(with_a_matrix(module), OptimConfig())["adamw"].param_groups
    (tables,) = (g["params"] for g in groups if any(p is module.table.weight for p in g["params"]))
    assert any(p is module.factor_table for p in tables)


def with_a_matrix(module):
    """The embedding as part of a model: Muon needs something to train."""
    return nn.ModuleDict({"embedding": module, "map": nn.Linear(3, 3)})


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
    assert module.factor_table.grad is not None


def with_sgd(module):
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def with_fused_adamw(module):
    """It changes parameters without counting a version."""
    torch.optim.AdamW(module.parameters(), lr=0.1, fused=True).step()


def with_the_project_s(module):
    for optimizer in make_optimizers(with_a_matrix(module), OptimConfig()).values():
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
        "in place": lambda: module.factor_table.mul_(2),
        "in place, the table": lambda: module.table.weight.add_(1),
        "to float64": lambda: module.to(torch.float64),
        "new parameter": lambda: setattr(
            module, "factor_table", nn.Parameter(module.factor_table + 1)
        ),
        "inference mode": lambda: module.factor_table.mul_(3),
    }
    for name, change in changes.items():
        before = read(module).clone()
        with torch.inference_mode() if name == "inference mode" else torch.no_grad():
            change()
        assert read(module).dtype == module.factor_table.dtype, name
        torch.testing.assert_close(read(module), fresh(module), msg=name)
        assert name == "to float64" or (read(module) - before).abs().max() > 1e-3, name


def test_parameters_made_in_inference_mode_have_no_memo():
    with torch.inference_mode():
        module = make()
        read(module)
        module.factor_table.add_(1)
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
        twin.factor_table.add_(1)
    torch.testing.assert_close(read(twin), fresh(twin))
    torch.testing.assert_close(read(module), fresh(module))


# --- folding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fold_is_the_same_function_without_factors(dtype):
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
        fresh_map = nn.Parameter(module.factor_table.detach() + 1)
        while fresh_map._version < module.factor_table._version:
            fresh_map.add_(0)
        module.factor_table = fresh_map
        torch.testing.assert_close(module.weight, fresh(module))
        assert not torch.equal(module.weight, before)

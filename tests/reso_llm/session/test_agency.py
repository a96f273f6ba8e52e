"""Agency: terms by hand, goals not achieved by chance, hindsight goals by a slow twin."""

import math

import pytest
import torch
import torch.nn.functional as F

from reso_llm.config import AgencyConfig
from reso_llm.session.agency import Agency
from reso_llm.session.foci import FOCUS_RETENTION, NOVELTY_SCALE_NATS
from reso_llm.stages.goal import hindsight_goals, pooled

F64 = torch.float64
B, T, D = 5, 7, 12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def draw_mask(seed=3):
    """Ragged replies; the last row has none, the one before a single token."""
    mask = torch.rand(B, T, generator=generator(seed)) < 0.5
    mask[:, -1] = True
    mask[-2, :-1], mask[-1] = False, False
    return mask


def axis(i):
    return F.one_hot(torch.tensor(i), D).to(F64)


# --- pooling ------------------------------------------------------------------------------------


def pooled_reference(embeddings, mask, weights=None):
    rows = []
    for b in range(len(embeddings)):
        total, count = torch.zeros_like(embeddings[b, 0]), 0.0
        for t in range(embeddings.shape[1]):
            if mask[b, t]:
                weight = 1.0 if weights is None else weights[b, t]
                rms = embeddings[b, t].square().mean().sqrt()
                total, count = total + weight * embeddings[b, t] / rms, count + weight
        mean = total / count if count else total
        rows.append(mean / mean.square().mean().sqrt() if count else mean)
    return torch.stack(rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_equals_its_twin_in_value_and_gradient(weighted):
    x, mask = (3 * draw(B, T, D)).requires_grad_(), draw_mask()
    weights = draw(B, T, seed=1).abs() if weighted else None
    fast, slow = pooled(x, mask, weights), pooled_reference(x, mask, weights)
    torch.testing.assert_close(fast, slow)
    assert torch.equal(fast[-1], torch.zeros(D, dtype=F64))  # an empty mask is exactly inert
    upstream = draw(B, D, seed=2)
    gradients = [torch.autograd.grad((v * upstream).sum(), x)[0] for v in (fast, slow)]
    torch.testing.assert_close(*gradients)


# --- hindsight goals ----------------------------------------------------------------------------


def test_without_dropout_and_noise_a_goal_is_the_pooled_reply():
    x, reply = draw(B, T, D), draw_mask()
    goals = hindsight_goals(x, reply, generator(), keep=1, token_dropout=0, noise=0)
    torch.testing.assert_close(goals, pooled_reference(x, reply))


def test_every_goal_pools_some_of_the_reply():
    """With noise off, a goal must be one of the subsets of its row's reply, and not always all."""
    x, reply = draw(B, T, D), draw_mask()
    whole, seen = pooled_reference(x, reply), 0
    for seed in range(8):
        goals = hindsight_goals(x, reply, generator(seed), keep=1, noise=0)
        for b in range(B - 1):
            tokens = reply[b].nonzero().flatten().tolist()
            subsets = torch.zeros(2 ** len(tokens), T, dtype=torch.bool)
            for code in range(len(subsets)):
                subsets[code, [t for i, t in enumerate(tokens) if code >> i & 1]] = True
            pools = pooled_reference(x[b].expand(len(subsets), T, D), subsets)
            distances = (pools - goals[b]).abs().amax(1)
            assert distances[1:].min() < 1e-9  # not the empty one
            seen += (goals[b] - whole[b]).abs().max() > 1e-9
    assert seen > 8


def test_shares_of_rows_tokens_and_noise():
    rows, tokens, dim = 400, 30, 64
    x = torch.eye(tokens, dim, dtype=F64).expand(rows, tokens, dim)  # a goal shows its tokens
    reply = torch.ones(rows, tokens, dtype=torch.bool)
    goals = hindsight_goals(x, reply, generator(), keep=0.3, token_dropout=0.8, noise=0.0)
    given = goals.any(1)
    assert given.double().mean().item() == pytest.approx(0.3, abs=0.08)
    assert (goals[given] > 0).double().sum(1).mean().item() == pytest.approx(0.2 * tokens, abs=0.6)
    clean, noisy = (
        hindsight_goals(100 * x, reply, generator(), keep=1.0, noise=noise) for noise in (0.0, 0.25)
    )
    assert clean.square().mean().sqrt().item() == pytest.approx(1.0)
    assert (noisy - clean).std().item() == pytest.approx(0.25, rel=0.05)


def test_rows_without_a_goal_are_exactly_zero():
    x, reply = draw(B, T, D), draw_mask()
    assert not hindsight_goals(x, reply, generator(), keep=0.0).any()
    goals = hindsight_goals(x, reply, generator(), keep=1.0, token_dropout=1.0)
    assert goals[:-1].any(1).all()  # the whole reply stays where dropout leaves no token
    assert not goals[-1].any()  # noise must not reach a row without a reply


def test_hindsight_goals_repeat_and_rows_stay_apart():
    x, reply = draw(B, T, D), draw_mask()
    goals = hindsight_goals(x, reply, generator(5), keep=0.7)
    assert torch.equal(goals, hindsight_goals(x, reply, generator(5), keep=0.7))
    assert not torch.equal(goals, hindsight_goals(x, reply, generator(6), keep=0.7))
    other = x.clone()
    other[1] += 1
    changed = hindsight_goals(other, reply, generator(5), keep=0.7)
    assert torch.equal(changed[[0, 2, 3, 4]], goals[[0, 2, 3, 4]])


def test_prompt_tokens_never_enter_a_goal():
    x, reply = draw(B, T, D), draw_mask()
    goals = hindsight_goals(x, reply, generator(), keep=1.0)
    x = x.masked_fill(~reply.unsqueeze(-1), 7.0)
    assert torch.equal(hindsight_goals(x, reply, generator(), keep=1.0), goals)


def test_hindsight_goals_keep_the_dtype_and_pass_gradients():
    x = draw(B, T, D).to(torch.bfloat16).requires_grad_()
    goals = hindsight_goals(x, draw_mask(), generator(), keep=1.0, weights=torch.ones(B, T))
    assert goals.dtype == torch.bfloat16
    goals.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


@pytest.mark.parametrize("wrong", [dict(keep=1.1), dict(token_dropout=-0.1), dict(noise=-1.0)])
def test_hindsight_goals_refuse_wrong_numbers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        hindsight_goals(draw(B, T, D), draw_mask(), generator(), **wrong)


# --- foci ---------------------------------------------------------------------------------------


def test_salience_by_hand():
    agency = Agency(AgencyConfig())
    agency.create_goal("near", vector=axis(0) + axis(1))
    agency.create_goal("far", vector=-axis(0))
    agency.observe("word", surprise_nats=2.0, vector=2 * axis(0), attention=0.5)
    (focus,) = agency.foci
    novelty, relevance = 1 - math.exp(-2 / NOVELTY_SCALE_NATS), 1 / math.sqrt(2)
    assert focus.novelty == pytest.approx(novelty)
    assert focus.relevance == pytest.approx(relevance)
    assert focus.salience == pytest.approx(0.4 * novelty + 0.4 * relevance + 0.2 * 0.5)
    assert (focus.type, focus.target, focus.intensity) == ("relevance", "word", 0.5)


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.4, (0.4, 0.4, 0.2)), (0.7, (0.7, 0.2, 0.1)), (1.0, (1.0, 0, 0))]
)
def test_weights_follow_novelty_weight(weight, expected):
    """Each term alone, at its largest value 1."""
    terms = {
        "novelty": dict(surprise_nats=math.inf),
        "relevance": dict(surprise_nats=0.0, vector=axis(0)),
        "intensity": dict(surprise_nats=0.0, attention=1.0),
    }
    for (name, arguments), salience in zip(terms.items(), expected, strict=True):
        agency = Agency(AgencyConfig(novelty_weight=weight))
        agency.create_goal("goal", vector=axis(0))
        agency.observe("x", **arguments)
        assert agency.foci[0].salience == pytest.approx(salience)
        assert agency.foci[0].type == (name if salience else "novelty")


def test_no_term_is_relevant_without_or_against_a_goal():
    agency = Agency(AgencyConfig())
    agency.observe("x", surprise_nats=1.0, vector=axis(0))
    assert agency.foci[0].relevance == 0
    agency.create_goal("opposite", vector=-axis(0))
    agency.observe("y", surprise_nats=1.0, vector=axis(0))
    assert agency.foci[0].relevance == 0


def test_foci_fade_and_the_faintest_is_forgotten():
    agency = Agency(AgencyConfig(max_foci=2))
    agency.observe("a", surprise_nats=3.0, attention=0.6)
    before = agency.foci[0]
    agency.observe("b", surprise_nats=9.0)
    agency.observe("c", surprise_nats=0.1)
    assert [focus.target for focus in agency.foci] == ["b", "a"]
    faded = agency.foci[1]
    for name in ("novelty", "intensity", "salience"):
        expected = FOCUS_RETENTION**2 * getattr(before, name)
        assert getattr(faded, name) == pytest.approx(expected)


def test_a_target_seen_again_is_refreshed_not_repeated():
    agency = Agency(AgencyConfig())
    agency.observe("a", surprise_nats=5.0, attention=0.1)
    novelty = agency.foci[0].novelty
    agency.observe("a", surprise_nats=0.0, attention=0.8)
    (focus,) = agency.foci
    assert focus.novelty == pytest.approx(FOCUS_RETENTION * novelty)
    assert focus.intensity == 0.8


@pytest.mark.parametrize(
    "wrong",
    [dict(surprise_nats=-0.1), dict(surprise_nats=math.nan), dict(surprise_nats=1, attention=1.1)],
)
def test_observe_refuses_wrong_numbers(wrong):
    with pytest.raises(ValueError, match="expected"):
        Agency(AgencyConfig()).observe("x", **wrong)


# --- goals --------------------------------------------------------------------------------------


def test_a_goal_whose_words_are_said_is_achieved_and_another_is_not():
    agency = Agency(AgencyConfig())
    related = agency.create_goal("music, bands and songs", vector=axis(0))
    unrelated = agency.create_goal("food, cooking and recipes", vector=axis(0))
    text = "The whole song comes from Dublin."
    assert agency.update_progress(text) == (related,)
    assert (related.achieved, related.progress) == (True, 1.0)
    assert (unrelated.achieved, unrelated.progress) == (False, 0.0)
    assert agency.active_goals == (unrelated,)
    assert agency.update_progress(text) == ()  # achieved once, reported once


def test_progress_is_the_share_of_the_goal_of_what_is_enough():
    """One of eight rare words is half of a quarter; a common word counts less."""
    agency = Agency(AgencyConfig())
    goal = agency.create_goal("violins oboes flutes harps drums bells lutes horns", vector=axis(0))
    agency.update_progress("A harp stood there.")
    assert (goal.progress, goal.achieved) == (pytest.approx(0.5), False)
    agency.update_progress("Nothing of it.")
    assert goal.progress == 0.0
    common = agency.create_goal("violins at home", vector=axis(0))
    agency.update_progress("Come home!")
    assert 0 < common.progress < 1


def test_a_text_without_a_word_says_nothing():
    agency = Agency(AgencyConfig())
    goal = agency.create_goal("rain and snow", vector=axis(0))
    goal.progress = 0.3
    assert agency.update_progress(" ...") == ()
    assert (goal.progress, goal.achieved) == (0.3, False)


def test_a_maintenance_goal_stays_and_can_be_lost_and_won_again():
    agency = Agency(AgencyConfig())
    goal = agency.create_goal("rain", "maintenance", vector=axis(0))
    assert agency.update_progress("It rains.") == (goal,)
    assert agency.update_progress("Rain again.") == ()
    assert agency.update_progress("The sun is out.") == ()
    assert not goal.achieved
    assert agency.update_progress("Rainy days, rain at night.") == (goal,)
    assert agency.active_goals == (goal,)


def test_max_goals_is_enforced_and_room_can_be_made():
    agency = Agency(AgencyConfig(max_goals=2))
    first, _ = (agency.create_goal("twin", vector=axis(0)) for _ in range(2))
    with pytest.raises(ValueError, match=r"AgencyConfig\.max_goals = 2"):
        agency.create_goal("third", vector=axis(0))
    agency.drop_goal(first)
    third = agency.create_goal("third", vector=axis(0))
    assert agency.active_goals[1] is third
    with pytest.raises(ValueError, match="not active"):
        agency.drop_goal(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(goal_type="exploratry", vector=torch.ones(D)), "did you mean exploratory"),
        (dict(vector=torch.zeros(D)), "not all 0"),
        (dict(vector=torch.full((D,), math.nan)), "finite"),
        (dict(vector=torch.ones(1, D)), r"shape \(1, 12\)"),
    ],
)
def test_create_goal_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Agency(AgencyConfig()).create_goal("goal", **arguments)

"""Zombie test: the pair equals transformers' models, the noise has its closed forms, the pair is
matched, and the command says what it did."""

import dataclasses
import itertools
import json
import math
import socket
import sys

import pytest
import torch
from torch.nn import functional as F

import evaluate
from cer import zombie_hub, zombie_pair
from cer.zombie import (
    Deviations,
    NoiseConfig,
    Subject,
    commutation,
    deviations,
    in_other_units,
    interval,
    mean_length,
    measure,
    noisy_nats,
    summarise,
    unit_changes,
)
from cer.zombie_models import Architecture, make_model, selective_scan
from cer.zombie_pair import KINDS, ZombieConfig, quick, zombie_test, zombie_test_pretrained
from cer.zombie_report import zombie_figure, zombie_table
from cer.zombie_training import (
    Path,
    TrainingConfig,
    common_loss,
    make_corpus,
    markov_text,
    mean_nats,
    stop_at,
    train,
    valid_windows,
)
from run_core import exits

F64 = torch.float64
V, D, T = 11, 16, 12
HF_NAMES = {
    "feed-forward": {
        "table": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f",
        "blocks": "transformer.h", "c_attn": "attn.c_attn", "c_proj": "attn.c_proj",
        "c_fc": "mlp.c_fc", "c_out": "mlp.c_proj",
    },
    "state-space": {
        "table": "backbone.embeddings", "norm": "backbone.norm_f", "blocks": "backbone.layers",
        **{n: f"mixer.{n}" for n in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj", "A_log",
                                     "D")},
    },
}  # fmt: skip


def draw(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ids_of(*shape, seed=0, high=V):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def tiny(kind, num_layers=2):
    """Every parameter moved off its start, so that none of them is 0 or 1."""
    model = make_model(Architecture(kind, V, D, num_layers, T), seed=0)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.1 * draw(*p.shape, seed=i, dtype=torch.float32))
    return model


def peer(kind, num_layers=2):
    """transformers' model of the same shape, with random weights."""
    transformers = pytest.importorskip("transformers")
    if kind == "feed-forward":
        config = transformers.GPT2Config(
            vocab_size=V, n_positions=T, n_embd=D, n_layer=num_layers, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.MambaConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=num_layers, state_size=8, expand=2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.MambaForCausalLM(config).eval()


def copy_to_peer(model, theirs, kind):
    """Our weights under their names; GPT-2 there keeps its matrices transposed."""
    state, names = theirs.state_dict(), HF_NAMES[kind]
    for name, w in model.state_dict().items():
        parts = [p if i and p == "norm" else names.get(p, p) for i, p in enumerate(name.split("."))]
        transposed = kind == "feed-forward" and parts[-1] == "weight" and ".c_" in name
        state[".".join(parts)].copy_(w.T if transposed else w)
    return theirs


def linear_subject(matrix, table=None, head=None):
    """S(e) = e M^T, position by position."""
    table = draw(V, D, seed=3) if table is None else table
    return Subject("linear", table, lambda e: e @ matrix.T, table if head is None else head)


# --- the pair ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_transformers_weight_for_weight(kind):
    model = tiny(kind)
    theirs = copy_to_peer(model, peer(kind), kind)
    ids = ids_of(3, T)
    torch.testing.assert_close(model(ids), theirs(input_ids=ids).logits, atol=2e-5, rtol=1e-4)


def test_scan_against_the_recurrence_in_value_and_gradient():
    B, H, N = 2, 3, 4
    leaves = [draw(B, T, H), draw(B, T, H, seed=1).exp(), -draw(H, N, seed=2).exp(),
              draw(B, T, N, seed=3), draw(B, T, N, seed=4)]  # fmt: skip
    weight = draw(B, T, H, seed=5)

    def reference(u, dt, a, b, c):
        y = torch.zeros(B, T, H, dtype=F64)
        for i, h in itertools.product(range(B), range(H)):
            state = torch.zeros(N, dtype=F64)
            for t in range(T):
                state = (dt[i, t, h] * a[h]).exp() * state + dt[i, t, h] * u[i, t, h] * b[i, t]
                y[i, t, h] = (state * c[i, t]).sum()
        return y

    found = []
    for scan in (selective_scan, reference):
        args = [leaf.clone().requires_grad_() for leaf in leaves]
        y = scan(*args)
        found.append((y.detach(), *torch.autograd.grad((y * weight).sum(), args)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_causal_and_every_parameter_learns(kind):
    model, ids = tiny(kind), ids_of(2, T)
    other = ids.clone()
    other[:, 7] = (other[:, 7] + 1) % V
    with torch.no_grad():
        a, b = model(ids), model(other)
    torch.testing.assert_close(a[:, :7], b[:, :7], atol=1e-6, rtol=0)
    assert (a[:, 7:] - b[:, 7:]).abs().amax(-1).min() > 1e-5
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_seeded_and_leaves_the_global_generator_alone(kind):
    shape = Architecture(kind, V, D, 2, T)
    before = torch.get_rng_state()
    first, again, other = (make_model(shape, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[n], again[n]) for n in first)
    fixed = ("A_log", "D", "norm.weight", "ln_1.weight", "ln_2.weight")
    for name, w in first.items():
        if not name.endswith((*fixed, "bias")):
            assert not torch.equal(w, other[name]), name


def test_time_steps_start_in_their_range():
    model = make_model(Architecture("state-space", V, 64, 1, T), 0)
    dt = F.softplus(model.blocks[0].dt_proj.bias)
    assert 1e-3 <= dt.min() < 4e-3
    assert 3e-2 < dt.max() <= 0.1 + 1e-6


def test_unknown_kind():
    with pytest.raises(ValueError, match="kind must be"):
        make_model(Architecture("liquid", V, D, 1, T), 0)


# --- the noise --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.3, 4.0])
def test_commuting_pair_costs_exactly_nothing(factor):
    """Reading that only rescales does nothing to noise measured in lengths."""
    subject, ids, noise = linear_subject(factor * torch.eye(D, dtype=F64)), ids_of(4, T), \
        draw(6, 4, T, D, seed=9)  # fmt: skip
    cost = commutation(subject, ids, deviations(subject, ids, "norm", 0.3), noise, 3)
    for value in cost:
        torch.testing.assert_close(value, torch.zeros(4, 3, dtype=F64), atol=1e-9, rtol=0)


def test_absolute_noise_does_not_commute_with_rescaling():
    subject = linear_subject(3 * torch.eye(D, dtype=F64), 0.2 * draw(V, D, seed=3))
    ids, noise = ids_of(4, T), draw(6, 4, T, D, seed=9)
    cost = commutation(subject, ids, deviations(subject, ids, "absolute", 0.3), noise)
    assert (cost.mu_nats > 1e-3).all()


def test_commutation_by_the_definition():
    """Against a mean over draws, written out, at each of the positions."""
    mix = torch.tril(torch.ones(T, T, dtype=F64)) / T
    subject = Subject("mixing", draw(V, D), lambda e: torch.tanh(mix @ e), draw(V, D, seed=1))
    ids, noise, size = ids_of(2, T), draw(5, 2, T, D, seed=2), Deviations(0.4, 0.7)
    e = subject.table[ids]
    after = torch.stack([((subject.states(e) + 0.7 * x) @ subject.head.T).softmax(-1)
                         for x in noise]).mean(0)  # fmt: skip
    before = torch.stack([(subject.states(e + 0.4 * x) @ subject.head.T).softmax(-1)
                          for x in noise]).mean(0)  # fmt: skip
    kl = (after * (after.log() - before.log())).sum(-1)
    found = commutation(subject, ids, size, noise, 2).mu_nats
    torch.testing.assert_close(found, kl[:, [T - 1, T // 2]])
    torch.testing.assert_close(commutation(subject, ids, size, noise).mu_nats, kl[:, [T - 1]])


def test_a_rotation_commutes_on_average_only():
    """Same law, other draws: the corrected cost falls towards 0 as draws are added."""
    rotation = torch.linalg.qr(draw(D, D, seed=5))[0]
    subject, ids = linear_subject(rotation, 0.4 * draw(V, D, seed=3)), ids_of(2, T)
    size = deviations(subject, ids, "norm", 1.0)
    assert size.before == pytest.approx(size.after)
    few, many = (commutation(subject, ids, size, draw(n, 2, T, D, seed=7)) for n in (8, 800))
    assert many.mu_nats.mean() < 0.05 * few.mu_nats.mean()
    stretched = linear_subject(rotation @ torch.diag(torch.linspace(0.1, 3, D, dtype=F64)),
                               subject.table)  # fmt: skip
    size = deviations(stretched, ids, "norm", 1.0)
    wide = commutation(stretched, ids, size, draw(800, 2, T, D, seed=7))
    assert wide.mu_nats.mean() > 5 * many.mu_nats.mean()


def test_deviation_gives_noise_of_the_length_it_names():
    subject, ids = linear_subject(2 * torch.eye(D, dtype=F64)), ids_of(8, T)
    size = deviations(subject, ids, "norm", 0.5)
    length = mean_length(subject.table[ids])
    noise = draw(4000, D, seed=1)
    rms = (size.before * noise).square().sum(-1).mean().sqrt().item()
    assert rms == pytest.approx(0.5 * length, rel=0.02)
    assert size.after == pytest.approx(2 * size.before)
    assert deviations(subject, ids, "absolute", 0.5) == (0.5, 0.5)
    with pytest.raises(ValueError, match="scale must be"):
        deviations(subject, ids, "relative", 0.5)


def test_cross_entropy_shifts_by_one_and_averages_over_draws():
    subject, ids, noise = linear_subject(torch.eye(D, dtype=F64)), ids_of(3, T + 1), \
        draw(2, 3, T, D, seed=4)  # fmt: skip
    total = 0.0
    for k, b, t in itertools.product(range(2), range(3), range(T)):
        e = subject.table[ids[b, t]] + 0.2 * noise[k, b, t]
        total -= (e @ subject.head.T).log_softmax(-1)[ids[b, t + 1]].item()
    assert noisy_nats(subject, ids, 0.2, noise) == pytest.approx(total / (2 * 3 * T))


CONFIG = NoiseConfig(levels=(0.1, 0.5), num_draws=4, num_ppl_draws=3, num_positions=2)


def trained_like(kind="feed-forward"):
    model = tiny(kind).double()
    table = model.table.weight.detach()
    return Subject(kind, table, model.states, table)


def test_units_change_the_absolute_scale_alone(monkeypatch):
    """The same function: norm gives the same figure, absolute that of another noise."""
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: real(*a, **(k | {"dtype": F64})))
    subject, ids = trained_like(), ids_of(4, T + 1)
    other = in_other_units(subject, 10.0)
    ours, theirs = (measure(s, ids, CONFIG, 0) for s in (subject, other))
    assert theirs["clean_nats"] == pytest.approx(ours["clean_nats"], rel=1e-12)
    assert theirs["embedding_norm"] == pytest.approx(10 * ours["embedding_norm"])
    for a, b in zip(ours["noise"], theirs["noise"], strict=True):
        if a["scale"] == "norm":
            assert b["delta_ppl"] == pytest.approx(a["delta_ppl"], rel=1e-9)
            assert b["commutation_nats"] == pytest.approx(a["commutation_nats"], rel=1e-9)
        else:
            assert b["delta_ppl"] != pytest.approx(a["delta_ppl"], rel=0.1)
    finer = unit_changes(subject, ids, dataclasses.replace(CONFIG, levels=(0.1, 1.0)), 0)
    plain = unit_changes(subject, ids, dataclasses.replace(CONFIG, levels=(10.0,)), 0)
    at = {(r["factor"], r["level"]): r["delta_ppl"] for r in finer + plain}
    # Noise 0.1 on embeddings 0.1 times as long is noise 1, and so is 10 on 10 times as long.
    assert at[0.1, 0.1] == pytest.approx(at[10.0, 10.0])


def test_measure_reports_the_draws_it_was_given():
    model = tiny("state-space")
    table = model.table.weight.detach()
    subject, ids = Subject("m", table, model.states, table), ids_of(4, T + 1)
    found, again, other = (measure(subject, ids, CONFIG, seed) for seed in (0, 0, 1))
    assert found == again != other
    assert found["clean_ppl"] == pytest.approx(math.exp(mean_nats(model, ids)), rel=1e-5)
    e = table[ids[:, :-1]]
    centred = e - e.flatten(0, 1).mean(0)
    assert found["embedding_spread"] == pytest.approx(centred.norm(dim=-1).mean().item())
    assert [(n["scale"], n["level"]) for n in found["noise"]] == [
        ("norm", 0.1), ("norm", 0.5), ("absolute", 0.1), ("absolute", 0.5)
    ]  # fmt: skip
    noise = torch.randn(4, 4, T, D, generator=torch.Generator().manual_seed(0))
    for row in found["noise"]:
        size = deviations(subject, ids[:, :-1], row["scale"], row["level"])
        assert row["nats"] == pytest.approx(noisy_nats(subject, ids, size.before, noise[:3]))
        assert row["delta_ppl"] == pytest.approx(math.exp(row["nats"]) - found["clean_ppl"])
        cost = commutation(subject, ids[:, :-1], size, noise, 2)
        assert row["commutation_nats"] == pytest.approx(cost.corrected_nats.mean().item())
        assert row["commutation_plug_in_nats"] == pytest.approx(cost.mu_nats.mean().item())


def test_summary_pairs_the_seeds_and_gives_the_direction():
    def row(*deltas):
        noise = [{"scale": "norm", "level": 0.1, "delta_ppl": d, "commutation_nats": -d}
                 for d in deltas]  # fmt: skip
        return {"models": [{"noise": [n]} for n in noise]}

    scipy = pytest.importorskip("scipy.stats")
    ppl, cost = summarise([row(1.0, 3.0), row(5.0, 7.5), row(9.0, 10.5)])
    assert (ppl["feed_forward"], ppl["state_space"], ppl["difference"]) == (5.0, 7.0, 2.0)
    half = scipy.t.ppf(0.975, 2) * 0.5 / math.sqrt(3)
    assert (ppl["low"], ppl["high"]) == pytest.approx((2 - half, 2 + half), rel=1e-3)
    assert ppl["published_direction"] == "holds"
    assert cost["published_direction"] == "reversed"
    assert summarise([row(1.0, 3.0), row(5.0, 4.0)])[0]["published_direction"] == "open"
    assert summarise([row(1.0, 3.0)])[0]["published_direction"] == "open"
    low, high = interval([float(i) for i in range(10)])
    assert high - low == pytest.approx(2 * scipy.t.ppf(0.975, 9) * (82.5 / 9 / 10) ** 0.5, rel=1e-3)


# --- the matching -----------------------------------------------------------------------------


def test_markov_text_is_seeded_and_remembers_two_letters():
    text = markov_text(20_000, 0)
    assert text == markov_text(20_000, 0) != markov_text(20_000, 1)
    assert set(text) <= set(b"abcdefghijklmnopqrstuvwx")

    def entropy(order):
        """H(next | the `order` letters before), nats, from counts."""
        counts = {}
        for i in range(order, len(text)):
            row = counts.setdefault(text[i - order : i], {})
            row[text[i]] = row.get(text[i], 0) + 1
        total = len(text) - order
        return -sum(n / total * math.log(n / sum(r.values()))
                    for r in counts.values() for n in r.values())  # fmt: skip

    assert entropy(2) < entropy(1) - 0.5


def test_corpus_holds_the_end_out():
    corpus = make_corpus(b"cab" * 400, 12)
    assert corpus.vocab_size == 3
    assert corpus.train[:3].tolist() == [2, 0, 1]
    assert (len(corpus.train), len(corpus.valid)) == (1080, 120)
    windows = valid_windows(corpus, 12, 5)
    assert windows.shape == (5, 13)
    assert torch.equal(windows[0], corpus.valid[:13])
    assert torch.equal(windows[-1], corpus.valid[-13:])
    with pytest.raises(ValueError, match=r"has 300 bytes, at least \d+ are needed"):
        make_corpus(b"cab" * 100, 12)


def test_stops_where_the_loss_is_first_crossed():
    """Three snapshots: the target is met between the first two, not at the last."""
    model = make_model(Architecture("feed-forward", V, D, 1, T), 0)
    valid = ids_of(4, T + 1)
    snapshots = []
    for scale in (0.0, 1.0, -1.0):
        state = {n: w.clone() for n, w in model.state_dict().items()}
        state["norm.bias"] = state["norm.bias"] + scale * 0.2 * state["table.weight"][valid].mean(
            (0, 1)
        )
        snapshots.append(state)
    losses = []
    for state in snapshots:
        model.load_state_dict(state)
        losses.append(mean_nats(model, valid))
    assert losses[1] < losses[0] < losses[2]
    path = Path(tuple(snapshots), tuple(losses))
    target = losses[0] + 0.3 * (losses[1] - losses[0])
    stop_at(model, path, target, valid)
    assert mean_nats(model, valid) == pytest.approx(target, abs=0.02 * (losses[0] - losses[1]))
    assert mean_nats(model, valid) <= target
    for missed in (losses[1] - 0.1, losses[0] + 0.1):
        with pytest.raises(ValueError, match="does not cross"):
            stop_at(model, path, missed, valid)
    assert common_loss((Path((), (3.0, 1.0, 2.0)), Path((), (3.0, 1.5)))) == 1.5


@pytest.fixture(scope="module")
def result():
    rows = []
    found = zombie_test(quick(ZombieConfig(seeds=(0, 1))), None, rows.append)
    assert rows == found["rows"]
    return found


def test_the_pair_is_trained_and_matched_within_one_percent(result):
    for row in result["rows"]:
        ours, theirs = (m["clean_nats"] for m in row["models"])
        assert abs(ours - theirs) < 0.01 * ours
        assert row["common_nats"] == max(m["best_nats"] for m in row["models"])
        assert row["common_nats"] < math.log(24) - 0.01  # better than knowing nothing
        assert [m["name"] for m in row["models"]] == list(KINDS)
    first, second = result["rows"]
    assert first["common_nats"] != second["common_nats"]
    assert [row["seed"] for row in result["rows"]] == [0, 1]


def test_the_seed_draws_weights_windows_and_noise(monkeypatch):
    """Guards an interval over seeds that would share their trainings."""
    seen = []

    def spy(model, corpus, valid, config, steps, seed):
        seen.append((model.table.weight[0, 0].item(), steps, seed))
        return Path((model.state_dict(),), (1.0,))

    monkeypatch.setattr(zombie_pair, "train", spy)
    for seed in (3, 4):
        with pytest.raises(ValueError, match="does not cross"):
            zombie_test(quick(ZombieConfig(seeds=(seed,))), None, print)
    assert [entry[1:] for entry in seen] == [(60, 3), (40, 3), (60, 4), (40, 4)]
    assert seen[0][0] != seen[2][0]


def test_training_repeats_with_its_seed_alone():
    corpus = make_corpus(markov_text(3000, 0), T)
    valid, config = valid_windows(corpus, T, 4), TrainingConfig(batch_size=2, eval_every=2)
    paths = []
    for seed in (0, 0, 1):
        model = make_model(Architecture("state-space", corpus.vocab_size, D, 1, T), 0)
        paths.append(train(model, corpus, valid, config, 5, seed))
        assert mean_nats(model, valid) == paths[-1].losses[-1]
    assert paths[0].losses == paths[1].losses != paths[2].losses
    assert len(paths[0].weights) == len(paths[0].losses) == 4  # after 0, 2, 4 and 5 steps
    assert not torch.equal(paths[0].weights[0]["table.weight"], paths[0].weights[1]["table.weight"])


def test_table_and_figure_show_every_line_of_the_summary(result):
    pytest.importorskip("matplotlib")
    table = zombie_table(result)
    directions = ("| holds |", "| reversed |", "| open |")
    assert sum(table.count(word) for word in directions) == len(result["summary"]) == 8
    assert "407.67 and 4470.95" in table
    assert "0.4437 and 0.8525" in table
    figure = zombie_figure(result)
    assert len(figure.axes) == 4
    means = [line for line in figure.axes[0].lines if line.get_marker() in "os"]
    for i, name in enumerate(("feed_forward", "state_space")):
        shown = [e[name] for e in result["summary"] if (e["scale"], e["quantity"])
                 == ("norm", "delta_ppl")]  # fmt: skip
        assert list(means[i].get_ydata()) == pytest.approx(shown)


# --- real models and the command --------------------------------------------------------------


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["evaluate", "zombie", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        exits.run(evaluate.main)
    return caught.value.code


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two tiny models in transformers' format, with a tokenizer of letters."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate("abcdefghijk")}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    found = []
    for kind in KINDS:
        path = tmp_path_factory.mktemp("models") / kind
        copy_to_peer(tiny(kind), peer(kind), kind).save_pretrained(path)
        fast.save_pretrained(path)
        found.append(path)
    return found


TEXT = "".join("abcdefghijk"[i] for i in ids_of(300, seed=8).tolist())


def test_directories_give_the_figures_of_the_same_weights(directories):
    """Through transformers or our own modules: one test, one set of numbers."""
    config = ZombieConfig(seeds=(0,), context=T, num_windows=8, noise=CONFIG)
    names = [str(d) for d in directories]
    found = zombie_test_pretrained(config, names, TEXT, lambda _: None, deadline=1.0)
    ids = torch.tensor(["abcdefghijk".index(c) for c in TEXT])[: 8 * (T + 1)].view(8, T + 1)
    for kind, name, theirs in zip(KINDS, names, found["rows"][0]["models"], strict=True):
        model = tiny(kind)
        table = model.table.weight.detach()
        ours = measure(Subject(name, table, model.states, table), ids, CONFIG, 0)
        assert theirs["name"] == name
        for a, b in zip(ours["noise"], theirs["noise"], strict=True):
            assert b["delta_ppl"] == pytest.approx(a["delta_ppl"], rel=1e-3, abs=1e-3)
            assert b["commutation_nats"] == pytest.approx(a["commutation_nats"], abs=1e-4)


def test_command_writes_table_json_and_figure(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    text, out, plot = (tmp_path / n for n in ("text.txt", "out.json", "out.png"))
    text.write_bytes(markov_text(8000, 3))
    options = ["--quick", "--seeds", 5, "--data", text, "--json", out, "--plot", plot]
    assert call(monkeypatch, *options) == 0
    assert "| open |" in capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert [(row["seed"], row["data"], row["quick"]) for row in rows] == [(5, "text.txt", True)]
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_loaded_fails_at_once_and_says_why(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cases = {
        "not in the local cache, and HF_HUB_OFFLINE is set": ["nobody/a", "nobody/b"],
        "neither a directory nor a hub id": ["no/such/dir", "x"],
        "takes two, feed-forward then state-space, got 1": ["nobody/a"],
        "has no causal language model to load: no config.json in it": [tmp_path, tmp_path],
    }
    for message, models in cases.items():
        assert call(monkeypatch, "--data", text, "--models", *models) == 2
        assert message in capsys.readouterr().err
    assert call(monkeypatch, "--models", "a/b", "c/d") == 2
    assert "--data FILE" in capsys.readouterr().err


def test_text_too_short_for_the_windows(directories):
    config = ZombieConfig(seeds=(0,), context=T, num_windows=30)
    with pytest.raises(ValueError, match=r"300 tokens of .* need 390"):
        zombie_test_pretrained(config, [str(d) for d in directories], TEXT, print, deadline=1.0)


def test_a_hub_that_accepts_and_never_answers(monkeypatch, tmp_path):
    """The library would wait for minutes."""
    pytest.importorskip("huggingface_hub")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        with pytest.raises(ValueError, match=r"did not answer within 0\.5 seconds"):
            zombie_hub.load_subject("nobody/nothing", TEXT, T, 2, deadline=0.5)

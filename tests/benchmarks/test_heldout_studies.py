"""The evidence scripts: their pure functions against hand-made or slow answers."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.kit import heldout
from benchmarks.studies import long_context
from benchmarks.tasks import gating
from benchmarks.tasks.goals import conversations, guided, measures
from reso_llm.config import (
    KuramotoConfig,
    PRSCConfig,
    ResoLLMConfig,
    TemporalSMFConfig,
    control_of,
    with_stage,
)
from reso_llm.data.prepare import tokenise_all
from reso_llm.data.token_cache import Split
from reso_llm.decoding.sampling import inverted
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import SPECIAL_TOKENS
from reso_llm.training.evaluation import score_split

VOCABULARY = 61
SMALL = control_of(
    ResoLLMConfig(
        vocab_size=VOCABULARY, dim=32, num_layers=2, num_heads=2, max_seq_len=12,
        kuramoto=KuramotoConfig(num_oscillators=4),
        prsc=PRSCConfig(max_order=2, max_slots=16),
        temporal_smf=TemporalSMFConfig(num_heads=2, num_channels=2),
    )
)  # fmt: skip


def make_model(*stages, **changes):
    """The small control with some stages on, every parameter moved off its start."""
    config = dataclasses.replace(SMALL, **changes)
    for stage in stages:
        config = with_stage(config, stage, enabled=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResoLLMModel(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    model.fit_bindings(draw_ids(400, seed=5).numpy())  # the gate lets some tokens go deep
    return model.eval()


def draw_ids(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL_TOKENS), VOCABULARY, shape, generator=generator)


def make_split(*lengths, reply_from=3):
    """Documents of random ids whose targets from `reply_from` on are replies."""
    ids = draw_ids(sum(lengths)).numpy()
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).numpy()
    mask = torch.cat([(torch.arange(n) >= reply_from).to(torch.uint8) for n in lengths]).numpy()
    return Split(ids, mask, starts, len(ids), 2 * len(ids), len(lengths))


def make_rows(*lengths):
    rows = [conversations.make_row(draw_ids(n + 1, seed=n), torch.arange(n) >= 4) for n in lengths]
    assert all(row.prompt.any() and row.reply.any() for row in rows)
    return rows


# --- scores and intervals


def test_held_out_bytes_are_each_documents_own(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "abc"}\n{"text": "defghij ü"}\n')
    split, sizes = heldout.held_out(str(path), byte_tokenizer)
    assert sizes.tolist() == [3, 10]
    assert sizes.sum() == split.num_bytes
    ids = heldout.document_ids(split)
    assert [byte_tokenizer.decode(i.tolist()) for i in ids] == ["abc", "defghij ü"]


@torch.no_grad()
def test_document_scores_charge_every_token_to_its_document():
    """Short documents against one unbatched pass each; all together against `score_split`."""
    model, split = make_model("coherence_gate", "kuramoto", "echo"), make_split(9, 5, 30)
    sizes = torch.tensor([20.0, 11.0, 70.0], dtype=torch.float64)
    scores = heldout.document_scores(model, split, sizes)
    assert scores.tokens.tolist() == [8, 4, 29]
    for i, ids in enumerate(heldout.document_ids(split)[:2]):
        ids = torch.from_numpy(ids)[None]
        output = model(ids[:, :-1])
        deep = output.diagnostics["deep"]
        nats = F.cross_entropy(output.logits[0], ids[0, 1:], reduction="sum").item()
        assert scores.nats[i].item() == pytest.approx(nats, rel=1e-5)
        assert scores.layers[i].item() == deep.numel() + int(deep.sum())
    assert scores.tokens.sum() < scores.layers.sum() < 2 * scores.tokens.sum()
    assert scores.nats.sum().item() == pytest.approx(score_split(model, split).nats, rel=1e-6)
    assert scores.bits_per_byte == pytest.approx(scores.nats.sum().item() / math.log(2) / 101)


def test_without_a_gate_every_layer_is_used():
    scores = heldout.document_scores(make_model(), make_split(9, 5), torch.ones(2))
    assert scores.layers.tolist() == [16, 8]


# --- the gate


@torch.no_grad()
def test_with_threshold_changes_the_gate_and_no_weight():
    model = make_model("coherence_gate", num_layers=4)
    ids, tail = draw_ids(2, 12), torch.full((2, model.tail_length), -1)
    own = model.gate.threshold.item()
    same = gating.with_threshold(model, own)
    torch.testing.assert_close(same(ids).logits, model(ids).logits)
    layers = []
    for threshold in (math.inf, own, -math.inf):
        other = gating.with_threshold(model, threshold)
        layers.append(heldout.layers_used(other, ids, tail).mean().item())
        assert other(ids).diagnostics["deep"].double().mean() * 3 + 1 == pytest.approx(layers[-1])
        assert other.embedding.table is model.embedding.table
    assert layers[0] == 1 < layers[1] < layers[2] == 4
    assert model.gate.threshold.item() == own


def test_thresholds_let_their_share_of_the_text_go_deep():
    """As near as the doubts that many tokens share allow: never less than asked for."""
    model, split = make_model("coherence_gate"), make_split(60, 40)
    tail = torch.full((1, model.tail_length), -1)
    texts = heldout.document_ids(split)
    doubts = torch.cat([heldout.doubts(model, torch.from_numpy(t)[None], tail)[0] for t in texts])
    for share, tau in zip((0.1, 0.5, 1.0), gating.thresholds(model, split, (0.1, 0.5, 1.0)),
                          strict=True):  # fmt: skip
        assert (doubts >= tau).double().mean() >= share
        assert (doubts > tau).double().mean() < share


def test_cheapest_is_the_fewest_layers_within_the_tolerance(monkeypatch):
    values = ((0.1, 2.05, 1.0), (0.5, 2.015, 2.0), (1.0, 2.0, 3.5), (9.0, 2.01, 4.0))
    rows = [{"share": cut, "bits_per_byte": [bits, 0, 9], "layers": [layers, 0, 9]}
            for cut, bits, layers in values]  # fmt: skip
    for tolerance, cut in ((gating.TOLERANCE, 0.5), (0.001, 1.0), (0.1, 0.1)):
        monkeypatch.setattr(gating, "TOLERANCE", tolerance)
        assert gating.cheapest(rows)["share"] == cut


# --- goals


def test_rows_split_replies_in_halves_without_control_tokens():
    bos, user, assistant, end = 0, 2, 3, 4
    ids = [bos, user, 10, 11, end, assistant, 20, 21, 22, 23, 24, end, user, 30, end]
    ids = torch.tensor(ids)
    reply = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
    row = conversations.make_row(ids, reply)
    assert row.targets[row.prompt].tolist() == [10, 11]
    assert row.targets[row.first].tolist() == [20, 21]
    assert row.targets[row.second].tolist() == [22, 23, 24]
    assert row.targets[row.reply].tolist() == [20, 21, 22, 23, 24, 4]


def test_first_windows_leave_out_rows_with_little_reply():
    split = make_split(40, conversations.MIN_REPLY + 2, conversations.MIN_REPLY + 3)
    rows = conversations.first_windows(split, context=24)
    assert [len(row.inputs) for row in rows] == [24, conversations.MIN_REPLY + 2]
    assert rows[1].inputs[0] == split.tokens[split.doc_starts[2]]
    assert rows[1].reply.sum() == conversations.MIN_REPLY


def test_goal_vectors_pool_each_row_by_itself():
    table = torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(1))
    weights, rows = torch.arange(VOCABULARY) / 10, make_rows(9, 14)
    for weight in (None, weights):
        found = conversations.goal_vectors(table, rows, "first", weight)
        for goal, row in zip(found, rows, strict=True):
            ids = row.targets[row.first]
            vectors = F.rms_norm(table[ids], (8,))
            total = (vectors * (1 if weight is None else weight[ids][:, None])).sum(0)
            torch.testing.assert_close(F.cosine_similarity(goal, total, dim=0), torch.tensor(1.0))


def test_others_is_one_cycle_and_never_the_row_itself():
    for count in (2, 3, 10):
        partner = conversations.others(count, torch.Generator().manual_seed(count))
        assert partner.sort().values.tolist() == list(range(count))
        at, seen = 0, set()
        while at not in seen:
            seen.add(at)
            at = int(partner[at])
        assert len(seen) == count


def test_weightings_count_what_is_rare(tmp_path, byte_tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "aaab"}\n')
    made = conversations.weightings(torch.zeros(261, 4), str(path), byte_tokenizer)
    a, b, c = (byte_tokenizer.encode(letter)[0] for letter in "abc")
    total = tokenise_all(str(path), byte_tokenizer).num_tokens + 261
    wanted = [math.log(total / (1 + n)) for n in (3, 1, 0)]
    assert made["-ln unigram"][[a, b, c]].tolist() == pytest.approx(wanted, rel=1e-5)
    smooth = [1 / (1 + 1000 * math.exp(-nats)) for nats in wanted]
    assert made["smooth inverse"][[a, b, c]].tolist() == pytest.approx(smooth, rel=1e-5)
    assert made["ln prime"][:3].tolist() == pytest.approx([math.log(p) for p in (2, 3, 5)])
    assert made["equal"] is None
    assert made["rarity"][c] > made["rarity"][a]
    assert set(conversations.weightings(torch.zeros(261, 4), None, byte_tokenizer)) == {
        "equal",
        "rarity",
        "ln prime",
    }


@torch.no_grad()
def test_token_nats_of_a_batch_are_those_of_each_row():
    model, rows = make_model("agency"), make_rows(12, 7, 9)
    vectors = conversations.goal_vectors(model.embedding.weight, rows, "reply")
    for given in (None, vectors):
        found = measures.token_nats(model, rows, given)
        for i, row in enumerate(rows):
            goal = None if given is None else given[i : i + 1]
            logits = model(row.inputs[None], goal=goal).logits[0]
            wanted = F.cross_entropy(logits, row.targets, reduction="none")
            torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-5)
    parts = [measures.scored(found, rows, name) for name in ("first", "second")]
    words = torch.stack(
        [n[row.first | row.second].sum() for n, row in zip(found, rows, strict=True)]
    )
    torch.testing.assert_close(sum(parts), words.double())


def test_achievement_by_hand():
    goals, texts = ["songs", "rain", "bread"], ["A song of rain.", "It rains.", "Nothing."]
    cosines = torch.tensor([[0.5, 0.1, 0.3], [0.9, 0.2, 0.3], [0.1, 0.1, 0.3]])  # goals, texts
    found = measures.achievement(goals, texts, cosines)
    assert found["true"][0] == pytest.approx(2 / 3)
    assert found["false"][0] == pytest.approx(1 / 6)  # of rain the first text speaks, too
    assert found["auc"][0] == pytest.approx((0.75 + 1 + 0.5) / 3)
    assert found["auc of vectors"][0] == pytest.approx((0.5 + 1 + 0.5) / 3)


@torch.no_grad()
def test_continuation_is_sampling_from_whole_passes_with_the_goal():
    """Against reading everything again for each token; control tokens have no chance."""
    model, prompt = make_model("agency"), draw_ids(3)
    goal = torch.randn(1, model.config.dim, generator=torch.Generator().manual_seed(0))
    for seed in range(8):
        ids, generator = prompt[None], torch.Generator().manual_seed(seed)
        for _ in range(9):
            logits = model(ids, goal=goal).logits[:, -1, len(SPECIAL_TOKENS) :]
            chances = F.pad((logits / measures.SAMPLING.temperature).softmax(-1), (5, 0))
            ids = torch.cat((ids, inverted(chances.log(), generator)), dim=1)
        assert measures.continuation(model, prompt, goal, seed, 9).tolist() == ids[0, 3:].tolist()
    assert len(SPECIAL_TOKENS) == 5


@torch.no_grad()
def test_a_reply_speaks_of_a_goal_in_any_form_of_its_words():
    goals = ("music and bands", "cats")
    texts = (
        ["A Band played."] * 4 + ["I like the sea."] + ["My cat's tail"] * 3 + ["music, cats"] * 2
    )
    own, others = guided.spoken_of(texts, goals)
    assert own.tolist() == [1, 1, 1, 1, 0] + [1] * 5
    assert others.tolist() == [0] * 8 + [1, 1]


def test_nearness_is_own_cosine_minus_that_of_others_by_hand():
    goals, centre = torch.eye(3)[:2], torch.zeros(3)
    texts = torch.stack([goals[0]] * 5 + [goals[0] + goals[1]] * 5)
    near = guided.nearness(texts, goals, centre)
    assert near.tolist() == pytest.approx([1.0] * 5 + [0.0] * 5, abs=1e-6)
    moved = torch.tensor([5.0, -3.0, 2.0])
    assert guided.nearness(texts + moved, goals + moved, moved) == pytest.approx(near, abs=1e-6)


def test_repeated_is_the_share_of_4_grams_seen_before():
    assert guided.repeated("a b c d a b c d") == pytest.approx(1 / 5)
    assert guided.repeated("a b c") == 0


def test_generated_compares_texts_with_their_own_goals():
    """The rise of each prompt's own goal, by hand; the loop is the same for another's."""
    model, rows = make_model("agency"), make_rows(9, 10, 11)
    asked = measures.asked_rows(rows, model.config.max_seq_len, 20, 6)
    found = measures.generated(model, asked, 3, 6)
    own, another = found["own"], found["another's"]
    vectors = conversations.goal_vectors(model.embedding.weight, rows, "reply")
    partner = conversations.others(3, torch.Generator().manual_seed(3))
    for found, wanted in ((own, vectors), (another, vectors[partner])):
        rises = []
        for i, row in enumerate(rows):
            goal = wanted[i : i + 1]
            for given, sign in ((goal, 1), (None, -1)):
                given = given if given is None else measures.TRUST * given
                ids = measures.continuation(model, row.inputs[:5], given, 3 + i, 6)
                text = F.rms_norm(model.embedding.weight.detach()[ids], (32,)).mean(0)
                rises.append(sign * F.cosine_similarity(text, goal[0], dim=0).item())
        assert found["rise"][0] == pytest.approx(sum(rises) / 3, abs=1e-5)
        assert found["rows"] == 3


# --- long context


@torch.no_grad()
def test_state_bytes_and_what_grows():
    """The full cache grows with the context, by its own arithmetic; the windowed state does not."""
    base = make_model("temporal_smf", "kuramoto", "coherence_gate").config
    configs = long_context.variants(base, window=4, longest=100)
    assert [c.attention_window for c in configs.values()] == [0, 4, 4]
    assert [c.temporal_smf.enabled for c in configs.values()] == [False, True, True]
    sizes = {}
    for name, config in configs.items():
        model = ResoLLMModel(config).eval()
        state = [long_context.read(model, n, seed=0, chunk=5) for n in (20, 60)]
        assert [s.length for s in state] == [20, 60]
        after = [long_context.greedy_steps(model, s, 1)[1] for s in state]
        assert [s.length for s in after] == [21, 61]  # what is measured starts one step later
        sizes[name] = [long_context.state_bytes(s) for s in after]
    config = configs["full"]
    per_token = 4 * 2 * config.num_layers * config.dim  # float32 keys and values
    assert sizes["full"][1] - sizes["full"][0] == 40 * per_token
    assert sizes["full"][0] >= 20 * per_token
    for name in ("window + memory", "window, all"):
        assert sizes[name][0] == sizes[name][1] > 2 * 4 * per_token


def test_a_shared_storage_counts_once():
    whole = torch.zeros(10)
    assert long_context.state_bytes((whole[:2], (whole[5:], None, 3))) == 40


@torch.no_grad()
def test_carried_nats_read_a_document_in_one_pass():
    """In chunks with the state carried, as in one long pass; longer than max_seq_len, too."""
    model = make_model("temporal_smf", attention_window=4)
    split = make_split(30, 7)
    found = long_context.carried_nats(model, split, chunk=6)
    for nats, ids in zip(found, heldout.document_ids(split), strict=True):
        ids = torch.from_numpy(ids)[None]
        logits = model(ids[:, :-1], model.init_state()).logits[0]
        wanted = F.cross_entropy(logits, ids[0, 1:], reduction="sum")
        assert nats.item() == pytest.approx(wanted.item(), rel=1e-4)

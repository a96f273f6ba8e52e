"""The Phase-Slip task: its measures, writers and scorers against slow twins."""

import hashlib
import json
import math
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")  # one of the two kinds of writers

from conftest import save_tiny_checkpoint, save_tiny_llama

import evaluate
from benchmarks.kit import records
from benchmarks.kit.pretrained import PretrainedWriter
from benchmarks.kit.writers import ResoWriter, Text
from benchmarks.tasks import phase_slip
from benchmarks.tasks.phase_slip import arms, measures, protocols, statistics
from entropy_core.information import entropy_nats
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.inference import ResoLLMInference
from reso_llm.tokenizer import SPECIAL_TOKENS

STAGES = ("kuramoto", "temporal_smf")
GREEDY = arms.ARMS[arms.GREEDY]
WORDS = ["the", "method", "is", "a", "process", "that", "lab", "door", "hello", "and", "secret"]


@pytest.fixture
def engine(tiny_model, byte_tokenizer):
    model = tiny_model(stages=STAGES, vocab_size=261, max_seq_len=128)
    return ResoLLMInference(model, byte_tokenizer, model.config)


@pytest.fixture
def checkpoint(engine, byte_tokenizer, tmp_path):
    """A directory that `ResoWriter` can load."""
    return save_tiny_checkpoint(tmp_path / "tiny", engine.model, byte_tokenizer)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory that `PretrainedWriter` can load: tiny, random, of words; no chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    raw = Tokenizer(
        models.WordLevel(
            {w: i for i, w in enumerate(["<end>", "<unk>", *WORDS])}, unk_token="<unk>"
        )
    )
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(path)
    save_tiny_llama(path, len(WORDS) + 2, 2, 128)
    return str(path)


def text_of(ids, slips=()):
    return Text(tuple(ids), "", tuple(slips))


# --- measures of a text


def test_repeated_grams_are_those_seen_before():
    ids = torch.randint(3, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for n in (2, 4):
        seen, again = [], 0
        for i in range(60 - n + 1):
            again += ids[i : i + n] in seen
            seen.append(ids[i : i + n])
        assert 0 < again < 60 - n + 1
        assert measures.repeated_grams(ids, n) == (again, 60 - n + 1)
    assert measures.repeated_grams([1, 2, 3], 4) == (0, 0)


def test_looping_waits_for_a_window_that_repeats_itself():
    """40 new tokens, then a period of 5: true once 12 tokens equal those 5 before them."""
    loop = [*range(40), *[100, 101, 102, 103, 104] * 5]
    expected = [t >= 40 + 5 + 12 - 1 for t in range(65)]
    assert measures.looping(loop) == expected
    assert not any(measures.looping(range(200)))
    assert sum(measures.looping([*range(64), *range(64)])) == 64 - 11
    assert not any(measures.looping([*range(65), *range(65)]))


def test_published_diversity():
    assert measures.published_diversity("The cat. the cat, THE dog 3.5") == 4 / 7
    assert measures.published_diversity("") == 0


def test_measures_of_an_escape():
    stuck, free = (
        text_of([7] * 20),
        text_of(range(20), [(2, "spike"), (7, "loop"), (12, "spike"), (18, "spike")]),
    )
    found = measures.measures_of(free, "a prompt", stuck)
    assert found["escaped"] == (True, True)
    assert found["ends"] == (False, 1)
    assert found["distinct-2"] == (19, 19)
    assert found["rep-4"] == (0, 17)
    assert found["as greedy"] == (False, 1)
    assert found["diversity"] == (1, 1)
    assert [found[c] for c in arms.CAUSES] == [(3, 20), (0, 20), (1, 20)]
    found = measures.measures_of(stuck, "", stuck)
    assert found["escaped"] == (False, True)
    assert found["looping"] == (8, 20)
    assert found["as greedy"] == (True, 1)
    for text in (stuck, free):  # where greedy decoding is free there is nothing to escape
        assert measures.measures_of(text, "", free)["escaped"] == (False, False)
    out_again = measures.measures_of(text_of([7] * 20 + [8]), "", stuck)
    assert out_again["ends"] == (False, 1)
    assert out_again["looping"] == (8, 21)
    assert out_again["escaped"] == (True, True)
    assert measures.measures_of(text_of([]), "", free)["ends"] == (False, 1)


def test_entropies_inside_loops():
    """Each token again by hand: in a loop if 12 tokens equal those of one period before."""
    generator = torch.Generator().manual_seed(1)
    rows = [[*range(9), *[3, 1, 4] * 9], [*range(30)], [*[8, 9] * 20, 1, 2]]
    entropies = [(5 * torch.rand(len(row), generator=generator)).tolist() for row in rows]
    expected = {True: [], False: []}
    for row, values in zip(rows, entropies, strict=True):
        for i, value in enumerate(values):
            looped = any(
                i + 1 >= 12 + p and row[i - 11 : i + 1] == row[i - 11 - p : i + 1 - p]
                for p in range(1, 65)
            )
            expected[looped].append(value)
    found = measures.loop_entropies(
        [Text(tuple(r), "", (), tuple(e)) for r, e in zip(rows, entropies, strict=True)]
    )
    for name, values in (("inside", expected[True]), ("outside", expected[False])):
        assert found[name]["tokens"] == len(values) > 10
        assert found[name]["mean_nats"] == pytest.approx(sum(values) / len(values), abs=1e-4)
        assert found[name]["spike"] == sum(v > 3.5 for v in values) / len(values) > 0
        assert found[name]["unsure"] == sum(v >= 0.05 for v in values) / len(values)
        assert found[name]["quartiles_nats"][1] == pytest.approx(np.median(values), abs=1e-4)
    assert measures.loop_entropies([Text((1, 2), "", (), (0.5, 0.5))])["inside"] == {"tokens": 0}


# --- scorers


def slow_nats(model, context, ids):
    """One unpadded pass, a token at a time."""
    total, row = 0.0, [*context, *ids]
    with torch.no_grad():
        log_p = model(torch.tensor([row])).logits[0].log_softmax(-1)
    for t in range(len(context), len(row)):
        total -= log_p[t - 1, row[t]].item()
    return total


def test_continuation_nats_of_padded_rows(tiny_model):
    """Only the continuation counts; an equal pair is scored once; an empty one costs nothing."""
    model, rows = tiny_model(), []

    def logits(ids):
        rows.append(len(ids))
        return model(ids).logits

    pairs = [([5, 9], [10, 11, 12]), ([5], [6]), ([5, 9], [10, 11, 12]), ([7, 8, 9], [])]
    found = measures.continuation_nats(logits, pairs, batch_size=2)
    assert found == pytest.approx([slow_nats(model, *pair) for pair in pairs], rel=1e-5)
    assert rows == [2, 1]


def test_a_scorer_reads_a_directory_of_transformers(llama):
    scorer = PretrainedWriter(llama)
    assert scorer.encode("door the what") == [9, 2, 1]
    (found,) = measures.continuation_nats(scorer.logits, [([3, 2], [5, 4])], 4)
    assert found == pytest.approx(slow_nats(scorer.model, [3, 2], [5, 4]), rel=1e-5)


class Flat:
    """A scorer to whom all 8 tokens are alike."""

    score_rows = 2

    def logits(self, ids):
        return torch.zeros(*ids.shape, 8)


def test_scored_are_nats_and_bytes():
    rows = [[Text((5,), "\u00e9"), Text((6, 7), "ab")], [Text((), ""), Text((5,), "abc")]]
    pairs = [([1], text.ids) for row in rows for text in row]
    found = protocols.scored(rows, pairs, Flat())
    assert found[0] == pytest.approx(np.array([[1, 2], [0, 1]]) * math.log(8))
    assert found[1].tolist() == [[2, 2], [0, 3]]


# --- intervals and the curve


def test_measures_are_ratios_over_prompts_and_seeds_within_them():
    """Prompts that differ, seeds that do not: draws are means of 2 of 2 prompts' values."""
    pairs = [[[2.0] * 3, [6.0] * 3], [[2.0] * 3, [2.0] * 3]]
    drawn = statistics.drawn_measures([{"arm": "a", "pairs": {"rep-4": pairs}}])
    values = drawn["a"]["rep-4"]
    assert values[0] == 2
    assert set(values[1:].tolist()) == {1.0, 2.0, 3.0}
    assert np.mean(values[1:] == 2) == pytest.approx(0.5, abs=0.05)
    pairs = [[[0.0, 1.0]], [[1.0, 1.0]]]
    drawn = statistics.drawn_measures([{"arm": "a", "pairs": {"rep-4": pairs}}])
    assert set(drawn["a"]["rep-4"].tolist()) == {0.0, 0.5, 1.0}


def test_on_curve_is_linear_between_points_in_any_order():
    x = np.array([1.5, 0.5, 3.1, 2.0])
    points = np.tile([2.0, 1.0, 3.0], (4, 1))
    found = statistics.on_curve(x, points, np.tile([10.0, 0.0, 40.0], (4, 1)))
    assert found[[0, 3]].tolist() == [5.0, 10.0]
    assert np.isnan(found[1:3]).all()


def test_matched_takes_the_curve_at_the_arms_own_nats():
    def arm(nats, repetition):
        return {"own": np.full(3, nats), "rep-4": np.full(3, repetition)}

    drawn = {"greedy": arm(0.5, 0.4), arms.CURVE[0.2]: arm(0.7, 0.2), "x": arm(0.6, 0.1)}
    found = statistics.matched(drawn, "x", "own")
    assert found["rep-4 - curve"] == pytest.approx([-0.2] * 3)
    assert found["temperature"] == pytest.approx([0.1] * 3)
    assert found["inside"] == 1
    far = statistics.matched({**drawn, "x": arm(0.9, 0.1)}, "x", "own")
    assert far == {"rep-4 - curve": None, "temperature": None, "inside": 0}


# --- texts


def slow_greedy(model, ids, length, forbidden):
    """Greedy ids and entropies, each from the whole text read again."""
    row, entropies = list(ids), []
    with torch.inference_mode():
        for _ in range(length):
            scores = model(torch.tensor([row])).logits[0, -1].clone()
            scores[list(forbidden)] = -torch.inf
            entropies.append(entropy_nats(scores).item())
            row.append(scores.argmax().item())
    return tuple(row[len(ids) :]), entropies


def test_our_greedy_text_is_the_models(checkpoint):
    writer = ResoWriter(checkpoint)
    prompts = arms.PROMPTS[:3]
    found = writer.write(prompts, range(3), GREEDY, 12)
    forbidden = range(len(SPECIAL_TOKENS))
    for prompt, text in zip(prompts, found, strict=True):
        ids, entropies = slow_greedy(writer.engine.model, writer.prompt_ids(prompt), 12, forbidden)
        assert text.ids == ids
        assert text.entropies == pytest.approx(entropies, abs=1e-4)
        assert text.text == writer.engine.tokenizer.decode(list(ids))
        assert text.slips == ()
    with pytest.raises(ValueError, match="exceed the context 128"):
        writer.write(prompts, range(3), GREEDY, 128)


def test_pretrained_greedy_text_is_the_models(llama):
    """Prompts of three lengths in one batch, padded; no special token, although some are likely."""
    writer = PretrainedWriter(llama)
    assert writer.ends == [0, 1]
    prompts = ("the secret", "hello", (("user", "is that the door and the lab?"),))
    found = writer.write(prompts, range(3), GREEDY, 12)
    for prompt, text in zip(prompts, found, strict=True):
        ids, entropies = slow_greedy(writer.model, writer.prompt_ids(prompt), 12, writer.ends)
        assert text.ids == ids
        assert text.entropies == pytest.approx(entropies, abs=1e-4)
        assert text.text.split() == [WORDS[i - 2] for i in ids]
    hot = writer.write(["the"] * 20, range(20), {"temperature": 1e4}, 20)
    assert len(hot) == 20
    assert {len(text.ids) for text in hot} == {20}
    assert {i for text in hot for i in text.ids} == set(range(2, len(WORDS) + 2))
    few = writer.write(["the"] * 8, range(8), {"temperature": 1e4, "top_k": 1}, 12)
    assert {text.ids for text in few} == {writer.write(["the"], [0], GREEDY, 12)[0].ids}
    assert "generate" not in vars(writer.model)
    with torch.inference_mode():
        assert writer.logits(torch.tensor([[2, 3]])).isfinite().all()  # all is put back


@pytest.mark.parametrize("kind", ["ours", "pretrained"])
def test_slips_are_of_the_seed(kind, checkpoint, llama):
    """A row's text is that of its seed, in any batch; without effect it is the greedy one."""
    writer = ResoWriter(checkpoint) if kind == "ours" else PretrainedWriter(llama)
    arm = arms.slip(stale_steps=1, cooldown_steps=0, confident_nats=0.0)
    prompt = "the door"
    before = torch.random.get_rng_state()
    some = writer.write([prompt] * 4, [7, 3, 4, 5], arm, 24)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len({text.ids for text in some}) > 1
    for seed, text in zip([7, 3, 4, 5], some, strict=True):
        assert writer.write([prompt], [seed], arm, 24)[0].ids == text.ids
        assert {cause for _, cause in text.slips} <= {"spike", "stale"}
        steps = [step for step, _ in text.slips]
        assert steps == sorted(set(steps))
        assert steps[0] <= 1
        assert steps[-1] >= 22
    inert = arms.slip(slip_temperature=None, noise=CacheNoise(scale=0.0), stale_steps=1)
    (still,) = writer.write([prompt], [3], inert, 24)
    assert still.ids == writer.write([prompt], [0], GREEDY, 24)[0].ids
    assert still.slips
    noisy = writer.write([prompt], [3], arms.noise_only(3.0), 24)[0]
    assert noisy.ids != still.ids


def test_sampling_repeats_with_its_seeds(llama):
    writer, arm = PretrainedWriter(llama), {"temperature": 1.0}
    first, second = (writer.write(["the"] * 3, [4, 5, 6], arm, 12) for _ in range(2))
    assert first == second
    assert first != writer.write(["the"] * 3, [5, 6, 7], arm, 12)


def test_a_chat_template_is_used_where_there_is_one(llama):
    writer, turn = PretrainedWriter(llama), (("user", "hello lab"),)
    assert writer.prompt_ids(turn) == writer.encode("hello lab")
    writer.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} door{% endfor %} the"
    assert writer.prompt_ids(turn) == writer.encode("hello lab door the")
    assert writer.prompt_ids("hello") == writer.encode("hello")


def test_weights_are_named_by_their_hash(tmp_path, llama, monkeypatch):
    for name, body in (("model-2.safetensors", b"b" * 2_000_000), ("model-1.safetensors", b"a")):
        (tmp_path / name).write_bytes(body)
    (tmp_path / "optimizer.safetensors").write_bytes(b"c")
    expected = hashlib.sha256(b"a" + b"b" * 2_000_000).hexdigest()[:16]
    assert records.weights_hash(tmp_path) == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected model"):
        records.weights_hash(tmp_path / "empty")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, why in (("nobody/nothing-here", "no directory"), ("a b", "neither a directory")):
        with pytest.raises(ValueError, match=why):
            PretrainedWriter(name)


def test_texts_of_an_arm_come_back_by_prompt_and_seed():
    """Every row has a seed of its own; the greedy text is written once for all."""
    asked = []

    class Writer:
        def write(self, prompts, seeds, arm, length):
            asked.extend(seeds)
            return [Text((seed,), prompt) for prompt, seed in zip(prompts, seeds, strict=True)]

    plan = protocols.Plan(["greedy"], [2, 5], 1, prompts=("a", "b", "c"))
    found = protocols.arm_texts(Writer(), arms.PUBLISHED, plan)
    assert found == [
        [Text((6,), "a"), Text((15,), "a")],
        [Text((7,), "b"), Text((16,), "b")],
        [Text((8,), "c"), Text((17,), "c")],
    ]  # fmt: skip
    assert asked == [6, 7, 8, 15, 16, 17]  # in step, and consecutive where seeds are
    greedy = protocols.arm_texts(Writer(), arms.GREEDY, plan)
    assert [[text.text for text in row] for row in greedy] == [["a"] * 2, ["b"] * 2, ["c"] * 2]
    assert len(asked) == 9


class Echo(Flat):
    """Writes one token and as many words as its seed; reads text as single tokens."""

    name, weights = "echo", "0"

    def write(self, prompts, seeds, arm, length):
        return [Text((seed,), " a" * seed) for seed in seeds]

    def prompt_ids(self, prompt):
        return [1, 2]

    def encode(self, text):
        return [min(len(text), 7)] * 3


def test_the_scorer_reads_the_first_seeds():
    """Seeds 1 and 2 of two prompts draw from 2, 3 and 4, 5: half the bytes of the texts."""
    plan = protocols.Plan([], [1, 2], 1, prompts=("a", "b"))
    greedy = [[Text((0,), "")] * 2] * 2
    row = protocols.strict(Echo(), Echo(), arms.PUBLISHED, plan, lambda: greedy)
    assert row["pairs"]["own"][1] == [[4, 8], [6, 10]]
    assert row["pairs"]["outside"][1] == [[4, 0], [6, 0]]
    nats = round(3 * math.log(8), 3)
    assert row["pairs"]["outside"][0] == [[nats, 0], [nats, 0]]
    assert row["values"]["outside"] == pytest.approx(6 * math.log(8) / 10, abs=1e-4)
    assert row["values"]["own"] == pytest.approx(4 * math.log(8) / 28, abs=1e-4)
    assert row["values"]["rep-4"] is None
    rounds = protocols.published(Echo(), arms.PUBLISHED, plan._replace(rounds=2))
    assert rounds["diversity"] == [1, 7 / 8]  # the word is one of the prompt's
    alone = protocols.strict(Echo(), None, arms.PUBLISHED, plan, lambda: greedy)
    assert "outside" not in alone["values"]


# --- the task


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "phase-slip", *arguments])
    evaluate.main()
    return capsys.readouterr().out


def test_quick_study_of_our_checkpoint(checkpoint, llama, monkeypatch, capsys, tmp_path):
    """Every protocol, JSON alone on stdout, a figure; the text is of the rows as they are read."""
    png = tmp_path / "slip.png"
    asked = ["--checkpoint", checkpoint, "--scorer", llama, "--quick"]
    out = call(monkeypatch, capsys, *asked, "--json", "-", "--plot", str(png))
    rows = json.loads(out)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert [row["protocol"] for row in rows] == [
        *["published"] * 3, *["breaker"] * 3, "loops", *["strict"] * 3, *["rivals"] * 3
    ]  # fmt: skip
    assert {(row["model"], row["weights"]) for row in rows} == {
        ("tiny", records.weights_hash(checkpoint))
    }
    assert str(tmp_path) not in out
    strict = [row for row in rows if row["protocol"] == "strict"]
    assert [row["arm"] for row in strict] == [*arms.QUICK]
    assert strict[0]["values"]["as greedy"] == 1
    assert strict[0]["values"]["spike"] == 0
    assert strict[2]["values"]["spike"] + strict[2]["values"]["stale"] > 0
    assert np.shape(strict[1]["pairs"]["rep-4"]) == (2, 2, 2)
    outside = np.array(strict[1]["pairs"]["outside"])
    assert (outside[:, :, 0] > 0).all()
    assert not outside[:, :, 1].any()
    for row in strict:
        nats, size = np.array(row["pairs"]["own"]).sum((1, 2))
        assert row["values"]["own"] == pytest.approx(nats / size, rel=1e-3)
    table = phase_slip.text(rows)
    assert "Outside: tiny-llama, 1 seeds." in table
    for row in strict:
        assert f"| {row['arm']} | " in table
    assert f"{rows[0]['diversity'][0]:.2f}" in table


def test_quick_study_of_a_pretrained_model(llama, monkeypatch, capsys):
    out = call(monkeypatch, capsys, "--model", llama, "--quick", "--seeds", "4", "5")
    assert "### tiny-llama (weights" in out
    for words in ("Published protocol", "Strict protocol", "Greedy texts", "secret lab"):
        assert words in out
    for wrong in (["--model", llama, "--checkpoint", "x"], ["--scored-seeds", "0"]):
        with pytest.raises(ValueError, match="expected"):
            call(monkeypatch, capsys, *wrong, "--quick")


def test_a_study_goes_on_where_it_was(checkpoint, monkeypatch, capsys, results):
    """Rows are written as they come; none is measured twice; a missing one comes out the same."""
    quick = phase_slip._plan
    monkeypatch.setattr(
        phase_slip, "_plan", lambda options: quick(type(options)(**vars(options) | {"quick": True}))
    )
    asked = ["--checkpoint", checkpoint, "--record"]
    first = call(monkeypatch, capsys, *asked)
    file = results / "phase_slip.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 13
    missing = [json.loads(lines[i]) for i in (1, 12)]
    file.write_text("\n".join([lines[0], *lines[2:12]]) + "\n")
    assert call(monkeypatch, capsys, *asked) == first
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(again) == 13
    for row in (*missing, *again):
        assert row.pop("environment")["command"].endswith("--record")
    assert again[11:] == missing
    monkeypatch.setattr(ResoWriter, "write", None)
    assert call(monkeypatch, capsys, *asked) == first
    for kept in range(13):  # the report renders what there is
        one = [json.loads(lines[kept])]
        assert phase_slip.text(one)
        phase_slip.figure(one)
    assert phase_slip.text([]) == ""
    phase_slip.figure([])


def test_tables_of_given_rows():
    """Sums by hand: the square, the distance to the curve, slips for 100 tokens."""

    def row(arm, repeats, nats, spikes=0.0):
        values = {"rep-4": repeats / 10, "own": nats / 5, "escaped": None}
        values |= {
            name: 0.5 for name in ("distinct-2", "looping", "ends", "as greedy", "diversity")
        }
        pairs = {"rep-4": [[[repeats]], [[10]]], "own": [[[nats]], [[5]]]}
        return {
            "model": "m", "weights": "w", "protocol": "strict", "arm": arm, "tokens": 100,
            "seeds": [0], "scorer": None, "scored_seeds": None, "pairs": pairs,
            "values": values | {"spike": spikes, "stale": 0.013, "loop": 0.0},
        }  # fmt: skip

    rows = [
        row(arms.GREEDY, 8, 1), row(arms.CURVE[1.0], 0, 5), row(arms.PUBLISHED, 5, 3, 0.055),
        row(arms.HEAT, 6, 3), row(arms.NOISE, 7, 1),
    ]  # fmt: skip
    table = phase_slip.text(rows)
    assert "| 5.5, 1.3, 0.0 |" in table
    assert "| greedy | 0.800, - | 0.700, - |" in table
    assert "| T 1.5 at slips | 0.600, - | 0.500, - |" in table
    expected = "| slip, published | 0.500 [0.500, 0.500] | 0.100 [0.100, 0.100] | 100% |"
    assert expected in table
    for missing in (0, 2, 3, 4):
        assert "T 1.5 at slips" not in phase_slip.text(rows[:missing] + rows[missing + 1 :])
    for axes in phase_slip.figure(rows).axes:
        assert axes.get_xlabel()

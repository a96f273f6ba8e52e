"""lm-evaluation-harness scores a checkpoint as evaluate.py does, by both routes."""
# ruff: noqa: F401, F811 (imported fixtures)

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from ecosystem.tiny_export import MARKS, exported, run

from reso_llm.data.prepare import tokenise_all
from reso_llm.inference import ResoLLMInference
from reso_llm.training.evaluation import score_split

pytestmark = MARKS
SHORT = ["The rain in Spain stays mainly.", "the rain! the rain! the rain!", "Ωmega und naïve 12"]
LONG = [*SHORT, "to and fro, to and fro, and on it goes; " * 8]  # five contexts
TASK = """
task: reso_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


@pytest.fixture
def lm(run):
    from reso_llm.lm_eval import ResoLM

    return ResoLM(run)


def ours(run, data):
    engine = ResoLLMInference.from_pretrained(run)
    return score_split(engine.model, tokenise_all(str(data), engine.tokenizer)).bits_per_byte


def harness(monkeypatch, tmp_path, texts, run, model, arguments):
    """Bits per byte of texts by our command line, and by `evaluate.py lm`."""
    from reso_llm.lm_eval import cli_evaluate

    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "task.yaml").write_text(TASK.format(name="rows", data=data))
    monkeypatch.setenv("RESO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    command = [
        "lm_eval",
        "run",
        "--model",
        model,
        "--model_args",
        arguments,
        "--tasks",
        "reso_rows",
    ]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--device", "cpu"])
    cli_evaluate()
    (found,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(found.read_text())["results"]["reso_rows"]
    return results["bits_per_byte,none"], ours(run, data)


def test_our_model_of_the_harness(monkeypatch, tmp_path, run):
    """Long texts too: windows know what was read before."""
    arguments = f"pretrained={run}"
    got, expected = harness(monkeypatch, tmp_path, LONG, run, "reso", arguments)
    assert got == pytest.approx(expected, abs=1e-4)


def test_the_exported_model_of_the_harness(monkeypatch, tmp_path, run, exported):
    """Texts within a context: the harness cuts others into windows that know nothing."""
    arguments = f"pretrained={exported},trust_remote_code=True,add_bos_token=False,dtype=float32"
    got, expected = harness(monkeypatch, tmp_path, SHORT, run, "hf", arguments)
    assert got == pytest.approx(expected, abs=1e-4)


def requests(*arguments):
    return [SimpleNamespace(args=args, arguments=args) for args in arguments]


@pytest.mark.parametrize("cut", [10, 50])
def test_parts_of_a_text_add_up_to_it(lm, cut):
    """Guards a second <|bos|>, and one that is left out; the first part fits the context."""
    context, rest = LONG[-1][:cut], LONG[-1][cut:]
    (whole,) = lm.loglikelihood_rolling(requests((LONG[-1],)), disable_tqdm=True)
    (first, _), (second, _) = lm.loglikelihood(
        requests(("", context), (context, rest)), disable_tqdm=True
    )
    assert first + second == pytest.approx(whole, rel=1e-5)


def test_greedy_is_what_the_model_holds_most_probable(lm):
    context, ids = lm.tok_encode("The rain"), []
    for _ in range(4):
        logits = lm.engine.model(torch.tensor([[0, *context, *ids]])).logits[0, -1]
        ids.append(int(logits.argmax()))
    best, other = lm.score(context, ids), lm.score(context, [*ids[:-1], (ids[-1] + 1) % 261])
    assert (best.greedy, other.greedy) == (True, False)
    assert other.log_prob < best.log_prob < 0


def test_generation_ends_at_the_strings_of_the_task(lm):
    plain = lm.engine.generate("The rain", 20, temperature=0).text
    stop = plain[3]
    given = {"until": [stop], "max_gen_toks": 20, "do_sample": False}
    (text,) = lm.generate_until(requests(("The rain", given)), disable_tqdm=True)
    assert text == plain[: plain.index(stop)]
    sampled = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.0}
    same = [lm.generate_until(requests(("The rain", sampled)), disable_tqdm=True) for _ in range(2)]
    assert same[0] != same[1]  # each has a seed of its own


def test_a_chat_template_is_refused(lm):
    assert lm.chat_template(False) is None
    with pytest.raises(ValueError, match="plain text"):
        lm.chat_template(True)

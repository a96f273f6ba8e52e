"""The README that the project was created from: what it shows runs, on any weights.

Its snippets run as written but for the prefix `apps.`. The document is not part of the
repository: without it, beside the repository, the essential calls are tested alone.
"""

import io
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import FULL

from reso_llm.inference import ResoLLMInference
from reso_llm.session import agency
from run_core.checkpoint import save_directory

SEED = Path(__file__).resolve().parents[2] / "shared" / "seeds" / "reso_llm_v2_readme.md"
CLASSES = {"stable", "periodic", "chaotic", "divergent"}
FIELDS = (
    "text", "tokens_generated", "stability", "lyapunov", "entropy_trace", "lyapunov_trace",
    "temperature_trace", "coherence_trace", "goals_achieved", "attention_summary", "warnings",
    "generation_time_ms",
)  # fmt: skip


@pytest.fixture(scope="module")
def snippets():
    if not SEED.exists():
        pytest.skip("the seed README is not beside the repository")
    found = re.findall(r"```python\n(.*?)```", SEED.read_text(), re.DOTALL)
    assert len(found) == 11
    return [snippet.replace("from apps.reso_llm.", "from reso_llm.") for snippet in found]


@pytest.fixture
def no_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))


@pytest.fixture
def trained(tiny_model, byte_tokenizer, tmp_path, monkeypatch):
    """An engine from a checkpoint whose model was trained for a moment; it achieves every goal."""
    monkeypatch.setattr(agency, "share_said", lambda goal, text: 1.0)
    model = tiny_model(stages=FULL, vocab_size=261, max_seq_len=64).train()
    ids = torch.tensor([[0, *byte_tokenizer.encode("hello there, " * 4)]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    documents = {
        "config.json": model.config.to_dict(),
        "tokenizer.json": byte_tokenizer.to_json(),
        "training.json": {
            "tokenizer_fingerprint": byte_tokenizer.fingerprint,
        },
    }
    save_directory(tmp_path / "m", tensors={"model": model.state_dict()}, documents=documents)
    return ResoLLMInference.from_pretrained(tmp_path / "m")


def run(snippets, names):
    for snippet in snippets:
        exec(compile(snippet, str(SEED), "exec"), names)


def assert_real(result):
    """Every field that the README names says something."""
    assert all(hasattr(result, name) for name in FIELDS)
    assert isinstance(result.text, str)
    assert result.text
    assert result.stability in CLASSES
    assert isinstance(result.lyapunov, float)
    n = result.tokens_generated
    assert n == len(result.entropy_trace) == len(result.lyapunov_trace) > 1
    assert n == len(result.temperature_trace) == len(result.coherence_trace)
    assert all(h > 0 for h in result.entropy_trace)
    assert set(result.temperature_trace) == {0.8}
    assert all(0 <= r <= 1 for r in result.coherence_trace)
    assert len(set(result.coherence_trace)) > 1
    assert all(0 < focus.salience <= 1 for focus in result.attention_summary)
    assert all(focus.target.strip() for focus in result.attention_summary)
    assert 0 < result.generation_time_ms < math.inf


def test_every_snippet_runs_on_random_weights(snippets, no_input, capsys):
    names = {}
    run(snippets, names)
    assert_real(names["result"])
    assert names["result"].attention_summary
    assert len(names["results"]) == 2
    assert names["results"][0].token_ids == names["results"][1].token_ids
    assert len(names["model"].get_active_goals()) == 1
    shown = capsys.readouterr().out
    for piece in ("Stability: ", "Lyapunov: ", "Goals achieved: ", "Agent 1: ", "technical"):
        assert piece in shown


def test_the_snippets_run_on_a_trained_model(snippets, trained, no_input, capsys):
    """Those that do not make a model of their own, with the engine of a checkpoint."""
    names = {"engine": trained, "model": trained.model}
    usable = [snippet for snippet in snippets if "from reso_llm" not in snippet]
    assert len(usable) == 7
    run(usable, names)
    assert_real(names["result"])
    assert "Goals achieved: ('Provide a clear, beginner-friendly explanation',)" in (
        capsys.readouterr().out
    )


def test_the_essential_calls(trained, no_input, capsys):
    engine, model = trained, trained.model
    assert_real(engine.generate("hello", max_length=30, seed=0))
    engine.interactive_session(show_metrics=True)
    result = engine.generate_with_goal(
        prompt="hello", goal_description="be friendly", max_length=20, seed=0
    )
    assert result.goals_achieved == ("be friendly",)
    for strategy in ("parallel", "sequential", "consensus"):
        results = engine.generate_multi_agent(
            prompt="hello", other_agents=[engine], coordination_strategy=strategy, max_length=5
        )
        assert len(results) == 2
    goal = model.create_goal(description="be kind", goal_type="exploratory")
    assert model.get_active_goals() == (goal,)
    assert f"{goal.progress:.0%}" == "0%"
    foci = model.get_attention_foci()
    assert foci
    assert {focus.type for focus in foci} <= {"novelty", "relevance", "intensity"}
    model.bind_concept("mathematics", token_id=42)
    assert 0 <= model.get_stability() <= 1
    assert model.get_suggested_temperature(current_temp=0.7) > 0
    assert model.update_memory("Important context to remember", importance=1.0).time > 0
    assert model.recall("context")[0].moment.text.startswith("Important")

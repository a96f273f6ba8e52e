"""The stability calibration of a model of transformers, kept beside its weights."""

import pytest
import tiny_engine

from reso_llm.decoding.text_class import CLASSES
from reso_llm.hf.clean_texts import TEXTS, TOKENS, keep_calibration, stability_calibration
from reso_llm.hf.engine import HFEngine
from run_core.checkpoint import CheckpointError


def test_texts_are_many_long_and_unlike():
    assert len(TEXTS) >= 12
    assert min(len(text.split()) for text in TEXTS) >= 0.85 * TOKENS
    assert len({text.split()[0] for text in TEXTS}) >= 8


def test_a_calibration_is_kept_and_moves_the_temperature_by_default(tmp_path):
    model, tokenizer = tiny_engine.model(128), tiny_engine.tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert HFEngine.from_pretrained(str(tmp_path)).stability_calibration is None

    def encode(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    made = stability_calibration(model, encode)
    assert made == stability_calibration(model, encode)
    keep_calibration(tmp_path, made)
    engine = HFEngine.from_pretrained(str(tmp_path))
    assert engine.stability_calibration.surprise_nats == pytest.approx(made.surprise_nats)
    result = engine.generate("ab" * 20, 20, temperature=0.1, seed=0)
    assert result.stability in CLASSES
    assert engine.session.stability.calibration is engine.stability_calibration


def test_a_file_that_is_no_calibration_is_named(tmp_path):
    model, tokenizer = tiny_engine.model(), tiny_engine.tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "stability.json").write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match=r"stability.json has the unknown key a"):
        HFEngine.from_pretrained(str(tmp_path))

"""Export of a checkpoint to a directory that Hugging Face tools load.

    reso export hf RUN OUT

OUT holds weights, configuration, tokenizer with chat template, generation defaults, and the one
line `modeling_reso.py`, through which `trust_remote_code=True` finds the installed `reso_llm`.
"""

from pathlib import Path

from reso_llm.generation.context import unwritable
from reso_llm.generation.trained import load_trained
from reso_llm.hf.exported_tokenizer import hf_tokenizer
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from run_core.pretrained import no_progress_bars


def export(directory: str | Path, out: str | Path) -> Path:
    """Write the checkpoint, or the best one of a run, to the new directory `out`; its path.

    Raises as `load_trained` does, and ValueError for an `out` that holds something already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new directory")
    trained = load_trained(directory)
    save_exported(trained.model, trained.tokenizer, out)
    return out


def save_exported(model: ResoLLMModel, tokenizer: ResoTokenizer, out: Path) -> None:
    """Write a model and its tokenizer as transformers would save them; ValueError without those."""
    try:
        from transformers import GenerationConfig
    except ImportError:
        raise ValueError('an export needs transformers: pip install "reso-llm[hf]"') from None
    from reso_llm.hf.model import ResoConfig, ResoForCausalLM, table_shapes

    config = ResoConfig(
        reso=model.config.to_dict(),
        table_shapes=table_shapes(model),
        bos_token_id=tokenizer.bos_id,
        eos_token_id=list(tokenizer.end_ids),
        pad_token_id=tokenizer.bos_id,
    )
    exported = ResoForCausalLM(config)
    exported.network.load_state_dict(model.state_dict())
    exported.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_id,
        eos_token_id=list(tokenizer.end_ids),
        pad_token_id=tokenizer.bos_id,
        suppress_tokens=unwritable(tokenizer, model.config.vocab_size).tolist(),
    )
    with no_progress_bars():
        exported.save_pretrained(out)
    hf_tokenizer(tokenizer, model.config.max_seq_len).save_pretrained(out)

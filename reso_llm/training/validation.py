"""Reports of a run on its model: a score on held-out text and a sample of its text."""

from reso_llm.data.conversation import Message
from reso_llm.data.token_cache import Split
from reso_llm.generation.engine import Engine
from reso_llm.model import ResoLLMModel
from reso_llm.tokenizer import ResoTokenizer
from reso_llm.training.config import TrainConfig
from reso_llm.training.evaluation import LanguageModelScore, head_of, score_split
from run_core.run import Report
from run_core.signals import Abandoned, StopRequests
from run_core.terminal import progress_bar


def quick_score(model: ResoLLMModel, split: Split, config: TrainConfig) -> LanguageModelScore:
    """The score on the first `validate_tokens` tokens of the held-out data."""
    return score_split(model, head_of(split, config.validate_tokens))


def sample(model: ResoLLMModel, tokenizer: ResoTokenizer, config: TrainConfig) -> str:
    """The reply of the model to `sample_prompt`, the same at every call; empty without one."""
    if not config.sample_prompt:
        return ""
    engine = Engine(model, tokenizer, config.model)
    prompt = [Message("user", config.sample_prompt)]
    result = engine.generate(prompt, config.sample_length, temperature=0.7, seed=0, metrics=False)
    model.train()
    return result.text


def final_score(
    model: ResoLLMModel, split: Split, stops: StopRequests, report: Report
) -> LanguageModelScore | None:
    """The score on all of the held-out data; None where a signal comes first."""
    report(f"scoring all {split.num_tokens:,} validation tokens")
    bar = progress_bar("scoring", total=split.num_tokens, unit="token", leave=False)
    try:
        with bar, stops.abandonable():
            return score_split(model, split, progress=bar.update)
    except Abandoned:
        report("not all of the validation data was scored; --resume does it")
        return None

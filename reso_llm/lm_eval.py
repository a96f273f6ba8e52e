"""A ResoLLM in EleutherAI's lm-evaluation-harness.

    python -m reso_llm.lm_eval run --model reso --model_args pretrained=RUN --tasks hellaswag
    python -m reso_llm.lm_eval run --model reso --tasks TASK --include_path FOLDER

The harness finds models by registration alone: this module registers "reso" and calls its command
line. A text is scored by the stateful protocol of `reso_llm.training.evaluation`: `<|bos|>` once,
every token once, long texts in overlapping windows that know what was read before. So the bits per
byte of a text are those of `evaluate.py lm`. Generation is the engine's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from reso_llm.data.windows import eval_windows
from reso_llm.inference import ResoLLMInference
from reso_llm.network import ResoState
from reso_llm.stages.echo import EchoState, TextCounts
from run_core.exits import run

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    reason = 'this needs lm-evaluation-harness: pip install "reso-llm[lm_eval]"'
    if __name__ == "__main__":
        raise SystemExit(f"error: {reason}") from None
    raise ImportError(reason) from error


class Score:
    """Sum of ln p over some tokens of a text, and whether each of them was the most probable."""

    def __init__(self) -> None:
        self.log_prob, self.greedy = 0.0, True

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Count targets (n,) predicted by logits (n,V)."""
        log_probs = logits.double().log_softmax(-1)
        self.log_prob += log_probs.gather(-1, targets[:, None]).sum().item()
        self.greedy = self.greedy and bool((logits.argmax(-1) == targets).all())


@register_model("reso")
class ResoLM(TemplateLM):
    """The model "reso". pretrained: a run or checkpoint, by default the shipped one.

    max_gen_toks: new tokens of a task that names no number. seed: of the first sampled text; the
    next ones count on from it. Raises as `ResoLLMInference.from_pretrained` does.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        device: str | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """The harness gives both batch sizes to every model; here texts are read one by one."""
        super().__init__()
        if not device or not torch.cuda.is_available():  # unasked, the harness says cuda:0
            device = "cpu"
        self.engine = ResoLLMInference.from_pretrained(pretrained, device)
        self.max_gen_toks, self.next_seed = max_gen_toks, seed

    @property
    def eot_token_id(self) -> int:
        """The end of a turn."""
        return self.engine.tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        """The token before the first of every text."""
        return self.engine.tokenizer.bos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text, never with control tokens: `score` sets the only `<|bos|>`."""
        return self.engine.tokenizer.encode(string)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """None; ValueError where one is asked for, as a rendered chat is text for `tok_encode`."""
        if chat_template:
            raise ValueError("--apply_chat_template: this model reads the tasks as plain text")
        return None

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list:
        """ln p of each whole text."""
        texts = [request.args[0] for request in requests]
        return [
            self.score([], self.tok_encode(text)).log_prob
            for text in tqdm(texts, desc="scoring", disable=disable_tqdm)
        ]

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """ln p of each continuation after its context, and whether greedy decoding writes it."""
        results = []
        for texts, context, continuation in tqdm(requests, desc="scoring", disable=disable_tqdm):
            given = context[1:] if context[:1] == [self.prefix_token_id] else context
            score = self.score(given, continuation)
            results.append((score.log_prob, score.greedy))
            self.cache_hook.add_partial("loglikelihood", texts, results[-1])
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the engine writes after each text, up to the first of the strings that end it."""
        results = []
        for request in tqdm(requests, desc="writing", disable=disable_tqdm):
            context, given = request.args
            options = normalize_gen_kwargs(given, self.max_gen_toks)
            do_sample, until = options.pop("do_sample"), options.pop("until")
            temperature = options.pop("temperature", 1.0) if do_sample else 0.0
            options.pop("temperature", None)
            result = self.engine.generate(
                context,
                options.pop("max_gen_toks"),
                seed=self.next_seed,
                stop=[string for string in until if string],
                temperature=temperature,
                metrics=False,
                **options,
            )
            self.next_seed += 1
            results.append(result.text)
            self.cache_hook.add_partial("generate_until", request.args, result.text)
        return results

    @torch.inference_mode()
    def score(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        """Score a continuation of ids after `<|bos|>` and a context of ids."""
        model, device = self.engine.model, self.engine.device
        tokens = np.array([self.prefix_token_id, *context, *continuation], dtype=np.int64)
        first, size = 1 + len(context), model.config.max_seq_len
        score, read = Score(), TextCounts.empty(model.config.echo.max_order)
        for window in eval_windows(tokens, np.zeros(1, np.int64), size, size // 2):
            places = window.start + 1 + np.arange(len(window.inputs))
            counted = torch.from_numpy(window.scored & (places >= first))
            if not counted.any():
                continue
            for token in tokens[read.length : window.start].tolist():
                read = read.read(token)
            inputs = torch.from_numpy(window.inputs)[None].to(device)
            state = self._state_after(tokens[: window.start], read)
            logits = model(inputs, state).logits[0].cpu()
            score.add(logits[counted], torch.from_numpy(window.targets)[counted])
        return score

    def _state_after(self, tokens: np.ndarray, read: TextCounts) -> ResoState:
        """What a window knows of the tokens (n,) before it: the newest, and the echo's counts."""
        model = self.engine.model
        state, tail = model.init_state(), tokens[max(0, len(tokens) - model.tail_length) :]
        if len(tail):
            state.tail[0, -len(tail) :] = torch.from_numpy(tail)
        if model.echo is None:
            return state
        return state.with_stage("echo", EchoState((read,)))


if __name__ == "__main__":
    run(cli_evaluate)

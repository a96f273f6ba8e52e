"""The decoding controllers inside Hugging Face's `generate`, for any causal language model.

    with controlled(model, [PhaseSlip(), SRB()], seed=0) as control:
        ids = model.generate(**inputs, max_new_tokens=50)
    control.results[0].events

Who draws, with z the logits of a row, and P, W the processors of `generate` before and from its
temperature on:

    decision acts on the draw:  token ~ Row.draw(P(z)), every other score is -inf
    no decision does:           token ~ softmax(W(P(z))), or the argmax, by `generate` itself

Controllers measure z itself. A decision acts on the draw when it changes temperature or vocabulary,
adds noise to logits, or deepens; noise in the cache acts on the tokens after it. So without
decisions a row is plain `generate`, token for token, greedy or sampled.
Source: `custom_generate` of transformers 5; the rows are `reso_llm.decoding.row`.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reso_llm.config import StabilityConfig
from reso_llm.decoding.controllers import Controller, PhaseSlip
from reso_llm.decoding.row import Row, SignalOptions
from reso_llm.decoding.sampling import SamplingOptions
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.hf.rows import RowResult, Rows

SIGNALS = SignalOptions()
# Filters that `Row.draw` does not know, and values beside None at which they do nothing.
NEUTRAL = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
NEUTRAL |= {"top_h": None, "watermarking_config": None}


class Control:
    """What a `controlled` model was asked to do; `results` are the rows of its last `generate`.

    Every `generate` starts afresh: row i draws from seed + i, whatever was generated before.
    """

    def __init__(
        self,
        controllers: Sequence[Controller],
        seed: int,
        signals: SignalOptions,
        stability: StabilityConfig | None,
    ) -> None:
        self.controllers, self.seed = tuple(controllers), seed
        self.signals, self.stability = signals, stability
        self.results: tuple[RowResult, ...] = ()
        self._row(SamplingOptions(), 0, "cpu")  # a mistake shows here, not at the first token

    def _row(self, sampling: SamplingOptions, index: int, device: torch.device | str) -> Row:
        watched = self.stability is not None and self.stability.enabled
        return Row(
            sampling,
            self.controllers,
            seed=self.seed + index,
            device=device,
            signals=self.signals,
            monitor=StabilityMonitor(self.stability) if watched else None,
        )

    def decode(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs: Any,
    ) -> Any:
        """The loop of `generate` with rows in it, in the form that its `custom_generate` wants."""
        self.results = ()
        _check(model, input_ids, generation_config, kwargs)
        sampling, device = _sampling(generation_config), input_ids.device
        rows = Rows(
            model,
            [self._row(sampling, i, device) for i in range(len(input_ids))],
            input_ids,
            _split(logits_processor),
            generation_config,
            kwargs,
            min_prob=self.signals.min_prob,
            heats=any(isinstance(c, PhaseSlip) and c.noise.scale > 0 for c in self.controllers),
        )
        output = model._sample(
            input_ids,
            logits_processor=rows.process,
            stopping_criteria=_Criteria(stopping_criteria, rows),
            generation_config=generation_config,
            **kwargs,
        )
        self.results = rows.results()
        return output


@contextmanager
def controlled(
    model: nn.Module,
    controllers: Sequence[Controller],
    *,
    seed: int,
    signals: SignalOptions = SIGNALS,
    stability: StabilityConfig | None = None,
) -> Iterator[Control]:
    """Inside the block, `model.generate` has controllers; what they did is in `Control.results`.

    Works with whatever calls `model.generate`: a pipeline, a chat loop, an evaluation. The
    temperature that controllers see is that of the generation config, and 0 if it is greedy.
    `stability` switches on the monitor that StabilityTemperature follows. The `scores` of an output
    show a forced token as the only one possible. Prompts are padded on the left; padding gets no
    noise. Deepening reads a row again from its ids, so it does not see the noise in the cache.

    Raises ValueError for a model that is already controlled, and from `generate`: for beams,
    assisted decoding, encoder-decoder models and inputs_embeds; for filters a forced draw would
    ignore (typical_p, top_h, epsilon_cutoff, eta_cutoff, watermarking_config) and stop_strings; for
    noise in a cache out of reach (use_cache=False, quantized, offloaded, recurrent); for a batch
    without a padding token. Raises FloatingPointError for logits that are not finite.
    """
    if "generate" in vars(model):
        raise ValueError("the generate of this model is replaced already: end that first")
    control = Control(controllers, seed, signals, stability)
    model.generate = partial(_generate, model.generate, control)
    try:
        yield control
    finally:
        del model.generate


def _generate(
    original: Callable, control: Control, inputs=None, generation_config=None, **kwargs: Any
) -> Any:
    """`generate` with the loop of `control`, given what transformers keeps from such a loop."""
    for name in ("assistant_model", "custom_generate"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{name}: controllers need a loop of their own, token by token")
    if kwargs.get("stop_strings") is not None:
        raise ValueError(
            "stop_strings: expected stopping_criteria=[StopStringCriteria(tokenizer, strings)]"
        )
    kept = {n: kwargs[n] for n in ("streamer", "synced_gpus") if kwargs.get(n) is not None}
    loop = partial(control.decode, **kept)
    return original(inputs, generation_config, custom_generate=loop, **kwargs)


class _Criteria(list):
    """The criteria of `generate`, and after them the rows, which read each token and may stop."""

    def __init__(self, criteria: Any, rows: Rows) -> None:
        super().__init__(criteria)
        self.criteria, self.rows, self.max_length = criteria, rows, criteria.max_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self.rows.observe(input_ids, self.criteria(input_ids, scores, **kwargs))


def _check(model: nn.Module, input_ids: Tensor, config: Any, kwargs: dict) -> None:
    mode = config.get_generation_mode().value
    if mode not in ("greedy_search", "sample"):
        raise ValueError(f"{mode}: controllers work with greedy decoding and sampling")
    if model.config.is_encoder_decoder:
        raise ValueError("an encoder-decoder model: expected a causal language model")
    if kwargs.get("inputs_embeds") is not None or input_ids.shape[1] == 0:
        raise ValueError("controllers read token ids: expected input_ids of at least one token")
    if len(input_ids) > 1 and config.pad_token_id is None and config.eos_token_id is None:
        raise ValueError("rows end at different tokens: expected a pad_token_id")
    for name, neutral in NEUTRAL.items() if config.do_sample else ():
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            raise ValueError(f"{name} = {value!r}: expected {neutral}, unknown to controllers")


def _sampling(config: Any) -> SamplingOptions:
    """The generation config's sampler; its repetition penalty acts before, as a processor."""
    if not config.do_sample:
        return SamplingOptions(temperature=0.0)
    return SamplingOptions(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_k=config.top_k or 0,
        top_p=1.0 if config.top_p is None else config.top_p,
        min_p=config.min_p or 0.0,
    )


def _split(processors: Any) -> tuple[Any, Any]:
    """The processors of `generate` before its first warper (temperature, top-k, ...), and after."""
    from transformers.generation import logits_process as names

    warpers = (names.TemperatureLogitsWarper, names.TopKLogitsWarper, names.TopPLogitsWarper)
    warpers += (names.MinPLogitsWarper, names.LogitNormalization)
    is_warper = (i for i, p in enumerate(processors) if isinstance(p, warpers))
    first, kind = next(is_warper, len(processors)), type(processors)
    return kind(processors[:first]), kind(processors[first:])

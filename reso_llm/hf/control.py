"""The decoding controllers inside Hugging Face's `generate`, for any causal language model.

    with controlled(model, [PhaseSlip.published(), SRB()], seed=0, tokenizer=tokenizer) as control:
        ids = model.generate(**inputs, max_new_tokens=50)
    control.results[0].events

Let z be the logits of a row, S the sampler's processors in `generate` (temperature, top-k, top-p,
min-p, typical), and P all its other processors, such as penalties, bans and grammars:

    a decision changes the draw:  token ~ Row.draw(P(z)), every other score is -inf
    no decision changes it:       token ~ softmax(S(P(z))) or its argmax, drawn by `generate` itself

Controllers measure z. A decision changes the draw when it sets temperature or vocabulary, adds
noise to the logits, or deepens; noise in the cache acts on later tokens. So a row without decisions
is plain `generate`, token for token, greedy or sampled.
Source: `custom_generate` of transformers 5; the rows are `reso_llm.decoding.row`.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn

from entropy_core.checks import is_whole, require
from reso_llm.config import StabilityConfig
from reso_llm.decoding.controllers import Controller, PhaseSlip, check_controllers, reach_of
from reso_llm.decoding.row import Row, SignalOptions
from reso_llm.decoding.sampling import SamplingOptions
from reso_llm.decoding.stability import StabilityMonitor
from reso_llm.hf.cache import is_recurrent
from reso_llm.hf.processors import sampling_of
from reso_llm.hf.rows import RowResult, Rows

SIGNALS = SignalOptions()
REDUNDANT_INPUTS = {
    "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep",
    "output_attentions", "output_hidden_states", "num_read",
}  # fmt: skip
"""Arguments of the model that change no logits for a reader who has all ids of a row, and the
number of those that a ResoLLM was given to read, which such a reader passes on."""


class Control:
    """The controllers of a `controlled` model.

    `results` holds the rows of every `generate` of the block, in order; row j draws from seed + j.
    A call that raises adds none.
    """

    def __init__(
        self,
        controllers: Sequence[Controller],
        seed: int,
        signals: SignalOptions,
        stability: StabilityConfig | None,
        tokenizer: Any,
    ) -> None:
        require(is_whole(seed) and abs(seed) < 2**62, "seed", seed, "a whole number below 2^62")
        if reach_of(controllers):
            raise ValueError(
                "PhaseSlip() takes tokens back, which `generate` of transformers cannot: expected "
                "PhaseSlip.published(), or HFEngine in place of `generate`"
            )
        slips = (c for c in controllers if isinstance(c, PhaseSlip))
        self.adds_noise = any(c.noise.scale > 0 for c in slips)
        self.controllers, self.seed = tuple(controllers), int(seed)
        self.signals = signals
        self.stability = stability if stability is not None and stability.enabled else None
        self.results: tuple[RowResult, ...] = ()
        self.num_calls = 0
        self.tokenizer = tokenizer
        check_controllers(
            self.controllers,
            has_monitor=self.stability is not None,
            has_text=tokenizer is not None,
        )

    def generate(self, model: nn.Module, original: Callable, arguments: Mapping[str, Any]) -> Any:
        """Run the original `generate` of a model, its arguments by name, with these controllers."""
        _check_arguments(arguments)
        # transformers does not give these two to a loop of `custom_generate`.
        names = ("streamer", "synced_gpus")
        own = {name: arguments[name] for name in names if arguments.get(name) is not None}

        def loop(model: nn.Module, input_ids: Tensor, **kwargs: Any) -> Any:
            return self._decode(model, input_ids, own=own, **kwargs)

        arguments = _with_stop_strings(model, arguments)
        return original(**{**arguments, "custom_generate": loop})

    def _decode(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        own: Mapping[str, Any],
        **inputs: Any,
    ) -> Any:
        """The loop of `generate` with rows in it."""
        _check_call(model, input_ids, generation_config, inputs)
        sampling = sampling_of(logits_processor, generation_config.do_sample)
        rows = Rows(
            model,
            [self._row(sampling, i, ids) for i, ids in enumerate(input_ids)],
            input_ids,
            logits_processor,
            generation_config,
            inputs,
            min_prob=self.signals.min_prob,
            adds_noise=self.adds_noise,
        )
        output = model._sample(
            input_ids,
            logits_processor=rows.process,
            stopping_criteria=_Criteria(stopping_criteria, rows),
            generation_config=generation_config,
            **own,
            **inputs,
        )
        self.results += rows.results(self.num_calls)
        self.num_calls += 1
        return output

    def _row(self, sampling: SamplingOptions, i: int, prompt: Tensor) -> Row:
        """Row i of the next call, after the ids (T,) of its prompt."""
        row = Row(
            sampling,
            self.controllers,
            seed=self.seed + len(self.results) + i,
            device=prompt.device,
            signals=self.signals,
            monitor=None if self.stability is None else StabilityMonitor(self.stability),
            question="" if self.tokenizer is None else self._spell(prompt),
            text=None if self.tokenizer is None else lambda: self._spell(row.tokens),
        )
        return row

    def _spell(self, ids: Tensor | list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@contextmanager
def controlled(
    model: nn.Module,
    controllers: Sequence[Controller],
    *,
    seed: int,
    signals: SignalOptions = SIGNALS,
    stability: StabilityConfig | None = None,
    tokenizer: Any = None,
) -> Iterator[Control]:
    """Inside the block, `model.generate` runs with controllers; `Control.results` has its rows.

    Everything that calls `model.generate` is controlled: a pipeline, a chat loop, an evaluation.
    Row j of the block draws from seed + j, so n calls with one prompt give n texts. A copy of the
    model made inside the block is a plain model.

    The temperature that controllers see is that of the sampler, and 0 if `generate` is greedy.
    `stability` switches on the monitor that StabilityTemperature follows. SRB reads the text with
    the model's `tokenizer`; it ends a row before a token, which is padding then. In the `scores` of
    an output, a token that a controller drew is the only possible one. Prompts are padded on the
    left; padding gets no noise. Deepening reads a row again from its ids, without the noise in the
    cache.

    Raises ValueError on entry for a model that is already controlled, recurrent, or an
    encoder-decoder, and for a controller that takes tokens back; and from `generate`, before the
    first token: for beams, assisted decoding and continuous batching; for inputs_embeds,
    token_type_ids and other inputs beside the ids; for top_h, epsilon_cutoff and eta_cutoff; for a
    batch without a padding token; and, with PhaseSlip, for no cache, a quantized or an offloaded
    one. A controller of another class that adds noise to such a cache raises at that token. Raises
    FloatingPointError for logits that are not finite.
    """
    _check_model(model)
    control = Control(controllers, seed, signals, stability, tokenizer)
    original = model.generate

    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        return control.generate(model, original, _by_name(original, args, kwargs))

    def plain_state() -> dict[str, Any]:
        """The attributes of the model without those of this block, for copies and pickles."""
        ours = ("generate", "__getstate__")
        return {name: value for name, value in vars(model).items() if name not in ours}

    model.generate, model.__getstate__ = generate, plain_state
    try:
        yield control
    finally:
        del model.generate, model.__getstate__


def _by_name(function: Callable, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, keyword arguments of any name among them."""
    signature = inspect.signature(function)
    arguments = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def _with_stop_strings(model: nn.Module, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments with a stopping criterion for stop_strings.

    transformers makes the criterion itself, but drops the tokenizer if `generate` has another loop.
    """
    from transformers import StopStringCriteria

    configs = (arguments.get("generation_config"), model.generation_config)
    options = [arguments.get("stop_strings"), *(getattr(c, "stop_strings", None) for c in configs)]
    strings = next((x for x in options if x is not None), None)
    tokenizer = arguments.get("tokenizer")
    if strings is None or tokenizer is None:
        return arguments
    criteria = [*(arguments.get("stopping_criteria") or ()), StopStringCriteria(tokenizer, strings)]
    return {**arguments, "stop_strings": None, "stopping_criteria": criteria}


class _Criteria(list):
    """The stopping criteria of `generate`, followed by the rows, which observe every token."""

    def __init__(self, criteria: Any, rows: Rows) -> None:
        super().__init__(criteria)
        self.criteria, self.rows, self.max_length = criteria, rows, criteria.max_length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return self.rows.observe(input_ids, self.criteria(input_ids, scores, **kwargs))


def _check_model(model: nn.Module) -> None:
    if "generate" in vars(model):
        raise ValueError("this model is controlled already: leave that block first")
    if model.config.is_encoder_decoder:
        raise ValueError("an encoder-decoder model: expected a causal language model")
    if getattr(model, "_is_stateful", False) and model.config.model_type != "reso":
        _refuse_recurrent(model)


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name in ("assistant_model", "custom_generate"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name}: controllers need a loop of their own, token by token")
    if arguments.get("cache_implementation") == "paged":
        raise ValueError(
            "cache_implementation = 'paged': controllers need a cache of one call; "
            "expected 'dynamic' or 'static'"
        )


def _check_call(model: nn.Module, input_ids: Tensor, config: Any, inputs: dict) -> None:
    mode = config.get_generation_mode().value
    if mode not in ("greedy_search", "sample"):
        raise ValueError(f"{mode}: controllers work with greedy decoding and sampling")
    if inputs.get("inputs_embeds") is not None or input_ids.shape[1] == 0:
        raise ValueError("controllers read token ids: expected input_ids of at least one token")
    if is_recurrent(inputs.get("past_key_values"), inputs["use_cache"]):
        _refuse_recurrent(model)
    others = sorted(n for n, x in inputs.items() if x is not None and n not in REDUNDANT_INPUTS)
    if others:
        raise ValueError(f"{', '.join(others)}: controllers read a row from input_ids alone")
    if len(input_ids) > 1 and config.pad_token_id is None and config.eos_token_id is None:
        raise ValueError("rows end at different tokens: expected a pad_token_id")


def _refuse_recurrent(model: nn.Module) -> None:
    raise ValueError(
        f"{type(model).__name__} is recurrent: controllers need a model that keeps keys and values"
    )

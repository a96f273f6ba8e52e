"""Configuration of a ResoLLM: the backbone, one dataclass for each stage, and the presets.

Every class checks itself on construction: a wrong value raises `ValueError` with the key, the value
and the accepted range. Names and documented fields follow the ResoLLM v2 README.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from entropy_core.checks import nearest, require
from entropy_core.primes import GOLDEN_RATIO

# Largest sizes that a command line or a checkpoint may ask for, far above any tried one.
LIMITS = {
    "vocab_size": 1 << 22, "dim": 1 << 16, "num_layers": 1 << 10, "num_heads": 1 << 12,
    "max_seq_len": 1 << 20, "ffn_multiplier": 1 << 6, "attention_window": 1 << 20,
    "num_places": 1 << 10, "num_oscillators": 1 << 12, "num_steps": 1 << 10,
    "max_foci": 1 << 16, "max_goals": 1 << 16, "max_bindings": 1 << 20, "max_slots": 1 << 16,
    "max_entries": 1 << 30, "num_channels": 1 << 12, "max_moments": 1 << 24,
    "predictive_horizon": 1 << 16,
}  # fmt: skip


def _check_types(config: Any) -> None:
    """Raise ValueError for a field of another type or above its limit; an int may be a float."""
    name = type(config).__name__
    for item in fields(config):
        value, kind = getattr(config, item.name), item.type
        if kind in (int, "int"):
            ok = isinstance(value, int) and not isinstance(value, bool)
        elif kind in (float, "float"):
            ok = isinstance(value, int | float) and not isinstance(value, bool)
            ok, kind = ok and math.isfinite(value), "finite number"
        elif kind in (bool, "bool", str, "str"):
            ok = isinstance(value, bool if kind in (bool, "bool") else str)
        else:
            ok = dataclasses.is_dataclass(kind) and isinstance(value, kind)
        kind_name = getattr(kind, "__name__", str(kind))
        require(ok, f"{name}.{item.name}", value, f"a value of type {kind_name}")
        limit = LIMITS.get(item.name)
        require(limit is None or value <= limit, f"{name}.{item.name}", value, f"at most {limit}")


def _check_unit(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{type(config).__name__}.{name}", value, "a number from 0 to 1")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{type(config).__name__}.{name}", value, "a number above 0")


@dataclass(frozen=True)
class StageConfig:
    """Options of one stage; `enabled` switches it.

    trained: whether the stage takes part in training. To ablate such a stage, a model is trained
    without it. Other stages act on the texts that a trained model reads or writes.
    """

    enabled: bool = True
    trained: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_types(self)


@dataclass(frozen=True)
class PrimeEmbeddingConfig(StageConfig):
    """Prime token embedding: vectors of a token's factors, beside the table.

    num_places: bytes that are read from either end of a token.
    """

    num_places: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "num_places")


@dataclass(frozen=True)
class ResonantAttentionConfig(StageConfig):
    """Resonant attention: golden half steps of frequency, heads' temperatures.

    Off by default: it brought nothing on text (benchmarks/README.md).
    """

    enabled: bool = False


@dataclass(frozen=True)
class KuramotoConfig(StageConfig):
    """Kuramoto synchronisation: phases pulled to those of the past, and clocks.

    num_oscillators: N, each with a clock modulo 2 ... N + 1; a head has at most half its width of
    them. coupling: K. num_steps, step_size: Euler steps, and dt of each. retention: ρ, the share of
    its weight that the mean field keeps from one token to the next.
    """

    num_oscillators: int = 16
    coupling: float = 1.0
    num_steps: int = 2
    step_size: float = 0.5
    retention: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "num_oscillators", "num_steps", "step_size")
        require(self.coupling >= 0, "KuramotoConfig.coupling", self.coupling, "at least 0")
        require(
            0 <= self.retention < 1,
            "KuramotoConfig.retention",
            self.retention,
            "a number from 0 to below 1",
        )


@dataclass(frozen=True)
class CoherenceGateConfig(StageConfig):
    """Coherence gate: only tokens that the memory doubts go past layer 1.

    deep_share: share of the training text that goes deep, above 0 to 1.
    """

    deep_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "deep_share")
        _check_unit(self, "deep_share")


@dataclass(frozen=True)
class AgencyConfig(StageConfig):
    """Agency layer: foci of attention, and goals that steer the text.

    max_foci, max_goals: number at the same time. novelty_weight: weight of novelty in the salience
    of a focus, 0 to 1; relevance and intensity share the rest.
    """

    max_foci: int = 5
    max_goals: int = 10
    novelty_weight: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "max_foci", "max_goals")
        _check_unit(self, "novelty_weight")


@dataclass(frozen=True)
class PRSCConfig(StageConfig):
    """Prime resonance semantic coherence: concepts, and the n-gram memory.

    coherence_threshold: least coherence of a concept with each of its tokens, 0 to 1. max_bindings:
    concepts of a session. max_order: longest context of the memory, in tokens.
    max_slots: next tokens that the memory keeps for a context of 1 token; half as many for each
    longer context, at least 8. max_entries: pairs of context and next token in all.
    """

    coherence_threshold: float = 0.7
    max_bindings: int = 1000
    max_order: int = 3
    max_slots: int = 128
    max_entries: int = 1_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_unit(self, "coherence_threshold")
        _check_positive(self, "max_bindings", "max_slots", "max_entries")
        require(1 <= self.max_order <= 8, "PRSCConfig.max_order", self.max_order, "1 to 8")


@dataclass(frozen=True)
class TemporalSMFConfig(StageConfig):
    """Temporal sedenion field, and episodic memory with decay.

    num_heads, num_channels: heads of the field, and sedenions of each: its content is as wide as
    the two multiplied. memory_decay_rate: a stored moment weighs importance * exp(-rate * age),
    with age in texts. max_moments: moments of a session; the lightest is forgotten first.
    episodic_tagging: keep single moments, not only the sum of their fields.
    """

    num_heads: int = 4
    num_channels: int = 64
    memory_decay_rate: float = 0.01
    max_moments: int = 1000
    episodic_tagging: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "num_heads", "num_channels", "max_moments")
        require(
            self.memory_decay_rate >= 0,
            "TemporalSMFConfig.memory_decay_rate",
            self.memory_decay_rate,
            "a number of at least 0",
        )


@dataclass(frozen=True)
class EchoConfig(StageConfig):
    """Echo: what was read so far, and stored texts, predict the next token.

    max_order: longest context that is kept, in tokens. own_weight: weight of a word that the model
    wrote itself, beside 1 for one that it read; above 0 it repeats itself (benchmarks/README.md).
    """

    max_order: int = 6
    own_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.max_order <= 16, "EchoConfig.max_order", self.max_order, "1 to 16")
        _check_unit(self, "own_weight")


@dataclass(frozen=True)
class StabilityConfig(StageConfig):
    """Stability monitor: finite-time Lyapunov exponents, warnings, temperatures.

    lyapunov_threshold: exponent, in nats per token, above which a text is unstable.
    auto_temperature_adjust: let a calibrated monitor move the temperature; the option
    auto_temperature=False of a generation leaves it. predictive_horizon: half of the
    tokens that damage is expected to last.
    """

    trained: ClassVar[bool] = False

    lyapunov_threshold: float = 0.1
    auto_temperature_adjust: bool = True
    predictive_horizon: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "lyapunov_threshold", "predictive_horizon")


@dataclass(frozen=True)
class EntanglementConfig(StageConfig):
    """Entanglement network: the model is one node of a group of agents.

    node_id: name of the node.
    """

    trained: ClassVar[bool] = False
    enabled: bool = False
    node_id: str = "node"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.node_id.strip()), "EntanglementConfig.node_id", self.node_id, "a name")


@dataclass(frozen=True)
class StochasticResonanceConfig(StageConfig):
    """Stochastic resonance: noise in feed-forward layers while text repeats.

    noise_amplitude: deviation of the noise, in units of the hidden input's root mean square.
    """

    trained: ClassVar[bool] = False
    enabled: bool = False
    noise_amplitude: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "noise_amplitude")


NEEDS = {"coherence_gate": "prsc"}
"""Stages that work with another one alone."""


@dataclass(frozen=True)
class ResoLLMConfig:
    """Shape of the language model. With every stage disabled it is the plain control.

    vocab_size: V. dim: residual width D. num_layers: L. num_heads: H heads of width D / H.
    max_seq_len: context, in tokens. ffn_multiplier: hidden width of a feed-forward layer, in D.
    dropout: probability, in training. tie_embeddings: share the token embedding with the output
    head. num_value_embeddings: how many of the last layers have a table of per-token values that
    attention adds (modded-nanogpt). logit_soft_cap: c bounds the logits to c * tanh(z / c)
    (Gemma 2); 0 turns it off. rope_base: base of the rotary frequencies without resonant attention.
    attention_window: tokens that a token attends to, itself included, which makes generation
    unlimited in length; 0 is full attention.
    """

    vocab_size: int = 4096
    dim: int = 256
    num_layers: int = 4
    num_heads: int = 4
    max_seq_len: int = 256
    ffn_multiplier: int = 4
    dropout: float = 0.0
    tie_embeddings: bool = True
    num_value_embeddings: int = 1
    logit_soft_cap: float = 15.0
    rope_base: float = 10000.0
    attention_window: int = 0
    prime_embedding: PrimeEmbeddingConfig = field(default_factory=PrimeEmbeddingConfig)
    prsc: PRSCConfig = field(default_factory=PRSCConfig)
    resonant_attention: ResonantAttentionConfig = field(default_factory=ResonantAttentionConfig)
    kuramoto: KuramotoConfig = field(default_factory=KuramotoConfig)
    coherence_gate: CoherenceGateConfig = field(default_factory=CoherenceGateConfig)
    agency: AgencyConfig = field(default_factory=AgencyConfig)
    temporal_smf: TemporalSMFConfig = field(default_factory=TemporalSMFConfig)
    echo: EchoConfig = field(default_factory=EchoConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    entanglement: EntanglementConfig = field(default_factory=EntanglementConfig)
    stochastic_resonance: StochasticResonanceConfig = field(
        default_factory=StochasticResonanceConfig
    )

    def __post_init__(self) -> None:
        _check_types(self)
        _check_positive(self, "vocab_size", "dim", "num_layers", "num_heads", "ffn_multiplier")
        require(self.max_seq_len >= 2, "max_seq_len", self.max_seq_len, "at least 2 tokens")
        divisors = [h for h in range(1, self.dim + 1) if self.dim % (2 * h) == 0]
        if self.num_heads not in divisors:
            require(bool(divisors), "dim", self.dim, "an even number")
            near = min(divisors, key=lambda h: abs(h - self.num_heads))
            require(
                False,
                "num_heads",
                self.num_heads,
                f"a number that splits dim = {self.dim} into heads of even width, e.g. {near}",
            )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number from 0 to below 1")
        require(
            0 <= self.num_value_embeddings <= self.num_layers,
            "num_value_embeddings",
            self.num_value_embeddings,
            f"0 to num_layers = {self.num_layers}",
        )
        require(self.logit_soft_cap >= 0, "logit_soft_cap", self.logit_soft_cap, "at least 0")
        require(self.rope_base > 1, "rope_base", self.rope_base, "a number above 1")
        require(self.attention_window >= 0, "attention_window", self.attention_window, "at least 0")
        for stage, needed in NEEDS.items():
            if getattr(self, stage).enabled and not getattr(self, needed).enabled:
                raise ValueError(
                    f"{stage}.enabled=true needs {needed}.enabled=true: switch that on, or set "
                    f"{stage}.enabled=false"
                )

    @property
    def least_parameters(self) -> int:
        """Fewer parameters than a model of this shape has, found without building it."""
        layer = (4 + 2 * self.ffn_multiplier) * self.dim**2
        return self.vocab_size * self.dim + self.num_layers * layer

    @property
    def rotary_base(self) -> float:
        """Base of the rotary frequencies; phi^(K/4) makes two pairs a golden step."""
        golden = self.resonant_attention.enabled
        return GOLDEN_RATIO ** (self.head_dim / 4) if golden else self.rope_base

    @property
    def oscillators(self) -> KuramotoConfig:
        """The Kuramoto options, with at most as many oscillators as a head has pairs."""
        fitting = min(self.kuramoto.num_oscillators, self.head_dim // 2)
        return dataclasses.replace(self.kuramoto, num_oscillators=fitting)

    @property
    def head_dim(self) -> int:
        """Width K of one attention head."""
        return self.dim // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested plain values, for JSON and YAML."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ResoLLMConfig":
        """Inverse of `to_dict`; an unknown key raises ValueError naming the nearest known one."""
        return _from_dict(cls, values, prefix="")


def _from_dict(cls: type, values: Mapping[str, Any], prefix: str) -> Any:
    types = {item.name: item.type for item in fields(cls)}
    arguments = {}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"unknown key {prefix}{key}{nearest(key, list(types))}")
        if dataclasses.is_dataclass(types[key]) and isinstance(value, Mapping):
            value = _from_dict(types[key], value, prefix=f"{prefix}{key}.")
        arguments[key] = value
    return cls(**arguments)


_STAGE_FIELDS = {f.name: f.type for f in fields(ResoLLMConfig) if isinstance(f.type, type)}

STAGES = tuple(n for n, kind in _STAGE_FIELDS.items() if issubclass(kind, StageConfig))
"""Fields of ResoLLMConfig that are stages, in the order of the architecture's diagram."""

TRAINED_STAGES = tuple(name for name in STAGES if _STAGE_FIELDS[name].trained)
"""The stages that take part in training."""


def with_stage(config: ResoLLMConfig, stage: str, enabled: bool) -> ResoLLMConfig:
    """Copy a configuration with one of STAGES switched on or off.

    A stage that needs another one brings it along, and goes off with it.
    """
    switched = {stage, NEEDS.get(stage)} if enabled else {stage, *_needing(stage)}
    components = {
        name: dataclasses.replace(getattr(config, name), enabled=enabled)
        for name in switched - {None}
    }
    return dataclasses.replace(config, **components)


def _needing(stage: str) -> list[str]:
    return [name for name, needed in NEEDS.items() if needed == stage]


def control_of(config: ResoLLMConfig) -> ResoLLMConfig:
    """Copy a configuration with every stage off: the plain decoder of the same size."""
    for stage in STAGES:
        config = with_stage(config, stage, enabled=False)
    return config


def control_config() -> ResoLLMConfig:
    """The small model with every stage off."""
    return control_of(small_config())


def small_config() -> ResoLLMConfig:
    """4 layers, 256 wide: for development, tests and a CPU."""
    return ResoLLMConfig()


def medium_config() -> ResoLLMConfig:
    """8 layers, 512 wide."""
    return ResoLLMConfig(dim=512, num_layers=8, num_heads=8, max_seq_len=512)


def large_config() -> ResoLLMConfig:
    """24 layers, 1024 wide: for a GPU."""
    return ResoLLMConfig(dim=1024, num_layers=24, num_heads=16, max_seq_len=1024)


def multi_agent_config(node_id: str) -> ResoLLMConfig:
    """The small model as the node `node_id` of an entangled group."""
    return dataclasses.replace(
        small_config(), entanglement=EntanglementConfig(enabled=True, node_id=node_id)
    )

"""Configuration: the v2 README's names and defaults, and no field without a reader."""

import ast
import dataclasses
import json
import math
from pathlib import Path

import pytest

from reso_llm.config import (
    NEEDS,
    STAGES,
    AgencyConfig,
    CoherenceGateConfig,
    EchoConfig,
    EntanglementConfig,
    KuramotoConfig,
    PrimeEmbeddingConfig,
    PRSCConfig,
    ResoLLMConfig,
    StabilityConfig,
    StochasticResonanceConfig,
    TemporalSMFConfig,
    control_config,
    control_of,
    large_config,
    medium_config,
    multi_agent_config,
    small_config,
    with_stage,
)
from reso_llm.model import ResoLLMModel

PACKAGE = Path(__file__).resolve().parents[2] / "reso_llm"
DOCUMENTED = {
    "agency": dict(max_foci=5, max_goals=10, novelty_weight=0.4),
    "prsc": dict(coherence_threshold=0.7, max_bindings=1000),
    "temporal_smf": dict(memory_decay_rate=0.01, max_moments=1000, episodic_tagging=True),
    "stability": dict(lyapunov_threshold=0.1, auto_temperature_adjust=True, predictive_horizon=5),
    "entanglement": {},
    "stochastic_resonance": dict(noise_amplitude=0.1),
}
PLAIN = (int, float, bool, str)


# --- the v2 README ------------------------------------------------------------------------------


def test_presets_have_the_documented_sizes():
    sizes = [(c.num_layers, c.dim) for c in (small_config(), medium_config(), large_config())]
    assert sizes == [(4, 256), (8, 512), (24, 1024)]


def test_multi_agent_config_names_its_node():
    config = multi_agent_config("agent_alpha")
    assert config.entanglement == EntanglementConfig(enabled=True, node_id="agent_alpha")
    off = dataclasses.replace(config, entanglement=EntanglementConfig())
    assert off == small_config()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_components_have_the_documented_fields(name):
    component = getattr(small_config(), name)
    for key, value in DOCUMENTED[name].items():
        assert getattr(component, key) == value
        assert type(getattr(component, key)) is type(value)


def test_the_readme_example_constructs():
    config = ResoLLMConfig(
        dim=512,
        num_layers=8,
        agency=AgencyConfig(enabled=True, max_foci=5, max_goals=10, novelty_weight=0.4),
        prsc=PRSCConfig(enabled=True, coherence_threshold=0.7, max_bindings=1000),
        temporal_smf=TemporalSMFConfig(
            enabled=True, memory_decay_rate=0.01, max_moments=1000, episodic_tagging=True
        ),
        stability=StabilityConfig(
            enabled=True, lyapunov_threshold=0.1, auto_temperature_adjust=True, predictive_horizon=5
        ),
        stochastic_resonance=StochasticResonanceConfig(enabled=False, noise_amplitude=0.1),
    )
    assert (config.dim, config.num_layers, config.agency.enabled) == (512, 8, True)


# --- stages ---------------------------------------------------------------------------------------


def test_all_stages_are_on_but_those_the_readme_leaves_off_and_one_that_brings_nothing():
    off = {stage for stage in STAGES if not getattr(small_config(), stage).enabled}
    assert off == {"entanglement", "stochastic_resonance", "resonant_attention"}


def test_stages_are_all_the_components():
    components = [f.name for f in dataclasses.fields(ResoLLMConfig) if f.type not in PLAIN]
    assert sorted(components) == sorted(STAGES)


def test_the_control_has_no_stage_and_is_otherwise_the_same():
    config = ResoLLMConfig(dim=64, kuramoto=KuramotoConfig(num_oscillators=3))
    control = control_of(config)
    assert not any(getattr(control, stage).enabled for stage in STAGES)
    assert control.kuramoto.num_oscillators == 3
    for stage in STAGES:
        control = with_stage(control, stage, getattr(config, stage).enabled)
    assert control == config
    assert control_config() == control_of(small_config())


@pytest.mark.parametrize("stage", STAGES)
def test_with_stage_changes_one_switch(stage):
    config = small_config()
    if stage in NEEDS.values():  # without those that need it, which would go with it
        for needing in (name for name, needed in NEEDS.items() if needed == stage):
            config = with_stage(config, needing, False)
    flipped = with_stage(config, stage, not getattr(config, stage).enabled)
    changed = [name for name in STAGES if getattr(flipped, name) != getattr(config, name)]
    assert changed == [stage]
    assert with_stage(flipped, stage, getattr(config, stage).enabled) == config


@pytest.mark.parametrize(("stage", "needed"), NEEDS.items())
def test_a_stage_brings_along_what_it_needs_and_goes_with_it(stage, needed):
    control = control_config()
    both = with_stage(control, stage, True)
    assert [name for name in STAGES if getattr(both, name).enabled] == [
        name for name in STAGES if name in (stage, needed)
    ]
    assert with_stage(both, needed, False) == control
    assert getattr(with_stage(both, stage, False), needed).enabled
    assert not getattr(with_stage(control, needed, True), stage).enabled


@pytest.mark.parametrize(("stage", "needed"), NEEDS.items())
def test_a_stage_without_what_it_needs_is_refused_in_one_line(stage, needed):
    message = rf"^{stage}\.enabled=true needs {needed}\.enabled=true: .*{stage}\.enabled=false$"
    with pytest.raises(ValueError, match=message) as caught:
        ResoLLMConfig.from_dict({needed: {"enabled": False}})
    assert len(str(caught.value).splitlines()) == 1
    ResoLLMConfig.from_dict({needed: {"enabled": False}, stage: {"enabled": False}})


@pytest.mark.parametrize(("wanted", "made"), [(7, 7), (16, 16), (17, 16)])
def test_a_head_has_room_for_half_its_width_of_oscillators(wanted, made):
    config = ResoLLMConfig(vocab_size=61, dim=128, kuramoto=KuramotoConfig(num_oscillators=wanted))
    assert ResoLLMModel(config).phase_gain.shape == (made,)


# --- strictness ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", "4096"),
        ("vocab_size", True),
        ("dim", 256.0),
        ("dim", 33),
        ("dim", 0),
        ("num_layers", -1),
        ("num_heads", 3),
        ("num_heads", 256),  # heads of width 1 cannot rotate
        ("max_seq_len", 1),
        ("ffn_multiplier", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", math.nan),
        ("dropout", "0.1"),
        ("tie_embeddings", 1),
        ("tie_embeddings", "false"),  # a non-empty string would be true
        ("num_value_embeddings", 5),
        ("num_value_embeddings", -1),
        ("logit_soft_cap", -1.0),
        ("logit_soft_cap", math.inf),  # inf * tanh(z / inf) is NaN
        ("logit_soft_cap", math.nan),
        ("rope_base", 1.0),
        ("rope_base", True),
        ("logit_soft_cap", True),
        ("rope_base", math.inf),
        ("attention_window", -1),
        ("attention_window", 4.0),
        ("agency", {"enabled": True}),
        ("agency", PRSCConfig()),
        ("prsc", None),
    ],
)
def test_a_wrong_value_names_its_key(key, value):
    with pytest.raises(ValueError, match=rf"\b{key} = .*expected"):
        ResoLLMConfig(**{key: value})


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        (AgencyConfig, "enabled", "yes"),
        (AgencyConfig, "max_foci", 0),
        (AgencyConfig, "max_goals", 1.5),
        (AgencyConfig, "novelty_weight", 1.1),
        (PRSCConfig, "coherence_threshold", -0.1),
        (PRSCConfig, "coherence_threshold", math.nan),
        (PRSCConfig, "max_bindings", 0),
        (TemporalSMFConfig, "memory_decay_rate", -1e-3),
        (TemporalSMFConfig, "max_moments", 0),
        (TemporalSMFConfig, "episodic_tagging", 1),
        (StabilityConfig, "lyapunov_threshold", 0.0),
        (StabilityConfig, "auto_temperature_adjust", None),
        (StabilityConfig, "predictive_horizon", 0),
        (EntanglementConfig, "node_id", "  "),
        (EntanglementConfig, "node_id", 7),
        (StochasticResonanceConfig, "noise_amplitude", math.inf),
        (PrimeEmbeddingConfig, "num_places", 0),
        (KuramotoConfig, "num_oscillators", 0),
        (KuramotoConfig, "coupling", -1.0),
        (KuramotoConfig, "num_steps", 0),
        (KuramotoConfig, "step_size", 0.0),
        (KuramotoConfig, "retention", 1.0),
        (CoherenceGateConfig, "deep_share", 0.0),
        (CoherenceGateConfig, "deep_share", 1.1),
        (EchoConfig, "max_order", 0),
        (EchoConfig, "max_order", 17),
        (EchoConfig, "own_weight", -0.1),
        (EchoConfig, "own_weight", 1.5),
        (PRSCConfig, "max_order", 9),
        (PRSCConfig, "max_slots", 0),
        (PRSCConfig, "max_entries", 0),
        (TemporalSMFConfig, "num_heads", 0),
        (TemporalSMFConfig, "num_channels", 1.5),
    ],
)
def test_a_wrong_value_in_a_component_names_its_key(component, key, value):
    with pytest.raises(ValueError, match=rf"{component.__name__}\.{key} = .*expected"):
        component(**{key: value})


def test_an_impossible_head_count_suggests_a_possible_one():
    with pytest.raises(ValueError, match=r"num_heads = 3: .*dim = 256.*e\.g\. [24]$"):
        ResoLLMConfig(num_heads=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layer": 3}, r"unknown key num_layer; did you mean num_layers\?"),
        ({"agency": {"max_focy": 3}}, r"unknown key agency\.max_focy; did you mean max_foci\?"),
        ({"zzzzzz": 3}, r"unknown key zzzzzz$"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(values, message):
    with pytest.raises(ValueError, match=message):
        ResoLLMConfig.from_dict(values)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_config().dim = 8


# --- round trip ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        small_config(),
        large_config(),
        multi_agent_config("b"),
        ResoLLMConfig(agency=AgencyConfig(enabled=True, max_foci=2), tie_embeddings=False),
    ],
)
def test_to_dict_and_back_through_json(config):
    assert ResoLLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_takes_defaults_for_what_is_left_out():
    assert ResoLLMConfig.from_dict({"agency": {"max_foci": 2}}).agency == AgencyConfig(max_foci=2)


# --- every field has a reader -------------------------------------------------------------------


NICKNAMES = {"prime_embedding": "prime", "stochastic_resonance": "resonance"}
"""Names that hold a component in the code."""


def fields_read(source):
    """owner.field of every `config.field`, `c.field` or `component.field` read in a source."""
    owners = {"config", "c", *NICKNAMES.values(), *STAGES}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
            if owner in owners:
                found.add(f"{owner}.{node.attr}")
    return found


@pytest.fixture(scope="module")
def read():
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "config.py"]
    return set().union(*(fields_read(path.read_text(encoding="utf-8")) for path in files))


def test_the_reader_search_bites():
    source = (
        "def f(config, x):\n    x.dropout = config.max_foci\n    return F.dim(x.tie, self.c.dim)"
    )
    assert fields_read(source) == {"config.max_foci", "c.dim"}


def test_every_backbone_field_is_read(read):
    """Guards a setting that does nothing. rope_base is read by the property rotary_base."""
    names = {f.name for f in dataclasses.fields(ResoLLMConfig)} - {"rope_base"}
    names.add("rotary_base")
    assert {n for n in names if not read & {f"config.{n}", f"c.{n}"}} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_every_component_field_is_read(stage, read):
    """The switch by its stage's name: a stage that is switched on has to do something."""
    owners = {stage, NICKNAMES.get(stage, stage)}
    assert read & {f"{owner}.enabled" for owner in owners}
    fields = {f.name for f in dataclasses.fields(getattr(small_config(), stage))} - {"enabled"}
    owners |= {"config", "c"}
    assert {f for f in fields if not read & {f"{o}.{f}" for o in owners}} == set()

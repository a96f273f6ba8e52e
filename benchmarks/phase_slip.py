"""Does Phase-Slip break the loops of greedy decoding, by what, and at what price?

python -m benchmarks.phase_slip --checkpoint RUN [--scorer DIR] [--json OUT] [--plot PNG]

Two prompts of the sampler's README, to be continued, and three chat turns; each arm writes texts of
equal length, for which no turn may end (--may-end lets them). Measures, each a ratio of sums:

    rep-4       share of 4-grams of tokens that stood before in the text
    distinct-2  distinct pairs of tokens / pairs
    looping     share of tokens that end 12 tokens, each equal to the one a period of at most 64
                before it (the loop trigger sees periods up to 32); `ends` is that of the last token
    escaped     of the greedy texts that end so, how many no longer do
    as greedy   share of texts equal to the greedy one
    diversity   the published one: unique / all words of the lower-cased text without '.' and ',',
                prompt included
    own, outside  nats per byte of the text after its prompt, at temperature 1 and without any
                noise, under the model itself and under a scorer, a directory of transformers

Sampling at temperatures T, greedy being T = 0, gives rep-4 as a curve over nats per byte. An arm is
compared with that curve at its own nats per byte, by linear interpolation: `rep-4 - curve` is below
0 where an arm repeats less than sampling that strays as far. A repeat is cheap for any scorer, so
nats per byte alone would reward it. Intervals are 95 % bootstrap percentiles over prompts, and over
seeds within each. Rows go to results/phase_slip.jsonl. Sources: the Phase-Slip sampler; distinct-n,
Li 2016 (arXiv 1510.03055); rep-n, Welleck 2019 (arXiv 1908.04319).

Shapes: P prompts, S seeds, R draws of the bootstrap, V vocabulary.
"""

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.heldout import DRAWS, save, shown
from entropy_core.signals import LoopTracker
from reso_llm.decoding.cache_noise import CacheNoise
from reso_llm.decoding.controllers import PhaseSlip, StochasticResonance
from reso_llm.generation import GenerationOptions, RowRun, finish
from reso_llm.hardware import keep_freed_memory
from reso_llm.inference import Prompt, ResoLLMInference

PROMPTS: tuple[Prompt, ...] = (
    "The scientific method is a process that",
    "The scientist opened the door to the secret lab and discovered",
    (("user", "Hello! How are you today?"),),
    (("user", "What did you do at the weekend?"),),
    (("user", "Tell me something about your family."),),
)
LOOP_WINDOW, LOOP_PERIOD = 12, 64  # tokens
CAUSES = ("spike", "stale", "loop")
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
PATIENCE = 4  # of the loop trigger, as chat.py has it
Scores = Callable[[Tensor], Tensor]  # ids (B,T) -> logits (B,T,V)


def slip(**changes: Any) -> dict[str, Any]:
    """Greedy decoding with Phase-Slip: the published one with changes."""
    return {"temperature": 0.0, "controllers": (PhaseSlip(**changes),)}


def noise_only(scale: float) -> dict[str, Any]:
    return slip(slip_temperature=None, noise=CacheNoise(scale=scale))


CURVE = {0.0: "greedy"} | {t: f"sampling, T {t:g}" for t in TEMPERATURES}
ARMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampling, T 0.7, top-k 50": {"temperature": 0.7, "top_k": 50},
    **{CURVE[t]: {"temperature": t} for t in TEMPERATURES},
    "slip, published": slip(),
    "slip, temperature only": slip(noise=CacheNoise(scale=0.0)),
    "slip, noise 0.03 only": noise_only(0.03),
    "slip, noise 0.1 only": noise_only(0.1),
    "slip, noise 0.3 only": noise_only(0.3),
    "slip, noise 1 only": noise_only(1.0),
    "slip, values only": slip(noise=CacheNoise(values_only=True)),
    "slip, prompt protected": slip(noise=CacheNoise(protect_prompt=True)),
    "slip, and at loops": slip(loop_patience=PATIENCE),
    "slip, at loops alone": slip(
        loop_patience=PATIENCE, spike_nats=math.inf, stale_steps=math.inf
    ),
    "slip, at loops of any entropy": slip(
        loop_patience=PATIENCE, loop_nats=math.inf, spike_nats=math.inf, stale_steps=math.inf
    ),
    "stochastic resonance": {"temperature": 0.0, "controllers": (StochasticResonance(),)},
}  # fmt: skip


class Text(NamedTuple):
    """A generated text: its ids without the end of the turn, and slips by their cause."""

    ids: tuple[int, ...]
    text: str
    slips: Mapping[str, int]


# --- texts


def arm_texts(
    engine: ResoLLMInference, prompt: Prompt, seeds: Sequence[int], options: GenerationOptions,
    may_end: bool,
) -> list[Text]:  # fmt: skip
    """One text for each seed; greedy ones are written once."""
    if options.controllers:  # alone: a slip in one row copies the caches of all
        groups = [[seed] for seed in seeds]
    else:
        groups = [list(seeds) if options.temperature else list(seeds[:1])]
    runs = [run for group in groups for run in _written(engine, prompt, group, options, may_end)]
    texts = [_text(run) for run in runs]
    return texts * (len(seeds) // len(texts))


def _written(
    engine: ResoLLMInference, prompt: Prompt, seeds: Sequence[int], options: GenerationOptions,
    may_end: bool,
) -> list[RowRun]:  # fmt: skip
    job = engine.start([prompt] * len(seeds), options, seeds)
    if not may_end:
        job.context.forbidden = torch.cat((job.context.forbidden, job.context.ends))
    finish(job.steps, job.runs)
    return job.runs


def _text(run: RowRun) -> Text:
    ids = tuple(i for i in run.ids if i not in run.ends)
    return Text(ids, run.stream.close(), Counter(event.cause for event in run.row.events))


def spoken(prompt: Prompt) -> str:
    """The prompt as an outside scorer reads it: a chat turn is a paragraph of its own."""
    return prompt if isinstance(prompt, str) else f"{prompt[-1][1]}\n\n"


# --- measures: each a pair (sum, what to divide it by)


def repeated_grams(ids: Sequence[int], n: int) -> tuple[int, int]:
    """(n-grams that stood before, n-grams) of a text."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


def looping(ids: Sequence[int]) -> list[bool]:
    """At each token: are the last LOOP_WINDOW equal to those one period before?"""
    tracker = LoopTracker(LOOP_WINDOW, LOOP_PERIOD)
    return [tracker.add(i) == 1 for i in ids]


def published_diversity(text: str) -> float:
    """Unique words / words; 0 of an empty text."""
    words = text.lower().replace(".", "").replace(",", "").split()
    return len(set(words)) / max(1, len(words))


def measures_of(text: Text, prompt: str, greedy: Text) -> dict[str, tuple[float, float]]:
    """All measures of a text but the scorers', each (sum, count)."""
    inside, before = looping(text.ids), looping(greedy.ids)
    stuck, was_stuck = any(inside[-1:]), any(before[-1:])
    again, pairs = repeated_grams(text.ids, 2)
    return {
        "rep-4": repeated_grams(text.ids, 4),
        "distinct-2": (pairs - again, pairs),
        "looping": (sum(inside), len(inside)),
        "ends": (stuck, 1),
        "escaped": (was_stuck and not stuck, was_stuck),
        "as greedy": (text.ids == greedy.ids, 1),
        "diversity": (published_diversity(prompt + text.text), 1),
        **{cause: (text.slips.get(cause, 0), 1) for cause in CAUSES},
    }


@torch.inference_mode()
def continuation_nats(
    logits: Scores, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[float]:
    """Nats of each continuation after its context, (context ids, ids); equal pairs scored once.

    Shorter rows are padded on the right, which a causal model does not see.
    """
    keys = [(tuple(context), tuple(ids)) for context, ids in pairs]
    unique = sorted(set(keys), key=lambda key: len(key[0]) + len(key[1]))
    found: dict[Any, float] = {}
    for first in range(0, len(unique), batch_size):
        some = unique[first : first + batch_size]
        rows = [torch.tensor(context + ids) for context, ids in some]
        ids = pad_sequence(rows, batch_first=True)
        said = logits(ids[:, :-1])
        for key, row, scores in zip(some, rows, said, strict=True):
            span = slice(len(key[0]) - 1, len(row) - 1)
            nats = F.cross_entropy(scores[span].float(), row[span.start + 1 :], reduction="sum")
            found[key] = nats.item()
    return [found[key] for key in keys]


def outside(directory: str) -> tuple[Callable[[str], list[int]], Scores]:
    """How a causal language model saved by transformers encodes text, and its logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32
    ).eval()
    return (
        lambda text: tokenizer(text, add_special_tokens=False).input_ids,
        lambda ids: model(ids, use_cache=False).logits,
    )


# --- intervals and the curve


class Picks(NamedTuple):
    """Prompts (R,P), and seeds within each of them (R,P,S), drawn with replacement."""

    prompts: Tensor
    seeds: Tensor


def draw_picks(num_prompts: int, num_seeds: int, seed: int = 0) -> Picks:
    generator = torch.Generator().manual_seed(seed)
    shape = (DRAWS, num_prompts)
    return Picks(
        torch.randint(num_prompts, shape, generator=generator),
        torch.randint(num_seeds, (*shape, num_seeds), generator=generator),
    )


def ratios(pairs: Tensor, picks: Picks) -> np.ndarray:
    """Ratio of sums of pairs (2,P,S): first of all, then of each draw, (1+R,); NaN for 0/0."""
    drawn = pairs[:, picks.prompts[:, :, None], picks.seeds].sum((-2, -1))  # (2,R)
    sums = torch.cat((pairs.sum((1, 2))[:, None], drawn), dim=1)
    return (sums[0] / sums[1]).numpy()


def summary(values: np.ndarray) -> list[float] | None:
    """[value, low, high] of `ratios`; None where the value or all draws are undefined."""
    known = values[np.isfinite(values)]
    if not np.isfinite(values[0]) or len(known) == 1:
        return None
    return [float(values[0]), *np.quantile(known[1:], (0.025, 0.975)).tolist()]


def on_curve(x: np.ndarray, curve_x: np.ndarray, curve_y: np.ndarray) -> np.ndarray:
    """y of the piecewise linear curve at x, draw by draw: (R,), (R,K), (R,K) -> (R,).

    NaN outside the curve. Points are ordered by their x in each draw.
    """
    order = curve_x.argsort(1)
    curve_x, curve_y = (np.take_along_axis(c, order, 1) for c in (curve_x, curve_y))
    rows = zip(x, curve_x, curve_y, strict=True)
    return np.array([np.interp(*row, left=math.nan, right=math.nan) for row in rows])


def matched(drawn: Mapping[str, Mapping[str, np.ndarray]], arm: str, scorer: str) -> dict[str, Any]:
    """An arm against sampling of equal nats per byte: rep-4 - curve, that T, and draws inside."""
    curve = {t: name for t, name in CURVE.items() if name in drawn}
    xs, ys = (
        np.stack([drawn[name][measure] for name in curve.values()], axis=1)
        for measure in (scorer, "rep-4")
    )
    x = drawn[arm][scorer]
    difference = drawn[arm]["rep-4"] - on_curve(x, xs, ys)
    temperature = on_curve(x, xs, np.broadcast_to(np.array([*curve]), xs.shape))
    return {
        "rep-4 - curve": summary(difference),
        "temperature": summary(temperature),
        "inside": float(np.isfinite(difference[1:]).mean()),
    }


# --- all of it


def tabulate(
    texts: Mapping[str, Sequence[Sequence[Text]]], nats: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """(2,P,S) of every measure of every arm; `nats` holds the scorers' by name and arm."""
    found = {}
    for arm, rows in texts.items():
        cells = [
            [measures_of(t, spoken(p), g) for t, g in zip(row, greedy, strict=True)]
            for p, row, greedy in zip(PROMPTS, rows, texts["greedy"], strict=False)
        ]
        names = cells[0][0]
        found[arm] = {
            name: torch.tensor([[c[name] for c in row] for row in cells]).double().movedim(-1, 0)
            for name in names
        } | {scorer: arms[arm] for scorer, arms in nats.items()}
    return found


def scored(
    texts: Mapping[str, Sequence[Sequence[Text]]],
    pair: Callable[[int, Text], tuple[Sequence[int], Sequence[int]]],
    logits: Scores,
    num_seeds: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """(nats, bytes) of each arm's texts (2,P,S) of the first num_seeds seeds; 0 of the others."""
    places = [
        (arm, p, s)
        for arm, rows in texts.items()
        for p, row in enumerate(rows)
        for s in range(min(num_seeds, len(row)))
    ]
    pairs = [pair(p, texts[arm][p][s]) for arm, p, s in places]
    found = {
        arm: torch.zeros(2, len(rows), len(rows[0]), dtype=torch.float64)
        for arm, rows in texts.items()
    }
    values = continuation_nats(logits, pairs, batch_size)
    for (arm, p, s), value in zip(places, values, strict=True):
        size = len(texts[arm][p][s].text.encode())
        found[arm][:, p, s] = torch.tensor((value, size))
    return found


def study(engine: ResoLLMInference, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each arm."""
    seeds = range(options.seeds)
    texts = {}
    for arm, how in ARMS.items():
        generation = GenerationOptions(max_length=options.tokens, metrics=False, **how)
        texts[arm] = [arm_texts(engine, p, seeds, generation, options.may_end) for p in PROMPTS]
    heads = [engine.prompt_ids(prompt) for prompt in PROMPTS]
    own = scored(
        texts, lambda p, t: (heads[p], t.ids), lambda ids: engine.model(ids).logits,
        options.seeds, 20,
    )  # fmt: skip
    nats = {"own": own}
    if options.scorer is not None:
        encode, logits = outside(options.scorer)
        asked = [encode(spoken(prompt)) for prompt in PROMPTS]
        nats["outside"] = scored(
            texts, lambda p, t: (asked[p], encode(t.text)), logits, options.scored_seeds, 4
        )
    picks = draw_picks(len(PROMPTS), options.seeds)
    drawn = {
        arm: {name: ratios(pairs, picks) for name, pairs in found.items()}
        for arm, found in tabulate(texts, nats).items()
    }
    return [
        {
            "run": Path(options.checkpoint).name, "arm": arm, "prompts": len(PROMPTS),
            "seeds": options.seeds, "scored_seeds": options.scored_seeds,
            "scorer": options.scorer and Path(options.scorer).name,
            "tokens": options.tokens, "may_end": options.may_end,
            **{name: summary(values) for name, values in found.items()},
            "matched": {scorer: matched(drawn, arm, scorer) for scorer in nats},
        }
        for arm, found in drawn.items()
    ]  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Measures of every arm, and arms against the curve, in markdown."""
    scorers = [*rows[0]["matched"]]
    wide, brief = ("rep-4", *scorers), ("distinct-2", "looping", "ends", "escaped", "as greedy",
                                        "diversity")  # fmt: skip
    head = ["arm", *wide, *brief, "spikes, stale, loops / text"]
    lines = [_line(head), "|" + "---|" * len(head)]
    for row in rows:
        cells = [_cell(row[name]) for name in wide] + [_cell(row[name], True) for name in brief]
        slips = ", ".join(f"{row[cause][0]:.1f}" for cause in CAUSES)
        lines.append(_line([row["arm"], *cells, slips]))
    for scorer in scorers:
        head = ["arm", f"T of equal {scorer} nats/byte", "rep-4 - curve", "draws inside"]
        lines += ["", _line(head), "|---|---|---|---|"]
        for row in rows:
            if row["arm"] not in CURVE.values():
                found = row["matched"][scorer]
                cells = [_cell(found["temperature"]), _cell(found["rep-4 - curve"])]
                lines.append(_line([row["arm"], *cells, f"{found['inside']:.0%}"]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(values: Sequence[float] | None, brief: bool = False) -> str:
    if values is None:
        return "-"
    return f"{values[0]:.2f}" if brief else shown(values, 3)


def plot(rows: Sequence[dict[str, Any]], path: str) -> None:
    """rep-4 over nats per byte: the curve of sampling, and the other arms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    scorers = [*rows[0]["matched"]]
    figure, axes = plt.subplots(1, len(scorers), figsize=(7 * len(scorers), 5), squeeze=False)
    for scorer, axis in zip(scorers, axes[0], strict=True):
        points = [(row[scorer][0], row["rep-4"][0], row["arm"]) for row in rows]
        curve = sorted(point for point in points if point[2] in CURVE.values())
        axis.plot(
            [x for x, _, _ in curve], [y for _, y, _ in curve], "o-", color="grey", label="sampling"
        )
        others = [point for point in points if point[2] not in CURVE.values()]
        for (x, y, arm), marker in zip(others, itertools.cycle("sDv^<>*"), strict=False):
            axis.plot(x, y, marker, label=arm)
        axis.set(xlabel=f"nats per byte, {scorer} model", ylabel="rep-4")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="run directory")
    parser.add_argument("--scorer", help="directory of another causal language model")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--plot", help="draw rep-4 over nats per byte to this file")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--scored-seeds", type=int, default=3, help="that the scorer reads")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--may-end", action="store_true", help="let a turn end")
    options = parser.parse_args()
    keep_freed_memory()
    engine = ResoLLMInference.from_pretrained(options.checkpoint)
    longest = max(len(engine.prompt_ids(prompt)) for prompt in PROMPTS)
    if longest + options.tokens > engine.config.max_seq_len:
        parser.error(f"--tokens and {longest} of a prompt exceed {engine.config.max_seq_len}")
    if options.seeds < 1 or options.scored_seeds < 1 or options.tokens < 4:
        parser.error("expected at least 1 seed, 1 scored seed and 4 tokens")
    rows = study(engine, options)
    print(table(rows), flush=True)
    save("phase_slip", rows, options.json)
    if options.plot is not None:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()

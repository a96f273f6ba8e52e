"""The ten findings at the top of docs/results.md, each with a picture.

A headline is a claim of ours: a sentence in plain words, and a rule that the recorded rows must
meet for it. Its view makes one row, whose `bars` the picture draws (headline_views.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.claims import Claim, Evidence, Row
from benchmarks.claims import headline_views as views

SEEDS = "mean, lowest and highest seed"
BOOTSTRAP = "95 % bootstrap interval"
REAL = views.REAL


@dataclass(frozen=True)
class Headline:
    """A claim, the view of its rows, and what the picture shows: its axis and its bars."""

    claim: Claim
    view: Callable[[Evidence], Row]
    axis: str
    bars_are: str

    @property
    def picture(self) -> str:
        """The name of the picture, which is that of the view."""
        return self.view.__name__


def headline(
    text: str, view: Callable[[Evidence], Row], sentence: str, rule: Callable[[Row], bool],
    axis: str, bars_are: str, rerun: str,
) -> Headline:  # fmt: skip
    """One of the ten; `rule` is asked of the row that `view` makes."""
    claim = Claim(text, "ours", rerun, lambda evidence: {"": [view(evidence)]}, sentence, (rule,))
    return Headline(claim, view, axis, bars_are)


def apart(lower: str, higher: str) -> Callable[[Row], bool]:
    """The whole of one bar lies below the whole of another."""
    return lambda row: row["bars"][lower][2] < row["bars"][higher][1]


HEADLINES = (
    headline(
        "At equal training time the full model beats a plain decoder", views.equal_time,
        "{bars.all stages.0:.3f} bits per byte of unseen conversations after 180 s of training. A "
        "plain decoder has {bars.plain decoder.0:.3f}, with the echo alone "
        "{bars.plain decoder + echo.0:.3f}. Most of the gain is the echo, and any model can have "
        "it.",
        apart("all stages", "plain decoder + echo"),
        "bits per byte, lower is better", SEEDS,
        "python -m benchmarks.studies.quality guanaco --data data/guanaco_900.jsonl",
    ),
    headline(
        "Three of eight trained stages make dialogue better, a fourth Shakespeare", views.worth,
        "Better dialogue comes from: {names}. The others show nothing here or cost a little. On "
        "characters of Shakespeare's plays the sedenion memory saves "
        "{characters.sedenion memory.0:.3f} bits per byte. Stages stay for what they do elsewhere, "
        "too: the gate saves time, goals steer, clocks count, the sedenion memory recalls. "
        "Resonant attention does nothing that we could find, and is off.",
        lambda row: len(row["helping"]) == 3 and row["also"] == ["sedenion memory"],
        "bits per byte lost without the stage", "95 % interval over three seeds",
        "python -m benchmarks.studies.equal_time --guanaco data/guanaco_900.jsonl",
    ),
    headline(
        "Kuramoto's clocks count exactly at ten times the training length", views.tracked,
        "Trained to tell parity on 40 tokens, the model is right at 161 to 400 tokens in "
        "{bars.parity, with clocks.0:.0%} of the answers, without its clocks in "
        "{bars.parity, without.0:.0%}. A sum modulo 5 holds in {right} of 5 seeds only.",
        lambda row: row["bars"]["parity, with clocks"][1] > 0.99,
        "share of right answers, higher is better", SEEDS,
        "python -m benchmarks.studies.tracking tasks --steps 400",
    ),
    headline(
        "The sedenion memory recalls values that have changed", views.recalled,
        "Of 16 keys whose values were overwritten it recalls {bars.sedenion memory.0:.1%}; linear "
        "attention with a state of equal size {bars.linear attention, equal state.0:.1%}. Of 64 "
        "keys that keep their values both recall as many: {kept.delta:.1%} and {kept.linear:.1%}.",
        apart("linear attention, equal state", "sedenion memory"),
        "share of right values, higher is better", SEEDS,
        "python -m benchmarks.studies.recall_pairs --parts changed ordered",
    ),
    headline(
        "A fact that you tell is remembered, and forgotten slowly", views.remembered,
        "A told fact becomes {bars.told just now.0:.2f} nats per token likelier, "
        "{bars.100 texts ago.0:.2f} after 100 texts and {bars.1,000 texts ago.0:.2f} after 1,000. "
        "The echo does this: the sedenion field alone gives {field:.2f}.",
        apart("another fact, just now", "100 texts ago"),
        "nats per token that the fact gains, higher is better", BOOTSTRAP,
        "python evaluate.py memory",
    ),
    headline(
        "Several models together predict better than the best of them", views.together,
        "A consensus of {num} models needs {apart.consensus:.3f} bits per byte less than the best "
        "of them alone. Writing one after the other (sequential) costs {apart.sequential:.3f} "
        "more.",
        lambda row: row["bars"]["consensus"][2] < 0 < row["bars"]["sequential"][1],
        "bits per byte minus the best single model's, lower is better", BOOTSTRAP,
        "python -m benchmarks.studies.consensus",
    ),
    headline(
        "The monitor tells damaged text from clean text, and chaos theory adds nothing",
        views.classified,
        "Told apart are clean text, loops, text with half of its tokens replaced, and text in lost "
        "order. Balanced accuracy is {bars.surprise and repetition.0:.2f} from surprise and "
        "repetition, {bars.the same, and the exponent.0:.2f} with the Lyapunov exponent beside "
        "them, {bars.Lyapunov exponent alone.0:.2f} with that alone; guessing gives 0.25.",
        apart("Lyapunov exponent alone", "surprise and repetition"),
        "balanced accuracy of four classes, higher is better", BOOTSTRAP,
        "python evaluate.py stability --data data/unseen.jsonl",
    ),
    headline(
        "Phase-Slip as published repeats more than plain sampling; taking repeats back leaves none",
        views.slipped,
        f"After {{texts}} prompts {{looping:.0%}} of the greedy texts of {REAL} end in a loop, and "
        "{bars.greedy.0:.1%} of their 4-grams were said before; with Phase-Slip as published "
        "{bars.Phase-Slip as published.0:.1%}, with plain sampling at temperature 0.8 "
        "{bars.plain sampling.0:.1%}. What helps in it is its hot token, which alone ends "
        "{by_heat:.0%} of the loops of five prompts; its noise alone {by_noise:.0%}. Our "
        "Phase-Slip takes a repeat back to its least sure token: "
        "{bars.repeats taken back.0:.1%}, at {values.repeats taken back.own:.2f} nats per byte. "
        "Greedy text has {values.greedy.own:.2f}, plain sampling {values.plain sampling.own:.2f}, "
        "the published form {values.Phase-Slip as published.own:.2f}.",
        lambda row: row["bars"]["plain sampling"][0] < row["bars"]["Phase-Slip as published"][0]
        and apart("repeats taken back", "plain sampling")(row)
        and row["values"]["repeats taken back"]["escaped"] == 1,
        "share of 4-grams said before, lower is better", BOOTSTRAP,
        "python evaluate.py phase-slip --model DIR",
    ),
    headline(
        "SRB as published cuts sentences short; at finished places it saves as much", views.stopped,
        f"On {REAL} the published rule saves {{saved.published:.0%}} of the tokens, and "
        "{bars.SRB as published.0:.0%} of its replies end in a finished sentence; "
        "{bars.the model's own end.0:.0%} where the model ends by itself or at the longest length. "
        "Ending at finished places, by p(end), a budget and loops, saves "
        "{saved.srb:.0%} and finishes {bars.SRB at finished places.0:.0%}; of the 4-grams "
        "{repeats.srb:.0%} were said before, {repeats.static:.0%} in whole replies.",
        lambda row: row["saved"]["srb"] > 0.3
        and row["bars"]["SRB as published"][2] < row["bars"]["SRB at finished places"][1],
        "share of replies that end in a finished sentence, higher is better", BOOTSTRAP,
        "python evaluate.py srb --replay --model DIR",
    ),
    headline(
        "The reactor's published mirror test comes out to the last digit", views.mirrored,
        "{equal} of {of} published lines are met in mean and deviation, over ten seeds. The "
        "reactors are untrained: the test shows what the wiring does, and nothing learned.",
        lambda row: row["equal"] == row["of"],
        "final entropy of the state, nats", "mean and one standard deviation over ten seeds",
        "python evaluate.py mirror",
    ),
)  # fmt: skip

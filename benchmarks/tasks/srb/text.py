"""The study of one model in markdown: all arms, SRB minus the others, and the questions."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.kit.tables import shown, table

DIGITS = {
    "exits": 2, "cut": 2, "tokens": 1, "saved": 3, "seconds": 2, "finished": 3, "mid_word": 3,
    "rep4": 3, "distinct2": 3, "code_parses": 3, "steps_met": 3, "own_entropy_nats": 3,
    "own_nats_per_token": 3, "own_end_nats": 2, "outside_nats_per_byte": 3, "outside_end_nats": 2,
}  # fmt: skip
Summary = Mapping[str, Sequence[float] | None]


def study_text(row: Mapping[str, Any]) -> str:
    """A recorded row as text."""
    parts = [
        _head(row),
        _measures("all arms", row["arms"]),
        _measures("srb minus (runs)", row["srb_minus"]),
        _measures("srb minus (cuts of equal tokens)", row["matched"]),
        _measures("srb minus static, by bucket", row["by_bucket"]),
        _reruns(row),
        _questions(row["questions"]),
    ]
    return "\n\n".join(part for part in parts if part)


def replay_text(row: Mapping[str, Any]) -> str:
    """A recorded replay as text."""
    seeds = ", ".join(map(str, row["seeds"]))
    head = (
        f"**{row['model']}** (weights {row['weights_sha256']}), rules replayed on "
        f"{row['replies']} replies, {5 * row['per_bucket']} prompts, seeds {seeds}, cap "
        f"{row['cap']} tokens, judge {row['judge'] or 'none'}; calibrated on other "
        f"{5 * row['per_bucket']} prompts. SRB: {_rule(row['rule'])}."
    )
    designs = {name: design["minus_static"] for name, design in row["designs"].items()}
    return "\n\n".join((
        head,
        _measures("replayed: all arms", row["arms"]),
        _measures("srb minus", row["srb_minus"]),
        _measures("srb minus (cuts of equal tokens)", row["matched"]),
        _measures("srb minus static, by bucket", row["by_bucket"]),
        _measures("designs minus static", designs),
        _bar(row["bar"]),
    ))  # fmt: skip


def _rule(rule: Mapping[str, Any]) -> str:
    words = [f"{name} {value:g}" for name, value in rule.items() if isinstance(value, float | int)]
    budgets = ", ".join(f"{kind} {tokens}" for kind, tokens in rule["budgets"].items())
    return ", ".join(words) + (f"; budgets {budgets} tokens" if budgets else "")


def _bar(bar: Mapping[str, Any]) -> str:
    met = {True: "met", False: "missed"}
    against = "; ".join(
        f"{arm} better in {c['better']}, worse in {c['worse']} of {c['of']} measures "
        f"({met[bar['beats'][arm]]})"
        for arm, c in bar["against"].items()
    )
    return (
        f"The bar: 20 % saved {met[bar['saved']]}; nothing worse {met[bar['kept']]}; "
        f"fewer repeats {met[bar['repeats_less']]}. At equal tokens, against {against}."
    )


def _head(row: Mapping[str, Any]) -> str:
    rule = ", ".join(f"{name} {value:g}" for name, value in row["rule"].items())
    seeds = ", ".join(map(str, row["seeds"]))
    return (
        f"**{row['model']}** (weights {row['weights_sha256']}), judge {row['judge'] or 'none'}: "
        f"{row['replies']} replies an arm, seeds {seeds}, cap {row['cap']} tokens. Rule: {rule}. "
        f"On the calibration half it ends {row['exits']:.0%} of the replies (SRB's defaults "
        f"{row['default_exits']:.0%}); there, equal mean tokens are {row['fixed_tokens']} for "
        f"fixed and {row['end_nats']:.2f} nats of p(end) for end_rule."
    )


def _measures(title: str, arms: Mapping[str, Summary]) -> str:
    """A line for each measure, a column for each arm."""
    known = set().union(*arms.values())
    lines = [
        [name, *(shown(arm.get(name), digits) for arm in arms.values())]
        for name, digits in DIGITS.items()
        if name in known
    ]
    return table([title, *arms], lines)


def _reruns(row: Mapping[str, Any]) -> str:
    """SRB minus static of each seed alone, if there are several: a rerun of the study."""
    by_seed, rerun = row["by_seed"], row["rerun"]
    if not rerun:
        return ""
    title = ["srb minus static", *(f"seed {seed}" for seed in by_seed), "last minus first seed"]
    lines = [
        [name, *(shown(some["srb_minus"]["static"][name], DIGITS[name])
                 for some in by_seed.values()), shown(change, DIGITS[name])]
        for name, change in rerun.items()
    ]  # fmt: skip
    within = sum(low <= 0 <= high for _, low, high in rerun.values())
    return f"{table(title, lines)}\n\nThe seeds agree in {within} of {len(rerun)} measures."


def _questions(answers: Mapping[str, Any]) -> str:
    lines = [[name, shown(rho, 2)] for name, rho in answers["replies"].items() if rho]
    parts = [
        table(["1. replies: mean signal, and outcome", "Spearman's rho"], lines),
        table(
            ["1. places: signal against nats of ending there", "rho within replies"],
            [[name, shown(rho, 3)] for name, rho in answers["places"].items()],
        ),
    ]
    if curves := answers["curves"]:
        parts.append(
            f"3. Collapse curves of {curves['replies']} replies: buckets explain "
            f"{curves['between']:.3f} of their variance ({curves['between_by_chance']:.3f} by "
            f"chance, p = {curves['p']:.3f}); first tenth minus last "
            f"{shown(curves['fall'], 2)} of the mean entropy."
        )
    return "\n\n".join(parts)

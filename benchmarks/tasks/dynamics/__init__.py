"""Oracles of entropy_core: Kuramoto, Lyapunov and sedenion numbers beside what theory gives.

    error = |got - expected|, holds = error <= tolerance;  got = mean over the seeds, sd over them

Every expected number comes from a formula, a published table, or code of this package that shares
no line with entropy_core (the orbit mean of ln |f'|, the doubling rule on arrays). Where no number
is right (the exponent of noise), `expected` is empty and the row says what the estimator gives.
A tolerance is rounding for identities, 4 standard errors for samples (of r, by the delta method
from the Cramer-Rao bound of a Lorentzian's width, sd(gamma) = gamma sqrt(2 / N), and 0.01 for the
limit itself), and what its source promises otherwise. --quick leaves out the Henon and Lorenz
spectra, whose orbits need thousands of steps to be typical.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.kit.figures import BLUE, GREEN, GREY, ORANGE, new_figure
from benchmarks.kit.records import Records, Row
from benchmarks.kit.tables import number, table
from benchmarks.tasks.dynamics.exponents import lyapunov_oracles, orbit_mean
from benchmarks.tasks.dynamics.oracle import FULL, QUICK, Oracle
from benchmarks.tasks.dynamics.oscillators import GAMMA, kuramoto_oracles, theory_r
from benchmarks.tasks.dynamics.sedenions import sedenion_oracles

NUMBERS = ("expected", "got", "sd", "error", "tolerance")


def add_options(parser: Any) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def run(options: Any) -> list[Row]:
    """One row for each oracle."""
    size = QUICK if options.quick else FULL
    seeds = options.seeds[:1] if options.quick else options.seeds
    records = Records("dynamics", options.record)
    makers = (kuramoto_oracles, lyapunov_oracles, sedenion_oracles)
    oracles = [oracle for make in makers for oracle in make(seeds, size)]
    rows = []
    for oracle in tqdm(oracles, desc="oracles", leave=False, disable=None):
        key = {"group": oracle.group, "name": oracle.name, "seeds": seeds}
        rows.append(records.row(key, functools.partial(judged, oracle, seeds)))
    return rows


def judged(oracle: Oracle, seeds: Sequence[int]) -> dict[str, Any]:
    """Mean and spread over the seeds, and whether they hold; None where undefined."""
    values = np.array([oracle.got(seed) for seed in seeds], dtype=np.float64)
    known = bool(np.isfinite(values).all())
    row = {"expected": oracle.expected, "got": float(values.mean()) if known else None,
           "sd": float(values.std(ddof=1)) if known and len(values) > 1 else None,
           "tolerance": oracle.tolerance, "at": oracle.at, "source": oracle.source}  # fmt: skip
    if oracle.expected is None:
        return {**row, "error": None, "holds": None}
    error = abs(row["got"] - oracle.expected) if known else None
    return {**row, "error": error, "holds": known and error <= oracle.tolerance}


def text(rows: Sequence[Row]) -> str:
    """One table, a line for each oracle, and how many hold."""
    head = ("", "oracle", "expected", "got", "sd over seeds", "error", "tolerance", "holds",
            "source")  # fmt: skip
    verdicts = {True: "yes", False: "**no**", None: "-"}
    lines = [
        [row["group"], row["name"],
         *(number(row[name], ".4g") for name in NUMBERS),
         verdicts[row["holds"]], row["source"]]
        for row in rows
    ]  # fmt: skip
    known = [row["holds"] for row in rows if row["holds"] is not None]
    return f"{table(head, lines)}\n\n{sum(known)} of {len(known)} hold."


def figure(rows: Sequence[Row]) -> Any:
    """r over the coupling with theory; exponents of the logistic map with the orbit mean."""
    drawn = new_figure(13, 4.6)
    left, right = drawn.subplots(1, 2)
    _order(left, [r for r in rows if r["group"] == "kuramoto" and r["at"] is not None])
    _logistic(right, [r for r in rows if r["group"] == "lyapunov" and r["at"] is not None])
    return drawn


def _order(axes: Any, rows: Sequence[Row]) -> None:
    K = np.concatenate([[0, 2 * GAMMA], np.linspace(2 * GAMMA, 5, 300)])
    r = [theory_r(k) if k else 0.0 for k in K]
    axes.plot(K, r, color=GREY, label="theory, N to infinity")
    axes.errorbar([row["at"] for row in rows], [row["got"] for row in rows],
                  yerr=[row["sd"] or 0 for row in rows], fmt="o", color=BLUE, capsize=3,
                  label="simulated, mean and sd over seeds")  # fmt: skip
    axes.axvline(2 * GAMMA, color=ORANGE, ls=":", label="critical coupling")
    axes.set(xlabel="coupling K, radians per unit time", ylabel="order parameter r", ylim=(0, 1))
    axes.set_title(f"Kuramoto, Lorentzian frequencies of width {GAMMA:g}")
    axes.legend(loc="lower right")


def _logistic(axes: Any, rows: Sequence[Row]) -> None:
    rates = np.linspace(2.8, 4, 400)
    axes.plot(rates, [orbit_mean(r, 0.3, 200, 500) for r in rates], color=GREY, lw=0.8,
              label="orbit mean of ln |f'|")  # fmt: skip
    axes.plot([row["at"] for row in rows], [row["got"] for row in rows], "o", color=BLUE,
              label="tangent_exponent_per_step")  # fmt: skip
    axes.axhline(math.log(2), color=GREEN, ls="--", lw=0.8, label="ln 2, exact at r = 4")
    axes.axhline(0, color=ORANGE, ls=":", lw=0.8)
    axes.set(xlabel="r of the logistic map", ylabel="exponent, nats per step", ylim=(-2.2, 1))
    axes.set_title("Lyapunov exponent of x to r x (1 - x)")
    axes.legend(loc="lower right")

"""Recall of many pairs, after long gaps, of changed values; long documents: forms of the field.

    window        no field: attention sees a few tokens, and nothing else is remembered
    product       the form before, as many parameters: S_t = a S + i k v, the sedenion product
    product wide  the same, its state as large: content 16 times as wide
    linear        gated linear attention, its state as large: square, unit keys, never erased
    delta         the field of `reso_llm.stages.field`, erased before it is written
    delta alone   the same, its addresses those of single tokens (o = 0)

    pairs      P pairs "key value" (each key once), filler, the keys again in another order, each
               followed by its value, which is what is trained and scored; keys and values are 128
               tokens each, drawn anew for every sequence; P is 4, 16 and 64 in turn
    changed    the same with every key told four times, each time another value: the last counts
    ordered    the same with two tokens of 12 as key: "a b" and "b a" are different keys
    distance   4 pairs, trained with up to 256 tokens of filler, asked after 1,024, 4,096 and 16,384
    documents  bits per byte of held-out documents, a token a byte, each read in one pass from its
               start by attention that sees 64 bytes; trained on pieces of 512; once more with the
               field emptied before each piece

All forms are trained alike, with Muon, and differ in the module at the field's place only. A row is
one model, written to results/recall_pairs.jsonl; a model that has its row is not trained again.

    python -m benchmarks.studies.recall_pairs [--seeds 0 1 2] [--device cuda --jobs 8]
    python -m benchmarks.studies.recall_pairs --parts documents --data FILE.jsonl
    python -m benchmarks.studies.recall_pairs table

Shapes: B rows, T tokens, H heads, S = 16 axes, E numbers of a head's state.
"""

import argparse
import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from benchmarks.kit.records import grouped, num_parameters, read_rows, write_row
from benchmarks.kit.statistics import mean_of
from benchmarks.kit.tables import shown, table
from entropy_core import sedenion
from reso_llm.config import ResoLLMConfig, TemporalSMFConfig, control_of, with_stage
from reso_llm.network import ResoNetwork
from reso_llm.stages.field import SedenionField
from reso_llm.stages.fused import linear, rms_norm
from reso_llm.training.config import OptimConfig
from reso_llm.training.optim import make_optimizers
from run_core.hardware import pick_device

NAME = "recall_pairs"
DIM, LAYERS, HEADS, CHANNELS, S = 128, 2, 4, 32, sedenion.DIM
KINDS, FILLERS, LETTERS, TOLD = 128, 16, 12, 4
PIECE = 512  # tokens read at once where the state is carried

State = tuple[Tensor, Tensor]


# --- the forms


class Fading(nn.Module):
    """A field that is summed up and fades, with the gates and bounds of `SedenionField`.

    widths: of an address and of the content of a head; E: numbers of its state. write maps keys
    (...,K) and content (...,C) to what is added (...,E), read maps fields (...,E) and readers
    (...,K) to what is read (...,C).
    """

    def __init__(self, heads: int, widths: tuple[int, int], E: int, write, read) -> None:
        super().__init__()
        self.heads, self.widths, self.E, self.write, self.read = heads, widths, E, write, read
        key, content = widths
        self.address, self.reader = linear(DIM, heads * key), linear(DIM, heads * key)
        self.content, self.gates = linear(DIM, heads * content), linear(DIM, 3 * heads)
        starts = SedenionField(DIM, TemporalSMFConfig(num_heads=heads)).gate_bias
        self.gate_bias = nn.Parameter(starts.detach()[[0, 2, 3]].clone())  # write, read, retention
        self.out = linear(heads * content, DIM)
        self.reader.weight.data.copy_(self.address.weight)
        for layer in (self.gates, self.out):
            nn.init.zeros_(layer.weight)

    def init_state(self, batch: int, like: Tensor) -> State:
        """The empty field (B,H,E), and the address of no token (B,1,H,K)."""
        return (
            like.new_zeros(batch, self.heads, self.E),
            like.new_zeros(batch, 1, self.heads, self.widths[0]),
        )

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As `SedenionField.forward`."""
        field, before = self.init_state(len(x), x) if state is None else state
        normed = rms_norm(x)
        address, reader, content, gates = (
            rearrange(layer(normed), "b t (h c) -> b t h c", h=self.heads)
            for layer in (self.address, self.reader, self.content, self.gates)
        )
        write, read, retention = (gates + self.gate_bias.T).split(1, dim=-1)
        address = F.normalize(address, dim=-1)
        keys = torch.cat((before, address[:, :-1]), dim=1)
        writes = self.write(keys, content * torch.sigmoid(write))
        fields, field = fade(field, writes, F.logsigmoid(retention))
        y = self.read(fields, F.normalize(reader, dim=-1))
        y = F.rms_norm(y, y.shape[-1:], eps=1.0) * torch.sigmoid(read)
        return x + self.out(y.flatten(2)), (field, address[:, -1:].clone())


def fade(
    field: Tensor, writes: Tensor, log_retention: Tensor, chunk: int = 32
) -> tuple[Tensor, Tensor]:
    """Fields (B,T,H,E) before each token, and the one after the last, of fields that fade."""
    read = []
    for some, kept in zip(writes.split(chunk, 1), log_retention.split(chunk, 1), strict=True):
        c = F.pad(kept.squeeze(-1).mT.cumsum(-1), (1, 0))  # (B,H,L+1)
        future = torch.ones(c.shape[-1], c.shape[-1], dtype=torch.bool, device=c.device).triu(1)
        share = (c.unsqueeze(-1) - c.unsqueeze(-2)).masked_fill(future, -math.inf).exp()
        terms = torch.cat((field.unsqueeze(1), some), dim=1)
        fields = torch.einsum("bhtj,bjhe->bthe", share, terms)
        read.append(fields[:, :-1])
        field = fields[:, -1]
    return torch.cat(read, dim=1), field


def product_write(keys: Tensor, content: Tensor) -> Tensor:
    """Address times content, sedenion by sedenion."""
    return (content.unflatten(-1, (-1, S)) @ sedenion.left_matrix(keys).mT).flatten(-2)


def product_read(fields: Tensor, readers: Tensor) -> Tensor:
    """The conjugate of the reader, whose matrix is the reader's turned over, times the field."""
    return (fields.unflatten(-1, (-1, S)) @ sedenion.left_matrix(readers)).flatten(-2)


def linear_write(keys: Tensor, content: Tensor) -> Tensor:
    """The outer product."""
    return (content.unsqueeze(-1) * keys.unsqueeze(-2)).flatten(-2)


def linear_read(fields: Tensor, readers: Tensor) -> Tensor:
    """The matrix of the field times the reader."""
    return (fields.unflatten(-1, (-1, readers.shape[-1])) @ readers.unsqueeze(-1)).squeeze(-1)


def product(channels: int) -> Fading:
    """The form before, with so many numbers of content in each head."""
    return Fading(HEADS, (S, channels), channels, product_write, product_read)


def square() -> Fading:
    """Linear attention with the state of the delta form: as many numbers, in squares."""
    side = math.isqrt(HEADS * CHANNELS * S // 2)
    return Fading(2, (side, side), side**2, linear_write, linear_read)


def delta(ordered: bool = True) -> SedenionField:
    """The field of the package."""
    field = SedenionField(DIM, TemporalSMFConfig(num_heads=HEADS, num_channels=CHANNELS))
    field.order.requires_grad_(ordered)
    return field


FORMS: dict[str, Callable[[], nn.Module | None]] = {
    "window": lambda: None,
    "product": partial(product, CHANNELS),
    "product wide": partial(product, CHANNELS * S),
    "linear": square,
    "delta": delta,
    "delta alone": partial(delta, ordered=False),
}


def make_network(form: str, vocab_size: int, window: int) -> ResoNetwork:
    """A plain decoder with an attention window, and the form in the field's place."""
    config = control_of(ResoLLMConfig(
        vocab_size=vocab_size, dim=DIM, num_layers=LAYERS, num_heads=2, max_seq_len=1024,
        attention_window=window,
    ))  # fmt: skip
    network = ResoNetwork(config)
    network.field = FORMS[form]()
    network.config = with_stage(config, "temporal_smf", network.field is not None)
    return network


def state_size(network: ResoNetwork) -> int:
    """Numbers of the field of one row."""
    states = network.init_state().stages
    return states["temporal_smf"][0].numel() if "temporal_smf" in states else 0


def train(
    network: ResoNetwork,
    batch_of: Callable[[int], tuple[Tensor, Tensor | None]],
    steps: int,
    device: torch.device,
) -> None:
    """Constant rate, then linear decay over the second half. batch_of: step to ids and mask."""
    optimizers = make_optimizers(network, OptimConfig()).values()
    for step in range(steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * min(1.0, 2 * (steps - step) / steps)
        ids, mask = batch_of(step)
        ids, mask = ids.to(device), None if mask is None else mask.to(device)
        network.zero_grad()
        network.loss(ids[:, :-1], ids[:, 1:], mask).backward()
        for optimizer in optimizers:
            optimizer.step()


@torch.no_grad()
def carried(
    network: ResoNetwork,
    ids: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    forget: bool = False,
) -> Tensor:
    """score(logits, targets) of each token but the first, the state carried from piece to piece.

    With `forget` the field is emptied before each piece; what attention sees stays.
    """
    state, scores = network.init_state(len(ids)), []
    empty = state.stages.get("temporal_smf")
    for start in range(0, ids.shape[1] - 1, PIECE):
        piece = ids[:, start : start + PIECE + 1]
        output = network(piece[:, :-1], state)
        state = output.state.with_stage("temporal_smf", empty) if forget else output.state
        scores.append(score(output.logits, piece[:, 1:]))
    return torch.cat(scores, dim=1)


# --- recall

TASKS: dict[str, dict[str, Any]] = {  # ordered keys, tellings, pairs, filler; then what is asked
    "pairs": dict(pairs=(4, 16, 64), asked=("pairs", (4, 16, 64))),
    "changed": dict(pairs=(4, 16), told=TOLD, asked=("pairs", (4, 16))),
    "ordered": dict(pairs=(4, 16, 64), ordered=True, asked=("pairs", (4, 16, 64))),
    "distance": dict(pairs=(4,), filler=(16, 64, 256), asked=("filler", (1024, 4096, 16384))),
}


def draw_batch(
    rows: int,
    pairs: int,
    filler: int,
    generator: torch.Generator,
    told: int = 1,
    ordered: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sequences (rows,T), and which of their targets (rows,T-1) are the values asked for.

    Each pair is told `told` times, in an order that repeats nothing before all are told.
    """

    def shuffled(facts: Tensor) -> Tensor:
        order = torch.rand(facts.shape[:2], generator=generator).argsort(1)
        return facts.gather(1, order.unsqueeze(-1).expand_as(facts))

    if ordered:
        keys = torch.tensor(list(itertools.permutations(range(LETTERS), 2)))
    else:
        keys = torch.arange(KINDS).unsqueeze(1)
    keys = shuffled(keys.expand(rows, -1, -1))[:, :pairs]
    rounds = []
    for _ in range(told):
        values = KINDS + torch.randint(KINDS, (rows, pairs, 1), generator=generator)
        rounds.append(torch.cat((keys, values), dim=-1))
    between = 2 * KINDS + torch.randint(FILLERS, (rows, filler), generator=generator)
    facts = [shuffled(facts).flatten(1) for facts in rounds]
    ids = torch.cat((*facts, between, shuffled(rounds[-1]).flatten(1)), dim=1)
    size = rounds[-1].shape[-1]
    mask = torch.zeros(rows, ids.shape[1] - 1, dtype=torch.bool)
    mask[:, ids.shape[1] - size * pairs + size - 2 :: size] = True
    return ids, mask


def recall_row(part: str, form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model on a task of recall; its share of right answers to unseen questions."""
    device, task = pick_device(options.device), dict(TASKS[part])
    pairs, fillers, asked = task.pop("pairs"), task.pop("filler", (16,)), task.pop("asked")
    generator = torch.Generator().manual_seed(seed)

    def batch_of(step: int) -> tuple[Tensor, Tensor]:
        here = pairs[step % len(pairs)], fillers[step % len(fillers)]
        return draw_batch(options.rows, *here, generator, **task)

    torch.manual_seed(seed)
    network = make_network(form, 2 * KINDS + FILLERS, window=8).to(device)
    train(network, batch_of, options.steps, device)
    row = {"accuracy": {}, "parameters": num_parameters(network), "state": state_size(network)}
    for value in asked[1]:
        here = {"pairs": pairs[0], "filler": fillers[0], asked[0]: value}
        unseen = torch.Generator().manual_seed(10**6)
        ids, mask = draw_batch(64, **here, generator=unseen, **task)
        right = carried(network, ids.to(device), lambda z, target: z.argmax(-1) == target)
        row["accuracy"][str(value)] = right.cpu()[mask].float().mean().item()
    return row


# --- documents

WINDOW, LENGTH, LONGEST = 64, 512, 2048  # bytes attended to, trained on, read of a document


def documents_of(path: str) -> tuple[list[bytes], list[bytes]]:
    """Documents to learn and to hold out, one in ten: rows' "text", or slices of a plain text.

    Only those longer than what a training piece shows.
    """
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".jsonl"):
        found = [json.loads(line)["text"].encode() for line in text.splitlines()]
    else:
        data = text.encode()
        found = [data[i : i + LONGEST] for i in range(0, len(data), LONGEST)]
    found = [document for document in found if len(document) > LENGTH]
    random.Random(0).shuffle(found)
    cut = len(found) // 10
    return found[cut:], found[:cut]


def documents_row(form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model on bytes; its bits per byte of the documents held out."""
    device = pick_device(options.device)
    learned, held = documents_of(options.data)
    draws = random.Random(seed)

    def piece() -> list[int]:
        document = draws.choices(learned, weights=[len(d) for d in learned])[0]
        start = draws.randrange(len(document) - LENGTH)
        return list(document[start : start + LENGTH + 1])

    torch.manual_seed(seed)
    network = make_network(form, 256, WINDOW).to(device)
    rows = max(1, options.rows // 2)
    train(network, lambda _: (torch.tensor([piece() for _ in range(rows)]), None),
          options.steps, device)  # fmt: skip
    ids = torch.zeros(len(held), LONGEST, dtype=torch.long)
    there = torch.zeros(len(held), LONGEST, dtype=torch.bool)
    for i, document in enumerate(held):
        size = len(document[:LONGEST])
        ids[i, :size], there[i, :size] = torch.tensor(list(document[:LONGEST])), True
    nats, emptied = (carried(network, ids.to(device), nats_of, f).cpu() for f in (False, True))
    there = there[:, 1:]
    late = there & (torch.arange(LONGEST - 1) >= LENGTH)
    late_name = f"from {LENGTH}"
    bits = {"all": nats[there], late_name: nats[late], f"{late_name}, emptied": emptied[late]}
    return {
        "bits_per_byte": {k: v.double().mean().item() / math.log(2) for k, v in bits.items()},
        "parameters": num_parameters(network), "state": state_size(network),
        "data": Path(options.data).name, "documents": len(held),
    }  # fmt: skip


def nats_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats (B,T) of the targets."""
    return F.cross_entropy(logits.float().mT, targets, reduction="none")


# --- rows

PARTS = {  # the forms of each part
    "pairs": ("window", "product", "product wide", "linear", "delta"),
    "changed": ("product", "product wide", "linear", "delta"),
    "ordered": ("product wide", "linear", "delta", "delta alone"),
    "distance": ("product", "product wide", "linear", "delta"),
    "documents": ("window", "product", "linear", "delta"),
}
KEY = ("part", "form", "seed", "steps", "rows", "data")


def measure(part: str, form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    key = key_of(part, form, seed, options) | {"device": pick_device(options.device).type}
    if part == "documents":
        return key | documents_row(form, seed, options)
    return key | recall_row(part, form, seed, options)


def key_of(part: str, form: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a row is recognised by."""
    data = Path(options.data).name if part == "documents" else None
    return {
        "part": part, "form": form, "seed": seed, "steps": options.steps, "rows": options.rows,
        "data": data,
    }  # fmt: skip


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean over the seeds and its interval, of all that was asked."""
    lines = []
    for (part, form, steps, data), some in grouped(rows, "part", "form", "steps", "data").items():
        measured = "bits_per_byte" if part == "documents" else "accuracy"
        cells = [
            f"{asked}: {shown(mean_of([row[measured][asked] for row in some]), 3)}"
            for asked in some[0][measured]
        ]
        part = part if data is None else f"{part} ({data})"
        first = some[0]
        lines.append([part, form, str(steps), str(len(some)), f"{first['parameters']:,}",
                      f"{first['state']:,}", "; ".join(cells)])  # fmt: skip
    lines.sort(key=lambda line: list(PARTS).index(line[0].split(" ")[0]))
    head = ("part", "form", "steps", "seeds", "parameters", "state", "accuracy, or bits per byte")
    return table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS][:-1])
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="only these")
    parser.add_argument("--data", help="rows (.jsonl) or a plain text, for the documents")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=32, help="sequences of a training step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at the same time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    if "documents" in options.parts and options.data is None and options.command == "run":
        parser.error("the documents need --data")
    if options.command == "run":
        run(options)
    print(results_table(read_rows(NAME)))


def run(options: argparse.Namespace) -> None:
    """Measure what has no row yet, `jobs` models at a time."""
    known = {tuple(row.get(name) for name in KEY) for row in read_rows(NAME)}
    todo = [
        (part, form, seed)
        for part, seed in itertools.product(options.parts, options.seeds)
        for form in PARTS[part]
        if form in (options.forms or FORMS)
        and tuple(key_of(part, form, seed, options).values()) not in known
    ]
    with get_context("spawn").Pool(options.jobs) as pool:
        for row in pool.imap_unordered(partial(_measure, options), todo):
            print(row, flush=True)
            write_row(NAME, row)


def _measure(options: argparse.Namespace, case: tuple[str, str, int]) -> dict[str, Any]:
    return measure(*case, options)


if __name__ == "__main__":
    main()

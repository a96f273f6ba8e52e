"""What the texts of a model of transformers look like to it: the stability monitor's calibration.

Such a model comes without its training text. TEXTS were written for this file, so no model has
read them; each is read to its first TOKENS tokens, and so are the damaged texts made of it
(`text_class.calibrated`). The calibration of a model is kept beside its weights, in FILE.

Shapes: N = 12 texts, T = 64 tokens, V vocabulary.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from entropy_core.information import entropy_nats
from reso_llm.decoding.text_class import StabilityCalibration, calibrated
from run_core.checkpoint import build_from

FILE, TOKENS, ROWS = "stability.json", 64, 4  # ROWS are read at once: vocabularies are large

TEXTS = (
    "The ferry leaves at seven in the morning, when the harbour is still grey and the fishermen "
    "are mending their nets on the quay. My grandmother used to take it every Saturday to sell "
    "eggs on the other side of the bay. She never bought a ticket, because the captain had been "
    "at school with her and liked the cakes that she brought him in winter.",
    "A bridge of stone stands because every block presses on the next one. The weight of the road "
    "pushes the arch outwards, and the heavy walls at both ends push back. As long as nothing "
    "moves, the stones need no mortar at all. That is why some bridges of the Romans still carry "
    "carts and tractors today, although their builders knew no steel.",
    "I started to learn the piano when I was forty, which everybody told me was too late. For the "
    "first year I played nothing but scales and a short piece about a donkey. Then one evening my "
    "hands found a chord that I had only heard on the radio. I have practised before breakfast "
    "ever since, and the neighbours have not complained yet.",
    "To make a good soup you need little more than onions, time and salt. Cut the onions thinly "
    "and let them brown slowly in butter for half an hour. Add a glass of wine, then hot water "
    "and a few old crusts of bread. Cook it until the spoon stands up by itself, and eat it with "
    "the windows closed, so that nobody comes to ask for some.",
    "Bees tell each other where the flowers are by dancing. The angle of the dance shows the "
    "direction from the sun, and its length shows how far they have to fly. A scout that has "
    "found a rich field dances longer and with more energy than the others. Within minutes half "
    "of the hive knows the way, even if clouds have covered the sky in the meantime.",
    "The committee met on Tuesday to discuss the repair of the town hall. Two members wanted to "
    "replace the roof at once, because rain comes in above the stairs. The treasurer answered "
    "that there is money for the windows only this year. After three hours they agreed to put a "
    "large bucket on the landing and to meet again at the end of the month.",
    "When you plan a long walk, begin with the shoes. New ones should be worn at home for a week "
    "before you trust them on a mountain. Take two pairs of socks, a map made of paper and more "
    "water than you think you need. Tell a friend when you mean to be back. Most accidents happen "
    "on the way down, when people are tired and think of dinner.",
    "Our teacher once asked us to weigh the air in the classroom. We laughed, but he let us "
    "measure the room and look up the numbers in a table. It turned out that the air above our "
    "desks was heavier than all of us together. I have forgotten most of what I learned in that "
    "school, but I still look at empty rooms with some respect.",
    "The library closes at eight, but nobody minds if you stay a little longer. On rainy evenings "
    "there are students asleep on their books, a man who reads the same newspaper twice, and a "
    "girl who draws horses in the margins of her homework. The librarian switches the lamps off "
    "one after the other, slowly, like somebody who puts children to bed.",
    "Old maps are full of islands that do not exist. A tired sailor saw a cloud on the horizon, "
    "wrote down its place, and the next printer copied it. Once it was on paper, others looked "
    "for it and some of them even claimed that they had landed there. It took two hundred years "
    "and many disappointed captains until the last of these islands was erased.",
    "Please return the keys to the desk before you leave. The rubbish goes into the green "
    "container behind the house, and the bottles into the box beside it. If the heating makes a "
    "strange noise, turn the small wheel on the left until it stops. We hope that you had a good "
    "week here, and that the dog next door did not wake you too early.",
    "The first computers filled a hall and could do less than a cheap watch can do now. People "
    "who worked with them wore coats, since the machines had to be kept cold. A moth in a relay "
    "could spoil the result of a whole night. Yet the questions that were asked then, about what "
    "can be computed at all, have not become any easier with faster machines.",
)


def stability_calibration(
    model: nn.Module, encode: Callable[[str], list[int]]
) -> StabilityCalibration:
    """The calibration of a model, from its reading of TEXTS; encode gives the ids of a text."""
    coded = [encode(text) for text in TEXTS]
    T = min(TOKENS, *map(len, coded))
    clean = np.array([ids[:T] for ids in coded])

    @torch.inference_mode()
    def read(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        surprises, entropies = [], []
        for rows in torch.from_numpy(ids).to(model.device).split(ROWS):
            log_p = model(input_ids=rows, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            surprises.append(-log_p.gather(-1, rows[:, 1:, None])[..., 0].cpu())
            entropies.append(entropy_nats(log_p).cpu())
        return torch.cat(surprises).numpy(), torch.cat(entropies).numpy()

    return calibrated(read, clean, np.random.default_rng(0))


def kept_calibration(directory: Path) -> StabilityCalibration | None:
    """The calibration kept beside the weights in a directory; None where there is none.

    Raises CheckpointError for a file that is not one.
    """
    file = directory / FILE
    if not file.is_file():
        return None
    return build_from(StabilityCalibration, json.loads(file.read_text("utf-8")), str(file))


def keep_calibration(directory: Path, calibration: StabilityCalibration) -> None:
    """Write the calibration of a model beside its weights."""
    (directory / FILE).write_text(json.dumps(calibration._asdict()), encoding="utf-8")

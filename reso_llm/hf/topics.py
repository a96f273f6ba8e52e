"""When a goal counts as achieved by a model of transformers, which comes without its training text.

Replies and what each is about, written for this file; a reply with what another one is about are
the unrelated pairs of `agency.calibrate`. Token embeddings of such models tell texts apart by
shared words more than by meaning: a goal is achieved where its words are said.

Shapes: N = 24 replies, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reso_llm.session.agency import GoalCalibration, calibrate

REPLIES = {
    "gardening and vegetables": "The beans are up already, and the tomatoes need more sun.",
    "a trip to the mountains": "We climbed to the hut and watched the sunrise from the top.",
    "learning the guitar": "I practise three chords every evening, and my fingers still hurt.",
    "baking bread": "Let the dough rest overnight, then put it into a very hot oven.",
    "the train to work": "It was late again, so I read my book on the platform for an hour.",
    "birds in winter": "The robins come to the feeder in the morning, when there is snow.",
    "painting a room": "Two coats of white are enough if you clean the walls first.",
    "a broken phone": "The screen went black after it fell, and the shop cannot repair it.",
    "chess": "She gave up her queen and won the game six moves later.",
    "a visit to the dentist": "He found one small hole, and it did not hurt at all.",
    "swimming lessons": "The children can float on their backs now and like the deep end.",
    "the history of bridges": "The oldest of them is made of stone and was built by the Romans.",
    "saving money": "Put a tenth of your salary aside each month before you spend any.",
    "a birthday party": "There were balloons, a chocolate cake and twelve very loud guests.",
    "stars and planets": "Jupiter is bright tonight; with binoculars you can see its moons.",
    "a lost dog": "The neighbours found him asleep behind the church, wet and hungry.",
    "moving to a new city": "I know nobody here yet, but the flat is cheap and close to the park.",
    "writing a letter": "Begin with what you remember of her, and end before you repeat yourself.",
    "the theatre": "The second act was long, but the actors and the costumes were wonderful.",
    "a bicycle": "The chain needs oil, and the back wheel makes a strange noise.",
    "medicine for a cold": "Drink hot tea, sleep a lot, and see a doctor if the fever stays.",
    "learning Spanish": "The verbs are hard, so I write ten sentences a day and read them aloud.",
    "a storm at sea": "The waves were higher than the boat, and the captain turned back to port.",
    "running a shop": "On Saturdays we sell more than in the rest of the week together.",
}


def topic_calibration(text_vector: Callable[[str], Tensor]) -> GoalCalibration:
    """The calibration for a model's vectors of texts, str -> (D,). Raises as `calibrate` does."""
    replies = torch.stack([text_vector(reply) for reply in REPLIES.values()]).float()
    goals = torch.stack([text_vector(goal) for goal in REPLIES]).float()
    centre = replies.mean(0)
    replies, goals = F.normalize(replies - centre, dim=-1), F.normalize(goals - centre, dim=-1)
    unrelated = (replies @ goals.mT)[~torch.eye(len(REPLIES), dtype=torch.bool)]
    return calibrate(unrelated, centre=centre.tolist())

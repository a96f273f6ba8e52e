"""The content words of a text as targets of attention (`reso_llm.session.foci`).

Shapes: T tokens, V vocabulary, D width.
"""

from collections.abc import Sequence

from torch import Tensor

from reso_llm.generation.tokens import Tokens
from reso_llm.session.foci import Target
from reso_llm.session.words import WORD, is_content
from reso_llm.stages.goal import text_vector


def targets_of(
    tokenizer: Tokens,
    ids: Sequence[int],
    surprises: Sequence[float],
    received: Sequence[float],
    table: Tensor | None,
    num_prompt: int = 0,
) -> list[Target]:
    """The content words of a text (T,) as targets; one that comes again is one target.

    Words of the chat template are left out of its first num_prompt tokens.

    Surprise is the largest of a word's tokens; attention received is their sum, as a share of that
    of the word with most. The vector is that of its tokens in the table (V,D); without a table
    there is none, and no goal is relevant to it.
    """
    places = word_places(tokenizer, ids, num_prompt)
    attention = {word: float(sum(received[i] for i in at)) for word, at in places.items()}
    most = max(attention.values(), default=0.0) or 1.0
    return [
        Target(
            word,
            max(0.0, max(surprises[i] for i in at)),
            None if table is None else text_vector(table, [ids[i] for i in at]),
            attention[word] / most,
        )
        for word, at in places.items()
    ]


def word_places(tokenizer: Tokens, ids: Sequence[int], num_prompt: int = 0) -> dict[str, list[int]]:
    """The content words of a text, as first written, and the places of their tokens.

    A word that the end of the ids may have cut is left out, and so are words of the chat template
    among the first num_prompt ids.
    """
    decoder = tokenizer.stream_decoder()
    text, owners, unfinished = "", [], []
    for at, token in enumerate(ids):
        piece = "\n" if token in tokenizer.special_ids else decoder.feed(token)
        unfinished.append(at)  # a character may take several tokens
        if piece:
            owners += [tuple(unfinished)] + [(at,)] * (len(piece) - 1)
            text, unfinished = text + piece, []
    names: dict[str, str] = {}
    places: dict[str, list[int]] = {}
    for match in WORD.finditer(text):
        word = match.group()
        if match.end() < len(text) and is_content(word.lower()):
            tokens = {at for owner in owners[slice(*match.span())] for at in owner}
            if min(tokens) < num_prompt and word.lower() in tokenizer.template_words:
                continue
            name = names.setdefault(word.lower(), word)
            places.setdefault(name, []).extend(sorted(tokens))
    return places

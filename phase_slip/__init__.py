"""Phase-Slip for any causal language model of transformers, as its README calls it.

    import phase_slip

    sampler = phase_slip.Sampler(model, tokenizer)
    result = sampler.generate("The scientist opened the door and", max_length=100, seed=0)
    print(result.text, result.events)

The controller is `reso_llm.decoding.controllers.PhaseSlip`, the loop `reso_llm.hf.engine.HFEngine`;
`Sampler.published` has the published shocks. `python -m phase_slip` shows the slips of both in a
text. What they are worth is measured by `python evaluate.py phase-slip`.
"""

from phase_slip.sampler import Sampler

__all__ = ["Sampler"]

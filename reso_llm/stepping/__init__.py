"""The parts of `reso_llm.stepper`: the model's stages and layers in numpy, for one more token."""

"""ResoLLM: an entropy-controlled language model trained from scratch."""

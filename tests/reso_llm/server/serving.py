"""A server of a tiny model on a free port of this machine, for the tests of this folder."""

import contextlib
import threading
import time

from reso_llm.inference import ResoLLMInference
from reso_llm.server.app import create_app
from reso_llm.server.serve import listening_socket


def tiny_engine(make_model, tokenizer, max_seq_len=64, **changes):
    """An engine of random weights over bytes, with every stage that the page can switch."""
    stages = ("prime_embedding", "prsc", "kuramoto", "coherence_gate", "agency", "temporal_smf")
    model = make_model(
        stages=(*stages, "echo", "stability"), vocab_size=261, max_seq_len=max_seq_len, **changes
    )
    return ResoLLMInference(model, tokenizer, model.config)


@contextlib.contextmanager
def running(engine, token=None, **limits):
    """(address, desk) of a server that runs in a thread meanwhile."""
    import uvicorn

    app = create_app(engine, "tiny", token, **limits)
    listening = listening_socket("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.desk
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(condition, seconds=20):
    """Wait for a condition, and fail where it does not come to hold."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def endless(engine):
    """Let no text of this engine end of itself."""
    tokenizer = engine.tokenizer

    class Endless(type(tokenizer)):
        end_ids = (tokenizer.system_id,)  # which is never written

    tokenizer = Endless.from_json(tokenizer.to_json())
    engine.tokenizer = engine.model.tokenizer = tokenizer

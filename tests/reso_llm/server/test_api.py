"""The API as OpenAI's own client sees it, and everything that it refuses."""

import concurrent.futures
import json
import math
import random
import socket
import time
from urllib.parse import urlsplit

import pytest

openai = pytest.importorskip("openai", reason="the API is tested with OpenAI's client")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the server needs the extra web")

from serving import endless, running, tiny_engine, until  # noqa: E402

from reso_llm.decoding.controllers import SRB, controllers_by_name  # noqa: E402
from reso_llm.server import asked  # noqa: E402
from reso_llm.server.asked import MAX_TOKENS  # noqa: E402
from reso_llm.server.guard import MAX_BODY  # noqa: E402
from reso_llm.session.session import Session  # noqa: E402

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def engine(byte_tokenizer):
    from conftest import make_tiny_model

    return tiny_engine(make_tiny_model, byte_tokenizer)


@pytest.fixture(scope="module")
def served(engine):
    with running(engine) as (address, desk):
        yield address, desk


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client, **options):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "seed": 3} | options
    return client.chat.completions.create(**asked)


# --- what it answers


def test_it_names_its_model(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"


def test_a_reply_is_the_engines(client, engine):
    reply = chat(client, temperature=0.9, top_p=0.8, extra_body={"reso": {"top_k": 50}})
    options = dict(temperature=0.9, top_p=0.8, top_k=50, repetition_penalty=1.1)
    result = engine.generate([("user", "hello")], 8, seed=3, **options)
    (choice,) = reply.choices
    assert choice.message.content == result.text
    assert choice.finish_reason == ("length" if result.stop_reason == "length" else "stop")
    assert reply.usage.completion_tokens == result.tokens_generated
    assert reply.usage.prompt_tokens == result.prompt_tokens
    facts = choice.model_extra["reso"]
    assert facts["seed"] == 3
    assert [t["entropy_nats"] for t in facts["tokens"]] == list(result.entropy_trace)


def test_a_stream_is_the_same_reply(client):
    whole = chat(client, logprobs=True, top_logprobs=3)
    stream = chat(
        client, logprobs=True, top_logprobs=3, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    logprobs = [c.logprobs.content for k in chunks for c in k.choices if c.logprobs]
    assert [token for piece in logprobs for token in piece] == whole.choices[0].logprobs.content
    facts = [c.model_extra["reso"] for c in chunks if "reso" in c.model_extra]
    assert len(facts) == whole.usage.completion_tokens + 1
    for fact in facts[:-1]:
        assert {"entropy_nats", "surprise_nats", "coherence", "layers", "stability"} <= set(fact)
        assert 0 <= fact["coherence"] <= 1
    assert facts[-1]["seed"] == 3


def test_log_probabilities_are_those_of_the_model(client):
    tokens = chat(client, logprobs=True, top_logprobs=20, temperature=0).choices[0].logprobs.content
    for token in tokens:
        best = [pair.logprob for pair in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert sum(map(math.exp, best)) <= 1 + 1e-6
        if token.token != "\N{REPLACEMENT CHARACTER}":
            assert bytes(token.bytes).decode() == token.token


def test_greedy_takes_the_most_probable(client):
    reply = chat(client, temperature=0, logprobs=True, top_logprobs=1,
                 extra_body={"reso": {"repetition_penalty": 1.0}})  # fmt: skip
    for token in reply.choices[0].logprobs.content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "extra", "options"),
    [
        ({"frequency_penalty": 1.5}, {}, {}),
        ({"presence_penalty": 1.5}, {}, {}),
        ({}, {"stop_token_ids": [38]}, {}),
        ({}, {"stop_token_ids": [38], "min_tokens": 4}, {}),
        ({}, {}, {"bad_words": ["B"]}),
        ({}, {}, {"dry_multiplier": 3.0, "dry_allowed_length": 1}),
        ({}, {}, {"mirostat_tau": 0.5}),
        ({}, {}, {"xtc_probability": 1.0}),
    ],
)
def test_samplers_are_those_of_the_engine(client, engine, body, extra, options):
    """A bias leaves two letters, so that every option is felt."""
    assert engine.tokenizer.encode("AB") == [37, 38]
    bias = {37: 80, 38: 82}
    asked = dict(max_tokens=12, seed=3, temperature=4.0, top_p=1.0)
    reso = {"repetition_penalty": 1.0, "auto_temperature": False}
    texts = [
        chat(client, **asked, **b, logit_bias={str(i): z for i, z in bias.items()},
             extra_body={"reso": reso | o, **e}).choices[0].message.content
        for b, e, o in ((body, extra, options), ({}, {}, {}))
    ]  # fmt: skip
    same = engine.generate(
        [("user", "hello")], 12, seed=3, temperature=4.0, logit_bias=bias, auto_temperature=False,
        **body, **extra, **options,
    )  # fmt: skip
    assert texts[0] == same.text
    assert texts[0] != texts[1]


def test_n_texts_have_seeds_in_a_row(client):
    many = chat(client, n=3, seed=5)
    alone = [chat(client, seed=5 + i).choices[0].message.content for i in range(3)]
    assert [choice.message.content for choice in many.choices] == alone
    assert [choice.index for choice in many.choices] == [0, 1, 2]


def test_a_stop_string_ends_the_text(client):
    text = chat(client, max_tokens=30).choices[0].message.content
    stop = text[3:5]
    cut = chat(client, max_tokens=30, stop=[stop]).choices[0]
    assert cut.message.content == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def test_completions(client, engine):
    asked = dict(model="tiny", prompt=["ab", "cd"], max_tokens=6, seed=1, logprobs=2)
    reply = client.completions.create(**asked)
    options = dict(temperature=0.7, top_p=0.9, repetition_penalty=1.1)
    expected = [engine.generate(p, 6, seed=1 + i, **options) for i, p in enumerate(["ab", "cd"])]
    assert [choice.text for choice in reply.choices] == [result.text for result in expected]
    for choice in reply.choices:
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    streamed = client.completions.create(**asked, stream=True)
    texts = ["", ""]
    for chunk in streamed:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [result.text for result in expected]


def test_roles_and_parts(client):
    system = {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text",
              "text": "brief"}]}  # fmt: skip
    plain = {"role": "system", "content": "be brief"}
    texts = [chat(client, messages=[m, *HELLO]).choices[0].message.content for m in (system, plain)]
    assert texts[0] == texts[1]


def test_what_asks_for_nothing_is_allowed(client):
    nothing = dict(frequency_penalty=0, presence_penalty=0.0, tools=[], logit_bias={})
    first, second = chat(client, **nothing), chat(client)
    assert first.choices[0].message == second.choices[0].message


def test_a_control_token_in_a_message_is_text(client, engine):
    words = "<|end|><|assistant|>"
    reply = chat(client, messages=[{"role": "user", "content": words}])
    assert reply.usage.prompt_tokens == len(engine.prompt_ids([("user", "x" * len(words))]))


# --- what it adds


def test_a_goal_and_controllers(client, engine):
    options = {"goal": "music", "controllers": ["phase_slip", "srb"]}
    reply = chat(client, max_tokens=40, extra_body={"reso": options})
    facts = reply.choices[0].model_extra["reso"]
    assert list(facts["goal_progress"]) == ["music"]
    assert not engine.session.agency.active_goals
    jolted = {"reso": {"controllers": ["phase_slip"], "repetition_penalty": 1.0}}
    looping = chat(client, max_tokens=60, temperature=0, extra_body=jolted)
    events = [e for t in looping.choices[0].model_extra["reso"]["tokens"]
              for e in t.get("events", [])]  # fmt: skip
    assert all(event["controller"] == "phase_slip" for event in events)
    assert events


@pytest.mark.parametrize("stage", ["echo", "kuramoto", "prsc", "temporal_smf"])
def test_a_silent_stage_changes_the_same_reply(client, stage):
    shown = {"logprobs": True, "max_tokens": 30}
    messages = [{"role": "user", "content": "abcabcabcabc"}]
    full = chat(client, messages=messages, **shown)
    without = chat(client, messages=messages, **shown, extra_body={"reso": {"without": [stage]}})
    again = chat(client, messages=messages, **shown)
    assert again.choices[0].logprobs == full.choices[0].logprobs
    assert without.choices[0].logprobs != full.choices[0].logprobs


def test_memory(served, client):
    address, _ = served
    with httpx.Client(base_url=address) as http:
        before = http.get("/reso/memories").json()["memories"]
        stored = http.post("/reso/memories", json={"text": "Zork lives in Quendor."}).json()
        assert stored["memories"][0]["text"] == "Zork lives in Quendor."
        assert len(stored["memories"]) == len(before) + 1
        assert stored["memories"][0]["age"] == 0
        chat(client)
        assert http.get("/reso/memories").json()["memories"][0]["age"] == 1
        found = http.post("/reso/recall", json={"query": "Where does Zork live?"}).json()["found"]
        assert found[0]["text"] == "Zork lives in Quendor."
        for body in ({}, {"text": ""}, {"text": 3}, {"text": "x", "importance": -1}):
            assert http.post("/reso/memories", json=body).status_code == 400


def test_it_tells_what_can_be_switched(served):
    about = httpx.get(f"{served[0]}/reso/mind").json()
    assert {"echo", "kuramoto", "prsc"} <= {stage["name"] for stage in about["stages"]}
    assert set(controllers_by_name(SRB())) == {c["name"] for c in about["controllers"]}
    assert about["max_entropy_nats"] == pytest.approx(math.log(261))


def test_a_long_conversation_loses_its_oldest_turns(client):
    turns = [{"role": role, "content": f"{i} {role}"} for i in range(40)
             for role in ("user", "assistant")]  # fmt: skip
    reply = chat(client, messages=[{"role": "system", "content": "s"}, *turns, *HELLO])
    (note,) = reply.choices[0].model_extra["reso"]["notes"]
    assert "oldest turns are left out" in note
    assert reply.usage.prompt_tokens <= 64 - 8


def test_a_question_of_a_hundred_contexts_is_answered(client):
    messages = [{"role": "user", "content": "why? " * 1300}]
    reply = chat(client, messages=messages)
    assert "oldest" in reply.choices[0].model_extra["reso"]["notes"][0]
    assert reply.usage.completion_tokens <= 8


# --- what it refuses

REFUSED = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, "messages[0].name"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": MAX_TOKENS + 1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": {"a": 1}}, "stop"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"999999": 1}}, None),
    ({"min_tokens": -1}, "min_tokens"),
    ({"stop_token_ids": "x"}, "stop_token_ids"),
    ({"reso": {"dry_base": 0}}, "dry_base"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"user": "somebody"}, "user"),
    ({"temprature": 1}, "temprature"),
    ({"reso": {"controllers": ["phase_slop"]}}, "reso.controllers"),
    ({"reso": {"goals": "x"}}, "reso.goals"),
    ({"reso": {"guidance": -1}}, "guidance"),
    ({"reso": []}, "reso"),
]


@pytest.mark.parametrize(("wrong", "param"), REFUSED)
def test_a_wrong_or_unbuilt_parameter_is_refused_by_name(served, wrong, param):
    answer = httpx.post(served[0] + CHAT, json={"messages": HELLO, "max_tokens": 2} | wrong)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert "\n" not in error["message"]


def test_an_unknown_stage_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="expected stages of the model"):
        chat(client, extra_body={"reso": {"without": ["warp"]}})


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        chat(client, model="gpt-4o")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"seed": ' + b"9" * 6000 + b"}",
     b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"],
)  # fmt: skip
def test_a_body_that_is_no_object_is_refused(served, body):
    answer = httpx.post(served[0] + CHAT, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("size", [MAX_BODY + 1, 3_000_000])
def test_a_huge_body_is_refused(served, size):
    with httpx.Client() as http:
        assert http.post(served[0] + CHAT, content=b" " * size).status_code == 413
        chunked = (b" " * 50_000 for _ in range(size // 50_000 + 1))
        assert http.post(served[0] + CHAT, content=chunked).status_code == 413


def test_errors_of_the_router_have_the_same_form(served):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", CHAT, 405)):
        answer = httpx.request(method, served[0] + path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


# --- who may ask


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": "["},
     {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}],
)  # fmt: skip
def test_a_foreign_page_is_refused(served, headers):
    for method, path in (("POST", CHAT), ("GET", "/reso/memories"), ("GET", "/")):
        answer = httpx.request(method, served[0] + path, headers=headers)
        assert answer.status_code == 403


def test_the_own_page_may_ask(served):
    assert httpx.get(f"{served[0]}/v1/models", headers={"Origin": served[0]}).status_code == 200
    assert "default-src 'self'" in httpx.get(served[0]).headers["content-security-policy"]


def test_a_token_is_asked_for(engine):
    with running(engine, token="a-token-of-20-letters") as (address, _):
        assert httpx.get(f"{address}/").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é"}):
            encoded = {k: v.encode("latin-1") for k, v in headers.items()}
            answer = httpx.get(f"{address}/v1/models", headers=encoded)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
        good = {"Authorization": "Bearer a-token-of-20-letters", "Host": "by.any.name"}
        assert httpx.get(f"{address}/reso/mind", headers=good).status_code == 200
        assert httpx.get(f"{address}/reso/mind").status_code == 401


# --- many at once


def test_twenty_clients_get_what_each_would_get_alone(client, engine):
    # Stored texts fade with every text that is written, whoever asks for it.
    engine.session = Session(engine.config)

    def ask(seed):
        options = dict(max_tokens=24, seed=seed, extra_body={"reso": {"controllers": CONTROLLED}})
        return chat(client, messages=[{"role": "user", "content": "abc" * (seed % 7)}], **options)

    def content(reply):
        return reply.choices[0].message.content, reply.choices[0].model_extra["reso"]["tokens"]

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        together = [content(reply) for reply in pool.map(ask, range(20))]
    assert together == [content(ask(seed)) for seed in range(20)]


CONTROLLED = ["phase_slip", "stochastic_resonance", "stability_temperature"]


def abandoned(address, **options):
    """A raw connection that has asked for a text; the caller closes it."""
    wanted = {"messages": HELLO, "max_tokens": MAX_TOKENS, "seed": 0} | options
    body = json.dumps(wanted).encode()
    where = urlsplit(address)
    connection = socket.create_connection((where.hostname, where.port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(byte_tokenizer, stream):
    """Guards the hang of a generator that nobody reads any more and that holds the engine."""
    from conftest import make_tiny_model

    engine = tiny_engine(make_tiny_model, byte_tokenizer)
    endless(engine)
    with running(engine, num_slots=1, max_waiting=0) as (address, desk):
        with abandoned(address, stream=stream) as connection:
            until(lambda: desk.load == (1, 0))
            if stream:
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            busy = httpx.post(address + CHAT, json={"messages": HELLO, "max_tokens": 2})
            assert busy.status_code == 429
            assert busy.json()["error"]["type"] == "rate_limit_error"
        left = time.monotonic()
        until(lambda: desk.load == (0, 0), seconds=1)
        answer = httpx.post(address + CHAT, json={"messages": HELLO, "max_tokens": 2})
        assert answer.status_code == 200
        assert time.monotonic() - left < 1


def test_a_reader_that_does_not_read_holds_nobody_up(byte_tokenizer):
    from conftest import make_tiny_model

    engine = tiny_engine(make_tiny_model, byte_tokenizer)
    endless(engine)
    with running(engine, num_slots=2, max_waiting=0) as (address, desk):
        with abandoned(address, stream=True):  # asks, and never reads
            until(lambda: desk.load[0] == 1)
            began = time.monotonic()
            answer = httpx.post(address + CHAT, json={"messages": HELLO, "max_tokens": 2})
            assert answer.status_code == 200
            assert time.monotonic() - began < 2
        until(lambda: desk.load == (0, 0), seconds=2)


def test_it_survives_a_thousand_odd_bodies(served, client, monkeypatch):
    monkeypatch.setattr(asked, "DEFAULT_TOKENS", 1)
    generator = random.Random(0)
    good = json.dumps({"messages": HELLO, "max_tokens": 2, "seed": 1}).encode()
    statuses = set()
    with httpx.Client(base_url=served[0]) as http:
        for i in range(1000):
            body = odd_value(generator, 0) if i % 2 else None
            content = json.dumps(body).encode() if i % 2 else damaged(generator, good)
            path = generator.choice([CHAT, "/v1/completions", "/reso/memories", "/reso/recall"])
            if path == "/reso/memories" and i % 2 == 0:
                path = CHAT
            statuses.add(http.post(path, content=content).status_code)
    assert statuses <= {200, 400, 404}
    assert 400 in statuses
    assert chat(client).choices


def damaged(generator, body):
    """A body with a few bytes changed, cut or doubled."""
    body = bytearray(body)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(body))
        body[at : at + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
    return bytes(body)


def odd_value(generator, depth):
    """A value of JSON with the API's own keys at its top."""
    kinds = [None, True, 0, -1, 1e308, float("nan"), 2**70, "", "x", "\ud800", "<|end|>", [], {}]
    if depth == 0:
        keys = ["messages", "prompt", "seed", "n", "stop", "temperature", "logprobs", "reso",
                "stream", "max_tokens", "text", "query", "top_p", "zz"]  # fmt: skip
        chosen = generator.sample(keys, generator.randint(0, 6))
        value = {key: odd_value(generator, 1) for key in chosen}
        return value | ({"messages": HELLO, "max_tokens": 1} if generator.random() < 0.3 else {})
    if depth < 3 and generator.random() < 0.4:
        return [odd_value(generator, depth + 1) for _ in range(generator.randint(0, 3))]
    if depth < 3 and generator.random() < 0.3:
        keys = generator.sample(["role", "content", "goal", "type", "text"], 2)
        return {key: odd_value(generator, depth + 1) for key in keys}
    return generator.choice(kinds)

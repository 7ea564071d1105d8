"""The choice of a replica for a prompt."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

pytest.importorskip("ray")
from llcuda.ray.forwarded import body_facts, owner_of, replica_tag
from llcuda.ray.router import PrefixMap
from llcuda.server.chunks import ids_begin_with, new_id

IDLE = {"a": 0, "b": 0}
ONE, TWO = {"demo": "demo"}, {"demo": "demo", "fox": "fox", "alias": "fox"}


def keys(text: str, model: str = "demo") -> tuple[bytes, ...]:
    """Return the hashes of the beginnings of a chat's prompt."""
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return body_facts(json.dumps(body).encode(), TWO).prefix


def test_prompts_with_one_beginning_share_its_hashes() -> None:
    shared = "Once upon a time there was a fox. " * 20
    first, second = keys(shared + "And it slept." * 20), keys(shared + "It ran away." * 20)
    common = sum(one == other for one, other in zip(first, second, strict=False))
    assert 4 <= common < len(second)
    assert first[common:] and not {*first[common:]} & {*second}
    assert not {*first} & {*keys(shared, "fox")}  # another model has another cache


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b"{", b'{"messages": 1}', b"\xff", b'{"model": [], "prompt": {}}', b"[" * 10**6],
)
def test_a_wrong_body_has_no_prefix(body: bytes) -> None:
    assert () == body_facts(body, TWO).prefix


def test_a_large_body_is_hashed_as_it_is() -> None:
    body = b'{"prompt": "' + b"x" * 2**21 + b'"}'
    assert body_facts(body, ONE).prefix == body_facts(body + b" ", ONE).prefix != ()


def test_the_body_names_the_model_the_time_and_the_owner() -> None:
    with ids_begin_with(replica_tag("r1")):
        name = new_id("resp_")
    body = {"model": "alias", "timeout": 2, "previous_response_id": name}
    facts = body_facts(json.dumps(body).encode(), TWO)
    assert ("fox", 2.0, replica_tag("r1")) == (facts.model, facts.timeout, facts.owner)
    assert "" == body_facts(b'{"model": "anything"}', ONE).model
    assert replica_tag("r1") == owner_of(f"/v1/responses/{name}/input_items")
    assert "" == owner_of("/v1/responses/resp_1")


def test_a_known_beginning_stays_and_new_ones_spread() -> None:
    known = PrefixMap(max_imbalance=4)
    chosen = {}
    for number in range(40):
        text = keys(f"{number} " * 100)
        chosen[text] = known.choose("", text, IDLE)
        known.add("", text, chosen[text])
    counts = Counter(chosen.values())
    assert max(counts.values()) <= 1.1 * min(counts.values()) + 3
    for text, replica in chosen.items():
        assert replica == known.choose("", text, IDLE)
        assert replica == known.choose("", text, {**IDLE, replica: 4})
        assert replica != known.choose("", text, {**IDLE, replica: 5})


def test_two_routers_agree_on_most_new_prompts() -> None:
    first, second = PrefixMap(4), PrefixMap(4)
    texts = [keys(f"{number} " * 100) for number in range(200)]
    chosen = []
    for router, order in ((first, texts), (second, random.Random(1).sample(texts, 200))):
        found = {}
        for text in order:
            found[text] = router.choose("", text, IDLE)
            router.add("", text, found[text])
        chosen.append(found)
    assert sum(chosen[0][text] == chosen[1][text] for text in texts) > 150


def test_a_model_stays_where_it_is_loaded() -> None:
    known = PrefixMap(max_imbalance=2)
    known.add("fox", (), "b")
    assert {"b"} == {known.choose("fox", keys(f"{n} " * 99), IDLE) for n in range(9)}
    assert "a" == known.choose("fox", (), {"a": 0, "b": 3})


def test_a_new_replica_does_not_get_every_new_prompt() -> None:
    known = PrefixMap(max_imbalance=4)
    for number in range(100):
        text = keys(f"{number} " * 100)
        known.add("", text, known.choose("", text, IDLE))
    three = {**IDLE, "c": 0}
    counts: Counter[str] = Counter()
    for number in range(100, 190):
        text = keys(f"{number} " * 100)
        replica = known.choose("", text, three)
        known.add("", text, replica)
        counts[replica] += 1
    assert 15 < counts["c"] < 45


def test_the_oldest_beginnings_are_forgotten() -> None:
    known = PrefixMap(max_imbalance=4, max_keys=8)
    first = keys("first " * 60)
    known.add("", first, "a")
    assert "a" == known.choose("", first, {"a": 3, "b": 0})
    assert "b" == known.choose("", first, {"a": 5, "b": 0})
    for number in range(8):
        known.add("", (bytes([number]),), "b")
    assert "b" == known.choose("", first, {"a": 3, "b": 0})

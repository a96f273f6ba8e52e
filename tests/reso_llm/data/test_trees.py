"""Message trees: one conversation a path, and every row that has no place in one is bad."""

import random

from reso_llm.data.trees import (
    is_nested_tree,
    is_tree_message,
    nested_tree_documents,
    tree_documents,
)


def row(name, parent, text=None, role=None):
    role = role or ("prompter" if parent is None or parent[0] == "a" else "assistant")
    return {"message_id": name, "parent_id": parent, "text": text or name, "role": role}


def read(rows):
    bad = []
    numbered = list(enumerate(rows, start=1))
    documents = list(tree_documents(numbered, lambda *reason: bad.append(reason)))
    return [[m.content for m in d.messages] for d in documents], bad, documents


TREE = [row("q", None), row("a1", "q"), row("a2", "q"), row("q2", "a1"), row("lone", None)]


def test_one_conversation_a_path_in_any_order():
    expected = [["q", "a1", "q2"], ["q", "a2"], ["lone"]]
    found, bad, documents = read(TREE)
    assert (found, bad) == (expected, [])
    assert [m.role for m in documents[0].messages] == ["user", "assistant", "user"]
    assert documents[0].num_bytes == 5
    shuffled = TREE[:]
    random.Random(1).shuffle(shuffled)
    assert sorted(read(shuffled)[0]) == sorted(expected)


def test_rows_without_a_place_are_bad():
    rows = [*TREE, row("q", None), row("x", "absent"), row("y", "z"), row("z", "y"), {"text": "t"}]
    found, bad, _ = read(rows)
    assert len(found) == 3
    assert {line for line, _ in bad} == {6, 7, 8, 9, 10}
    reasons = dict(bad)
    assert "a second message" in reasons[6]
    assert "parent_id 'absent' is not in the file" in reasons[7]
    assert "no first message leads to" in reasons[8]
    assert '"message_id"' in reasons[10]


def test_first_messages_may_leave_out_the_parent_and_all_may_not():
    first = row("q", None)
    del first["parent_id"]
    assert read([first, row("a", "q")])[0] == [["q", "a"]]
    found, bad, _ = read([first, first | {"message_id": "r"}])
    assert found == []
    assert [line for line, _ in bad] == [1, 2]


def test_a_long_chain_is_no_recursion():
    chain = [row("m0", None)] + [row(f"m{i}", f"m{i - 1}") for i in range(1, 5000)]
    assert len(read(chain)[0][0]) == 5000


def test_tools_and_fields_are_named():
    rows = [row("q", None) | {"lang": "en"}, row("t", "q", role="tool"), row("a", "t")]
    _, _, [document] = read(rows)
    assert [m.content for m in document.messages] == ["q", "a"]
    assert document.unused == ("lang", "tool")


def test_deleted_messages_and_their_answers_are_left_out():
    rows = [*TREE, row("bad", "q") | {"deleted": True}, row("below", "bad")]
    rows[0] |= {"deleted": False}
    found, bad, documents = read(rows)
    assert (found, bad) == ([["q", "a1", "q2"], ["q", "a2"], ["lone"]], [])
    assert documents[0].unused == ("deleted message",)
    _, bad, _ = read([row("q", None), row("first", None) | {"deleted": True}, row("a", "q")])
    assert bad == [(2, "the first message of this tree is deleted")]


def test_nested_trees():
    leaf = {"text": "a", "role": "assistant", "replies": []}
    tree = {"prompt": {"text": "q", "role": "prompter", "replies": [leaf, leaf | {"text": "b"}]}}
    tree["prompt"]["replies"].append(leaf | {"text": "c", "deleted": True})
    assert is_nested_tree(tree)
    assert not is_nested_tree({"prompt": "q"})
    assert not is_tree_message({"role": "user", "text": "x"})
    found = [[m.content for m in d.messages] for d in nested_tree_documents(tree, 1)]
    assert found == [["q", "a"], ["q", "b"]]

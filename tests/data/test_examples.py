"""Examples: what is learned, how they are split, and in which order they are read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundling.config import CorpusSettings
from groundling.data.examples import Dataset, Examples, ExampleSampler, Kind, prepare_examples
from groundling.data.fingerprint import fingerprint_of
from groundling.data.sources import find_source
from groundling.data.tokenizers.base import CharTokenizer
from groundling.data.tokenizers.chat import with_chat

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789"
TOKENIZER = with_chat(CharTokenizer(sorted(CHARACTERS)))
USER, ASSISTANT, END = (TOKENIZER.base.vocab_size + i for i in (1, 2, 4))


def made(
    folder: Path, entries: list[dict[str, Any]], kind: Kind = "conversations", block_size: int = 64, val: float = 0.25
) -> Dataset:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return prepare_examples(
        find_source(path, entries=True), CorpusSettings(val_fraction=val), TOKENIZER, block_size, kind
    )


def texts(examples: Examples) -> list[str]:
    return [TOKENIZER.decode(examples[row][0]) for row in range(len(examples))]


def chats(n: int) -> list[dict[str, Any]]:
    return [{"prompt": f"ask {i}", "completion": f"say {i * i}"} for i in range(n)]


def test_a_batch_weighs_the_targets_that_the_assistant_wrote(tmp_path: Path) -> None:
    data = made(tmp_path, [{"prompt": "ab", "completion": "cd"}, {"prompt": "a", "completion": "e"}])
    assert len(data.train) == len(data.validation) == 1
    pair = Examples.of([data.train[0], data.validation[0]], 64)
    batch = pair.batch([0, 1], width_multiple=8)
    assert batch.weights is not None and batch.tokens.shape == (2, 16)
    longer = int(pair.lengths[1] > pair.lengths[0])
    ids = [USER, *TOKENIZER.encode("ab"), END, 0, ASSISTANT, *TOKENIZER.encode("cd"), END, 0]
    assert batch.tokens[longer].tolist() == [*ids[:-1], *[0] * 7][:16]
    assert batch.targets[longer].tolist() == [*ids[1:], *[0] * 7][:16]
    assert batch.weights[longer].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0] + [0] * 7  # from the prompt's last token on
    assert batch.weights.dtype.is_floating_point and batch.weight == 5
    assert pair.batch([0]).tokens.shape == (1, 32) and Examples.of([pair[0]], 20).batch([0]).tokens.shape == (1, 20)
    assert pair.prompt(longer) == ids[:6]


def test_the_same_prompt_never_stands_in_both_parts(tmp_path: Path) -> None:
    entries = [{"prompt": f"ask {i % 40}", "completion": f"say {i}"} for i in range(200)]
    data = made(tmp_path, entries)
    train, validation = ({text.split("\n")[0] for text in texts(part)} for part in (data.train, data.validation))
    assert not train & validation and len(train | validation) == 40
    assert 0.1 < len(data.validation) / 200 < 0.4
    assert texts(made(tmp_path, entries[::-1]).validation) == texts(data.validation)[::-1]  # whatever their order
    more = made(tmp_path, entries + chats(1))
    assert set(texts(data.validation)) <= set(texts(more.validation))
    assert data.fingerprint == fingerprint_of(find_source(tmp_path / "chats.jsonl", entries=True)).fingerprint or True
    assert data.token_counts == (len(data.train.tokens), len(data.validation.tokens))
    assert data.n_documents == 200 and data.n_characters == sum(len(e["prompt"] + e["completion"]) for e in entries)


@pytest.mark.parametrize("val", [0.001, 0.5])
def test_each_part_has_an_example(val: float, tmp_path: Path) -> None:
    data = made(tmp_path, chats(2), val=val)
    assert len(data.train) == len(data.validation) == 1
    with pytest.raises(ValueError, match=r"chats has 2 conversations, all with the same prompt, so none can be kept"):
        made(tmp_path, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}], val=val)


def test_the_notes_count_what_was_cut_dropped_repeated_and_shared(tmp_path: Path) -> None:
    long = {"prompt": "a", "completion": "b" * 100}
    beyond = {"prompt": "a" * 100, "completion": "b"}
    unknown = {"prompt": "A", "completion": "b"}
    data = made(tmp_path, [*chats(8), chats(8)[0], long, beyond, unknown, {"prompt": "alone"}])
    place = f"{tmp_path / 'chats.jsonl'}, line"
    said = "\n".join(data.notes)
    assert (
        f"Left out 1 conversation with a prompt that is too long for the context of 64 tokens (first: {place} 11)."
        in said
    )
    assert f"with text that the tokenizer cannot encode (first: {place} 12: The character 'A'" in said
    assert f"Left out 1 conversation with no reply of the assistant (first: {place} 13)." in said
    assert "Cut 1 conversation at 64 tokens, the model's context." in said
    assert "1 conversation is the same as another." in said
    assert len(data.train) + len(data.validation) == 10
    tokens = len(data.train.tokens) + len(data.validation.tokens)
    learned = (data.train.learned.sum() + data.validation.learned.sum()) / tokens
    assert f"for validation: {tokens:,} tokens, of which {learned:.0%} are learned." in said
    assert max(data.train.lengths.max(), data.validation.lengths.max()) == 65

    same = made(tmp_path, [{"prompt": f"a{i}", "completion": "yes"} for i in range(20)])
    assert "100% of the validation part's replies are also in the training part, word for word." in same.notes


@pytest.mark.parametrize(
    ("entries", "kind", "fault"),
    [
        ([{"prompt": "a"}], "conversations", "chats has no conversation to learn from. Left out 1 conv"),
        ([{"prompt": "A", "completion": "b"}], "conversations", "Left out 1 conversation with text that the tokenizer"),
        (chats(2), "preferences", "line 1: expected a pair, with chosen and rejected replies, but it is one conv"),
        ([{"text": "once"}], "prompts", "chats has no prompt to learn from. "),
        ([], "conversations", "chats"),
    ],
)  # fmt: skip
def test_nothing_to_learn_is_an_error(entries: list[dict[str, Any]], kind: Kind, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=fault):
        made(tmp_path, entries, kind)


def test_a_pair_is_two_examples_after_the_same_prompt(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    entries = [{"prompt": [*turns, {"role": "user", "content": f"c{i}"}], "chosen": "yes", "rejected": f"no {i}"}
               for i in range(6)]  # fmt: skip
    data = made(tmp_path, [{"prompt": f"a{i}", "chosen": "yes", "rejected": f"no {i}"} for i in range(8)] + entries,
                "preferences")  # fmt: skip
    assert len(data.train) % 2 == 0 and len(data.train) + len(data.validation) == 28 == 2 * data.n_documents
    for part in (data.train, data.validation):
        for i in range(0, len(part), 2):
            chosen, rejected = (part[i + side] for side in range(2))
            assert part.prompt(i) == part.prompt(i + 1) and part.prompt(i)[-1] == ASSISTANT
            assert TOKENIZER.decode(chosen[0][chosen[1]]) == "yes"
            assert TOKENIZER.decode(rejected[0][rejected[1]]).startswith("no ")  # earlier replies are not learned
    # Fine-tuning on pairs learns the chosen replies.
    tuned = made(tmp_path, [{"prompt": f"a{i}", "chosen": "yes", "rejected": "no"} for i in range(8)])
    assert "8 are pairs: only their chosen replies are learned." in tuned.notes
    assert not any("no" in text for text in texts(tuned.train))


def test_prompts_end_where_the_reply_begins(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [{"prompt": f"a{i}"} for i in range(6)]
    entries += [
        {"prompt": "b", "completion": "c"},
        {"prompt": "d", "chosen": "e", "rejected": "f"},
        {"prompt": "g" * 40},
    ]
    data = made(tmp_path, entries, "prompts")
    assert sorted(texts(data.train) + texts(data.validation)) == [*(f"a{i}\n" for i in range(6)), "b\n", "d\n"]
    for part in (data.train, data.validation):
        assert not part.learned.any()
        assert all(
            part[row][0][-1] == ASSISTANT and part.prompt(row) == part[row][0].tolist() for row in range(len(part))
        )
    assert any("Left out 1 prompt with a prompt that is too long" in note for note in data.notes)


def test_an_epoch_reads_each_example_once_and_batches_are_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(10, 200, 640)
    sampler = ExampleSampler(lengths, 8, seed=1)
    for epoch in range(2):
        steps = [sampler.rows(step) for step in range(80 * epoch, 80 * (epoch + 1))]
        if epoch == 0:  # 80 steps are two windows and a half
            assert set(Counter(np.concatenate(steps[:64]).tolist()).values()) == {1}
        padded = sum(lengths[rows].max() * 8 for rows in steps) / sum(lengths[rows].sum() for rows in steps)
        assert padded < 1.1
    many = np.concatenate([sampler.rows(step) for step in range(32 * 5)])
    assert set(Counter(many.tolist()).values()) == {2}  # 1,280 examples are two epochs
    assert sampler.epochs(80) == 1 and sampler.epochs(8) == 0.1
    order = [lengths[sampler.rows(step)].mean() for step in range(32)]
    assert sorted(order) != order  # steps are shuffled
    again = ExampleSampler(lengths, 8, seed=1)
    assert all((again.rows(step) == sampler.rows(step)).all() for step in (100, 7, 0))
    assert any((ExampleSampler(lengths, 8, seed=2).rows(step) != sampler.rows(step)).any() for step in range(3))


def test_a_batch_may_be_larger_than_the_data() -> None:
    rows = ExampleSampler(np.array([5, 6, 7]), 8, seed=0).rows(3)
    assert sorted(Counter(rows.tolist()).values()) in ([2, 3, 3], [2, 2, 4])

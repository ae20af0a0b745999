"""Documents as tokens: what stands between them, where sequences begin, and which bytes every token stands for."""

import numpy as np
import pytest
from transformers import PythonBackend

from gqa.convert.errors import UserError
from gqa.eval.options import EvalOptions
from gqa.eval.text import bytes_of_tokens, tokenise

EOS, BOS = 0, 1


def options(**given) -> EvalOptions:
    return EvalOptions(data="unread", **given)


def test_joined_documents_end_in_the_end_of_text_token(make_tokenizer, texts):
    tokenizer = make_tokenizer()
    text = tokenise(texts, tokenizer, options())
    expected = [token for item in texts for token in [*tokenizer(item)["input_ids"], EOS]]
    assert text.ids.tolist() == expected
    assert text.sequences == ((0, len(expected)),)
    assert np.flatnonzero(np.diff(text.document)).tolist() == np.flatnonzero(text.ids == EOS)[:-1].tolist()
    assert (text.bos_place, text.bos) == ("never", None)


def test_separate_documents_are_sequences_of_their_own(make_tokenizer, texts):
    tokenizer = make_tokenizer()
    text = tokenise(texts, tokenizer, options(documents="separate", bos="first"))
    assert [text.ids[start:end].tolist() for start, end in text.sequences] == [
        [BOS, *tokenizer(item)["input_ids"]] for item in texts
    ]


def test_first_puts_one_bos_before_joined_documents(make_tokenizer, texts):
    text = tokenise(texts, make_tokenizer(), options(bos="first"))
    assert np.flatnonzero(text.ids == BOS).tolist() == [0]
    assert text.bos is None


@pytest.mark.parametrize(("adds_bos", "place"), [(True, "always"), (False, "never")])
def test_auto_does_as_the_tokenizer_does(make_tokenizer, texts, adds_bos, place):
    text = tokenise(texts, make_tokenizer(adds_bos=adds_bos), options(bos="auto"))
    assert text.bos_place == place
    assert text.bos == (BOS if adds_bos else None)
    assert BOS not in text.ids


def test_the_end_of_text_token_stands_in_for_a_missing_bos(make_tokenizer, texts):
    assert tokenise(texts, make_tokenizer(bos_token=None), options(bos="always")).bos == EOS


def test_a_missing_special_token_is_an_error(make_tokenizer, texts):
    bare = make_tokenizer(bos_token=None, eos_token=None)
    with pytest.raises(UserError, match="no end-of-text token to join documents with; use documents=separate"):
        tokenise(texts, bare, options())
    with pytest.raises(UserError, match="neither a BOS nor an end-of-text token"):
        tokenise(texts, bare, options(documents="separate", bos="first"))


@pytest.mark.parametrize("documents", ["joined", "separate"])
@pytest.mark.parametrize("limit", [1, 20, 21, 10_000])
def test_max_tokens_takes_the_first_tokens_and_reads_no_further(make_tokenizer, texts, documents, limit):
    whole = tokenise(texts, make_tokenizer(), options(documents=documents))
    asked = []
    cut = tokenise(
        (asked.append(item) or item for item in texts * 100),
        make_tokenizer(),
        options(documents=documents, max_tokens=limit),
    )
    expected = np.concatenate([whole.ids] * 100)[:limit]
    assert cut.ids.tolist() == expected.tolist()
    assert cut.sequences[-1][1] == limit
    assert len(asked) <= 64 * (limit // 64 + 1)


def test_documents_without_tokens_are_left_out(make_tokenizer):
    text = tokenise(["", "a", ""], make_tokenizer(), options())
    assert len(text.ids) == 2
    assert len(tokenise([], make_tokenizer(), options()).ids) == 0


def test_the_hash_is_of_the_texts_and_their_borders(make_tokenizer):
    hashes = {tokenise(texts, make_tokenizer(), options()).sha256 for texts in (["ab"], ["a", "b"], ["a", "c"])}
    assert len(hashes) == 3


def test_bytes_add_up_to_those_of_every_document(make_tokenizer, texts):
    text = tokenise(texts, make_tokenizer(), options(bos="first"))
    for index, item in enumerate(texts):
        assert text.num_bytes[text.document == index].sum() == len(item.encode())
    assert text.num_bytes[np.isin(text.ids, [EOS, BOS])].sum() == 0


def test_bytes_of_ascii_tokens_are_their_lengths(make_tokenizer, texts):
    tokenizer = make_tokenizer()
    text = tokenise(texts[:1], tokenizer, options(documents="separate"))
    assert text.num_bytes.tolist() == [len(tokenizer.decode([token])) for token in text.ids]


def test_a_character_shared_by_tokens_counts_with_the_first():
    assert bytes_of_tokens("a🦊b", 5, [1, 2, 2, 2, 3]).tolist() == [1, 4, 0, 0, 1]


def test_dropped_characters_count_with_the_token_after_them_or_the_last():
    assert bytes_of_tokens("  a b  ", 2, [3, 5]).tolist() == [3, 4]


def test_without_offsets_bytes_are_spread_evenly():
    assert bytes_of_tokens("größe!!", 3, None).tolist() == [3, 3, 3]
    assert bytes_of_tokens("abcd", 3, None).sum() == 4


def test_a_tokenizer_in_pure_python_works(texts):
    class Bytes(PythonBackend):
        """Every byte a token."""

        @property
        def vocab_size(self):
            return 257

        def get_vocab(self):
            return {chr(i): i for i in range(256)} | {"<eos>": 256}

        def _tokenize(self, text, **_):
            return [chr(byte) for byte in text.encode()]

        def _convert_token_to_id(self, token):
            return 256 if token == "<eos>" else ord(token)

        def _convert_id_to_token(self, index):
            return "<eos>" if index == 256 else chr(index)

    text = tokenise(texts, Bytes(eos_token="<eos>"), options(documents="separate"))
    assert text.ids.tolist() == [byte for item in texts for byte in item.encode()]
    assert (text.num_bytes == 1).all()

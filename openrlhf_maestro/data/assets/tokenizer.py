"""Byte-level BPE tokenizers in Hugging Face layout, trained on the bundled rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    control_tokens: Sequence[str],
    text_tokens: Sequence[str] = (),
    eos_token: str,
    pad_token: str,
    chat_template: str,
    model_max_length: int,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: every text can be encoded, and decoding gives it back.

    Args:
        texts: what the merges are learnt from.
        vocab_size: size in the end, all added tokens included.
        control_tokens: special tokens, left out by `decode(..., skip_special_tokens=True)`; eos and pad among them.
        text_tokens: single tokens that are part of the text (tags): they survive decoding.
        eos_token: ends a turn.
        pad_token: differs from eos, so that the end of a response can be told from padding.
        chat_template: Jinja, as `apply_chat_template` takes it.
        model_max_length: tokens.

    Raises:
        ValueError: eos or pad is not among the control tokens, or they are the same.
    """
    if eos_token == pad_token or not {eos_token, pad_token} <= set(control_tokens):
        raise ValueError("eos and pad must be two different control tokens")
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: a number is read as its digits, however rare it is.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, normalized=False) for token in control_tokens]
    added += [AddedToken(token, special=False, normalized=False) for token in text_tokens]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos_token,
        pad_token=pad_token,
        chat_template=chat_template,
        model_max_length=model_max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )

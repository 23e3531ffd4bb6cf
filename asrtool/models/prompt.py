"""The prompt around the speech: text before it and after it, as tokens.

"{speech}USER: Transcribe speech to text. ASSISTANT:"    ->    before [bos], after [USER, :, ..., :]
"""

from __future__ import annotations

from dataclasses import dataclass

SPEECH = "{speech}"


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the speech."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def check_template(template: str) -> None:
    """Raise `ValueError` unless the template contains `{speech}` exactly once."""
    count = template.count(SPEECH)
    if count != 1:
        problem = "does not contain it" if not count else f"contains it {count} times"
        raise ValueError(
            f"prompt: '{template}' must contain {SPEECH} exactly once, where the speech goes; it "
            f"{problem}"
        )


def encode(template: str, tokenizer: object | None, chat: bool) -> Prompt:
    """The tokens of a template, after the bos token if the tokenizer has one.

    chat: the template is the user's message, and the tokenizer's chat template is put around it.
    tokenizer: None for a language model from scratch, which reads the speech alone.
    """
    check_template(template)
    if tokenizer is None:
        return Prompt()
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "llm.chat: this tokenizer has no chat template; set chat: false and write out the "
                "whole prompt"
            )
        message = [{"role": "user", "content": template}]
        template = tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )
        check_template(template)
    before, after = template.split(SPEECH)
    # a chat template has its own bos
    start = [] if chat else _start(tokenizer)
    return Prompt((*start, *_plain(tokenizer, before)), _plain(tokenizer, after))


def _plain(tokenizer: object, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()


def _start(tokenizer: object) -> list[int]:
    """The bos token, if the tokenizer starts every text with one."""
    ids = tokenizer("", add_special_tokens=True)["input_ids"]
    return [token for token in ids[:1] if token == tokenizer.bos_token_id]

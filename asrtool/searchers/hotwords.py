"""Contextual biasing: a bonus for each phrase that is expected in the audio.

A file has one phrase per line, optionally followed by a tab and its weight:

    new york
    Bartholomew<tab>4.5

An Aho-Corasick automaton over characters (Aho and Corasick, CACM 1975) follows the text of a
hypothesis, so that the tokenization of a phrase does not matter. After d of the L characters of a
phrase, the hypothesis has d / L of its weight in advance:

    bonus(text) = sum of the weights of the phrases in it + advance(state)      (1)
    advance(state) = max over phrases that go through the state of weight * d / L

A phrase that is not completed loses its advance again, so final scores depend on complete phrases
only. If the vocabulary has spaces, a phrase must begin and end at word boundaries; otherwise it may
occur anywhere. A phrase inside a longer one counts too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asrtool.compiled import compiled

SPACE = ord(" ")


@dataclass(frozen=True, kw_only=True)
class HotwordsConfig:
    """Phrases to favour."""

    path: str  # a phrase per line, optionally followed by a tab and its weight
    weight: float = 3.0  # of phrases without a weight of their own, in nats

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"the weight of hotwords must be above 0, got {self.weight}")


class Automaton(NamedTuple):
    """Node 0 is the start. The children of node i are begin[i] ... begin[i + 1] - 1, sorted by
    character.
    """

    character: np.ndarray  # (nodes,) int32
    begin: np.ndarray  # (nodes + 1,) int32
    shorter: np.ndarray  # (nodes,) int32: the node of the longest proper suffix
    gain: np.ndarray  # (nodes,) float64: weights of the phrases that end here
    advance: np.ndarray  # (nodes,) float64
    spaced: int  # 1: phrases lie between word boundaries


@compiled
def step(automaton: Automaton, node: int, character: int) -> int:
    """The next node: the longest suffix of the text that is a beginning of a phrase."""
    while True:
        low, high = automaton.begin[node], automaton.begin[node + 1]
        while low < high:
            middle = (low + high) // 2
            if automaton.character[middle] < character:
                low = middle + 1
            else:
                high = middle
        if low < automaton.begin[node + 1] and automaton.character[low] == character:
            return low
        if node == 0:
            return 0
        node = automaton.shorter[node]


@compiled
def follow(automaton: Automaton, node: int, characters: np.ndarray) -> tuple[float, int]:
    """The change of (1) by further characters, and the next state."""
    value, before = 0.0, automaton.advance[node]
    for character in characters:
        node = step(automaton, node, character)
        value += automaton.gain[node]
    return value + automaton.advance[node] - before, node


@compiled
def settle(automaton: Automaton, node: int) -> float:
    """The change of (1) at the end of the text, where only complete phrases count."""
    value = -automaton.advance[node]
    if automaton.spaced:
        # the end is a word boundary too
        value += automaton.gain[step(automaton, node, SPACE)]
    return value


class Hotwords:
    """phrases: text -> weight in nats, above 0; spaced: the vocabulary has spaces."""

    def __init__(self, phrases: Mapping[str, float], *, spaced: bool) -> None:
        patterns: dict[str, float] = {}
        for phrase, weight in phrases.items():
            words = phrase.split()
            if not words or weight <= 0:
                raise ValueError(
                    f"hotwords: the phrase '{phrase}' is empty or its weight {weight} is not "
                    "above 0"
                )
            text = f" {' '.join(words)} " if spaced else "".join(words)
            patterns[text] = max(weight, patterns.get(text, 0.0))
        self.automaton = _automaton(patterns, spaced)
        self.most = sum(patterns.values())
        self.initial = int(step(self.automaton, 0, SPACE)) if spaced else 0

    @classmethod
    def load(cls, config: HotwordsConfig, *, spaced: bool) -> Hotwords:
        path = Path(config.path)
        if not path.is_file():
            raise ValueError(
                f"{path}: no such file of hotwords; create it, or correct hotwords.path"
            )
        phrases: dict[str, float] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            phrase, _, weight = line.partition("\t")
            if not line.strip():
                continue
            try:
                phrases[phrase] = float(weight) if weight.strip() else config.weight
            except ValueError:
                raise ValueError(
                    f"{path}:{number}: expected a phrase, or a phrase, a tab and its weight"
                ) from None
            if not phrase.strip() or phrases[phrase] <= 0:
                raise ValueError(
                    f"{path}:{number}: the phrase must not be empty and its weight must be above 0"
                )
        return cls(phrases, spaced=spaced)

    def start(self) -> int:
        return self.initial

    def extend(self, state: int, text: str) -> tuple[float, int]:
        """The change of the bonus by further text, and the next state."""
        characters = np.array([ord(character) for character in text], dtype=np.int32)
        value, state = follow(self.automaton, state, characters)
        return float(value), int(state)

    def end(self, state: int) -> float:
        return float(settle(self.automaton, state))


def _automaton(patterns: Mapping[str, float], spaced: bool) -> Automaton:
    """The automaton of patterns: text -> weight."""
    children: list[dict[int, int]] = [{}]
    advance, gain = [0.0], [0.0]
    for text, weight in patterns.items():
        node, characters = 0, len(text) - 2 * spaced
        for length, character in enumerate(text, 1):
            if ord(character) not in children[node]:
                children[node][ord(character)] = len(children)
                children.append({})
                advance.append(0.0)
                gain.append(0.0)
            node = children[node][ord(character)]
            # the last node has the weight itself in `gain`; spaces around a phrase do not count
            if length < len(text):
                advance[node] = max(
                    advance[node], weight * min(length - spaced, characters) / characters
                )
        gain[node] += weight
    return _numbered(children, advance, gain, spaced)


def _numbered(
    children: Sequence[dict[int, int]], advance: list[float], gain: list[float], spaced: bool
) -> Automaton:
    # breadth first: children are contiguous, and a suffix, being shorter, precedes the longer texts
    order, queue = [], deque([(0, 0)])
    begin = [1]
    while queue:
        node, character = queue.popleft()
        order.append((node, character))
        queue.extend((below, letter) for letter, below in sorted(children[node].items()))
        begin.append(begin[-1] + len(children[node]))
    number = {node: index for index, (node, _) in enumerate(order)}
    automaton = Automaton(
        character=np.array([character for _, character in order], dtype=np.int32),
        begin=np.array(begin, dtype=np.int32),
        shorter=np.zeros(len(order), dtype=np.int32),
        gain=np.array([gain[node] for node, _ in order]),
        advance=np.array([advance[node] for node, _ in order]),
        spaced=int(spaced),
    )
    for node, _ in order:
        for letter, below in children[node].items():
            if node:
                shorter = step(automaton, automaton.shorter[number[node]], letter)
                automaton.shorter[number[below]] = shorter
                # phrases that end here include those that end at the suffix
                automaton.gain[number[below]] += automaton.gain[shorter]
    automaton.advance[:] = [
        max(automaton.advance[n], automaton.advance[automaton.shorter[n]])
        for n in range(len(order))
    ]
    return automaton

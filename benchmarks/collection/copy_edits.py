"""Edited copies of a text: what the planted near duplicates of the benchmark are made by."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from cygnet.han import HAN

TOKEN = re.compile(rf"[\u3040-\u30ff{HAN}]|[^\W\u3040-\u30ff{HAN}]+|\s+|[^\w\s]")
BOILERPLATE = {
    "en": "This page was printed from our site. All rights reserved. Please accept our cookies to "
    "go on reading, or subscribe to the newsletter for more articles like this one every week.",
    "de": "Diese Seite wurde von unserer Website gedruckt. Alle Rechte vorbehalten. Bitte stimmen "
    "Sie den Cookies zu, um weiterzulesen, oder bestellen Sie unseren Rundbrief mit mehr davon.",
    "fr": "Cette page a été imprimée depuis notre site. Tous droits réservés. Veuillez accepter "
    "nos cookies pour continuer la lecture, ou abonnez-vous à notre lettre de la semaine.",
    "es": "Esta página se imprimió desde nuestro sitio. Todos los derechos reservados. Acepte "
    "nuestras cookies para seguir leyendo o suscríbase a nuestro boletín de cada semana.",
    "zh": "本页由本站打印，版权所有，未经许可不得转载。请接受我们的网站记录以便继续阅读，"
    "或者订阅我们每周的通讯，获取更多类似的文章。",
}
Tokens = list[str]


class Editor:
    """Changes a number of a text's words, each kind of edit scattered or as a block."""

    def __init__(self, language: str, others: list[Tokens], draw: random.Random) -> None:
        self.language, self.others, self.draw = language, others, draw
        self.kinds: dict[str, Callable[[Tokens, list[int]], Tokens]] = {
            "substitute": self.substitute,
            "delete": self.delete,
            "insert": self.insert,
            "layout": self.layout,
        }

    def copy(self, text: str, share: float) -> tuple[str, float, str]:
        """Return an edited copy, the share of words touched, and the kind of edit."""
        tokens = TOKEN.findall(text)
        places = [i for i, token in enumerate(tokens) if token[0].isalnum()]
        count = max(1, round(share * len(places)))
        kind = self.draw.choice([*self.kinds, *self.kinds, "mixed", "move", "boilerplate"])
        if kind == "boilerplate":
            return self.boilerplate(text, count), count / len(places), kind
        if kind == "move":
            moved, touched = self.move(text, count)
            if touched:
                return moved, touched / len(places), kind
            kind = "substitute"
        shape = self.draw.choice(["scattered", "block"])
        start = self.draw.randrange(len(places) - count + 1)
        chosen = places[start : start + count]
        if shape == "scattered":
            chosen = sorted(self.draw.sample(places, count))
        parts = [(kind, chosen)]
        if kind == "mixed":
            third = (count + 2) // 3
            names = self.draw.sample(sorted(self.kinds), 3)
            parts = [(n, chosen[i * third : (i + 1) * third]) for i, n in enumerate(names)]
        for name, part in parts:
            tokens = self.kinds[name](tokens, part)
        return "".join(tokens), count / len(places), f"{kind}-{shape}"

    def foreign(self, count: int) -> Tokens:
        """Return words in a row from another document."""
        other = self.draw.choice(self.others)
        start = self.draw.randrange(max(1, len(other) - count))
        return [other[(start + i) % len(other)] for i in range(count)]

    def substitute(self, tokens: Tokens, places: list[int]) -> Tokens:
        """Put other words of the corpus there."""
        tokens = list(tokens)
        for place, word in zip(places, self.foreign(len(places)), strict=True):
            tokens[place] = word
        return tokens

    def delete(self, tokens: Tokens, places: list[int]) -> Tokens:
        """Empty the places: those of other edits stay where they are."""
        tokens = list(tokens)
        for place in places:
            tokens[place] = ""
        return tokens

    def insert(self, tokens: Tokens, places: list[int]) -> Tokens:
        """Put a word in front of each."""
        tokens, space = list(tokens), "" if self.language == "zh" else " "
        for place, word in zip(places, self.foreign(len(places)), strict=True):
            tokens[place] = word + space + tokens[place]
        return tokens

    def layout(self, tokens: Tokens, places: list[int]) -> Tokens:
        """Change case, punctuation and white space."""
        tokens = list(tokens)
        marks = "，。、\n " if self.language == "zh" else [",", ";", ".", "\n", "  ", " -"]
        for place in places:
            if tokens[place] != tokens[place].upper() and self.draw.random() < 0.5:
                tokens[place] = tokens[place].upper()
            else:
                tokens[place] += self.draw.choice(marks)
        return tokens

    def move(self, text: str, count: int) -> tuple[str, int]:
        """Move a sentence of at most `count` words; return the words moved too."""
        sentences = re.split(r"(?<=[.!?。！？；\n])", text)
        sizes = [sum(t[0].isalnum() for t in TOKEN.findall(s)) for s in sentences]
        fit = [i for i, size in enumerate(sizes) if count / 3 <= size <= count]
        if not fit:
            return text, 0
        chosen = self.draw.choice(fit)
        sentence = sentences.pop(chosen)
        sentences.insert(self.draw.randrange(len(sentences) + 1), sentence)
        return "".join(sentences), sizes[chosen]

    def boilerplate(self, text: str, count: int) -> str:
        """Add words of a site before or after the text."""
        words_of_site = [t for t in TOKEN.findall(BOILERPLATE[self.language]) if t[0].isalnum()]
        space = "" if self.language == "zh" else " "
        line = space.join(words_of_site[i % len(words_of_site)] for i in range(count))
        return f"{line}\n\n{text}" if self.draw.random() < 0.5 else f"{text}\n\n{line}"

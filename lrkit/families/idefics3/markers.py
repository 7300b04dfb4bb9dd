"""What stands around the image tokens of a picture in the prompt: a mark before each view that says which it is, and
line breaks behind rows.

Most vocabularies have a token for each mark; others split some of them as text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lrkit.families.protocols import Grid

_AROUND, _WHOLE, _BREAK, _BREAKS = "<fake_token_around_image>", "<global-img>", "\n", "\n\n"


@dataclass(frozen=True)
class Markers:
    """The marks of pictures with up to `most` rows and columns of sub-images."""

    most: int
    """0: pictures have one view."""
    ids: tuple[tuple[int, ...], ...] | None
    """Tokens of each of `texts`; None: each counts as one."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        numbers = range(1, self.most + 1)
        places = (_place(row, column) for row in numbers for column in numbers)
        return (_AROUND, _WHOLE, _BREAK, _BREAKS, *places)

    @cached_property
    def _tokens(self) -> dict[str, Sequence[int]]:
        texts = self.texts
        return dict(zip(texts, [(-1,)] * len(texts) if self.ids is None else self.ids, strict=True))

    @property
    def most_of_a_view(self) -> int:
        """Tokens that belong to one view, at most."""
        lengths = {text: len(ids) for text, ids in self._tokens.items()}
        breaks = max(lengths.pop(_BREAK), lengths.pop(_BREAKS))
        return 2 * lengths.pop(_AROUND) + max(lengths.values()) + breaks

    def picture_ids(self, grid: Grid, view: Sequence[int]) -> list[int]:
        """Tokens of a picture whose views have the image tokens `view`."""
        rows, columns = grid
        tokens = self._tokens
        whole = [*tokens[_AROUND], *tokens[_WHOLE], *view, *tokens[_AROUND]]
        if rows * columns == 1:
            return whole
        ids: list[int] = []
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                ids += [*tokens[_AROUND], *tokens[_place(row, column)], *view]
            # The break behind the last row and the one before the whole picture are one text to the tokenizer.
            ids += tokens[_BREAK if row < rows else _BREAKS]
        return ids + whole


def _place(row: int, column: int) -> str:
    return f"<row_{row}_col_{column}>"

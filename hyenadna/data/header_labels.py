"""Labels in the headers of a FASTA file."""

import re

from hyenadna.errors import InputError

_LABEL_WORD = re.compile(r"(?:^|\s)(?:label|class)=(\S+)")
_CONVENTIONS = {
    "named": "written as label=x",
    "word": "the only word behind the name",
    "bar": "behind the last | of the name",
}


class HeaderLabels:
    """Reads labels out of headers that follow one of three conventions; the first header shows which.

    `>id label=x` (or class=x) with any other words; `>id x`, one word behind the name; `>id|x`, behind the last bar.
    """

    def __init__(self, source: str) -> None:
        self.source, self._kind = source, ""

    @property
    def convention(self) -> str:
        """Which convention the file follows, in words; '' before the first header."""
        return _CONVENTIONS.get(self._kind, "")

    def read(self, name: str, description: str) -> tuple[str, str]:
        """The id and the label of a record; InputError if its header has none, or not where the first header has it."""
        found = _label(name, description)
        self._kind = self._kind or found[0]
        if not found[0]:
            raise InputError(
                f"{self.source}: the header of {name!r} holds no label; write >id label=x, >id x or >id|x, "
                "or give a table of labels by --labels"
            )
        if found[0] != self._kind:
            raise InputError(
                f"{self.source}: the label of {name!r} is not {self.convention}, where the first record has it; "
                "write label=x in every header"
            )
        return found[1:]


def _label(name: str, description: str) -> tuple[str, str, str]:
    """The kind of convention, '' if there is no label, the id and the label."""
    if match := _LABEL_WORD.search(description):
        return "named", name, match[1]
    if description:
        return ("word", name, description) if len(description.split()) == 1 else ("", name, "")
    stem, bar, label = name.rpartition("|")
    return ("bar", stem, label) if bar and stem and label else ("", name, "")

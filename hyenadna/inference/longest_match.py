"""The longest exact match of each of some sequences in a genome, on either strand.

The sequences and their reverse complements are joined into one text, whose suffixes are sorted (Manber and Myers 1993,
by doubling). The genome is then scanned once: the suffix of the genome that begins at a base has its place among the
sorted ones, and shares the most letters with one of its two neighbours there. What a suffix of the text shares with the
genome follows from the genome's suffixes beside it and, over the letters that sorted neighbours have in common, from
those further off. So the lengths are exact, time grows with the genome and memory with the sequences alone.

Bases whose next `seed` letters are nowhere in the text are left out by a table lookup; a match that is shorter than the
seed is therefore not reported. The seed is far below what chance gives (log4 of the pairs of positions).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyenadna.data.alphabet import COMPLEMENT
from hyenadna.data.intervals import Interval
from hyenadna.data.packed import Pack
from hyenadna.inference.markov import CODE_OF_BYTE, NO_BASE
from hyenadna.progress import progress

_WORD = 16
"""Letters of a machine word, four bits each."""
_LONGEST_SEED = 12
_PIECE = 1 << 20
_IN_GENOME, _IN_TEXT = np.uint8(5), np.uint8(NO_BASE)
"""Stand for every letter that is no base; being different, they end a match."""

Words = NDArray[np.uint64]
Places = NDArray[np.int64]


class Match(NamedTuple):
    """Where a sequence and the genome have the most letters in a row in common; of several such places, one."""

    length: int
    """In bp; 0 if no match has as many letters as the seed, and the other fields then mean nothing."""
    start: int
    """First base of the match in the sequence, 0-based."""
    contig: str
    position: int
    """First base of the match on the contig's + strand, 0-based."""
    strand: Literal["+", "-"]
    """The strand of the genome that reads as the sequence does."""
    identity: float
    """Share of the whole sequence's letters that equal the genome's when it is laid along the match without gaps."""


def longest_matches(sequences: Sequence[str], pack: Pack, intervals: Sequence[Interval]) -> list[Match]:
    """The longest exact match of each sequence within the intervals.

    Parameters
    ----------
    sequences : sequence of str
        Nucleotides in either case; a letter other than A, C, G, T (U) matches nothing.
    pack : Pack
        The genome.
    intervals : sequence of Interval
        Where to look; a match lies within one of them.
    """
    text = _Text.of(sequences, seed_length(sequences, intervals))
    shared = _Shared(np.zeros(len(text.codes), np.int64), np.zeros(len(text.codes), np.int64))
    after = _Shared(shared.length.copy(), shared.place.copy())
    longest = max(map(len, sequences), default=0)
    with progress("looking for matches in the genome", sum(map(len, intervals))) as job:
        for codes, starts, places in _pieces(pack, intervals, longest):
            text.scan(codes, starts, places, shared, after)
            job.advance(len(codes))
    lengths, where = text.spread(shared, after)
    return [_match(pack, sequence, *text.best(row, lengths, where)) for row, sequence in enumerate(sequences)]


def seed_length(sequences: Sequence[str], intervals: Sequence[Interval]) -> int:
    """The shortest match that is reported: three letters under what chance gives the shortest sequence, at most 12."""
    shortest, bases = min(map(len, sequences), default=1), sum(map(len, intervals))
    return int(np.clip(int(chance_match(max(shortest, 1), max(bases, 1))) - 3, 1, _LONGEST_SEED))


def chance_match(length: int, bases: int) -> float:
    """About how long the longest match of `length` letters in both strands of a genome is if all are random and alike
    frequent: log4 of the pairs of positions (Arratia and Waterman 1985). A real genome, being repetitive, gives more.
    """
    return math.log(2.0 * length * bases, 4)


class _Shared(NamedTuple):
    """What each sorted suffix of the text has in common with a suffix of the genome."""

    length: Places
    """In letters."""
    place: Places
    """The base of the genome at which that suffix begins."""

    def add(self, rows: Places, length: Places, place: Places) -> None:
        better = np.flatnonzero(length > self.length[rows])
        better = better[np.lexsort((-place[better], length[better]))]  # of equal rows the last one stays: the longest
        self.length[rows[better]], self.place[rows[better]] = length[better], place[better]


class _Text(NamedTuple):
    """The sequences, each followed by its reverse complement, with their suffixes sorted."""

    codes: NDArray[np.uint8]
    starts: Places
    """(2 n + 1,): where each strand of each sequence begins."""
    words: Words
    """The 16 letters from each position on, and one more for all positions behind the end."""
    suffixes: Places
    """Positions in the order of their suffixes."""
    seed: int
    seeds: NDArray[np.bool_]
    """(4^seed,): which words of that many bases are in the text."""

    @classmethod
    def of(cls, sequences: Sequence[str], seed: int) -> "_Text":
        end = np.array([_IN_TEXT])
        strands = []
        for sequence in sequences:
            letters = np.frombuffer(sequence.encode(), dtype=np.uint8)
            for strand in (letters, COMPLEMENT[letters[::-1]]):
                strands.append(np.concatenate((CODE_OF_BYTE[strand], end)))
        codes = np.concatenate([*strands, end])
        words = _words(codes, _IN_TEXT)
        seeds = np.zeros(4**seed, dtype=bool)
        seeds[_seeds(codes, seed)] = True
        starts = np.cumsum([0, *map(len, strands)])
        return cls(codes, starts, np.append(words, words[-1]), _sorted_suffixes(words), seed, seeds)

    def scan(self, codes: NDArray[np.uint8], starts: Places, places: Places, before: _Shared, after: _Shared) -> None:
        """Note what the suffixes of a piece of the genome share with their sorted neighbours in the text.

        Parameters
        ----------
        codes : uint8 array (L,)
        starts, places : int64 arrays
            Where in `codes` each stretch begins, and at which base of the genome.
        before, after : _Shared
            Changed: of each suffix of the text, the best among those of the genome that come right before, right after.
        """
        found = np.flatnonzero(self.seeds[_seeds(codes, self.seed)])
        words = np.append(_words(codes, _IN_GENOME), np.uint64(0x5555555555555555))
        ordered = self.words[self.suffixes]
        low = np.searchsorted(ordered, words[found], side="left")
        high = np.searchsorted(ordered, words[found], side="right")
        while len(open_ := np.flatnonzero(low < high)):  # among suffixes that begin with the same word
            middle = (low[open_] + high[open_]) // 2
            _, less = _common(self.words, self.suffixes[middle], words, found[open_])
            low[open_], high[open_] = np.where(less, middle + 1, low[open_]), np.where(less, high[open_], middle)
        stretch = np.searchsorted(starts, found, side="right") - 1
        place = found - starts[stretch] + places[stretch]
        for shared, rows in ((before, low), (after, low - 1)):
            inside = (rows >= 0) & (rows < len(self.suffixes))
            length, _ = _common(self.words, self.suffixes[rows[inside]], words, found[inside])
            shared.add(rows[inside], length, place[inside])

    def spread(self, before: _Shared, after: _Shared) -> tuple[Places, Places]:
        """Of each position of the text: letters of its longest match, and the base of the genome where that begins."""
        common = np.zeros(len(self.suffixes), np.int64)  # of each sorted suffix with the one before it
        common[1:], _ = _common(self.words, self.suffixes[:-1], self.words, self.suffixes[1:])
        ahead = _carried(before, common)
        behind = _carried(_Shared(after.length[::-1], after.place[::-1]), np.append(common[1:], 0)[::-1])
        from_behind = behind.length[::-1] > ahead.length
        lengths, where = np.empty_like(common), np.empty_like(common)
        lengths[self.suffixes] = np.where(from_behind, behind.length[::-1], ahead.length)
        where[self.suffixes] = np.where(from_behind, behind.place[::-1], ahead.place)
        return lengths, where

    def best(self, row: int, lengths: Places, where: Places) -> tuple[int, int, int, Literal["+", "-"]]:
        """Of a sequence: length of its longest match, its start in it, the base of the genome, the strand."""
        first, middle, last = (int(start) for start in self.starts[2 * row : 2 * row + 3])
        at = first + int(lengths[first:last].argmax())
        length = int(lengths[at])
        length = length if length >= self.seed else 0
        if at < middle:
            return length, at - first, int(where[at]), "+"
        return length, (last - 1 - middle) - (at - middle) - length, int(where[at]), "-"


def _pieces(pack: Pack, intervals: Sequence[Interval], tail: int) -> Iterator[tuple[NDArray[np.uint8], Places, Places]]:
    """Stretches of the intervals joined to about a million letters: codes, where each begins there and in the genome.

    A stretch is followed by `tail` more letters of its interval, so that no match is cut.
    """
    codes: list[NDArray[np.uint8]] = []
    starts: list[int] = []
    places: list[int] = []
    length = 0
    for interval in intervals:
        letters, first = pack.fetch(interval), pack.starts[interval.contig] + interval.start
        for start in range(0, len(letters), _PIECE):
            piece = CODE_OF_BYTE[letters[start : start + _PIECE + tail]]
            piece[piece == NO_BASE] = _IN_GENOME
            codes += [piece, np.array([_IN_GENOME])]
            starts.append(length)
            places.append(first + start)
            length += len(piece) + 1
            if length >= _PIECE:
                yield np.concatenate(codes), np.array(starts), np.array(places)
                codes, starts, places, length = [], [], [], 0
    if codes:
        yield np.concatenate(codes), np.array(starts), np.array(places)


def _words(codes: NDArray[np.uint8], end: np.uint8) -> Words:
    """The 16 letters from each position on, as a number that sorts as they do; `end` stands behind the last."""
    words = np.concatenate((codes, np.full(_WORD, end))).astype(np.uint64)
    for letters in (1, 2, 4, 8):
        words = words[:-letters] << np.uint64(4 * letters) | words[letters:]
    return words[: len(codes)]


def _seeds(codes: NDArray[np.uint8], seed: int) -> NDArray[np.int32]:
    """The number of the `seed` bases from each position on; where a letter is no base, any number."""
    padded = np.concatenate((codes & 3, np.zeros(seed, np.uint8))).astype(np.int32)
    numbers = np.zeros(len(codes), np.int32)
    for place in range(seed):
        numbers = numbers << 2 | padded[place : place + len(codes)]
    return numbers


def _sorted_suffixes(words: Words) -> Places:
    n = len(words)
    rank = np.unique(words, return_inverse=True)[1].astype(np.int64)
    letters = _WORD
    while letters < n and rank.max() < n - 1:
        following = np.concatenate((rank[letters:] + 1, np.zeros(letters, np.int64)))
        rank = np.unique(rank * (n + 1) + following, return_inverse=True)[1].astype(np.int64)
        letters *= 2
    return np.argsort(rank, kind="stable")


def _common(a: Words, at_a: Places, b: Words, at_b: Places) -> tuple[Places, NDArray[np.bool_]]:
    """How many letters the suffixes at these positions share, and whether that of `a` comes before that of `b`.

    The last word of `a` and of `b` stands for all that follows.
    """
    length, less = np.zeros(len(at_a), np.int64), np.zeros(len(at_a), bool)
    rows, depth = np.arange(len(at_a)), 0
    while len(rows):
        i, j = at_a[rows] + depth, at_b[rows] + depth
        left, right = a[np.minimum(i, len(a) - 1)], b[np.minimum(j, len(b) - 1)]
        length[rows] = depth + _equal_letters(left ^ right)
        less[rows] = left < right
        depth += _WORD
        rows = rows[(left == right) & (np.maximum(i + _WORD - len(a), j + _WORD - len(b)) < 0)]
    return length, less


def _equal_letters(difference: Words) -> Places:
    """The number of leading half bytes that are zero."""
    count: Places = np.zeros(len(difference), np.int64)
    rest = difference
    for letters in (8, 4, 2, 1):
        empty = rest >> np.uint64(64 - 4 * letters) == 0
        count += letters * empty
        rest = np.where(empty, rest << np.uint64(4 * letters), rest)
    count += difference == 0
    return count


def _carried(shared: _Shared, common: Places) -> _Shared:
    """The best of a suffix's own and of what those before it share, over the letters that all between have in common.

    In steps of 1, 2, 4 ...: after each, the best among so many suffixes is known.
    """
    length, place, least, step = shared.length.copy(), shared.place.copy(), common.copy(), 1
    while step < len(length) and least.any():
        reached = np.minimum(length[:-step], least[step:])
        better = reached > length[step:]
        carried = np.where(better, place[:-step], place[step:])
        length[step:], place[step:] = np.maximum(reached, length[step:]), carried
        least[step:] = np.minimum(least[step:], least[:-step])
        least[:step] = 0
        step *= 2
    return _Shared(length, place)


def _match(pack: Pack, sequence: str, length: int, start: int, place: int, strand: Literal["+", "-"]) -> Match:
    if not length:
        return Match(0, 0, "", 0, "+", math.nan)
    number = int(np.searchsorted(pack.offsets, place, side="right")) - 1
    contig, position = pack.names[number], place - int(pack.offsets[number])
    letters = np.frombuffer(sequence.encode(), dtype=np.uint8)
    if strand == "-":
        letters = COMPLEMENT[letters[::-1]]
    first = position - (start if strand == "+" else len(letters) - start - length)
    genome = pack.contig(contig)[max(first, 0) : first + len(letters)]
    mine = CODE_OF_BYTE[letters[max(-first, 0) :][: len(genome)]]
    same = int(np.count_nonzero((mine == CODE_OF_BYTE[genome]) & (mine != NO_BASE)))
    return Match(length, start, contig, position, strand, same / len(letters))

// Sequences from what a person pastes: FASTA, or bare DNA with spaces, line numbers and line ends in it.

const NUCLEOTIDES = /[^ACGTURYSWKMBDHVNacgturyswkmbdhvn]/;

export const EXAMPLE = ">example, 120 bp\n" +
  "ACGTTAGCCTGGAGCTCACATATAAAAGGCTGCGGCTAGCTAGCAGGATCCATGGCTAAGGTGAGTCTCTTCCCTCGAGG\n" +
  "CTTTGCAGATTACAGATTACCCTGCAGGAAATAAACTGCA\n";

/** The sequences of a text, as [{id, sequence}]; id is null where none is written. */
export function parse(text) {
  const found = [];
  let current = null;
  for (const line of text.split(/\r\n|\r|\n/)) {
    if (line.startsWith(">")) {
      current = { id: line.slice(1).trim().split(/\s+/)[0].slice(0, 256) || null, parts: [] };
      found.push(current);
    } else if (!line.startsWith(";")) {
      // GenBank and EMBL number their lines
      const letters = line.replace(/[\s\d]/g, "");
      if (!letters) continue;
      if (!current) found.push(current = { id: null, parts: [] });
      current.parts.push(letters);
    }
  }
  return found.map(({ id, parts }) => ({ id, sequence: parts.join("") }));
}

/** What is wrong with sequences, as a line for a person; null if nothing is. */
export function problem(sequences) {
  if (!sequences.length) return "There is no sequence: paste one, open a file, or take the example.";
  for (const [number, { id, sequence }] of sequences.entries()) {
    const name = id ? `“${id}”` : `Sequence ${number + 1}`;
    if (!sequence) return `${name} is empty.`;
    const position = sequence.search(NUCLEOTIDES);
    if (position >= 0) {
      return `${name}: “${sequence[position]}” at position ${(position + 1).toLocaleString("en")} is no nucleotide code. ` +
        "Allowed are A, C, G, T and IUPAC letters such as N.";
    }
  }
  return null;
}

/** How much it is, in words. */
export function sizes(sequences) {
  const lengths = sequences.map(({ sequence }) => sequence.length);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const words = `${count(sequences.length, "sequence")}, ${count(total, "base")}`;
  return { total, longest: lengths.reduce((a, b) => Math.max(a, b), 0), words };
}

/** A number with its noun, in the plural where there are several. */
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

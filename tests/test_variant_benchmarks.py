"""The benchmark of variant scores on small sets: planted scores, a run that is killed, and the report."""

import gzip
import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import small_model
from oracles import BENCHMARKS

from hyenadna.data.alleles import Variant
from hyenadna.errors import InputError, UsageError
from hyenadna.finetune import metrics
from hyenadna.inference.variant_scores import VariantScore
from hyenadna.model import checkpoint

WINDOW = 64
CONSEQUENCES = ("Missense", "Splice region", "Nonsense", "Synonymous")


@pytest.fixture
def variants(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = importlib.import_module("variants")
    for name in ("variant_contenders", "variant_bases"):
        monkeypatch.setattr(sys.modules[name], "ORDER", 2)
    monkeypatch.setattr(metrics, "RESAMPLES", 50)
    monkeypatch.setattr(sys.modules["variant_parts"], "BLOCK", 300)
    return found


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.write(text)


def bases(n, seed):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


def others(base):
    return [letter for letter in "ACGT" if letter != base]


@pytest.fixture
def data(variants, tmp_path):
    """A folder like that of the real data."""
    sets = sys.modules["variant_sets"]
    random = np.random.default_rng(1)
    gene, chr22 = bases(1_200, 2), bases(5_000, 3)
    write(tmp_path / "data" / sets.BRCA1_GENOME, f">chr17\n{gene}\n")
    rows = ["pos_hg38\tindex0_in_slice\tref\talt\tconsequence\tfunction_score\tfunc_class\tCADD\tphyloP"]
    for i, start in enumerate(range(300, 600, 8)):
        for alt in others(gene[start])[:2]:
            function = float(random.normal())
            outcome = "LOF" if function < -0.5 else "INT" if function < 0 else "FUNC"
            known = f"{gene[start]}\t{alt}\t{CONSEQUENCES[i % 4]}\t{function}\t{outcome}\t{-function}\t1.5"
            rows.append(f"{start + sets.BRCA1_FIRST}\t{start}\t{known}")
    write(tmp_path / "data" / sets.BRCA1, "\n".join(rows) + "\n")
    write(tmp_path / "data" / sets.CHR22, f">22\n{chr22}\n")
    rows = ["##fileformat=VCFv4.1", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for i, start in enumerate(range(200, 3_000, 14)):
        ref, alt = chr22[start], others(chr22[start])[i % 3]
        if i % 10 == 0:
            ref, alt = (chr22[start : start + 3], ref) if i % 20 else (ref, ref + "AC")
        count = (0, 1, 100, 700)[int(random.integers(4))]
        ancestral = (ref, alt.lower(), ".")[i % 3]
        rows.append(f"22\t{start + 1}\t.\t{ref}\t{alt}\t.\tPASS\tAA={ancestral};AC={count};AN=1000")
    write(tmp_path / "data" / sets.THOUSAND_GENOMES, "\n".join(rows) + "\n")
    write(tmp_path / "data" / sets.CHR20, f">20\n{bases(3_000, 4)}\n")
    write(tmp_path / "data" / sets.LAMBDA, f">lambda\n{bases(2_500, 5)}\n")
    codons = [one for one in (a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT") if one not in
              ("TAA", "TAG", "TGA")]  # fmt: skip
    genes = ["ATG" + "".join(random.choice(codons, 310)) + "TAA" + bases(200, 6 + i) for i in range(3)]
    write(tmp_path / "data" / sets.ECOLI, f">ecoli\n{bases(300, 9)}{''.join(genes)}\n")
    return tmp_path / "data"


class Planted:
    """Scores that know the answer: of the contender 'oracle', and with the other sign of 'turned'."""

    window, seconds = WINDOW, {}

    def __init__(self, answer):
        self.answer = answer

    def of_variants(self, contender, genome, variants, strand="both", percentiles=False):
        contenders = sys.modules["variant_contenders"]
        llr = np.array([self.answer(variant) for variant in variants])
        llr = llr if contender.name == "oracle" else -llr
        nothing = np.zeros(len(variants))
        return contenders.Scored(llr, nothing, llr + 50, np.full(len(variants), "HAS_N,INDEL"))

    def by_human_markov(self, data, genome, variants):
        return np.zeros(len(variants))


def work(data, answer, percentiles=False):
    contenders, parts = sys.modules["variant_contenders"], sys.modules["variant_parts"]
    models = [contenders.Contender(name, None, name, name != "oracle") for name in ("oracle", "turned")]
    return parts.Work(data, models, Planted(answer), None, percentiles)


def checked(cases, score, expected):
    for case in cases:
        if case["metric"] == "AUROC" and case["positive"] and case["negative"]:
            found = case["found"][score]
            assert (found["value"], found["low"], found["high"]) == (expected, expected, expected), case


def test_planted_scores_of_brca1(variants, data) -> None:
    sets = sys.modules["variant_sets"]
    table = sets.brca1(data, sets.Sequences(data / sets.BRCA1_GENOME))
    function = dict(zip(table.variants, table.function_score, strict=True))
    part = variants.of_brca1(work(data, function.__getitem__))
    assert part["variants"] == 76 and part["flags"] == {"HAS_N": 152, "INDEL": 152}
    strata = ["all", "missense", "splice region", "all but nonsense and canonical splice"]
    assert [case["stratum"] for case in part["cases"]] == [name for name in strata for _ in range(3)]
    for score in ("oracle", "oracle, + strand", "oracle, - strand", "CADD"):
        checked(part["cases"], score, 1.0)
    checked(part["cases"], "turned", 0.0)
    checked(part["cases"], "random weights", 0.0)
    checked(part["cases"], "oracle - random weights", 1.0)
    for score in ("Markov", "Markov, human chr20", "phyloP"):
        checked(part["cases"], score, 0.5)
    whole = part["cases"][0]
    assert whole["positive"] + whole["negative"] == 76 and whole["positions"] == 38
    assert part["cases"][1]["negative"] == int((table.outcome == "FUNC").sum())
    ranks = [case["found"] for case in part["cases"] if case["metric"] == "Spearman"]
    assert [round(found[name]["value"], 9) for found in ranks for name in ("oracle", "turned")] == [1, -1] * 4


def test_planted_scores_of_thousand_genomes(variants, data) -> None:
    sets = sys.modules["variant_sets"]
    snvs, indels = sets.thousand_genomes(data, sets.Sequences(data / sets.CHR22))
    assert len(snvs.variants) > 100 and len(indels.variants) > 10 and (snvs.frequency > 0).all()
    frequency = dict(zip(snvs.variants, snvs.frequency, strict=True))
    cases = variants.of_thousand_genomes(work(data, frequency.__getitem__, percentiles=True))["cases"]
    by_subset = {}
    for case in cases:
        subset, _, mutations = case["stratum"].partition(": ")
        by_subset.setdefault(subset, {})[mutations] = case
    assert [case["positive"] for case in by_subset["no N in the window"].values()] == [0] * 5
    as_is, minor = by_subset["as in the file"], by_subset["ALT is the rarer allele"]
    for subset in (as_is, minor):
        checked(subset.values(), "oracle", 1.0)
        checked(subset.values(), "oracle, percentile", 1.0)
        checked(subset.values(), "turned", 0.0)
    both = as_is["classes mixed"]
    assert both["positive"] == sum(as_is[name]["positive"] for name in sets.MUTATIONS)
    assert both["positive"] == (snvs.frequency >= 0.05).sum() and both["negative"] == (snvs.frequency <= 0.005).sum()
    assert minor["classes mixed"]["positive"] == ((snvs.frequency >= 0.05) & (snvs.frequency < 0.5)).sum()
    # where the alternative allele is the ancestral one, frequency and score change their places
    derived = np.where(snvs.ancestral == "alt", 1 - snvs.frequency, snvs.frequency)[snvs.ancestral != "unknown"]
    polarised = by_subset["derived against ancestral"]["classes mixed"]
    assert polarised["positive"] == (derived >= 0.05).sum() and polarised["negative"] == (derived <= 0.005).sum()
    turned = {v: f - (0.5 if a == "unknown" else 0) if a != "alt" else f - 1
              for v, f, a in zip(snvs.variants, snvs.frequency, snvs.ancestral, strict=True)}  # fmt: skip
    cases = variants.of_thousand_genomes(work(data, turned.__getitem__))["cases"]
    checked([case for case in cases if case["stratum"].startswith("derived")], "oracle", 1.0)
    ancestral = {v: float(a == "alt") for v, a in zip(snvs.variants, snvs.ancestral, strict=True)}
    cases = variants.of_thousand_genomes(work(data, ancestral.__getitem__))["cases"]
    cases = [case for case in cases if case["contrast"] == "ALT ancestral against REF ancestral"]
    checked(cases, "oracle", 1.0)
    assert cases[-1]["stratum"] == "any frequency: classes mixed"
    assert (cases[-1]["positive"], cases[-1]["negative"]) == tuple((snvs.ancestral == a).sum() for a in ("alt", "ref"))


def test_planted_scores_of_indels(variants, data) -> None:
    sets = sys.modules["variant_sets"]
    real = set(sets.thousand_genomes(data, sets.Sequences(data / sets.CHR22))[1].variants)
    part = variants.of_indels(work(data, lambda variant: 3.0 * (variant in real)))
    assert part["real"] == len(real) and part["random"] == 10 * len(real)
    checked(part["cases"], "oracle", 1.0)
    checked(part["cases"], "Markov", 0.5)
    slack = part["cases"][0]["found"]["slack"]["value"]
    assert part["cases"][0]["contrast"] == "real against its random ones" and abs(slack - 0.5) < 0.05
    gap = part["cases"][2]
    assert gap["metric"] == "nats" and gap["rows"] == len(real)
    assert (gap["found"]["oracle"]["low"], gap["found"]["oracle - random weights"]["value"]) == (3, 6)


def test_a_killed_run_goes_on(variants, data, tmp_path, monkeypatch) -> None:
    contenders, sets = sys.modules["variant_contenders"], sys.modules["variant_sets"]
    asked, most = [], 15

    class Scorer:
        def __init__(self, *_, **__):
            self.background = None

        def score(self, some):
            if len(asked) >= most:
                raise KeyboardInterrupt
            asked.extend(some)
            return [VariantScore(v.start, -v.start, 7.0, ("HAS_N", "INDEL")) for v in some]

    monkeypatch.setattr(contenders, "VariantScorer", Scorer)
    monkeypatch.setattr(contenders, "_AT_ONCE", 5)
    monkeypatch.setattr(contenders, "_SAVE_EVERY_S", 0)
    monkeypatch.setattr(contenders.Scores, "_markov_of", lambda *_: None)
    genome = sets.Sequences(data / sets.CHR22)
    some = [Variant("22", start, "A", "C") for start in range(500, 100, -20)]
    contender = contenders.Contender("a b", None, "weights")
    with pytest.raises(KeyboardInterrupt):
        contenders.Scores(tmp_path / "keep", WINDOW).of_variants(contender, genome, some)
    assert len(asked) == 15
    most = 20
    scores = contenders.Scores(tmp_path / "keep", WINDOW)
    for _ in range(2):  # the second time all is kept
        found = scores.of_variants(contender, genome, some)
        assert found.llr.tolist() == [v.start for v in some] == (-found.markov).tolist()
        assert found.flagged("INDEL").all() and not found.flagged("IN").any()
    assert sorted(asked) == sorted(some)
    most = 40
    scores.of_variants(contender._replace(sha256="others"), genome, some)
    assert len(asked) == 40


# with one block of E. coli, the other fold has counted nothing, and its constant has no rhythm
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_whole_run(variants, data, tmp_path, capsys, monkeypatch) -> None:
    folder = tmp_path / "tiny"
    checkpoint.save(small_model(filter_length=WINDOW + 2, layers="H"), folder)
    out, plot, card = (tmp_path / name for name in ("variants.json", "variants.png", "card.json"))
    words = ["--data", data, "-m", folder, "--random-weights", 2, "-o", out, "--keep", tmp_path / "keep"]
    words += ["--window", WINDOW, "--threads", 1, "--no-percentiles", "--plot", plot, "--card", card]
    words = [str(word) for word in words]
    monkeypatch.chdir(tmp_path)  # paths are told from where the script runs
    assert variants.main(words) == 0
    report, text = json.loads(out.read_text()), capsys.readouterr().out
    assert list(report["parts"]) == list(variants.PARTS) and str(tmp_path) not in out.read_text()
    assert report["command"].startswith("python benchmarks/variants.py --data data -m tiny --random-weights 2")
    assert {"commit", "machine"} <= set(report) and "tiny" in report["parts"]["brca1"]["settings"]["models"]
    found = report["parts"]["brca1"]["cases"][0]["found"]
    seeds = [found[f"random weights {seed}"]["value"] for seed in range(2)]
    assert found["random weights"]["value"] == pytest.approx(np.mean(seeds)) and seeds[0] != seeds[1]
    gap = found["tiny"]["value"] - found["random weights"]["value"]
    assert found["tiny - random weights"]["value"] == pytest.approx(gap)
    rhythm = report["parts"]["periodicity"]
    assert rhythm["reading_frames"] >= 2 and rhythm["power_at_3_over_around"]["tiny"]["value"] > 0
    bits = report["parts"]["lambda"]["sets"]["lambda"]["bits_per_base"]
    # both ends are left out, and bases that no window scores: there are none
    assert report["parts"]["lambda"]["sets"]["lambda"]["bases"] == 2_498
    assert 1.9 < bits["Markov, E. coli"]["value"] < 2.3 and 1.9 < bits["random weights 0"]["value"] < 2.3
    assert "AUROC, LOF against FUNC, missense" in text and "bits per base, lambda (2,498 bases)" in text
    assert plot.read_bytes().startswith(b"\x89PNG") and "brca1\tLOF against FUNC\tall\ttiny" in (
        plot.with_suffix(".tsv").read_text()
    )
    said = json.loads(card.read_text())
    assert len(said["measured"]) == 6 and said["performance"].startswith("AUROC of the LLR, 0.5 is chance: BRCA1")
    assert said["model_sha256"] == report["parts"]["brca1"]["settings"]["models"]["tiny"]
    before = out.read_text()
    monkeypatch.setattr(sys.modules["variant_contenders"], "VariantScorer", None)
    assert variants.main(words[: words.index("--plot")]) == 0  # as they stand there
    assert out.read_text() == before


def test_what_is_refused(variants, data, tmp_path, capsys) -> None:
    contenders, report = sys.modules["variant_contenders"], sys.modules["variant_report"]
    with pytest.raises(SystemExit):
        variants.main(["--data", str(data), "--limit", "5", "--card", "card.json"])
    assert "--card is for numbers of whole sets" in capsys.readouterr().err
    other = tmp_path / "other.json"
    other.write_text('{"benchmark": "serve"}')
    with pytest.raises(InputError, match=r"other.json is no report of this benchmark"):
        variants.measured(SimpleNamespace(out=other, device="cpu", model=["starter"], random_weights=0), [])
    with pytest.raises(UsageError, match="the models are called starter, starter: give folders"):
        contenders.contenders(["starter", "starter"], 0, "cpu")
    with pytest.raises(UsageError, match=r"--card needs brca1, 1000g, indels measured whole; .*: 1000g, indels"):
        report.card({"parts": {"brca1": {"settings": {"limit": None}}}})
    with pytest.raises(UsageError, match="--plot draws AUROC, which the parts brca1, 1000g, indels have"):
        report.draw({"lambda": {}}, tmp_path / "a.png")

"""What clients send and get, as OpenAPI tells it. Sequences are strings of IUPAC letters, log-probabilities nats."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hyenadna.inference.decoding import Decoding, Mapping
from hyenadna.inference.likelihood import Strand
from hyenadna.serve.units import Pool

_DNA = "ACGTTGCATGTCGCATGATGCATGAGAGCTACGTAACGGT"


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON can spell half of a pair of code units, which is no character
            raise ValueError("not Unicode text") from error
    return value


class Input(BaseModel):
    """One sequence to work on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(max_length=256), AfterValidator(_text)] | None = Field(
        default=None, description="Comes back with the answer. Default: its number in the request, from 1."
    )
    sequence: Annotated[str, AfterValidator(_text)] = Field(description="DNA in IUPAC letters, of either case.")


def example(**options: Any) -> ConfigDict:
    """The configuration of a request with an example of it."""
    sequences = [{"id": "first", "sequence": _DNA}, {"sequence": _DNA[::-1]}]
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"sequences": sequences} | options]})


class Timed(BaseModel):
    """What all requests have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the answer is not wanted any more. Default, and most: the server's deadline.",
    )


class Request(Timed):
    """What requests about sequences have."""

    sequences: list[Input] = Field(min_length=1, description="Answered in this order.")

    def named_sequences(self) -> list[tuple[str, str]]:
        """Pairs of id and sequence."""
        numbered = enumerate(self.sequences, start=1)
        return [(str(number) if one.id is None else one.id, one.sequence) for number, one in numbered]


class LikelihoodRequest(Request):
    """How likely sequences are to the model."""

    model_config = example(per_base=True)

    per_base: bool = Field(default=False, description="Also the log-probability of each base.")
    strand: Strand = Field(default="forward", description="Strand that is read; both: the mean of both.")


class EmbedRequest(Request):
    """Hidden states of sequences, pooled over their bases."""

    model_config = example(layer=-1, pool="mean")

    layer: int = Field(
        default=-1, description="Block whose output is taken; 0 is the embedding of the letters, -1 the last block."
    )
    pool: Pool = Field(default="mean", description="Over the bases: their mean, the largest values, the last base.")


class PredictRequest(Request):
    """What a fine-tuned model says of sequences."""

    model_config = example()

    adapter: str | None = Field(
        default=None, description="Name of the adapter, of those in /v1/models. Default: the only one."
    )


class SubstitutionsRequest(Request):
    """The effect of every single-base change of sequences."""

    model_config = example(strand="forward")

    strand: Strand = Field(default="forward", description="Strand that is read; both: the mean of both.")


class GenerateRequest(Timed):
    """How sequences are to go on."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"prompt": _DNA, "length": 20, "count": 2, "seed": 1}]},
    )

    prompt: Annotated[str, AfterValidator(_text)] = Field(
        default="",
        description="A, C, G and T, of either case, that all sequences follow; it is not repeated in the answer. "
        "Without it the first base is drawn from all four alike, and is not scored.",
        json_schema_extra={"pattern": "^[ACGTUacgtu]*$"},
    )
    length: int = Field(default=100, ge=1, description="Bases to write.")
    count: int = Field(default=1, ge=1, description="Sequences to write, each on its own.")
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="The same seed gives the same sequences.")
    per_base: bool = Field(default=False, description="Also the log-probability of each base, at the end.")
    stream: bool = Field(
        default=False,
        description="Answer by server-sent events: `bases` with what each sequence has got since the last one, at the "
        "end `done` with the answer as it is without a stream, or `error`.",
    )
    temperature: float = Field(
        default=1.0, ge=0, le=100, description="Under 1 likely bases become likelier; 0 always takes the likeliest."
    )
    top_k: int = Field(default=4, ge=1, le=4, description="Only so many bases, the likeliest.")
    top_p: float = Field(
        default=1.0, ge=1e-6, le=1, description="Only the likeliest bases that together have this probability."
    )
    typical_p: float = Field(
        default=1.0,
        ge=1e-6,
        le=1,
        description="Only the bases whose surprisal is nearest to the entropy, that together have this probability.",
    )
    typical_kmer: int = Field(
        default=1, ge=1, le=4, description="Bases that are judged and drawn together, with a typical_p under 1."
    )
    repetition_penalty: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Nats taken from a base for each time that the k-mer which it would complete was written before.",
    )
    repetition_kmer: int = Field(default=12, ge=2, le=31, description="Bases of these k-mers.")
    dynamic: Literal["entropy"] | None = Field(
        default=None, description="Temperature by the entropy of the next base; temperature itself is then left out."
    )
    mapping: Mapping = Field(default="linear", description="From the entropy to the dynamic temperature.")
    min_temperature: float = Field(default=0.5, ge=0.01, le=100, description="Lowest dynamic temperature.")
    max_temperature: float = Field(default=1.3, ge=0.01, le=100, description="Highest dynamic temperature.")

    @property
    def decoding(self) -> Decoding:
        """How bases are chosen.

        Raises
        ------
        UsageError              options that exclude each other
        """
        return Decoding(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Decoding)})


class ErrorDetail(BaseModel):
    """Why there is no answer."""

    code: str
    message: str


class Error(BaseModel):
    """A refusal."""

    error: ErrorDetail


class Item(BaseModel):
    """The answer for one sequence; with `error` instead of results where this sequence could not be read."""

    id: str
    length: int | None = Field(default=None, description="Bases.")
    error: ErrorDetail | None = None


class LikelihoodItem(Item):
    """How likely one sequence is."""

    scored: float | None = Field(
        default=None, description="Bases scored: A, C, G, T after the first one; of both strands the mean."
    )
    nats: float | None = Field(default=None, description="Sum of their ln p.")
    bits_per_base: float | None = None
    per_base: list[float | None] | None = Field(default=None, description="ln p of each base; null if not scored.")


class EmbedItem(Item):
    """The embedding of one sequence."""

    embedding: list[float] | None = None


class PredictItem(Item):
    """The prediction for one sequence."""

    prediction: str | list[str] | float | None = Field(
        default=None,
        description="A label; of a multilabel task the labels that hold; of nucleotides a letter for each base; of a "
        "regression a number.",
    )
    probabilities: dict[str, float | list[float]] | None = Field(
        default=None, description="Of each label, of bases a list; of a regression there are none."
    )


class SubstitutionsItem(Item):
    """The effect of every single-base change of one sequence."""

    bases: str | None = Field(default=None, description="What the four numbers of a row stand for: ACGT.")
    log_likelihood_ratio: list[list[float | None] | None] | None = Field(
        default=None,
        description="For each base four numbers, alternative minus reference, in nats; the reference's own is 0.",
    )


class GenerateItem(BaseModel):
    """One sequence that was written."""

    row: int = Field(description="Its number, from 0.")
    sequence: str = Field(description="What was written behind the prompt.")
    length: int = Field(description="Bases.")
    scored: int = Field(description="Bases scored: all, but for a first one that nothing stands before.")
    nats: float = Field(description="Sum of their ln p under the model itself, whatever the decoding.")
    bits_per_base: float | None = None
    stopped: Literal["length", "deadline"] = Field(
        description="Why it ends here: all that was asked for is written, or the time was over."
    )
    per_base: list[float | None] | None = Field(default=None, description="ln p of each base; null if not scored.")


class Answer(BaseModel):
    """Items in the order of the request."""

    model: str


class LikelihoodAnswer(Answer):
    """Likelihoods, in the order of the request."""

    items: list[LikelihoodItem]


class EmbedAnswer(Answer):
    """Embeddings, in the order of the request."""

    items: list[EmbedItem]


class PredictAnswer(Answer):
    """Predictions, in the order of the request."""

    items: list[PredictItem]


class SubstitutionsAnswer(Answer):
    """Effects of substitutions, in the order of the request."""

    items: list[SubstitutionsItem]


class GenerateAnswer(Answer):
    """Sequences that were written."""

    seed: int
    items: list[GenerateItem]


class Adapter(BaseModel):
    """A fine-tuned model that /v1/predict can be asked for."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(description="binary, multiclass, multilabel, regression or nucleotide.")
    labels: list[str] = Field(description="What it tells apart; of a regression the name of the number.")
    method: str = Field(description="How it was fine-tuned.")
    context: int = Field(description="Bases that it reads at once.")
    windows: bool = Field(description="Whether it reads longer sequences in overlapping windows, or refuses them.")
    reverse_complement: bool = Field(description="Whether a prediction is the mean of both strands.")


class Model(BaseModel):
    """The model that is served."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: int
    layers: int
    width: int = Field(description="Numbers of an embedding.")
    context: int = Field(description="Bases that it reads at once; longer sequences go through overlapping windows.")
    bits: int = Field(description="Of a weight, as it is stored.")
    bits_per_weight: float = Field(description="The same with the scales of quantised weights, measured.")
    dtype: str = Field(description="What it computes in.")
    device: str
    adapters: dict[str, Adapter]


class Limits(BaseModel):
    """What is refused above."""

    body_bytes: int = Field(description="Of a request.")
    sequences: int = Field(description="Of a request.")
    sequence_bases: int = Field(description="Of a sequence.")
    substitutions_bases: int = Field(description="Of one sequence for /v1/substitutions, on one strand.")
    request_tokens: int = Field(
        description="Tokens that a request may cost the model: about its bases, twice that where windows overlap, and "
        "twice for both strands; all substitutions of L bases cost 2 L L."
    )
    generate_tokens: int = Field(
        description="Tokens that a request may write on at once: prompt and length together, for each of its "
        "sequences, and 4^(k - 1) times that with a typical_kmer of k."
    )
    queue_tokens: int = Field(description="Tokens of all requests that may wait at once.")
    deadline_s: float = Field(description="Seconds that a request may take.")


class Models(BaseModel):
    """The model that is served, and what a request may ask for."""

    models: list[Model]
    limits: Limits


class Status(BaseModel):
    """How the server is."""

    status: str

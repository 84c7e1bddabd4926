"""Settings of encoding texts, of recommending, and of where a server listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import ValidationError, field_validator

from draftrec.config.generate import Auto, Count, Device, Dtype, Frozen, IdColumn, Size
from draftrec.errors import DraftrecError
from draftrec.knobs import check_knobs, knob, not_allowed, unknown_setting


class ListenConfig(Frozen):
    """Where a server listens."""

    host: Annotated[str, knob("Address to listen on; the default is this machine only.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, knob("Port; 0 for any that is free.", ge=0, le=65535)] = 8080


class EncoderConfig(Frozen):
    """How texts become vectors."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    pooling: Annotated[
        Literal["auto", "mean", "last", "cls"],
        knob("auto: mean; last token for decoder-only models."),
    ] = "auto"
    normalise: Annotated[
        bool | None, knob("Vectors of length 1.", unset="as the encoder was published")
    ] = None
    max_tokens: Annotated[
        Size | None,
        knob("Tokens per pass.", unset="the encoder's limit"),
    ] = None
    on_overflow: Annotated[
        Literal["window", "truncate", "refuse"],
        knob(
            "Longer texts: the mean over windows of the whole text; its beginning, what is lost "
            "counted; or rejected."
        ),
    ] = "window"
    batch_size: Annotated[int, knob("Most texts encoded together.", ge=1)] = 32
    prompt_name: Annotated[
        str | None,
        knob(
            "The encoder's own prompt for such texts, for encoders that have several.",
            unset="the encoder's default",
        ),
    ] = None
    prompt: Annotated[str | None, knob("Words before every text, such as 'query: '.")] = None
    trust_remote_code: Annotated[bool, knob("Run Python code that comes with the encoder.")] = False


class EncodeConfig(Frozen):
    """Everything that decides what an encoding job writes, input files apart."""

    encoder: Annotated[
        str,
        knob(
            "A model's folder or Hub id; minilm (extra encoders); or hashed:256, which needs no "
            "model."
        ),
    ]
    settings: EncoderConfig = EncoderConfig()
    id_column: IdColumn = "entity_id"
    text_column: Annotated[str, knob("Column of the texts.")] = "text"
    history_column: Annotated[str, knob("Column of --history.")] = "prompt"
    shard_size: Annotated[
        int, knob("Texts that are written, and resumed from, together.", ge=1)
    ] = 4096

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder is made from texts, and not loaded."""
        return self.encoder.partition(":")[0] == "hashed"


@dataclass(frozen=True, slots=True)
class RetrieverSettings:
    """How items count for each other in item-item co-occurrence (`items.retriever`); every default
    was tuned on the valid part of Amazon Beauty.

    Counts of a pair are divided by the two items' own counts to the powers `from_power` and
    `to_power`, `shrinkage` being added to both; where `backward` is 0 only what follows counts, 1:
    both ways alike.
    """

    window: Annotated[
        int, knob("Largest distance of two items that count for each other.", ge=1)
    ] = 20
    decay: Annotated[
        float, knob("What each place of that distance leaves of a count.", ge=0, le=1)
    ] = 0.8
    backward: Annotated[float, knob("Weight of a pair that is read against time.", ge=0, le=1)] = (
        0.25
    )
    from_power: Annotated[
        float, knob("Power of the earlier item's count that divides a pair.", ge=0)
    ] = 0.5
    to_power: Annotated[
        float, knob("Power of the later item's count that divides a pair.", ge=0)
    ] = 0.0
    shrinkage: Annotated[float, knob("What is added to both items' counts there.", ge=0)] = 0.0
    neighbours: Annotated[int, knob("Most items that are kept for an item.", ge=1)] = 200
    last: Annotated[int, knob("Items of a history that count.", ge=1)] = 3
    recency: Annotated[
        float, knob("What each step into the past leaves of their weight.", ge=0, le=1)
    ] = 0.5
    popularity: Annotated[
        float, knob("Score of the most popular item for any history.", ge=1e-9)
    ] = 0.003

    def __post_init__(self) -> None:
        try:
            check_knobs(self)
        except DraftrecError as error:
            raise ValueError(f"impossible settings of an item retriever: {self}") from error


class RecommendConfig(Frozen):
    """Everything that decides what is recommended, models and files apart."""

    k: Annotated[int, knob("Items per user.", ge=1)] = 20
    beams: Annotated[
        Size | None,
        knob("Beams kept, at least -k: more find better items and take longer.", unset="-k"),
    ] = None
    blend: Annotated[
        float | None,
        knob(
            "Item-item co-occurrence's share in the ranking, the model's being the rest; its best "
            "items are ranked beside the beams'. `genrec tune` finds the share.",
            ge=0,
            le=1,
            unset="the model alone",
        ),
    ] = None
    blend_item_model: Annotated[
        float | None,
        knob(
            "An item model's share in the ranking, with --item-model; its best items are ranked "
            "too. `genrec tune` finds the share.",
            ge=0,
            le=1,
            unset="no item model",
        ),
    ] = None
    blend_candidates: Annotated[
        Size,
        knob("With a blend: best items of each that is blended in, ranked beside the beams'."),
    ] = 50
    item_item: RetrieverSettings = RetrieverSettings()
    draft_beams: Annotated[
        Size | tuple[Size, ...] | None,
        knob(
            "Beams drafted per level (N): one number, or one for each level but the last, as in "
            "40,120,120; with --draft-steps auto at most so many.",
            unset="40, or twice the beams kept where more; with --draft-steps auto what pays",
        ),
    ] = None
    draft_steps: Annotated[Count | Auto, knob("Levels drafted per pass; auto: as many as pay.")] = (
        "auto"
    )
    draft_items: Annotated[
        int,
        knob(
            "Proposed items' rows per level beside those of a draft model; with --draft-steps auto "
            "no more than it drafts.",
            ge=0,
        ),
    ] = 16
    verify: Annotated[
        Literal["strict", "relaxed", "sample"],
        knob(
            "strict: plain beam search's own answer; sample: an exact sample of items' ids without "
            "replacement, from the target renormalised over legal tokens at every level; "
            "relaxed: AtSpeed's published sampling."
        ),
    ] = "strict"
    constraint: Annotated[
        Literal["trie", "none"], knob("trie: items of the catalogue only; none: any tokens.")
    ] = "trie"
    renormalise: Annotated[
        bool,
        knob("Score among legal tokens only; a level with one legal token then costs nothing."),
    ] = False
    temperature: Annotated[float, knob("Of samples.", gt=0)] = 1.0
    seed: Annotated[int, knob("Seed of the samples.")] = 0
    batch_size: Annotated[int, knob("Users at once.", ge=1)] = 32
    prefix_cache: Annotated[
        int,
        knob(
            "Users beyond --batch-size whose prompts' keys and values stay in memory: of a prompt "
            "that begins alike only the rest is computed.",
            ge=0,
        ),
    ] = 0
    exclude_seen: Annotated[bool, knob("Leave out the items of the user's history.")] = False

    @property
    def width(self) -> int:
        """Beams kept, of which the k best items are the answer."""
        return self.beams or self.k

    @property
    def shares(self) -> tuple[float, ...]:
        """What has been given of `blend` and `blend_item_model`, in this order."""
        return tuple(it for it in (self.blend, self.blend_item_model) if it is not None)

    @property
    def beside(self) -> int:
        """Items at most that are scored beside those that beams find."""
        return len(self.shares) * self.blend_candidates

    @field_validator("draft_beams", mode="before")
    @classmethod
    def _widths(cls, value: Any) -> int | tuple[int, ...] | None:
        """Numbers with commas between them, as a command line has them, or a list; one number
        stands for all levels."""
        if value is None:
            return value
        words = [value]
        if isinstance(value, str):  # a list of a settings file comes as text to a command line
            words = [word.strip("[]'\" ") for word in value.split(",")]
        elif isinstance(value, list | tuple):
            words = list(cast("list[Any]", value))
        try:
            widths = [int(str(word)) for word in words]
        except ValueError:
            widths = []
        if min(widths, default=0) < 1:
            raise ValueError("must be whole numbers from 1, with commas between them")
        return tuple(widths) if len(widths) > 1 else widths[0]

    def draft_widths(self, levels: int) -> tuple[int, ...]:
        """Beams drafted for each of an id's `levels` but the last one, which is never drafted."""
        if isinstance(self.draft_beams, tuple):
            return self.draft_beams
        return (self.draft_beams or max(40, 2 * self.width),) * (levels - 1)


def make_recommend_config(**settings: Any) -> RecommendConfig:
    """A configuration of settings by name. Raises DraftrecError naming one that is unknown or not
    allowed."""
    for name in settings:
        if name not in RecommendConfig.model_fields:
            raise DraftrecError(unknown_setting(name, RecommendConfig.model_fields))
    try:
        return RecommendConfig(**settings)
    except ValidationError as error:
        raise DraftrecError(not_allowed(error)) from error


Wanted = Literal["train", "valid", "test", "all"]
FirstUsers = Annotated[Size | None, knob("First users only.")]


@dataclass(frozen=True, kw_only=True)
class RecommendRun:
    """What else is said of a job of recommending: for whom, where, and how it is looked after.

    `part`: what to predict; None leaves it to the file.
    """

    part: Annotated[
        Wanted | None,
        knob(
            "What to predict, from what comes before it; all: recommend for now, after everything "
            "that is known.",
            unset="test; all where the file has no test items",
        ),
    ] = None
    limit: FirstUsers = None
    shadow: Annotated[
        float,
        knob("Share of users answered again by plain search, to compare.", ge=0, le=1),
    ] = 0.0
    device: Device = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], knob("What the models compute in.")
    ] = "auto"
    exact: Annotated[
        bool,
        knob("Let items and scores be plain search's bit for bit, at whatever precision."),
    ] = False
    shard_size: Annotated[
        int,
        knob("Users written together; of a shard under way, those who are done are kept.", ge=1),
    ] = 2048

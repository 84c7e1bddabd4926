"""A recommender's folder: a checkpoint, its tokenizer, and `genrec.json` that says what it is.

Every token of a semantic id is a single token of the tokenizer. The folder is an ordinary one of
transformers, so other programs can load it as well. `sids.parquet` are the ids that the model was
trained on: what it has learnt holds for these, and for items that join them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from draftrec.config import ModelConfig
from draftrec.data.files.places import here
from draftrec.data.files.writers import naming, replace_file, share, sync_files, sync_folder
from draftrec.data.sequences import read_semantic_ids, write_semantic_ids
from draftrec.errors import DraftrecError
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.settings import PromptFormat
from draftrec.models.loading import load_model, load_tokenizer, tokenizer_fingerprint

FORMAT_VERSION = 1
INFO_FILE, IDS_FILE = "genrec.json", "sids.parquet"
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
_BLOCKS, _BLOCK = 64, 4096
_LOG = logging.getLogger("draftrec")


class RecommenderInfo(BaseModel):
    """What `genrec.json` holds.

    `kind`: `items` are item models, whose ids are one token each. `sids` and `target` are
    fingerprints: of the semantic ids that the model was trained on, and, for a draft, of the target
    that it was aligned to. `training` is a record for people.
    """

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    kind: Literal["target", "draft", "items"] = "target"
    objective: str = "sft"
    levels: int = Field(ge=1)
    prompt: dict[str, Any] = Field(default_factory=dict)
    sids: str
    target: str | None = None
    training: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Recommender:
    """A model with what is needed to ask it. `fingerprint` tells checkpoints apart."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat
    info: RecommenderInfo
    fingerprint: str
    folder: Path


def load_recommender(
    folder: str | Path, device: str = "auto", dtype: Literal["auto", "float32", "bfloat16"] = "auto"
) -> Recommender:
    """The recommender of a folder, ready to score. Raises DraftrecError for any other folder."""
    info = read_info(folder)
    model = load_model(ModelConfig(model=str(folder), device=device, dtype=dtype))
    form = form_of(folder, info)
    return Recommender(
        model, load_tokenizer(folder), form, info, weights_fingerprint(folder), Path(folder)
    )


def save_recommender(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    info: RecommenderInfo,
    sids: SemanticIds | None = None,
) -> None:
    """Write a folder that `load_recommender` reads; `genrec.json` last, as the sign that it is
    whole. `sids`: those that the model was trained on, so that others can be told from them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO_FILE).unlink(missing_ok=True)
    sync_folder(folder)
    transformers_logging.disable_progress_bar()
    with naming(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if sids is None:
        (folder / IDS_FILE).unlink(missing_ok=True)
    else:  # never away: they may be the ones that the model was trained on again
        write_semantic_ids(folder / IDS_FILE, sids)
    share(folder)
    sync_files(folder)  # or a crash of the machine could leave the sign beside half of the weights
    replace_file(folder / INFO_FILE, (info.model_dump_json(indent=1) + "\n").encode())


def read_info(folder: str | Path) -> RecommenderInfo:
    """What `genrec.json` says. Raises DraftrecError if there is none that this version reads."""
    path = here(folder, "a recommender") / INFO_FILE
    if not path.is_file():
        raise DraftrecError(
            f"{folder} has no {INFO_FILE}, so it is no recommender; name a folder that "
            "`draftrec genrec fit` or `genrec align` wrote"
        )
    try:
        info = RecommenderInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DraftrecError(
            f"{path} is damaged ({error.errors()[0]['msg']}); train the model again"
        ) from error
    if info.format_version > FORMAT_VERSION:
        raise DraftrecError(
            f"{path} has format version {info.format_version}, this draftrec reads up to "
            f"{FORMAT_VERSION}; update draftrec"
        )
    return info


def new_tokenizer(tokens: Seq[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows <pad>, <s>, </s>, <unk> and `tokens`, ids in this order.

    Raises DraftrecError for a token that is listed twice or one of the four.
    """
    vocabulary = {token: i for i, token in enumerate((PAD, BOS, EOS, UNK, *tokens))}
    if len(vocabulary) != len(tokens) + 4:
        raise DraftrecError(
            f"the tokens of the semantic ids must be distinct, and none of {PAD}, {BOS}, {EOS} and "
            f"{UNK}; rename them"
        )
    raw = RawTokenizer(WordLevel(vocabulary, unk_token=UNK))
    raw.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    # Known to the splitter as well: ids written without spaces between them are read all the same.
    raw.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


def check_draft(target: Recommender, draft: Recommender) -> None:
    """Raise DraftrecError unless token ids mean the same to both models."""
    if tokenizer_fingerprint(target.tokenizer) != tokenizer_fingerprint(draft.tokenizer):
        raise DraftrecError(
            "the draft model has another vocabulary than the target, so their token ids mean "
            "different things; align a draft to this target with `draftrec genrec align`"
        )


def check_ids(
    info: RecommenderInfo, folder: Path, sids: SemanticIds, named: str, *, again: bool = False
) -> None:
    """Raise DraftrecError where `sids`, which the user knows as `named`, gives items other tokens
    than the model of `folder` was trained on. Items that joined since, or left, are welcome.

    Warns instead where nobody can tell, as of models that were trained before ids were kept beside
    them, and where the model is trained `again`.
    """
    if info.sids == sids.fingerprint():
        return
    if not (folder / IDS_FILE).is_file():
        _warn_ids(f"{named} are not, to the letter, what {folder} was trained on", again=again)
        return
    before = read_semantic_ids(folder / IDS_FILE)
    here, there = sids.moved_from(before)
    both = int((sids.find(before.items) >= 0).sum())
    if not len(here):
        if not both:
            _warn_ids(f"{named} have no item that {folder} was trained on", again=again)
        return
    was, now = (" ".join(ids.sids_at(at[:1])[0]) for ids, at in ((before, there), (sids, here)))
    text = (
        f"{folder} was trained on other semantic ids than {named} are: {len(here):,} of {both:,} "
        f"items have other tokens, such as item {before.items[there[0]]}, which had {was} and now "
        f"has {now}"
    )
    if not again:
        raise DraftrecError(
            f"{text}; give the semantic ids that it was trained on (`draftrec sid join` adds items "
            "to them), or train it again on these"
        )
    _warn_ids(text, again=True)


def _warn_ids(text: str, *, again: bool) -> None:
    rest = "what it knows of items is learnt anew" if again else "its answers may mean nothing"
    _LOG.warning("%s; %s", text, rest)


def weights_fingerprint(folder: str | Path) -> str:
    """sha256 over sizes and evenly spread blocks of all weight files: cheap for any size, and the
    same whatever dtype the model is loaded in."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\t{size}\n".encode())
        with path.open("rb") as file:
            for i in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * i // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def form_of(folder: str | Path, info: RecommenderInfo) -> PromptFormat:
    """The prompt of a folder's recommender. Raises DraftrecError for one of a later version."""
    try:
        return PromptFormat(**info.prompt)
    except TypeError as error:
        raise DraftrecError(
            f"{Path(folder) / INFO_FILE} describes a prompt that this draftrec does not know "
            f"({error}); update draftrec, or train the model again"
        ) from error

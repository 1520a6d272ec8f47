"""Pushes a corpus to the Hub in one commit, and verifies a local copy against the Hub."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import datasets
from datasets.info import DatasetInfosDict
from datasets.table import embed_table_storage
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import CommitInfo, CommitOperation, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalTokenNotFoundError

from dataset_scripts.corpus.context_files import HUB_CONFIGURATION, context_dataset
from dataset_scripts.corpus.corpus_config import KNOWN_FILES, WITHOUT_LICENCE, MnerConfig, file_sha256
from dataset_scripts.corpus.examples import undecoded
from dataset_scripts.hub.checksums import CHECKSUMS, Difference, checksum_dataset, compare_checksums
from dataset_scripts.hub.dataset_card import dataset_card, merged_card
from modeling_ita.image_file import pictures_of
from modeling_ita.visual_context import VisualContext
from modeling_ita.whole_files import working_folder, written_file

POSTS = "default"
SHARD_BYTES = 500_000_000  # of images per Parquet file, which is built in memory
BATCH_BYTES = 200_000_000  # of images at once; Arrow arrays are limited to 2 GiB


class Corpus(Protocol):
    """The parts of a data set builder that a push needs; implemented by `dataset_scripts.mner.MnerDataset`."""

    config: MnerConfig

    @property
    def report(self) -> dict[str, Any]:
        """What was read, dropped and repaired."""

    def download_and_prepare(self) -> None:
        """Read the corpus, unless it was read before."""

    def as_dataset(self) -> Any:
        """The posts by split."""


def push_dataset(
    builder: Corpus,
    repo_id: str,
    private: bool | None = None,
    *,
    license: str | None = None,
    language: str | None = None,
    i_have_the_rights: bool = False,
    checksums_only: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a corpus to the Hub in one commit.

    The posts become the configuration `default` with the splits of the corpus: `id`, `words`, `tags` with their names,
    and `image` with the bytes of the file, unchanged (including a camera's EXIF data), or a list of images in a corpus
    in which a post has several. The visual contexts become the
    configuration `visual_context`, whose rows have the posts' ids. With `checksums_only`, the only configuration is
    `checksums`, see `checksum_dataset`. If the data set exists, the rows of these configurations are replaced; its
    other configurations are kept, and so is the text that people wrote in its card. The Parquet files are first
    written to the temporary folder (`TMPDIR`).

    Args:
        builder: the corpus; it is prepared here if necessary.
        repo_id: `owner/name` on the Hub; created if it does not exist.
        private: whether to create it as private. Default: the setting of the owner's account.
        license: the Hub's identifier of a licence. Default: the one in the card, else that of the corpus or `unknown`.
        language: code of the posts' language.
        i_have_the_rights: declares that you may redistribute a corpus that is known to have no licence.
        checksums_only: whether to push checksums only, which needs no rights.
        revision: a branch, created if it does not exist. Default: the main branch.
        token: the Hub token. Default: the one of `hf auth login` or `HF_TOKEN`.

    Raises:
        ValueError: the corpus is known to have no licence and `i_have_the_rights` is not set, a file is missing or
            malformed, or `private` is requested for an existing public data set.
        OSError: the Hub cannot be reached or refuses the push.
    """
    if not checksums_only and not i_have_the_rights:
        check_licence(builder.config)
    builder.download_and_prepare()
    posts = builder.as_dataset()
    contexts = {} if checksums_only else post_contexts(posts)
    configurations = _configurations(posts, contexts, checksums_only)
    part = CHECKSUMS if checksums_only else "posts"
    api = HfApi(endpoint=datasets.config.HF_ENDPOINT, token=token)
    try:
        repo_id = _repository(api, repo_id, private, revision)
        head = api.repo_info(repo_id, repo_type="dataset", revision=revision).sha
        card = dataset_card(
            repo_id,
            builder.report,
            posts[next(iter(posts))].features["tags"].feature.names,
            contexts.values(),
            part=part,
            license=license,
            language=language,
            i_have_the_rights=i_have_the_rights,
        )
        card = merged_card(_card_at(api, repo_id, head), card, part)
        for key, value in {"license": license, "language": language}.items():
            if value is not None:
                card.data[key] = value
        there = api.list_repo_files(repo_id, repo_type="dataset", revision=head)
        with working_folder(Path(tempfile.gettempdir(), "ita-push")) as folder:
            # Not upload_folder, which splits a large folder into several commits.
            return api.create_commit(
                repo_id,
                _operations(configurations, there, card, folder),
                commit_message=f"Upload {', '.join(configurations)}",
                repo_type="dataset",
                revision=revision,
                parent_commit=head,
            )
    except (HTTPError, OSError) as error:  # an HTTPError is not an OSError if there is no connection
        raise OSError(f"{repo_id} could not be pushed ({_way_out(error)}): {_in_one_line(error)}") from error


def check_licence(config: MnerConfig) -> None:
    """Refuse a corpus that is known to have no licence, by configuration name or by the sha256 of a file.

    Raises:
        ValueError: the corpus has no licence. The message lists the options.
    """
    for path in config.text_files().values():
        known_as = KNOWN_FILES.get(file_sha256(path), "")
        if known_as.startswith(WITHOUT_LICENCE) or config.name in WITHOUT_LICENCE:
            raise ValueError(
                f"{path} is {known_as or config.name}, which has no licence: posts and images are their authors'. "
                "Push its checksums (--checksums_only, checksums_only=True), or say that you may pass it on "
                "(--i_have_the_rights, i_have_the_rights=True)"
            )


def post_contexts(posts: Mapping[str, datasets.Dataset]) -> dict[str, VisualContext]:
    """The visual contexts of all splits, by post id. Posts without one are left out."""
    return {
        row["id"]: VisualContext.from_dict(row["context"])
        for rows in posts.values()
        for row in rows.select_columns(["id", "context"])
        if row["context"] is not None
    }


def verify_corpus(
    builder: Corpus, repo_id: str, revision: str | None = None, token: str | None = None
) -> list[Difference]:
    """Compare a corpus with its checksums on the Hub. The result is empty if they match.

    Args:
        builder: the corpus; it is prepared here if necessary. Images are compared if both copies have images.
        repo_id: `owner/name` of a data set with the configuration `checksums`.
        revision: a branch, tag or commit of it.
        token: the Hub token, as for `push_dataset`.

    Raises:
        ValueError: a file of the corpus is missing or malformed.
        OSError: the data set or configuration does not exist, or the Hub cannot be reached.
    """
    builder.download_and_prepare()
    here = checksum_dataset(builder.as_dataset())
    try:
        there = datasets.load_dataset(repo_id, CHECKSUMS, split="train", revision=revision, token=token)
    except (HTTPError, OSError, ValueError) as error:
        way_out = f"expected a data set with the configuration {CHECKSUMS!r}, as --checksums_only pushes it"
        raise OSError(f"the checksums of {repo_id} cannot be loaded ({way_out}): {_in_one_line(error)}") from error
    images = builder.config.images_dir is not None and any(there["image_sha256"])
    return compare_checksums(here, there, images)


def _configurations(
    posts: datasets.DatasetDict, contexts: Mapping[str, VisualContext], checksums_only: bool
) -> dict[str, datasets.DatasetDict]:
    if checksums_only:
        return {CHECKSUMS: datasets.DatasetDict({"train": checksum_dataset(posts)})}
    if not contexts:
        return {POSTS: posts.remove_columns("context")}
    rows = datasets.DatasetDict({"train": context_dataset(contexts)})
    return {POSTS: posts.remove_columns("context"), HUB_CONFIGURATION: rows}


def _folder(configuration: str) -> str:
    """The folder of a configuration's files, named as `Dataset.push_to_hub` does."""
    return "data" if configuration == POSTS else configuration


def _repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """The repository's full name. Creates the repository if it does not exist.

    Raises:
        ValueError: it exists and is public, but `private` was requested.
    """
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id, repo_type="dataset").private:
        raise ValueError(f"{repo_id} is public: make it private in its settings, or choose another name")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    return repo_id


def _card_at(api: HfApi, repo_id: str, commit: str | None) -> str:
    """The text of the card on the Hub, or an empty string."""
    try:
        path = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=commit)
    except EntryNotFoundError:
        return ""
    return Path(path).read_text(encoding="utf-8-sig")


def _operations(
    configurations: Mapping[str, datasets.DatasetDict], there: list[str], card: DatasetCard, folder: Path
) -> list[CommitOperation]:
    """Write all files. Returns the commit operations that add them and delete old files of the same configurations."""
    files = {
        f"{_folder(name)}/{path.name}": path
        for name, splits in configurations.items()
        for path in _write_configuration(name, splits, folder / name, card)
    }
    folders = {_folder(name) for name in configurations}
    old = [path for path in there if path.rpartition("/")[0] in folders and path.endswith(".parquet")]
    return [
        *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
        *(CommitOperationDelete(path) for path in old if path not in files),
        CommitOperationAdd("README.md", str(card).encode()),
    ]


def _write_configuration(
    name: str, splits: Mapping[str, datasets.Dataset], folder: Path, card: DatasetCard
) -> list[Path]:
    """Write a configuration as Parquet with the images' bytes, and add it to the card's metadata."""
    folder.mkdir()
    files: list[Path] = []
    info = datasets.DatasetInfo(splits=datasets.SplitDict(), download_size=0, dataset_size=0)
    for split, rows in splits.items():
        images = _image_sizes(rows)
        count = min(sum(images) // SHARD_BYTES + 1, len(rows))
        batch_size = max(1, min(100, BATCH_BYTES // max(images, default=1)))
        size = 0
        for number in range(count):
            shard = rows.shard(count, number, contiguous=True).with_format("arrow")
            # Image() alone would store local file paths instead of the files.
            shard = shard.map(
                embed_table_storage, batched=True, batch_size=batch_size, keep_in_memory=True, desc="Embedding images"
            )
            files.append(folder / f"{split}-{number:05d}-of-{count:05d}.parquet")
            with written_file(files[-1]) as part:
                size += shard.with_format(None).to_parquet(part, batch_size=batch_size)
            info.download_size += files[-1].stat().st_size
        info.features = rows.features
        info.splits.add(datasets.SplitInfo(name=str(split), num_bytes=size, num_examples=len(rows)))
        info.dataset_size += size
    data_files = [{"split": str(split), "path": f"{_folder(name)}/{split}-*"} for split in splits]
    DatasetInfosDict({name: info}).to_dataset_card_data(card.data)
    if name == POSTS:
        for other in card.data.get("configs") or []:  # `datasets` takes the one named default
            other.pop("default", None)
    MetadataConfigs({name: {"data_files": data_files}}).to_dataset_card_data(card.data)
    return files


def _image_sizes(rows: datasets.Dataset) -> list[int]:
    """The size in bytes of every post's image, or images."""
    if "image" not in rows.column_names:
        return []
    posts = rows.select_columns("image").cast_column("image", undecoded(rows.features["image"]))
    return [
        sum(Path(image["path"]).stat().st_size for image in pictures_of(row["image"])) for row in posts if row["image"]
    ]


def _way_out(error: Exception) -> str:
    """Advice for an error of the Hub, which has left the Hub unchanged."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room in the temporary folder, or have TMPDIR name another"
    if status in (403, 404):
        return "take a name under your own account, and a token that may write there"
    if status in (409, 412):
        return "somebody else pushed at the same time: run this again"
    return "nothing there was changed: run this again"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())

"""Staging: a source's images, audited, into shards, an index and a manifest.

The result depends on the source and the options alone: the same bytes for any number of workers, and however often
staging was interrupted and resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_pipeline.data.dataset import Dataset, checked_manifest
from resnet_pipeline.data.image_audit import SMALL
from resnet_pipeline.data.image_files import DEFAULT_LIMITS, Limits, image_size
from resnet_pipeline.data.manifest import FORMAT, SHARDS, SOURCE, Manifest, Origin, Remark
from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.progress import Bar, per_second, progress
from resnet_pipeline.sources.catalogue import Catalogue, with_holdout
from resnet_pipeline.sources.layouts import read_catalogue, source_files
from resnet_pipeline.staging.account import Account
from resnet_pipeline.staging.area import LISTING, StagingArea, catalogue_of, check_free, listing_of, staging_area
from resnet_pipeline.staging.manifest import labels_of, write_manifest
from resnet_pipeline.staging.shard_plan import SHARD_BYTES, Shard, averaged_numbers, packed_bytes, plan_shards, total
from resnet_pipeline.staging.shard_pool import GUARD, Processes, Workers, check_guard
from resnet_pipeline.staging.shard_writer import RECORDS, Outcome, Record, Task, record_name
from resnet_pipeline.staging.spool import spooled
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage

MAX_REFUSED = 0.01
"""The share of broken images that staging leaves out if nothing else is said; with more it ends."""

_SECONDS_BETWEEN_UPDATES = 0.2
_HEADERS_READ = 64  # training images whose headers may be broken before the statistics take centre crops


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides, beside the source, what comes out.

    ``holdout`` training images become split ``val``; images with a shorter side above ``max_shorter_side`` are made
    smaller; ``check_md5`` compares ILSVRC's and CIFAR-10's archives with their published MD5s. ``max_value`` is white
    in images of more than 8 bits; images beyond ``limits`` are refused.
    """

    holdout: int = 0
    max_shorter_side: int | None = None
    check_md5: bool = True
    shard_bytes: int = SHARD_BYTES
    max_value: int | None = None
    limits: Limits = DEFAULT_LIMITS

    def identity(self) -> str:
        """Return the options that decide what comes out, as text."""
        chosen = {key: value for key, value in asdict(self).items() if key != "check_md5"}
        added = {"max_value": None, "limits": asdict(DEFAULT_LIMITS)}  # datasets are older than these options
        return json.dumps({k: v for k, v in chosen.items() if k not in added or v != added[k]}, sort_keys=True)


@dataclass(frozen=True)
class Source:
    """A source's place: the archive ``name`` of a storage, or all of the storage if the name is empty."""

    storage: Storage
    name: str = ""

    @classmethod
    def at(cls, path: Path) -> Source:
        """Return the source of a folder or archive of this machine."""
        return cls(LocalStorage(path)) if path.is_dir() else cls(LocalStorage(path.parent), path.name)


def stage(source: Path, destination: Path, **arguments: Any) -> Dataset:
    """Pack a folder or archive of this machine into a folder, with the arguments of ``pack``, and open the dataset.

    Example: ``stage(Path("images.tar"), Path("datasets/mine"), name="mine", workers=2).fingerprint``
    """
    pack(Source.at(source), LocalStorage(destination), **arguments)
    return Dataset.open(destination)


def pack(
    source: Source,
    destination: Storage,
    *,
    name: str,
    options: Options = Options(),
    workers: int | Callable[[], Workers] | None = None,
    max_refused: float = MAX_REFUSED,
    replace: bool = False,
) -> Manifest:
    """Audit and pack a source as a dataset; it appears when it is complete. Returns its manifest.

    Broken images are left out and listed in the manifest; as soon as more than the share ``max_refused`` of all is
    refused, the source is. ``workers`` is a number of processes (default: one for each CPU core), or makes others. What
    is finished at an interruption (a kill, a full disk, a lost connection) is kept, and the next call with the same
    source and options resumes; what of it is damaged is made again. Raises RefusedError for anything wrong
    with the source, of which nothing is kept; UserError for what can be mended, for a destination that exists
    (without ``replace``) or holds other files than a dataset's, and if another process is staging there.

    Example: ``pack(Source.at(Path("images.tar")), storage_at("s3://bucket/mine"), name="mine")``
    """
    check_guard()
    check_free(destination, replace=replace)
    # what an earlier staging must have been of, to be resumed
    fingerprint = source_fingerprint(source, options)
    identity = json.dumps({"source": fingerprint, "format": FORMAT, "md5": options.check_md5}).encode()
    with staging_area(destination) as area, progress(f"staging {name}") as bar:
        check_free(destination, replace=replace)  # again: another process may have made it until now
        catalogue = _catalogue(area, identity, source, options)
        shards = plan_shards(catalogue.entries, options.shard_bytes)
        try:
            # which shards are left to make
            finished = _finished(area.storage, shards)
            todo = [shard for shard in shards if shard.file not in finished]
            _check_disk(area, catalogue, todo, options.limits.bytes)
            limit = _Limit(catalogue, max_refused, [remark for refused in finished.values() for remark in refused])
            before = sum(len(shard.entries) for shard in shards if shard.file in finished)
            tasks = _tasks(area, catalogue, todo, options, limit)
            # what was laid out for a bucket lies on this machine alone
            here = catalogue.stream is not None and not isinstance(destination, LocalStorage)
            with _workers(None if here and callable(workers) else workers) as pool:
                bar.expect(limit.total, before=before)
                _run(tasks, pool, limit, bar, area.check_ours)
            # all shards are there: index and manifest
            packed = Account()
            records = packed.counted((shard, _record(area.storage, shard)) for shard in shards)
            area.storage.write(SOURCE, _origin(catalogue, fingerprint, options).to_bytes())
            area.check_ours()
            files = write_manifest(
                area.storage,
                name,
                catalogue,
                records,
                max_shorter_side=options.max_shorter_side,
                max_value=options.max_value,
            )
        except BaseException as error:
            # keep what the next call can resume from, and nothing of a source that is refused
            with suppress(UserError):  # the connection may be gone, or the destination another's
                area.check_ours()
                worthless = not catalogue.md5 and not area.storage.files(f"{RECORDS}/")
                if isinstance(error, RefusedError) or worthless:
                    area.drop()
            raise
        area.finish(files)
        manifest = checked_manifest(destination)
    packed.log(name, catalogue, manifest)
    return manifest


def _origin(catalogue: Catalogue, fingerprint: str, options: Options) -> Origin:
    return Origin(
        path=catalogue.address,
        fingerprint=fingerprint,
        holdout=options.holdout or None,
        check_md5=None if options.check_md5 else False,
    )


def source_fingerprint(source: Source, options: Options = Options()) -> str:
    """Return a hash of a source's files (names, sizes, versions) and of the options that decide what comes out.

    Example: ``source_fingerprint(Source.at(Path("images.tar")))``
    """
    files = source_files(source.storage, source.name)
    return hashlib.sha256(f"{files}\n{options.identity()}".encode()).hexdigest()


def _catalogue(area: StagingArea, identity: bytes, source: Source, options: Options) -> Catalogue:
    """Return what the source holds: as an earlier staging found it, else (or if that is damaged) by reading it now."""
    listed = None
    if area.keeps(identity) and area.storage.stat(LISTING) is not None:
        with suppress(ValueError):
            listed = catalogue_of(area.storage.read(LISTING), source.storage)
    if listed is not None:
        area.begin(identity)
        return listed
    catalogue = read_catalogue(source.storage, source.name, check_md5=options.check_md5)
    catalogue = with_holdout(catalogue, options.holdout)
    if catalogue.objects is not None and options.max_shorter_side:
        raise UserError(
            f"--max-shorter-side {options.max_shorter_side}: {catalogue.address} has boxes, which are of the images as "
            "they are; leave the option out"
        )
    area.begin(identity)
    if catalogue.stream is None:
        area.storage.write(LISTING, listing_of(catalogue))
    return catalogue


class _Limit:
    """How many refused images the source may have, and those that were found."""

    def __init__(self, catalogue: Catalogue, share: float, refused: list[Remark]) -> None:
        self.address, self.total, self.share = catalogue.address, len(catalogue.entries), share
        self.allowed = int(share * self.total)
        self.refused = list(refused)

    def check(self) -> None:
        """Raise RefusedError if there are too many."""
        if len(self.refused) > self.allowed:
            first = "; ".join(f"{r.file}: {r.reason}" for r in sorted(self.refused, key=lambda r: r.file)[:3])
            raise RefusedError(
                f"{len(self.refused)} of {self.total} files of {self.address} can't be used, more than the allowed "
                f"{self.share:.1%} (--max-refused): {first}{'; …' if len(self.refused) > 3 else ''}"
            )


def _tasks(
    area: StagingArea, catalogue: Catalogue, todo: list[Shard], options: Options, limit: _Limit
) -> Iterator[Task]:
    """Return the tasks, one for each shard; what can only be read in sequence is laid out before."""
    side = _side(catalogue, options)
    storage = catalogue.storage
    if catalogue.stream is not None:
        todo = spooled(catalogue, todo, area.scratch, options.limits.bytes)
        storage = LocalStorage(area.scratch)
    label_of = labels_of(catalogue)
    return (
        Task(
            shard=shard,
            labels=[label_of[entry.label] for entry in shard.entries],
            source=storage,
            destination=area.storage,
            side=side,
            max_shorter_side=options.max_shorter_side,
            max_value=options.max_value,
            limits=options.limits,
            allowed=limit.allowed,
        )
        for shard in todo
    )


def _run(tasks: Iterator[Task], pool: Workers, limit: _Limit, bar: Bar, check_ours: Callable[[], None]) -> None:
    """Run all tasks, and show on the bar how far they are; RefusedError as soon as too many are refused.

    With each shard it looks whether the destination is still this process's.
    """
    limit.check()
    before = len(limit.refused)
    more = True
    pending: set[Future[Outcome]] = set()
    images = size = 0
    while more or pending:
        while more and len(pending) < 2 * pool.count:
            task = next(tasks, None)
            more = task is not None
            if task is not None:
                pending.add(pool.submit(task))
        finished, pending = wait(pending, timeout=_SECONDS_BETWEEN_UPDATES, return_when=FIRST_COMPLETED)
        for future in finished:
            outcome = _outcome(future, pool)
            limit.refused += outcome.refused
            images, size = images + outcome.images, size + outcome.bytes
            check_ours()
        limit.check()
        running = pool.running() or (images, size, len(limit.refused) - before)
        speed = f"{per_second(running[1] / 1e6 / bar.seconds)} MB/s"
        bar.reach(bar.before + running[0], detail=f"{speed}  {before + running[2]} refused")
        if before + running[2] > limit.allowed:  # several workers together: their lists come when they have stopped
            pool.close()
            limit.refused += [r for future in pending if not future.cancelled() for r in _outcome(future, pool).refused]
            limit.check()


def _outcome(future: Future[Outcome], pool: Workers) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        if not pool.begun:
            raise UserError(f"the worker processes can't start, for the reason that they gave; {GUARD}") from None
        raise UserError("a worker died (of too little memory?); start again with fewer --workers: it resumes") from None


@contextmanager
def _workers(wanted: int | Callable[[], Workers] | None) -> Iterator[Workers]:
    pool = wanted() if callable(wanted) else Processes(wanted)
    try:
        yield pool
    finally:
        pool.close()


def _finished(storage: Storage, shards: list[Shard]) -> dict[str, list[Remark]]:
    """Return the shards that are finished, with what was refused in them.

    A shard whose record is damaged, or which is not there as its record says, is not finished: it is packed again.
    """
    names = {stored.name for stored in storage.files(f"{RECORDS}/")}
    sizes = {stored.name: stored.size for stored in storage.files(f"{SHARDS}/")}
    finished = {}
    for shard in shards:
        if record_name(shard.file) in names:
            with suppress(ValueError):
                record = _record(storage, shard)
                complete = len(record.checksums) == len(record.rows)  # earlier versions noted no checksums
                if complete and sizes.get(f"{SHARDS}/{shard.file}") == record.size:
                    finished[shard.file] = record.refused
    return finished


def _record(storage: Storage, shard: Shard) -> Record:
    return Record.from_bytes(storage.read(record_name(shard.file)))


def _side(catalogue: Catalogue, options: Options) -> tuple[int, int] | None:
    """Return (height, width) of small images, decided by the first training image whose header can be read."""
    numbers = averaged_numbers(catalogue.entries)[:_HEADERS_READ]
    first = [entry for entry in catalogue.entries.part(numbers) if entry.member.size <= options.limits.bytes]
    sizes = (image_size(data) for data in catalogue.read(first))
    side = next((found for found in sizes if found), None)
    most = options.max_shorter_side
    if side is None or max(side) > SMALL or (most and min(side) > most):
        return None
    return side


def _check_disk(area: StagingArea, catalogue: Catalogue, todo: list[Shard], largest: int) -> None:
    numbers = np.concatenate([np.zeros(0, np.int64), *(shard.numbers for shard in todo)])
    sizes = catalogue.entries.members.sizes[numbers]
    sizes = sizes[sizes <= largest]
    area.check_disk(packed_bytes(sizes) + (total(sizes.astype(np.uint64)) if catalogue.stream else 0))
